"""PSFs of any pupil: a matrix Fourier transform with cached bases.

Soummer, Pueyo, Sivaramakrishnan & Vanderbei, Optics Express 15, 15935 (2007), Eq. 5-7.
"""

import math
from functools import lru_cache

import numpy as np
import torch

from psf.model import PsfModel, wavefront

RIM_SAMPLES = 16  # per pupil cell and axis, for the share of a cell inside the rim


def pupil_psfs(
    model: PsfModel, labels: torch.Tensor, cutoff: torch.Tensor, grid: int
) -> torch.Tensor:
    """PSFs (N, G, G) of any wavefront: two matrix products with the bases exp(2 pi i x f).

    Pupil cells carry the mean of exp(2 pi i W) over the cell, not its value at the middle, and the
    envelope sinc(x / period) that this box filter leaves on the field is divided out. At 4 waves
    of focus that is 25 times closer to the exact integral than plain sampling.
    """
    points = _pupil_points(grid, float(cutoff.max()), model, labels)
    rho, theta, share, inside = _pupil_cells(points, labels.device, labels.dtype)
    middle, left, right, top, bottom = wavefront(model, labels, rho, theta).unbind(1)  # (N, M)
    amplitude = share * torch.sinc(right - left) * torch.sinc(bottom - top)
    pupil = labels.new_zeros(len(labels), points * points, dtype=labels.dtype.to_complex())
    pupil[:, inside] = torch.polar(amplitude, 2 * math.pi * middle)
    pupil = pupil.reshape(-1, points, points)  # (N, fy, fx)
    bases = torch.stack(
        [_fourier_basis(grid, points, float(c), pupil.device, pupil.dtype) for c in cutoff]
    )
    field = bases @ pupil @ bases.transpose(1, 2)  # (N, G, G)
    # d^2 rho = (2 / P)^2, and by Parseval int |field|^2 d^2 r = pi / (cutoff / 2)^2
    scale = (2 / points) ** 4 * (cutoff[:, None, None] / 2) ** 2 / math.pi
    return (field.real.square() + field.imag.square()) * scale


def _pupil_points(grid: int, cutoff: float, model: PsfModel, labels: torch.Tensor) -> int:
    """Count samples across the pupil: replicas outside twice the grid, phase resolved."""
    by_grid = 2 * grid * cutoff
    by_phase = 4 * _widest_wavefront(model, labels)  # at most half a wave between neighbours
    return 32 * math.ceil(max(64, by_grid, by_phase) / 32)


def _widest_wavefront(model: PsfModel, labels: torch.Tensor) -> float:
    """Bound on |grad W| over the pupil, waves, from the marginal ray in 32 directions."""
    theta = torch.linspace(0, math.pi, 32, dtype=labels.dtype, device=labels.device)
    outer, inner = (
        wavefront(model, labels.detach(), torch.full_like(theta, r), theta) for r in (1.0, 0.97)
    )
    radial = (outer - inner).abs().max() / 0.03
    azimuthal = outer.diff(dim=1).abs().max() * 31 / math.pi
    return float(torch.hypot(radial, azimuthal))


@lru_cache(maxsize=8)
def _pupil_cells(
    points: int, device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cells of a P x P grid that touch the disc.

    Returns rho and theta, (5, M), of the centroid of the part inside the disc and of the points
    half a cell to its left, right, top and bottom; the share of the cell inside the disc, (M,);
    the cell's flat index, (M,).
    """
    fine = (2 * np.arange(RIM_SAMPLES * points) + 1) / (RIM_SAMPLES * points) - 1
    inside = (fine[:, None] ** 2 + fine**2 <= 1).astype(np.float32)

    def cell_mean(values: np.ndarray) -> np.ndarray:
        return values.reshape(points, RIM_SAMPLES, points, RIM_SAMPLES).mean((1, 3)).ravel()

    share = cell_mean(inside)
    index = np.flatnonzero(share)
    half = 1 / points
    y = cell_mean(inside * fine[:, None])[index] / share[index]
    x = cell_mean(inside * fine)[index] / share[index]
    y = y + half * np.array([[0], [0], [0], [-1], [1]])
    x = x + half * np.array([[0], [-1], [1], [0], [0]])
    arrays = np.hypot(x, y), np.arctan2(y, x), share[index]
    rho, theta, share = (torch.from_numpy(a).to(device, dtype) for a in arrays)
    return rho, theta, share, torch.from_numpy(index).to(device)


@lru_cache(maxsize=64)
def _fourier_basis(
    grid: int, points: int, cutoff: float, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    """exp(2 pi i x f) / sinc(x / period), (G, P): x in grid steps, f = rho cutoff / 2."""
    x = torch.arange(grid, device=device, dtype=torch.float64) - (grid - 1) / 2
    rho = (2 * torch.arange(points, device=device, dtype=torch.float64) + 1) / points - 1
    phase = math.pi * cutoff * x[:, None] * rho
    envelope = torch.sinc(x * cutoff / points)
    return torch.polar((1 / envelope)[:, None].expand_as(phase).contiguous(), phase).to(dtype)
