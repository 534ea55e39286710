"""One plane of an image file, row by row, in the counts of the file.

TIFF in all its kinds (OME, ImageJ, BigTIFF, tiled, compressed, stacks), PNG and JPEG, and with
optional packages OME-Zarr, ND2, CZI and LIF. Counts are never scaled, since the camera is estimated
from them.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.addresses import address_of
from micrographs.files import AXES, DECODE_ERRORS, LUMINANCE, PNG_START, FlatSource
from micrographs.metadata import Calibration, OpticsFacts
from micrographs.plane_source import PlaneSource
from micrographs.tiff import TiffSource
from micrographs.vendor_files import (
    CZI_START,
    LIF_START,
    ND2_STARTS,
    CziSource,
    LifSource,
    Nd2Source,
)
from micrographs.zarr_folder import ZarrSource, is_zarr
from psf.errors import InputError

JPEG_START = b"\xff\xd8\xff"
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
Source = TiffSource | FlatSource | ZarrSource | PlaneSource
# First bytes of a file, and its reader.
READERS = (
    (TIFF_STARTS, TiffSource),
    ((PNG_START, JPEG_START), FlatSource),
    (ND2_STARTS, Nd2Source),
    (CZI_START, CziSource),
    (LIF_START, LifSource),
)
# The largest slides have sides of 200,000 px. A number above this comes from a damaged header.
MOST_SIDE_PX = 10**6
FLAGS = {"C": "--channel", "Z": "--z", "T": "--t"}
NOUNS = {"C": "channels", "Z": "planes in z", "T": "time points"}


@dataclass(frozen=True)
class Micrograph:
    """One plane of an open file; a context manager that closes the file.

    Planes that `select` returns share the file: it is closed with any of them.
    """

    path: Path
    channel: int | None  # None: luminance of a colour image
    z: int
    t: int
    notes: tuple[str, ...]  # what was chosen or ignored unasked, for the user
    source: Source = field(repr=False)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.source.shape

    @property
    def sizes(self) -> dict[str, int]:
        """Numbers of channels (C), planes in z (Z) and time points (T) of the file."""
        return dict(self.source.sizes)

    @property
    def series(self) -> int:
        """Number of the image in a file of several, from 0."""
        return self.source.series

    @property
    def plane_count(self) -> int:
        """Planes that can be chosen; the three colours of a colour image count as one."""
        count = self.sizes["C"] * self.sizes["Z"] * self.sizes["T"]
        return count // len(LUMINANCE) if self.source.is_colour else count

    @property
    def full_scale(self) -> float | None:
        """Largest count that the camera or the file can hold; None for signed and float data."""
        return self.source.full_scale

    @cached_property
    def facts(self) -> OpticsFacts:
        """What the file says of the optics."""
        return self.source.facts(self.channel or 0)

    @cached_property
    def calibration(self) -> Calibration:
        """Z step, frame interval and channel names of the file, for results that keep them."""
        return self.source.calibration()

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Rows start .. stop - 1, (stop - start, W) float32 counts; reads little more than them.

        Raises
        ------
        InputError
            If the pixels of the file are damaged.
        """
        if not 0 <= start < stop <= self.shape[0]:
            raise ValueError(f"rows {start} to {stop} of an image of {self.shape[0]} rows")
        try:
            pixels = self.source.rows((self.channel, self.z, self.t), start, stop)
        except DECODE_ERRORS as error:
            raise InputError(f"{self.path} is damaged: {_one_line(error)}.") from error
        return torch.from_numpy(np.array(pixels, dtype=np.float32))  # own memory

    def plane(self) -> torch.Tensor:
        """All rows, (H, W) float32 counts."""
        return self.rows(0, self.shape[0])

    @property
    def places(self) -> list[dict[str, int | None]]:
        """Channel, z and t of all planes of the file, in the order T, Z, C.

        `select` takes them. Of a colour image they have the chosen colour, or the luminance.
        """
        sizes = self.sizes
        channels = range(sizes["C"])
        if self.source.is_colour or sizes["C"] == 1:
            channels = [self.channel]
        planes = itertools.product(range(sizes["T"]), range(sizes["Z"]), channels)
        return [{"channel": channel, "z": z, "t": t} for t, z, channel in planes]

    def focal_planes(self) -> tuple[list["Micrograph"], tuple[str, ...]]:
        """The planes of the focal stack that this plane belongs to, and all notes for the user.

        They are the planes in z; of a file with one plane in z they are its time points, since
        some programs store a stack so.
        """
        sizes = self.sizes
        if sizes["Z"] > 1 or sizes["T"] == 1:
            return [self.select(z=z) for z in range(sizes["Z"])], self.notes
        notes = [note for note in self.notes if not note.endswith(FLAGS["T"])]
        notes.append(
            f"one plane in z; the {sizes['T']} time points are taken for the planes of the stack"
        )
        return [self.select(t=t) for t in range(sizes["T"])], tuple(notes)

    def select(
        self, channel: int | None = None, z: int | None = None, t: int | None = None
    ) -> "Micrograph":
        """Another plane of the same open file; indices that are not given stay as they are."""
        asked = {"C": channel, "Z": z, "T": t}
        for axis, index in asked.items():
            self._check_index(axis, index)
        given = {"channel": channel, "z": z, "t": t}
        other = replace(self, **{k: v for k, v in given.items() if v is not None})
        try:
            other.source.check_plane((other.channel, other.z, other.t))
        except DECODE_ERRORS as error:
            raise InputError(
                f"{self.path} is damaged or was not copied whole: {_one_line(error)}."
            ) from error
        return other

    def __reduce__(self) -> tuple[Any, ...]:
        """How pickle sends a plane to another process, which opens the file again."""
        place = (self.channel, self.z, self.t, self.series)
        path = self.path if address_of(self.path) else self.path.absolute()
        return open_micrograph, (path, *place)

    def close(self) -> None:
        """Close the file."""
        self.source.close()

    def __enter__(self) -> "Micrograph":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _check_index(self, axis: str, index: int | None) -> None:
        size = self.source.sizes[axis]
        if index is None or 0 <= index < size:
            return
        held = f"0 to {size - 1}" if size > 1 else "0 only"
        raise InputError(f"{FLAGS[axis]} {index} is not in {self.path}; it has {held}.")


def open_micrograph(
    path: Path,
    channel: int | None = None,
    z: int | None = None,
    t: int | None = None,
    series: int | None = None,
) -> Micrograph:
    """Open one plane of an image file, by zero-based indices.

    By default it is the first channel (of a colour image the luminance), the middle plane in z and
    the first time point, of the largest image in the file. Each of these choices leaves a note.

    Raises
    ------
    InputError
        If there is no such file, it is damaged, cut off, of a foreign format, compression or
        type of pixels, or an index is out of range.
    """
    path = Path(path)
    if not address_of(path) and not path.exists():
        raise InputError(f"there is no image {path}.")
    source = _open(path, series)
    try:
        if max(source.shape) > MOST_SIDE_PX:
            height, width = source.shape
            raise InputError(f"{path} is damaged: it claims {width} x {height} px.")
        first = None if source.is_colour else 0
        middle = source.sizes["Z"] // 2
        unselected = Micrograph(path, first, middle, 0, (), source)
        chosen = unselected.select(channel, z, t)
        notes = _notes(chosen, {"C": channel, "Z": z, "T": t})
        return replace(chosen, notes=(*notes, *source.notes, *chosen.facts.notes))
    except BaseException:
        source.close()
        raise


def _notes(micrograph: Micrograph, asked: dict[str, int | None]) -> Iterator[str]:
    """What was chosen on the user's behalf."""
    source = micrograph.source
    chosen = {"C": micrograph.channel, "Z": micrograph.z, "T": micrograph.t}
    words = {"C": "channel", "Z": "the middle one,", "T": "the first one,"}
    for axis in AXES:
        size, index = source.sizes[axis], chosen[axis]
        if size == 1 or asked[axis] is not None:
            continue
        if index is None:
            yield "colour image; its luminance (Rec. 709) is used; choose one colour with --channel"
            continue
        name = source.names[index] if axis == "C" and index < len(source.names) else ""
        named = f" ({name})" if name else ""
        yield (
            f"{size} {NOUNS[axis]}; {words[axis]} {index}{named} is used; choose with {FLAGS[axis]}"
        )


def _open(path: Path, series: int | None) -> Source:
    try:
        return _reader(path)(path, series)
    except DECODE_ERRORS as error:
        raise InputError(
            f"{path} is damaged or was not copied whole: {_one_line(error)}."
        ) from error


def _reader(path: Path) -> Callable[[Path, int | None], Source]:
    """The reader for a file, chosen by its first bytes."""
    if address_of(path):
        return ZarrSource
    if path.is_dir():
        if is_zarr(path):
            return ZarrSource
        raise InputError(f"{path} is a folder and no OME-Zarr image; give an image file.")
    try:
        with path.open("rb") as file:
            start = file.read(len(CZI_START))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    for starts, reader in READERS:
        if start.startswith(starts):
            return reader
    raise InputError(
        f"{path} is no TIFF, PNG, JPEG, OME-Zarr, ND2, CZI or LIF; export it as OME-TIFF "
        "(Fiji: Save As, OME-TIFF)."
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
