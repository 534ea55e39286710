"""Maps: a network's predictions on a grid of overlapping patches of one image.

The image is read in bands of rows, so that memory holds one band at a time. The finished rows of
the map can be kept in a file, from which an interrupted map goes on.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from tqdm import tqdm

from common.files import write_json, writing
from models.checkpoint import Estimator
from models.networks import batch_for
from psf.errors import InputError
from psf.microscope import Microscope
from psf.model import PsfModel

CONTENT = -2  # the column of a band that holds the probability of content
BAND = 1024  # patches, at least, whose rows are read together
# Share of outliers in a patch, e.g. by a black border, from which it counts as without content. On
# patches of gravel at 1.5 waves the rms error is 0.04 waves for shares up to 0.2, and 0.17 at 0.3.
MOST_OUTLIERS = 0.2
FEWEST_SHOWN = 2000  # patches of the smallest map with a progress bar: one to two seconds


class Image(Protocol):
    """What a map is made of: an image whose rows can be read a few at a time."""

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width, px."""

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Rows start to stop, (stop - start, W) float32."""


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

    Raises
    ------
    InputError
        If the image is smaller than one patch, holds NaN or is constant, or the stride is below 1.
    """
    image = TensorImage(image) if isinstance(image, torch.Tensor) else image
    usable = getattr(image, "usable", None)
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
    done = DoneRows(
        partial, whole_key, 3 * len(estimator.psf_model.label_names) + 2, (rows, columns)
    )
    with tqdm(
        total=rows * columns,
        initial=done.count * columns,
        unit="patch",
        desc="map",
        disable=rows * columns < FEWEST_SHOWN,
        mininterval=1,
    ) as bar:
        while done.count < rows:
            stop = min(rows, done.count + band_rows(columns))
            lines = done.count * stride, (stop - 1) * stride + size
            pixels = finite(image.rows(*lines))
            found = predict_band(estimator, pixels, microscope, stride)
            if usable is not None:
                found[CONTENT] *= few_outliers(usable.rows(*lines), size, stride)
            done.append(found, pixels)
            bar.update(done.count * columns - bar.n)
    if done.low == done.high:
        done.forget()
        raise InputError(f"all pixels of the image are {done.low:g}; there is nothing to see.")
    return as_map(estimator.psf_model, microscope, done.table(), stride, (size - 1) / 2)


def predict_stack(
    estimator: Estimator, planes: Sequence[Image], microscope: Microscope, stride: int
) -> list[PsfMap]:
    """Maps of all planes of a focal stack on one grid, `stride` pixels between patches.

    Raises
    ------
    InputError
        If a plane is constant, holds NaN or is smaller than a patch; it says which one.
    """
    maps = []
    for k, plane in enumerate(tqdm(planes, desc="stack", unit="plane")):
        try:
            maps.append(predict_map(estimator, plane, microscope, stride))
        except InputError as error:
            raise InputError(f"plane {k}: {error}") from error
    return maps


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


def band_rows(columns: int) -> int:
    """Rows of a map that are predicted together."""
    return -(-BAND // columns)


def predict_band(
    estimator: Estimator, pixels: torch.Tensor, microscope: Microscope, stride: int
) -> torch.Tensor:
    """Columns (3 P + 2, R, C) of the patches of some rows of an image; see `as_map`."""
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
        found = estimator.predict(batch, microscope, batch_size)
        wide = (found.values, found.standard_deviations, found.half_widths_95)
        narrow = (found.content_probability, batch.mean((1, 2)).cpu())
        parts.append(torch.cat([*wide, torch.stack(narrow, 1)], 1))
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


class DoneRows:
    """Finished rows of a map: in memory, and on request in a file to go on from after a kill.

    The file holds (R, 3 P + 2, C) float32, row after row, so that a kill spoils the last band at
    most; the JSON file beside it says which map it is.
    """

    def __init__(
        self, path: Path | None, key: dict[str, Any], width: int, shape: tuple[int, int]
    ) -> None:
        self.path, self.key, self.width = path, key, width
        self.rows, self.columns = shape  # of the whole map
        self.low, self.high = math.inf, -math.inf  # darkest and brightest pixel seen
        self._rows: list[torch.Tensor] = []  # (3 P + 2, r, C) each
        if path is not None and path.is_file() and self._header.is_file():
            self._take_up()

    @property
    def _header(self) -> Path:
        return self.path.with_suffix(".json")

    @property
    def _facts(self) -> dict[str, Any]:
        return {"key": self.key, "width": self.width, "columns": self.columns}

    @property
    def count(self) -> int:
        """Rows done so far."""
        return sum(rows.shape[1] for rows in self._rows)

    def append(self, rows: torch.Tensor, pixels: torch.Tensor) -> None:
        """Keep (3 P + 2, r, C) more, estimated from these pixels."""
        self._rows.append(rows)
        self.low = min(self.low, float(pixels.min()))
        self.high = max(self.high, float(pixels.max()))
        if self.path is None:
            return
        if not self._header.is_file():
            self.path.unlink(missing_ok=True)
            write_json(self._header, self._facts)
        with writing(self.path), self.path.open("ab") as file:
            file.write(rows.movedim(1, 0).contiguous().numpy().tobytes())

    def table(self) -> torch.Tensor:
        """(3 P + 2, R, C)."""
        return torch.cat(self._rows, 1)

    def forget(self) -> None:
        """Delete the files; the map is written elsewhere."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
            self._header.unlink(missing_ok=True)

    def _take_up(self) -> None:
        held = json.loads(self._header.read_text(encoding="utf-8"))
        if held != json.loads(json.dumps(self._facts)):
            self.forget()
            return
        flat = np.fromfile(self.path, np.float32)
        length = self.width * self.columns
        whole = len(flat) // length
        if whole < self.rows:
            # Whole bands only: a network may round differently in batches that begin elsewhere.
            whole -= whole % band_rows(self.columns)
        with self.path.open("r+b") as file:
            file.truncate(whole * length * flat.itemsize)
        if not whole:
            return
        rows = torch.from_numpy(flat[: whole * length].reshape(whole, self.width, self.columns))
        self._rows = [rows.movedim(1, 0)]
        # the darkest and brightest pixel are not kept; the means of the patches are as good
        self.low, self.high = float(rows[:, -1].min()), float(rows[:, -1].max())
