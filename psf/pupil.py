"""Pupil functions, from which `psf.hankel` and `psf.fourier` compute PSFs."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from scipy.fft import dct
from scipy.special import jv
from torch.autograd.forward_ad import unpack_dual

from psf.errors import InputError
from psf.light import Component, components
from psf.microscope import Optics
from psf.model import PsfModel, wavefront

# Error of the quadratures in amplitude, below the rounding of each precision.
TOLERANCE = {torch.float32: 1e-8, torch.float64: 1e-13}
FEWEST_POINTS = 64  # of the first Chebyshev transform of a pupil; doubled until they suffice
MAX_DEGREE = 2**14  # a pupil that needs a higher degree is not smooth, so the input is wrong
DIRECTIONS = 8  # diameters on which the degree of a pupil is measured, evenly spread in angle

Map = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # rho, theta of shape S -> (N, *S)


@dataclass(frozen=True)
class Pupil:
    """Pupil functions of N PSFs over the unit disc."""

    cutoff: torch.Tensor  # (1,) or (N,), cycles per step of the grid
    dtype: torch.dtype  # of the PSFs
    axisymmetric: bool
    wavefront: Map  # waves
    components: Callable[[torch.Tensor, torch.Tensor], list[Component]]
    only: Callable[[int], "Pupil"]  # the pupil of one PSF
    max_degree: int = MAX_DEGREE
    twin: "Pupil | None" = None  # the same pupil on the CPU, if this one is on a GPU

    @property
    def readable(self) -> "Pupil":
        """The pupil whose numbers Python can read without waiting for a GPU, if there is one."""
        return self.twin or self

    @property
    def highest_cutoff(self) -> float:
        """Highest of the cut-offs, cycles per step of the grid."""
        return float(self.readable.cutoff.detach().max())

    def field(self, rho: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
        """exp(2 pi i W), complex (N, *S).

        The phase is reduced to one turn in double precision, since float32 phases are wrong by
        1e-5 at 20 waves.
        """
        waves = self.wavefront(rho, theta)
        phase = (2 * math.pi * (waves - waves.detach().round())).to(self.dtype)
        return torch.complex(phase.cos(), phase.sin())

    def spectrum(self) -> np.ndarray:
        """Magnitudes of the Chebyshev coefficients of the pupil function, down to the tolerance.

        They belong to the PSF with the steepest wavefront. Each is the largest over several
        diameters (radii if the pupil is axisymmetric).
        """
        coarse = self.wavefront(*self._diameters(FEWEST_POINTS)).detach()
        slopes = coarse.diff(dim=-1).abs().flatten(1).amax(1)
        steepest = int(slopes.argmax())
        rounding = 8 * math.pi * torch.finfo(coarse.dtype).eps * float(coarse.abs().max())
        tolerance = max(TOLERANCE[self.dtype], rounding)  # the phase is not more exact
        points, waves = FEWEST_POINTS, coarse[steepest]
        pupil = self.only(steepest)
        while points <= MAX_DEGREE:
            size = pupil._chebyshev(waves, points)
            needed = int(np.flatnonzero(size > tolerance).max(initial=0))
            if needed < points * 3 // 4 or points > self.max_degree:
                return size[: min(needed, self.max_degree) + 1]
            points *= 2
            waves = pupil.wavefront(*self._diameters(points))[0].detach()
        raise InputError("the pupil function is not smooth; check NA, indices and aberrations.")

    def _diameters(self, points: int) -> tuple[torch.Tensor, torch.Tensor]:
        like = self.cutoff
        return _chebyshev_points(points, self.axisymmetric, like.device, like.dtype)

    def _chebyshev(self, waves: torch.Tensor, points: int) -> np.ndarray:
        """Largest coefficient of each order over directions and components, of a single PSF."""
        rho, theta = self._diameters(points)
        with torch.no_grad():
            # components of odd order change sign in the middle of a diameter
            turns = torch.cos(theta - theta[:, :1])
            parts = [
                (part.amplitude[0] * turns if part.order == 1 else part.amplitude[0]).cpu().numpy()
                for part in self.components(rho, theta)
            ]
        field = np.exp(2j * np.pi * waves.cpu().numpy())
        values = np.concatenate([np.atleast_2d(amplitude * field) for amplitude in parts])
        coefficients = dct(values.real, type=1) + 1j * dct(values.imag, type=1)
        return np.abs(coefficients).max(0) / points


def pupil_of(
    model: PsfModel,
    labels: torch.Tensor,
    optics: Optics,
    dtype: torch.dtype,
    twin: Pupil | None = None,
) -> Pupil:
    """Pupils of labels (N, P). Labels and optics have the precision of the phases."""

    def only(i: int) -> Pupil:
        part = slice(i, i + 1)
        one_twin = None if twin is None else twin.only(i)
        return pupil_of(model, labels[part], optics.part(part), dtype, one_twin)

    return Pupil(
        cutoff=optics.cutoff_cycles_per_pixel,
        dtype=dtype,
        axisymmetric=model.is_axisymmetric,
        wavefront=lambda rho, theta: wavefront(model, labels, rho, theta, optics),
        components=lambda rho, theta: components(model.light, optics, model.layers, rho),
        only=only,
        twin=twin,
    )


def sampled_pupil(
    waves: torch.Tensor, amplitude: torch.Tensor, optics: Optics, light: str, dtype: torch.dtype
) -> Pupil:
    """Pupils given by (N, P, P) samples of wavefront and amplitude on the square around the disc.

    Values between the samples are interpolated bicubically.
    """

    def apodised(rho: torch.Tensor, theta: torch.Tensor) -> list[Component]:
        factor = _bicubic(amplitude, rho, theta)
        parts = components(light, optics, None, rho)
        return [replace(part, amplitude=part.amplitude * factor) for part in parts]

    def only(i: int) -> Pupil:
        part = slice(i, i + 1)
        return sampled_pupil(waves[part], amplitude[part], optics.part(part), light, dtype)

    return Pupil(
        cutoff=optics.cutoff_cycles_per_pixel,
        dtype=dtype,
        axisymmetric=False,
        wavefront=lambda rho, theta: _bicubic(waves, rho, theta),
        components=apodised,
        only=only,
        max_degree=2 * waves.shape[-1],
    )


def _bicubic(samples: torch.Tensor, rho: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    """Values (N, *S) at pupil points of shape S from samples (N, P, P), rows y, columns x.

    The samples span -1 to 1. Cubic convolution with a = -1/2 is exact for quadratic functions
    (R. Keys, IEEE TASSP 29, 1153 (1981)). torch.nn.functional.grid_sample is not exact even for
    linear functions, so it is not used.
    """
    size = samples.shape[-1]
    rows, columns = (
        _cubic((place + 1) / 2 * (size - 1), size)
        for place in (rho * torch.sin(theta), rho * torch.cos(theta))
    )
    return sum(wy * wx * samples[:, iy, ix] for iy, wy in rows for ix, wx in columns)


def _cubic(place: torch.Tensor, size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Index and weight of the four samples around fractional places."""
    left = place.floor().clamp(1, size - 3)  # near the border the outermost cubic is continued
    t = place - left
    weights = (
        -t * (1 - t) ** 2 / 2,
        1 - 2.5 * t**2 + 1.5 * t**3,
        t * (1 + 4 * t - 3 * t**2) / 2,
        -(t**2) * (1 - t) / 2,
    )
    return [(left.long() + k, w) for k, w in zip((-1, 0, 1, 2), weights, strict=True)]


def precise(device: torch.device) -> torch.dtype:
    """Precision in which phases are computed: float64 if the device supports it."""
    return torch.float32 if device.type == "mps" else torch.float64


def is_variable(tensor: torch.Tensor) -> bool:
    """Whether derivatives with respect to a tensor are needed, in backward or forward mode."""
    return tensor.requires_grad or unpack_dual(tensor).tangent is not None


@lru_cache(maxsize=64)
def tables_on(
    tables: Callable[[int], tuple[np.ndarray, ...]],
    size: int,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, ...]:
    """The arrays tables(size) as tensors, which are copied to each device only once."""
    with torch.inference_mode(False):  # derivatives may need them later
        return tuple(torch.from_numpy(array).to(device, dtype) for array in tables(size))


@lru_cache(maxsize=64)
def _chebyshev_points(
    points: int, axisymmetric: bool, device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pupil radius and angle on radii (1, M + 1), or on diameters (DIRECTIONS, M + 1)."""
    x = torch.cos(math.pi * torch.arange(points + 1).to(device, dtype) / points)
    if axisymmetric:
        return (x[None] + 1) / 2, torch.zeros_like(x)[None]
    angle = math.pi * torch.arange(DIRECTIONS).to(x)[:, None] / DIRECTIONS
    return x.abs().expand(DIRECTIONS, -1), angle + math.pi * (x < 0).to(x)


@lru_cache(maxsize=256)
def _wave_spectrum(steepest_phase: int, tolerance: float) -> np.ndarray:
    """Chebyshev coefficients of exp(i kappa x) on [-1, 1], 2 |J_k(kappa)|, down to the tolerance.

    They fall faster than exponentially for k above kappa.
    """
    orders = np.arange(2 * steepest_phase + 64)
    size = 2 * np.abs(jv(orders, steepest_phase))
    return size[: int(np.flatnonzero(size > tolerance).max(initial=0)) + 1]


def node_count(pupil: Pupil, steepest_phase: float) -> int:
    """Number of Gauss nodes for the pupil function times exp(i kappa x), kappa = steepest_phase.

    Q nodes integrate polynomials up to degree 2 Q - 1 exactly. The part of the product above degree
    D is at most sum_{j + k > D} |a_j| |b_k| / 2, since T_j T_k = (T_{j+k} + T_{|j-k|}) / 2. The
    radius in rho d rho adds one degree.
    """
    tolerance = TOLERANCE[pupil.dtype]
    wave = _wave_spectrum(8 * math.ceil(steepest_phase / 8), tolerance)
    product = np.convolve(pupil.readable.spectrum(), wave)
    above = product[::-1].cumsum()[::-1] / 2  # part of degree D and higher
    degree = int(np.flatnonzero(above > tolerance).max(initial=0))
    return 4 * math.ceil((degree + 2) / 8)  # even, and a multiple of 4, so that tables are reused
