"""Optics and scale that microscope programs keep in private tags of a TIFF."""

import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import tifffile

from micrographs.units import Found, add, converted

# Program, fact, key in its metadata, unit or the key that names the unit. The first row that
# holds a plausible number counts. The keys are those that the programs write.
TABLE = (
    ("Micro-Manager", "pixel_size_um", "PixelSizeUm", "um"),
    ("Micro-Manager", "pixel_size_um", "PixelSize_um", "um"),
    ("Micro-Manager", "z_step_um", "z-step_um", "um"),
    ("Micro-Manager", "frame_interval_s", "Interval_ms", "ms"),
    ("MetaMorph", "pixel_size_um", "spatial-calibration-x", "spatial-calibration-units"),
    ("MetaMorph", "pixel_height_um", "spatial-calibration-y", "spatial-calibration-units"),
    ("MetaMorph", "na", "_MagNA_", ""),
    ("MetaMorph", "refractive_index", "_MagRI_", ""),
    ("MetaMorph", "wavelength_um", "wavelength", "nm"),
    ("MetaMorph STK", "pixel_size_um", "XCalibration", "CalibrationUnits"),
    ("MetaMorph STK", "pixel_height_um", "YCalibration", "CalibrationUnits"),
    ("MetaMorph STK", "z_step_um", "ZDistance", "um"),
    ("MetaMorph STK", "wavelength_um", "Wavelengths", "nm"),
    ("MetaMorph STK", "na", "_MagNA_", ""),
    ("MetaMorph STK", "refractive_index", "_MagRI_", ""),
    ("Zeiss LSM", "pixel_size_um", "VoxelSizeX", "m"),
    ("Zeiss LSM", "pixel_height_um", "VoxelSizeY", "m"),
    ("Zeiss LSM", "z_step_um", "VoxelSizeZ", "m"),
    ("Zeiss LSM", "frame_interval_s", "TimeIntervall", "s"),  # written so in the format
    ("FluoView", "pixel_size_um", "X", "X unit"),
    ("FluoView", "pixel_height_um", "Y", "Y unit"),
    ("FluoView", "z_step_um", "Z", "Z unit"),
    ("FluoView", "frame_interval_s", "T", "T unit"),
    ("ScanImage", "pixel_size_um", "pixel width", "um"),
    ("ScanImage", "pixel_height_um", "pixel height", "um"),
    ("ScanImage", "z_step_um", "SI.hStackManager.stackZStepSize", "um"),
    ("Olympus SIS", "pixel_size_um", "pixelsizex", "m"),
    ("Olympus SIS", "pixel_height_um", "pixelsizey", "m"),
    ("Aperio", "pixel_size_um", "MPP", "um"),
)


# What tifffile and the parsers of JSON and XML raise on private tags that are damaged, or were
# written by a program that only borrowed their numbers.
UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, OSError)
UNREADABLE += (SyntaxError, struct.error, MemoryError)


def vendor_facts(tiff: tifffile.TiffFile) -> Found:
    """Facts in private tags, of whatever program wrote the file."""
    found: Found = {}
    for program, read in READERS.items():
        try:
            held = flat(read(tiff) or {})
        except UNREADABLE:  # nothing else depends on private tags, and flags can replace them
            continue
        if held.get("spatial-calibration-state") is False:  # MetaMorph, not calibrated
            held.pop("spatial-calibration-x", None)
            held.pop("spatial-calibration-y", None)
        for row_program, name, key, unit in TABLE:
            if row_program == program and key in held:
                value = converted(name, _one(held[key]), str(held.get(unit, unit)))
                add(found, name, value, f"{program} {key}")
    return found


def vendor_channel_names(tiff: tifffile.TiffFile) -> list[str]:
    """Names of the channels in the summary of Micro-Manager."""
    try:
        names = flat(_micromanager(tiff) or {}).get("ChNames")
    except UNREADABLE:
        return []
    return [str(name) for name in names] if isinstance(names, list) else []


def _micromanager(tiff: tifffile.TiffFile) -> dict[str, Any] | None:
    """Metadata of the first plane, and the summary of the whole recording."""
    if not tiff.is_micromanager:
        return None
    plane = tiff.pages.first.tags.valueof(51123)
    if isinstance(plane, (str, bytes)):
        plane = json.loads(plane)
    try:
        whole = tifffile.read_micromanager_metadata(tiff.filehandle, {"Summary"})
    except ValueError:  # saved again by a program that keeps the tag only
        whole = {}
    return {"plane": plane, "whole": whole}


def _fluoview(tiff: tifffile.TiffFile) -> dict[str, Any] | None:
    """Resolution and unit of each axis, by its letter."""
    held: dict[str, Any] = {}
    for axis, _, _, resolution, unit in (tiff.fluoview_metadata or {}).get("Dimensions", ()):
        letter = {"TIME": "T"}.get(axis.upper(), axis.upper())
        held |= {letter: resolution, f"{letter} unit": unit}
    return held


def _scanimage(tiff: tifffile.TiffFile) -> dict[str, Any] | None:
    """ScanImage's settings, with the pixel from the corners of the field of view."""
    held = dict((tiff.scanimage_metadata or {}).get("FrameData") or {})
    corners = np.asarray(held.get("SI.hRoiManager.imagingFovUm", ()), dtype=float)
    if corners.ndim == 2 and corners.shape[1] == 2:
        width, height = np.ptp(corners, axis=0)
        page = tiff.pages.first
        held |= {"pixel width": width / page.imagewidth, "pixel height": height / page.imagelength}
    return held


def _aperio(tiff: tifffile.TiffFile) -> dict[str, Any] | None:
    """Settings of the scanner of an SVS slide, written as "key = value | key = value"."""
    parts = tiff.pages.first.description.split("|") if tiff.is_svs else []
    pairs = (part.partition("=") for part in parts)
    return {key.strip(): value.strip() for key, _, value in pairs}


def _metaseries(tiff: tifffile.TiffFile) -> dict[str, Any] | None:
    return tiff.metaseries_metadata


def _stk(tiff: tifffile.TiffFile) -> dict[str, Any] | None:
    """Tags of a stack; without a calibration it still states one, of a unit "pixel"."""
    return tiff.stk_metadata


def _lsm(tiff: tifffile.TiffFile) -> dict[str, Any] | None:
    return tiff.lsm_metadata


def _sis(tiff: tifffile.TiffFile) -> dict[str, Any] | None:
    return tiff.sis_metadata


READERS: dict[str, Callable[[tifffile.TiffFile], dict[str, Any] | None]] = {
    "Micro-Manager": _micromanager,
    "MetaMorph": _metaseries,
    "MetaMorph STK": _stk,
    "Zeiss LSM": _lsm,
    "FluoView": _fluoview,
    "ScanImage": _scanimage,
    "Olympus SIS": _sis,
    "Aperio": _aperio,
}


def flat(held: Any) -> dict[str, Any]:
    """Entries of nested dictionaries and lists by their own key; of equal keys the first counts."""
    found: dict[str, Any] = {}
    inner = held.items() if isinstance(held, dict) else ()
    for key, value in inner:
        found.setdefault(key, value)
    for _, value in inner:
        for one in value if isinstance(value, list) else [value]:
            found = flat(one) | found if isinstance(one, dict) else found
    return found


def _one(value: Any) -> Any:
    """The value itself, or the one that all planes share; the first z distance may be 0."""
    if not isinstance(value, np.ndarray):
        return value
    values = np.unique(value[value > 0]) if value.size else value
    # Distances are fractions of integers in the file, which round.
    is_same = values.size > 0 and np.ptp(values) <= 1e-3 * values[0]
    return values[0] if is_same else None
