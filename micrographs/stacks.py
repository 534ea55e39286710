"""Z-stacks of beads: reading a TIFF with its calibration, and cutting out one bead."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile

from micrographs.files import DECODE_ERRORS
from psf.errors import InputError

UM_PER_UNIT = {"um": 1.0, "µm": 1.0, "μm": 1.0, "\\u00b5m": 1.0, "micron": 1.0, "microns": 1.0}
UM_PER_UNIT |= {"nm": 1e-3, "mm": 1e3, "cm": 1e4}
LARGEST_STEP_UM = 50.0  # beyond it somebody typed nanometres


@dataclass(frozen=True)
class Stack:
    """A z-stack as recorded, and what its file says of its scale (None: nothing)."""

    counts: np.ndarray  # (Z, H, W) camera counts, as stored
    pixel_size_um: float | None
    z_step_um: float | None


def read_stack(path: Path) -> Stack:
    """Read a TIFF z-stack of one channel.

    Raises
    ------
    InputError
        If there is no such file, it cannot be read, or it is not a stack of one channel.
    """
    if not path.is_file():
        raise InputError(f"there is no bead stack {path}.")
    try:
        with tifffile.TiffFile(path) as tiff:
            counts = np.squeeze(tiff.asarray())
            colour = tiff.pages.first.photometric == tifffile.PHOTOMETRIC.RGB
            pixel_size_um, z_step_um = _calibration(tiff)
    except DECODE_ERRORS as error:
        raise InputError(f"{path} cannot be read as a TIFF stack: {error}") from error
    if colour:
        raise InputError(f"{path} is a colour image; give a z-stack of one channel.")
    if counts.ndim != 3 or counts.dtype.kind not in "uif":
        shape = " x ".join(map(str, counts.shape))
        raise InputError(
            f"{path} holds {shape} numbers of type {counts.dtype}; a bead stack has one channel "
            "and several planes (Z x H x W)."
        )
    if not np.isfinite(counts).all():
        raise InputError(f"{path} contains NaN or infinite values.")
    return Stack(counts, pixel_size_um, z_step_um)


def _calibration(tiff: tifffile.TiffFile) -> tuple[float | None, float | None]:
    """Pixel size and z step in um, as far as ImageJ or OME metadata say."""
    if tiff.is_ome:
        pixels = tifffile.xml2dict(tiff.ome_metadata)["OME"]["Image"]
        pixels = (pixels[0] if isinstance(pixels, list) else pixels)["Pixels"]
        lengths = (
            _um(pixels.get(f"PhysicalSize{axis}"), pixels.get(f"PhysicalSize{axis}Unit", "µm"))
            for axis in "XZ"
        )
        return tuple(lengths)
    described = tiff.imagej_metadata or tiff.shaped_metadata or {}
    if isinstance(described, (list, tuple)):  # tifffile writes one dictionary per series
        described = described[0] if described else {}
    unit = str(described.get("unit", ""))
    width = tiff.pages.first.tags.get("XResolution")
    pixel = None
    if width is not None and width.value[0]:
        pixel = _um(width.value[1] / width.value[0], unit)
    return pixel, _um(described.get("spacing"), unit)


def _um(length: float | str | None, unit: str) -> float | None:
    factor = UM_PER_UNIT.get(json.loads(f'"{unit}"') if "\\u" in unit else unit)
    if length is None or factor is None or not float(length) > 0:
        return None
    return float(length) * factor
