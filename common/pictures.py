"""Parts of pictures that scripts share, and the pictures of training and benchmark.

Nothing needs a display.
"""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.files import whole_file

WARNING_COLOUR = "#c00000"  # of titles that say what is wrong with a result
# Colour-blind-safe colours for lines, of Okabe and Ito (jfly.uni-koeln.de/color)
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")

BLUE, VERMILION, GREEN, PINK, ORANGE, SKY_BLUE = COLOURS
# More colours, of Paul Tol's muted scheme (sronpersonalpages.nl/~pault)
WINE, INDIGO, OLIVE, TEAL, ROSE = "#882255", "#332288", "#999933", "#44aa99", "#cc6677"

# Networks have the same colour in every figure. The shipped networks of the default architecture
# have its colour; each panel shows one PSF model, so two of them do not meet.
NETWORK_COLOURS = {
    **dict.fromkeys(
        ("spectral_resnet", "zernike1d", "zernike2d", "astigmatic", "gaussian1d", "gaussian2d"),
        BLUE,
    ),
    **dict.fromkeys(("zernike1d_tilted", "zernike2d_tilted", "astigmatic_tilted"), SKY_BLUE),
    **dict.fromkeys(("spectral_resnet_wide", "focus"), GREEN),
    "resnet18": VERMILION,
    "resnet34": ORANGE,
    "resnet50": PINK,
    "resnext50": WINE,
}
# Recording conditions of patches in every figure, from the best image to the worst: viridis in
# equal steps, which stays in order without colour vision and in grey, and a marker.
CONDITION_STYLES = {
    "noise-free": {"color": "#440154", "marker": "o"},
    "8-bit": {"color": "#414487", "marker": "s"},
    "1000 photons": {"color": "#2a788e", "marker": "^"},
    "100 photons": {"color": "#22a884", "marker": "D"},
    "10 photons": {"color": "#7ad151", "marker": "v"},
}
OTHER_CONDITION = {"color": "0.4", "marker": "."}


def network_colours(networks: Iterable[str]) -> dict[str, str]:
    """Colour of each network by its name; unknown names get colours of no known network."""
    names, others = dict.fromkeys(networks), cycle((INDIGO, OLIVE, TEAL, ROSE))
    return {name: NETWORK_COLOURS.get(name) or next(others) for name in names}


def condition_style(condition: str) -> dict[str, str]:
    """Colour and marker of a recording condition, e.g. "100 photons", as matplotlib's keywords."""
    return CONDITION_STYLES.get(condition, OTHER_CONDITION)


def save_figure(path: Path, figure: Figure, dpi: int = 130) -> None:
    """Write a figure as PNG or PDF, by the suffix of the path; a failure leaves no file."""
    with whole_file(path) as partial, warnings.catch_warnings():
        # A file name in a title may have letters that the font lacks; they become boxes.
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from")
        # without its date a PDF has the same bytes each time
        undated = {"metadata": {"CreationDate": None}} if path.suffix == ".pdf" else {}
        figure.savefig(partial, dpi=dpi, bbox_inches="tight", **undated)


def plain_text(text: str) -> str:
    """Text for a title or legend that shows a file name as it is.

    Dollar signs are escaped, since matplotlib takes what stands between two of them for a formula.
    Control characters become question marks.
    """
    return "".join(c if c.isprintable() else "?" for c in text).replace("$", r"\$")


def new_figure(rows: int, columns: int, width: float, height: float) -> tuple[Figure, np.ndarray]:
    """Figure with rows x columns axes of width x height inches each, and the array of axes."""
    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def colour_map(name: str = "viridis") -> matplotlib.colors.Colormap:
    """Colour map of matplotlib that shows missing values in light grey."""
    return matplotlib.colormaps[name].with_extremes(bad="0.85")


def show_image(axes: Axes, image: np.ndarray, title: str = "") -> None:
    """Show an image in grey from its 0.5 to its 99.5 percentile, without ticks."""
    low, high = np.nanpercentile(image, (0.5, 99.5))
    # The least range keeps the rounding errors of a flat image invisible.
    axes.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-3 * abs(low) + 1e-9))
    axes.set(xticks=[], yticks=[])
    axes.set_title(plain_text(title), fontsize=8)


def mark_left_out(axes: Axes, left_out: np.ndarray) -> None:
    """Paint the pixels (H, W) of an image that were left out orange."""
    painted = np.ma.masked_where(~left_out, np.ones(left_out.shape))
    axes.imshow(
        painted, cmap=matplotlib.colors.ListedColormap([COLOURS[1]]), interpolation="nearest"
    )


def add_scale_bar(
    axes: Axes,
    pixel_size_um: float,
    width_px: int,
    x: float = 0.05,
    name: str = "",
    fontsize: float = 8,
) -> None:
    """Draw a scale bar of a round length, a tenth to a quarter of the width.

    It starts at `x`, a share of the width, and its label starts with `name`.
    """
    rough = width_px * pixel_size_um / 4
    magnitude = 10.0 ** np.floor(np.log10(rough))
    length_um = max(step for step in (1, 2, 5) if step * magnitude <= rough) * magnitude
    y, share = 0.05, length_um / pixel_size_um / width_px  # parts of the axes
    for colour, width in (("white", 5), ("black", 2.5)):  # visible on dark and bright images
        style = {"color": colour, "lw": width, "solid_capstyle": "butt"}
        axes.plot([x, x + share], [y, y], transform=axes.transAxes, **style)
    axes.text(
        x + share / 2,
        y + 0.025,
        f"{name}{length_um:g} µm",
        color="white",
        ha="center",
        va="bottom",
        fontsize=fontsize,
        transform=axes.transAxes,
        bbox={"facecolor": "black", "alpha": 0.5, "pad": 1, "linewidth": 0},
    )


def draw_curves(path: Path, metrics: Any) -> None:
    """Draw training curves: losses, and R^2 by condition, against patches seen.

    `metrics` is the data frame of metrics.csv. R^2 of several parameters are thin lines, and their
    mean is a thick one.
    """
    figure, axes = new_figure(1, 2, 4.8, 3.2)
    seen = metrics["patches_seen"] / 1000
    # The training loss has the entropy of the histograms too, so the two losses share no axis.
    axes[0, 0].plot(seen, metrics["train_loss"], "o-", ms=3, color=COLOURS[0])
    axes[0, 0].set_ylabel("training loss", color=COLOURS[0])
    other = axes[0, 0].twinx()
    other.plot(seen, metrics["validation_loss"], "s--", ms=3, color=COLOURS[1])
    other.set_ylabel("validation loss (values alone)", color=COLOURS[1])
    _draw_scores(axes[0, 1], seen, metrics[[c for c in metrics.columns if c.startswith("r2_")]])
    for each in axes[0]:
        each.set(xlabel="thousand patches seen")
        each.grid(alpha=0.3)
    save_figure(path, figure)


def _draw_scores(axes: Axes, seen: Any, scores: Any) -> None:
    """Draw columns `r2_PARAMETER_CONDITION`, in the style of their condition."""
    for condition in dict.fromkeys(column.rpartition("_")[2] for column in scores):
        chosen = scores[[c for c in scores if c.endswith(f"_{condition}")]]
        style = condition_style(condition)
        axes.plot(seen, chosen.mean(axis=1), ms=3, label=condition, **style)
        if chosen.shape[1] > 1:
            axes.plot(seen, chosen, "-", lw=0.6, alpha=0.6, color=style["color"])
    # Below -1 a score says no more than that the network has learned nothing.
    lowest = max(-1.0, min(0.0, float(scores.min().min())))
    axes.set(ylabel="validation R²", ylim=(lowest, 1.02))
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5))


@dataclass(frozen=True)
class Panel:
    """One panel of `draw_scatter`."""

    title: str
    label: str  # name of the parameter, with its unit
    truth: np.ndarray  # (N,)
    predicted: np.ndarray  # (N,)
    colour: str = BLUE  # of the network


def draw_scatter(path: Path, panels: Sequence[Sequence[Panel]]) -> None:
    """Draw predicted against true labels, in rows of panels."""
    figure, axes = new_figure(len(panels), len(panels[0]), 2.2, 2.3)
    for at, panel in zip(axes.ravel(), (p for row in panels for p in row), strict=True):
        low, high = panel.truth.min(), panel.truth.max()
        room = 0.08 * (high - low)
        limits = (low - room, high + room)
        shown = panel.predicted.clip(*limits)  # outliers lie on the border
        at.plot(panel.truth, shown, ".", ms=2, alpha=0.3, color=panel.colour)
        at.plot([low, high], [low, high], color="black", lw=0.8)
        at.set(xlim=limits, ylim=limits, aspect="equal")
        lines = (plain_text(line) for line in panel.title.split("\n"))
        at.set_title("\n".join(lines), fontsize=7)
        at.tick_params(labelsize=6)
        at.set_xlabel(f"true {panel.label}", fontsize=7)
        at.set_ylabel(f"predicted {panel.label}", fontsize=7)
    save_figure(path, figure)


def draw_reliability(path: Path, table: Any) -> None:
    """Draw the share of true values inside the 68 % and 95 % intervals, per condition.

    `table` is the data frame of benchmark.csv. A row of panels shows the networks of one PSF model,
    with the parameters as line styles. Grey bands mark 65 to 71 % and 93 to 97 %.
    """
    keys = ["psf_model", "network", "trained_on", "parameter", "condition"]
    table = table.drop_duplicates(keys)  # the first row of each is that of all images
    models = list(dict.fromkeys(table["psf_model"]))
    figure, axes = new_figure(len(models), 2, 4.2, 2.8)
    for column, (nominal, half) in zip(axes.T, ((68, 3), (95, 2)), strict=True):
        shares = 100 * table[f"coverage_{nominal}"]
        limits = min(shares.min(), nominal - half) - 2, min(max(shares.max() + 2, 75), 100.5)
        for one, model in zip(column, models, strict=True):
            band = {"color": "0.88", "zorder": 0, "label": "68 ± 3 %, 95 ± 2 %"}
            one.axhspan(nominal - half, nominal + half, **band)
            _draw_coverage(one, table[table["psf_model"] == model], nominal)
            one.set_ylabel(f"true value within\nthe {nominal} % interval (%)")
            one.set_title(model, fontsize=9)
            one.tick_params(axis="x", rotation=20, labelsize=7)
            one.set_ylim(limits)
    for one in axes[:, 1]:
        one.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5))
    save_figure(path, figure)


def _draw_coverage(axes: Axes, table: Any, nominal: int) -> None:
    """Draw the coverage of each network and parameter of one PSF model."""
    colours = network_colours(table["network"])
    styles = dict(zip(dict.fromkeys(table["parameter"]), cycle(("o-", "s--", "^:")), strict=False))
    groups = table.groupby(["network", "trained_on", "parameter"], sort=False)
    for (network, trained_on, parameter), rows in groups:
        axes.plot(
            rows["condition"],
            100 * rows[f"coverage_{nominal}"],
            styles[parameter],
            ms=4,
            lw=1.2,
            color=colours[network],
            label=plain_text(f"{network} ({trained_on}), {parameter}"),
        )
