"""Images with finer pixels than a network was trained for, brought to its pixel size.

Binning is exact: the mean of a group of pixels is what a larger pixel records. Coarse pixels show
the network more of the object and more photons per pixel, which helps more than the finest detail.
A low-pass interpolation follows where one binning leaves the pixels too fine and the next makes
them too coarse.
"""

import math
from dataclasses import astuple, dataclass

import numpy as np
import torch
from scipy import sparse

from models.mapping import Image
from psf.errors import InputError
from psf.microscope import Microscope, simulated_microscopes

LOBES = 6  # of the Lanczos kernel on either side: waves come out within 1 %, see the tests
# Highest cut-off after binning, cycles per px: 1.7 times Nyquist, twice the finest sampling of the
# shipped networks, so that a whole binning always fits. On 200 held-out patches each of seven
# common objectives and cameras, `zernike1d_tilted` reads binned images (1.06 to 1.6 times Nyquist)
# with R^2 0.97 to 0.998 at 1000 photons per pixel, and images interpolated to 0.87 times Nyquist
# with 0.87 to 0.96.
COARSEST = 0.85
# Cut-off after an interpolation, cycles per px, 1.15 times Nyquist. On the same patches R^2 is 0.96
# to 0.999, against 0.90 to 0.99 at Nyquist.
INTERPOLATED = 0.575


@dataclass(frozen=True)
class Resampling:
    """How an image is brought to the sampling of a network."""

    binning: int = 1  # camera pixels per side that are averaged as one
    scale: float = 1.0  # pixels after the interpolation per pixel before it, at most 1

    @property
    def factor(self) -> float:
        """Camera pixels per pixel that the network sees."""
        return self.binning / self.scale

    def microscope(self, microscope: Microscope) -> Microscope:
        """Optics with the pixel that the network sees."""
        if self.factor == 1:
            return microscope
        na, wavelength_um, pixel_um, index = astuple(microscope)
        # No warning of coarse pixels: they are chosen here, and the notes tell the user.
        return simulated_microscopes([(na, wavelength_um, pixel_um * self.factor, index)])[0]

    def describe(self) -> str:
        """What is done, for people."""
        parts = []
        if self.binning > 1:
            parts.append(f"binned {self.binning} x {self.binning}")
        if self.scale < 1:
            parts.append(f"resampled to {1 / self.scale:.3f} times the pixel size")
        return " and ".join(parts) or "as it is"


def fit_resampling(
    microscope: Microscope, cutoff_limits: tuple[float, float], largest_factor: float = math.inf
) -> Resampling:
    """Choose the binning, and the interpolation if need be, for a network.

    Parameters
    ----------
    cutoff_limits : lowest and highest cut-off frequency of the training, cycles per px
    largest_factor : camera pixels per pixel of the network at which a small image still holds a
        patch; larger factors are taken only where the network needs them

    Returns
    -------
    Resampling
        It changes nothing where the pixels fit, or are too coarse: detail cannot be added.
    """
    low, high = cutoff_limits
    cutoff = microscope.cutoff_cycles_per_pixel
    if cutoff >= low:
        return Resampling()
    binning = math.ceil(low / cutoff)
    if binning * cutoff <= min(high, COARSEST) and binning <= largest_factor:
        return Resampling(binning)
    target = min(INTERPOLATED, high, largest_factor * cutoff)
    target = max(target, low)
    binning = math.floor(target / cutoff)
    return Resampling(binning, binning * cutoff / target)


class ResampledImage:
    """An image brought to another sampling, band by band."""

    def __init__(self, image: Image, resampling: Resampling) -> None:
        self.image, self.resampling = image, resampling
        self._along_y, self._along_x = (
            interpolation(n // resampling.binning, resampling.scale) for n in image.shape
        )

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width after the resampling, px."""
        return self._along_y.shape[0], self._along_x.shape[0]

    @property
    def usable(self) -> "ResampledImage | None":
        """Share of usable pixels, resampled, if the image knows its outliers."""
        usable = getattr(self.image, "usable", None)
        return None if usable is None else ResampledImage(usable, self.resampling)

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Rows start to stop of the resampled image."""
        binning = self.resampling.binning
        needed = self._along_y[start:stop]
        first, last = needed.indices.min(), needed.indices.max() + 1
        pixels = self.image.rows(int(first) * binning, int(last) * binning).numpy()
        width = self._along_x.shape[1]
        cells = pixels[:, : width * binning].reshape(last - first, binning, width, binning)
        binned = cells.mean((1, 3), dtype=np.float64)
        found = (self._along_x @ (needed[:, first:last] @ binned).T).T
        return torch.from_numpy(np.ascontiguousarray(found, dtype=np.float32))


def interpolation(count: int, scale: float) -> sparse.csr_matrix:
    """Matrix (round(count scale), count) of a Lanczos low-pass at the coarser Nyquist frequency.

    Output pixel j lies at (j + 1/2) / scale - 1/2; rows sum to one.
    """
    if scale == 1:
        return sparse.identity(count, format="csr")
    out = int(count * scale)
    if out < 1:
        raise InputError(f"an image of {count} px cannot be resampled by {scale:g}.")
    centres = (np.arange(out) + 0.5) / scale - 0.5
    reach = int(np.ceil(LOBES / scale))
    columns = np.floor(centres).astype(int)[:, None] + np.arange(-reach, reach + 2)
    distance = (columns - centres[:, None]) * scale
    weights = np.sinc(distance) * np.sinc(distance / LOBES) * (np.abs(distance) < LOBES)
    weights[(columns < 0) | (columns >= count)] = 0
    weights /= weights.sum(1, keepdims=True)
    rows = np.repeat(np.arange(out), columns.shape[1])
    columns = columns.clip(0, count - 1)
    return sparse.csr_matrix((weights.ravel(), (rows, columns.ravel())), shape=(out, count))
