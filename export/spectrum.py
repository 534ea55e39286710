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
    waves = dft_matrix(window, patches)  # (window + 2, window)
    starts = [range(0, size - window + 1, window // 2) for size in patches.shape[1:]]
    tiles = torch.stack(
        [patches[:, y : y + window, x : x + window] for y in starts[0] for x in starts[1]], 1
    )
    products = waves @ (tiles @ waves.T)  # (N, tiles, window + 2, window + 2)
    half = window // 2 + 1
    (cos_cos, cos_sin), (sin_cos, sin_sin) = (
        rows.split(half, 3) for rows in products.split(half, 2)
    )
    # f_y from 0 to 1/2, and the same with the other sign of f_y
    positive = (cos_cos - sin_sin).square() + (sin_cos + cos_sin).square()
    negative = (cos_cos + sin_sin).square() + (sin_cos - cos_sin).square()
    return torch.cat([negative.mean(1)[:, 1:].flip(1), positive.mean(1)[:, :-1]], 1)


def dft_matrix(window: int, like: torch.Tensor) -> torch.Tensor:
    """Matrix (window + 2, window) of cosines and then sines under a Hann window.

    Their frequencies are 0 to 1/2 cycles per px.
    """
    place = torch.arange(window, dtype=torch.float64)
    hann = 0.5 - 0.5 * (2 * math.pi / window * place).cos()
    hann = hann / hann.square().sum().sqrt()
    turns = place[: window // 2 + 1, None] * place / window
    turns = turns - turns.floor()  # whole turns would cost digits of the angle
    waves = torch.cat([(2 * math.pi * turns).cos(), (2 * math.pi * turns).sin()])
    return (waves * hann).to(like)


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
