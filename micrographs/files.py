"""Image files as channels x planes in z x time points, in the counts of the file.

A TIFF and a flat file (PNG, JPEG) have the same methods: sizes, check_plane, rows, facts, close.
"""

import logging
import math
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tifffile
from imagecodecs import DelayedImportError, png_decode
from PIL import Image

from micrographs.metadata import (
    Calibration,
    OpticsFacts,
    calibration_of,
    channel_names,
    ome_root,
    optics_facts,
    significant_bits,
)
from micrographs.tiff_rows import TiffPlanes
from psf.errors import InputError

LUMINANCE = (0.2126, 0.7152, 0.0722)  # of red, green, blue (Rec. ITU-R BT.709)
PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_COLOUR_TYPE_BYTE, PNG_PALETTE = 25, 3  # PNG specification, IHDR
OPACITIES = (tifffile.EXTRASAMPLE.ASSOCALPHA, tifffile.EXTRASAMPLE.UNASSALPHA)
# tifffile logs these as errors although all pixels can be read.
HARMLESS_COMPLAINTS = ("TiffTag.fromfile", "OME series raised")
DESCRIPTION_LOST = "TiffTag 270 "  # the OME-XML, written last: the file was cut off
AXES = "CZT"
Index = tuple[int | None, int, int]  # channel (None: luminance), z, t

# What Pillow, tifffile and the decoders below them raise on damaged or foreign files; the
# codecs of imagecodecs (PNG, zlib, LZW, ...) have one RuntimeError each.
DECODE_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    KeyError,
    IndexError,
    RuntimeError,
    struct.error,
    zlib.error,
    DelayedImportError,
    Image.DecompressionBombError,
)


class FlatSource:
    """A PNG or JPEG: one plane, decoded whole when it is opened."""

    def __init__(self, path: Path):
        self.sizes = {"C": 1, "Z": 1, "T": 1}
        self.names: list[str] = []
        self.notes: tuple[str, ...] = ()
        self._pixels = _without_alpha(flat_pixels(path))  # (H, W, samples)
        self.shape = self._pixels.shape[:2]
        self.is_colour = self._pixels.shape[2] == len(LUMINANCE)
        if self.is_colour:
            self.sizes["C"] = len(LUMINANCE)
        self.full_scale = _full_scale(self._pixels.dtype, 8 * self._pixels.dtype.itemsize)

    def check_plane(self, index: Index) -> None:
        """Nothing: all pixels were read."""

    def rows(self, index: Index, start: int, stop: int) -> np.ndarray:
        """Rows of one colour or of the luminance, (stop - start, W)."""
        pixels = self._pixels[start:stop]
        return _luminance(pixels) if index[0] is None else pixels[..., index[0]]

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
    if data.startswith(PNG_START) and data[PNG_COLOUR_TYPE_BYTE] != PNG_PALETTE:
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


class TiffSource:
    """The first series of a TIFF, as channels x planes in z x time points."""

    def __init__(self, path: Path):
        with complaints_of_tifffile() as complaints:
            self._tiff = tifffile.TiffFile(path)
            try:
                count = len(self._tiff.pages)  # walks the whole chain, which shows if it is broken
                series = self._tiff.series if count else []
                bad = [c for c in complaints if not _is_harmless(c)]
                if bad or not series:
                    raise ValueError(_plain_complaint(bad[0]) if bad else "no image in the file")
                self._set_up(path, series)
            except BaseException:
                self._tiff.close()
                raise

    def _set_up(self, path: Path, series: list[tifffile.TiffPageSeries]) -> None:
        page = series[0].keyframe
        _check_page(path, page)
        self._planes = TiffPlanes(series[0])
        self.shape = (self._planes.height, self._planes.width)
        self.names = channel_names(self._tiff)
        self.is_colour = self._planes.samples >= len(LUMINANCE) and page.photometric in (
            tifffile.PHOTOMETRIC.RGB,
            tifffile.PHOTOMETRIC.YCBCR,
        )
        self._set_axes(path, series[0])
        stored = page.bitspersample  # one number for each sample where they differ (RGB 565)
        bits = significant_bits(self._tiff) or np.max(stored)
        self.full_scale = _full_scale(page.dtype, bits)
        self._is_inverted = page.photometric == tifffile.PHOTOMETRIC.MINISWHITE
        self.notes = tuple(self._oddities(series))
        self._planes.check_last()  # a file that was cut off lacks it

    def _set_axes(self, path: Path, series: tifffile.TiffPageSeries) -> None:
        """Sort the outer axes into C, Z and T; an axis without a name becomes z, or else t."""
        axes, shape = series.get_axes(squeeze=False), series.get_shape(squeeze=False)
        inner = "YXS"
        samples_axis = dict(zip(axes, shape, strict=True)).get("S", 1)
        if self._planes.samples > 1 and samples_axis == 1:
            inner += "C"  # the samples of a page are called channels
        outer = [(a, size) for a, size in zip(axes, shape, strict=True) if a not in inner]
        self._outer_shape = tuple(size for _, size in outer) or (1,)
        if math.prod(self._outer_shape) != self._planes.count:
            raise InputError(f"{path} has its axes in the order {axes}; Y and X must come last.")
        # which axes of the file make up each of C, Z and T
        self._members = {a: [i for i, (b, _) in enumerate(outer) if a == b] for a in AXES}
        unnamed = [i for i, (axis, size) in enumerate(outer) if axis not in AXES and size > 1]
        if unnamed:
            free = [a for a in "ZT" if self._size(a) == 1]
            if not free:
                raise InputError(f"{path} has the axes {axes}; only C, Z and T are known.")
            self._members[free[0]] = unnamed
        self.sizes = {axis: self._size(axis) for axis in AXES}
        self._share_samples(path, series.keyframe)

    def _size(self, axis: str) -> int:
        return math.prod(self._outer_shape[i] for i in self._members[axis])

    def _share_samples(self, path: Path, page: tifffile.TiffPage) -> None:
        """Samples of a page are channels, unless they are an opacity (alpha)."""
        opacities = sum(e in OPACITIES for e in page.extrasamples)
        samples = len(LUMINANCE) if self.is_colour else self._planes.samples - opacities
        if self.sizes["C"] == 1:
            self._members["C"] = []
            self.sizes["C"] = samples
        elif samples > 1:
            raise InputError(
                f"{path} has {self.sizes['C']} channels of {samples} samples each; export it "
                "with one sample per channel."
            )

    def _oddities(self, series: list[tifffile.TiffPageSeries]) -> Iterator[str]:
        if len(series) > 1:
            yield f"{len(series)} images in the file; the first is used"
        if self._is_inverted:
            yield "zero is white in this file (MinIsWhite); it is inverted"
        if series[0].keyframe.photometric == tifffile.PHOTOMETRIC.PALETTE:
            yield "the file has a colour table; the stored values are used, not its colours"
        if self._tiff.is_ome and ome_root(self._tiff) is None:
            yield "the OME-XML is damaged; it is ignored"

    def check_plane(self, index: Index) -> None:
        """Raise one of DECODE_ERRORS if a plane is not there in full."""
        self._planes.check_plane(self._plane_number(index))

    def rows(self, index: Index, start: int, stop: int) -> np.ndarray:
        """Rows of one plane, (stop - start, W)."""
        if index[0] is None:
            samples = range(len(LUMINANCE))
        else:
            first = 0 if self._members["C"] else index[0]
            samples = range(first, first + 1)
        pixels = self._planes.rows(self._plane_number(index), start, stop, samples)
        pixels = _luminance(pixels) if index[0] is None else pixels[..., 0]
        if self._is_inverted:
            return self._top(pixels.dtype) - pixels.astype(np.float64)
        return pixels

    def _top(self, dtype: np.dtype) -> float:
        """White of an inverted image; unknown for signed and float data, whose sign changes."""
        return 1.0 if dtype.kind == "b" else self.full_scale or 0.0

    def _plane_number(self, index: Index) -> int:
        """Number of a plane in the order of the outer axes."""
        place = [0] * len(self._outer_shape)
        for axis, position in zip(AXES, index, strict=True):
            members = self._members[axis]
            if members:
                sizes = [self._outer_shape[i] for i in members]
                for i, step in zip(members, np.unravel_index(position, sizes), strict=True):
                    place[i] = int(step)
        return int(np.ravel_multi_index(place, self._outer_shape))

    def facts(self, channel: int) -> OpticsFacts:
        """Optics from the metadata; a colour image has one channel there."""
        return optics_facts(self._tiff, 0 if self.is_colour else channel)

    def calibration(self) -> Calibration:
        """Scale and names of all planes."""
        return calibration_of(self._tiff, self.sizes["C"])

    def close(self) -> None:
        """Close the file and those of its set."""
        self._planes.close()
        self._tiff.close()


def _check_page(path: Path, page: tifffile.TiffPage) -> None:
    """Refuse pixels that are no real numbers, volumes, and compressions without a decoder."""
    try:
        tifffile.TIFF.DECOMPRESSORS[page.compression]
    except KeyError as error:
        name = getattr(page.compression, "name", "number")
        raise InputError(
            f"{path} is compressed with {name} ({int(page.compression)}), which cannot be read; "
            "save it uncompressed or with LZW."
        ) from error
    if page.dtype is None or page.dtype.kind not in "buif":
        kind = page.dtype or f"{page.bitspersample} bits of SampleFormat {page.sampleformat}"
        raise InputError(f"{path} has pixels of type {kind}; intensities are real numbers.")
    if page.shaped[1] > 1:
        raise InputError(f"{path} keeps several planes in one page; save it with a page for each.")


def _is_harmless(complaint: str) -> bool:
    return DESCRIPTION_LOST not in complaint and any(h in complaint for h in HARMLESS_COMPLAINTS)


def _plain_complaint(message: str) -> str:
    """Complaint of tifffile without the name of its object in front."""
    return message.partition("> ")[2] or message


def _luminance(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) -> (H, W) Rec. 709, in the same counts."""
    return pixels.astype(np.float64) @ np.array(LUMINANCE)


def _full_scale(dtype: np.dtype, bits: int) -> float | None:
    return float(2 ** int(bits) - 1) if dtype.kind == "u" else None


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
