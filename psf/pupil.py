"""PSFs of any pupil: exact quadrature over the disc, row by row, with cached bases.

The disc is cut into columns x; each is integrated along y by Gauss-Legendre nodes, the columns by
Gauss-Chebyshev nodes of the second kind, whose weight sqrt(1 - x^2) is the length of a column.
No pixel of a pupil is cut by the rim, so that the error falls super-exponentially with the number
of nodes, as in `psf.hankel`.
"""

import math
from functools import lru_cache

import numpy as np
import torch

from psf.model import PsfModel, wavefront

TAPS = 10  # grid steps on either side that interpolate the field of varied optics
KAISER_BETA = 14.0  # of their window: at the field's two-fold oversampling 1e-6 remains


def pupil_psfs(
    model: PsfModel, labels: torch.Tensor, cutoff: torch.Tensor, grid: int
) -> torch.Tensor:
    """PSFs (N, G, G) of any wavefront, h(r) = |1/pi int_disc exp(2 pi i (W + x f)) d^2 rho|^2.

    `cutoff` is in cycles per grid step, shape (1,) or (N,), and at most about 0.5. With varied
    optics the field is computed on the grid of the highest cut-off and interpolated to the others.
    """
    highest = float(cutoff.max())
    if len(cutoff) == 1:
        field = _field(model, labels, highest, grid)
    else:
        wide = _field(model, labels, highest, grid + 2 * TAPS)
        lines = _interpolation(cutoff / highest, grid).to(wide.dtype)  # (N, G, G + 2 TAPS)
        field = lines @ wide @ lines.transpose(1, 2)
    # by Parseval int |field|^2 d^2 r = 1 / (pi (cutoff / 2)^2)
    scale = math.pi * (cutoff[:, None, None] / 2) ** 2
    return (field.real.square() + field.imag.square()) * scale


def _field(model: PsfModel, labels: torch.Tensor, cutoff: float, grid: int) -> torch.Tensor:
    """Field (N, G, G), rows y, columns x; 1 in the middle without aberrations."""
    steepest = 2 * math.pi * _widest_wavefront(model, labels) + math.pi * cutoff * grid / 2
    nodes = _node_count(steepest)
    rho, theta, weights = (torch.from_numpy(a).to(labels) for a in _disc_nodes(nodes)[:3])
    phase = 2 * math.pi * wavefront(model, labels, rho, theta)  # (N, X, Y)
    pupil = torch.polar(weights.expand_as(phase), phase)
    along_y, along_x = _bases(nodes, grid, cutoff, pupil.device, pupil.dtype)
    columns = pupil.transpose(0, 1) @ along_y  # (X, N, G)
    return torch.einsum("cny,cx->nyx", columns, along_x)


def _node_count(steepest_phase: float) -> int:
    """Nodes on [-1, 1] for an integrand exp(i kappa x), kappa = steepest_phase.

    As in `psf.hankel`, for twice the length.
    """
    needed = steepest_phase / 2 + 3 * (2 * steepest_phase) ** (1 / 3) + 6
    return 8 * math.ceil(needed / 8)  # in steps, so that bases are reused


def _widest_wavefront(model: PsfModel, labels: torch.Tensor) -> float:
    """Bound on |grad W| over the pupil, waves, from the marginal ray in 32 directions."""
    theta = torch.linspace(0, math.pi, 32, dtype=labels.dtype, device=labels.device)
    outer, inner = (
        wavefront(model, labels.detach(), torch.full_like(theta, r), theta) for r in (1.0, 0.97)
    )
    radial = (outer - inner).abs().max() / 0.03
    azimuthal = outer.diff(dim=1).abs().max() * 31 / math.pi
    return float(torch.hypot(radial, azimuthal))


@lru_cache(maxsize=16)
def _disc_nodes(nodes: int) -> tuple[np.ndarray, ...]:
    """Nodes of the disc: rho, theta and weights of mean 1, (X, Y); x (X, 1) and y (X, Y)."""
    angle = np.arange(1, nodes + 1)[:, None] * np.pi / (nodes + 1)
    node, weight = np.polynomial.legendre.leggauss(nodes)
    x, y = np.cos(angle), np.sin(angle) * node
    weights = np.sin(angle) ** 2 * weight / (nodes + 1)
    return np.hypot(x, y), np.arctan2(y, x), weights, x, y


@lru_cache(maxsize=4)
def _bases(
    nodes: int, grid: int, cutoff: float, device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """exp(2 pi i r f), f = rho cutoff / 2: along y (X, Y, G) and along x (X, G)."""
    r = np.arange(grid) - (grid - 1) / 2
    x, y = _disc_nodes(nodes)[3:]
    bases = (np.exp(1j * np.pi * cutoff * place * r) for place in (y[:, :, None], x))
    along_y, along_x = (torch.from_numpy(basis).to(device, dtype) for basis in bases)
    return along_y, along_x


def _interpolation(stretch: torch.Tensor, grid: int) -> torch.Tensor:
    """Matrices (N, G, G + 2 TAPS) from unit steps to steps of `stretch` <= 1, (N,).

    Kaiser-windowed sinc (Kaiser & Schafer, IEEE TASSP 28, 105 (1980)); both grids share a middle.
    """
    fine, wide = (
        torch.arange(size, device=stretch.device, dtype=torch.float64) - (size - 1) / 2
        for size in (grid, grid + 2 * TAPS)
    )
    distance = stretch.double()[:, None, None] * fine[:, None] - wide
    inside = (1 - (distance / TAPS) ** 2).clamp(min=0)
    window = torch.special.i0(KAISER_BETA * inside.sqrt()) * (inside > 0)
    return torch.sinc(distance) * window / float(np.i0(KAISER_BETA))
