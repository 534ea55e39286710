"""Figures of the restoration experiment: cases side by side, gains by object, ring correlations."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from scipy.ndimage import uniform_filter

from common.pictures import COLOURS, add_scale_bar, new_figure, save_figure, show_image

DETAIL_PX = 128  # edge of the part that is shown at full resolution
TITLE_SIZE = 7
# Bands behind the real objects; procedural ones have none
KIND_COLOURS = {"photograph": "#eeeeee", "micrograph": "#f7dfc6"}
# Line at which each correlation is read, with its name
THRESHOLDS = {"pair": (1 / 7, "1/7"), "truth": (1 / 2, "1/2")}
WITH = {"pair": "restorations of two exposures", "truth": "restoration and truth"}
NOT_COLOURED = "blurred input"  # grey in the curves, zero in the gains


def method_colours(names: list[str]) -> dict[str, str]:
    """Colour of each method, the same in all panels."""
    coloured = [name for name in names if name != NOT_COLOURED]
    return dict(zip(coloured, COLOURS, strict=False)) | {NOT_COLOURED: "0.5"}


def draw_cases(
    path: Path,
    cases: list[tuple[str, dict[str, np.ndarray], dict[str, float]]],
    pixel_um: float,
    photons: float,
) -> None:
    """Draw one row per case as PNG and PDF: the field, and a part of it by every method.

    Parameters
    ----------
    path : of the figure, without suffix
    cases : title, images (H, W) by name, gains in dB by name; the first images are the truth and
        the blurred input, the last is the restoration with the true map
    """
    columns = 1 + len(cases[0][1])
    figure, axes = new_figure(len(cases), columns, 1.75, 1.95)
    for line, (title, images, gains) in zip(axes, cases, strict=True):
        truth, blurred, *_, best = images.values()
        top, left = detail_place(truth, blurred, best)
        part = (slice(top, top + DETAIL_PX), slice(left, left + DETAIL_PX))
        show_image(line[0], blurred, title)
        line[0].add_patch(Rectangle((left, top), DETAIL_PX, DETAIL_PX, fill=False, color="white"))
        line[0].add_patch(
            Rectangle((left, top), DETAIL_PX, DETAIL_PX, fill=False, color=COLOURS[1], ls="--")
        )
        add_scale_bar(line[0], pixel_um, truth.shape[1])
        low, high = np.percentile(truth[part], (0.5, 99.5))
        for at, (name, image) in zip(line[1:], images.items(), strict=True):
            at.imshow(image[part], cmap="gray", vmin=low, vmax=max(high, low + 1e-6))
            at.set(xticks=[], yticks=[])
            gain = f"\n{gains[name]:+.1f} dB" if gains.get(name) else "\n"
            at.set_title(name.replace(", estimated map", "") + gain)
        for at in line:
            at.title.set_fontsize(TITLE_SIZE)
    figure.suptitle(
        f"{photons:g} photons per pixel. Gains in SNR are those of the whole field. First column: "
        f"blurred input. Others: the {DETAIL_PX} px that the true map restores best.",
        fontsize=8,
    )
    _save(path, figure)


def detail_place(truth: np.ndarray, blurred: np.ndarray, best: np.ndarray) -> tuple[int, int]:
    """Top and left of the part of DETAIL_PX in which `best` corrects most of the error (H, W)."""
    corrected = (truth - blurred) ** 2 - (truth - best) ** 2
    error = uniform_filter(corrected, DETAIL_PX, mode="constant")
    half = DETAIL_PX // 2
    rows, columns = (length - DETAIL_PX + 1 for length in truth.shape)
    inner = error[half : half + rows, half : half + columns]
    top, left = np.unravel_index(inner.argmax(), inner.shape)
    return int(top), int(left)


def draw_gains(
    path: Path, table: pd.DataFrame, curves: pd.DataFrame, compared: list[str], pixel_um: float
) -> None:
    """Draw gains by object and mean Fourier ring correlations, one row per number of photons.

    Parameters
    ----------
    path : of the figure, without suffix
    table : rows of deconvolution.csv
    curves : rows of deconvolution_frc.csv
    compared : methods to draw; objects are sorted by the last, at the first number of photons
    """
    colours = method_colours([*compared, NOT_COLOURED])
    brightnesses = list(table["photons"].unique())
    figure = Figure(figsize=(13, 0.9 + 2.6 * len(brightnesses)), layout="constrained")
    axes = figure.subplots(
        len(brightnesses), 3, squeeze=False, width_ratios=(2.2, 1, 1), sharey="col", sharex="col"
    )
    sorting = table[(table["photons"] == brightnesses[0]) & (table["method"] == compared[-1])]
    order = sorting.sort_values("snr_gain_db")["index"].tolist()
    for line, photons in zip(axes, brightnesses, strict=True):
        _draw_dots(line[0], table[table["photons"] == photons], compared, colours, order)
        line[0].set_ylabel(f"{photons:g} photons per pixel\ngain in SNR, dB", fontsize=9)
        for at, other in zip(line[1:], THRESHOLDS, strict=True):
            of_panel = curves[(curves["photons"] == photons) & (curves["with"] == other)]
            _draw_correlations(at, of_panel, other, colours, pixel_um)
    for at, other in zip(axes[0, 1:], THRESHOLDS, strict=True):
        at.set_title(f"Fourier ring correlation:\n{WITH[other]}", fontsize=9)
    for at in axes[-1, 1:]:
        at.set_xlabel("frequency, cycles per µm", fontsize=9)
    figure.legend(handles=_keys(colours), loc="outside upper center", ncols=4, fontsize=8)
    _save(path, figure)


def _keys(colours: dict[str, str]) -> list[Line2D | Patch]:
    """Entries of the legend: methods, and kinds of real objects."""
    lines = [Line2D([], [], color=c, marker="o", ms=4, label=n) for n, c in colours.items()]
    return lines + [Patch(color=c, label=f"{n} (band)") for n, c in KIND_COLOURS.items()]


def _draw_dots(
    axes: Axes,
    part: pd.DataFrame,
    compared: list[str],
    colours: dict[str, str],
    order: list[int],
) -> None:
    """One dot per method and object in an order of objects, bands behind the real ones."""
    gains = part.pivot(index="index", columns="method", values="snr_gain_db").loc[order]
    facts = part.drop_duplicates("index").set_index("index").loc[order]
    places = np.arange(len(order))
    for place, objects in zip(places, facts["objects"], strict=True):
        if objects in KIND_COLOURS:
            axes.axvspan(place - 0.5, place + 0.5, color=KIND_COLOURS[objects], lw=0)
    for name in compared:
        axes.plot(places, gains[name], "o", ms=3.5, color=colours[name])
    axes.axhline(0, color=colours[NOT_COLOURED], lw=0.8)
    axes.set_xticks(places, facts["name"], rotation=90, fontsize=7)
    axes.set_xlim(-0.5, len(order) - 0.5)
    axes.grid(axis="y", alpha=0.3)


def _draw_correlations(
    axes: Axes, part: pd.DataFrame, other: str, colours: dict[str, str], pixel_um: float
) -> None:
    """Mean correlations of the methods, with the threshold at which a resolution is read."""
    for name, colour in colours.items():
        curve = part[part["method"] == name]
        if len(curve):
            frequency = curve["cycles_per_px"] / pixel_um
            axes.plot(frequency, curve["correlation"], color=colour, lw=1.3)
    threshold, written = THRESHOLDS[other]
    axes.axhline(threshold, color="black", lw=0.7, ls=":")
    across = axes.get_yaxis_transform()  # x from 0 to 1, y in values
    axes.text(0.98, threshold + 0.01, written, fontsize=8, ha="right", transform=across)
    axes.set(ylim=(-0.02, 1.02), xlim=(0, 0.5 / pixel_um))
    axes.grid(alpha=0.3)


def _save(path: Path, figure: Figure) -> None:
    for suffix in (".png", ".pdf"):
        save_figure(path.with_suffix(suffix), figure)
