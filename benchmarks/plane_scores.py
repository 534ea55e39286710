"""Scores of a restored plane against the sharpest plane of its stack, tile by tile.

Registration and grey values are fitted to the truth in the same way for every method. Squared
errors are kept as sums over tiles, so that gains of any set of tiles and their intervals follow
from them, see `benchmarks.tiles`.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, shift
from scipy.signal import fftconvolve
from skimage.registration import phase_cross_correlation

from benchmarks.restoration_methods import INPUT, Estimate
from benchmarks.tiles import inner, shown_part, tile_sums
from micrographs.camera import estimate_camera
from psf.microscope import Microscope
from psf.synthesis import synthesize_with_loss

DETAIL_PX = (1.2, 2.4)  # widths of the Gaussians whose difference holds the finest detail
LARGEST_SHIFT_PX = 16.0  # a larger one is no drift between planes but a failed registration
# Widths of the Gaussians whose difference is registered. Finer structure is noise and the fixed
# pattern of the camera, wider one is illumination, and neither moves with the object.
STRUCTURE_PX = (2.0, 16.0)
UPSAMPLING = 20  # of the registration: shifts are found to a twentieth of a pixel
KINDS = ("in_focus", "as_is")  # the two comparisons; the first is the main one
FOCUS_PSF_PX = 63  # holds 98 % of the light at NA 0.14 and 1 um per pixel, and more elsewhere


@dataclass(frozen=True)
class Truth:
    """The sharpest plane of a stack."""

    image: np.ndarray  # (H, W)
    noise_variance: float  # of a pixel, at most
    focus_psf: np.ndarray  # (K, K) of an object in focus, without aberrations

    @property
    def ceiling_db(self) -> float:
        """Least SNR that this noisy plane would give to a perfect image of the object."""
        signal = inner(self.image).var() - self.noise_variance
        return float(10 * np.log10(signal / self.noise_variance)) if signal > 0 else 0.0

    @cached_property
    def errors_of_mean(self) -> float:
        """Squared differences of the plane to its mean, summed over the scored field."""
        field = inner(self.image)
        return float(np.square(field - field.mean()).sum())


def detail(plane: np.ndarray) -> float:
    """Variance of the fine detail of a plane (H, W)."""
    fine, coarse = (gaussian_filter(plane, width) for width in DETAIL_PX)
    return float((fine - coarse).var())


def make_truth(image: np.ndarray, neighbours: list[np.ndarray], microscope: Microscope) -> Truth:
    """Truth of the sharpest plane (H, W) of a stack, and the planes beside it.

    The variance of its noise is that of the camera. It is at most half the mean square difference
    to a plane beside it, since that holds the noise of both.
    """
    camera = estimate_camera(torch.from_numpy(image).float())
    light = max(float(image.mean()) - camera.offset_counts, 0.0)
    variances = [(camera.gain_counts_per_e or 0.0) * light]
    for plane in neighbours:
        errors = squared_errors(plane, offset_px(plane, image), image)
        variances.append(float(errors.mean()) / 2)
    psf, _ = synthesize_with_loss("zernike1d", torch.zeros(1, 1), microscope, FOCUS_PSF_PX)
    return Truth(image, min(variances), psf[0].double().numpy())


def in_focus(objects: np.ndarray, psf: np.ndarray) -> np.ndarray:
    """Image (H, W) of objects (H, W) in focus."""
    padded = np.pad(objects, len(psf) // 2, mode="edge")
    return fftconvolve(padded, psf, mode="valid")


def score(
    estimate: Estimate, method: str, truth: Truth, plane_offset: np.ndarray
) -> tuple[dict[str, Any], np.ndarray]:
    """Squared errors of an estimate by tile, for both comparisons, and a detail of it.

    The estimate is moved by the shift that registers it, or by that of its blurred plane, whichever
    leaves less error: a blind method may move the object, and a failed registration must not decide
    the score.
    """
    found = again = estimate.objects.double().cpu().numpy()
    offsets = [plane_offset]
    if method != INPUT:  # which is an image already
        again = in_focus(found, truth.focus_psf)
        offsets.append(offset_px(again, truth.image))
    fits = [(squared_errors(again, offset, truth.image), offset) for offset in offsets]
    best, offset = min(fits, key=lambda fit: fit[0].sum())
    as_is = best if method == INPUT else squared_errors(found, offset, truth.image)
    pairs = zip(KINDS, (best, as_is), strict=True)
    errors = {kind: tile_sums(one).ravel().tolist() for kind, one in pairs}
    facts = {"errors": errors, "shift_px": offset.tolist(), **estimate.facts}
    return facts, found[shown_part(truth.image)]


def squared_errors(found: np.ndarray, offset: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Squared errors of the scored field after a shift (y, x) in px and a fit of grey values."""
    moved = shift(found, offset, order=3, mode="nearest")
    slope, intercept = np.polyfit(inner(moved).ravel(), inner(truth).ravel(), 1)
    return np.square(inner(slope * moved + intercept - truth))


def offset_px(image: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Shift (y, x) in px that moves an image onto the truth; 0 if none is found.

    It is the peak of the cross-correlation of their structure. Phase correlation, which weights all
    frequencies alike, finds the fixed pattern of the camera and not the shift of a blurred object.
    """
    window = np.outer(*(np.hanning(length) for length in truth.shape))
    parts = []
    for one in (truth, image):
        fine, coarse = (gaussian_filter(one, width) for width in STRUCTURE_PX)
        parts.append((fine - coarse) * window)
    found = phase_cross_correlation(*parts, upsample_factor=UPSAMPLING, normalization=None)[0]
    return found if np.abs(found).max() <= LARGEST_SHIFT_PX else np.zeros(2)


def gain_db(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Gain in SNR from squared errors."""
    return 10 * np.log10(before / after)
