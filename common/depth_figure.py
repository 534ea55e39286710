"""Figure of the tilted planes: what `figure_depth.py` measured, drawn from its tables.

The colour of a lens and a number of photons is the same in all panels. Tilts differ by marker,
textures by grey marker.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from common.depth_scores import PAPER_UM, UNSIGNED_UM
from common.pictures import COLOURS, new_figure

# Title of each PSF model.
LENSES = {"astigmatic": "cylindrical lens", "zernike1d": "no lens"}
# Blue with the lens and orange without; dark for many photons and light for few.
SHADES = {"astigmatic": (COLOURS[0], COLOURS[5]), "zernike1d": (COLOURS[1], COLOURS[4])}
MARKERS = ("o", "s", "^", "D", "v", "P")  # of tilts, and of textures in grey
SHOWN_UM = 32.0  # depths in the panels: 1.6 times the usable range with the lens
BIN_UM = 2.0  # width of the bins of depth for single patches: two columns at 3 degrees
BAND = {"color": "0.92", "lw": 0, "zorder": 0}  # usable range
PAPER_LINE = {"color": "k", "ls": ":", "lw": 1}

ROW_LABELS = ("estimated depth (µm)", "refused patches (%)", "rms error of a patch (µm)")

Condition = tuple[str, float]  # PSF model and photons per pixel


def draw_depth_figure(
    table: pd.DataFrame, summary: pd.DataFrame, bound: pd.DataFrame | None = None
) -> Figure:
    """Figure of the depth of tilted planes, with a column of panels per lens and photon level.

    Its rows show the profiles, the share of refused patches, and the errors of single patches
    beside the Cramér-Rao bound. The last row has the errors by texture and by tilt. `table`,
    `summary` and `bound` are depth.csv, depth_summary.csv and depth_bound.csv.
    """
    colours = condition_colours(table)
    columns = max(len(colours), 2)
    figure, _ = new_figure(1, 1, 2.9 * columns, 9.6)
    figure.clear()
    grid = figure.add_gridspec(4, columns, height_ratios=(1.25, 0.75, 1, 1))
    for i, (condition, colour) in enumerate(colours.items()):
        rows = _of(table, condition)
        top, middle, low = (figure.add_subplot(grid[k, i]) for k in range(3))
        _draw_profiles(top, rows, condition, colour)
        _draw_refused(middle, rows, colour)
        _draw_patches(low, rows, None if bound is None else _of(bound, condition), colour)
        for axes, label in zip((top, middle, low), ROW_LABELS, strict=True):
            _finish(axes, rows, label if i == 0 else "")
    half = columns // 2
    _draw_textures(figure.add_subplot(grid[3, :half]), table, next(iter(colours)))
    _draw_precision(figure.add_subplot(grid[3, half:]), summary, colours)
    _add_legend(figure, sorted(table["degrees"].unique()))
    return figure


def condition_colours(table: pd.DataFrame) -> dict[Condition, str]:
    """Colour of each PSF model and number of photons in a table, with the lens first."""
    found = {}
    for model, shades in SHADES.items():
        levels = sorted(table.loc[table["model"] == model, "photons"].unique(), reverse=True)
        found |= {(model, level): shades[min(k, 1)] for k, level in enumerate(levels)}
    return found


def _of(table: pd.DataFrame, condition: Condition) -> pd.DataFrame:
    """Rows of one condition."""
    model, photons = condition
    return table[(table["model"] == model) & (table["photons"] == photons)]


def _finish(axes: Axes, rows: pd.DataFrame, label: str) -> None:
    """Give a panel its depth axis, the band of the usable range and the label of its row."""
    usable = rows.loc[rows["usable"], "truth_um"]
    if (rows["truth_um"] < 0).any():
        axes.axvspan(usable.min(), usable.max(), **BAND)
    else:  # distances, which hold on both sides of focus
        nearest = usable.min() if usable.min() > UNSIGNED_UM[0] else 0.0
        for side in (-1, 1):
            axes.axvspan(side * nearest, side * usable.max(), **BAND)
    axes.set(xlim=(-SHOWN_UM, SHOWN_UM), xticks=range(-30, 31, 10))
    axes.set_xlabel("true depth (µm)", fontsize=8)
    axes.set_ylabel(label, fontsize=8)
    axes.tick_params(labelsize=7)
    if not label:
        axes.tick_params(labelleft=False)
    axes.grid(alpha=0.3)


def _tilts(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Marker and rows of each tilt, the least one first."""
    return list(zip(MARKERS, (group for _, group in rows.groupby("degrees")), strict=False))


def _draw_profiles(axes: Axes, rows: pd.DataFrame, condition: Condition, colour: str) -> None:
    """Draw depth against truth, averaged over textures, with the spread of single patches.

    Columns most of whose patches were refused have empty markers.
    """
    model, photons = condition
    for marker, group in _tilts(rows):
        columns = group.groupby("z_um")
        mean = columns[["depth_um", "spread_um"]].mean()
        sums = columns[["refused", "patches"]].sum()
        refused = (sums["refused"] > sums["patches"] / 2).to_numpy()
        for chosen, face in ((~refused, colour), (refused, "none")):
            at = mean[chosen]
            style = {"fmt": marker, "color": colour, "mfc": face, "ms": 3, "mew": 0.7}
            axes.errorbar(at.index, at["depth_um"], at["spread_um"], elinewidth=0.5, **style)
    z = np.array([-SHOWN_UM, 0.0, SHOWN_UM])
    axes.plot(z, z if model == "astigmatic" else np.abs(z), "k-", lw=0.7)
    axes.set(ylim=(-SHOWN_UM, SHOWN_UM), yticks=range(-30, 31, 10))
    if model != "astigmatic":
        axes.text(0, -20, "distance from focus:\nno sign without the lens", ha="center", fontsize=7)
    title = f"{LENSES[model]}, {photons:g} photons/pixel"
    axes.set_title(title, fontsize=9, color=colour, fontweight="bold")


def _draw_refused(axes: Axes, rows: pd.DataFrame, colour: str) -> None:
    """Draw the share of refused patches against depth, over all textures."""
    for marker, group in _tilts(rows):
        sums = group.groupby("z_um")[["refused", "patches"]].sum()
        share = 100 * sums["refused"] / sums["patches"]
        axes.plot(share.index, share, marker=marker, ms=3, lw=0.8, color=colour)
    axes.set(ylim=(-4, 104), yticks=(0, 50, 100))


def _draw_patches(axes: Axes, rows: pd.DataFrame, bound: pd.DataFrame | None, colour: str) -> None:
    """Draw the rms error of single patches against depth, above the Cramér-Rao bound.

    The least tilt is drawn: there depth hardly changes within a patch.
    """
    rows = rows[rows["usable"] & (rows["degrees"] == rows["degrees"].min())]
    sums = rows.groupby((rows["z_um"] / BIN_UM).round() * BIN_UM)[
        ["patch_square_error_um2", "patches", "refused"]
    ].sum()
    accepted = (sums["patches"] - sums["refused"]).replace(0, np.nan)
    rms = (sums["patch_square_error_um2"] / accepted).pow(0.5)
    axes.plot(rms.index, rms, "-", color=colour, lw=1.5)
    axes.axhline(PAPER_UM, **PAPER_LINE)
    axes.text(-31, PAPER_UM * 1.1, "paper: 2 µm", fontsize=6.5, va="bottom")
    if bound is not None and len(bound):
        # Without the lens the bound is a function of the distance, so it holds on both sides.
        mirrored = bound.assign(z_um=-bound["z_um"]).iloc[::-1]
        line = pd.concat([mirrored, bound]) if bound["z_um"].min() >= 0 else bound
        axes.plot(line["z_um"], line["sd_um"], "--", color="k", lw=1.2)
        axes.text(0, 0.022, "dashed: Cramér-Rao bound", fontsize=7, ha="center")
    axes.set(yscale="log", ylim=(0.015, 15))
    axes.set_yticks((0.1, 1, 10), ("0.1", "1", "10"))


def _draw_textures(axes: Axes, table: pd.DataFrame, condition: Condition) -> None:
    """Draw the error of profiles against depth, a grey marker per texture, all tilts."""
    rows = _of(table, condition)
    groups = list(rows[rows["usable"]].groupby("texture"))
    greys = np.linspace(0.0, 0.65, len(groups))
    for (name, group), marker, grey in zip(groups, MARKERS, greys, strict=False):
        error = group["depth_um"] - group["truth_um"]
        style = {"ls": "", "ms": 3, "mew": 0.6, "mfc": "none", "color": str(grey)}
        axes.plot(group["z_um"], error, marker=marker, label=name.replace("_", " "), **style)
    for level in (-PAPER_UM, PAPER_UM):
        axes.axhline(level, **PAPER_LINE)
    title = f"profiles by texture: {LENSES[condition[0]]}, {condition[1]:g} photons/pixel"
    axes.set_title(title, fontsize=8)
    axes.set(ylim=(-5, 5))
    axes.set_xlabel("true depth (µm)", fontsize=8)
    axes.set_ylabel("error (µm)", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=6.5, ncols=4, loc="upper center", columnspacing=1, handletextpad=0.2)
    axes.grid(alpha=0.3)


def _draw_precision(axes: Axes, summary: pd.DataFrame, colours: dict[Condition, str]) -> None:
    """Draw the rms error of profiles and of single patches against tilt."""
    for condition, colour in colours.items():
        group = _of(summary, condition)
        axes.plot(group["degrees"], group["profile_rms_um"], "-", color=colour, lw=1.5)
        axes.plot(group["degrees"], group["patch_rms_um"], ":", color=colour, lw=1.5)
        for marker, (_, row) in zip(MARKERS, group.iterrows(), strict=False):
            both = row[["profile_rms_um", "patch_rms_um"]]
            axes.plot([row["degrees"]] * 2, both, marker, ls="", ms=4, color=colour)
    axes.axhline(PAPER_UM, **PAPER_LINE)
    axes.set_title("all textures: profiles (solid), single patches (dotted)", fontsize=8)
    axes.set(yscale="log", ylim=(0.1, 10))
    axes.set_ylabel("rms error (µm)", fontsize=8)
    axes.set_yticks((0.1, 0.2, 0.5, 1, 2, 5, 10), ("0.1", "0.2", "0.5", "1", "2", "5", "10"))
    axes.minorticks_off()
    axes.set_xticks(sorted(summary["degrees"].unique()))
    axes.set_xlabel("tilt (degrees)", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)


def _add_legend(figure: Figure, tilts: Sequence[float]) -> None:
    """Add the legend of tilts, truth and usable range below the panels."""
    grey = {"color": "0.4", "ls": ""}
    handles = [
        Line2D([], [], marker=marker, ms=4, label=f"tilt of {tilt:g}°", **grey)
        for marker, tilt in zip(MARKERS, tilts, strict=False)
    ]
    handles += [
        Line2D([], [], marker="o", ms=4, mfc="none", label="most patches refused", **grey),
        Line2D([], [], color="k", lw=0.7, label="truth"),
        Line2D([], [], color="0.85", lw=6, label="usable range"),
        Line2D([], [], label="precision in the paper", **PAPER_LINE),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=7.5)
