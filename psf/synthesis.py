"""Labels -> point-spread functions: intensity, pixel-integrated, centred, unit sum.

Two roads lead from a wavefront to a PSF, `psf.hankel` for axisymmetric ones and `psf.pupil` for
all others. Both evaluate the scalar Fraunhofer integral
h(r) = |1/pi int_disc exp(2 pi i W(rho)) exp(2 pi i (NA/lambda) rho . r) d^2 rho|^2
(Born & Wolf, Principles of Optics, 8.5). The grid is symmetric about its middle for odd and even
sizes alike: the centre is pixel K // 2 of an odd grid, and the corner shared by the four middle
pixels of an even one.
"""

import math
import warnings
from functools import lru_cache

import numpy as np
import torch
from scipy.special import sici

from psf.errors import InputError
from psf.hankel import hankel_psfs
from psf.microscope import Microscopes, cutoffs
from psf.model import PsfModel, psf_model
from psf.pupil import pupil_psfs

CHUNK = 64  # PSFs computed at once: bounds the memory of the bases' products
PIXEL_MARGIN = 8  # px added before pixel integration, whose kernel reaches beyond a pixel
ENERGY_TOLERANCE = 0.01  # share of the energy that may lie outside the grid
FWHM_PER_SIGMA = 2 * math.sqrt(2 * math.log(2))


class EnergyWarning(UserWarning):
    """The PSF does not fit its grid."""


def synthesize(
    model: PsfModel | str, labels: torch.Tensor, microscope: Microscopes, size: int
) -> torch.Tensor:
    """Pixel-integrated PSFs of unit sum.

    Parameters
    ----------
    model : a `PsfModel` or the name of one
    labels : (N, P) tensor
        In the model's unit and column order; the result has its device and dtype, and is
        differentiable with respect to it.
    microscope : one Microscope, or a sequence of N
    size : edge K of the square grid, pixels, odd or even

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
    """
    psfs, lost = synthesize_with_loss(model, labels, microscope, size)
    if len(lost) and float(lost.detach().max()) > ENERGY_TOLERANCE:
        warnings.warn(
            f"up to {float(lost.detach().max()):.1%} of the energy of these PSFs lies outside "
            f"{size} x {size} pixels; use a larger grid or a smaller range.",
            EnergyWarning,
            stacklevel=2,
        )
    return psfs


def synthesize_with_loss(
    model: PsfModel | str, labels: torch.Tensor, microscope: Microscopes, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `synthesize`, with the share of energy outside the grid, (N,), instead of a warning."""
    model = psf_model(model) if isinstance(model, str) else model
    _check(model, labels, size)
    if model.is_gaussian:
        raw = _gaussians(model, labels, size)
    else:
        cutoff = cutoffs(microscope, labels.device, labels.dtype)
        if len(cutoff) not in (1, len(labels)):
            raise InputError(f"{len(cutoff)} microscopes for {len(labels)} labels.")
        raw = _from_pupils(model, labels, cutoff, size)
    inside = raw.sum((1, 2))
    return raw / inside[:, None, None], 1 - inside


def _check(model: PsfModel, labels: torch.Tensor, size: int) -> None:
    if size < 1:
        raise InputError(f"PSF size {size}; it must be at least 1 pixel.")
    expected = len(model.label_names)
    if labels.ndim != 2 or labels.shape[1] != expected:
        raise InputError(
            f"labels have shape {tuple(labels.shape)}; {model.name} needs (N, {expected}): "
            f"{', '.join(model.label_names)}."
        )
    if not torch.isfinite(labels).all():
        raise InputError("labels contain NaN or infinite values.")


def _gaussians(model: PsfModel, labels: torch.Tensor, size: int) -> torch.Tensor:
    """Separable Gaussians (N, K, K) integrated over each pixel; FWHM 0 is the bare pixel."""
    edges = torch.arange(size + 1, device=labels.device, dtype=labels.dtype) - size / 2
    sigma = labels.abs().clamp(min=1e-3) / FWHM_PER_SIGMA  # (N, 1 or 2)
    cumulative = torch.erf(edges / (math.sqrt(2) * sigma[..., None])) / 2  # (N, 1 or 2, K + 1)
    profiles = cumulative.diff(dim=-1)
    along_x, along_y = profiles[:, 0], profiles[:, -1]
    return along_y[:, :, None] * along_x[:, None, :]


def _from_pupils(
    model: PsfModel, labels: torch.Tensor, cutoff: torch.Tensor, size: int
) -> torch.Tensor:
    """PSFs (N, K, K) whose sum over an infinite grid is 1."""
    road = hankel_psfs if model.is_axisymmetric else pupil_psfs
    per_sample = len(cutoff) > 1
    chunks = []
    for start in range(0, len(labels), CHUNK):
        part = slice(start, start + CHUNK)
        cutoff_part = cutoff[part] if per_sample else cutoff
        oversampling = _oversampling(float(cutoff_part.max()))
        grid = oversampling * (size + 2 * PIXEL_MARGIN)
        fine = road(model, labels[part], cutoff_part / oversampling, grid)
        chunks.append(_integrate_pixels(fine, size, oversampling))
    if not chunks:
        return labels.new_zeros(0, size, size)
    return torch.cat(chunks)


def _oversampling(cutoff: float) -> int:
    """Points per pixel along x that sample the PSF at Nyquist or finer."""
    return math.ceil(cutoff / 0.505)  # 0.5 with room for a pixel 1 % above Nyquist


@lru_cache(maxsize=16)
def _pixel_average(
    size: int, oversampling: int, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    """Matrix (K, G) that averages band-limited samples on a fine line over each of K pixels.

    Each sample stands for sinc(s u), s = oversampling; its integral over a pixel is a difference
    of sine integrals. The same as a product with sinc(f) in Fourier space, without its wrap-around.
    """
    grid = oversampling * (size + 2 * PIXEL_MARGIN)
    fine = (np.arange(grid) - (grid - 1) / 2) / oversampling
    distance = np.arange(size)[:, None] - (size - 1) / 2 - fine
    upper, lower = (sici(np.pi * oversampling * (distance + half))[0] for half in (0.5, -0.5))
    return torch.from_numpy((upper - lower) / np.pi).to(device=device, dtype=dtype)


def _integrate_pixels(fine: torch.Tensor, size: int, oversampling: int) -> torch.Tensor:
    """Integrate (N, G, G) point samples of an intensity over the pixels of (N, K, K)."""
    average = _pixel_average(size, oversampling, fine.device, fine.dtype)
    pixels = average @ (fine @ average.T)
    return pixels.clamp(min=0)  # rounding may reach -1e-9 in dark rings
