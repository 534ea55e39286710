"""Draw R^2 against the strength of each degradation, from the tables of benchmark_models.py.

    python figure_noise_resistance.py --results results

Reads noise.csv, which `benchmark_models.py --noise` writes. Two more tables of the same folder are
drawn if they exist: noise_rivals.csv, which is the noise.csv of networks that are not shipped, and
bayes_reference.csv of benchmarks/bayes_reference.py, the Bayes-optimal estimate on textures.
Writes figure_noise_resistance.png and .pdf; computes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.command import run
from common.pictures import network_colours, new_figure, plain_text, save_figure
from psf.errors import InputError

LOWEST_R2 = -0.05  # lower end of the axis: always answering the mean label scores 0
LOGARITHMIC = ("e⁻", "photons/px")  # units whose levels span decades
LESS_IS_WORSE = ("poisson", "both", "global illumination")
RIVALS = "noise_rivals.csv"
REFERENCE = "bayes_reference.csv"
REFERENCE_OF = ("zernike1d", "focus")  # PSF model and parameter of the reference


@dataclass(frozen=True)
class Config:
    """Settings of the figure."""

    results: Path = Path("results")  # folder that holds noise.csv; the figure goes there too
    psf_model: str = "zernike1d"  # draw the networks of this PSF model
    parameter: str = "focus"  # draw R² of this parameter of the PSF model


def read_scores(config: Config) -> pd.DataFrame:
    """Rows of noise.csv, and of noise_rivals.csv if there is one, for one parameter.

    Raises
    ------
    InputError
        If there is no noise.csv, or no table holds the parameter.
    """
    path = config.results / "noise.csv"
    if not path.is_file():
        raise InputError(f"there is no {path}; make it with benchmark_models.py --noise.")
    rivals = config.results / RIVALS
    paths = [path, rivals] if rivals.is_file() else [path]
    table = pd.concat([pd.read_csv(each) for each in paths], ignore_index=True)
    chosen = (table["psf_model"] == config.psf_model) & (table["parameter"] == config.parameter)
    if not chosen.any():
        raise InputError(
            f"{path} has no rows of {config.psf_model}, {config.parameter}; give --psf-model and "
            "--parameter that it holds."
        )
    return table[chosen]


def network_label(rows: pd.DataFrame) -> str:
    """Name of a network with the number of patches it has seen, if the table holds it."""
    name = plain_text(str(rows["network"].iloc[0]))
    seen = rows["patches_seen"].iloc[0] if "patches_seen" in rows else 0
    return f"{name} ({round(seen, -3):,.0f} patches seen)" if seen > 0 else name


def draw_panel(
    axes: Axes, table: pd.DataFrame, reference: pd.DataFrame | None, colours: dict[str, str]
) -> None:
    """Draw one degradation: a line and its 95 % interval per network, the reference dashed."""
    for network, rows in table.groupby("network", sort=False):
        colour, label = colours[network], network_label(rows)
        axes.fill_between(
            rows["level"], rows["r2_low"], rows["r2_high"], color=colour, alpha=0.12, lw=0
        )
        width = 1.3 if axes.lines else 2.6  # the first line stays visible below the others
        axes.plot(rows["level"], rows["r2"], color=colour, lw=width, label=label)
    if reference is not None and len(reference):
        label = "Bayes-optimal, Gaussian textures"
        axes.plot(reference["level"], reference["r2"], "k--", lw=1.2, label=label)
    first = table.iloc[0]
    if first["unit"] in LOGARITHMIC:
        axes.set_xscale("log")
    if first["degradation"] in LESS_IS_WORSE:
        axes.invert_xaxis()  # the image gets worse to the right in every panel
    axes.set(ylim=(LOWEST_R2, 1.02), title=first["degradation"])
    axes.set_xlabel(f"{first['axis']} ({first['unit']})", fontsize=8)
    axes.grid(alpha=0.3)


def share_photons(axes: Sequence[Axes], units: Sequence[str]) -> None:
    """Give the panels of photons the same limits."""
    panels = [one for one, unit in zip(axes, units, strict=False) if unit == "photons/px"]
    limits = [one.get_xlim() for one in panels]  # the brightest first
    for one in panels:
        one.set_xlim(max(high for high, _ in limits), min(low for _, low in limits))


def draw(table: pd.DataFrame, reference: pd.DataFrame | None) -> Figure:
    """Figure with one panel per degradation and one legend below."""
    names = list(dict.fromkeys(table["degradation"]))
    colours = network_colours(table["network"])
    figure, axes = new_figure(-(-len(names) // 3), 3, 4.2, 3.0)
    for one, name in zip(axes.ravel(), names, strict=False):
        rows = None if reference is None else reference[reference["degradation"] == name]
        draw_panel(one, table[table["degradation"] == name], rows, colours)
    share_photons(axes.ravel(), table.drop_duplicates("degradation")["unit"].tolist())
    for one in axes[:, 0]:
        one.set_ylabel(f"R² of {table['parameter'].iloc[0]}")
    for one in axes.ravel()[len(names) :]:
        one.axis("off")
    entries: dict[str, Artist] = {}
    for one in axes.ravel()[: len(names)]:
        for handle, label in zip(*one.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    style = {"fontsize": 8, "loc": "outside lower center", "ncols": min(len(entries), 4)}
    figure.legend(entries.values(), entries.keys(), **style)
    # Older tables lack the column of source images; their intervals are over patches.
    over = "source images" if "source_images" in table else "patches"
    counts = " to ".join(f"{n:,}" for n in sorted({table["patches"].min(), table["patches"].max()}))
    figure.suptitle(
        f"{table['psf_model'].iloc[0]}: {counts} test patches at each level, 95 % intervals over "
        f"{over}",
        fontsize=10,
    )
    return figure


def main(config: Config) -> None:
    """Draw the tables and write the figure."""
    table, path = read_scores(config), config.results / REFERENCE
    has_reference = path.is_file() and (config.psf_model, config.parameter) == REFERENCE_OF
    figure = draw(table, pd.read_csv(path) if has_reference else None)
    for suffix in ("png", "pdf"):
        save_figure(config.results / f"figure_noise_resistance.{suffix}", figure)
    print(f"wrote {config.results / 'figure_noise_resistance.png'} and .pdf")


if __name__ == "__main__":
    run(Config, main, __doc__)
