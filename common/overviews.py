"""Pictures that a script leaves beside its result: maps and restorations."""

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from common.pictures import (
    COLOURS,
    WARNING_COLOUR,
    add_scale_bar,
    colour_map,
    mark_left_out,
    new_figure,
    plain_text,
    save_figure,
    show_image,
)
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
    left_out: np.ndarray | None = None,
    warning: str = "",
) -> None:
    """Draw the image, each parameter with its standard deviation, depth, and the content.

    Parameters
    ----------
    image : the whole field, with `shrunk` times fewer pixels along each axis than the camera's
    truth : (R, C) of the first parameter; it is shown on the scale of the estimate, whose title
        then has the rms error
    depth : (R, C) in um, and its name
    left_out : pixels of `image` that do not show the object, bool; they are painted orange
    warning : in red below the title
    """
    panels = list(_parameter_panels(psf_map, truth))
    if depth is not None:
        panels.append(_depth_panel(*depth, psf_map.has_content))
    panels.append(_Panel(psf_map.content, "content", "probability", (0, 1), "gray"))
    rows = -(-(1 + len(panels)) // MOST_COLUMNS)
    figure, axes = new_figure(rows, -(-(1 + len(panels)) // rows), 3.1, 2.9)
    first, *others = axes.ravel()
    _show_field(first, image, psf_map, shrunk)
    if left_out is not None and left_out.any():
        mark_left_out(first, left_out)
        first.set_title("image (dashed: mapped region, orange: left out)", fontsize=8)
    step_px = float(psf_map.rows[1] - psf_map.rows[0]) if len(psf_map.rows) > 1 else 1.0
    for at, panel in zip(others, panels, strict=False):
        _show_panel(at, panel, step_px * psf_map.microscope.pixel_size_um)
    for unused in others[len(panels) :]:
        unused.axis("off")
    add_title(figure, title, warning)
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
    left_out: np.ndarray | None = None,
    bad_fit: np.ndarray | None = None,
    warning: str = "",
    not_restored: np.ndarray | None = None,
) -> None:
    """Draw input and result (H, W) side by side, and enlarge the places where they differ most.

    Pixels that were left out, (H, W) bool, are orange in the input, and those that were not
    restored in the result. Places whose fit is bad are outlined there. A warning is red.
    """
    before, after = (np.asarray(image, np.float32) for image in (before, after))
    left_out, not_restored, bad_fit = (
        np.zeros(before.shape, bool) if mask is None else mask
        for mask in (left_out, not_restored, bad_fit)
    )
    edge = max(32, min(before.shape) // 6)
    places = busiest(np.where(left_out, 0, after - before), edge, insets)
    figure = Figure(figsize=(10, 7.4), layout="constrained")
    grid = figure.add_gridspec(2, 2 * max(len(places), 1), height_ratios=(3, 1))
    half = max(len(places), 1)
    # each on its own scale: a restoration has more contrast than its input
    ranges = [
        np.percentile(one[~left_out] if not left_out.all() else 0, (0.5, 99.8))
        for one in (before, after)
    ]
    named = "input (orange: left out)" if left_out.any() else "input"
    marks = ["orange: not restored"] if not_restored.any() else []
    marks += ["outlined: bad fit"] if bad_fit.any() else []
    restored = f"restored ({', '.join(marks)})" if marks else "restored"
    for column, (image, name) in enumerate(((before, named), (after, restored))):
        low, high = ranges[column]
        axes = figure.add_subplot(grid[0, column * half : (column + 1) * half])
        axes.imshow(image, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
        marked = left_out if image is before else not_restored
        mark_left_out(axes, marked)
        if bad_fit.any() and image is after:
            axes.contour(bad_fit, levels=[0.5], colors=[COLOURS[1]], linewidths=1.2)
        axes.set_facecolor("0.85")  # of NaN, which is transparent
        axes.set_title(name, fontsize=9)
        axes.set(xticks=[], yticks=[])
        add_scale_bar(axes, pixel_size_um, image.shape[1])
        for number, (place, colour) in enumerate(zip(places, COLOURS, strict=False)):
            top, left = place
            corner = (left - 0.5, top - 0.5)
            axes.add_patch(Rectangle(corner, edge, edge, fill=False, color=colour, lw=1.5))
            inset = figure.add_subplot(grid[1, 2 * number + column])
            part = (slice(top, top + edge), slice(left, left + edge))
            inset.imshow(image[part], cmap="gray", vmin=low, vmax=high, interpolation="nearest")
            mark_left_out(inset, marked[part])
            _frame(inset, name.split(" (")[0], colour)
    add_title(figure, title, warning)
    save_figure(path, figure)


def _frame(axes: Axes, title: str, colour: str) -> None:
    """Give an inset its title and a frame in the colour of its place."""
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=7)
    for spine in axes.spines.values():
        spine.set(color=colour, lw=2)


def add_title(figure: Figure, title: str, warning: str = "") -> None:
    """Give a figure a title, in red with the lines of a warning if there is one."""
    lines = [plain_text(title), *textwrap.wrap(plain_text(warning), 130)]
    colour = WARNING_COLOUR if warning else "black"
    figure.suptitle("\n".join(lines), fontsize=9, color=colour)


def busiest(difference: np.ndarray, edge: int, count: int) -> list[tuple[int, int]]:
    """Corners (top, left) of the `count` squares with the largest differences, none overlapping."""
    power = np.asarray(difference, float) ** 2
    rows, columns = (length // edge for length in power.shape)
    cells = power[: rows * edge, : columns * edge].reshape(rows, edge, columns, edge).sum((1, 3))
    order = np.argsort(cells, axis=None)[::-1][:count]
    return sorted((int(i // columns) * edge, int(i % columns) * edge) for i in order)
