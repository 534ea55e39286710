"""Source image files, decoded: every plane as (H, W) float32 luminance in [0, 1]."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile
from skimage import color

from micrographs.files import complaints_of_tifffile, flat_pixels
from psf.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")


def image_files(folder: Path) -> list[Path]:
    """Paths of all images below `folder`, sorted by relative path; hidden files are left out."""
    if not folder.exists():
        raise InputError(f"There is no folder {folder}. Give --images the path of a folder.")
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder. Give --images the folder of the images.")
    found = {
        path.relative_to(folder): path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and path.is_file()
    }
    names = sorted(
        (name for name in found if not any(part[0] == "." for part in name.parts)),
        key=lambda name: name.as_posix(),
    )
    if not names:
        raise InputError(
            f"There is no image in {folder} or its subfolders. Give --images a folder with "
            f"{', '.join(SUFFIXES)} files."
        )
    return [found[name] for name in names]


def decode_planes(path: Path, page: int | None = None) -> Iterator[np.ndarray]:
    """Planes of a file, or only that of number `page`; a damaged file raises a DECODE_ERROR."""
    if path.suffix.lower() not in (".tif", ".tiff"):
        yield to_luminance(flat_pixels(path))
        return
    with complaints_of_tifffile() as complaints, tifffile.TiffFile(path) as tiff:
        # Counting follows the whole chain of pages, so a broken chain is found here.
        count = len(tiff.pages)
        if complaints or count == 0:
            raise ValueError(complaints[0] if complaints else "no page in the file")
        for number in range(count) if page is None else [page]:
            yield _tiff_plane(tiff.pages[number].aspage())


def to_luminance(pixels: np.ndarray) -> np.ndarray:
    """Luminance (H, W), float32 in [0, 1], of pixels (H, W) or (H, W, channels) of any type.

    Integers without negative values are divided by the largest value of their type. Negative
    integers and floats outside [0, 1] are scaled from their minimum to their maximum. Two channels
    are grey and alpha, four are RGB and alpha. Alpha is dropped; RGB is weighted by Rec. 709. NaN
    and infinity are kept; the caller looks for them.
    """
    if pixels.ndim not in (2, 3):
        raise ValueError(f"an array with {pixels.ndim} axes is not an image")
    if pixels.ndim == 3:
        pixels = pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., 0]
    pixels = _to_unit_range(pixels)
    if pixels.ndim == 3:
        pixels = color.rgb2gray(pixels)
    return np.ascontiguousarray(pixels, dtype=np.float32)


def _to_unit_range(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype == bool:
        return pixels.astype(np.float32)
    if not np.issubdtype(pixels.dtype, np.integer) and not np.issubdtype(pixels.dtype, np.floating):
        raise ValueError(f"pixels of type {pixels.dtype} are not intensities")
    low, high = float(pixels.min()), float(pixels.max())
    if np.issubdtype(pixels.dtype, np.integer) and low >= 0:
        return pixels / np.float64(np.iinfo(pixels.dtype).max)
    if (0 <= low and high <= 1) or not np.isfinite(high - low) or low == high:
        return pixels
    return (pixels - np.float64(low)) / (high - low)


def _tiff_plane(page: tifffile.TiffPage) -> np.ndarray:
    photometric, pixels = page.photometric, page.asarray()
    if photometric == tifffile.PHOTOMETRIC.PALETTE:
        return to_luminance(np.moveaxis(page.colormap[:, pixels], 0, -1))
    if page.axes == "SYX":
        pixels = np.moveaxis(pixels, 0, -1)
    elif page.axes not in ("YX", "YXS"):
        raise ValueError(f"a TIFF page with axes {page.axes} is not a flat image")
    colour = photometric in (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR)
    if pixels.ndim == 3 and not colour:
        pixels = pixels[..., 0]
    plane = to_luminance(pixels)
    return 1 - plane if photometric == tifffile.PHOTOMETRIC.MINISWHITE else plane
