"""Draw R^2 against the strength of each degradation, from the tables of benchmark_models.py.

    python figure_noise_resistance.py --results results

Reads noise.csv, which `benchmark_models.py --noise` writes. If bayes_reference.csv of
benchmarks/bayes_reference.py lies beside it, the figure also shows the Bayes-optimal estimator.
Writes figure_noise_resistance.png and .pdf; computes nothing.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes

from common.command import run
from common.pictures import network_colours, new_figure, plain_text, save_figure
from psf.errors import InputError

LOWEST_R2 = -0.05  # lower end of the axis: always answering the mean label scores 0
LOGARITHMIC = ("e⁻", "photons/px")  # units whose levels span decades


@dataclass(frozen=True)
class Config:
    """Settings of the figure."""

    results: Path = Path("results")  # folder that holds noise.csv; the figure goes there too
    psf_model: str = "zernike1d"  # draw the networks of this PSF model
    parameter: str = "focus"  # draw R² of this parameter of the PSF model


def read_table(path: Path, maker: str) -> pd.DataFrame:
    """The table of a CSV file.

    Raises
    ------
    InputError
        If the file is missing; `maker` is the command that writes it.
    """
    if not path.is_file():
        raise InputError(f"there is no {path}; make it with {maker}.")
    return pd.read_csv(path)


def draw_panel(axes: Axes, table: pd.DataFrame, reference: pd.DataFrame | None) -> None:
    """Draw one degradation: a line and its 95 % interval per network, the reference dashed."""
    colours = network_colours(table["network"])
    for network, rows in table.groupby("network", sort=False):
        colour = colours[network]
        axes.fill_between(rows["level"], rows["r2_low"], rows["r2_high"], color=colour, alpha=0.12)
        axes.plot(rows["level"], rows["r2"], color=colour, lw=1.5, label=plain_text(network))
    if reference is not None and len(reference):
        axes.plot(
            reference["level"], reference["r2"], "k--", lw=1.2, label="Bayes, Gaussian textures"
        )
    first = table.iloc[0]
    if first["unit"] in LOGARITHMIC:
        axes.set_xscale("log")
    if first["unit"] == "photons/px":
        axes.invert_xaxis()  # the image gets worse to the right in every panel
    if first["degradation"] == "global illumination":
        axes.invert_xaxis()
    axes.set(ylim=(LOWEST_R2, 1.02), title=first["degradation"])
    axes.set_xlabel(f"{first['axis']} ({first['unit']})", fontsize=8)
    axes.set_ylabel("R²")
    axes.grid(alpha=0.3)


def main(config: Config) -> None:
    """Draw one panel per degradation and write the figure."""
    table = read_table(config.results / "noise.csv", "benchmark_models.py --noise")
    table = table[
        (table["psf_model"] == config.psf_model) & (table["parameter"] == config.parameter)
    ]
    if table.empty:
        raise InputError(
            f"{config.results / 'noise.csv'} has no rows of {config.psf_model}, "
            f"{config.parameter}; give --psf-model and --parameter that it holds."
        )
    path = config.results / "bayes_reference.csv"
    reference = pd.read_csv(path) if path.is_file() and config.psf_model == "zernike1d" else None
    names = list(dict.fromkeys(table["degradation"]))
    figure, axes = new_figure(-(-len(names) // 3), 3, 4.2, 3.3)
    for one, name in zip(axes.ravel(), names, strict=False):
        rows = None if reference is None else reference[reference["degradation"] == name]
        draw_panel(one, table[table["degradation"] == name], rows)
    for one in axes.ravel()[len(names) :]:
        one.axis("off")
    handles, labels = axes.ravel()[min(1, len(names) - 1)].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="outside lower center", ncols=len(labels))
    # tables without this column are older and have intervals over patches
    over = "source images" if "source_images" in table else "patches"
    figure.suptitle(
        f"{config.psf_model}, {config.parameter}: test images, 95 % intervals over {over}"
    )
    for suffix in ("png", "pdf"):
        save_figure(config.results / f"figure_noise_resistance.{suffix}", figure)
    print(f"wrote {config.results / 'figure_noise_resistance.png'} and .pdf")


if __name__ == "__main__":
    run(Config, main, __doc__)
