"""Pictures that a script leaves beside its result: maps, restorations, bead fits, depth curves."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from common.pictures import COLOURS, add_scale_bar, colour_map, new_figure, save_figure, show_image
from psf.bead import BeadFit, Scene
from psf.microscope import Microscope

MOST_COLUMNS = 5  # panels in a row; more are too small to read on a page

# --- maps


class PsfMap(Protocol):
    """What `draw_map` needs of a `models.mapping.PsfMap`."""

    names: tuple[str, ...]
    unit: str
    microscope: Microscope
    values: torch.Tensor  # (P, R, C)
    standard_deviations: torch.Tensor  # (P, R, C)
    content: torch.Tensor  # (R, C) probability
    has_content: torch.Tensor  # (R, C) bool
    rows: torch.Tensor  # (R,) pixels of the camera
    columns: torch.Tensor  # (C,)


class _Panel(NamedTuple):
    """One map in the overview."""

    values: torch.Tensor  # (R, C); NaN is grey
    title: str
    unit: str
    limits: tuple[float, float]
    colours: str = "viridis"


def draw_map(
    path: Path,
    image: torch.Tensor,
    psf_map: PsfMap,
    title: str,
    truth: torch.Tensor | None = None,
    depth: tuple[np.ndarray, str] | None = None,
    shrunk: float = 1.0,
) -> None:
    """Draw the image, each parameter with its standard deviation, depth, and the content.

    Parameters
    ----------
    image : the whole field, with `shrunk` times fewer pixels along each axis than the camera's
    truth : (R, C) of the first parameter; it is shown on the scale of the estimate, whose title
        then has the rms error
    depth : (R, C) in um, and its name
    """
    panels = list(_parameter_panels(psf_map, truth))
    if depth is not None:
        panels.append(_depth_panel(*depth, psf_map.has_content))
    panels.append(_Panel(psf_map.content, "content", "probability", (0, 1), "gray"))
    rows = -(-(1 + len(panels)) // MOST_COLUMNS)
    figure, axes = new_figure(rows, -(-(1 + len(panels)) // rows), 3.1, 2.9)
    first, *others = axes.ravel()
    _show_field(first, image, psf_map, shrunk)
    step_px = float(psf_map.rows[1] - psf_map.rows[0]) if len(psf_map.rows) > 1 else 1.0
    for at, panel in zip(others, panels, strict=False):
        _show_panel(at, panel, step_px * psf_map.microscope.pixel_size_um)
    for unused in others[len(panels) :]:
        unused.axis("off")
    figure.suptitle(title, fontsize=9)
    save_figure(path, figure)


def _parameter_panels(psf_map: PsfMap, truth: torch.Tensor | None) -> Iterator[_Panel]:
    """Each parameter, the first one beside its truth, and its standard deviation."""
    unit, has_content = psf_map.unit, psf_map.has_content
    for p, name in enumerate(psf_map.names):
        values, deviations = psf_map.values[p], psf_map.standard_deviations[p]
        found, widths = values[has_content], deviations[has_content]
        limits, title = _limits(found), f"{name} (grey: no content)"
        if p == 0 and truth is not None:
            limits = _limits(torch.cat([found, truth.flatten()]))
            yield _Panel(_masked(truth, has_content), f"true {name}", unit, limits)
            error = (values - truth)[has_content].square().mean().sqrt()
            title = f"estimated {name}: rms error {error:.2f} {unit}"
        yield _Panel(_masked(values, has_content), title, unit, limits)
        title, limits = f"standard deviation of {name}", (0.0, _limits(widths)[1])
        yield _Panel(_masked(deviations, has_content), title, unit, limits, "cividis")


def _depth_panel(values: np.ndarray, name: str, has_content: torch.Tensor) -> _Panel:
    """Depth where there is content and the depth is known."""
    depth = torch.from_numpy(np.asarray(values, np.float32))
    known = has_content & depth.isfinite()
    title = name.replace("(um)", "(µm)")
    if bool((has_content & ~known).any()):
        title += ", grey also out of range"
    return _Panel(_masked(depth, known), title, "µm", _limits(depth[known]))


def _masked(values: torch.Tensor, has_content: torch.Tensor) -> torch.Tensor:
    return torch.where(has_content, values, torch.nan)


def _show_field(axes: Axes, image: torch.Tensor, psf_map: PsfMap, shrunk: float) -> None:
    """Show the image with a frame around the centres of the patches."""
    show_image(axes, image.numpy(), "image (dashed: mapped region)")
    add_scale_bar(axes, psf_map.microscope.pixel_size_um * shrunk, image.shape[1])
    corner = float(psf_map.columns[0]) / shrunk, float(psf_map.rows[0]) / shrunk
    extent = (float(at[-1] - at[0]) / shrunk for at in (psf_map.columns, psf_map.rows))
    axes.add_patch(Rectangle(corner, *extent, fill=False, color=COLOURS[4], lw=1.5, ls="--"))


def _show_panel(axes: Axes, panel: _Panel, pixel_um: float) -> None:
    drawn = axes.imshow(
        np.ma.masked_invalid(panel.values.numpy()),
        cmap=colour_map(panel.colours),
        vmin=panel.limits[0],
        vmax=panel.limits[1],
    )
    axes.figure.colorbar(drawn, ax=axes, shrink=0.8, label=panel.unit)
    axes.set(xticks=[], yticks=[])
    axes.set_title(panel.title, fontsize=8)
    add_scale_bar(axes, pixel_um, panel.values.shape[1])


def _limits(values: torch.Tensor) -> tuple[float, float]:
    """Range of a colour scale: percentiles 1 and 99, or 0 to 1 without any values."""
    if not len(values):
        return 0.0, 1.0
    low, high = np.percentile(values.numpy(), (1, 99))
    return float(low), float(max(high, low + 1e-6))


# --- restorations


def draw_restoration(
    path: Path,
    before: np.ndarray,
    after: np.ndarray,
    pixel_size_um: float,
    title: str,
    insets: int = 3,
) -> None:
    """Draw input and result (H, W) side by side, and enlarge the places where they differ most."""
    before, after = (np.asarray(image, np.float32) for image in (before, after))
    edge = max(32, min(before.shape) // 6)
    places = busiest(after - before, edge, insets)
    figure = Figure(figsize=(10, 7.4), layout="constrained")
    grid = figure.add_gridspec(2, 2 * max(len(places), 1), height_ratios=(3, 1))
    half = max(len(places), 1)
    low, high = np.percentile(before, (0.5, 99.8))
    for column, (image, name) in enumerate(((before, "input"), (after, "restored"))):
        axes = figure.add_subplot(grid[0, column * half : (column + 1) * half])
        axes.imshow(image, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
        axes.set_title(name, fontsize=9)
        axes.set(xticks=[], yticks=[])
        add_scale_bar(axes, pixel_size_um, image.shape[1])
        for (top, left), colour in zip(places, COLOURS, strict=False):
            corner = (left - 0.5, top - 0.5)
            axes.add_patch(Rectangle(corner, edge, edge, fill=False, color=colour, lw=1.5))
            inset = figure.add_subplot(grid[1, 2 * places.index((top, left)) + column])
            part = image[top : top + edge, left : left + edge]
            inset.imshow(part, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
            inset.set(xticks=[], yticks=[])
            inset.set_title(name, fontsize=7)
            for spine in inset.spines.values():
                spine.set(color=colour, lw=2)
    figure.suptitle(title, fontsize=9)
    save_figure(path, figure)


def busiest(difference: np.ndarray, edge: int, count: int) -> list[tuple[int, int]]:
    """Corners (top, left) of the `count` squares with the largest differences, none overlapping."""
    power = np.asarray(difference, float) ** 2
    rows, columns = (length // edge for length in power.shape)
    cells = power[: rows * edge, : columns * edge].reshape(rows, edge, columns, edge).sum((1, 3))
    order = np.argsort(cells, axis=None)[::-1][:count]
    return sorted((int(i // columns) * edge, int(i % columns) * edge) for i in order)


# --- beads


def draw_bead_fit(
    path: Path, electrons: np.ndarray, fit: BeadFit, scene: Scene, title: str
) -> None:
    """Draw data, model and residual of a bead fit in rows: three planes in xy, and xz.

    `electrons` (Z, K, K) are the data.
    """
    planes, size = len(electrons), electrons.shape[-1]
    pixel_um, step_um = float(scene.microscope.pixel_size_um), scene.z_step_um
    z_um = (np.arange(planes) - (planes - 1) / 2) * step_um - fit["z_focus_um"]
    focus = int(np.abs(z_um).argmin())
    chosen = sorted({max(focus - planes // 4, 0), focus, min(focus + planes // 4, planes - 1)})
    row = int(np.clip(round(fit["y_px"] + (size - 1) / 2), 0, size - 1))
    residual = (electrons - fit.model) / np.sqrt(np.maximum(fit.model, 1))
    reach = max(3.0, float(np.percentile(np.abs(residual), 99.5)))
    extent = (0, size * pixel_um, z_um[-1] + step_um / 2, z_um[0] - step_um / 2)
    figure, axes = new_figure(3, len(chosen) + 1, 2.5, 2.6)
    for column, plane in zip(axes.T, [*chosen, None], strict=True):
        place = "xz" if plane is None else f"z = {z_um[plane]:+.2f} µm"
        cut = np.s_[:, row] if plane is None else plane
        cuts = [stack[cut] for stack in (electrons, fit.model, residual)]
        drawn = _show_cuts(
            column, cuts, fit["background"], reach, place, extent if plane is None else None
        )
        for at in column:
            _label_cut(at, plane is None, pixel_um, size)
    bar = figure.colorbar(drawn, ax=axes[2], shrink=0.8)
    bar.set_label("standard deviations of noise", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    figure.suptitle(
        f"{title}: square root of intensity, data and model of a column on one scale", fontsize=9
    )
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
    top = float((cuts[1] - background).max())
    for at, name, cut in zip(axes[:2], ("data", "model"), cuts, strict=False):
        shown = np.sqrt(np.clip((cut - background) / top, 0, None))
        at.imshow(shown, cmap="magma", vmin=0, vmax=1, extent=extent)
        at.set_title(f"{name}, {place}", fontsize=8)
    axes[2].set_title(f"residual, {place}", fontsize=8)
    return axes[2].imshow(cuts[2], cmap="PuOr", vmin=-reach, vmax=reach, extent=extent)


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


def draw_depth_calibration(path: Path, table: pd.DataFrame, calibration: Any, title: str) -> None:
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
        f"{title}\nplanes left out: {calibration.rms_um:.2g} µm rms in the usable range, single "
        f"patches {calibration.patch_rms_um:.2g} µm",
        fontsize=8,
    )
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
