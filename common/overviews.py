"""Pictures that a script leaves beside its result: maps, restorations, bead fits, depth curves."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from common.pictures import COLOURS, add_scale_bar, colour_map, new_figure, save_figure, show_image


def draw_map(
    path: Path,
    image: torch.Tensor,
    psf_map: Any,
    pixel_size_um: float,
    title: str,
    truth: torch.Tensor | None = None,
    depth: tuple[np.ndarray, str] | None = None,
    shrunk: float = 1.0,
) -> None:
    """Overview of a map: the image, each parameter with its uncertainty, and the content.

    `psf_map` is a `models.mapping.PsfMap`, its centres in pixels of the camera; `image` is the
    whole field, on `shrunk` times fewer pixels along each axis. `truth` (R, C) of the first
    parameter is shown on the same scale as its estimate, with the rms difference where there is
    content. `depth` (R, C) in um comes with its name.
    """
    panels = 2 * len(psf_map.names) + 2 + (truth is not None) + (depth is not None)
    rows = -(-panels // 5)
    figure, axes = new_figure(rows, -(-panels // rows), 3.1, 2.9)
    free = iter(axes.ravel())
    first = next(free)
    show_image(first, image.numpy(), "image")
    add_scale_bar(first, pixel_size_um * shrunk, image.shape[1])
    corner = float(psf_map.columns[0]) / shrunk, float(psf_map.rows[0]) / shrunk
    extent = (float(at[-1] - at[0]) / shrunk for at in (psf_map.columns, psf_map.rows))
    # the map holds the centres of the patches, which stay away from the border
    first.add_patch(Rectangle(corner, *extent, fill=False, color="#e69f00", lw=1.5, ls="--"))
    first.set_title("image (dashed: mapped region)", fontsize=8)
    has_content = psf_map.content >= 0.5
    step_px = float(psf_map.rows[1] - psf_map.rows[0]) if len(psf_map.rows) > 1 else 1.0

    def show(values: torch.Tensor, label: str, name: str, limits: tuple, unit: str) -> None:
        at = next(free)
        shown = np.ma.masked_where(~has_content.numpy(), values.numpy())
        drawn = at.imshow(shown, cmap=colour_map(name), vmin=limits[0], vmax=limits[1])
        figure.colorbar(drawn, ax=at, shrink=0.8, label=unit)
        at.set(xticks=[], yticks=[])
        at.set_title(label, fontsize=8)
        add_scale_bar(at, step_px * pixel_size_um, values.shape[1])

    for p, name in enumerate(psf_map.names):
        known = [psf_map.values[p][has_content]] + (
            [truth.flatten()] if p == 0 and truth is not None else []
        )
        limits = _limits(torch.cat(known))
        if p == 0 and truth is not None:
            show(truth, f"true {name}", "viridis", limits, psf_map.unit)
            error = (psf_map.values[0] - truth)[has_content].square().mean().sqrt()
            show(
                psf_map.values[0],
                f"estimated {name}: rms error {error:.2f} {psf_map.unit}",
                "viridis",
                limits,
                psf_map.unit,
            )
        else:
            show(psf_map.values[p], f"{name} (grey: no content)", "viridis", limits, psf_map.unit)
        deviation = psf_map.standard_deviations[p]
        show(
            deviation,
            f"standard deviation of {name}",
            "cividis",
            (0, _limits(deviation[has_content])[1]),
            psf_map.unit,
        )
    if depth is not None:
        values = torch.from_numpy(np.asarray(depth[0], np.float32))
        known = values[has_content & values.isfinite()]
        show(values.nan_to_num(), depth[1], "viridis", _limits(known), "µm")
    at = next(free)
    drawn = at.imshow(psf_map.content.numpy(), cmap="gray", vmin=0, vmax=1)
    figure.colorbar(drawn, ax=at, shrink=0.8, label="probability")
    at.set(xticks=[], yticks=[])
    at.set_title("content", fontsize=8)
    for unused in free:
        unused.axis("off")
    figure.suptitle(title, fontsize=9)
    save_figure(path, figure)


def _limits(values: torch.Tensor) -> tuple[float, float]:
    """Range of a colour scale: percentiles 1 and 99; 0 to 1 where there is nothing to show."""
    if not len(values):
        return 0.0, 1.0
    low, high = np.percentile(values.numpy(), (1, 99))
    return float(low), float(max(high, low + 1e-6))


def draw_restoration(
    path: Path,
    before: np.ndarray,
    after: np.ndarray,
    pixel_size_um: float,
    title: str,
    insets: int = 3,
) -> None:
    """Input and result (H, W) side by side, and places where they differ most, enlarged."""
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
    """Corners (top, left) of the squares that hold the largest differences, apart from another."""
    power = np.asarray(difference, float) ** 2
    rows, columns = (length // edge for length in power.shape)
    cells = power[: rows * edge, : columns * edge].reshape(rows, edge, columns, edge).sum((1, 3))
    order = np.argsort(cells, axis=None)[::-1][:count]
    return sorted((int(i // columns) * edge, int(i % columns) * edge) for i in order)


def draw_bead_fit(path: Path, electrons: np.ndarray, fit: Any, scene: Any, title: str) -> None:
    """Data, model and residual of a bead fit: planes around focus in xy, the middle in xz.

    `fit` is a `psf.bead.BeadFit`, `scene` a `psf.bead.Scene`; `electrons` (Z, K, K).
    """
    planes, size = len(electrons), electrons.shape[-1]
    pixel, step = float(scene.microscope.pixel_size_um), scene.z_step_um
    z_um = (np.arange(planes) - (planes - 1) / 2) * scene.z_step_um - fit["z_focus_um"]
    focus = int(np.abs(z_um).argmin())
    chosen = sorted({max(focus - planes // 4, 0), focus, min(focus + planes // 4, planes - 1)})
    row = int(np.clip(round(fit["y_px"] + (size - 1) / 2), 0, size - 1))
    background = fit["background"]
    residual = (electrons - fit.model) / np.sqrt(np.maximum(fit.model, 1))
    reach = max(3.0, float(np.percentile(np.abs(residual), 99.5)))
    figure, axes = new_figure(3, len(chosen) + 1, 2.5, 2.6)
    extent = (0, size * pixel, z_um[-1] + step / 2, z_um[0] - step / 2)
    for column in range(len(chosen) + 1):
        cut = (chosen[column],) if column < len(chosen) else (slice(None), row)
        top = float((fit.model[cut] - background).max())
        shapes = {} if column < len(chosen) else {"extent": extent}
        for line, (name, stack) in enumerate(
            (("data", electrons), ("model", fit.model), ("residual", residual))
        ):
            at = axes[line, column]
            if name == "residual":
                drawn = at.imshow(stack[cut], cmap="PuOr", vmin=-reach, vmax=reach, **shapes)
            else:
                shown = np.sqrt(np.clip((stack[cut] - background) / top, 0, None))
                at.imshow(shown, cmap="magma", vmin=0, vmax=1, **shapes)
            place = f"z = {z_um[chosen[column]]:+.2f} µm" if column < len(chosen) else "xz"
            at.set_title(f"{name}, {place}", fontsize=8)
            if column < len(chosen):
                at.set(xticks=[], yticks=[])
                add_scale_bar(at, pixel, size)
            else:
                at.set_xlabel("x (µm)", fontsize=7)
                at.set_ylabel("z from focus (µm)", fontsize=7)
                at.tick_params(labelsize=6)
        if column == len(chosen):
            bar = figure.colorbar(drawn, ax=axes[2], shrink=0.8)
            bar.set_label("standard deviations of noise", fontsize=8)
            bar.ax.tick_params(labelsize=7)
    figure.suptitle(
        f"{title}: square root of intensity, data and model of a column on one scale", fontsize=9
    )
    save_figure(path, figure)


def draw_depth_calibration(path: Path, table: Any, calibration: Any, title: str) -> None:
    """Estimate against z with the fitted curve, and the errors of planes left out below.

    `calibration` is a `models.depth.DepthCalibration`, `table` the data frame of calibration.csv.
    The usable range is shaded; bars are one robust standard deviation of the patches.
    """
    unit, z_um = calibration.unit, table["z_um"]
    figure = Figure(figsize=(6.2, 5.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2.2, 1))
    low, high = calibration.usable_um
    sides = [1] if calibration.signed else [1, -1]
    for i, side in enumerate(sides):
        for at in (upper, lower):
            ends = sorted(calibration.focus_z_um + side * np.array([low, high]))
            shade = {"color": COLOURS[2], "alpha": 0.13, "lw": 0}
            at.axvspan(*ends, **shade, label=None if i else "usable range")
        values = np.linspace(calibration.values[0], calibration.values[-1], 300)
        where = calibration.focus_z_um + side * calibration.depth_um(values)
        upper.plot(where, values, color=COLOURS[1], lw=1.5, label=None if i else "fitted curve")
    upper.axvline(calibration.focus_z_um, color="0.4", lw=1, ls="--", label="focal plane")
    style = {"fmt": "o", "ms": 3.5, "lw": 1, "color": COLOURS[0], "label": "mean of a plane"}
    upper.errorbar(z_um, table[f"mean_{unit}"], table[f"spread_{unit}"], **style)
    upper.set_ylabel(f"estimated {calibration.parameter} ({unit})")
    upper.legend(fontsize=7)
    upper.set_title(
        f"{title}\nplanes left out: {calibration.rms_um:.2g} µm rms in the usable range, single "
        f"patches {calibration.patch_rms_um:.2g} µm",
        fontsize=8,
    )
    limit = calibration.limit_um
    errors = table["error_left_out_um"]
    lower.axhline(0, color="0.4", lw=1)
    for level in (-limit, limit):
        lower.axhline(level, color=COLOURS[1], lw=1, ls=":")
    reach = min(2 * limit, max(1.2 * float(errors.abs().max()), 1e-3))
    shown = errors.clip(-reach, reach)  # those far off lie on the border
    lower.plot(z_um, shown, "o", ms=3.5, color=COLOURS[0])
    lower.set(xlabel="z of the stack (µm)", ylabel="error of planes\nleft out (µm)")
    lower.set_ylim(-1.05 * reach, 1.05 * reach)
    room = 0.03 * (z_um.max() - z_um.min())
    upper.set_xlim(z_um.min() - room, z_um.max() + room)
    for at in (upper, lower):
        at.grid(alpha=0.3)
    save_figure(path, figure)
