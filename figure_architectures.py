"""Draw R^2 of each architecture against the patches it has seen and the seconds of its training.

    python benchmarks/architectures.py --data data/zernike1d --patches 300000
    python figure_architectures.py --results results

Reads architectures.csv. Writes figure_architectures.png and .pdf; computes nothing. Lines: held-out
validation images, after each epoch. Points: test images, with 95 % intervals over source images.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from common.command import run
from common.pictures import network_colours, new_figure, plain_text, save_figure
from psf.errors import InputError

# Panels from left to right. Scores of 8-bit images hardly differ from those without noise.
SHOWN = ("noise-free", "1000 photons", "100 photons", "10 photons")
AXES = {"patches_seen": "patches seen", "seconds": "seconds of training"}  # rows of panels
# The axis shows 1 - R^2 on a logarithmic scale, since R^2 of 0.98 and 0.99 are far apart.
TICKS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995)
LABEL_GAP = 0.075  # least distance of two labels, as a share of the panel's height


@dataclass(frozen=True)
class Config:
    """Settings of the figure."""

    results: Path = Path("results")  # folder that holds architectures.csv; the figure goes there
    parameter: str | None = None  # parameter of the PSF to draw (default: the first one)


def read_table(config: Config) -> pd.DataFrame:
    """Rows of architectures.csv for one parameter of the PSF.

    Raises
    ------
    InputError
        If there is no table, or it does not hold the parameter.
    """
    path = config.results / "architectures.csv"
    if not path.is_file():
        raise InputError(f"there is no {path}; make it with benchmarks/architectures.py.")
    table = pd.read_csv(path)
    parameters = list(dict.fromkeys(table["parameter"]))
    parameter = config.parameter or parameters[0]
    if parameter not in parameters:
        raise InputError(
            f"{path} has no rows of {parameter}; give --parameter {' or '.join(parameters)}."
        )
    return table[table["parameter"] == parameter]


def unexplained(r2: pd.Series) -> np.ndarray:
    """1 - R^2, at most 1: a lower R^2 says no more than that the network has learned nothing."""
    return np.minimum(1 - r2.to_numpy(float), 1.0)


def draw_panel(axes: Axes, table: pd.DataFrame, x: str, colours: dict[str, str]) -> None:
    """Draw one condition: a line and a point with its interval for each network."""
    for network, rows in table.groupby("network", sort=False):
        colour = colours[network]
        epochs = rows[rows["split"] == "validation"].sort_values(x)
        axes.plot(epochs[x], unexplained(epochs["r2"]), color=colour, lw=1.5)
        tested = rows[rows["split"] == "test"]
        middle, low, high = (unexplained(tested[c]) for c in ("r2", "r2_low", "r2_high"))
        ends = np.nan_to_num([middle - high, low - middle])  # no interval from a single image
        style = {"color": colour, "fmt": "o", "ms": 5, "mec": "white", "capsize": 2, "zorder": 3}
        axes.errorbar(tested[x], middle, ends.clip(min=0), **style)
    axes.set(xscale="log", yscale="log")
    # labels between the powers of ten would overlap in panels as narrow as these
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)


def scale_rows(axes: np.ndarray, table: pd.DataFrame) -> None:
    """Give all panels the same axis of R^2."""
    shown = table[table["condition"].isin(SHOWN)]
    best = np.nanmax(shown[["r2", "r2_high"]].to_numpy(float))
    lowest = max(0.7 * (1 - best), 3e-4)
    ticks = [tick for tick in TICKS if 1 - tick >= lowest]
    for panel in axes.ravel():
        panel.set_ylim(1.08, lowest)
        panel.set_yticks([1 - tick for tick in ticks], [f"{tick:g}" for tick in ticks])
        panel.yaxis.set_minor_locator(NullLocator())
    for panel in axes[:, 1:].ravel():
        panel.tick_params(labelleft=False)


def label_lines(axes: Axes, table: pd.DataFrame, x: str, colours: dict[str, str]) -> None:
    """Write the name of each network to the right of the panel, beside the end of its line."""
    ends = {}
    for network, rows in table[table["split"] == "validation"].groupby("network", sort=False):
        last = rows.sort_values(x).iloc[-1:]
        at = np.column_stack([last[x], unexplained(last["r2"])])
        ends[network] = axes.transAxes.inverted().transform(axes.transData.transform(at))[0]
    heights = spread([end[1] for end in ends.values()], LABEL_GAP)
    for (network, end), height in zip(ends.items(), heights, strict=True):
        colour = colours[network]
        line = {"arrowstyle": "-", "color": colour, "lw": 0.6, "shrinkA": 1, "shrinkB": 1}
        axes.annotate(
            plain_text(network),
            end,
            (1.06, height),
            "axes fraction",
            "axes fraction",
            line,
            color=colour,
            fontsize=8,
            va="center",
        )


def spread(heights: list[float], gap: float) -> list[float]:
    """Heights moved apart so that neighbours are at least `gap` away; their order stays."""
    order = np.argsort(heights)
    moved = np.asarray(heights, float)[order]
    for _ in range(200):  # enough for a dozen labels on the same place
        for i in range(len(moved) - 1):
            lack = gap - (moved[i + 1] - moved[i])
            if lack > 0:
                moved[i] -= lack / 2
                moved[i + 1] += lack / 2
    out = np.empty_like(moved)
    out[order] = moved
    return out.tolist()


def draw(table: pd.DataFrame) -> Figure:
    """Figure with a column per condition; above against patches seen, below against seconds."""
    conditions = [name for name in SHOWN if name in set(table["condition"])]
    colours = network_colours(table["network"])
    figure, axes = new_figure(len(AXES), len(conditions), 2.6, 2.7)
    for row, x in zip(axes, AXES, strict=True):
        for panel, condition in zip(row, conditions, strict=True):
            draw_panel(panel, table[table["condition"] == condition], x, colours)
            panel.set_xlabel(AXES[x])
    for panel, condition in zip(axes[0], conditions, strict=True):
        panel.set_title(condition.replace("photons", "photons/px"), fontsize=10)
    for panel in axes[:, 0]:
        panel.set_ylabel(f"R² of {table['parameter'].iloc[0]} (1 - R² on a log scale)", fontsize=8)
    scale_rows(axes, table)
    figure.draw_without_rendering()  # places the panels, and with them the ends of the lines
    for panel, x in zip(axes[:, -1], AXES, strict=True):
        label_lines(panel, table[table["condition"] == conditions[-1]], x, colours)
    processors = ", ".join(dict.fromkeys(table["processor"].dropna()))
    figure.suptitle(
        f"{table['psf_model'].iloc[0]}: validation images (lines) and test images (points, 95 % "
        f"intervals over source images)\ntrained on {plain_text(processors)}",
        fontsize=10,
    )
    return figure


def main(config: Config) -> None:
    """Draw the table and write the figure."""
    figure = draw(read_table(config))
    for suffix in ("png", "pdf"):
        save_figure(config.results / f"figure_architectures.{suffix}", figure)
    print(f"wrote {config.results / 'figure_architectures.png'} and .pdf")


if __name__ == "__main__":
    run(Config, main, __doc__)
