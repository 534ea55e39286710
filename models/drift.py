"""Drift of the focus over a series: means of planes, planes of best focus, and what they say.

Lengths and positions have the unit of the arguments.
"""

from typing import NamedTuple

import numpy as np
from scipy.optimize import OptimizeWarning, curve_fit

HUBER_WIDTH = 1.5  # robust standard deviations; patches farther off count less (Huber 1964)
REWEIGHTINGS = 20  # more change a mean by less than 1e-6 of the spread
MAD_TO_DEVIATION = 1.4826  # of a normal distribution
FEWEST_PLANES = 4  # of the fit of best focus, which has three free numbers
SURE = 2.0  # standard errors; a smaller drift is called none, which is wrong in 5 % of the cases
FEWEST_CURVE = 6  # values from whose second differences the noise is told
TURNS = 3.0  # standard errors of a difference by which both ends must lie above a minimum


class Value(NamedTuple):
    """A number with its standard error; NaN where it is not known."""

    value: float
    error: float


UNKNOWN = Value(np.nan, np.nan)


class Drift(NamedTuple):
    """Change over a series by its straight line, and whether there is a minimum inside."""

    change: Value  # from the first to the last position
    spread: float  # largest minus smallest value
    turns: bool  # it falls and rises again by more than its noise
    nears_zero: bool  # its minimum is inside, and small beside its spread

    @property
    def is_sure(self) -> bool:
        """Whether the change exceeds its error."""
        return abs(self.change.value) > SURE * self.change.error


def with_error(found: Value, sign: str = "") -> str:
    """A number and its error as text, to the first digit of the error."""
    digits = int(max(0, -np.floor(np.log10(found.error)))) if found.error > 0 else 2
    return f"{found.value:{sign}.{digits}f} ± {found.error:.{digits}f}"


def plane_mean(values: np.ndarray, deviations: np.ndarray, overlap: float) -> Value:
    """Robust mean of the patches (N,) of a plane.

    It is a Huber mean, in which all places of the field count alike. Patches with a small standard
    deviation do not count more: else the mean of a tilted object would move with the light. The
    error comes from the standard deviations of the patches. A patch shares its pixels with
    `overlap` squared patches, so that many have one error in common.
    """
    if not len(values):
        return UNKNOWN
    values, deviations = np.asarray(values, float), np.asarray(deviations, float)
    mean = np.median(values)
    scale = MAD_TO_DEVIATION * np.median(np.abs(values - mean))
    scale = max(scale, float(np.median(deviations)), 1e-12)
    for _ in range(REWEIGHTINGS):
        weights = huber_weights(values, mean, scale)
        mean = np.average(values, weights=weights)
    count = max(1.0, len(values) / overlap**2)
    error = np.sqrt(np.average(deviations**2, weights=weights) / count)
    return Value(float(mean), float(error))


def huber_weights(values: np.ndarray, mean: float, scale: float) -> np.ndarray:
    """Weights (N,) of values: 1 near the mean, less for outliers."""
    distance = np.abs(values - mean) / scale
    return np.minimum(1.0, HUBER_WIDTH / np.maximum(distance, 1e-12))


def best_focus(z: np.ndarray, means: np.ndarray, errors: np.ndarray, signed: bool) -> Value:
    """Position between the planes of a stack at which the focus is best.

    Parameters
    ----------
    z : (K,) positions of the planes
    means, errors : (K,) mean focus of each plane, NaN where it is not known
    signed : whether the focus changes its sign at the position. Else it is a distance, whose mean
        over an object that is not flat stays above 0: a hyperbola.

    Returns
    -------
    NaN with fewer than four planes, or if the position is not inside the stack
    """
    known = np.isfinite(means) & np.isfinite(errors)
    z, means, errors = z[known], means[known], np.maximum(errors[known], 1e-9)
    if len(z) < FEWEST_PLANES:
        return UNKNOWN
    start = z[np.abs(means).argmin()]
    slope = float(np.ptp(means) / max(np.ptp(z), 1e-12)) or 1.0

    def line(at: np.ndarray, zero: float, slope: float) -> np.ndarray:
        return slope * (at - zero)

    def hyperbola(at: np.ndarray, zero: float, slope: float, least: float) -> np.ndarray:
        return np.hypot(slope * (at - zero), least)

    if signed:
        curve, first = line, [start, np.sign(means[-1] - means[0]) * slope or slope]
    else:
        curve, first = hyperbola, [start, slope, max(float(means.min()), 0.1 * slope)]
    try:
        # A robust loss, since a network reads planes far from focus as its largest value.
        found, covariance = curve_fit(
            curve, z, means, first, errors, True, method="trf", loss="soft_l1", max_nfev=2000
        )
    except (RuntimeError, ValueError, OptimizeWarning):
        return UNKNOWN
    scatter = np.sqrt(np.mean(((curve(z, *found) - means) / errors) ** 2))
    error = float(np.sqrt(covariance[0, 0]) * max(1.0, scatter))
    inside = z.min() < found[0] < z.max() and np.isfinite(error)
    return Value(float(found[0]), error) if inside else UNKNOWN


def drift_of(at: np.ndarray, values: np.ndarray, errors: np.ndarray) -> Drift | None:
    """Drift of values (K,) at the times `at`; None with fewer than two known values.

    The error of the change is that of the straight line, and larger where the values do not follow
    a line as their errors allow.
    """
    known = np.isfinite(values) & np.isfinite(errors)
    if known.sum() < 2:
        return None
    at, values, errors = at[known], values[known], np.maximum(errors[known], 1e-9)
    weights = 1 / errors**2
    centred = at - np.average(at, weights=weights)
    slope = np.sum(weights * centred * values) / np.sum(weights * centred**2)
    residuals = values - np.average(values, weights=weights) - slope * centred
    free = len(at) - 2
    scatter = np.sum(weights * residuals**2) / free if free else 1.0
    length = at[-1] - at[0]
    error = np.sqrt(max(1.0, scatter) / np.sum(weights * centred**2)) * length
    change = Value(float(slope * length), float(error))
    spread, low = float(np.ptp(values)), int(values.argmin())
    nears_zero = 0 < low < len(values) - 1 and bool(values[low] < spread / 2)
    return Drift(change, spread, has_minimum(values, errors), nears_zero)


def has_minimum(values: np.ndarray, errors: np.ndarray) -> bool:
    """Whether a curve (K,) falls and rises again by more than its noise.

    Means of the same object have errors in common, which do not hide a minimum. So the noise is
    that of second differences, if it is smaller than the errors.
    """
    low, noise = int(values.argmin()), float(np.median(errors))
    if len(values) >= FEWEST_CURVE:
        # White noise of variance 1 has second differences of variance 6.
        noise = min(noise, float(np.sqrt(np.mean(np.diff(values, 2) ** 2) / 6)))
    least = TURNS * np.sqrt(2) * noise
    return 0 < low < len(values) - 1 and bool((values[[0, -1]] - values[low] > least).all())
