"""What the readers of vendors' formats share: planes that an optional package decodes."""

from pathlib import Path

import numpy as np

from micrographs.files import AXES, LUMINANCE, Index, choose_series, full_scale, luminance
from micrographs.formats import foreign_errors
from micrographs.metadata import Calibration, OpticsFacts, facts_of
from micrographs.units import Found
from psf.errors import InputError

# A damaged header may promise any number of pixels, which a reader would fill with zeros. Scans
# with gaps between their tiles stay far below this ratio of a plane to its file.
MOST_PACKED = 1000


class PlaneSource:
    """One image of a file, plane by plane; a subclass reads the planes and finds the facts.

    Parameters
    ----------
    images : name, and height and width, of every image in the file
    """

    def __init__(
        self, path: Path, images: list[tuple[str, tuple[int, int]]], series: int | None
    ) -> None:
        if not images:
            raise InputError(f"{path} holds no image.")
        self._path = path
        self.series, self.notes = choose_series(path, images, series)
        self.shape = images[self.series][1]
        self.names: list[str] = []
        self._held: tuple[tuple[int, int, int], np.ndarray] | None = None  # the last plane

    def set_up(self, sizes: dict[str, int], dtype: np.dtype, bits: int, samples: int) -> None:
        """Take over the sizes of the axes; refuse axes and pixels that have no meaning here."""
        odd = [axis for axis, size in sizes.items() if axis not in "CZTYXS" and size > 1]
        if odd or min(self.shape) < 1:
            raise InputError(
                f"{self._path} has the axes {', '.join(f'{a} ({n})' for a, n in sizes.items())}; "
                "only C, Z, T, Y and X are known. Export one image as OME-TIFF."
            )
        if dtype.kind not in "buif":
            raise InputError(f"{self._path} has pixels of type {dtype}; intensities are real.")
        plane_bytes = self.shape[0] * self.shape[1] * samples * dtype.itemsize
        if plane_bytes > MOST_PACKED * self._path.stat().st_size:
            raise ValueError(f"a plane of {plane_bytes} bytes cannot be packed so tightly")
        self.sizes = {axis: sizes.get(axis, 1) for axis in AXES}
        self.is_colour = samples >= len(LUMINANCE)
        if self.is_colour and self.sizes["C"] > 1:
            raise InputError(f"{self._path} has several channels of colours; export them as TIFF.")
        if self.is_colour:
            self.sizes["C"] = len(LUMINANCE)
        self.full_scale = full_scale(dtype, bits)

    def read_plane(self, channel: int, z: int, t: int, start: int, stop: int) -> np.ndarray:
        """Rows of one plane, (stop - start, W) or (stop - start, W, samples), red first."""
        raise NotImplementedError

    def find_facts(self, channel: int) -> Found:
        """Facts of one channel; may raise anything on odd metadata."""
        raise NotImplementedError

    def check_plane(self, index: Index) -> None:
        """Nothing: damage shows when the rows are read."""

    def rows(self, index: Index, start: int, stop: int) -> np.ndarray:
        """Rows of one channel, one colour or the luminance, (stop - start, W)."""
        channel, z, t = index
        with foreign_errors():
            pixels = self.read_plane(0 if self.is_colour else channel or 0, z, t, start, stop)
        if not self.is_colour:
            return pixels.reshape(stop - start, self.shape[1])
        return luminance(pixels[..., :3]) if channel is None else pixels[..., channel]

    def facts(self, channel: int) -> OpticsFacts:
        """Optics of one channel, as the file states them."""
        return facts_of(self._found(0 if self.is_colour else channel))

    def calibration(self) -> Calibration:
        """Scale and names of all planes."""
        found = self._found(0)
        step, interval = (found.get(name, (None,))[0] for name in ("z_step_um", "frame_interval_s"))
        names = tuple(self.names)
        names = names if len(names) == self.sizes["C"] and all(names) else ()
        return Calibration(step, interval, names)

    def _found(self, channel: int) -> Found:
        try:
            with foreign_errors():
                return self.find_facts(channel)
        except ValueError:  # pixels are there without their metadata, and flags can replace them
            return {}

    def close(self) -> None:
        """Close the file."""
        raise NotImplementedError


class WholePlaneSource(PlaneSource):
    """A source whose package decodes a plane as a whole; the last one is kept."""

    def decode(self, channel: int, z: int, t: int) -> np.ndarray:
        """One whole plane, (H, W) or (H, W, samples), red first."""
        raise NotImplementedError

    def read_plane(self, channel: int, z: int, t: int, start: int, stop: int) -> np.ndarray:
        """Rows of the plane that was decoded last, or of a new one."""
        key = (channel, z, t)
        if self._held is None or self._held[0] != key:
            self._held = None  # frees the memory before more is taken
            self._held = (key, self.decode(channel, z, t))
        return self._held[1][start:stop]
