"""Figures of the restoration experiment: images, their errors, and the gains of all objects."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from scipy.ndimage import uniform_filter

from common.method_colours import method_colour, short_name
from common.pictures import add_scale_bar, plain_text, save_figure
from common.shown_cases import INPUT, TRUTH, ShownCase

WIDTH_IN = 180 / 25.4  # width of a page of two columns in most journals
DPI = 200  # one pixel of an inset is then about four pixels of the figure
INSET_PX = 64  # edge of the inset, a fifth of a field of 320 px: small enough to see single pixels
TEXT, SMALL_TEXT = 7, 6  # pt, the least sizes that journals accept
# Bands behind the real objects; procedural ones have none
KIND_COLOURS = {"photograph": "#eeeeee", "micrograph": "#f7dfc6"}
TRUTH_THRESHOLD = 0.5  # correlation with the truth at which the tables read the resolution


def inset_place(truth: np.ndarray, blurred: np.ndarray, restored: np.ndarray) -> tuple[int, int]:
    """Top and left of the inset: where the errors of two images (H, W) differ most.

    The restoration may be the better one or the worse one there.
    """
    difference = (truth - blurred) ** 2 - (truth - restored) ** 2
    mean = np.abs(uniform_filter(difference, INSET_PX, mode="constant"))
    half = INSET_PX // 2
    rows, columns = (length - INSET_PX + 1 for length in truth.shape)
    inner = mean[half : half + rows, half : half + columns]
    top, left = np.unravel_index(inner.argmax(), inner.shape)
    return int(top), int(left)


def draw_cases(
    path: Path, cases: Sequence[ShownCase], ours: str, pixel_um: float, photons: float
) -> None:
    """Draw the images of each case, and an inset of each image below it, as PNG and PDF.

    Parameters
    ----------
    path : of the figure, without suffix
    ours : the method whose error places the inset
    """
    columns = len(cases[0].images)
    figure = _page(0.35 + len(cases) * (2 * WIDTH_IN / (columns + 0.4) + 0.25))
    axes = figure.subplots(2 * len(cases), columns, squeeze=False)
    for row, case in enumerate(cases):
        _draw_case(axes[2 * row : 2 * row + 2], case, ours, pixel_um, with_names=row == 0)
    figure.suptitle(
        f"{photons:g} photons per pixel. Titles: gain in SNR of the whole field. Insets: the "
        f"{INSET_PX} px in which the errors of\nthe blurred input and of ours differ most. Images "
        "of a row have one grey scale, the square root of the photons.",
        fontsize=TEXT,
    )
    _save(path, figure)


def _draw_case(
    axes: np.ndarray, case: ShownCase, ours: str, pixel_um: float, with_names: bool
) -> None:
    """Fields of one case above their insets, in axes (2, columns)."""
    truth = case.images[TRUTH]
    top, left = inset_place(truth, case.images[INPUT], case.images[ours])
    part = (slice(top, top + INSET_PX), slice(left, left + INSET_PX))
    for column, (name, image) in enumerate(case.images.items()):
        field, inset = axes[:, column]
        _show(field, image, truth)
        _show(inset, image[part], truth[part])
        field.set_title(**_title(case, name, with_names))
        for line, style in (("black", "-"), ("white", (0, (3, 3)))):  # seen on dark and on bright
            box = Rectangle((left - 0.5, top - 0.5), INSET_PX, INSET_PX, fill=False)
            box.set(color=line, lw=0.9, ls=style)
            field.add_patch(box)
    add_scale_bar(axes[1, 0], pixel_um, INSET_PX, fontsize=SMALL_TEXT)
    width_um = pixel_um * truth.shape[1]
    axes[0, 0].set_ylabel(f"{_label(case)}, {width_um:.0f} µm wide", fontsize=TEXT)
    axes[1, 0].set_ylabel(f"inset, {pixel_um * INSET_PX:.1f} µm wide", fontsize=TEXT)


def _show(axes: Axes, image: np.ndarray, truth: np.ndarray) -> None:
    """Show an image in the grey scale of the truth, each pixel as a square.

    Grey is the square root of the light, in which photon noise is as strong in dark places as in
    bright ones.
    """
    low, high = np.percentile(truth, (0.5, 99.5))
    norm = PowerNorm(0.5, low, max(high, low + 1e-6), clip=True)
    axes.imshow(image, cmap="gray", norm=norm, interpolation="nearest")
    axes.set(xticks=[], yticks=[])


def _label(case: ShownCase) -> str:
    """Rank and name of a case above its PSF model."""
    name, _, model = case.title.rpartition(", ")
    return f"{plain_text(f'{case.rank}: {name}')}\n{plain_text(model)}"


def _title(case: ShownCase, name: str, with_name: bool) -> dict[str, object]:
    """Title of a panel: gain of a method, below its name in its colour."""
    gain = _signed(case.gains[name]) if name in case.gains and name != INPUT else ""
    label = f"{name.replace(', ', chr(10), 1)}\n{gain}" if with_name else gain
    colour = "black" if name == TRUTH else method_colour(name)
    return {"label": label, "fontsize": TEXT, "color": colour}


def _signed(gain_db: float) -> str:
    return f"{gain_db:+.1f} dB".replace("-", "\N{MINUS SIGN}")


def draw_errors(path: Path, cases: Sequence[ShownCase], pixel_um: float, photons: float) -> None:
    """Draw the error of each image of each case, and its correlation with the truth.

    Parameters
    ----------
    path : of the figure, without suffix
    """
    names = [name for name in cases[0].images if name != TRUTH]
    figure = _page(0.85 + len(cases) * 1.3)
    ratios = [1.0] * len(names) + [1.25]
    axes = figure.subplots(len(cases), len(names) + 1, squeeze=False, width_ratios=ratios)
    for row, (case, line) in enumerate(zip(cases, axes, strict=True)):
        truth = case.images[TRUTH]
        errors = {name: case.images[name] - truth for name in names}
        limit = float(np.percentile(np.abs(list(errors.values())), 99))
        for at, (name, error) in zip(line, errors.items(), strict=False):
            shown = at.imshow(
                error, cmap="PuOr_r", vmin=-limit, vmax=limit, interpolation="nearest"
            )
            at.set(xticks=[], yticks=[])
            at.set_title(**_title(case, name, with_name=row == 0))
        line[0].set_ylabel(_label(case), fontsize=TEXT)
        bar = figure.colorbar(shown, ax=list(line[:-1]), pad=0.01, aspect=15, extend="both")
        bar.set_label("image \N{MINUS SIGN} truth,\nphotons per pixel", fontsize=SMALL_TEXT)
        bar.ax.tick_params(labelsize=SMALL_TEXT)
        add_scale_bar(line[0], pixel_um, truth.shape[1], fontsize=SMALL_TEXT)
        curves = {name: case.correlations[name] for name in names}
        draw_correlations(line[-1], curves, pixel_um, named=False)
        line[-1].set_ylim(-0.7, 1.02)  # wrong PSFs invert the contrast of some frequencies
        if row == 0:
            line[-1].set_title("Fourier ring correlation\nwith the truth", fontsize=TEXT)
    axes[-1, -1].set_xlabel("frequency, cycles per µm", fontsize=TEXT)
    figure.suptitle(
        f"{photons:g} photons per pixel. Titles: gain in SNR. Curves have the colours of the "
        "titles. Dotted: threshold of the resolution.",
        fontsize=TEXT,
    )
    _save(path, figure)


def draw_correlations(
    axes: Axes, curves: Mapping[str, np.ndarray], pixel_um: float, named: bool
) -> None:
    """Draw correlations (RINGS,) with the truth; names stand in the order of the curves."""
    for name, curve in curves.items():
        frequency = (np.arange(len(curve)) + 0.5) * 0.5 / len(curve) / pixel_um
        axes.plot(frequency, curve, color=method_colour(name), lw=1.1)
    axes.axhline(TRUTH_THRESHOLD, color="black", lw=0.7, ls=":")
    across = axes.get_yaxis_transform()  # x from 0 to 1, y in values
    axes.text(0.02, TRUTH_THRESHOLD - 0.02, "1/2", fontsize=SMALL_TEXT, va="top", transform=across)
    axes.set(ylim=(-0.02, 1.02), xlim=(0, 0.5 / pixel_um))
    axes.tick_params(labelsize=SMALL_TEXT)
    axes.grid(alpha=0.3)
    if named:  # correlations fall, so that the upper right corner is free
        order = sorted(curves, key=lambda name: -float(np.mean(curves[name])))
        for place, name in enumerate(order):
            style = {"color": method_colour(name), "fontsize": SMALL_TEXT, "ha": "right"}
            at = (0.98, 0.98 - 0.075 * place)
            axes.text(*at, short_name(name), va="top", transform=axes.transAxes, **style)


def draw_gains(
    path: Path, table: pd.DataFrame, curves: pd.DataFrame, compared: list[str], pixel_um: float
) -> None:
    """Draw gains by object and mean correlations with the truth, one row per number of photons.

    Parameters
    ----------
    path : of the figure, without suffix
    table : rows of deconvolution.csv
    curves : rows of deconvolution_frc.csv
    compared : methods to draw; objects are sorted by the last, at the first number of photons
    """
    brightnesses = list(table["photons"].unique())
    figure = _page(1.0 + 2.1 * len(brightnesses))
    axes = figure.subplots(
        len(brightnesses), 2, squeeze=False, width_ratios=(2.4, 1), sharey="col", sharex="col"
    )
    sorting = table[(table["photons"] == brightnesses[0]) & (table["method"] == compared[-1])]
    order = sorting.sort_values("snr_gain_db")["index"].tolist()
    for (dots, lines), photons in zip(axes, brightnesses, strict=True):
        _draw_dots(dots, table[table["photons"] == photons], compared, order)
        dots.set_ylabel(f"{photons:g} photons per pixel\ngain in SNR, dB", fontsize=TEXT)
        of_panel = curves[(curves["photons"] == photons) & (curves["with"] == TRUTH)]
        found = {
            name: of_panel.loc[of_panel["method"] == name, "correlation"].to_numpy()
            for name in (INPUT, *compared)
        }
        draw_correlations(lines, found, pixel_um, named=True)
    axes[0, 1].set_title("mean Fourier ring correlation\nwith the truth", fontsize=TEXT)
    axes[-1, 1].set_xlabel("frequency, cycles per µm", fontsize=TEXT)
    figure.legend(handles=_keys(compared), loc="outside upper left", ncols=3, fontsize=SMALL_TEXT)
    _save(path, figure)


def _keys(compared: list[str]) -> list[Line2D | Patch]:
    """Entries of the legend: methods, and kinds of real objects."""
    dots = {"ls": "", "marker": "o", "ms": 3.5}
    lines = [Line2D([], [], color=method_colour(n), label=n, **dots) for n in compared]
    return lines + [Patch(color=c, label=f"{n} (band)") for n, c in KIND_COLOURS.items()]


def _draw_dots(axes: Axes, part: pd.DataFrame, compared: list[str], order: list[int]) -> None:
    """One dot per method and object in an order of objects, bands behind the real ones."""
    gains = part.pivot(index="index", columns="method", values="snr_gain_db").loc[order]
    facts = part.drop_duplicates("index").set_index("index").loc[order]
    places = np.arange(len(order))
    for place, objects in zip(places, facts["objects"], strict=True):
        if objects in KIND_COLOURS:
            axes.axvspan(place - 0.5, place + 0.5, color=KIND_COLOURS[objects], lw=0)
    for name in compared:
        axes.plot(places, gains[name], "o", ms=2.8, color=method_colour(name))
    axes.axhline(0, color=method_colour(INPUT), lw=0.8)
    names = [plain_text(name.replace("_", " ")) for name in facts["name"]]
    axes.set_xticks(places, names, rotation=90, fontsize=SMALL_TEXT)
    axes.tick_params(axis="y", labelsize=SMALL_TEXT)
    axes.set_xlim(-0.5, len(order) - 0.5)
    axes.grid(axis="y", alpha=0.3)


def _page(height_in: float) -> Figure:
    return Figure(figsize=(WIDTH_IN, height_in), layout="constrained")


def _save(path: Path, figure: Figure) -> None:
    for suffix in (".png", ".pdf"):
        save_figure(path.with_suffix(suffix), figure, DPI)
