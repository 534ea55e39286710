"""What a map says of one place: parameters, PSF, and the spectrum from which they were read."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import nnls

from models.data import normalise
from models.map_image import network_image
from models.map_result import MapResult
from models.recording import Recording
from models.spectrum import welch_spectrum
from psf.model import PsfModel
from psf.synthesis import synthesize

PSF_PX = 49  # edge of the PSF that is shown; it holds the rings of 4 waves at the Nyquist pixel
BINS = 40  # of the radial mean, from frequency 0 to that of Nyquist
# Slopes of the object's power spectrum that are tried; those of photographs lie around 2.
SLOPES = np.linspace(0.0, 4.0, 17)
# Lower frequencies, as a share of the cut-off, are left out of the fit: the window blurs them.
LOWEST_SHARE = 0.06


@dataclass(frozen=True)
class Spectrum:
    """Means of a patch's power spectrum over sectors of directions, and the model's over them."""

    frequency: np.ndarray  # (B,) cycles per um
    names: tuple[str, ...]  # of the D sectors
    measured: np.ndarray  # (D, B) power of the patch at variance 1; NaN in empty bins
    model: np.ndarray  # (D, B) power-law object times |OTF|^2, plus white noise
    cutoff: float  # of the optics, cycles per um; NaN for a blur in pixels


@dataclass(frozen=True)
class Point:
    """The patch whose centre is nearest to a place of the image."""

    row: int  # of the patch in the map
    column: int
    lines: tuple[str, ...]  # parameters with error bars, content and depth, for the user
    psf: np.ndarray  # (PSF_PX, PSF_PX)
    pixel_um: float  # of the PSF
    spectrum: Spectrum


def point_at(recording: Recording, result: MapResult, y_px: float, x_px: float) -> Point | None:
    """The patch of a map at a place of the image, in pixels; None outside of all patches.

    The recording must be open, since the pixels of the patch are read from it.
    """
    psf_map = result.found.patches
    row, y_apart = _nearest(psf_map.rows, y_px)
    column, x_apart = _nearest(psf_map.columns, x_px)
    if max(y_apart, x_apart) > recording.patch_px / 2:
        return None
    # The pixels that the network sees: those of the file, or fewer where these are finer.
    optics = recording.resampling.microscope(recording.microscope)
    low, high = torch.tensor(psf_map.model.label_ranges).T
    labels = result.found.smooth.values[:, row, column].clamp(low, high)
    patch = patch_at(recording, row, column)
    psf = synthesize(psf_map.model, labels[None], optics, len(patch) - 1)[0]
    cutoff = np.nan if psf_map.model.is_gaussian else optics.cutoff_cycles_per_pixel
    sectors = ("along x", "along y") if is_directed(psf_map.model) else ("all directions",)
    middle = slice(len(psf) // 2 - PSF_PX // 2, len(psf) // 2 + PSF_PX // 2 + 1)
    return Point(
        row,
        column,
        tuple(lines_at(result, row, column)),
        psf[middle, middle].numpy(),
        optics.pixel_size_um,
        spectrum_of(patch, psf, optics.pixel_size_um, cutoff, sectors),
    )


def is_directed(model: PsfModel) -> bool:
    """Whether the PSF of a model may be wider along one axis than along the other."""
    return len(model.label_names) > 1 or model.name == "astigmatic"


def patch_at(recording: Recording, row: int, column: int) -> torch.Tensor:
    """Pixels (K, K) of a patch of the map, as the network sees them."""
    image, size = network_image(recording, recording.micrograph), recording.estimator.patch_size
    top, left = row * recording.stride_px, column * recording.stride_px
    return image.rows(top, top + size)[:, left : left + size]


def lines_at(result: MapResult, row: int, column: int) -> list[str]:
    """Values of a patch with their 68 % error bars, a line each."""
    found, smooth = result.found, result.found.smooth
    lines = [
        f"{name} {float(v[row, column]):.2f} ± {float(s[row, column]):.2f} {smooth.unit}"
        for name, v, s in zip(smooth.names, smooth.values, smooth.standard_deviations, strict=True)
    ]
    if result.depth is not None:
        name, unit = result.depth.name.removesuffix(")").split(" (")
        values, deviations = result.depth[:2]
        lines.append(f"{name} {values[row, column]:.2f} ± {deviations[row, column]:.2f} {unit}")
    content = float(found.patches.content[row, column])
    lines.append(
        f"content {content:.0%}" + ("" if content >= 0.5 else ": nothing to estimate from")
    )
    return lines


def spectrum_of(
    patch: torch.Tensor,
    psf: torch.Tensor,
    pixel_um: float,
    cutoff_cycles_per_px: float,
    sectors: tuple[str, ...] = ("all directions",),
) -> Spectrum:
    """Power spectrum of a patch (K, K), and the model fitted to it.

    The model is a f^-b |OTF|^2 + c: an object whose power falls with frequency, seen through the
    PSF, and white noise. Its three numbers are fitted to the relative error of the power.

    Parameters
    ----------
    psf : at most (K, K), centred
    pixel_um : of patch and PSF
    cutoff_cycles_per_px : of the optics; NaN for a blur in pixels
    sectors : one name for the mean over all directions, or those of the sectors around x and y
    """
    window = len(patch) // 2 * 2
    power = welch_spectrum(normalise(patch[None].float()), window)[0].double().numpy()
    otf = torch.fft.rfft2(psf.double(), s=(window, window)).abs().square()
    otf = torch.fft.fftshift(otf, dim=0).numpy()
    fy = np.arange(-window // 2, window // 2)[:, None] / window
    fx = np.arange(window // 2 + 1) / window
    radius = np.hypot(fy, fx)
    edges = np.linspace(0, 0.5, BINS + 1)
    along_x = np.abs(fy) <= fx
    masks = (along_x, ~along_x) if len(sectors) == 2 else (np.ones_like(along_x),)
    frequency, measured, seen = (edges[1:] + edges[:-1]) / 2, [], []
    for mask in masks:
        measured.append(_means(power, radius, mask, edges))
        seen.append(_means(otf, radius, mask, edges))
    lowest = LOWEST_SHARE * (0.5 if np.isnan(cutoff_cycles_per_px) else cutoff_cycles_per_px)
    model = _fitted(frequency, np.array(measured), np.array(seen), lowest)
    per_um = 1 / pixel_um
    return Spectrum(
        frequency * per_um, sectors, np.array(measured), model, cutoff_cycles_per_px * per_um
    )


def _means(
    power: np.ndarray, radius: np.ndarray, mask: np.ndarray, edges: np.ndarray
) -> np.ndarray:
    """Means (B,) of a spectrum in rings of a sector; NaN in empty ones."""
    numbers = np.histogram(radius[mask], edges)[0]
    sums = np.histogram(radius[mask], edges, weights=power[mask])[0]
    return np.divide(sums, numbers, out=np.full(len(sums), np.nan), where=numbers > 0)


def _fitted(
    frequency: np.ndarray, measured: np.ndarray, seen: np.ndarray, lowest: float
) -> np.ndarray:
    """Model (D, B) of least relative error to measured power (D, B), for |OTF|^2 (D, B)."""
    used = np.isfinite(measured) & (frequency > lowest) & (measured > 0)
    best, model = np.inf, np.full_like(measured, np.nan)
    for slope in SLOPES:
        shape = seen * np.maximum(frequency, lowest) ** -slope
        columns = np.stack([shape[used], np.ones(used.sum())], 1) / measured[used][:, None]
        (scale, noise), error = nnls(columns, np.ones(used.sum()))
        if error < best:
            best, model = error, scale * shape + noise
    return np.where(frequency > lowest, model, np.nan)


def _nearest(places: torch.Tensor, at: float) -> tuple[int, float]:
    """Number of the place nearest to `at`, and its distance."""
    apart = (places - at).abs()
    return int(apart.argmin()), float(apart.min())
