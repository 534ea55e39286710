"""Image stacks as TIFF files that Fiji and napari open with their scale, names and times."""

import hashlib
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from common.files import whole_file

IMAGEJ_LIMIT = 2**32 - 2**20  # bytes; an ImageJ hyperstack is a classic TIFF


def write_stack(
    path: Path,
    pixels: np.ndarray,
    pixel_um: float,
    *,
    as_ome: bool = False,
    z_step_um: float | None = None,
    frame_interval_s: float | None = None,
    channel_names: Sequence[str] = (),
) -> None:
    """Write a stack, whole or not at all, as an ImageJ hyperstack or an OME-TIFF.

    A stack beyond the 4 GB of ImageJ becomes an OME-TIFF.

    Parameters
    ----------
    pixels : (T, Z, C, H, W), uint16 or float32
    pixel_um : distance of neighbouring pixels, um
    z_step_um : distance of neighbouring planes, um; None: unknown
    frame_interval_s : time between frames, s; None: unknown
    channel_names : one for each of the C channels, or none
    """
    scale = {"z": z_step_um, "t": frame_interval_s}
    if as_ome or pixels.nbytes > IMAGEJ_LIMIT:
        metadata = _ome_metadata(pixel_um, scale, channel_names)
        metadata["UUID"] = content_uuid(pixels)
        kind: dict[str, Any] = {"ome": True, "bigtiff": pixels.nbytes > IMAGEJ_LIMIT}
    else:
        # ImageJ has one label for each plane, and the channel changes fastest.
        labels = [*channel_names] * (pixels.shape[0] * pixels.shape[1])
        metadata = _imagej_metadata(scale, labels)
        kind = {"imagej": True, "resolution": (1 / pixel_um, 1 / pixel_um)}
    if pixels.shape[:3] == (1, 1, 1):
        pixels, metadata["axes"] = pixels[0, 0, 0], "YX"
    with whole_file(path) as partial:
        tifffile.imwrite(partial, pixels, metadata=metadata, **kind)


def content_uuid(*arrays: np.ndarray) -> str:
    """UUID for an OME-TIFF that follows from its pixels, so that equal runs write equal files."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array))
    return str(uuid.UUID(bytes=digest.digest()[:16]))


def _imagej_metadata(scale: dict[str, float | None], labels: list[str]) -> dict[str, Any]:
    metadata: dict[str, Any] = {"axes": "TZCYX", "unit": "um"}
    if scale["z"] is not None:
        metadata["spacing"] = scale["z"]
    if scale["t"] is not None:
        metadata |= {"finterval": scale["t"], "tunit": "s"}
    return metadata | ({"Labels": labels} if labels else {})


def _ome_metadata(
    pixel_um: float, scale: dict[str, float | None], channel_names: Sequence[str]
) -> dict[str, Any]:
    metadata: dict[str, Any] = {"axes": "TZCYX"}
    for axis, size in (("X", pixel_um), ("Y", pixel_um), ("Z", scale["z"])):
        if size is not None:
            metadata |= {f"PhysicalSize{axis}": size, f"PhysicalSize{axis}Unit": "µm"}
    if scale["t"] is not None:
        metadata |= {"TimeIncrement": scale["t"], "TimeIncrementUnit": "s"}
    return metadata | ({"Channel": {"Name": list(channel_names)}} if channel_names else {})
