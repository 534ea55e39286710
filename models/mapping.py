"""Maps: a network's predictions on a grid of overlapping patches of one image.

The image is read in bands of rows, so that memory holds a band at a time; the finished rows of the
map can be kept in a file, from which an interrupted map goes on.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from tqdm import tqdm

from common.files import write_json
from models.checkpoint import Estimator
from psf.errors import InputError
from psf.microscope import Microscope

BATCH = 64
BAND = 1024  # patches, at least, that are read together
COLUMNS = ("values", "standard_deviations", "half_widths_95", "content_probability")


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
    """PSF parameters on a grid of patch centres; R rows and C columns."""

    names: tuple[str, ...]  # of the P parameters
    unit: str
    values: torch.Tensor  # (P, R, C)
    standard_deviations: torch.Tensor  # (P, R, C), half widths of the 68 % intervals
    half_widths_95: torch.Tensor  # (P, R, C)
    content: torch.Tensor  # (R, C) probability that a patch holds anything to estimate from
    brightness: torch.Tensor  # (R, C) mean of the patch, unit of the image
    rows: torch.Tensor  # (R,) centres of the patches, pixels from the top
    columns: torch.Tensor  # (C,) pixels from the left

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Names of the channels of `channels`."""
        deviations = tuple(f"{name} standard deviation" for name in self.names)
        return (*self.names, *deviations, "content probability")

    @property
    def channels(self) -> torch.Tensor:
        """Values, standard deviations, content: (2 P + 1, R, C)."""
        return torch.cat([self.values, self.standard_deviations, self.content[None]])

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
    image : (H, W) tensor, any linear intensity unit, or an `Image` to read from
    stride : pixels between neighbouring patches
    partial : file that keeps the rows done so far; a map with the same `key` goes on from it
    key : plain values that say which map this is

    Raises
    ------
    InputError
        If the image is smaller than one patch, holds NaN or is constant, or the stride is below 1.
    """
    image = TensorImage(image) if isinstance(image, torch.Tensor) else image
    size = estimator.patch_size
    height, width = image.shape
    if min(height, width) < size:
        raise InputError(f"the image has {height} x {width} px, less than one patch of {size} px.")
    if stride < 1:
        raise InputError(f"--stride is {stride}; give at least 1 pixel.")
    rows, columns = (height - size) // stride + 1, (width - size) // stride + 1
    done = DoneRows(partial, dict(key or {}), columns)
    with tqdm(
        total=rows * columns,
        initial=done.count * columns,
        unit="patch",
        desc="map",
        disable=rows * columns < 2000,
        mininterval=1,
    ) as bar:
        while done.count < rows:
            stop = min(rows, done.count + -(-BAND // columns))
            pixels = image.rows(done.count * stride, (stop - 1) * stride + size)
            if not torch.isfinite(pixels).all():
                raise InputError(
                    "the image contains NaN or infinite pixels; repair or crop it first."
                )
            done.low = min(done.low, float(pixels.min()))
            done.high = max(done.high, float(pixels.max()))
            done.append(*predict_band(estimator, pixels, microscope, stride))
            bar.update(done.count * columns - bar.n)
    found = done.table()  # (3 P + 2, R, C)
    count, centre = len(done.names), (size - 1) / 2
    if done.low == done.high:
        done.forget()
        raise InputError(f"all pixels of the image are {done.low:g}; there is nothing to see.")
    return PsfMap(
        names=done.names,
        unit=done.unit,
        values=found[:count],
        standard_deviations=found[count : 2 * count],
        half_widths_95=found[2 * count : 3 * count],
        content=found[-2],
        brightness=found[-1],
        rows=torch.arange(rows) * stride + centre,
        columns=torch.arange(columns) * stride + centre,
    )


def predict_band(
    estimator: Estimator, pixels: torch.Tensor, microscope: Microscope, stride: int
) -> tuple[tuple[str, ...], str, torch.Tensor]:
    """Names, unit and columns (3 P + 2, R, C) of the patches of some rows of an image."""
    size = estimator.patch_size
    # (R, C, size, size): a view, so that memory holds one batch of patches at a time
    patches = pixels.unfold(0, size, stride).unfold(1, size, stride)
    grid = patches.shape[:2]
    parts, means = [], []
    for chunk in torch.arange(grid.numel()).split(BATCH):
        batch = patches[chunk // grid[1], chunk % grid[1]]
        parts.append(estimator.predict(batch, microscope, BATCH))
        means.append(batch.mean((1, 2)))
    columns = [torch.cat([getattr(part, name) for part in parts]) for name in COLUMNS]
    columns.append(torch.cat(means))
    table = torch.cat([column.reshape(grid.numel(), -1) for column in columns], 1)
    return parts[0].names, parts[0].unit, table.T.reshape(-1, *grid)


class DoneRows:
    """Finished rows of a map: in memory, and in a file if there is one, to go on after a kill.

    The file holds (R, 3 P + 2, C) float32, row after row, so that a kill spoils the last row at
    most; the JSON file beside it says whose map it is.
    """

    def __init__(self, path: Path | None, key: dict[str, Any], columns: int) -> None:
        self.path, self.key, self.columns = path, key, columns
        self.names: tuple[str, ...] = ()
        self.unit = ""
        self.low, self.high = math.inf, -math.inf  # darkest and brightest pixel seen
        self._rows: list[torch.Tensor] = []  # (3 P + 2, r, C) each
        if path is not None and path.is_file() and self._header.is_file():
            self._take_up()

    @property
    def _header(self) -> Path:
        return self.path.with_suffix(".json")

    @property
    def count(self) -> int:
        """Rows done so far."""
        return sum(rows.shape[1] for rows in self._rows)

    def append(self, names: tuple[str, ...], unit: str, rows: torch.Tensor) -> None:
        """Keep (3 P + 2, r, C) more."""
        self.names, self.unit = names, unit
        self._rows.append(rows)
        if self.path is None:
            return
        if not self._header.is_file():
            self.path.unlink(missing_ok=True)
            facts = {"key": self.key, "names": names, "unit": unit, "columns": self.columns}
            write_json(self._header, facts)
        with self.path.open("ab") as file:
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
        facts = json.loads(self._header.read_text(encoding="utf-8"))
        if facts["key"] != json.loads(json.dumps(self.key)) or facts["columns"] != self.columns:
            self.forget()
            return
        self.names, self.unit = tuple(facts["names"]), facts["unit"]
        width = (3 * len(self.names) + 2) * self.columns
        flat = np.fromfile(self.path, np.float32)
        whole = len(flat) // width
        with self.path.open("r+b") as file:
            file.truncate(whole * width * flat.itemsize)
        rows = torch.from_numpy(flat[: whole * width].reshape(whole, -1, self.columns))
        self._rows = [rows.movedim(1, 0)] if whole else []
        # what was seen of the brightness is not kept; the mean of a patch is as good
        if whole:
            self.low, self.high = float(rows[:, -1].min()), float(rows[:, -1].max())


@dataclass(frozen=True)
class StackMaps:
    """PSF parameters on a grid of R x C patch centres in K planes."""

    names: tuple[str, ...]  # of the P parameters
    unit: str
    values: np.ndarray  # (K, P, R, C)
    standard_deviations: np.ndarray  # (K, P, R, C)
    content: np.ndarray  # (K, R, C) probability
    rows: np.ndarray  # (R,) centres of the patches, px from the top

    def of(self, parameter: str, largest_deviation: float) -> tuple[np.ndarray, np.ndarray]:
        """Values and standard deviations of one parameter, (K, R, C) each.

        NaN for patches without content, and with a standard deviation above the largest.
        """
        p = self.names.index(parameter)
        values, deviations = self.values[:, p], self.standard_deviations[:, p]
        good = (self.content >= 0.5) & (deviations <= largest_deviation)
        return np.where(good, values, np.nan), np.where(good, deviations, np.nan)


def predict_stack(
    estimator: Estimator, planes: Sequence[Image], microscope: Microscope, stride: int
) -> StackMaps:
    """Predict a map of each plane, `stride` pixels between neighbouring patches.

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
    first = maps[0]
    values, deviations, content = (
        np.stack([getattr(one, name).numpy() for one in maps])
        for name in ("values", "standard_deviations", "content")
    )
    return StackMaps(first.names, first.unit, values, deviations, content, first.rows.numpy())
