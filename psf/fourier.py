"""PSFs of any pupil: quadrature over the disc, column by column, with cached bases.

The disc is cut into columns x. Each column is integrated along y with Gauss-Legendre nodes. The
columns are summed with Gauss-Chebyshev nodes of the second kind, whose weight sqrt(1 - x^2) is the
length of a column. No pixel is cut by the rim of the pupil. The error therefore falls faster than
exponentially with the number of nodes, as in `psf.hankel`, and is the same for odd and even grids.

Nodes and grid are symmetric about 0, so a pupil splits into parts that are even and odd in x and y.
Their cosine and sine transforms are real products of half the length: a quarter of the work.
"""

import math
from functools import lru_cache

import numpy as np
import torch

from psf.pupil import Pupil, is_variable, node_count, tables_on

TAPS = 10  # grid steps on either side from which the field of varied optics is interpolated
WINDOW_BETA = 13.0  # of the window of that kernel: error 1e-6 at the field's two-fold oversampling

Parts = dict[tuple[int, int], torch.Tensor]  # (odd in y, odd in x) -> part on the quadrant y, x > 0


def fourier_psfs(pupil: Pupil, grid: int) -> torch.Tensor:
    """PSFs of any pupil on a grid G x G, as quadrants (2, 2, N, H, H), H = ceil(G / 2).

    h(r) = |1/pi int_disc A exp(2 pi i (W + x f)) d^2 rho|^2, rows y, columns x. The first two axes
    are the sides of y and x, the negative side first. The first row and column of a quadrant lie
    next to the grid's middle. The cut-off is at most about 0.5. The PSF sums to 1 on an infinite
    grid.

    With varied optics in float32 the field is computed on the grid of the highest cut-off and
    interpolated to the others. In double precision, or for derivatives, each PSF has its own bases.
    """
    cutoff = pupil.cutoff
    if len(cutoff) == 1:
        return _intensity(pupil, cutoff, grid)
    if pupil.dtype == torch.float32 and not is_variable(cutoff):
        wide = grid + 2 * TAPS
        lines = _interpolation(cutoff / cutoff.max(), grid, pupil.dtype)
        return _intensity(pupil, cutoff.max().reshape(1), wide, lines)
    each = (pupil.only(i) for i in range(len(cutoff)))
    return torch.cat([_intensity(one, one.cutoff, grid) for one in each], 2)


def assemble(quadrants: torch.Tensor, grid: int) -> torch.Tensor:
    """The whole grid (N, G, G) from quadrants (2, 2, N, H, H)."""
    skip = grid % 2  # the middle row of an odd grid is not repeated
    rows = [torch.cat([q[0][..., skip:].flip(-1), q[1]], -1) for q in quadrants]
    return torch.cat([rows[0][:, skip:].flip(1), rows[1]], 1)


def _intensity(
    pupil: Pupil, cutoff: torch.Tensor, grid: int, lines: tuple[torch.Tensor, ...] = ()
) -> torch.Tensor:
    """Quadrants (2, 2, N, H, H) from the field at one cut-off (1,).

    The matrices `lines` interpolate the field to other cut-offs.
    """
    nodes = node_count(pupil, math.pi * pupil.highest_cutoff * grid / 2)
    device = pupil.cutoff.device
    rho, theta, area = tables_on(_disc_nodes, nodes, device, pupil.cutoff.dtype)[:3]
    field = pupil.field(rho, theta)
    if is_variable(cutoff):
        bases = _bases(nodes, grid, cutoff, pupil.dtype)
    else:
        bases = _cached_bases(nodes, grid, pupil.highest_cutoff, device, pupil.dtype)
    total, energy = 0.0, 0.0
    for part in pupil.components(rho, theta):
        weighted = field * (part.amplitude * area).to(pupil.dtype)
        orders = {part.order, -part.order}
        for order in orders:
            turned = weighted * torch.exp(1j * order * theta).to(field) if order else weighted
            spread = _transform(turned, *bases)
            for (odd_y, odd_x), values in spread.items() if lines else ():
                spread[odd_y, odd_x] = lines[odd_y] @ values @ lines[odd_x].mT
            total = total + part.weight / len(orders) * _square(spread)
        energy = energy + part.weight * (part.amplitude.square() * area).sum((1, 2))
    # by Parseval int |field|^2 d^2 r = energy / (pi (cutoff / 2)^2)
    scale = math.pi * (pupil.cutoff / 2) ** 2 / energy
    return total * scale.to(pupil.dtype)[:, None, None]


def _transform(pupil: torch.Tensor, along_y: torch.Tensor, along_x: torch.Tensor) -> Parts:
    """Parts (2, N, H, H), real and imaginary, of the field of weighted pupils (N, X, Y).

    The factors i and -1 of the odd parts are left to `_square`.
    """
    count, half = len(pupil), along_x.shape[-1]
    values = torch.view_as_real(pupil).permute(1, 3, 0, 2)  # (X, 2, N, Y)
    parts: Parts = {}
    for odd_x, by_x in enumerate(_even_and_odd(values, 0)):
        for odd_y, both in enumerate(_even_and_odd(by_x, 3)):
            columns = both.flatten(1, 2) @ along_y[odd_y]  # (X/2, 2 N, H)
            rows = columns.flatten(1).T @ along_x[odd_x]  # (2 N H, H)
            parts[odd_y, odd_x] = rows.reshape(2, count, half, half)
    return parts


def _even_and_odd(values: torch.Tensor, axis: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum and difference of the upper half of an axis and its mirrored lower half."""
    lower, upper = values.chunk(2, axis)
    lower = lower.flip(axis)
    return upper + lower, upper - lower


def _square(parts: Parts) -> torch.Tensor:
    """|field|^2 in the four quadrants, (2, 2, N, H, H), from the field's even and odd parts.

    The field is CC - SS sy sx + i (CS sx + SC sy), where sy and sx are the signs of the quadrant.
    """
    diagonal, across = parts[0, 0] - parts[1, 1], parts[0, 0] + parts[1, 1]
    both, either = parts[0, 1] + parts[1, 0], parts[0, 1] - parts[1, 0]
    (same_p, same_m), (opposite_p, opposite_m) = (
        (
            (p[0] - q[1]).square() + (p[1] + q[0]).square(),
            (p[0] + q[1]).square() + (p[1] - q[0]).square(),
        )
        for p, q in ((diagonal, both), (across, either))
    )
    rows = [torch.stack([same_m, opposite_p]), torch.stack([opposite_m, same_p])]
    return torch.stack(rows)


@lru_cache(maxsize=16)
def _disc_nodes(nodes: int) -> tuple[np.ndarray, ...]:
    """Nodes of the disc: rho, theta and weights of sum 1, (X, Y); x (X, 1) and y (X, Y)."""
    angle = np.arange(nodes, 0, -1)[:, None] * np.pi / (nodes + 1)
    node, weight = np.polynomial.legendre.leggauss(nodes)
    x, y = np.cos(angle), np.sin(angle) * node
    weights = np.sin(angle) ** 2 * weight / (nodes + 1)
    return np.hypot(x, y), np.arctan2(y, x), weights, x, y


def _bases(
    nodes: int, grid: int, cutoff: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of 2 pi r f, f = rho cutoff / 2, at positive nodes and r.

    Along y (2, X/2, Y/2, H) and along x (2, X/2, H).
    """
    r = torch.arange((grid + 1) // 2).to(cutoff) + (grid + 1) % 2 / 2
    half = nodes // 2
    x, y = (torch.from_numpy(place[half:]).to(cutoff) for place in _disc_nodes(nodes)[3:])
    phases = (math.pi * cutoff * place * r for place in (y[:, half:, None], x))
    along_y, along_x = (torch.stack([p.cos(), p.sin()]).to(dtype) for p in phases)
    return along_y, along_x


@lru_cache(maxsize=4)
def _cached_bases(
    nodes: int, grid: int, cutoff: float, device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    double = torch.tensor([cutoff], dtype=torch.float64)  # the same bases on every device
    along_y, along_x = _bases(nodes, grid, double, dtype)
    return along_y.to(device), along_x.to(device)


def _interpolation(
    stretch: torch.Tensor, grid: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Matrices (N, H, H + TAPS), for even and odd lines, from unit steps to `stretch` <= 1, (N,).

    The kernel is a sinc times the window exp(beta (sqrt(1 - x^2) - 1)) (A. Barnett, J. Magland &
    L. af Klinteberg, SIAM J. Sci. Comput. 41, C479 (2019)). Both grids have the same middle.
    """
    line = torch.arange((grid + 1) // 2 + TAPS, device=stretch.device).to(stretch)
    line = line + (grid + 1) % 2 / 2
    near = stretch[:, None] * line[: len(line) - TAPS]  # (N, H)

    def kernel(distance: torch.Tensor) -> torch.Tensor:
        distance = distance.to(dtype)
        inside = 1 - (distance / TAPS) ** 2
        window = torch.exp(WINDOW_BETA * (inside.clamp(min=0).sqrt() - 1)) * (inside > 0)
        return torch.sinc(distance) * window

    direct, mirrored = kernel(near[..., None] - line), kernel(near[..., None] + line)
    if grid % 2:
        mirrored[..., 0] = 0  # the middle is counted once
    return direct + mirrored, direct - mirrored
