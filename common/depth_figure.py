"""Figure of the tilted planes: what `figure_depth.py` measured, drawn from its tables."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.pictures import COLOURS, new_figure

PAPER_UM = 2.0  # precision of depth in Shajkofci & Liebling 2020
LENSES = {"astigmatic": "cylindrical lens", "zernike1d": "no lens"}  # title of each PSF model


def draw_depth_figure(
    table: pd.DataFrame, summary: pd.DataFrame, bound: pd.DataFrame | None = None
) -> Figure:
    """Figure of profiles with and without the lens, their errors, and single patches.

    `table`, `summary` and `bound` are depth.csv, depth_summary.csv and depth_bound.csv.
    """
    figure, axes = new_figure(2, 3, 4.6, 3.6)
    most, least = table["photons"].max(), table["photons"].min()
    _draw_profiles(axes[0, 0], table, "astigmatic", most)
    _draw_profiles(axes[0, 1], table, "astigmatic", least)
    _draw_profiles(axes[0, 2], table, "zernike1d", most)
    _draw_residuals(axes[1, 0], table, most)
    _draw_precision(axes[1, 1], summary)
    _draw_bound(axes[1, 2], table, bound)
    figure.suptitle("Depth of tilted planes, calibrated on another plane and texture", fontsize=10)
    return figure


def _draw_profiles(axes: Axes, table: pd.DataFrame, model: str, photons: float) -> None:
    """Draw depth against truth, a line per tilt, with the spread of single patches."""
    rows = table[(table["model"] == model) & (table["photons"] == photons)]
    for i, (degrees, group) in enumerate(rows.groupby("degrees")):
        mean = group.groupby("z_um")[["truth_um", "depth_um", "spread_um"]].mean()
        style = {"color": COLOURS[i], "lw": 1, "ms": 3, "fmt": "o-", "alpha": 0.8}
        axes.errorbar(
            mean.index, mean["depth_um"], mean["spread_um"], label=f"{degrees:g}°", **style
        )
    z = np.array([-30.0, 0.0, 30.0])
    axes.plot(z, z if model == "astigmatic" else np.abs(z), "k--", lw=1, label="truth")
    axes.set(xlim=(-30, 30), ylim=(-30, 30) if model == "astigmatic" else (-3, 30))
    axes.set_title(f"{LENSES[model]}, {photons:g} photons per pixel", fontsize=9)
    axes.set(xlabel="true depth (µm)", ylabel="estimated depth (µm)")
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)


def _draw_residuals(axes: Axes, table: pd.DataFrame, photons: float) -> None:
    """Draw the error of profiles against depth, a colour per texture, all tilts."""
    rows = table[(table["model"] == "astigmatic") & (table["photons"] == photons)]
    rows = rows[rows["usable"]]
    for i, (name, group) in enumerate(rows.groupby("texture")):
        axes.plot(
            group["z_um"],
            group["depth_um"] - group["truth_um"],
            ".",
            ms=3,
            color=COLOURS[i],
            label=name.replace("_", " "),
        )
    for level in (-PAPER_UM, PAPER_UM):
        axes.axhline(level, color="k", ls=":", lw=1, label="paper: 2 µm" if level > 0 else None)
    axes.set_title(f"residuals, cylindrical lens, {photons:g} photons per pixel", fontsize=9)
    axes.set(xlabel="true depth (µm)", ylabel="error of the profile (µm)", ylim=(-5, 5))
    axes.legend(fontsize=6)
    axes.grid(alpha=0.3)


def _conditions(table: pd.DataFrame) -> list[tuple[str, float]]:
    """PSF models and photons per pixel; their order is that of the colours in all panels."""
    levels = sorted(table["photons"].unique(), reverse=True)
    return [(model, photons) for model in LENSES for photons in levels]


def _draw_precision(axes: Axes, summary: pd.DataFrame) -> None:
    """Draw the rms error of profiles and of single patches against tilt."""
    for i, (model, photons) in enumerate(_conditions(summary)):
        group = summary[(summary["model"] == model) & (summary["photons"] == photons)]
        label = f"{LENSES[model]}, {photons:g} photons"
        axes.plot(group["degrees"], group["profile_rms_um"], "o-", color=COLOURS[i], label=label)
        axes.plot(group["degrees"], group["patch_rms_um"], "s:", color=COLOURS[i], lw=1, ms=4)
    axes.axhline(PAPER_UM, color="k", ls=":", lw=1)
    axes.set_title("precision: profiles (solid), single patches (dotted)", fontsize=9)
    axes.set(xlabel="tilt (degrees)", ylabel="rms error (µm); dotted black: paper", yscale="log")
    axes.set_yticks((0.2, 0.5, 1, 2, 5), ("0.2", "0.5", "1", "2", "5"), minor=False)
    axes.yaxis.set_minor_formatter("")
    axes.set_ylim(0.15, 7)  # the legend has room above the points
    axes.legend(fontsize=6.5, loc="upper center", ncols=2)
    axes.grid(alpha=0.3, which="both")


def _draw_bound(axes: Axes, table: pd.DataFrame, bound: pd.DataFrame | None) -> None:
    """Draw the rms error of single patches against depth, beside the Cramer-Rao bound."""
    for i, (model, photons) in enumerate(_conditions(table)):
        rows = table[(table["model"] == model) & (table["photons"] == photons) & table["usable"]]
        # at the least tilt depth hardly changes within a patch
        rows = rows[rows["degrees"] == rows["degrees"].min()]
        bins = (rows["truth_um"] / 2).round() * 2
        sums = rows.groupby(bins)[["patch_square_error_um2", "patches"]].sum()
        rms = (sums["patch_square_error_um2"] / sums["patches"]).pow(0.5)
        label = f"{LENSES[model]}, {photons:g} photons"
        axes.plot(rms.index, rms, "-", color=COLOURS[i], lw=1.2, label=label)
        if bound is not None:
            line = bound[(bound["model"] == model) & (bound["photons"] == photons)]
            axes.plot(line["z_um"], line["sd_um"], "--", color=COLOURS[i], lw=1)
    axes.axhline(PAPER_UM, color="k", ls=":", lw=1)
    axes.set_title("single patches, least tilt (solid), Cramér-Rao bound (dashed)", fontsize=9)
    axes.set(xlabel="true depth (µm)", ylabel="rms error (µm)", yscale="log", ylim=(0.03, 30))
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3, which="both")
