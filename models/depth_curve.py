"""Monotone curves of a PSF parameter against z, through the planes of a focal stack."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.interpolate import PchipInterpolator
from scipy.optimize import minimize_scalar, nnls

MOST_CORNERS = 12  # of the fitted curve; with more, it follows the noise of single planes
# Weight of the squared second differences against one plane's squared misfit. It smooths the steps
# of a monotone fit and hardly moves the curve.
CURVATURE = 0.3
SAME_VALUE = 0.005  # part of the range of values; closer knots become one, since z jumps there


def monotone_curve(values: ArrayLike, x: ArrayLike) -> Callable[[np.ndarray], np.ndarray]:
    """Function from values to x: a monotone cubic through knots whose values rise.

    It continues in a straight line at both ends, with the slope between the last two knots.
    """
    values, x = np.asarray(values, float), np.asarray(x, float)
    inner = PchipInterpolator(values, x)
    first, last = np.diff(x)[[0, -1]] / np.diff(values)[[0, -1]]

    def curve(at: np.ndarray) -> np.ndarray:
        inside = inner(np.clip(at, values[0], values[-1]))
        below, above = np.minimum(at - values[0], 0), np.maximum(at - values[-1], 0)
        return inside + first * below + last * above

    return curve


@dataclass(frozen=True)
class Curve:
    """Monotone curve through a stack: knots of the value against x, both rising.

    x is z, or -z if the value falls with z, or the distance from the focal plane.
    """

    values: np.ndarray  # (J,)
    x_um: np.ndarray  # (J,)
    to_x: Callable[[np.ndarray], np.ndarray]  # from z of the stack
    focus_z_um: float
    direction: float  # -1 if the value falls with z

    def x_of(self, values: np.ndarray) -> np.ndarray:
        """Position x of values, extrapolated with the slopes of the ends."""
        return monotone_curve(self.values, self.x_um)(values)


def fit_curve(
    z_um: np.ndarray,
    means: np.ndarray,
    weights: np.ndarray,
    signed: bool,
    near_um: float | None = None,
    fixed_um: float | None = None,
) -> Curve:
    """Curve through the means of planes; unsigned: with the focal plane that fits them best.

    The focal plane is searched in the whole stack, or within one step of `near_um`, unless it is
    given as `fixed_um`.
    """
    if signed:
        slope = np.polyfit(z_um, means, 1, w=np.sqrt(weights))[0]
        return _curve_at(z_um, means, weights, math.copysign(1.0, slope), None)

    if fixed_um is not None:
        return _curve_at(z_um, means, weights, 1.0, fixed_um)

    def misfit(focus_z_um: float) -> float:
        return _monotone(np.abs(z_um - focus_z_um), means, weights)[2]

    low, high = float(z_um.min()), float(z_um.max())
    if near_um is None:
        # Every half step, since the misfit has a local minimum for each order of the distances.
        grid = np.linspace(low, high, max(2 * len(z_um) - 1, 41))
        step = grid[1] - grid[0]
        near_um = float(grid[np.argmin([misfit(z) for z in grid])])
    else:
        step = (high - low) / len(z_um)
    # The focal plane may be an end of the stack that is left out here.
    low, high = min(low, near_um), max(high, near_um)
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
    """Curve for a given focal plane.

    None stands for a signed value, whose focal plane is where the curve is nearest to zero.
    """

    def to_x(z: np.ndarray) -> np.ndarray:
        return direction * z if focus_z_um is None else np.abs(z - focus_z_um)

    corners, fitted, _ = _monotone(to_x(z_um), means, weights)
    x, values = _distinct(corners, fitted)
    if focus_z_um is None:
        zero = float(np.clip(0.0, values[0], values[-1]))
        focus = direction * float(monotone_curve(values, x)(np.array(zero)))
    else:
        focus = focus_z_um
    return Curve(values, x, to_x, focus, direction)


def _monotone(
    x: np.ndarray, means: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """Rising polygon that fits the means best: its corners (J,), the values there, the misfit.

    This is isotonic regression with fewer corners than planes. The unknowns are the increments
    between the corners, which cannot be negative; second differences are penalised.
    """
    count = min(MOST_CORNERS, max(3, len(x) // 2))
    corners = np.quantile(x, np.linspace(0, 1, count))  # planes lie on both sides of each
    corners += np.arange(count) * 1e-9 * (np.ptp(x) + 1)  # distinct, even if two planes share x
    hats = np.stack([np.interp(x, corners, unit) for unit in np.eye(count)], 1)  # (K, J)
    rises = np.tril(np.ones((count, count)))  # first value and increments -> values
    gaps = np.diff(corners) / np.diff(corners).mean()
    bend = np.diff(np.diff(np.eye(count), axis=0) / gaps[:, None], axis=0)
    bottom = 2 * means.min() - means.max()  # makes the first value positive, as nnls needs
    roots = np.sqrt(weights)
    left = np.concatenate([roots[:, None] * hats, math.sqrt(CURVATURE) * bend])
    right = np.concatenate([roots * (means - bottom), np.zeros(count - 2)])
    increments, residual = nnls(left @ rises, right)
    return corners, rises @ increments + bottom, float(residual) ** 2


def _distinct(x: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Knots (x, values) of different values; the middle of each flat part stands for it."""
    span = values[-1] - values[0]
    starts = [0]
    for i in range(1, len(values)):
        if values[i] - values[starts[-1]] > SAME_VALUE * span:
            starts.append(i)
    if span <= 0 or len(starts) < 2:  # nothing rises; `follows` returns 0 then
        middle = float(values.mean())
        return x[[0, -1]], np.array([middle, middle + 1e-9 * (abs(middle) + 1)])
    groups = np.split(np.arange(len(x)), starts[1:])
    return tuple(np.array([column[g].mean() for g in groups]) for column in (x, values))
