"""Polar log spectra from matrix products and gathers, which every ONNX runtime has.

They equal those of `models.spectrum` up to rounding. ONNX has Fourier transforms and `grid_sample`
too, but not every runtime computes them, e.g. in a browser.
"""

import math
from collections.abc import Sequence

import torch

from models.spectrum import FLOOR, SECTOR_SAMPLES, polar_grid


def polar_log_spectra(
    patches: torch.Tensor,
    cutoff: torch.Tensor,
    windows: Sequence[int],
    radii: int,
    angles: int,
) -> torch.Tensor:
    """Log power (N, len(windows), radii, angles); see `models.spectrum.polar_log_spectra`."""
    channels = []
    largest = min(patches.shape[1:]) // 2 * 2
    for window in (min(window, largest) for window in windows):
        power = welch_spectrum(patches, window)
        grid = polar_grid(cutoff, window, radii, angles, SECTOR_SAMPLES)
        sectors = sample_bilinear(power, grid).unflatten(2, (angles, SECTOR_SAMPLES)).mean(3)
        # log(sectors + FLOOR): the exporter takes the addition of a number below 1e-8 for one of 0,
        # and drops it
        channels.append((sectors * (1 / FLOOR) + 1).log() + math.log(FLOOR))
    return torch.stack(channels, 1)


def welch_spectrum(patches: torch.Tensor, window: int) -> torch.Tensor:
    """Power spectrum (N, window, window / 2 + 1); see `models.spectrum.welch_spectrum`."""
    left, right = dft_matrices(window, patches)
    starts = [range(0, size - window + 1, window // 2) for size in patches.shape[1:]]
    tiles = torch.stack(
        [patches[:, y : y + window, x : x + window] for y in starts[0] for x in starts[1]], 1
    )
    products = left @ (tiles @ right)  # (N, tiles, 2 window, window + 2)
    cosine, half = slice(window), window // 2 + 1
    sine = slice(window, None)
    real = products[..., cosine, :half] - products[..., sine, half:]
    imaginary = products[..., sine, :half] + products[..., cosine, half:]
    return (real.square() + imaginary.square()).mean(1)


def dft_matrices(window: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Matrices that give the spectrum of tiles (window, window) under a Hann window.

    Returns
    -------
    (2 window, window) tensor
        Cosines and then sines, for frequencies from -1/2 to 1/2 cycles per px along y.
    (window, window + 2) tensor
        Cosines and then sines, for frequencies from 0 to 1/2 cycles per px along x.
    """
    place = torch.arange(window, dtype=torch.float64)
    hann = 0.5 - 0.5 * (2 * math.pi / window * place).cos()
    hann = hann / hann.square().sum().sqrt()

    def waves(frequency: torch.Tensor) -> torch.Tensor:
        turns = frequency[:, None] * place / window
        turns = turns - turns.floor()  # whole turns would cost digits of the angle
        return torch.cat([(2 * math.pi * turns).cos(), (2 * math.pi * turns).sin()]) * hann

    left, right = waves(place - window // 2), waves(place[: window // 2 + 1]).T.contiguous()
    return left.to(like), right.to(like)


def sample_bilinear(values: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """Values (N, R, A) at places (N, R, A, 2), from values (N, H, W).

    A place is x and y from -1 to 1, the middles of the outer pixels, as for `grid_sample` with
    align_corners=True.
    """
    height, width = values.shape[1:]
    column = (grid[..., 0] + 1) / 2 * (width - 1)
    row = (grid[..., 1] + 1) / 2 * (height - 1)
    left = column.floor().clamp(0, width - 2)
    top = row.floor().clamp(0, height - 2)
    across, down = column - left, row - top
    first = (top * width + left).long().flatten(1)
    flat = values.flatten(1)

    def corner(offset: int) -> torch.Tensor:
        return flat.gather(1, first + offset).view_as(column)

    upper = corner(0) * (1 - across) + corner(1) * across
    lower = corner(width) * (1 - across) + corner(width + 1) * across
    return upper * (1 - down) + lower * down
