"""The picture of a series of maps: mean focus, or the plane of best focus, against time or z."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from common.pictures import COLOURS, plain_text, save_figure

BAND_ERRORS = 2  # half width of the band, standard errors: it holds 95 % of the errors
COUNTED = ("frame", "z (planes)")  # labels of axes with whole numbers
TITLE_COLUMNS = 95  # letters in a line of the title


@dataclass(frozen=True)
class Curve:
    """The curve of one channel, K points."""

    name: str  # of the channel; empty if there is only one
    at: np.ndarray  # (K,) time or z
    values: np.ndarray  # (K,), NaN where nothing is known
    errors: np.ndarray  # (K,) standard errors
    sentence: str  # what the curve says
    truth: np.ndarray | None = None  # (K,), of a simulation
    marked: float = np.nan  # place on the horizontal axis to mark, e.g. best focus


def draw_drift(path: Path, curves: Sequence[Curve], x_label: str, y_label: str, title: str) -> None:
    """Draw the curves of all channels with bands of two standard errors."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    for curve, colour, marker in zip(curves, cycle(COLOURS), cycle("os^Dv"), strict=False):
        half = BAND_ERRORS * curve.errors
        ends = (curve.values - half, curve.values + half)
        axes.fill_between(curve.at, *ends, color=colour, alpha=0.2, lw=0)
        label = plain_text(curve.name) or "estimate ± 2 standard errors"
        axes.plot(curve.at, curve.values, marker=marker, ms=3.5, lw=1.3, color=colour, label=label)
        if curve.truth is not None:
            axes.plot(curve.at, curve.truth, "--", color="black", lw=1, label="truth")
        if np.isfinite(curve.marked):
            axes.axvline(curve.marked, color=colour, ls=":", lw=1.2, label="best focus")
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.margins(x=0.03)
    if x_label in COUNTED:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    names = [curve.name for curve in curves if curve.name]
    legend = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))  # each name once
    axes.legend(
        legend.values(), legend.keys(), fontsize=8, title="± 2 standard errors" * bool(names)
    )
    sentences = [f"{c.name}: {c.sentence}" if c.name else c.sentence for c in curves]
    lines = [line for one in (title, *sentences) for line in textwrap.wrap(one, TITLE_COLUMNS)]
    axes.set_title("\n".join(map(plain_text, lines)), fontsize=9)
    save_figure(path, figure)
