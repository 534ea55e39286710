"""Maps: a network's predictions on a grid of overlapping patches of one image.

The image is read in bands of rows, so that memory holds one band at a time. The finished rows of
the map can be kept in a file, from which an interrupted map goes on.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from common.cluster import Cluster
from common.jobs import run_jobs
from common.progress import tell_progress
from models.bands import CONTENT, BandWork, Image, bands_per_job, in_order
from models.context import FACTS
from models.done_rows import DoneRows, band_rows
from models.estimator import Estimator
from models.spectral_resnet import FEATURES
from psf.errors import InputError
from psf.microscope import Microscope
from psf.model import PsfModel

Context = Literal["stack", "image", "none"]  # patches that are seen together
FEWEST_SHOWN = 2000  # patches of the smallest map with a progress bar: one to two seconds


@dataclass(frozen=True)
class TensorImage:
    """An image in memory."""

    pixels: torch.Tensor  # (H, W)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width, px."""
        return tuple(self.pixels.shape)

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Rows start to stop."""
        return self.pixels[start:stop]


@dataclass(frozen=True)
class PsfMap:
    """Parameters of a PSF model on a grid of places in an image, R rows and C columns."""

    model: PsfModel
    microscope: Microscope  # with the pixel in which the places are counted
    values: torch.Tensor  # (P, R, C) labels
    standard_deviations: torch.Tensor  # (P, R, C), half widths of the 68 % intervals
    content: torch.Tensor  # (R, C) probability that there was anything to estimate from
    rows: torch.Tensor  # (R,) places, rising, pixels from the top
    columns: torch.Tensor  # (C,) pixels from the left
    half_widths_95: torch.Tensor | None = None  # (P, R, C), of single patches only
    brightness: torch.Tensor | None = None  # (R, C) means of single patches, unit of the image

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the P parameters."""
        return self.model.label_names

    @property
    def unit(self) -> str:
        """Unit of the values."""
        return self.model.unit

    @property
    def has_content(self) -> torch.Tensor:
        """(R, C) bool: patches that count."""
        return self.content >= 0.5


def predict_map(
    estimator: Estimator,
    image: torch.Tensor | Image,
    microscope: Microscope,
    stride: int,
    partial: Path | None = None,
    key: Mapping[str, Any] | None = None,
    context: bool = True,
    cluster: Cluster | None = None,
) -> PsfMap:
    """Predict PSF parameters on a grid of patches `stride` pixels apart.

    Parameters
    ----------
    image : (H, W) tensor, any linear intensity unit, or an `Image` to read from. Where its
        attribute `usable`, an image of 0 to 1, shows many outliers, patches are without content.
    stride : pixels between neighbouring patches
    partial : file that keeps the finished rows; a map of the same network, optics, stride and
        `key` goes on from it
    key : plain values that say which image this is
    context : whether the patches are seen together, if the estimator has a network for that
    cluster : predicts the patches instead of this process, with the same values. Pickle must be
        able to send it the image; a `Micrograph` is opened there again.

    Raises
    ------
    InputError
        If the image is smaller than one patch, holds NaN or is constant, the stride is below 1, or
        the cluster cannot do the work.
    """
    together = context and estimator.context is not None
    table = _predict_table(
        estimator, image, microscope, stride, together, partial, key or {}, cluster
    )
    if together:
        table = _seen_together(estimator, [table], stride)[0]
    return as_map(estimator.psf_model, microscope, table, stride, (estimator.patch_size - 1) / 2)


def predict_stack(
    estimator: Estimator,
    planes: Sequence[Image],
    microscope: Microscope,
    stride: int,
    context: Context = "stack",
    show: bool = True,
) -> list[PsfMap]:
    """Maps of all planes of a focal stack on one grid, `stride` pixels between patches.

    With a network for it, the patches of all planes are seen together, those of each plane
    ("image"), or each patch by itself ("none"). `show` a progress bar.

    Raises
    ------
    InputError
        If a plane is constant, holds NaN or is smaller than a patch; it says which one.
    """
    together = context != "none" and estimator.context is not None
    tables = []
    for k, plane in enumerate(tqdm(planes, desc="stack", unit="plane", disable=not show)):
        try:
            tables.append(_predict_table(estimator, plane, microscope, stride, together))
        except InputError as error:
            raise InputError(f"plane {k}: {error}") from error
    if together and context == "stack":
        tables = _seen_together(estimator, tables, stride)
    elif together:
        tables = [_seen_together(estimator, [table], stride)[0] for table in tables]
    first = (estimator.patch_size - 1) / 2
    return [as_map(estimator.psf_model, microscope, table, stride, first) for table in tables]


def _predict_table(
    estimator: Estimator,
    image: torch.Tensor | Image,
    microscope: Microscope,
    stride: int,
    together: bool,
    partial: Path | None = None,
    key: Mapping[str, Any] | None = None,
    cluster: Cluster | None = None,
) -> torch.Tensor:
    """Columns (W, R, C) of the patches of an image; see `predict_band`."""
    image = TensorImage(image) if isinstance(image, torch.Tensor) else image
    size = estimator.patch_size
    height, width = image.shape
    if min(height, width) < size:
        raise InputError(f"the image has {height} x {width} px, less than one patch of {size} px.")
    if stride < 1:
        raise InputError(f"--stride is {stride}; give at least 1 pixel.")
    rows, columns = (height - size) // stride + 1, (width - size) // stride + 1
    whole_key = dict(key or {}, stride=stride, microscope=asdict(microscope))
    if partial is not None:
        whole_key["network"] = estimator.fingerprint
    table_width = FEATURES + FACTS if together else 3 * len(estimator.psf_model.label_names)
    band = band_rows(columns, stride * width)
    done = DoneRows(partial, whole_key, table_width + 2, (rows, columns), band)
    threads = torch.get_num_threads()
    work = BandWork(estimator, image, microscope, stride, together, threads)
    jobs = bands_per_job(done.count, rows, band, stride, cluster is not None)
    with (
        closing(run_jobs(work, jobs, 1, cluster)) as results,
        tqdm(
            total=rows * columns,
            initial=done.count * columns,
            unit="patch",
            desc="map",
            disable=rows * columns < FEWEST_SHOWN,
            mininterval=1,
        ) as bar,
    ):
        for band in in_order(results, done.count):
            done.append(band.columns, band.darkest, band.brightest)
            bar.update(done.count * columns - bar.n)
            tell_progress("map", done.count, rows)
    if done.low == done.high:
        done.forget()
        raise InputError(f"all pixels of the image are {done.low:g}; there is nothing to see.")
    return done.table()


def _seen_together(
    estimator: Estimator, tables: Sequence[torch.Tensor], stride: int
) -> list[torch.Tensor]:
    """Columns (3 P + 2, R, C) of planes, from features and facts (F + 2 + 2, R, C) of each."""
    grid = tables[0].shape[1:]
    rows = torch.stack([table.flatten(1).T for table in tables])  # (K, R C, W)
    features, facts, content, brightness = rows.split([FEATURES, FACTS, 1, 1], 2)
    row, column = torch.meshgrid(*(torch.arange(n) for n in grid), indexing="ij")
    places = torch.stack([row, column], -1).flatten(0, 1) * (stride / estimator.patch_size)
    found = estimator.predict_together(features, facts, places)
    wide = (found.values, found.standard_deviations, found.half_widths_95)
    narrow = found.content_probability[:, None] * content.flatten(0, 1), brightness.flatten(0, 1)
    columns = torch.cat([*wide, *narrow], 1).unflatten(0, (len(tables), *grid))
    return list(columns.movedim(-1, 1))


def reliable_estimates(
    maps: Sequence[PsfMap], parameter: str, largest_deviation: float
) -> tuple[np.ndarray, np.ndarray]:
    """Values and standard deviations of one parameter in K planes, (K, R, C) each.

    NaN for patches without content and for those whose standard deviation is above the largest.
    """
    p = maps[0].names.index(parameter)
    values = np.stack([one.values[p].numpy() for one in maps])
    deviations = np.stack([one.standard_deviations[p].numpy() for one in maps])
    content = np.stack([one.has_content.numpy() for one in maps])
    good = content & (deviations <= largest_deviation)
    return np.where(good, values, np.nan), np.where(good, deviations, np.nan)


def as_map(
    model: PsfModel, microscope: Microscope, table: torch.Tensor, stride: int, first: float
) -> PsfMap:
    """Map of columns (3 P + 2, R, C): values, deviations, half widths, content, brightness."""
    count = len(model.label_names)
    values, deviations, half_widths = table[: 3 * count].split(count)
    rows, columns = (torch.arange(n) * stride + first for n in table.shape[1:])
    return PsfMap(
        model,
        microscope,
        values,
        deviations,
        table[CONTENT],
        rows,
        columns,
        half_widths_95=half_widths,
        brightness=table[-1],
    )
