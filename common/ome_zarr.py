"""Images as OME-Zarr folders, written band by band with a pyramid of smaller images.

The format is version 0.4 (ngff.openmicroscopy.org), which more programs read than its successors.
"""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.extras import needed
from common.files import writing

CHUNK_PX = 512  # edge of a chunk: 1 MB of float32
SMALLEST_PX = 1024  # longest side of the smallest image of the pyramid, about a screen


def write_ome_zarr(
    path: Path,
    shape: tuple[int, int, int],
    rows: Callable[[int, int], np.ndarray],
    names: Sequence[str],
    pixel_um: float,
    first_um: tuple[float, float] = (0.0, 0.0),
) -> None:
    """Write channels (C, H, W) float32 to a new folder; memory holds a band of rows.

    Parameters
    ----------
    rows : gives rows start to stop of all channels, (C, stop - start, W)
    names : of the channels
    pixel_um : distance of neighbouring pixels, um
    first_um : place of the centre of the first pixel, y and x, um

    Raises
    ------
    InputError
        If the package zarr is missing, or the place cannot be written.
    """
    zarr = needed("zarr", "--maps-as zarr", "requirements-formats.txt")
    with writing(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zarr's remarks on its own versions
        group = zarr.open_group(str(path), mode="w", zarr_format=2)
        level = _new_level(group, 0, shape)
        for start in range(0, shape[1], CHUNK_PX):
            stop = min(start + CHUNK_PX, shape[1])
            level[:, start:stop] = rows(start, stop)
        count = 1
        while max(level.shape[1:]) > SMALLEST_PX:
            level = _halved(group, count, level)
            count += 1
        group.attrs.put(_metadata(path.stem, count, names, pixel_um, first_um))


def _new_level(group: Any, number: int, shape: tuple[int, ...]) -> Any:
    return group.create_array(
        str(number),
        shape=shape,
        chunks=(1, *(min(CHUNK_PX, n) for n in shape[1:])),
        dtype="float32",
        chunk_key_encoding={"name": "v2", "separator": "/"},
    )


def _halved(group: Any, number: int, level: Any) -> Any:
    """The next image of the pyramid: means of 2 x 2 pixels, without a rest of one pixel."""
    count, height, width = level.shape
    smaller = _new_level(group, number, (count, height // 2, width // 2))
    for c in range(count):
        for start in range(0, height // 2, CHUNK_PX):
            stop = min(start + CHUNK_PX, height // 2)
            band = np.asarray(level[c, 2 * start : 2 * stop, : width // 2 * 2])
            # A block with a missing pixel is missing.
            smaller[c, start:stop] = band.reshape(stop - start, 2, -1, 2).mean((1, 3))
    return smaller


def _metadata(
    name: str, count: int, names: Sequence[str], pixel_um: float, first_um: tuple[float, float]
) -> dict[str, Any]:
    datasets = []
    for number in range(count):
        size = 2**number
        # The first pixel of a smaller image lies in the middle of those that it stands for.
        first = [at + (size - 1) / 2 * pixel_um for at in first_um]
        place = [
            {"type": "scale", "scale": [1.0, size * pixel_um, size * pixel_um]},
            {"type": "translation", "translation": [0.0, *first]},
        ]
        datasets.append({"path": str(number), "coordinateTransformations": place})
    axes = [{"name": "c", "type": "channel"}]
    axes += [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "yx"]
    image = {"version": "0.4", "name": name, "axes": axes, "datasets": datasets}
    return {"multiscales": [image], "omero": {"channels": [{"label": label} for label in names]}}
