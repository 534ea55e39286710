"""Depth calibration from a focal stack: a monotone curve through the means of its planes.

`leave_one_plane_out` measures the error of the curve. It finds the depth of each plane with a
curve, and a focal plane, that come from the other planes alone.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy.stats import spearmanr

from models.depth import DepthCalibration
from models.depth_curve import Curve, fit_curve
from psf.errors import InputError
from psf.microscope import Microscope

FEWEST_PLANES = 5  # a curve has at least three corners; with fewer planes none is left to test it
LEAST_CORRELATION = 0.5  # lowest rank correlation with z at which the values count as following it
# Part of the median slope below which the curve counts as saturated: there a small error of the
# value becomes an error of depth at least three times as large as elsewhere.
FLATTEST = 1 / 3
NEAR_FOCUS = 0.5  # depths of field; networks read a sharp image as about half as far out of focus
HUBER = 1.345  # standard deviations; 95 % efficient for a Gaussian (Huber 1964)
MAD_TO_DEVIATION = 1.4826  # standard deviation / median absolute deviation of a Gaussian


def fit_depth(
    values: np.ndarray,
    standard_deviations: np.ndarray,
    z_um: np.ndarray,
    signed: bool,
    microscope: Microscope,
    parameter: str = "focus",
    unit: str = "waves",
    checkpoint: str = "",
    limit_um: float | None = None,
    um_per_unit: float | None = None,
) -> DepthCalibration:
    """Calibration from the estimates in a stack of known z.

    Parameters
    ----------
    values, standard_deviations : (K, N) estimates of N patches in K planes; NaN: do not use
    z_um : (K,) position of the planes, z > 0 away from the objective
    signed : True if the value is monotone in z, False if in the distance from a focal plane, which
        is found in the stack
    limit_um : largest error of left-out planes in the usable range; default: the depth of field
    um_per_unit : depth of one unit of the value by the optics. It places the focal plane of a stack
        that lies on one side of focus; without it such a stack has its focal plane at its end

    Raises
    ------
    InputError
        If fewer than 5 planes have patches, two planes have the same z, the values do not follow z,
        or no range of depth is within the limit.
    """
    z_um = np.asarray(z_um, float)
    planes = plane_means(values, standard_deviations)
    seen = np.isfinite(planes.means)
    _check_planes(seen, z_um)
    stack = z_um[seen], planes.means[seen], _weights(planes)[seen]
    curve, outside_um = fit_curve(*stack, signed), None
    if not signed and um_per_unit is not None:
        outside_um = focus_beside(stack[0], stack[1] * um_per_unit, curve.focus_z_um, microscope)
    if outside_um is not None:
        curve = fit_curve(*stack, signed, fixed_um=outside_um)
    _check_correlation(planes.means[seen], curve.to_x(z_um[seen]), parameter, signed)
    limit_um = float(microscope.depth_of_field_um if limit_um is None else limit_um)
    left_out = leave_one_plane_out(values, standard_deviations, z_um, signed, outside_um)
    focus_x = float(curve.to_x(np.array([curve.focus_z_um]))[0])
    usable = _usable_range(curve, curve.to_x(z_um), focus_x, left_out, limit_um)
    return DepthCalibration(
        parameter=parameter,
        unit=unit,
        microscope=microscope,
        checkpoint=checkpoint,
        signed=signed,
        focus_z_um=curve.focus_z_um,
        values=tuple(curve.values.tolist()),
        z_um=tuple((curve.direction * (curve.x_um - focus_x)).tolist()),
        usable_um=usable.range_um,
        limit_um=limit_um,
        rms_um=usable.rms_um,
        patch_rms_um=usable.patch_rms_um,
    )


def focus_beside(
    z_um: np.ndarray, depth_um: np.ndarray, focus_z_um: float, microscope: Microscope
) -> float | None:
    """Focal plane beside a stack that lies on one side of it, um; None if the stack reaches it.

    A curve cannot tell where it ends outside of the stack. The optics can: `depth_um` (K,) are the
    distances from focus that they give. Near the focus they are too uncertain.
    """
    nearest_um = NEAR_FOCUS * float(microscope.depth_of_field_um)
    order = np.argsort(z_um)
    step = np.ptp(z_um) / (len(z_um) - 1)
    for end, side in ((order[0], -1), (order[-1], 1)):
        away = float(depth_um[end])
        if abs(focus_z_um - z_um[end]) < step and away > max(step, nearest_um):
            return float(z_um[end] + side * away)
    return None


def _check_planes(seen: np.ndarray, z_um: np.ndarray) -> None:
    if seen.sum() < FEWEST_PLANES:
        raise InputError(
            f"{int(seen.sum())} planes have patches with content; a calibration needs at least "
            f"{FEWEST_PLANES}. Record more planes, or take an object with more detail."
        )
    if len(np.unique(z_um)) < len(z_um):
        raise InputError("two planes have the same z; give each plane a z of its own.")


def _check_correlation(means: np.ndarray, x_um: np.ndarray, parameter: str, signed: bool) -> None:
    correlation = follows(means, x_um)
    if not correlation >= LEAST_CORRELATION:
        raise InputError(
            f"{parameter} does not follow z: its rank correlation with "
            f"{'z' if signed else 'the distance from focus'} is {correlation:.2f}, below "
            f"{LEAST_CORRELATION:g}. Check the order and step of the planes and the optics. "
            "The object must be thin and flat, and the stack must pass through its focus."
        )


def follows(values: np.ndarray, x_um: np.ndarray) -> float:
    """Spearman's rank correlation; 0 if all values or all positions are equal."""
    if np.ptp(values) == 0 or np.ptp(x_um) == 0:
        return 0.0
    return float(spearmanr(values, x_um).statistic)


# --- planes


class Planes(NamedTuple):
    """Mean and spread of the patches of each plane."""

    means: np.ndarray  # (K,) robust weighted mean; NaN without patches
    spreads: np.ndarray  # (K,) robust standard deviation of single patches


def plane_means(values: np.ndarray, standard_deviations: np.ndarray) -> Planes:
    """Robust means and spreads of planes of patches (K, N).

    The weights are 1 / standard deviation^2; outliers get Huber's weights on top.
    """
    pairs = [
        _robust_mean(row[np.isfinite(row)], deviations[np.isfinite(row)])
        for row, deviations in zip(
            np.asarray(values, float), np.asarray(standard_deviations, float), strict=True
        )
    ]
    return Planes(*np.array(pairs).T)


def _robust_mean(values: np.ndarray, deviations: np.ndarray) -> tuple[float, float]:
    """Huber's weighted mean and a robust standard deviation of values (N,)."""
    if not len(values):
        return math.nan, math.nan
    weights = 1 / np.maximum(deviations, 1e-9) ** 2
    mean = float(np.median(values))
    spread = MAD_TO_DEVIATION * float(np.median(np.abs(values - mean)))
    for _ in range(20 if spread > 0 else 0):  # enough for the weights to settle
        far = np.abs(values - mean) / (HUBER * spread)
        mean = float(np.average(values, weights=weights / np.maximum(far, 1)))
    return mean, spread


def _weights(planes: Planes) -> np.ndarray:
    """Weights (K,) of planes: 1 at the median spread, less above it, and never more than 1.

    A saturated plane has a small spread, but its mean is no better than that of the others.
    """
    variances = planes.spreads**2
    middle = float(np.nanmedian(variances))
    return 1 / np.maximum(variances / middle, 1) if middle > 0 else np.ones(len(variances))


# --- errors


class LeftOut(NamedTuple):
    """Errors of left-out planes, um; NaN for planes and patches without an estimate."""

    means_um: np.ndarray  # (K,) depth of the plane's mean minus its true depth
    patches_um: np.ndarray  # (K, N) the same for its single patches


def leave_one_plane_out(
    values: np.ndarray,
    standard_deviations: np.ndarray,
    z_um: np.ndarray,
    signed: bool,
    focus_z_um: float | None = None,
) -> LeftOut:
    """Errors in um of the depth of each plane, found with the curve of the other planes.

    The focal plane comes from the other planes too, unless it is given. The errors have the sign of
    z, or of the distance from the focal plane.
    """
    values, z_um = np.asarray(values, float), np.asarray(z_um, float)
    planes = plane_means(values, standard_deviations)
    weights, seen = _weights(planes), np.isfinite(planes.means)
    near = fit_curve(z_um[seen], planes.means[seen], weights[seen], signed).focus_z_um
    means, patches = np.full(len(z_um), np.nan), np.full(values.shape, np.nan)
    for k in np.flatnonzero(seen):
        others = seen & (np.arange(len(z_um)) != k)
        curve = fit_curve(
            z_um[others], planes.means[others], weights[others], signed, near, focus_z_um
        )
        truth, sign = curve.to_x(z_um[[k]]), curve.direction
        means[k] = sign * (curve.x_of(planes.means[[k]]) - truth)[0]
        patches[k] = sign * (curve.x_of(values[k]) - truth)
    return LeftOut(means, patches)


class Usable(NamedTuple):
    """Usable range of depth and the errors in it."""

    range_um: tuple[float, float]  # of depth from the focal plane
    rms_um: float  # of the means of left-out planes
    patch_rms_um: float  # of single patches of left-out planes


def _usable_range(
    curve: Curve, x_um: np.ndarray, focus_x: float, left_out: LeftOut, limit_um: float
) -> Usable:
    """Range of depth in which left-out planes are within the limit, and their errors there.

    Raises
    ------
    InputError
        If the range is no wider than the errors in it.
    """
    used = _usable_planes(curve, x_um, left_out.means_um, limit_um)
    found = curve.direction * left_out.patches_um[used] + x_um[used, None]
    # A patch whose depth is found out of the usable range is reported as such: it is no error.
    inside = (found >= x_um[used[0]]) & (found <= x_um[used[-1]])
    ends = sorted(float(depth) for depth in curve.direction * (x_um[used] - focus_x)[[0, -1]])
    rms_um = _rms(left_out.means_um[used])
    if ends[1] - ends[0] <= rms_um or not inside.any():
        raise InputError(
            f"the range of depth with errors up to {limit_um:.3g} um is {ends[0]:.3g} to "
            f"{ends[1]:.3g} um, no wider than the errors in it ({rms_um:.3g} um). Take more "
            "planes, an object with more detail, or a thinner one."
        )
    return Usable((ends[0], ends[1]), rms_um, _rms(left_out.patches_um[used][inside]))


def _usable_planes(
    curve: Curve, x_um: np.ndarray, errors_um: np.ndarray, limit_um: float
) -> np.ndarray:
    """Indices, by rising x, of the longest run of planes with small errors on a steep curve.

    The error of a plane is the rms over itself and its two neighbours.

    Raises
    ------
    InputError
        If the longest run has fewer than two planes.
    """
    order = np.argsort(x_um)
    order = order[np.isfinite(errors_um[order])]
    squares = np.pad(errors_um[order] ** 2, 1, mode="edge")
    rms = np.sqrt((squares[:-2] + squares[1:-1] + squares[2:]) / 3)
    slopes = np.diff(curve.values) / np.diff(curve.x_um)
    segment = np.clip(np.searchsorted(curve.x_um, x_um[order]) - 1, 0, len(slopes) - 1)
    inside = (x_um[order] >= curve.x_um[0] - 1e-6) & (x_um[order] <= curve.x_um[-1] + 1e-6)
    good = (rms <= limit_um) & inside & (slopes[segment] >= FLATTEST * np.median(slopes))
    edges = np.flatnonzero(np.diff(np.concatenate([[0], good.astype(int), [0]])))
    runs = list(zip(edges[::2], edges[1::2], strict=True))
    start, stop = max(runs, key=lambda run: run[1] - run[0], default=(0, 0))
    if stop - start < 2:
        raise InputError(
            f"no range of the stack has errors up to {limit_um:.3g} um: planes left out of the fit "
            f"have {_rms(errors_um[order]):.3g} um rms. Take larger steps in z, more patches or "
            "more light, or give a larger --limit-um."
        )
    return order[start:stop]


def _rms(errors: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(errors))))
