"""Rows of one plane of a TIFF, decoding only the strips or tiles that hold them."""

import math
from collections import OrderedDict
from collections.abc import Iterator

import numpy as np
import tifffile

# Decoded strips and tiles that are kept for the next rows: a band of tiles of 512 rows across
# 16,000 pixels of 16 bits takes 16 MB. The last one is kept whatever its size.
CACHE_BYTES = 2**26
# Strips and tiles above the first size must not be packed tighter than this, or a wrong number in a
# header would claim all memory. Deflate packs at most 1032 times, and zstd 30,000 times where all
# pixels are equal.
SMALL_BYTES, MOST_PACKED = 2**26, 2**14
JPEG_FAMILY = (6, 7, 34892, 33007)  # compressions whose tables stand outside their tiles


class TiffPlanes:
    """The planes of a TIFF series, in the order of its outer axes.

    Errors of the file show as one of DECODE_ERRORS.
    """

    def __init__(self, series: tifffile.TiffPageSeries):
        self.series = series
        self.keyframe = series.keyframe
        separate, _, self.height, self.width, contiguous = self.keyframe.shaped
        self.is_separate = separate > 1  # each sample is a plane of its own, one after the other
        self.samples = separate * contiguous
        byte_order = self.keyframe.parent.byteorder
        self._stored = np.dtype(self.keyframe.dtype).newbyteorder(byte_order)
        self.count = math.prod(series.get_shape(squeeze=False)) // math.prod(self.keyframe.shape)
        self._start = series.dataoffset  # of all planes in a row; None where they are scattered
        self._is_packed = not self.keyframe.is_final  # compressed, tiled or packed into bits
        self._opened: list[tifffile.FileHandle] = []  # of other files of a set
        self._cache: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()

    def check_plane(self, number: int) -> None:
        """Raise ValueError if a plane is missing, reaches beyond the file or has no decoder."""
        if not self._is_packed:
            handle, start = self._place(number)
            end = start + self.keyframe.nbytes
        else:
            self.keyframe.decode(None, 0)  # raises if there is no decoder
            page = self._page(number)
            handle = page.parent.filehandle
            pairs = zip(page.dataoffsets, page.databytecounts, strict=True)
            end = max((start + count for start, count in pairs), default=0)
            if end == 0:
                raise ValueError("no pixels in the file")
            self._check_segments(page)
        if end > handle.size:
            raise ValueError(f"the pixels end at byte {end}, the file at {handle.size}")

    def _check_segments(self, page: tifffile.TiffPage | tifffile.TiffFrame) -> None:
        """Raise ValueError if the header promises more pixels than its strips or tiles can hold."""
        first = self.keyframe
        length = first.tilelength if first.is_tiled else min(first.rowsperstrip, self.height)
        width = first.tilewidth if first.is_tiled else self.width
        planes = self.samples if self.is_separate else 1
        needed = planes * math.ceil(self.height / length) * math.ceil(self.width / width)
        if needed > len(page.databytecounts):
            raise ValueError(
                f"{needed} strips or tiles are needed, {len(page.databytecounts)} held"
            )
        decoded = length * width * (self.samples // planes) * self._stored.itemsize
        if decoded > max(SMALL_BYTES, MOST_PACKED * max(page.databytecounts)):
            raise ValueError(f"a strip or tile of {decoded} bytes cannot be packed so tightly")

    def check_last(self) -> None:
        """Raise ValueError if the last plane that the file has reaches beyond its end."""
        if self._start is not None or self.series[-1] is not None:
            self.check_plane(self.count - 1)

    def rows(self, number: int, start: int, stop: int, samples: range) -> np.ndarray:
        """Rows of one plane, (stop - start, W, samples), native byte order."""
        if self._is_packed:
            return self._decoded_rows(number, start, stop, samples)
        handle, origin = self._place(number)
        if not self.is_separate:
            pixels = self._raw_rows(handle, origin, start, stop, self.samples)
            return pixels[..., samples.start : samples.stop]
        plane_bytes = self.keyframe.nbytes // self.samples
        planes = [
            self._raw_rows(handle, origin + sample * plane_bytes, start, stop, 1)
            for sample in samples
        ]
        return np.concatenate(planes, axis=-1)

    def close(self) -> None:
        """Close the other files of a set; the first one belongs to the caller."""
        for handle in self._opened:
            handle.close()
        self._opened.clear()
        self._cache.clear()

    def _place(self, number: int) -> tuple[tifffile.FileHandle, int]:
        """File and first byte of a plane that is stored as it is."""
        if self._start is not None:
            return self.keyframe.parent.filehandle, self._start + number * self.keyframe.nbytes
        page = self._page(number)
        return page.parent.filehandle, page.dataoffsets[0]

    def _page(self, number: int) -> tifffile.TiffPage | tifffile.TiffFrame:
        page = self.series[number] if number < len(self.series) else None
        if page is None:
            raise ValueError("this plane is missing in the file (or in a file of its set)")
        handle = page.parent.filehandle
        if handle.closed:
            handle.open()
            self._opened.append(handle)
        return page

    def _raw_rows(
        self, handle: tifffile.FileHandle, origin: int, start: int, stop: int, samples: int
    ) -> np.ndarray:
        row = self.width * samples
        handle.seek(origin + start * row * self._stored.itemsize)
        count = (stop - start) * row
        data = handle.read(count * self._stored.itemsize)
        if len(data) < count * self._stored.itemsize:
            raise ValueError("the pixels reach beyond the end of the file")
        pixels = np.frombuffer(data, self._stored).reshape(stop - start, self.width, samples)
        return pixels.astype(self._stored.newbyteorder("="), copy=False)

    def _decoded_rows(self, number: int, start: int, stop: int, samples: range) -> np.ndarray:
        dtype = self._stored.newbyteorder("=")
        pixels = np.zeros((stop - start, self.width, len(samples)), dtype)
        planes = samples if self.is_separate else [0]
        for place, plane in enumerate(planes):
            for segment in self._segments(plane, start, stop):
                decoded, row, column = self._segment(number, segment)
                if decoded is None:  # left out of the file: zeros
                    continue
                top, bottom = max(row, start), min(row + len(decoded), stop)
                right = min(column + decoded.shape[1], self.width)
                part = decoded[top - row : bottom - row, : right - column]
                if self.is_separate:
                    pixels[top - start : bottom - start, column:right, place] = part[..., 0]
                else:
                    part = part[..., samples.start : samples.stop]
                    pixels[top - start : bottom - start, column:right] = part
        return pixels

    def _segments(self, plane: int, start: int, stop: int) -> Iterator[int]:
        """Numbers of the strips or tiles of a plane that hold the rows."""
        page = self.keyframe
        length = page.tilelength if page.is_tiled else page.rowsperstrip
        across = math.ceil(self.width / page.tilewidth) if page.is_tiled else 1
        down = math.ceil(self.height / length)
        first = (plane * down + start // length) * across
        yield from range(first, (plane * down + math.ceil(stop / length)) * across)

    def _segment(self, number: int, segment: int) -> tuple[np.ndarray | None, int, int]:
        """One decoded strip or tile (h, w, samples), None if empty, and its first row, column."""
        page = self._page(number)
        held = self._cache.get((number, segment))
        if held is not None:
            self._cache.move_to_end((number, segment))
        data, count = None, page.databytecounts[segment]
        if held is None and count and page.dataoffsets[segment]:
            handle = page.parent.filehandle
            handle.seek(page.dataoffsets[segment])
            data = handle.read(count)
            if len(data) < count:
                raise ValueError("the pixels reach beyond the end of the file")
        keyframe, tables = page.keyframe, {}
        if keyframe.compression in JPEG_FAMILY:
            tables = {"jpegtables": page.jpegtables, "jpegheader": keyframe.jpegheader}
        decoded, (_, _, row, column, _), _ = keyframe.decode(data, segment, **tables)
        if decoded is not None:
            held = decoded[0]
            self._keep((number, segment), held)
        return held, row, column

    def _keep(self, key: tuple[int, int], decoded: np.ndarray) -> None:
        self._cache[key] = decoded
        while len(self._cache) > 1 and sum(a.nbytes for a in self._cache.values()) > CACHE_BYTES:
            self._cache.popitem(last=False)
