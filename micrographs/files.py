"""A PNG or JPEG as one plane, and what the readers of all formats share.

Every reader has the same attributes and methods: shape, sizes, names, notes, is_colour, full_scale,
series, check_plane, rows, facts, calibration, close.
"""

import logging
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tifffile
from imagecodecs import DelayedImportError, png_decode
from PIL import Image

from micrographs.metadata import Calibration, OpticsFacts
from psf.errors import InputError

LUMINANCE = (0.2126, 0.7152, 0.0722)  # of red, green, blue (Rec. ITU-R BT.709)
PNG_START = b"\x89PNG\r\n\x1a\n"
# PNG specification: the header (IHDR) holds width, height, bits per sample and colour type.
PNG_HEADER, PNG_PALETTE = struct.Struct(">16xIIBB"), 3
PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
MOST_DEFLATED = 1032  # zlib makes data at most this many times smaller (zlib.net/zlib_tech.html)
AXES = "CZT"
Index = tuple[int | None, int, int]  # channel (None: luminance), z, t
# Names of the images in whole-slide files that show the glass or its label, not the specimen.
AUXILIARY = ("label", "macro", "thumbnail", "overview", "preview", "map", "label image")
AUXILIARY += ("macro image", "thumbnail image", "overview image")
NAMED = 5  # images that a note lists; a file may hold hundreds

# What Pillow, tifffile and the decoders below them raise on damaged or foreign files; the
# codecs of imagecodecs (PNG, zlib, LZW, ...) have one RuntimeError each. A header with a wrong
# number makes tifffile divide by zero, compare a tuple with an integer, or ask for all memory.
DECODE_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    KeyError,
    IndexError,
    RuntimeError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    MemoryError,
    TypeError,
    struct.error,
    zlib.error,
    DelayedImportError,
    Image.DecompressionBombError,
)


class FlatSource:
    """A PNG or JPEG: one plane, decoded whole when it is opened."""

    def __init__(self, path: Path, series: int | None = None):
        self.series, _ = choose_series(path, [("", (1, 1))], series)
        self.sizes = {"C": 1, "Z": 1, "T": 1}
        self.names: list[str] = []
        self.notes: tuple[str, ...] = ()
        self._pixels = _without_alpha(flat_pixels(path))  # (H, W, samples)
        self.shape = self._pixels.shape[:2]
        self.is_colour = self._pixels.shape[2] == len(LUMINANCE)
        if self.is_colour:
            self.sizes["C"] = len(LUMINANCE)
        self.full_scale = full_scale(self._pixels.dtype, 8 * self._pixels.dtype.itemsize)

    def check_plane(self, index: Index) -> None:
        """Nothing: all pixels were read."""

    def rows(self, index: Index, start: int, stop: int) -> np.ndarray:
        """Rows of one colour or of the luminance, (stop - start, W)."""
        pixels = self._pixels[start:stop]
        return luminance(pixels) if index[0] is None else pixels[..., index[0]]

    def facts(self, channel: int) -> OpticsFacts:
        """Nothing: the resolution in a PNG or JPEG is that of a screen."""
        return OpticsFacts()

    def calibration(self) -> Calibration:
        """Nothing: these files hold one plane."""
        return Calibration()

    def close(self) -> None:
        """Forget the pixels."""
        self._pixels = self._pixels[:0]


def flat_pixels(path: Path) -> np.ndarray:
    """Pixels of a PNG or JPEG with all their bits, (H, W) or (H, W, channels).

    A PNG is decoded by libpng: Pillow cuts 16-bit colour down to 8 bits.
    """
    data = path.read_bytes()
    if data.startswith(PNG_START):
        width, height, bits, colours = PNG_HEADER.unpack_from(data)
        samples = PNG_SAMPLES.get(colours, 1)
        if width * height * samples * bits > 8 * MOST_DEFLATED * len(data):
            raise ValueError(f"{width} x {height} pixels do not fit into {len(data)} bytes")
        if colours != PNG_PALETTE:
            return png_decode(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata, which don't concern the pixels
        with Image.open(path) as image:
            return np.asarray(image if image.mode == "L" else image.convert("RGB"))


def _without_alpha(pixels: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, channels) -> (H, W, 1 or 3)."""
    if pixels.ndim == 2:
        return pixels[..., None]
    return pixels[..., :3] if pixels.shape[2] >= 3 else pixels[..., :1]


def luminance(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) -> (H, W) Rec. 709, in the same counts."""
    return pixels.astype(np.float64) @ np.array(LUMINANCE)


def full_scale(dtype: np.dtype, bits: int) -> float | None:
    """Largest count of so many bits; None for signed and float data."""
    return float(2 ** int(bits) - 1) if dtype.kind == "u" else None


def choose_series(
    path: Path, images: Sequence[tuple[str, tuple[int, int]]], asked: int | None
) -> tuple[int, tuple[str, ...]]:
    """Number of the image to read, and a note if it was chosen without being asked for.

    By default it is the image with the most pixels per plane; images of the label or of the whole
    glass are left out.

    Parameters
    ----------
    images : name, and height and width, of every image in the file

    Raises
    ------
    InputError
        If the file has no image of the number `asked`.
    """
    count = len(images)
    if asked is not None:
        if not 0 <= asked < count:
            held = f"0 to {count - 1}" if count > 1 else "0 only"
            raise InputError(f"--series {asked} is not in {path}; it has {held}.")
        return asked, ()
    main = [i for i, (name, _) in enumerate(images) if name.lower() not in AUXILIARY]
    chosen = max(main or range(count), key=lambda i: images[i][1][0] * images[i][1][1])
    if count == 1:
        return chosen, ()

    def named(i: int) -> str:
        name, (height, width) = images[i]
        return f"{i}{f' ({name})' if name else ''} of {width} x {height} px"

    others = [named(i) for i in range(count) if i != chosen]
    listed = ", ".join(others[:NAMED])
    if len(others) > NAMED:
        listed += f" and {len(others) - NAMED} more"
    note = f"{count} images in the file; the largest, {named(chosen)}, is used; the others are "
    return chosen, (f"{note}{listed}; choose with --series",)


@contextmanager
def complaints_of_tifffile() -> Iterator[list[str]]:
    """Collect tifffile's error messages: for a cut chain of pages it logs, but doesn't raise."""
    complaints: list[str] = []

    def keep(record: logging.LogRecord) -> bool:
        if record.levelno >= logging.ERROR:
            complaints.append(record.getMessage())
        return False

    logger = tifffile.logger()
    logger.addFilter(keep)
    try:
        yield complaints
    finally:
        logger.removeFilter(keep)
