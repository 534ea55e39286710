"""Text and picture of `held_out_photons.py`, from the tables that it computed."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from benchmarks.held_out_scores import SMOOTHED
from benchmarks.real_restoration_report import style_of
from benchmarks.restoration_methods import INPUT
from common.pictures import add_scale_bar, show_image

SCALE = 1000.0  # likelihoods are shown in thousandths of a nat per pixel


def markdown(image: str, table: pd.DataFrame, summary: pd.DataFrame) -> str:
    """The table for people."""
    one = table.drop_duplicates("plane")
    lines = [
        f"{image}: {len(one)} planes, {one['photons_per_pixel'].mean():.3g} photons per pixel in "
        f"the first half. Log likelihood of the second half above that of the {SMOOTHED} "
        f"({one['smoothing_px'].median():.2g} px), in thousandths of a nat per pixel.",
        "",
        "| method | mean | least of the planes | planes behind |",
        "|---|---|---|---|",
    ]
    for _, row in summary.iterrows():
        mean = f"{SCALE * row['advantage']:+.2f}"
        if pd.notna(row["advantage_low"]):
            ends = (f"{SCALE * row[f'advantage_{end}']:+.2f}" for end in ("low", "high"))
            mean += " ({} to {})".format(*ends)
        least = f"{SCALE * row['least']:+.2f}" if pd.notna(row["least"]) else "-"
        known = pd.notna(row["planes_behind"])
        behind = f"{row['planes_behind']:.0f} of {row['planes']:.0f}" if known else "-"
        lines.append(f"| {row['method']} | {mean} | {least} | {behind} |")
    return "\n".join(lines) + "\n"


def draw(
    table: pd.DataFrame, pictures: Mapping[str, np.ndarray], plane: int, pixel_size_um: float
) -> Figure:
    """Advantage of each method by plane, above details of one plane."""
    methods = list(table["method"].unique())[1:]
    figure = Figure(figsize=(2.1 * len(pictures), 5.6), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(3.2, 2.4))
    axes = top.subplots()
    axes.axhline(0, color="0.5", lw=0.8)
    for name in methods:
        part, style = table[table["method"] == name].sort_values("plane"), style_of(name, methods)
        columns = ("advantage", "advantage_low", "advantage_high")
        middle, low, high = (SCALE * part[column] for column in columns)
        axes.plot(part["plane"], middle, marker="o", ms=3, label=name, **style)
        axes.fill_between(part["plane"], low, high, color=style["color"], alpha=0.12, lw=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("plane", fontsize=8)
    axes.set_ylabel(f"log likelihood above the\n{SMOOTHED} (0.001 nat / px)", fontsize=8)
    axes.set_yscale("symlog", linthresh=1.0)
    axes.tick_params(labelsize=7)
    top.legend(loc="outside right center", fontsize=7)
    axes.grid(alpha=0.3)
    grid = bottom.subplots(1, len(pictures), squeeze=False)[0]
    for at, (name, picture) in zip(grid, pictures.items(), strict=True):
        show_image(at, picture, f"plane {plane}, first half" if name == INPUT else name)
        at.title.set_fontsize(6.5)
    edge = next(iter(pictures.values())).shape[1]
    add_scale_bar(grid[0], pixel_size_um, edge)
    return figure
