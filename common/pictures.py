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

# Networks have the same colour in every figure.
NETWORK_COLOURS = dict(
    zip(("spectral_resnet", "resnet18", "resnet34", "resnet50", "resnext50"), COLOURS, strict=False)
)


def network_colours(networks: Iterable[str]) -> dict[str, str]:
    """Colour of each network by its name; names that are no architecture get the other colours."""
    names = list(dict.fromkeys(networks))
    used = {NETWORK_COLOURS.get(name) for name in names}
    others = cycle([colour for colour in COLOURS if colour not in used] or COLOURS)
    return {name: NETWORK_COLOURS.get(name) or next(others) for name in names}


def save_figure(path: Path, figure: Figure, dpi: int = 130) -> None:
    """Write a figure as PNG or PDF, by the suffix of the path; a failure leaves no file."""
    with whole_file(path) as partial, warnings.catch_warnings():
        # A file name in a title may have letters that the font lacks; they become boxes.
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from")
        figure.savefig(partial, dpi=dpi, bbox_inches="tight")


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
    """Draw columns `r2_PARAMETER_CONDITION`, one colour per condition."""
    conditions = list(dict.fromkeys(column.rpartition("_")[2] for column in scores))
    colours = colour_map("viridis")(np.linspace(0, 0.9, len(conditions)))
    for condition, colour in zip(conditions, colours, strict=True):
        chosen = scores[[c for c in scores if c.endswith(f"_{condition}")]]
        axes.plot(seen, chosen.mean(axis=1), "o-", ms=3, color=colour, label=condition)
        if chosen.shape[1] > 1:
            axes.plot(seen, chosen, "-", lw=0.6, alpha=0.6, color=colour)
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


def draw_scatter(path: Path, panels: Sequence[Sequence[Panel]]) -> None:
    """Draw predicted against true labels, in rows of panels."""
    figure, axes = new_figure(len(panels), len(panels[0]), 2.2, 2.3)
    for at, panel in zip(axes.ravel(), (p for row in panels for p in row), strict=True):
        low, high = panel.truth.min(), panel.truth.max()
        room = 0.08 * (high - low)
        limits = (low - room, high + room)
        shown = panel.predicted.clip(*limits)  # outliers lie on the border
        at.plot(panel.truth, shown, ".", ms=2, alpha=0.3, color=COLOURS[0])
        at.plot([low, high], [low, high], color=COLOURS[1], lw=1)
        at.set(xlim=limits, ylim=limits, aspect="equal")
        lines = (plain_text(line) for line in panel.title.split("\n"))
        at.set_title("\n".join(lines), fontsize=7)
        at.tick_params(labelsize=6)
        at.set_xlabel(f"true {panel.label}", fontsize=7)
        at.set_ylabel(f"predicted {panel.label}", fontsize=7)
    save_figure(path, figure)


def draw_reliability(path: Path, table: Any) -> None:
    """Draw the share of true values inside the 68 % and 95 % intervals, per condition.

    `table` is the data frame of benchmark.csv. Grey bands mark 65 to 71 % and 93 to 97 %.
    """
    keys = ["psf_model", "network", "trained_on", "parameter", "condition"]
    table = table.drop_duplicates(keys)  # the first row of each is that of all images
    models = list(dict.fromkeys(table["psf_model"]))
    figure, axes = new_figure(len(models), 2, 5.0, 3.2)
    for row, model in zip(axes, models, strict=True):
        for one, (nominal, half) in zip(row, ((68, 3), (95, 2)), strict=True):
            band = {"color": "0.88", "zorder": 0, "label": f"{nominal} ± {half} %"}
            one.axhspan(nominal - half, nominal + half, **band)
            groups = table[table["psf_model"] == model].groupby(
                ["network", "trained_on", "parameter"], sort=False
            )
            for (network, trained_on, parameter), rows in groups:
                values = 100 * rows[f"coverage_{nominal}"]
                label = plain_text(f"{network} ({trained_on}), {parameter}")
                one.plot(rows["condition"], values, "o-", ms=4, lw=1.2, label=label)
            one.set_ylabel(f"true value within\nthe {nominal} % interval (%)")
            one.set_title(model, fontsize=9)
            one.tick_params(axis="x", rotation=20, labelsize=7)
        row[1].legend(fontsize=6, loc="lower left")
    save_figure(path, figure)
