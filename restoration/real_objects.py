"""Real micrographs that installed packages hold, as sharp objects for restorations of known truth.

Each is binned until it is sharp at one pixel: see LEAST_SHARP. No network of this project trains on
them. The stains belong to the test image `immunohistochemistry`, so they are other views of one
section. Left out for their size or sharpness: `microaneurysms` (102 px) and `cell` (blurred even
when binned by three) of scikit-image.
"""

import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image
from skimage import color, data, transform

BANDS = ((0.40, 0.45), (0.02, 0.05))  # cycles per pixel, whose powers are compared
# Least ratio of these powers that counts as sharp. A Gaussian of 1.4 px FWHM brings the four
# photographs of the test split to 0.4e-4 to 1.7e-4.
LEAST_SHARP = 5e-5
BRIGHTEST = 99.9  # percentile that becomes 1, so that a hot pixel does not darken the rest


def _stain(number: int) -> np.ndarray:
    """Optical density of one of the stains haematoxylin, eosin, DAB."""
    return color.rgb2hed(data.immunohistochemistry())[..., number]


def _file(package: str, path: str) -> Path:
    """File of an installed package, which is not imported for it."""
    spec = importlib.util.find_spec(package)
    return Path(spec.submodule_search_locations[0]) / path


def _nuclei_mahotas() -> np.ndarray:
    with Image.open(_file("mahotas", "demos/data/nuclear.png")) as image:
        return _binned(np.asarray(image.convert("L")), 4)


def _nuclei_dsb2018() -> np.ndarray:
    return _binned(tifffile.imread(_file("stardist", "data/images/img2d.tif")), 2)


def _histology() -> np.ndarray:
    with Image.open(_file("stardist", "data/images/histo.jpg")) as image:
        return np.asarray(image.convert("L"))


def _binned(image: np.ndarray, factor: int) -> np.ndarray:
    rows, columns = (length - length % factor for length in image.shape)
    return transform.downscale_local_mean(image[:rows, :columns].astype(float), (factor, factor))


# by name: the package that holds it, and a function that reads it
_MICROGRAPHS: dict[str, tuple[str, Callable[[], np.ndarray]]] = {
    "haematoxylin": ("skimage", lambda: _stain(0)),
    "DAB": ("skimage", lambda: _stain(2)),
    "nuclei_mahotas": ("mahotas", _nuclei_mahotas),  # fluorescence of DNA
    "nuclei_dsb2018": ("stardist", _nuclei_dsb2018),  # fluorescence, Data Science Bowl 2018
    "histology": ("stardist", _histology),  # haematoxylin and eosin
}
MICROGRAPHS = tuple(_MICROGRAPHS)


def installed_micrographs() -> list[str]:
    """Names of the micrographs whose package is installed."""
    return [name for name in MICROGRAPHS if importlib.util.find_spec(_MICROGRAPHS[name][0])]


@cache
def read_micrograph(name: str) -> np.ndarray:
    """Micrograph (H, W) float32 in [0, 1]; do not write into it."""
    image = _MICROGRAPHS[name][1]().astype(np.float32)
    low, high = image.min(), np.percentile(image, BRIGHTEST)
    return ((image - low) / (high - low)).clip(0, 1)


def fine_detail(image: np.ndarray) -> float:
    """Power at the frequencies of the first of BANDS, as a share of that of the second."""
    edge = min(image.shape)
    part = image[:edge, :edge] - image[:edge, :edge].mean()
    power = np.abs(np.fft.fft2(part * np.outer(np.hanning(edge), np.hanning(edge)))) ** 2
    line = np.fft.fftfreq(edge)
    radius = np.hypot(line[:, None], line)
    fine, coarse = (power[(low <= radius) & (radius < high)].mean() for low, high in BANDS)
    return float(fine / coarse)
