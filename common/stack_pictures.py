"""Pictures of focal stacks: the fit of a bead, and a depth calibration or why it was refused."""

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from common.pictures import (
    COLOURS,
    WARNING_COLOUR,
    add_scale_bar,
    colour_map,
    new_figure,
    plain_text,
    save_figure,
)
from psf.bead import BeadFit
from psf.bead_stack import Scene

SECTION_SHAPES = (0.5, 1.5)  # height / width of an xz section to scale; others fill their panel

# --- beads


def draw_bead_fit(
    path: Path,
    electrons: np.ndarray,
    fit: BeadFit,
    scene: Scene,
    title: str,
    verdict: str,
    is_good: bool,
) -> None:
    """Draw data, model and residual of a bead fit in rows: three planes in xy, and xz.

    Parameters
    ----------
    electrons : (Z, K, K) data; NaN, drawn in grey, for pixels of weight 0
    verdict : sentence on the fit, which is red in the picture if it is not good
    """
    planes, size = len(electrons), electrons.shape[-1]
    pixel_um, step_um = float(scene.microscope.pixel_size_um), scene.z_step_um
    z_um = scene.stage_um(planes) - fit["z_focus_um"]
    focus = int(np.abs(z_um).argmin())
    away = max(1, planes // 4)
    chosen = sorted({max(focus - away, 0), focus, min(focus + away, planes - 1)})
    row = int(np.clip(round(fit["y_px"] + (size - 1) / 2), 0, size - 1))
    variance = np.maximum(fit.model + scene.read_noise_e**2, 1e-9)
    residual = (electrons - fit.model) / np.sqrt(variance)
    reach = max(3.0, float(np.nanpercentile(np.abs(residual), 99.5)))
    extent = (0, size * pixel_um, z_um[-1] + step_um / 2, z_um[0] - step_um / 2)
    figure, axes = new_figure(3, len(chosen) + 1, 2.6, 2.6)
    for column, plane in zip(axes.T, [*chosen, None], strict=True):
        place = "xz" if plane is None else f"z = {z_um[plane]:+.2f} µm"
        cut = np.s_[:, row] if plane is None else plane
        cuts = [stack[cut] for stack in (electrons, fit.model, residual)]
        drawn = _show_cuts(
            column, cuts, fit["background"], reach, place, extent if plane is None else None
        )
        for at in column:
            _label_cut(at, plane is None, pixel_um, size)
    for at in axes[:2, -1]:
        at.set_xlabel("")  # that of the lowest section stands for all
    bar = figure.colorbar(drawn, ax=axes, shrink=0.28, anchor=(0, 0.02))
    bar.set_label("standard deviations of noise", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    masked = "; grey: weight 0" if np.isnan(electrons).any() else ""
    lines = [
        f"{plain_text(title)}: square root of intensity, data and model of a column on one scale"
        f"{masked}",
        *textwrap.wrap(verdict, 130),
    ]
    colour = "black" if is_good else WARNING_COLOUR
    figure.suptitle("\n".join(lines), fontsize=9, color=colour)
    save_figure(path, figure)


def _show_cuts(
    axes: np.ndarray,
    cuts: list[np.ndarray],
    background: float,
    reach: float,
    place: str,
    extent: tuple[float, float, float, float] | None,
) -> AxesImage:
    """Show one cut through data, model and residual; returns the picture of the residual."""
    top = max(float((cuts[1] - background).max()), 1e-9)
    aspect = "equal"
    if extent is not None:
        flattest, tallest = (shape * extent[1] for shape in SECTION_SHAPES)
        if not flattest <= abs(extent[3] - extent[2]) <= tallest:
            aspect = "auto"
    style = {"extent": extent, "aspect": aspect}
    for at, name, cut in zip(axes[:2], ("data", "model"), cuts, strict=False):
        shown = np.ma.masked_invalid(np.sqrt(np.clip((cut - background) / top, 0, None)))
        colours = colour_map("magma").with_extremes(bad="0.5")
        at.imshow(shown, cmap=colours, vmin=0, vmax=1, **style)
        at.set_title(f"{name}, {place}", fontsize=8)
    axes[2].set_title(f"residual, {place}", fontsize=8)
    colours = colour_map("PuOr").with_extremes(bad="0.5")
    residual = np.ma.masked_invalid(cuts[2])
    return axes[2].imshow(residual, cmap=colours, vmin=-reach, vmax=reach, **style)


def _label_cut(axes: Axes, is_section: bool, pixel_um: float, size_px: int) -> None:
    """Give an xz section its axes in um, and an xy plane a scale bar."""
    if is_section:
        axes.set_xlabel("x (µm)", fontsize=7)
        axes.set_ylabel("z from focus (µm)", fontsize=7)
        axes.tick_params(labelsize=6)
    else:
        axes.set(xticks=[], yticks=[])
        add_scale_bar(axes, pixel_um, size_px)


# --- depth calibrations


def draw_depth_calibration(
    path: Path, table: pd.DataFrame, calibration: Any, title: str, warning: str = ""
) -> None:
    """Draw the estimate against z with the fitted curve, and the errors of left-out planes below.

    `table` is that of calibration.csv, `calibration` a `models.depth.DepthCalibration`. The usable
    range is shaded. Bars are one robust standard deviation of the patches of a plane.
    """
    figure = Figure(figsize=(6.2, 5.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2.2, 1))
    for at in (upper, lower):
        _shade_usable(at, calibration)
        at.grid(alpha=0.3)
    _show_curve(upper, table, calibration)
    upper.set_title(
        f"{plain_text(title)}\nplanes left out: {calibration.rms_um:.2g} µm rms in the usable "
        f"range, single patches {calibration.patch_rms_um:.2g} µm",
        fontsize=8,
        parse_math=False,
    )
    if warning:
        lines = "\n".join(textwrap.wrap(f"note: {warning}", 95))
        figure.suptitle(lines, fontsize=8, color=WARNING_COLOUR)
    _show_errors(lower, table, calibration.limit_um)
    room = 0.03 * (table["z_um"].max() - table["z_um"].min())
    upper.set_xlim(table["z_um"].min() - room, table["z_um"].max() + room)
    save_figure(path, figure)


def _sides(calibration: Any) -> tuple[int, ...]:
    """Sides of the focal plane on which the curve is drawn: a distance holds on both."""
    return (1,) if calibration.signed else (1, -1)


def _shade_usable(axes: Axes, calibration: Any) -> None:
    for side in _sides(calibration):
        ends = sorted(calibration.focus_z_um + side * np.array(calibration.usable_um))
        label = "usable range" if side == 1 else None
        axes.axvspan(*ends, color=COLOURS[2], alpha=0.13, lw=0, label=label)


def _show_curve(axes: Axes, table: pd.DataFrame, calibration: Any) -> None:
    """Show the means of the planes and the curve through them."""
    unit = calibration.unit
    values = np.linspace(calibration.values[0], calibration.values[-1], 300)
    for side in _sides(calibration):
        where = calibration.focus_z_um + side * calibration.depth_um(values)
        label = "fitted curve" if side == 1 else None
        axes.plot(where, values, color=COLOURS[1], lw=1.5, label=label)
    if table["z_um"].min() <= calibration.focus_z_um <= table["z_um"].max():
        axes.axvline(calibration.focus_z_um, color="0.4", lw=1, ls="--", label="focal plane")
    style = {"fmt": "o", "ms": 3.5, "lw": 1, "color": COLOURS[0], "label": "mean of a plane"}
    axes.errorbar(table["z_um"], table[f"mean_{unit}"], table[f"spread_{unit}"], **style)
    axes.set_ylabel(f"estimated {calibration.parameter} ({unit})")
    axes.legend(fontsize=7)


def _show_errors(axes: Axes, table: pd.DataFrame, limit_um: float) -> None:
    """Show the errors of left-out planes between the limits; outliers lie on the border."""
    errors = table["error_left_out_um"]
    axes.axhline(0, color="0.4", lw=1)
    for level in (-limit_um, limit_um):
        axes.axhline(level, color=COLOURS[1], lw=1, ls=":")
    reach = min(2 * limit_um, max(1.2 * float(errors.abs().max()), 1e-3))
    axes.plot(table["z_um"], errors.clip(-reach, reach), "o", ms=3.5, color=COLOURS[0])
    axes.set(xlabel="z of the stack (µm)", ylabel="error of planes\nleft out (µm)")
    axes.set_ylim(-1.05 * reach, 1.05 * reach)


def draw_refused_calibration(
    path: Path, table: pd.DataFrame, parameter: str, unit: str, title: str, reason: str
) -> None:
    """Draw the means of the planes against z, and why they give no calibration.

    `table` has the columns of calibration.csv without the errors.
    """
    figure = Figure(figsize=(6.2, 3.8), layout="constrained")
    axes = figure.subplots()
    bars = (table["z_um"], table[f"mean_{unit}"], table[f"spread_{unit}"])
    axes.errorbar(*bars, fmt="o", ms=3.5, lw=1, color=COLOURS[0], label="mean of a plane")
    axes.set(xlabel="z of the stack (µm)", ylabel=f"estimated {parameter} ({unit})")
    axes.grid(alpha=0.3)
    if table[f"mean_{unit}"].notna().any():
        axes.legend(fontsize=7)
    else:
        axes.text(
            0.5, 0.5, "no plane has patches that count", transform=axes.transAxes, ha="center"
        )
    lines = [plain_text(title), *textwrap.wrap(plain_text(f"refused: {reason}"), 95)]
    axes.set_title("\n".join(lines), fontsize=8, color=WARNING_COLOUR)
    save_figure(path, figure)
