"""Bands of a map: the patches of some rows of an image, predicted here or on a Dask cluster.

Bands begin at the same rows of the map everywhere, since a network may round differently in batches
that begin elsewhere. So the values do not depend on where a band is predicted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch

from models.estimator import Estimator
from models.networks import batch_for
from psf.errors import InputError
from psf.microscope import Microscope

CONTENT = -2  # the column of a band that holds the probability of content
# Share of outliers in a patch, e.g. by a black border, from which it counts as without content. On
# patches of gravel at 1.5 waves the rms error is 0.04 waves for shares up to 0.2, and 0.17 at 0.3.
MOST_OUTLIERS = 0.2
# Rows of the image, at least, that a job on a cluster reads. It is a usual height of the chunks of
# OME-Zarr images, so that few chunks are decoded by more than two workers.
JOB_ROWS = 512


class Image(Protocol):
    """What a map is made of: an image whose rows can be read a few at a time."""

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width, px."""

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Rows start to stop, (stop - start, W) float32."""


class Band(NamedTuple):
    """Finished rows of a map."""

    start: int  # first row of the map
    columns: torch.Tensor  # (W, r, C), see `predict_band`
    darkest: float  # pixel of these rows of the image
    brightest: float


@dataclass(frozen=True)
class BandWork:
    """How the bands of a map are predicted. A cluster gets it once, with network and image."""

    estimator: Estimator
    image: Image
    microscope: Microscope
    stride: int
    together: bool  # see `predict_band`
    threads: int  # of PyTorch; with another number a network may round differently

    def __getstate__(self) -> dict:
        # without what the estimator keeps for later, which would travel too
        return {**self.__dict__, "estimator": replace(self.estimator)}

    def __call__(self, bands: Sequence[tuple[int, int]]) -> Band:
        """Predict neighbouring bands, each from its first row of the map to before its last."""
        torch.set_num_threads(self.threads)
        parts = [self._predict(*band) for band in bands]
        starts, columns, darkest, brightest = zip(*parts, strict=True)
        return Band(starts[0], torch.cat(columns, 1), min(darkest), max(brightest))

    def _predict(self, start: int, stop: int) -> Band:
        stride, size = self.stride, self.estimator.patch_size
        lines = start * stride, (stop - 1) * stride + size
        pixels = finite(self.image.rows(*lines))
        found = predict_band(self.estimator, pixels, self.microscope, stride, self.together)
        usable = getattr(self.image, "usable", None)
        if usable is not None:
            found[CONTENT] *= few_outliers(usable.rows(*lines), size, stride)
        return Band(start, found, float(pixels.min()), float(pixels.max()))


def bands_per_job(
    first: int, rows: int, band: int, stride: int, on_cluster: bool
) -> list[list[tuple[int, int]]]:
    """Bands of `band` rows of the map, from row `first` to `rows`, grouped to jobs.

    A job is one band in this process, so that a kill spoils little. On a cluster it is as many
    bands as `JOB_ROWS` holds.
    """
    bands = [(start, min(start + band, rows)) for start in range(first, rows, band)]
    count = max(1, JOB_ROWS // (band * stride)) if on_cluster else 1
    return [bands[i : i + count] for i in range(0, len(bands), count)]


def in_order(bands: Iterator[Band], first: int) -> Iterator[Band]:
    """The bands from row `first` on in the order of their rows, each as soon as it can be."""
    early: dict[int, Band] = {}
    for band in bands:
        early[band.start] = band
        while first in early:
            band = early.pop(first)
            first += band.columns.shape[1]
            yield band


def predict_band(
    estimator: Estimator,
    pixels: torch.Tensor,
    microscope: Microscope,
    stride: int,
    together: bool = False,
) -> torch.Tensor:
    """Columns of the patches of some rows of an image; see `as_map` for (3 P + 2, R, C) ones.

    For patches that will be seen together they are (F + 2 + 2, R, C): features, facts, 1 as the
    share of content, and brightness.
    """
    size, batch_size = estimator.patch_size, batch_for(estimator.device)
    if estimator.device.type != "cpu":
        # once for all patches, which overlap; converted first, because MPS has no float64
        pixels = pixels.float().to(estimator.device)
    # (R, C, size, size): a view, so that memory holds one batch of patches at a time
    patches = pixels.unfold(0, size, stride).unfold(1, size, stride)
    grid = patches.shape[:2]
    parts = []
    for chunk in torch.arange(grid.numel(), device=pixels.device).split(batch_size):
        batch = patches[chunk // grid[1], chunk % grid[1]]
        brightness = batch.mean((1, 2)).cpu()
        if together:
            wide = estimator.features(batch, microscope)
            content = torch.ones_like(brightness)
        else:
            found = estimator.predict(batch, microscope, batch_size)
            wide = (found.values, found.standard_deviations, found.half_widths_95)
            content = found.content_probability
        parts.append(torch.cat([*wide, torch.stack([content, brightness], 1)], 1))
    return torch.cat(parts).T.reshape(-1, *grid)


def finite(pixels: torch.Tensor) -> torch.Tensor:
    """The pixels themselves; NaN and infinite ones are refused."""
    if not torch.isfinite(pixels).all():
        raise InputError("the image contains NaN or infinite pixels; repair or crop it first.")
    return pixels


def few_outliers(usable: torch.Tensor, size: int, stride: int) -> torch.Tensor:
    """1 for patches (R, C) with few outliers, else 0; `usable` (H, W) is 1 or 0."""
    shares = torch.nn.functional.avg_pool2d(usable[None], size, stride)[0]
    return (shares >= 1 - MOST_OUTLIERS).float()
