"""Maps as files: TIFFs at full resolution, tables, and a hash that tells the mapped plane."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import tifffile
import torch

from common.files import whole_file
from common.stacks import IMAGEJ_LIMIT, content_uuid
from models.mapping import Image, PsfMap
from psf.blur import interpolate_grid

BAND = 256  # rows written at a time: 16 MB of an image of 16,000 pixels a line


def write_full_resolution(
    path: Path,
    channels: Sequence[np.ndarray],
    names: Sequence[str],
    psf_map: PsfMap,
    shape: tuple[int, int],
    pixel_um: float,
) -> None:
    """Write channels (R, C) of a map interpolated to every pixel of the image, band by band.

    Values are bilinear between the centres of the patches and constant outside the outermost ones;
    a NaN reaches the pixels around its patch. The file is an ImageJ hyperstack, or an OME-TIFF
    where that would pass its limit of 4 GB.
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
        metadata |= {"UUID": content_uuid(*channels)}
        kind = {"ome": True, "bigtiff": True, "metadata": metadata}
    rows = full_rows(channels, psf_map, shape[1])
    with whole_file(path) as partial:
        empty = tifffile.memmap(partial, shape=size, dtype=np.float32, **kind)
        start_byte, kind_of_number = empty.offset, empty.dtype
        del empty
        # The pages of a mapped file would count as memory of the process, so it is written.
        with partial.open("r+b") as file:
            for start in range(0, shape[0], BAND):
                for c, pixels in enumerate(rows(start, min(start + BAND, shape[0]))):
                    file.seek(start_byte + 4 * shape[1] * (c * shape[0] + start))
                    file.write(pixels.astype(kind_of_number).tobytes())


def full_rows(
    channels: Sequence[np.ndarray], psf_map: PsfMap, width: int
) -> Callable[[int, int], np.ndarray]:
    """Function that interpolates channels (R, C) to rows start to stop of the image, (N, r, W)."""
    grid = (psf_map.rows.double(), psf_map.columns.double())
    values = torch.from_numpy(np.stack(channels).astype(np.float32))
    x = torch.arange(width, dtype=torch.double)

    def rows(start: int, stop: int) -> np.ndarray:
        y = torch.arange(start, stop, dtype=torch.double)
        return np.stack([interpolate_grid(one, *grid, y, x).numpy() for one in values])

    return rows


def pixels_hash(image: Image) -> str:
    """SHA-256 of all pixels of a plane, as 64 hexadecimal digits; memory holds a band of rows."""
    height, width = image.shape
    digest = hashlib.sha256(f"{height} x {width}".encode())
    for start in range(0, height, BAND):
        rows = image.rows(start, min(start + BAND, height))
        digest.update(rows.float().contiguous().numpy().astype("<f4").tobytes())
    return digest.hexdigest()


def map_table(
    psf_map: PsfMap, pixel_size_um: float, more: Sequence[tuple[str, np.ndarray]] = ()
) -> pd.DataFrame:
    """Table with a row per patch: place, values, error bars, content and further columns (R, C)."""
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
