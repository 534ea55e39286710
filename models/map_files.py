"""Maps as files: calibrated TIFFs on the map's grid and at full resolution, and tables."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import tifffile
import torch

from common.files import whole_file
from models.mapping import PsfMap

IMAGEJ_LIMIT = 2**32 - 2**20  # bytes; an ImageJ hyperstack is a classic TIFF
BAND = 256  # rows written at a time


def write_channels(
    path: Path, channels: Sequence[np.ndarray], names: Sequence[str], pixel_um: float
) -> None:
    """Write float32 channels (R, C) as an ImageJ hyperstack that Fiji and napari open calibrated.

    Parameters
    ----------
    pixel_um : distance of neighbouring points, um
    """
    with whole_file(path) as partial:
        tifffile.imwrite(
            partial,
            np.stack([np.asarray(channel, np.float32) for channel in channels]),
            imagej=True,
            resolution=(1 / pixel_um, 1 / pixel_um),
            metadata={"axes": "CYX", "unit": "um", "Labels": list(names)},
        )


def write_full_resolution(
    path: Path,
    channels: Sequence[np.ndarray],
    names: Sequence[str],
    psf_map: PsfMap,
    shape: tuple[int, int],
    pixel_um: float,
) -> None:
    """Write channels (R, C) of a map interpolated to every pixel of the image, band by band.

    Bilinear between the centres of the patches, constant beyond the outermost ones; NaN spreads to
    the pixels next to it. An ImageJ hyperstack, or OME-TIFF above its limit of 4 GB.
    """
    size = (len(channels), *shape)
    small = 4 * np.prod(size, dtype=float) < IMAGEJ_LIMIT
    if small:
        metadata = {"axes": "CYX", "unit": "um", "Labels": list(names)}
        kind = {"imagej": True, "resolution": (1 / pixel_um, 1 / pixel_um), "metadata": metadata}
    else:
        metadata = {"axes": "CYX", "Channel": {"Name": list(names)}}
        metadata |= {"PhysicalSizeX": pixel_um, "PhysicalSizeY": pixel_um}
        metadata |= {"PhysicalSizeXUnit": "µm", "PhysicalSizeYUnit": "µm"}
        kind = {"ome": True, "bigtiff": True, "metadata": metadata}
    x, column = _places(psf_map.columns, shape[1])
    right = np.minimum(column + 1, len(psf_map.columns) - 1)
    with whole_file(path) as partial:
        empty = tifffile.memmap(partial, shape=size, dtype=np.float32, **kind)
        start_byte, kind_of_number = empty.offset, empty.dtype
        del empty
        # written, not mapped: the pages of a mapped file count as memory of the process
        with partial.open("r+b") as file:
            for start in range(0, shape[0], BAND):
                y, row = _places(psf_map.rows, shape[0], start, min(start + BAND, shape[0]))
                below = np.minimum(row + 1, len(psf_map.rows) - 1)
                for c, channel in enumerate(channels):
                    lines = _blend(channel[row], channel[below], y[:, None])
                    pixels = _blend(lines[:, column], lines[:, right], x)
                    file.seek(start_byte + 4 * shape[1] * (c * shape[0] + start))
                    file.write(pixels.astype(kind_of_number).tobytes())


def map_table(
    psf_map: PsfMap, pixel_size_um: float, more: Sequence[tuple[str, np.ndarray]] = ()
) -> pd.DataFrame:
    """One row per patch: where it is, values, error bars, content, and further columns (R, C)."""
    y, x = torch.meshgrid(psf_map.rows, psf_map.columns, indexing="ij")
    table = {"y_px": y, "x_px": x, "y_um": y * pixel_size_um, "x_um": x * pixel_size_um}
    kinds = (
        ("", psf_map.values),
        ("_standard_deviation", psf_map.standard_deviations),
        ("_half_width_95", psf_map.half_widths_95),
    )
    for p, name in enumerate(psf_map.names):
        for suffix, columns in kinds:
            table[f"{name}{suffix}_{psf_map.unit}"] = columns[p]
    table |= {"content_probability": psf_map.content, "brightness": psf_map.brightness}
    table |= dict(more)
    return pd.DataFrame({name: np.asarray(column).ravel() for name, column in table.items()})


def _places(
    centres: torch.Tensor, count: int, start: int = 0, stop: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Share of the next point and index of the point before, for pixels start to stop."""
    first = float(centres[0])
    step = float(centres[1] - centres[0]) if len(centres) > 1 else 1.0
    places = (np.arange(start, count if stop is None else stop) - first) / step
    places = places.clip(0, len(centres) - 1)
    index = np.minimum(places.astype(int), max(len(centres) - 2, 0))
    return (places - index).astype(np.float32), index


def _blend(first: np.ndarray, second: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Linear interpolation that leaves a NaN out where it has no share."""
    blend = first * (1 - share) + second * share
    return np.where(share == 0, first, np.where(share == 1, second, blend))
