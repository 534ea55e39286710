"""Radial power spectrum of one plane: mean power against spatial frequency."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch

LARGE_PX, SMALL_PX = 128, 64  # edges of a window; the small one where 3 x 3 large ones do not fit
BAND_ROWS = 256  # read at a time
SAMPLE_PX = 2**21  # pixels of a plane that are read, about: 0.2 s
CLIPPED_SHARE = 0.001  # of a window's pixels at the top of the range: clipping makes false detail
FIRST_BIN = 4  # shading and haze lie at lower frequencies
AXIS_BINS = 1.5  # frequencies nearer to an axis hold the stripes of cameras and light sheets
HIGHEST = 0.68  # cycles per pixel; the corners of the spectrum hold few frequencies beyond
# A Hann window correlates the power of neighbouring frequencies by 4/9, of the next but one by
# 1/36. Windows that overlap by half correlate by 1/36. All of this holds along each axis.
CORRELATED_BINS, CORRELATED_WINDOWS = (1 + 8 / 9 + 1 / 18) ** 2, (1 + 1 / 18) ** 2


class Plane(Protocol):
    """An image that is read by rows."""

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width, px."""

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Rows start to stop, (stop - start, W)."""


@dataclass(frozen=True)
class RadialSpectrum:
    """Mean power of a plane's windows at K spatial frequencies."""

    frequency: np.ndarray  # (K,) cycles per pixel
    power: np.ndarray  # (K,) counts^2; white noise has its variance at all frequencies
    samples: np.ndarray  # (K,) independent samples in each mean
    bin: float  # distance between two frequencies, cycles per pixel

    @property
    def is_top(self) -> np.ndarray:
        """(K,) bool: frequencies above 0.5 cycles per pixel, which few objects reach."""
        return self.frequency > 0.5

    @property
    def floor(self) -> float:
        """Mean power above 0.5 cycles per pixel, counts^2."""
        return float(np.average(self.power[self.is_top], weights=self.samples[self.is_top]))


def radial_spectrum(plane: Plane) -> RadialSpectrum | None:
    """The spectrum of a plane; None where no window is free of saturated and missing pixels.

    The independent samples follow from the window, or from the spread of the power among the
    windows where that is larger: some windows may hold much more content than others.
    """
    edge = LARGE_PX if min(plane.shape) >= 2 * LARGE_PX else SMALL_PX
    if min(plane.shape) < edge:
        return None
    _, count = _rings(edge)
    found = [_ring_powers(windows, edge) for windows in _windows(plane, edge)]
    if sum(map(len, found)) < 2:
        return None
    powers = torch.cat(found)
    mean = powers.mean(0)
    top = powers[:, len(count) // 2 :].sum(1)
    alike = float(top.sum() ** 2 / top.square().sum())  # windows that count in a mean
    by_window = count / 2 / CORRELATED_BINS * max(alike / CORRELATED_WINDOWS, 1.0)
    by_spread = len(powers) / CORRELATED_WINDOWS * mean.square() / powers.var(0)
    samples = torch.minimum(by_window, by_spread)
    frequency = (np.arange(len(count)) + FIRST_BIN) / edge
    return RadialSpectrum(frequency, mean.numpy(), samples.numpy(), 1 / edge)


def _windows(plane: Plane, edge: int) -> Iterator[torch.Tensor]:
    """Windows (B, edge, edge) that overlap by half, from evenly spaced bands of rows."""
    height, width = plane.shape
    rows = min(BAND_ROWS, height)
    starts = np.arange(0, height - rows + 1, max(rows - edge // 2, 1))
    most = max(1, SAMPLE_PX // (rows * width))
    if len(starts) > most:
        starts = starts[np.linspace(0, len(starts) - 1, most).round().astype(int)]
    bands = [plane.rows(int(start), int(start) + rows) for start in starts]
    tops = [band[band.isfinite()].max() for band in bands if band.isfinite().any()]
    for band in bands:
        for first in range(0, rows - edge + 1, edge // 2):
            windows = band[first : first + edge].unfold(1, edge, edge // 2).movedim(1, 0)
            whole = windows.isfinite().all(2).all(1) & (windows.amax((1, 2)) > windows.amin((1, 2)))
            if tops:
                whole &= (windows == max(tops)).double().mean((1, 2)) <= CLIPPED_SHARE
            if whole.any():  # the FFT refuses an empty batch
                yield windows[whole].double()


def _ring_powers(windows: torch.Tensor, edge: int) -> torch.Tensor:
    """Mean power (B, K) of windows (B, edge, edge) without their mean."""
    which, count = _rings(edge)
    hann = torch.hann_window(edge, dtype=torch.float64)
    hann = hann[:, None] * hann
    hann /= hann.square().mean().sqrt()
    windows = windows - windows.mean((1, 2), keepdim=True)
    power = torch.fft.fft2(windows * hann).abs().square().flatten(1) / edge**2
    kept = which >= 0
    sums = power.new_zeros(len(power), len(count))
    return sums.index_add_(1, which[kept], power[:, kept]) / count


@lru_cache(maxsize=2)
def _rings(edge: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ring of each element of a flat spectrum, -1 for none, and the elements in each ring."""
    line = torch.fft.fftfreq(edge, 1 / edge, dtype=torch.float64)
    radius = torch.hypot(line[:, None], line)
    which = radius.round().long() - FIRST_BIN
    near_axis = torch.minimum(line.abs()[:, None], line.abs()) < AXIS_BINS
    which[near_axis | (which < 0) | (radius > HIGHEST * edge)] = -1
    which = which.flatten()
    return which, torch.bincount(which[which >= 0]).double()
