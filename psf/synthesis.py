"""Labels -> point-spread functions: intensity, pixel-integrated, centred, unit sum.

Two methods compute a PSF from a pupil function: `psf.hankel` if the pupil is axisymmetric,
`psf.fourier` otherwise. Both evaluate the Fraunhofer integral
h(r) = |1/pi int_disc A exp(2 pi i W(rho)) exp(2 pi i (NA/lambda) rho . r) d^2 rho|^2
(Born & Wolf, Principles of Optics, 8.5). The grid is symmetric about its middle. The centre is
pixel K // 2 of an odd grid, and the corner shared by the four middle pixels of an even grid.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch

from psf.errors import InputError
from psf.fourier import assemble, fourier_psfs
from psf.hankel import hankel_profiles, quadrants, sum_on_grid, unfold
from psf.light import warn_if_scalar_is_off
from psf.microscope import Microscopes, Optics
from psf.model import LIGHTS, PsfModel, psf_model
from psf.pupil import Pupil, precise, pupil_of, sampled_pupil

# PSFs computed together: a small number for the cache of a CPU, a large one to fill a GPU. 1024 of
# a general pupil need 0.5 GB.
CHUNK, GPU_CHUNK = 64, 1024
# Kernels of pixel integration: sampling relative to Nyquist, taps on either side, beta of the
# Kaiser window. Their errors are 3e-6 and 4e-12 of the peak.
PIXEL_KERNELS = {torch.float32: (4 / 3, 12, 10.0), torch.float64: (2.0, 16, 25.0)}
ENERGY_TOLERANCE = 0.01  # share of the energy that may lie outside the grid without a warning
MIN_PUPIL_SAMPLES = 16  # along an edge: fewer cannot follow a wavefront
FWHM_PER_SIGMA = 2 * math.sqrt(2 * math.log(2))  # of a Gaussian


class EnergyWarning(UserWarning):
    """The PSF does not fit its grid."""


def synthesize(
    model: PsfModel | str,
    labels: torch.Tensor,
    microscope: Microscopes,
    size: int,
    pixel_integration: bool = True,
) -> torch.Tensor:
    """Pixel-integrated PSFs of unit sum.

    Parameters
    ----------
    model : a `PsfModel` or the name of one
    labels : (N, P) tensor
        In the model's unit and column order. The result has the same device and dtype, and is
        differentiable with respect to the labels.
    microscope : one Microscope, or a sequence of N
    size : edge K of the square grid, pixels, odd or even
    pixel_integration : if False, the PSF is sampled at the middle of each pixel

    Returns
    -------
    (N, K, K) tensor, rows y, columns x.

    Raises
    ------
    InputError
        For labels that are not finite or of the wrong shape, or a size below 1.

    Warns
    -----
    EnergyWarning
        If more than 1 % of the energy of a PSF lies outside the grid.
    ScalarWarning
        If the NA is too high for scalar light (see `psf.light`).
    """
    model = psf_model(model) if isinstance(model, str) else model
    psfs, lost = synthesize_with_loss(model, labels, microscope, size, pixel_integration)
    if not model.is_gaussian:
        warn_if_scalar_is_off(model.light, Optics.of(microscope))
    _warn_if_light_is_lost(lost, size)
    return psfs


def synthesize_with_loss(
    model: PsfModel | str,
    labels: torch.Tensor,
    microscope: Microscopes,
    size: int,
    pixel_integration: bool = True,
    device: torch.device | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """PSFs as from `synthesize` and, instead of a warning, the share of energy outside (N,).

    They are computed on `device`, by default that of the labels. Labels on the CPU keep a GPU busy:
    reading them from the GPU would wait for all work that it has been given.
    """
    model = psf_model(model) if isinstance(model, str) else model
    readable = labels.detach().cpu()
    _check_labels(model, readable, size)
    device = labels.device if device is None else torch.device(device)
    labels = labels.to(device, non_blocking=device.type == "cuda")
    if model.is_gaussian:
        raw = _gaussians(model, labels, size)
        inside = raw.sum((1, 2))
        return raw / inside[:, None, None], 1 - inside
    exact, readable = labels.to(precise(device)), readable.double()

    def pupils(part: slice, optics: Optics, readable_optics: Optics) -> Pupil:
        twin = None
        if device.type != "cpu":
            twin = pupil_of(model, readable[part], readable_optics, labels.dtype)
        return pupil_of(model, exact[part], optics, labels.dtype, twin)

    return _in_chunks(pupils, len(labels), microscope, labels, size, pixel_integration)


def synthesize_pupil(
    waves: torch.Tensor,
    microscope: Microscopes,
    size: int,
    amplitude: torch.Tensor | None = None,
    light: str = "scalar",
    pixel_integration: bool = True,
) -> torch.Tensor:
    """PSFs of unit sum of pupils that are given by samples, for example measured pupils.

    Parameters
    ----------
    waves : (N, P, P) tensor
        Wavefront on the square from -1 to 1 in pupil coordinates, rows y, columns x; the first and
        last samples lie on its edges. Samples outside the disc matter near the rim only: continue
        the wavefront there. Give at least 16 samples, and 4 or more per wave of slope.
    microscope : one Microscope, or a sequence of N
    size : edge K of the square grid, pixels
    amplitude : (N, P, P) or (1, P, P) tensor; default uniform
    light : factor on the amplitude, see `psf.light`
    pixel_integration : as for `synthesize`

    Returns
    -------
    (N, K, K) tensor, differentiable with respect to `waves` and `amplitude`.

    Raises
    ------
    InputError
        For shapes that do not fit, or values that are not finite.

    Warns
    -----
    EnergyWarning, ScalarWarning
        As `synthesize`.
    """
    amplitude = torch.ones_like(waves[:1]) if amplitude is None else amplitude
    _check_samples("waves", waves, waves.shape[-1])
    _check_samples("amplitude", amplitude, waves.shape[-1])
    _check_light_and_size(light, size)
    exact = waves.to(precise(waves.device))
    factors = amplitude.to(exact).expand_as(exact)

    def pupils(part: slice, optics: Optics, _: Optics) -> Pupil:
        return sampled_pupil(exact[part], factors[part], optics, light, waves.dtype)

    psfs, lost = _in_chunks(pupils, len(waves), microscope, waves, size, pixel_integration)
    warn_if_scalar_is_off(light, Optics.of(microscope))
    _warn_if_light_is_lost(lost, size)
    return psfs


def _in_chunks(
    pupils: Callable[[slice, Optics, Optics], Pupil],
    count: int,
    microscope: Microscopes,
    like: torch.Tensor,
    size: int,
    pixel_integration: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """PSFs (N, K, K) and the energy (N,) outside, a chunk of pupils at a time."""
    readable = Optics.of(microscope)
    if len(readable) not in (1, count):
        raise InputError(f"{len(readable)} microscopes for {count} labels; give one, or one each.")
    points_per_px = 1.0
    if pixel_integration and count:
        cutoff = float(readable.cutoff_cycles_per_pixel.detach().max())
        points_per_px = _points_per_px(cutoff, like.dtype, len(readable) > 1)
    readable = replace(readable, pixel_size_um=readable.pixel_size_um / points_per_px)
    optics = readable.to(like.device, precise(like.device))
    parts = []
    chunk = CHUNK if like.device.type == "cpu" else GPU_CHUNK
    for start in range(0, count, chunk):
        part = slice(start, start + chunk)
        pupil = pupils(part, optics.part(part), readable.part(part))
        parts.append(_normalised(pupil, size, points_per_px if pixel_integration else None))
    if not parts:
        return like.new_zeros(0, size, size), like.new_zeros(0)
    psfs, inside = (torch.cat(p) if len(parts) > 1 else p[0] for p in zip(*parts, strict=True))
    return psfs, 1 - inside


def _warn_if_light_is_lost(lost: torch.Tensor, size: int) -> None:
    worst = float(lost.detach().max()) if len(lost) else 0.0
    if worst > ENERGY_TOLERANCE:
        warnings.warn(
            f"up to {worst:.1%} of the energy of these PSFs lies outside {size} x {size} pixels; "
            "use a larger grid or a smaller range.",
            EnergyWarning,
            stacklevel=3,
        )


def _check_light_and_size(light: str, size: int) -> None:
    if light not in LIGHTS:
        raise InputError(f"unknown light '{light}'; choose one of {', '.join(LIGHTS)}.")
    if size < 1:
        raise InputError(f"the PSF size is {size}; give at least 1 pixel.")


def _check_samples(name: str, values: torch.Tensor, edge: int) -> None:
    if values.ndim != 3 or values.shape[1:] != (edge, edge) or edge < MIN_PUPIL_SAMPLES:
        raise InputError(
            f"{name} has shape {tuple(values.shape)}; give (N, P, P) samples, P at least "
            f"{MIN_PUPIL_SAMPLES}."
        )
    if not torch.isfinite(values).all():
        raise InputError(f"{name} contains NaN or infinite values; fill them in.")


def _check_labels(model: PsfModel, labels: torch.Tensor, size: int) -> None:
    _check_light_and_size(model.light, size)
    expected = len(model.label_names)
    if labels.ndim != 2 or labels.shape[1] != expected:
        raise InputError(
            f"the labels have shape {tuple(labels.shape)}; {model.name} needs (N, {expected}): "
            f"{', '.join(model.label_names)}."
        )
    if not torch.isfinite(labels).all():
        raise InputError("the labels contain NaN or infinite values; give finite numbers.")


def _gaussians(model: PsfModel, labels: torch.Tensor, size: int) -> torch.Tensor:
    """Separable Gaussians (N, K, K) integrated over each pixel; FWHM 0 is a single pixel."""
    edges = torch.arange(size + 1, device=labels.device, dtype=labels.dtype) - size / 2
    sigma = labels.abs().clamp(min=1e-3) / FWHM_PER_SIGMA  # (N, 1 or 2)
    cumulative = torch.erf(edges / (math.sqrt(2) * sigma[..., None])) / 2  # (N, 1 or 2, K + 1)
    profiles = cumulative.diff(dim=-1)
    along_x, along_y = profiles[:, 0], profiles[:, -1]
    return along_y[:, :, None] * along_x[:, None, :]


def _normalised(
    pupil: Pupil, size: int, points_per_px: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """PSFs (N, K, K) of unit sum, and the share of energy (N,) inside the grid.

    With `points_per_px` None the PSF is sampled at the middle of each pixel. Until the end a PSF is
    kept as four quadrants, an axisymmetric PSF as a single quadrant.
    """
    grid, averages = size, ()
    if points_per_px is not None:
        grid = _grid(size, points_per_px, pupil.dtype)
        averages = _pixel_averages(size, points_per_px, pupil.cutoff.device, pupil.dtype)
    share = pupil.cutoff.new_ones((size + 1) // 2, dtype=pupil.dtype)
    share[0] = 0.5 if size % 2 else 1  # two quadrants share the middle row
    if pupil.axisymmetric:
        profiles = hankel_profiles(pupil, grid)
        if not averages:
            inside = sum_on_grid(profiles, grid)
            return unfold(quadrants(profiles / inside[:, None], grid), grid), inside
        quadrant = averages[0] @ (quadrants(profiles, grid) @ averages[0].T)
        quadrant = quadrant.clamp(min=0)  # rounding reaches -1e-9 in dark rings
        inside = 4 * ((quadrant @ share) @ share)
        return unfold(quadrant / inside[:, None, None], size), inside
    parts = fourier_psfs(pupil, grid)
    if averages:
        parts = _integrate_pixels(parts, *averages).clamp(min=0)
    inside = ((parts @ share) @ share).sum((0, 1))
    return assemble(parts / inside[:, None, None], size), inside


def _integrate_pixels(parts: torch.Tensor, even: torch.Tensor, odd: torch.Tensor) -> torch.Tensor:
    """Quadrants (2, 2, N, H, H) of pixels from those of points; even and odd parts by line."""
    left, right = parts[:, 0], parts[:, 1]
    sums, differences = (right + left) @ even.T / 2, (right - left) @ odd.T / 2
    upper, lower = (torch.stack([s - d, s + d]) for s, d in zip(sums, differences, strict=True))
    sums, differences = even @ (lower + upper) / 2, odd @ (lower - upper) / 2
    return torch.stack([sums - differences, sums + differences])


def _points_per_px(cutoff: float, dtype: torch.dtype, varied: bool = False) -> float:
    """Points per pixel along a line that sample the intensity finely enough for integration.

    They are rounded up so that matrices are reused: in steps of 1/64, and in steps of a quarter of
    an octave for varied optics, whose highest cut-off is another one in every batch.
    """
    points = PIXEL_KERNELS[dtype][0] * 2 * cutoff
    if varied:
        return 2 ** (math.ceil(4 * math.log2(points)) / 4)
    return math.ceil(64 * points) / 64


def _grid(size: int, points_per_px: float, dtype: torch.dtype) -> int:
    """Number of points along a line for pixel integration; even, for two equal halves."""
    taps = PIXEL_KERNELS[dtype][1]
    return 2 * (math.ceil(size * points_per_px / 2) + taps)


@lru_cache(maxsize=64)
def _pixel_averages(
    size: int, points_per_px: float, device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Matrices that average band-limited samples on a line over each of K pixels.

    The first matrix acts on the even half of a line, the second on the odd half; both count from
    the middle. The samples are interpolated by a Kaiser-windowed sinc (Kaiser & Schafer, IEEE
    TASSP 28, 105 (1980)), which is integrated over the pixel. This equals a product with sinc(f)
    in Fourier space, without its wrap-around.
    """
    _, taps, beta = PIXEL_KERNELS[dtype]
    grid = _grid(size, points_per_px, dtype)
    points = (np.arange(grid) - (grid - 1) / 2) / points_per_px
    node, weight = np.polynomial.legendre.leggauss(8 * math.ceil(points_per_px) + 16)
    pixels = np.arange(size)[:, None, None] - (size - 1) / 2
    steps = points_per_px * (pixels + node / 2 - points[:, None])  # (K, G, nodes)
    window = np.i0(beta * np.sqrt(np.clip(1 - (steps / taps) ** 2, 0, None))) / np.i0(beta)
    inside = np.abs(steps) < taps
    matrix = (np.sinc(steps) * window * inside) @ (points_per_px * weight / 2)
    right, left = matrix[size // 2 :, grid // 2 :], matrix[size // 2 :, : grid // 2][:, ::-1]
    even, odd = (torch.from_numpy(m).to(device, dtype) for m in (right + left, right - left))
    return even, odd
