"""Table and picture of `real_stacks.py`, from the tables that it computed."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.pictures import COLOURS, new_figure, plain_text

MAIN = {
    "network": "network",
    "context": "context",
    "stack": "stack",
    "patches": "patches",
    "tiles": "tiles",
    "rank_within": "rank within a tile",
    "rank": "rank, all",
    "rms_um": "rms (µm)",
    "calibrated_rms": "rms, calibrated",
    "within_68": "within 68 %",
    "within_95": "within 95 %",
    "called_content": "called content",
    "content_in_empty_tiles": "the same, empty tiles",
    "content_out_of_range": "the same, out of range",
}
COVERAGE = {
    "network": "network",
    "context": "context",
    "stack": "stack",
    "patches": "patches with content",
    "estimates": "estimates",
    "rms_um": "rms (µm)",
    "within_68": "within 68 %",
    "within_95": "within 95 %",
}
COUNTS = ("tiles", "estimates")
BINS = 10  # of the true distance in a picture, with equal numbers of estimates
MOST_POINTS = 3000  # of a panel; more hide each other


def markdown(scores: pd.DataFrame) -> str:
    """The tables for people."""
    is_main = scores["patches"].isin(("all", "content"))
    parts = [
        "Rank correlation of the estimates with the true distance from focus, errors and coverage, "
        "with 95 % intervals. The calibrated rms is in µm, or in planes where z counts planes.",
        as_markdown(scores[is_main], MAIN),
    ]
    has_unit = ~is_main & scores["within_68"].notna() & (scores["stack"] != "mean")
    if has_unit.any():
        parts += ["Coverage by terciles:", as_markdown(scores[has_unit], COVERAGE)]
    return "\n\n".join(parts) + "\n"


def as_markdown(rows: pd.DataFrame, columns: dict[str, str]) -> str:
    """Some columns of the scores, under the given titles."""
    lines = ["| " + " | ".join(columns.values()) + " |", "|---" * len(columns) + "|"]
    for _, row in rows.iterrows():
        lines.append("| " + " | ".join(cell(row, name) for name in columns) + " |")
    return "\n".join(lines)


def cell(row: pd.Series, name: str) -> str:
    """One number with its interval, as text."""
    value = row.get(name, np.nan)
    if isinstance(value, str):
        return value
    if pd.isna(value):
        return "-"
    if name in COUNTS:
        return f"{value:.0f}"
    low, high = (row.get(f"{name}_{end}", np.nan) for end in ("low", "high"))
    return f"{value:.2f}" + ("" if pd.isna(low) else f" ({low:.2f} to {high:.2f})")


def draw(patches: pd.DataFrame) -> Figure:
    """Estimates with content against the truth: a row per stack, a column per method.

    `patches` is real_stacks_patches.csv.
    """
    methods = list(dict.fromkeys(zip(patches["network"], patches["context"], strict=True)))
    stacks = list(dict.fromkeys(patches["stack"]))
    figure, axes = new_figure(max(1, len(stacks)), max(1, len(methods)), 3.6, 3.2)
    for row, stack in zip(axes, stacks, strict=False):
        for i, (at, method) in enumerate(zip(row, methods, strict=True)):
            chosen = patches["stack"].eq(stack) & patches["network"].eq(method[0])
            chosen &= patches["context"].eq(method[1]) & (patches["content"] >= 0.5)
            draw_panel(at, patches[chosen], COLOURS[i % len(COLOURS)])
            lines = (stack, f"{method[0]}, context: {method[1]}")
            at.set_title("\n".join(map(plain_text, lines)), fontsize=8)
    return figure


def draw_panel(axes: Axes, rows: pd.DataFrame, colour: str) -> None:
    """Draw points, medians with the median 68 % bar in bins of the truth, and the truth."""
    if rows.empty:
        axes.text(0.5, 0.5, "no patch with content", ha="center", transform=axes.transAxes)
        return
    in_um = rows["half_68"].notna().all()
    some = rows.sample(min(len(rows), MOST_POINTS), random_state=0)
    axes.plot(some["truth"], some["estimate"], ".", ms=2, alpha=0.25, color="0.6", zorder=1)
    x, y, bar = binned(rows)
    label = "median, 68 % error bar" if in_um else "median"
    axes.errorbar(x, y, bar if in_um else None, fmt="o-", ms=4, lw=1, color=colour, label=label)
    if in_um:
        ends = [rows["truth"].min(), rows["truth"].max()]
        axes.plot(ends, ends, "k--", lw=1, label="truth")
    unit = rows["unit"].iloc[0].replace("um", "µm")
    axes.set_xlabel(f"true distance from focus ({unit})", fontsize=8)
    axes.set_ylabel("estimate (µm)" if in_um else "estimate (unit of the network)", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)


def binned(rows: pd.DataFrame) -> tuple[Sequence[float], ...]:
    """Medians of truth, estimate and 68 % half width, in bins of the truth."""
    order = rows.sort_values("truth")[["truth", "estimate", "half_68"]].to_numpy()
    parts = np.array_split(order, min(BINS, len(order)))
    return tuple(np.array([np.median(part, 0) for part in parts]).T)
