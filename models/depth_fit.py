"""The depth curve of a focal stack, fitted to the means of its planes.

Planes that are left out of the fit say how wrong it is.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar, nnls
from scipy.stats import spearmanr

from models.depth import DepthCalibration, _through
from psf.errors import InputError
from psf.microscope import Microscope

FEWEST_PLANES = 5  # with fewer the curve of the others says nothing about one left out
MOST_NODES = 12  # of the fitted curve
CURVATURE = 0.3  # penalty on second differences, in planes; takes the steps off the curve
LEAST_CORRELATION = 0.5  # rank correlation with z, below which there is nothing to calibrate
FLATTEST = 1 / 3  # of the median slope; flatter is saturation
SAME_VALUE = 0.005  # part of the range of values; knots closer than this are one
HUBER = 1.345  # standard deviations; 95 % efficient for a Gaussian (Huber 1964)
MAD_TO_DEVIATION = 1.4826  # of a Gaussian


class LeftOut(NamedTuple):
    """Errors of planes left out, um; NaN for planes and patches that are not to be used."""

    means_um: np.ndarray  # (K,) depth of the plane's mean minus its true depth
    patches_um: np.ndarray  # (K, N) the same of its single patches


class Planes(NamedTuple):
    """What the patches of each plane say together."""

    means: np.ndarray  # (K,) robust weighted mean; NaN without patches
    spreads: np.ndarray  # (K,) robust standard deviation of single patches


@dataclass(frozen=True)
class Curve:
    """Monotone curve through a stack: knots of the value against x, both rising.

    x is z, or -z where the value falls with z, or the distance from the focal plane.
    """

    values: np.ndarray  # (J,)
    x_um: np.ndarray  # (J,)
    to_x: Callable[[np.ndarray], np.ndarray]  # from z of the stack
    focus_z_um: float
    direction: float  # -1 where the value falls with z

    def x_of(self, values: np.ndarray) -> np.ndarray:
        """Position of values, carried on with the slopes of the ends."""
        return _through(self.values, self.x_um)(values)


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
) -> DepthCalibration:
    """Fit the curve from estimates to depth with a stack of known z.

    Parameters
    ----------
    values, standard_deviations : (K, N) estimates of N patches in K planes; NaN: not to be used
    z_um : (K,) position of the planes, z > 0 away from the objective
    signed : the value is monotone in z, else in the distance from a focal plane that is found
    limit_um : largest error of planes left out in the usable range; default: the depth of field

    Raises
    ------
    InputError
        If fewer than 5 planes have patches, z repeats, the values do not follow z, or no depth is
        found within the limit.
    """
    z_um = np.asarray(z_um, float)
    planes = plane_means(values, standard_deviations)
    seen = np.isfinite(planes.means)
    if seen.sum() < FEWEST_PLANES:
        raise InputError(
            f"{int(seen.sum())} planes have something to estimate from; a calibration takes "
            f"{FEWEST_PLANES}."
        )
    if len(np.unique(z_um)) < len(z_um):
        raise InputError("two planes have the same z; each plane needs a z of its own.")
    curve = _fit_curve(z_um[seen], planes.means[seen], _weights(planes)[seen], signed)
    correlation = follows(planes.means[seen], curve.to_x(z_um[seen]))
    if not correlation >= LEAST_CORRELATION:
        raise InputError(
            f"{parameter} does not follow z: its rank correlation with "
            f"{'z' if signed else 'the distance from focus'} is {correlation:.2f}, below "
            f"{LEAST_CORRELATION:g}. Check the order and step of the planes, the optics given, "
            "and that the object is thin and flat and the stack passes through its focus."
        )
    limit_um = microscope.depth_of_field_um if limit_um is None else limit_um
    left_out = leave_one_plane_out(values, standard_deviations, z_um, signed)
    x_um = curve.to_x(z_um)
    used = _usable(curve, x_um, left_out.means_um, limit_um)
    found = curve.direction * left_out.patches_um[used] + x_um[used, None]
    # a patch whose depth is found outside is known to be outside
    inside = (found >= x_um[used[0]]) & (found <= x_um[used[-1]])
    focus_x = curve.to_x(np.array([curve.focus_z_um]))[0]
    usable = sorted(float(d) for d in curve.direction * (x_um[used] - focus_x)[[0, -1]])
    return DepthCalibration(
        parameter=parameter,
        unit=unit,
        microscope=microscope,
        checkpoint=checkpoint,
        signed=signed,
        focus_z_um=curve.focus_z_um,
        values=tuple(curve.values.tolist()),
        z_um=tuple((curve.direction * (curve.x_um - focus_x)).tolist()),
        usable_um=(usable[0], usable[1]),
        limit_um=float(limit_um),
        rms_um=_rms(left_out.means_um[used]),
        patch_rms_um=_rms(left_out.patches_um[used][inside]),
    )


def plane_means(values: np.ndarray, standard_deviations: np.ndarray) -> Planes:
    """Means of planes (K, N) weighted by 1 / sd^2, and far-off patches by Huber's weights."""
    pairs = [
        _robust_mean(row[np.isfinite(row)], deviations[np.isfinite(row)])
        for row, deviations in zip(
            np.asarray(values, float), np.asarray(standard_deviations, float), strict=True
        )
    ]
    return Planes(*np.array(pairs).T)


def leave_one_plane_out(
    values: np.ndarray, standard_deviations: np.ndarray, z_um: np.ndarray, signed: bool
) -> LeftOut:
    """Errors in um of the depth of each plane by the curve of the other planes.

    The focal plane is found anew without each plane. The errors have the sign of z, or of the
    distance from the focal plane.
    """
    values, z_um = np.asarray(values, float), np.asarray(z_um, float)
    planes = plane_means(values, standard_deviations)
    weights, seen = _weights(planes), np.isfinite(planes.means)
    near = _fit_curve(z_um[seen], planes.means[seen], weights[seen], signed).focus_z_um
    means, patches = np.full(len(z_um), np.nan), np.full(values.shape, np.nan)
    for k in np.flatnonzero(seen):
        others = seen & (np.arange(len(z_um)) != k)
        curve = _fit_curve(z_um[others], planes.means[others], weights[others], signed, near)
        truth, sign = curve.to_x(z_um[[k]]), curve.direction
        means[k] = sign * (curve.x_of(planes.means[[k]]) - truth)[0]
        patches[k] = sign * (curve.x_of(values[k]) - truth)
    return LeftOut(means, patches)


def follows(values: np.ndarray, x_um: np.ndarray) -> float:
    """Spearman's rank correlation; 0 where nothing varies."""
    if np.ptp(values) == 0 or np.ptp(x_um) == 0:
        return 0.0
    return float(spearmanr(values, x_um).statistic)


def _rms(errors: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(errors))))


def _robust_mean(values: np.ndarray, deviations: np.ndarray) -> tuple[float, float]:
    """Huber's weighted mean and a robust standard deviation of (N,) values."""
    if not len(values):
        return math.nan, math.nan
    weights = 1 / np.maximum(deviations, 1e-9) ** 2
    mean = float(np.median(values))
    spread = MAD_TO_DEVIATION * float(np.median(np.abs(values - mean)))
    for _ in range(20 if spread > 0 else 0):
        far = np.abs(values - mean) / (HUBER * spread)
        mean = float(np.average(values, weights=weights / np.maximum(far, 1)))
    return mean, spread


def _weights(planes: Planes) -> np.ndarray:
    """Weights of planes, median 1; a saturated plane has little spread and gets no more for it."""
    variances = planes.spreads**2
    middle = float(np.nanmedian(variances))
    return 1 / np.maximum(variances / middle, 1) if middle > 0 else np.ones(len(variances))


def _fit_curve(
    z_um: np.ndarray,
    means: np.ndarray,
    weights: np.ndarray,
    signed: bool,
    near_um: float | None = None,
) -> Curve:
    """Fit the curve; unsigned with the focal plane of least misfit, in the stack or near one."""
    if signed:
        slope = np.polyfit(z_um, means, 1, w=np.sqrt(weights))[0]
        return _curve_at(z_um, means, weights, math.copysign(1.0, slope), None)

    def misfit(focus_z_um: float) -> float:
        return _monotone(np.abs(z_um - focus_z_um), means, weights)[2]

    low, high = float(z_um.min()), float(z_um.max())
    if near_um is None:
        # every half step: the misfit has a dip for each order of the planes in distance
        grid = np.linspace(low, high, max(2 * len(z_um) - 1, 41))
        step = grid[1] - grid[0]
        near_um = float(grid[np.argmin([misfit(z) for z in grid])])
    else:
        step = (high - low) / len(z_um)
    bounds = (max(low, near_um - step), min(high, near_um + step))
    found = minimize_scalar(misfit, bounds=bounds, method="bounded", options={"xatol": step / 200})
    best = min((float(found.x), near_um, *bounds), key=misfit)
    return _curve_at(z_um, means, weights, 1.0, best)


def _curve_at(
    z_um: np.ndarray,
    means: np.ndarray,
    weights: np.ndarray,
    direction: float,
    focus_z_um: float | None,
) -> Curve:
    """Curve with a given focal plane; None: signed, where the curve is nearest to zero."""

    def to_x(z: np.ndarray) -> np.ndarray:
        return direction * z if focus_z_um is None else np.abs(z - focus_z_um)

    nodes, fitted, _ = _monotone(to_x(z_um), means, weights)
    x, values = _distinct(nodes, fitted)
    if focus_z_um is None:
        zero = float(np.clip(0.0, values[0], values[-1]))
        focus = direction * float(_through(values, x)(np.array(zero)))
    else:
        focus = focus_z_um
    return Curve(values, x, to_x, focus, direction)


def _monotone(
    x: np.ndarray, means: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """Rising broken line of least weighted squares: nodes, values there, misfit.

    Isotonic regression with fewer corners than planes: the increments between the nodes are the
    unknowns, none of them negative, and second differences cost a little.
    """
    count = min(MOST_NODES, max(3, len(x) // 2))
    nodes = np.quantile(x, np.linspace(0, 1, count))  # each has planes on both sides
    nodes += np.arange(count) * 1e-9 * (np.ptp(x) + 1)  # two planes at one distance
    hats = np.stack([np.interp(x, nodes, unit) for unit in np.eye(count)], 1)  # (K, J)
    rises = np.tril(np.ones((count, count)))  # first value and increments -> values
    gaps = np.diff(nodes) / np.diff(nodes).mean()
    bend = np.diff(np.diff(np.eye(count), axis=0) / gaps[:, None], axis=0)
    bottom = 2 * means.min() - means.max()  # far below all: the first value is positive too
    roots = np.sqrt(weights)
    left = np.concatenate([roots[:, None] * hats, math.sqrt(CURVATURE) * bend])
    right = np.concatenate([roots * (means - bottom), np.zeros(count - 2)])
    increments, residual = nnls(left @ rises, right)
    return nodes, rises @ increments + bottom, float(residual) ** 2


def _distinct(x: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Knots of different values: where the curve is flat, its middle stands for it."""
    span = values[-1] - values[0]
    starts = [0]
    for i in range(1, len(values)):
        if values[i] - values[starts[-1]] > SAME_VALUE * span:
            starts.append(i)
    if span <= 0 or len(starts) < 2:  # nothing rises: `follows` refuses it
        middle = float(values.mean())
        return x[[0, -1]], np.array([middle, middle + 1e-9 * (abs(middle) + 1)])
    groups = np.split(np.arange(len(x)), starts[1:])
    return tuple(np.array([column[g].mean() for g in groups]) for column in (x, values))


def _usable(curve: Curve, x_um: np.ndarray, errors_um: np.ndarray, limit_um: float) -> np.ndarray:
    """Indices, by rising x, of the longest run of planes with small errors on a steep curve.

    The error of a plane is the rms of its own and its two neighbours'.

    Raises
    ------
    InputError
        If no two neighbours are good enough.
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
            f"nowhere in the stack are planes found to {limit_um:.3g} um from the others (error "
            f"{_rms(errors_um[order]):.3g} um rms); take larger steps in z, more patches or light, "
            "or a larger --limit-um."
        )
    return order[start:stop]
