"""What a series of maps says of the drift of the focus: a curve and a sentence per channel."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from common.drift_figure import Curve
from models.drift import UNKNOWN, Drift, Value, best_focus, drift_of, with_error

# Longest span, s, that is written in seconds, in minutes and in hours.
TIME_UNITS = ((120.0, "s", 1.0), (7200.0, "min", 60.0), (np.inf, "h", 3600.0))


@dataclass(frozen=True)
class SeriesAxes:
    """Sizes, scale and names of the axes of a series."""

    times: int
    depths: int  # planes in z
    channels: dict[int | None, str]  # names by index; None: the luminance of a colour image
    frame_interval_s: float | None  # None: not known
    z_step_um: float | None
    column: str  # of planes.csv, which tells the focus
    signed: bool  # whether it tells the side of the focal plane
    has_depth: bool  # whether it is a depth in um

    def of(self, place: dict[str, int | None]) -> dict[str, Any]:
        """Columns of the tables that say which plane a row belongs to."""
        t, z = place["t"], place["z"]
        row = {"t": t, "z": z, "channel": place["channel"] or 0}
        if self.frame_interval_s is not None:
            row["time_s"] = t * self.frame_interval_s
        if self.z_step_um is not None:
            row["z_um"] = z * self.z_step_um
        return row


class DriftCurves(NamedTuple):
    """Curves of all channels with the names of their axes, and what the user should know."""

    curves: list[Curve]
    x_label: str
    y_label: str
    notes: list[str]


def drift_curves(planes: pd.DataFrame, axes: SeriesAxes) -> DriftCurves | None:
    """Focus against time, or against z for one time point; None for one plane per channel.

    Stacks of several time points show their plane of best focus. Where a stack has too few planes
    for that, the mean over its planes is shown.
    """
    if axes.times == axes.depths == 1:
        return None
    groups = {name or 0: planes[planes["channel"] == (name or 0)] for name in axes.channels}
    titles = {name or 0: title for name, title in axes.channels.items()}
    if len(titles) == 1:
        titles = dict.fromkeys(titles, "")
    if axes.times == 1:
        curves = [_against_z(group, axes, titles[name]) for name, group in groups.items()]
        return DriftCurves(curves, _z_label(axes), _focus_label(axes), [])
    unit, seconds = time_unit(axes)
    x_label = f"time ({unit})" if seconds else "frame"
    best = {name: _best_planes(group, axes) for name, group in groups.items()}
    use_best = any(np.isfinite(found[0]).sum() >= 2 for found in best.values())
    what = "plane of best focus" if use_best else _focus_label(axes).partition(" (")[0]
    curves, notes = [], []
    for name, group in groups.items():
        values, errors, truth = best[name] if use_best else _means(group, axes)
        at = np.arange(axes.times) * (axes.frame_interval_s / seconds if seconds else 1.0)
        drift = drift_of(at, values, errors)
        said = sentence(drift, _span(at[-1], unit), _unit(axes, use_best), what)
        curves.append(Curve(titles[name], at, values, errors, said, truth))
        nears = drift is not None and (drift.turns or drift.nears_zero)
        if nears and axes.has_depth and not (use_best or axes.signed):
            notes.append(_turning(at[int(np.nanargmin(values))], unit, titles[name]))
    y_label = f"plane of best focus, {_z_label(axes)}" if use_best else _focus_label(axes)
    return DriftCurves(curves, x_label, y_label, notes)


def time_unit(axes: SeriesAxes) -> tuple[str, float]:
    """Unit of the time axis and its length in s; 0 s where the interval is not known."""
    if axes.frame_interval_s is None:
        return "frames", 0.0
    span = axes.frame_interval_s * (axes.times - 1)
    return next((unit, length) for most, unit, length in TIME_UNITS if span <= most)


def sentence(drift: Drift | None, span: str, unit: str, what: str) -> str:
    """What a curve of `what` says, in words."""
    if drift is None:
        return "fewer than two time points tell the focus"
    number = f"{with_error(drift.change, '+')} {unit} over {span}"
    if drift.turns:
        return f"the {what} falls and rises again, by {drift.spread:.2g} {unit} over {span}"
    if drift.is_sure:
        return f"drift of the {what}: {number} (straight line)"
    return f"no drift of the {what} beyond the error: {number}"


def _turning(at: float, unit: str, name: str) -> str:
    where = f"{name}: " if name else ""
    return (
        f"{where}the network tells the distance from focus without its side, so a drift through "
        f"focus looks like a V; the mean is smallest at {at:.3g} {unit}"
    )


def _span(length: float, unit: str) -> str:
    return f"{length:.3g} {unit}"


def _unit(axes: SeriesAxes, best: bool) -> str:
    if best:
        return "µm" if axes.z_step_um else "planes"
    return "µm" if axes.has_depth else axes.column.rpartition("_")[2]


def _focus_label(axes: SeriesAxes) -> str:
    of = " of all planes" if axes.times > 1 and axes.depths > 1 else ""
    if not axes.has_depth:
        name, _, unit = axes.column.rpartition("_")
        return f"mean {name}{of} ({unit})"
    return f"mean depth{of} (µm)" if axes.signed else f"mean distance from focus{of} (µm)"


def _z_label(axes: SeriesAxes) -> str:
    return "z (µm)" if axes.z_step_um else "z (planes)"


def _error_column(axes: SeriesAxes) -> str:
    name, _, unit = axes.column.rpartition("_")
    return f"{name}_standard_error_{unit}"


def _z_of(group: pd.DataFrame, axes: SeriesAxes) -> np.ndarray:
    return group["z_um" if axes.z_step_um else "z"].to_numpy(float)


def _against_z(group: pd.DataFrame, axes: SeriesAxes, name: str) -> Curve:
    """Mean focus of the planes of one stack, and where it is best."""
    z, values = _z_of(group, axes), group[axes.column].to_numpy(float)
    errors = group[_error_column(axes)].to_numpy(float)
    best = best_focus(z, values, errors, axes.signed) if axes.has_depth else UNKNOWN
    said = "the planes do not show where the focus is best"
    if np.isfinite(best.value):
        unit = "µm" if axes.z_step_um else "planes"
        step = axes.z_step_um or 1.0
        plane = f" (plane {best.value / step:.2f})" if axes.z_step_um else ""
        said = f"best focus at z = {with_error(best)} {unit}{plane}"
    return Curve(name, z, values, errors, said, _truth(group, axes), best.value)


def _best_planes(
    group: pd.DataFrame, axes: SeriesAxes
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Plane of best focus at each time, (T,) with errors (T,)."""
    found: list[Value] = []
    for _, stack in group.groupby("t"):
        known = axes.has_depth and axes.depths > 1
        values, errors = stack[axes.column].to_numpy(float), stack[_error_column(axes)]
        z = _z_of(stack, axes)
        found.append(
            best_focus(z, values, errors.to_numpy(float), axes.signed) if known else UNKNOWN
        )
    values, errors = np.array(found, float).T
    return values, errors, None


def _means(
    group: pd.DataFrame, axes: SeriesAxes
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Mean focus at each time over the planes that have a map, (T,) with errors (T,)."""
    by_time = group.groupby("t")
    values = by_time[axes.column].mean().to_numpy(float)
    squares = group.assign(square=group[_error_column(axes)] ** 2).groupby("t")["square"]
    count = squares.count().clip(lower=1).to_numpy(float)
    errors = np.sqrt(squares.sum(min_count=1).to_numpy(float)) / count
    truth = _truth(group, axes)
    return values, errors, None if truth is None else by_time[f"true_{axes.column}"].mean()


def _truth(group: pd.DataFrame, axes: SeriesAxes) -> np.ndarray | None:
    column = f"true_{axes.column}"
    return group[column].to_numpy(float) if column in group else None
