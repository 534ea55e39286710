"""PSFs of any pupil: exact quadrature over the disc, row by row, with cached bases.

The disc is cut into columns x; each is integrated along y by Gauss-Legendre nodes, the columns by
Gauss-Chebyshev nodes of the second kind, whose weight sqrt(1 - x^2) is the length of a column.
No pixel of a pupil is cut by the rim, so that the error falls faster than exponentially with the
number of nodes, as in `psf.hankel`, and does not depend on the grid being odd or even.

Nodes and grid are symmetric about 0, so that a pupil splits into parts even and odd in x and y,
with cosine and sine transforms: real products of half the length, a quarter of the work.
"""

import math
from functools import lru_cache

import numpy as np
import torch

from psf.pupil import Pupil, is_variable, node_count

TAPS = 10  # grid steps on either side that interpolate the field of varied optics
WINDOW_BETA = 13.0  # of their window: at the field's two-fold oversampling 1e-6 remains

Parts = dict[tuple[int, int], torch.Tensor]  # (odd in y, odd in x) -> part on the quadrant y, x > 0


def fourier_psfs(pupil: Pupil, grid: int) -> torch.Tensor:
    """PSFs of any pupil on a grid G x G, as quadrants (2, 2, N, H, H), H = ceil(G / 2).

    h(r) = |1/pi int_disc A exp(2 pi i (W + x f)) d^2 rho|^2, rows y, columns x. The first two axes
    are the sides of y and x, negative first; the first row and column are those next to the
    grid's middle. The cut-off is at most about 0.5; an infinite grid would sum to 1.

    With varied optics in float32 the field is computed on the grid of the highest cut-off and
    interpolated to the others; where double precision or derivatives are asked for, each PSF has
    bases of its own.
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
    skip = grid % 2  # an odd grid has its middle once
    rows = [torch.cat([q[0][..., skip:].flip(-1), q[1]], -1) for q in quadrants]
    return torch.cat([rows[0][:, skip:].flip(1), rows[1]], 1)


def _intensity(
    pupil: Pupil, cutoff: torch.Tensor, grid: int, lines: tuple[torch.Tensor, ...] = ()
) -> torch.Tensor:
    """Quadrants (2, 2, N, H, H) from the field at one cut-off (1,), interpolated by `lines`."""
    nodes = node_count(pupil, math.pi * float(cutoff.detach()) * grid / 2)
    rho, theta, area = (torch.from_numpy(a).to(pupil.cutoff) for a in _disc_nodes(nodes)[:3])
    field = pupil.field(rho, theta)
    place = pupil.cutoff.device, pupil.dtype
    if is_variable(cutoff):
        bases = _bases(nodes, grid, cutoff, pupil.dtype)
    else:
        bases = _cached_bases(nodes, grid, float(cutoff), *place)
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

    Without the factors i and -1 of the odd parts.
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
    """Sum and difference of the rising half of an axis and of the mirrored other half."""
    lower, upper = values.chunk(2, axis)
    lower = lower.flip(axis)
    return upper + lower, upper - lower


def _square(parts: Parts) -> torch.Tensor:
    """|field|^2 in the four quadrants, (2, 2, N, H, H), from the field's even and odd parts.

    The field is CC - SS sy sx + i (CS sx + SC sy), with the signs sy, sx of the quadrant.
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
    double = torch.tensor([cutoff], dtype=torch.float64)  # made once, on the CPU
    along_y, along_x = _bases(nodes, grid, double, dtype)
    return along_y.to(device), along_x.to(device)


def _interpolation(
    stretch: torch.Tensor, grid: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Matrices (N, H, H + TAPS), for even and odd lines, from unit steps to `stretch` <= 1, (N,).

    A sinc under the window exp(beta (sqrt(1 - x^2) - 1)) (A. Barnett, J. Magland & L. af
    Klinteberg, SIAM J. Sci. Comput. 41, C479 (2019)); both grids share a middle.
    """
    line = torch.arange((grid + 1) // 2 + TAPS).to(stretch) + (grid + 1) % 2 / 2
    near = stretch[:, None] * line[: len(line) - TAPS]  # (N, H)

    def kernel(distance: torch.Tensor) -> torch.Tensor:
        distance = distance.to(dtype)
        inside = 1 - (distance / TAPS) ** 2
        window = torch.exp(WINDOW_BETA * (inside.clamp(min=0).sqrt() - 1)) * (inside > 0)
        return torch.sinc(distance) * window

    direct, mirrored = kernel(near[..., None] - line), kernel(near[..., None] + line)
    if grid % 2:
        mirrored[..., 0] = 0  # the middle counts once
    return direct + mirrored, direct - mirrored
