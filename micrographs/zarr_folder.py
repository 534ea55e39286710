"""OME-Zarr, read: one multiscale image, local or remote (versions 0.4 and 0.5 of the format)."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from common.addresses import address_of, as_typed
from micrographs.files import AXES, Index, choose_series, full_scale
from micrographs.formats import foreign_errors, reading_package
from micrographs.metadata import Calibration, OpticsFacts, facts_of
from micrographs.units import Found, add, converted
from psf.errors import InputError

STARTS = ("zarr.json", ".zgroup", ".zattrs", ".zarray")  # files of a Zarr folder
LETTERS = "TCZYX"
# Fact, axis and the unit where the file gives none.
SCALES = (("pixel_size_um", "X", "micrometer"), ("pixel_height_um", "Y", "micrometer"))
SCALES += (("z_step_um", "Z", "micrometer"), ("frame_interval_s", "T", ""))


def is_zarr(path: Path) -> bool:
    """Whether a path is a folder that Zarr wrote."""
    return path.is_dir() and any((path / name).is_file() for name in STARTS)


class ZarrSource:
    """The full resolution of one image of an OME-Zarr folder, read chunk by chunk."""

    is_colour = False

    def __init__(self, path: Path, series: int | None = None):
        zarr = reading_package("zarr", path)
        root = _open(zarr, path)
        with foreign_errors():
            images = _images(root) if isinstance(root, zarr.Group) else []
            sizes = [(name, _size(group)) for name, group in images]
        if not images:
            raise InputError(
                f"{as_typed(path)} holds no multiscale image; give the folder of one image "
                "(of a plate: plate.zarr/ROW/COLUMN/FIELD)."
            )
        self.series, self.notes = choose_series(path, sizes, series)
        with foreign_errors():
            self._set_up(path, images[self.series][1])

    def _set_up(self, path: Path, group: Any) -> None:
        self._array = level = _full_level(group)
        self._axes = _axes(group, level.ndim)
        if level.dtype.kind not in "buif":
            raise InputError(
                f"{path} has pixels of type {level.dtype}; intensities are real numbers."
            )
        known = set(self._axes) & set(LETTERS)
        if len(known) < len(self._axes) or not {"Y", "X"} <= known:
            raise InputError(f"{path} has the axes {self._axes}; only T, C, Z, Y and X are known.")
        shape = dict(zip(self._axes, level.shape, strict=True))
        self.shape = (shape["Y"], shape["X"])
        self.sizes = {axis: shape.get(axis, 1) for axis in AXES}
        if min(*self.shape, *self.sizes.values()) < 1:
            raise InputError(f"{path} has no pixels: its shape is {level.shape}.")
        described = _ome(group)
        channels = (described.get("omero") or {}).get("channels") or []
        self.names = [str(channel.get("label", "")) for channel in channels]
        self.full_scale = full_scale(level.dtype, 8 * level.dtype.itemsize)
        self._found = _found(described["multiscales"][0], self._axes)
        self._chunk_rows = level.chunks[self._axes.index("Y")]
        self._held: tuple[Index, int, int, np.ndarray] | None = None  # the last rows of chunks

    def check_plane(self, index: Index) -> None:
        """Nothing: a chunk that is missing counts as zeros in Zarr."""

    def rows(self, index: Index, start: int, stop: int) -> np.ndarray:
        """Rows of one plane, (stop - start, W); decodes only the chunks that hold them."""
        held = self._held
        if held is None or held[0] != index or not held[1] <= start < stop <= held[2]:
            first = start // self._chunk_rows * self._chunk_rows
            last = min(math.ceil(stop / self._chunk_rows) * self._chunk_rows, self.shape[0])
            if held is not None and held[0] == index and held[1] <= first < held[2] < last:
                # a band goes on where the last one ended: what is there is not read again
                more = self._read(index, held[2], last)
                pixels = np.concatenate([held[3][first - held[1] :], more])
            else:
                pixels = self._read(index, first, last)
            held = self._held = (index, first, last, pixels)
        return held[3][start - held[1] : stop - held[1]]

    def _read(self, index: Index, first: int, last: int) -> np.ndarray:
        place: dict[str, Any] = dict(zip(AXES, index, strict=True))
        place |= {"Y": slice(first, last), "X": slice(None)}
        with foreign_errors():
            pixels = np.asarray(self._array[tuple(place[axis] for axis in self._axes)])
        return pixels if self._axes.index("Y") < self._axes.index("X") else pixels.T

    def facts(self, channel: int) -> OpticsFacts:
        """Scale of the image; the format has no place for NA and wavelength."""
        return facts_of(self._found)

    def calibration(self) -> Calibration:
        """Scale and names of all planes."""
        step, interval = (self._found.get(n, (None,))[0] for n in ("z_step_um", "frame_interval_s"))
        names = tuple(self.names)
        names = names if len(names) == self.sizes["C"] and all(names) else ()
        return Calibration(step, interval, names, "ome")

    def close(self) -> None:
        """Forget the last rows; no file stays open."""
        self._held = None


def _open(zarr: Any, path: Path) -> Any:
    """Group or array at a path, or at an address of fsspec."""
    address = address_of(path)
    if address is None:
        with foreign_errors():
            return zarr.open(str(path), mode="r")
    try:
        return zarr.open(address, mode="r")
    except ImportError as error:
        raise InputError(
            f"{address} needs a package of its own: {error}. For the others: pip install -r "
            "requirements-formats.txt"
        ) from error
    except Exception as error:  # each store has errors of its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{address} cannot be opened: {reason.rstrip('.')}.") from error


def _ome(group: Any) -> dict[str, Any]:
    """Metadata of the format: under "ome" since version 0.5."""
    attributes = dict(group.attrs)
    return attributes.get("ome", attributes)


def _images(root: Any) -> list[tuple[str, Any]]:
    """Name and group of each image: the group itself, or those that it holds side by side."""
    if _ome(root).get("multiscales"):
        return [("", root)]
    groups = sorted(root.groups(), key=lambda pair: (len(pair[0]), pair[0]))  # 2 before 10
    return [(name, group) for name, group in groups if _ome(group).get("multiscales")]


def _full_level(group: Any) -> Any:
    """Array of the full resolution, which comes first."""
    return group[_ome(group)["multiscales"][0]["datasets"][0]["path"]]


def _axes(group: Any, count: int) -> str:
    """Letters of the axes of an array; before version 0.3 they were always the same five."""
    axes = _ome(group)["multiscales"][0].get("axes") or LETTERS[-count:]
    return "".join(str(a["name"] if isinstance(a, dict) else a).upper() for a in axes)


def _size(group: Any) -> tuple[int, int]:
    """Height and width; 0 where the image has no such axis."""
    level = _full_level(group)
    shape = dict(zip(_axes(group, level.ndim), level.shape, strict=True))
    return shape.get("Y", 0), shape.get("X", 0)


def _found(multiscale: dict[str, Any], axes: str) -> Found:
    """Facts in the scale of the full resolution."""
    scale = [1.0] * len(axes)
    is_given = False
    for holder in (multiscale["datasets"][0], multiscale):
        for one in holder.get("coordinateTransformations") or []:
            if one.get("type") == "scale" and len(one.get("scale", ())) == len(axes):
                scale = [a * float(b) for a, b in zip(scale, one["scale"], strict=True)]
                is_given = True
    found: Found = {}
    stated = multiscale.get("axes") or []
    for name, axis, default_unit in SCALES if is_given else ():
        if axis in axes:
            place = axes.index(axis)
            held = stated[place] if isinstance(stated[place], dict) else {}
            unit = held.get("unit") or default_unit
            if not held.get("unit") and scale[place] == 1:
                continue  # written by a program that knew no scale
            value = converted(name, scale[place], unit)
            add(found, name, value, f"OME-Zarr scale of {axis.lower()}")
    return found
