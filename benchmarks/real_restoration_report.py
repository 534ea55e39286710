"""Text and picture of `real_restoration.py`, from the tables that it computed."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from benchmarks.plane_scores import Truth
from benchmarks.restoration_methods import INPUT, is_ours
from common.method_colours import method_colour
from common.pictures import add_scale_bar, show_image

TITLES = {
    "in_focus": "restoration blurred again by the PSF in focus",
    "as_is": "restoration as it is",
}
MOST_ROWS = 3  # planes whose details are shown


def markdown(
    stack: str, sharpest: int, truth: Truth, table: pd.DataFrame, summary: pd.DataFrame
) -> str:
    """The tables for people."""
    noise = truth.noise_variance**0.5
    parts = [
        f"{stack}: the truth is plane {sharpest}. Its noise is at most {noise:.3g} counts rms, "
        f"so a perfect restoration has an SNR of {truth.ceiling_db:.1f} dB or more. Gains in SNR "
        "over the blurred plane, dB, by steps from the truth:"
    ]
    for kind, title in TITLES.items():
        parts += [f"**{title}**", gains_by_step(table, kind)]
        chosen = summary[summary["comparison"] == kind] if len(summary) else summary
        if len(chosen):
            parts.append(summary_table(chosen))
    return "\n\n".join(parts) + "\n"


def gains_by_step(table: pd.DataFrame, kind: str) -> str:
    """Gain of each method by steps from focus, below the SNR of the blurred planes."""
    steps = sorted(table["steps"].unique())
    lines = ["| method | " + " | ".join(f"{step:+d}" for step in steps) + " |"]
    lines.append("|---" * (len(steps) + 1) + "|")
    for name, part in table.groupby("method", sort=False):
        part = part.set_index("steps")
        is_input = name == INPUT
        column = f"snr_{kind}_db" if is_input else f"gain_{kind}_db"
        cells = [f"{part[column][s]:.1f}" if is_input else f"{part[column][s]:+.2f}" for s in steps]
        label = f"{name} (SNR)" if is_input else name
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def summary_table(rows: pd.DataFrame) -> str:
    """Mean gains of the planes that count, the methods in the order of their ranks."""
    lines = [
        "| rank | method | mean gain | the same without noise of the truth, at most | least gain | "
        "planes made worse | above the best rival |",
        "|---|---|---|---|---|---|---|",
    ]
    for _, row in rows.sort_values("rank").iterrows():
        cells = [f"{row['rank']:.0f}", row["method"]]
        cells.append(interval(row, "gain", "gain_db"))
        cells.append(f"{row['gain_without_noise_db']:+.2f}")
        cells.append(f"{row['least_gain_db']:+.2f}")
        cells.append(f"{row['worse_planes']:.0f} of {row['planes']:.0f}")
        cells.append(interval(row, "lead", "lead_db") if "lead_db" in row else "-")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def interval(row: pd.Series, name: str, value: str) -> str:
    """A number with its interval, as text."""
    text, low, high = f"{row[value]:+.2f}", row[f"{name}_low"], row[f"{name}_high"]
    return text if pd.isna(low) else f"{text} ({low:+.2f} to {high:+.2f})"


def style_of(method: str, methods: list[str]) -> dict[str, object]:
    """Colour, line and width of a method; those of ours are wide, and dashed by their prior."""
    style = {"color": method_colour(method), "lw": 1.0, "ls": "-"}
    if is_ours(method):
        mine = [name for name in methods if is_ours(name)]
        style |= {"lw": 2.0, "ls": ("-", "--", ":", "-.")[mine.index(method) % 4]}
    return style


def draw(
    table: pd.DataFrame,
    pictures: Mapping[int, Mapping[str, np.ndarray]],
    truth: np.ndarray,
    pixel_size_um: float,
) -> Figure:
    """Gains by steps from focus in both comparisons, above details of some planes."""
    steps = table.drop_duplicates("plane").set_index("plane")["steps"]
    order = sorted(pictures, key=lambda plane: steps[plane])
    places = np.linspace(0, len(order) - 1, min(MOST_ROWS, len(order))).round().astype(int)
    shown = [order[place] for place in places]
    columns = len(next(iter(pictures.values()))) + 1
    figure = Figure(figsize=(1.9 * columns, 4.0 + 2.15 * len(shown)), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(4.0, 2.15 * len(shown)))
    axes = top.subplots(1, len(TITLES), sharey=True)
    for at, (kind, title) in zip(axes, TITLES.items(), strict=True):
        draw_gains(at, table, kind)
        at.set_title(title, fontsize=8)
    axes[0].set_ylabel("gain in SNR over the blurred plane (dB)", fontsize=8)
    handles, names = axes[0].get_legend_handles_labels()
    top.legend(handles, names, loc="outside upper center", ncols=4, fontsize=6.5)
    grid = bottom.subplots(len(shown), columns, squeeze=False)
    for line, plane in zip(grid, shown, strict=True):
        for at, (name, picture) in zip(line, pictures[plane].items(), strict=False):
            show_image(at, picture, f"{steps[plane]:+d} steps" if name == INPUT else name)
            at.title.set_fontsize(6.5)
        show_image(line[-1], truth, "sharpest plane")
        line[-1].title.set_fontsize(6.5)
        add_scale_bar(line[0], pixel_size_um, truth.shape[1])
    return figure


def draw_gains(axes: Axes, table: pd.DataFrame, kind: str) -> None:
    """Gain of each method by steps from focus, with the intervals over tiles."""
    methods = [name for name in table["method"].unique() if name != INPUT]
    axes.axhline(0, color="0.5", lw=0.8)
    for name in methods:
        part = table[table["method"] == name].sort_values("steps")
        style, gain = style_of(name, methods), part[f"gain_{kind}_db"]
        axes.plot(part["steps"], gain, marker="o", ms=3, label=name, **style)
        ends = (part[f"gain_{kind}_low"], part[f"gain_{kind}_high"])
        axes.fill_between(part["steps"], *ends, color=style["color"], alpha=0.12, lw=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("steps from the sharpest plane", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
