"""Images as layers of napari, and layers of napari as files that the scripts can read."""

import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import tifffile
from dask import delayed

from common.files import write_imagej
from micrographs.micrograph import Micrograph, open_micrograph
from psf.errors import InputError

KEY = "psf_source"  # in the metadata of a layer that `open_layer` made
BAND_PX = 2**24  # pixels that are read together: 64 MB


@dataclass(frozen=True)
class LayerSource:
    """The file of a layer, and which of its axes the sliders move."""

    path: Path
    series: int | None
    axes: str  # of T, Z and C, in the order of the layer's axes before y and x


@dataclass(frozen=True)
class PlaneOfFile:
    """One plane of a file, by the options of the scripts; None: the file has only one."""

    image: Path
    series: int | None = None
    channel: int | None = None
    z: int | None = None
    t: int | None = None


def open_layer(path: Path, series: int | None = None) -> tuple[da.Array, dict[str, Any]]:
    """Pixels of an image file, read when they are shown, and the keywords of `add_image`.

    Raises
    ------
    InputError
        As `open_micrograph`.
    """
    micrograph = open_micrograph(path, series=series)
    sizes = dict(micrograph.sizes)
    if micrograph.channel is None:
        sizes["C"] = 1  # of a colour image the luminance is shown
    axes = "".join(axis for axis in "TZC" if sizes[axis] > 1)
    planes = [
        _plane(micrograph.select(channel=c if "C" in axes else None, z=z, t=t))
        for t in range(sizes["T"])
        for z in range(sizes["Z"])
        for c in range(sizes["C"])
    ]
    pixels = da.stack(planes).reshape(*(sizes[axis] for axis in axes), *micrograph.shape)
    known, pixel_um = micrograph.calibration, micrograph.facts.pixel_size_um
    steps = {"T": 1.0, "Z": known.z_step_um or 1.0, "C": 1.0}
    first = micrograph.rows(0, min(micrograph.shape[0], max(1, BAND_PX // micrograph.shape[1])))
    low, high = np.nanpercentile(first.numpy(), (0.5, 99.8))
    return pixels, {
        "name": path.name,
        "scale": (*(steps[axis] for axis in axes), *2 * (pixel_um or 1.0,)),
        "units": (*("pixel" if axis != "Z" else "um" for axis in axes), *2 * ("um",)),
        "axis_labels": (*axes, "y", "x"),
        "contrast_limits": (float(low), max(float(high), float(low) + 1e-9)),
        "colormap": "gray",
        "metadata": {KEY: LayerSource(path, series, axes)},
    }


def _plane(micrograph: Micrograph) -> da.Array:
    """A plane as bands of rows, each read when it is shown."""
    height, width = micrograph.shape
    rows = max(1, BAND_PX // width)
    bands = [
        da.from_delayed(
            delayed(_rows)(micrograph, start, min(start + rows, height)),
            (min(start + rows, height) - start, width),
            np.float32,
        )
        for start in range(0, height, rows)
    ]
    return da.concatenate(bands)


_one_reader = threading.Lock()  # the planes share an open file


def _rows(micrograph: Micrograph, start: int, stop: int) -> np.ndarray:
    with _one_reader:
        return micrograph.rows(start, stop).numpy()


def plane_of_layer(layer: Any, shown: tuple[int, ...], folder: Path) -> PlaneOfFile:
    """The plane of a napari image layer that the sliders show, as a plane of a file.

    Layers of `open_layer` know their file, and so do those of other readers whose file holds one
    plane and the same pixels. Of any other layer, the plane that is shown is written to a new file
    in `folder`, with the scale of the layer in um.

    Parameters
    ----------
    shown : index of the plane along each axis of the layer before y and x

    Raises
    ------
    InputError
        If the layer holds colours.
    """
    if source := layer.metadata.get(KEY):
        index = dict(zip(source.axes, shown, strict=True))
        return PlaneOfFile(
            source.path, source.series, index.get("C"), index.get("Z"), index.get("T")
        )
    if layer.rgb:
        raise InputError(
            f"the layer {layer.name} holds colours; open its file with view_psf_map.py, or split "
            "its channels."
        )
    pixels = layer.data[0] if layer.multiscale else layer.data
    plane = np.asarray(pixels[tuple(shown)])
    if layer.source.path and pixels.ndim == 2 and _holds(Path(layer.source.path), plane):
        return PlaneOfFile(Path(layer.source.path))
    if plane.dtype not in (np.uint8, np.uint16):
        plane = plane.astype(np.float32)
    # The last map still reads its plane, so each plane has a file of its own.
    path = Path(tempfile.mkdtemp(dir=folder)) / "plane.tif"
    pixel_um = pixel_of_layer_um(layer)
    if pixel_um is None:
        tifffile.imwrite(path, plane)
    else:
        write_imagej(path, plane, "YX", pixel_um)
    return PlaneOfFile(path)


def pixel_of_layer_um(layer: Any) -> float | None:
    """Pixel size by the scale of a layer, whose units may be any length; None if it has none.

    A scale without a unit counts as um, as microscopists type it, but 1 is napari's own default.
    """
    scale, unit = float(layer.scale[-1]), layer.units[-1]
    if str(unit) == "pixel":
        return None if scale == 1 else scale
    return float((scale * unit).to("um").magnitude) if unit.is_compatible_with("um") else None


def _holds(path: Path, plane: np.ndarray) -> bool:
    """Whether a file holds one plane, and this one: the user may have changed the layer."""
    try:
        with open_micrograph(path) as micrograph:
            return (
                micrograph.plane_count == 1
                and micrograph.shape == plane.shape
                and np.array_equal(micrograph.plane().numpy(), plane.astype(np.float32))
            )
    except InputError:  # a format that another reader of napari knows
        return False
