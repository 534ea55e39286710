"""A plane of a file without its outliers: what a survey finds of them, and the cleaned rows."""

from dataclasses import dataclass

import numpy as np
import torch

from micrographs.micrograph import Micrograph
from micrographs.neighbours import fill_outliers
from micrographs.outliers import KINDS, OVERLAP_ROWS, find_outliers, saturation_level

SAMPLE_PX = 2**22  # pixels, about, that are surveyed
BAND_ROWS = 256  # read at a time: 16 MB of an image of 16,000 pixels a line


@dataclass(frozen=True)
class Survey:
    """Evenly spaced bands of a plane, all of a small one, and their outliers."""

    sample: torch.Tensor  # (H, W) counts
    usable: torch.Tensor  # (H, W) bool
    shares: dict[str, float]  # of the pixels, by kind


def survey(micrograph: Micrograph, cutoff: float | None = None) -> Survey:
    """Outliers of a plane, see `micrographs.outliers`; `cutoff` is in cycles per px."""
    height, width = micrograph.shape
    count = -(-height // BAND_ROWS)
    taken = min(count, max(1, SAMPLE_PX // (BAND_ROWS * width)))
    starts = (np.linspace(0, count - 1, taken).round().astype(int) * BAND_ROWS).tolist()
    bands = [micrograph.rows(start, min(start + BAND_ROWS, height)) for start in starts]
    sample = torch.cat(bands)
    top = saturation_level(sample, micrograph.full_scale)
    if taken == count:
        starts, bands, top = [0], [sample], micrograph.full_scale
    found = [
        find_outliers(band, top, cutoff, (start == 0, start + len(band) == height))
        for start, band in zip(starts, bands, strict=True)
    ]
    counts = {kind: sum(one.shares[kind] * one.usable.numel() for one in found) for kind in KINDS}
    shares = {kind: number / sample.numel() for kind, number in counts.items()}
    return Survey(sample, torch.cat([one.usable for one in found]), shares)


class CleanedImage:
    """A plane whose outliers hold the median of their neighbours, band by band."""

    def __init__(self, plane: Micrograph, cutoff: float | None) -> None:
        self.plane, self._cutoff = plane, cutoff
        self._last: tuple[int, int, torch.Tensor, torch.Tensor] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width, px."""
        return self.plane.shape

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Rows start to stop, (stop - start, W) float32 counts."""
        return self._band(start, stop)[0]

    @property
    def usable(self) -> "_UsableShare":
        """An image that is 1 at usable pixels and 0 at outliers."""
        return _UsableShare(self)

    def _band(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cleaned and usable pixels of some rows."""
        if self._last is None or self._last[:2] != (start, stop):
            height = self.shape[0]
            first, last = max(0, start - OVERLAP_ROWS), min(height, stop + OVERLAP_ROWS)
            pixels = self.plane.rows(first, last)
            ends = (first == 0, last == height)
            usable = find_outliers(pixels, self.plane.full_scale, self._cutoff, ends).usable
            kept = slice(start - first, stop - first)
            self._last = (start, stop, fill_outliers(pixels, usable)[kept], usable[kept])
        return self._last[2:]


class _UsableShare:
    """Where a cleaned image shows the object: 1, else 0."""

    def __init__(self, image: CleanedImage) -> None:
        self._image = image

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width, px."""
        return self._image.shape

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Rows start to stop, (stop - start, W) float32."""
        return self._image._band(start, stop)[1].float()
