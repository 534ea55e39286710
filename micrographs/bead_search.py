"""Where the bead of a stack lies, which square shows it, and which pixels of it can be fitted.

A hot pixel and a cosmic ray are sharper than any PSF of the microscope: their neighbours are too
dark for their height. A dead pixel is darker than the background, or than all of its neighbours in
the sum of the planes. Such pixels, and those without a value, get weight 0 in the fit.
"""

from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from scipy.ndimage import gaussian_filter, label, maximum_filter, median_filter, minimum_filter

from psf.bead import FEWEST_PLANES, SMALLEST_PX, border_level
from psf.bead_stack import Scene, unit_psfs
from psf.errors import InputError

SIGNAL_TO_NOISE = 5.0  # least height of a bead's smoothed peak, in units of the border's noise
# Aberrations seldom make a spot of the PSF sharper than the PSF in focus. With a factor of 1 no
# pixel of 36 simulated beads (up to 0.2 waves rms, 3 objectives) counts as an outlier.
SHARPER_THAN_PSF = 1.25
HOT_PLANES = 1 / 3  # share of the planes in which a pixel is an outlier, above which it always is
OUTLIER_SIGMAS = 8.0  # a smaller outlier hardly moves a fit, and photon noise makes some
DEAD_SHARE = 0.5  # of the darkest neighbour in the sum of planes, which has no such dark spot
MOST_MISSING = 0.5  # share of pixels without a value; the rest may still show a whole bead
MOST_OUTLIERS = 0.05  # share of the square; with more, the image is no camera image of a bead
SECOND_BEAD = 0.1  # height relative to the brightest bead; rings of one bead are lower
MOST_VOXELS = 600_000  # of the square by default; the fit takes about 1 kB for each
SATURATED_PX = 3  # equal to a full scale of the camera: one or two may be chance
PILE_PX = 5  # connected and equal to the highest value: even a symmetric peak has at most 4
RING = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]], bool)  # the 8 neighbours of a pixel


@dataclass(frozen=True)
class BeadView:
    """A square around one bead, in all planes."""

    electrons: np.ndarray  # (Z, K, K); unusable pixels have the median of their neighbours
    usable: np.ndarray  # (Z, K, K) bool, False: weight 0
    top: int  # first row of the square in the image
    left: int  # first column
    notes: tuple[str, ...]  # for the user


def find_bead(
    scene: Scene, electrons: np.ndarray, size: int = 0, full_scales: tuple[float, ...] = ()
) -> BeadView:
    """The brightest bead of a stack that lies wholly in the image and is not saturated.

    Parameters
    ----------
    electrons : (Z, H, W); pixels without a value are NaN or infinite
    size : edge of the square in px; 0: as large as the light of the bead, the planes and other
        beads allow
    full_scales : electrons at which a camera may saturate

    Raises
    ------
    InputError
        If the stack is too small or holds no such bead; it says why.
    """
    _check_size(electrons, size)
    usable = np.isfinite(electrons)
    missing = 1 - usable.mean()
    if missing > MOST_MISSING:
        raise InputError(
            f"{missing:.0%} of the pixels are NaN or infinite; crop the stack around one bead."
        )
    clean = _filled(np.where(usable, electrons, np.nan)) if missing else electrons.astype(float)
    usable &= ~find_outliers(scene, clean)
    clean = np.where(usable, clean, _ring_median(clean))
    beads = _whole_beads(scene, clean, usable, full_scales)
    first = beads.places[0]
    size = size or _default_size(scene, electrons.shape, first, beads.places[1:])
    top, left = (
        int(np.clip(at - size // 2, 0, edge - size))
        for at, edge in zip(first, electrons.shape[1:], strict=True)
    )
    square = np.s_[:, top : top + size, left : left + size]
    other, notes = _nearer_to_others(beads.places, top, left, size), list(beads.notes)
    usable = usable[square]
    notes += _outlier_notes(usable, np.isfinite(electrons[square]))
    if other.any():
        notes.append(
            f"{other.mean():.0%} of the square are nearer to another bead and get weight 0; a "
            "smaller --size leaves that bead out"
        )
    return BeadView(clean[square], usable & ~other, top, left, tuple(notes))


def _check_size(electrons: np.ndarray, size: int) -> None:
    """Refuse a stack that is too small for the fit."""
    planes, (height, width) = len(electrons), electrons.shape[1:]
    if planes < FEWEST_PLANES:
        raise InputError(
            f"the stack has {planes} plane{'s' if planes > 1 else ''} in z; a fit takes "
            f"{FEWEST_PLANES} or more."
        )
    if size > min(height, width):
        raise InputError(f"--size {size} does not fit planes of {height} x {width} px.")
    if min(height, width) < SMALLEST_PX or 0 < size < SMALLEST_PX or size < 0:
        raise InputError(
            f"the fit takes squares of at least {SMALLEST_PX} px (planes of {height} x {width} "
            f"px, --size {size})."
        )


# --- outliers


def find_outliers(scene: Scene, electrons: np.ndarray) -> np.ndarray:
    """True (Z, H, W) for hot and dead pixels and cosmic rays; they differ from any PSF."""
    background, sigma = border_level(electrons)
    ratio = SHARPER_THAN_PSF * sharpest_peak(scene)
    around = _ring_median(electrons)
    sigma = max(sigma, 1.4826 * float(np.median(np.abs(electrons - around))))  # of a Gaussian
    quantum = _quantum(electrons)
    # photon noise in units of the data; more than 1 where the gain was not given
    gain = max(1.0, sigma**2 / max(background, 1e-9)) if background > 0 else 1.0

    # The median of 8 values has about a fifth of the variance of one.
    spread = max(sigma, 1e-12) ** 2 * (1 + ratio**2 / 5)

    def limit(light: np.ndarray, planes: int) -> np.ndarray:
        """Largest deviation from the light of a PSF that noise explains."""
        return OUTLIER_SIGMAS * (np.sqrt(planes * spread + 2 * gain * light) + quantum)

    def is_hot(images: np.ndarray, ring: np.ndarray, base: float, planes: int) -> np.ndarray:
        light = ratio * np.maximum(ring - base, 0)
        return images - base > light + limit(light, planes)

    single = is_hot(electrons, around, background, 1)
    single |= background - electrons > OUTLIER_SIGMAS * (max(sigma, 1e-12) + quantum)
    planes = len(electrons)
    summed = np.where(single, around, electrons).sum(0, keepdims=True)
    base = background * planes
    ring = _ring_median(summed)
    always = is_hot(summed, ring, base, planes)
    darkest = minimum_filter(summed, footprint=RING[None], mode="mirror") - base
    noise = np.sqrt(planes * sigma**2 + gain * np.maximum(darkest, 0)) + quantum
    always |= DEAD_SHARE * darkest - (summed - base) > OUTLIER_SIGMAS * noise
    always |= single.mean(0, keepdims=True) > HOT_PLANES
    return single | always


def sharpest_peak(scene: Scene) -> float:
    """Largest ratio of the brightest pixel of a PSF in focus to the median of its 8 neighbours."""
    plain = replace(scene, light="scalar", modes=(), fit_na=False, bead_um=0.0)
    ratios = []
    for x_px, y_px in product((0.0, 0.25, 0.5), repeat=2):
        values = dict.fromkeys(plain.names, 0.0) | {"photons": 1.0, "x_px": x_px, "y_px": y_px}
        psf = unit_psfs(plain, values, 1, SMALLEST_PX + 1)[0]
        ring = median_filter(psf, footprint=RING, mode="mirror")
        row, column = np.unravel_index(psf.argmax(), psf.shape)
        ratios.append(float(psf[row, column] / ring[row, column]))
    return max(ratios)


def _ring_median(images: np.ndarray) -> np.ndarray:
    """Median of the 8 neighbours of each pixel in its plane."""
    return median_filter(images, footprint=RING[None], mode="mirror")


def _filled(images: np.ndarray) -> np.ndarray:
    """Images whose NaN are replaced by the median of their plane, or of the stack."""
    everywhere = float(np.nanmedian(images))
    known = np.isfinite(images).any((1, 2))
    levels = [
        float(np.nanmedian(p)) if k else everywhere for p, k in zip(images, known, strict=True)
    ]
    return np.where(np.isnan(images), np.array(levels)[:, None, None], images)


def _quantum(images: np.ndarray) -> float:
    """Smallest step between the values of the darkest pixels: one count, or nearly 0 for floats."""
    values = np.unique(images[: max(1, len(images) // 4)])[:1000]
    return float(np.diff(values).min()) if len(values) > 1 else 0.0


def _outlier_notes(usable: np.ndarray, finite: np.ndarray) -> list[str]:
    missing, outliers = int((~finite).sum()), int((~usable & finite).sum())
    if outliers > MOST_OUTLIERS * usable.size:
        raise InputError(
            f"{outliers / usable.size:.0%} of the pixels are sharper than a PSF can be: either the "
            "optics are wrong (--na, --wavelength-um, --pixel-size-um), or this is no raw stack of "
            "a bead."
        )
    notes = []
    if missing:
        notes.append(f"{missing} pixels are NaN or infinite; they get weight 0")
    if outliers:
        notes.append(
            f"{outliers} pixels ({outliers / usable.size:.2%}) are hot, dead or hit by cosmic "
            "rays (sharper than the PSF); they get weight 0"
        )
    return notes


# --- beads


@dataclass(frozen=True)
class _Beads:
    places: list[tuple[int, int]]  # (row, column), the chosen bead first
    notes: list[str]


def _whole_beads(
    scene: Scene, electrons: np.ndarray, usable: np.ndarray, full_scales: tuple[float, ...]
) -> _Beads:
    """Places of all beads of the stack; the first is the brightest one that can be fitted."""
    width = fwhm_px(scene)
    smooth = gaussian_filter(electrons, (0, max(1.0, width / 2.355), max(1.0, width / 2.355)))
    background, noise = border_level(smooth)
    highest = smooth.max(0)
    # the largest of N values of Gaussian noise lies at about sqrt(2 log N)
    least = max(SIGNAL_TO_NOISE, 1 + np.sqrt(2 * np.log(smooth.size))) * max(noise, 1e-12)
    least = max(least, SECOND_BEAD * float(highest.max() - background))
    reach = int(max(3, 2 * np.ceil(width)))
    peaks = (highest == maximum_filter(highest, 2 * reach + 1)) & (highest - background > least)
    places = sorted(np.argwhere(peaks).tolist(), key=lambda at: -highest[tuple(at)])
    if not places:
        raise InputError(
            "there is no bead in the stack: its brightest spot must exceed the background by "
            f"{SIGNAL_TO_NOISE:g} times the noise of the border. Give a stack around one bead."
        )
    top = float(electrons[usable].max())
    is_full = bool(np.isclose(top, full_scales, rtol=1e-9).any())
    at_top = usable & (electrons == top)
    reasons = [_why_not(at_top, is_full, tuple(at), width) for at in places]
    chosen = next((i for i, reason in enumerate(reasons) if not reason), None)
    if chosen is None:
        raise InputError(f"the bead at row {places[0][0]}, column {places[0][1]} {reasons[0]}.")
    notes = [
        f"the bead at row {places[i][0]}, column {places[i][1]} is skipped: it {reasons[i]}"
        for i in range(chosen)
    ]
    row, column = places[chosen]
    if len(places) > 1:
        notes.append(
            f"{len(places)} beads; the brightest one that can be fitted is at row {row}, column "
            f"{column}; for another one, crop the stack"
        )
    rest = [tuple(at) for i, at in enumerate(places) if i != chosen]
    return _Beads([(row, column), *rest], notes)


def _why_not(at_top: np.ndarray, is_full: bool, place: tuple[int, int], width: float) -> str:
    """Why the bead at a place cannot be fitted; empty if it can.

    `at_top` (Z, H, W) are the pixels of the highest value, which may be a camera's full scale.
    """
    edges = [min(at, edge - 1 - at) for at, edge in zip(place, at_top.shape[1:], strict=True)]
    if min(edges) < max(2.0, width):
        return f"is cut off by the border of the image, {min(edges)} px away"
    reach = int(np.ceil(2 * width)) + 1
    rows, columns = (slice(max(0, at - reach), at + reach + 1) for at in place)
    core = at_top[:, rows, columns]
    in_plane = np.zeros((3, 3, 3), int)
    in_plane[1] = 1
    plateaus, _ = label(core, in_plane)
    largest = int(np.bincount(plateaus.ravel())[1:].max(initial=0))
    if largest >= PILE_PX or (is_full and core.sum() >= SATURATED_PX):
        return (
            f"is saturated ({int(core.sum())} pixels at the highest value), so that the shape of "
            "its peak is lost; record it with less light or exposure"
        )
    return ""


def fwhm_px(scene: Scene) -> float:
    """Full width at half maximum of the Airy pattern, 0.51 wavelength / NA, px."""
    microscope = scene.microscope
    return float(0.51 * microscope.wavelength_um / microscope.na / microscope.pixel_size_um)


def _default_size(
    scene: Scene,
    shape: tuple[int, int, int],
    place: tuple[int, int],
    others: list[tuple[int, int]],
) -> int:
    """Edge of the square: the cone of the defocused light, as far as image and memory allow."""
    microscope = scene.microscope
    planes, edge = shape[0], min(shape[1:])
    slope = float(microscope.na) / np.sqrt(microscope.refractive_index**2 - microscope.na**2)
    range_um = (planes - 1) * abs(scene.z_step_um)  # focus may lie at an end
    cone = 2 * range_um * slope / microscope.pixel_size_um + 8 * fwhm_px(scene)
    size = min(edge, int(np.ceil(cone)), int(np.sqrt(MOST_VOXELS / planes)))
    for other in others:
        away = max(abs(a - b) for a, b in zip(place, other, strict=True))
        size = min(size, max(2 * int(away - 2 * fwhm_px(scene)), 2 * int(4 * fwhm_px(scene))))
    return min(edge, max(size, SMALLEST_PX, 2 * int(4 * fwhm_px(scene))))


def _nearer_to_others(places: list[tuple[int, int]], top: int, left: int, size: int) -> np.ndarray:
    """True (K, K) where another bead is nearer than the first one."""
    at = np.indices((size, size)) + np.array([top, left])[:, None, None]
    distances = [np.hypot(at[0] - row, at[1] - column) for row, column in places]
    return np.argmin(distances, 0) > 0
