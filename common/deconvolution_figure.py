"""Figures of the restoration experiment: cases side by side, gains by object, ring correlations."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from scipy.ndimage import uniform_filter

from common.pictures import COLOURS, add_scale_bar, new_figure, save_figure, show_image

DETAIL_PX = 128  # edge of the part that is shown at full resolution
TITLE_SIZE = 7
# How an object of each kind is marked on the axis
KIND_MARKS = {"photograph": "photograph", "micrograph": "micrograph", "procedural": ""}
REAL_COLOUR = "0.92"  # band behind real objects
# Line at which each correlation is read, with its name
THRESHOLDS = {"pair": (1 / 7, "1/7"), "truth": (1 / 2, "1/2")}
WITH = {"pair": "of two exposures", "truth": "with the truth"}
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
    cases : title, images (H, W) by name, gains in dB by name; the first two images are the truth
        and the blurred input
    """
    columns = 1 + len(cases[0][1])
    figure, axes = new_figure(len(cases), columns, 1.75, 1.95)
    for line, (title, images, gains) in zip(axes, cases, strict=True):
        truth, blurred = list(images.values())[:2]
        top, left = detail_place(truth, blurred)
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
        f"blurred input. Others: the {DETAIL_PX} px in which it is farthest from the truth.",
        fontsize=8,
    )
    _save(path, figure)


def detail_place(truth: np.ndarray, blurred: np.ndarray) -> tuple[int, int]:
    """Top and left of the part of DETAIL_PX whose input is farthest from the truth (H, W)."""
    error = uniform_filter((truth - blurred) ** 2, DETAIL_PX, mode="constant")
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
    compared : methods to draw; the last but one sorts the objects
    """
    colours = method_colours([*compared, NOT_COLOURED])
    brightnesses = list(table["photons"].unique())
    figure = Figure(figsize=(13, 3.6 * len(brightnesses)), layout="constrained")
    axes = figure.subplots(
        len(brightnesses), 3, squeeze=False, width_ratios=(2.4, 1, 1), sharey="col"
    )
    for line, photons in zip(axes, brightnesses, strict=True):
        part = table[table["photons"] == photons]
        _draw_dots(line[0], part, compared, colours)
        line[0].set_title(f"{photons:g} photons per pixel", fontsize=9)
        for at, other in zip(line[1:], THRESHOLDS, strict=True):
            of_panel = curves[(curves["photons"] == photons) & (curves["with"] == other)]
            _draw_correlations(at, of_panel, other, colours, pixel_um)
    axes[0, 0].legend(fontsize=7, loc="upper left")
    _save(path, figure)


def _draw_dots(
    axes: Axes, part: pd.DataFrame, compared: list[str], colours: dict[str, str]
) -> None:
    """One dot per method and object, real objects on a grey band and with their kind."""
    gains = part.pivot(index="index", columns="method", values="snr_gain_db")
    gains = gains.sort_values(compared[-2] if len(compared) > 1 else compared[0])
    facts = part.drop_duplicates("index").set_index("index").loc[gains.index]
    places = np.arange(len(gains))
    for place, objects in zip(places, facts["objects"], strict=True):
        if KIND_MARKS[objects]:
            axes.axvspan(place - 0.5, place + 0.5, color=REAL_COLOUR, lw=0)
    for name in compared:
        axes.plot(places, gains[name], "o", ms=3.5, color=colours[name], label=name)
    axes.axhline(0, color=colours[NOT_COLOURED], lw=0.8)
    labels = [
        f"{name} ({KIND_MARKS[objects]})" if KIND_MARKS[objects] else name
        for name, objects in zip(facts["name"], facts["objects"], strict=True)
    ]
    axes.set_xticks(places, labels, rotation=90, fontsize=6)
    axes.set(ylabel="gain in SNR, dB", xlim=(-0.5, len(gains) - 0.5))
    axes.grid(axis="y", alpha=0.3)


def _draw_correlations(
    axes: Axes, part: pd.DataFrame, other: str, colours: dict[str, str], pixel_um: float
) -> None:
    """Mean correlations of the methods, with the threshold at which a resolution is read."""
    for name, colour in colours.items():
        curve = part[part["method"] == name]
        if len(curve):
            frequency = curve["cycles_per_px"] / pixel_um
            axes.plot(frequency, curve["correlation"], color=colour, lw=1.3, label=name)
    threshold, written = THRESHOLDS[other]
    axes.axhline(threshold, color="black", lw=0.7, ls=":")
    axes.text(0.98, threshold + 0.01, written, fontsize=7, ha="right", transform=_right(axes))
    axes.set(ylim=(-0.02, 1.02), xlim=(0, 0.5 / pixel_um))
    axes.set(xlabel="frequency, cycles per µm", ylabel=f"ring correlation {WITH[other]}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=6)


def _right(axes: Axes) -> object:
    """Coordinates that count along x from 0 to 1 and along y in values."""
    return axes.get_yaxis_transform()


def _save(path: Path, figure: Figure) -> None:
    for suffix in (".png", ".pdf"):
        save_figure(path.with_suffix(suffix), figure)
