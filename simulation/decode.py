"""Decoding of image files: every plane of a file as (H, W) float32 luminance in [0, 1]."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile
from imagecodecs import png_decode
from PIL import Image
from skimage import color

from micrographs.files import complaints_of_tifffile
from psf.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")


def image_files(folder: Path) -> list[Path]:
    """All images below `folder`, sorted by relative path; hidden files are passed over."""
    if not folder.exists():
        raise InputError(f"There is no folder {folder}. Check the path given as --images.")
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
            f"There is no image in {folder}: looked for {', '.join(SUFFIXES)} files "
            "in it and in its subfolders."
        )
    return [found[name] for name in names]


def decode_planes(path: Path, page: int | None = None) -> Iterator[np.ndarray]:
    """Yield all planes of a file, or only number `page`; raises one of DECODE_ERRORS."""
    if path.suffix.lower() not in (".tif", ".tiff"):
        yield to_luminance(_flat_pixels(path))
        return
    with complaints_of_tifffile() as complaints, tifffile.TiffFile(path) as tiff:
        # Counting walks along the whole chain of pages, which shows whether it is broken.
        count = len(tiff.pages)
        if complaints or count == 0:
            raise ValueError(complaints[0] if complaints else "no page in the file")
        for number in range(count) if page is None else [page]:
            yield _tiff_plane(tiff.pages[number].aspage())


def to_luminance(pixels: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, channels) of any type -> (H, W) float32 in [0, 1].

    Unsigned integers are divided by the largest value of their type, and so are signed integers
    without negative values; floats outside of [0, 1] and negative integers are scaled from
    minimum to maximum. Two channels are grey and alpha, four are RGB and alpha; alpha is dropped,
    and RGB is weighted by Rec. 709. NaN and infinity are kept, for the caller to find.
    """
    if pixels.ndim not in (2, 3):
        raise ValueError(f"an array with {pixels.ndim} axes is no image")
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
        raise ValueError(f"pixels of type {pixels.dtype} are no intensities")
    low, high = float(pixels.min()), float(pixels.max())
    if np.issubdtype(pixels.dtype, np.integer) and low >= 0:
        return pixels / np.float64(np.iinfo(pixels.dtype).max)
    if (0 <= low and high <= 1) or not np.isfinite(high - low) or low == high:
        return pixels
    return (pixels - np.float64(low)) / (high - low)


def _flat_pixels(path: Path) -> np.ndarray:
    """Pixels of a PNG or JPEG; Pillow's warnings on odd metadata don't concern the pixels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(path) as image:
            if image.mode == "L":
                return np.asarray(image)
            if image.format != "PNG" or image.mode == "P":
                return np.asarray(image.convert("RGB"))
            image.load()
    # Pillow cuts 16-bit colour down to 8 bits; it is left to find damage and palettes.
    return png_decode(path.read_bytes())


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
