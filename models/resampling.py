"""Images on finer pixels than a network was trained for, brought to its pixel size.

A microscope image holds no detail above the cut-off frequency, so that coarser pixels lose none as
long as they sample that frequency. Binning is exact: a group of pixels is a larger pixel. Where one
binning leaves the pixels too fine and the next makes them too coarse, a low-pass interpolation
follows.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import sparse

from models.mapping import Image
from psf.errors import InputError
from psf.microscope import Microscope

LOBES = 6  # of the Lanczos kernel on either side: waves come out within 1 %, see the tests
NYQUIST = 0.5  # cycles per px, the highest cut-off that binning may lead to
INNER = 0.06  # share of the trained range by which a resampled image stays inside its low end


@dataclass(frozen=True)
class Resampling:
    """How an image is brought to the sampling of a network."""

    binning: int = 1  # camera pixels per side that are averaged as one
    scale: float = 1.0  # pixels after the interpolation per pixel before it, at most 1

    @property
    def factor(self) -> float:
        """Camera pixels per pixel that the network sees."""
        return self.binning / self.scale

    def microscope(self, microscope: Microscope) -> Microscope:
        """Optics with the pixel that the network sees."""
        if self.factor == 1:
            return microscope
        return replace(microscope, pixel_size_um=microscope.pixel_size_um * self.factor)

    def describe(self) -> str:
        """What is done, for people."""
        parts = []
        if self.binning > 1:
            parts.append(f"binned {self.binning} x {self.binning}")
        if self.scale < 1:
            parts.append(f"resampled to {1 / self.scale:.3f} times the pixel size")
        return " and ".join(parts) or "as it is"


def fit_resampling(microscope: Microscope, cutoff_limits: tuple[float, float]) -> Resampling:
    """Choose the binning, and the interpolation if need be, for a network.

    Parameters
    ----------
    cutoff_limits : lowest and highest cut-off frequency of the training, cycles per px

    Returns
    -------
    Resampling
        It changes nothing where the pixels fit, or are too coarse: detail cannot be added.
    """
    low, high = cutoff_limits
    cutoff = microscope.cutoff_cycles_per_pixel
    if cutoff >= low:
        return Resampling()
    binning = math.ceil(low / cutoff)
    if binning * cutoff <= min(high, NYQUIST):
        return Resampling(binning)
    binning -= 1
    target = low + INNER * (high - low)
    return Resampling(binning, binning * cutoff / target)


class ResampledImage:
    """An image brought to another sampling, band by band."""

    def __init__(self, image: Image, resampling: Resampling) -> None:
        self.image, self.resampling = image, resampling
        self._along_y, self._along_x = (
            interpolation(n // resampling.binning, resampling.scale) for n in image.shape
        )

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width after the resampling, px."""
        return self._along_y.shape[0], self._along_x.shape[0]

    @property
    def usable(self) -> "ResampledImage | None":
        """Share of usable pixels, resampled, if the image knows its outliers."""
        usable = getattr(self.image, "usable", None)
        return None if usable is None else ResampledImage(usable, self.resampling)

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Rows start to stop of the resampled image."""
        binning = self.resampling.binning
        needed = self._along_y[start:stop]
        first, last = needed.indices.min(), needed.indices.max() + 1
        pixels = self.image.rows(int(first) * binning, int(last) * binning).numpy()
        width = self._along_x.shape[1]
        cells = pixels[:, : width * binning].reshape(last - first, binning, width, binning)
        binned = cells.mean((1, 3), dtype=np.float64)
        found = (self._along_x @ (needed[:, first:last] @ binned).T).T
        return torch.from_numpy(np.ascontiguousarray(found, dtype=np.float32))


def interpolation(count: int, scale: float) -> sparse.csr_matrix:
    """Matrix (round(count scale), count) of a Lanczos low-pass at the coarser Nyquist frequency.

    Output pixel j lies at (j + 1/2) / scale - 1/2; rows sum to one.
    """
    if scale == 1:
        return sparse.identity(count, format="csr")
    out = int(count * scale)
    if out < 1:
        raise InputError(f"an image of {count} px cannot be resampled by {scale:g}.")
    centres = (np.arange(out) + 0.5) / scale - 0.5
    reach = int(np.ceil(LOBES / scale))
    columns = np.floor(centres).astype(int)[:, None] + np.arange(-reach, reach + 2)
    distance = (columns - centres[:, None]) * scale
    weights = np.sinc(distance) * np.sinc(distance / LOBES) * (np.abs(distance) < LOBES)
    weights[(columns < 0) | (columns >= count)] = 0
    weights /= weights.sum(1, keepdims=True)
    rows = np.repeat(np.arange(out), columns.shape[1])
    columns = columns.clip(0, count - 1)
    return sparse.csr_matrix((weights.ravel(), (rows, columns.ravel())), shape=(out, count))
