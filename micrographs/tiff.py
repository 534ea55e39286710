"""A TIFF as channels x planes in z x time points, in the counts of the file."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile

from micrographs.files import (
    AXES,
    LUMINANCE,
    Index,
    choose_series,
    complaints_of_tifffile,
    full_scale,
    luminance,
)
from micrographs.metadata import Calibration, OpticsFacts
from micrographs.ome import ome_root
from micrographs.tiff_metadata import calibration_of, channel_names, optics_facts, significant_bits
from micrographs.tiff_rows import JPEG_FAMILY, TiffPlanes
from psf.errors import InputError

# Colours as inks or as positions in a colour space. tifffile turns YCbCr into RGB only in JPEGs.
INKS = (tifffile.PHOTOMETRIC.SEPARATED, tifffile.PHOTOMETRIC.CIELAB, tifffile.PHOTOMETRIC.ICCLAB)
INKS += (tifffile.PHOTOMETRIC.ITULAB, tifffile.PHOTOMETRIC.LOGLUV)
OPACITIES = (tifffile.EXTRASAMPLE.ASSOCALPHA, tifffile.EXTRASAMPLE.UNASSALPHA)
# tifffile logs these as errors although all pixels can be read.
HARMLESS_COMPLAINTS = ("TiffTag.fromfile", "OME series raised")
DESCRIPTION_LOST = "TiffTag 270 "  # the OME-XML, written last: the file was cut off


class TiffSource:
    """One series (image) of a TIFF: channels x planes in z x time points.

    Of a pyramid it is the level with all pixels. `series` is the number of the image in the file.
    """

    def __init__(self, path: Path, series: int | None = None):
        with complaints_of_tifffile() as complaints:
            self._tiff = tifffile.TiffFile(path)
            try:
                count = len(self._tiff.pages)  # walks the whole chain, which shows if it is broken
                found = self._tiff.series if count else []
                bad = [c for c in complaints if not _is_harmless(c)]
                if bad or not found:
                    raise ValueError(_plain_complaint(bad[0]) if bad else "no image in the file")
                self._set_up(path, found, series)
            except BaseException:
                self._tiff.close()
                raise

    def _set_up(self, path: Path, found: list[tifffile.TiffPageSeries], asked: int | None) -> None:
        images = [
            (one.name, (p.imagelength, p.imagewidth)) for one in found for p in [one.keyframe]
        ]
        self.series, notes = choose_series(path, images, asked)
        series = found[self.series]
        page = series.keyframe
        _check_page(path, page)
        self._planes = TiffPlanes(series)
        self.shape = (self._planes.height, self._planes.width)
        self.names = channel_names(self._tiff, self.series)
        self.is_colour = self._planes.samples >= len(LUMINANCE) and page.photometric in (
            tifffile.PHOTOMETRIC.RGB,
            tifffile.PHOTOMETRIC.YCBCR,
        )
        self._set_axes(path, series)
        stored = page.bitspersample  # one number for each sample where they differ (RGB 565)
        bits = significant_bits(self._tiff, self.series) or np.max(stored)
        self.full_scale = full_scale(page.dtype, bits)
        self._is_inverted = page.photometric == tifffile.PHOTOMETRIC.MINISWHITE
        self.notes = (*notes, *self._oddities(page))
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

    def _oddities(self, page: tifffile.TiffPage) -> Iterator[str]:
        if self._is_inverted:
            yield "zero is white in this file (MinIsWhite); it is inverted"
        if page.photometric == tifffile.PHOTOMETRIC.PALETTE:
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
        pixels = luminance(pixels) if index[0] is None else pixels[..., 0]
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
        return optics_facts(self._tiff, self.series, 0 if self.is_colour else channel)

    def calibration(self) -> Calibration:
        """Scale and names of all planes."""
        return calibration_of(self._tiff, self.series, self.sizes["C"])

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
    if page.photometric in INKS or (
        page.photometric == tifffile.PHOTOMETRIC.YCBCR and page.compression not in JPEG_FAMILY
    ):
        raise InputError(
            f"{path} stores its colours as {page.photometric.name}, not as intensities; save it as "
            "RGB or grey."
        )
    if page.shaped[1] > 1:
        raise InputError(f"{path} keeps several planes in one page; save it with a page for each.")


def _is_harmless(complaint: str) -> bool:
    return DESCRIPTION_LOST not in complaint and any(h in complaint for h in HARMLESS_COMPLAINTS)


def _plain_complaint(message: str) -> str:
    """Complaint of tifffile without the name of its object in front."""
    return message.partition("> ")[2] or message
