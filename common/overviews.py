"""Pictures that a script leaves beside its result: maps and restorations."""

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from common.pictures import (
    COLOURS,
    WARNING_COLOUR,
    add_scale_bar,
    colour_map,
    mark_left_out,
    plain_text,
    save_figure,
    show_image,
)
from common.psf_grid import PsfMap, draw_psfs, outliers, step_px

# --- maps

MOST_COLUMNS = 5  # panels in a row, the PSFs two panels wide; more are too small to read on a page
# Least span of the colours, by unit: an object that is flat within the error must not look tilted.
# Half a wave of focus is one depth of field; that of lengths is the depth of field itself.
LEAST_SPAN = {"waves": 0.5, "px": 2.0}
LEAST_SHARE = 0.25  # largest such span as a share of the trained range, for weak aberrations
LEAST_DEVIATION = 0.2  # least span of the standard deviations, as a share of that of the values
STRIPES_PX = 240  # of the picture of the stripes over a map, about its size on the page
STRIPE_PX = 6  # width of a stripe
GREY, DARK_GREY = "0.85", "0.35"  # no content, and the stripes over outliers


class _Panel(NamedTuple):
    """One map in the overview."""

    values: torch.Tensor  # (R, C); NaN is grey
    title: str
    unit: str
    limits: tuple[float, float]
    colours: str = "viridis"
    outliers: torch.Tensor | None = None  # (R, C) bool, striped


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
    """Draw PSFs over the image, each parameter with its standard deviation, depth, and the content.

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
        panels.append(_depth_panel(*depth, psf_map))
    panels.append(_Panel(psf_map.content, "content", "probability", (0, 1), "gray"))
    figure, first, others = _mosaic(1 + len(panels))
    grid = draw_psfs(first, image, psf_map, shrunk)
    enlarged = f", drawn {grid.enlarged} times larger" if grid.enlarged > 1 else ""
    named = f"PSFs, each scaled to its own peak{enlarged}"
    first.set_title(named if len(grid.psfs) else "no PSFs: no reliable patch", fontsize=9)
    _show_field(others[0], image, psf_map, shrunk)
    if left_out is not None and left_out.any():
        mark_left_out(others[0], left_out)
        others[0].set_title("image (dashed: mapped region, orange: left out)", fontsize=8)
    step_um = (step_px(psf_map) or 0.0) * psf_map.microscope.pixel_size_um
    for axes, panel in zip(others[1:], panels, strict=True):
        _show_panel(axes, panel, step_um)
    _add_legend(figure, psf_map, panels)
    add_title(figure, title, warning)
    save_figure(path, figure)


def _mosaic(count: int) -> tuple[Figure, Axes, list[Axes]]:
    """A figure, its large panel at the top left, and `count` small panels."""
    columns = min(MOST_COLUMNS, 2 + max(2, -(-count // 2)))
    rows = 2 + -(-max(0, count - 2 * (columns - 2)) // columns)
    figure = Figure(figsize=(3.1 * columns, 2.9 * rows), layout="constrained")
    grid = figure.add_gridspec(rows, columns)
    free = [(r, c) for r in range(rows) for c in range(columns) if r > 1 or c > 1]
    small = [figure.add_subplot(grid[place]) for place in free[:count]]
    return figure, figure.add_subplot(grid[:2, :2]), small


def _parameter_panels(psf_map: PsfMap, truth: torch.Tensor | None) -> Iterator[_Panel]:
    """Each parameter, the first one beside its truth, and its standard deviation."""
    unit, has_content = psf_map.unit.replace("um", "µm"), psf_map.has_content
    striped = outliers(psf_map) & has_content
    for p, name in enumerate(psf_map.names):
        values, deviations = psf_map.values[p], psf_map.standard_deviations[p]
        shown = has_content & ~striped[p]
        low, high = psf_map.model.label_ranges[p]
        default = LEAST_SPAN.get(psf_map.unit, psf_map.microscope.depth_of_field_um)
        span, title = min(default, LEAST_SHARE * (high - low)), name
        limits = _limits(values[shown], span, low)
        if p == 0 and truth is not None:
            limits = _limits(torch.cat([values[shown], truth.flatten()]), span, low)
            yield _Panel(_masked(truth, has_content), f"true {name}", unit, limits)
            error = (values - truth)[has_content].square().mean().sqrt()
            title = f"estimated {name}: rms error {error:.2f} {unit}"
        yield _Panel(_masked(values, shown), title, unit, limits, outliers=striped[p])
        title = f"standard deviation of {name}"
        limits = 0.0, max(LEAST_DEVIATION * span, _limits(deviations[shown], 0)[1])
        yield _Panel(_masked(deviations, shown), title, unit, limits, "cividis", striped[p])


def _depth_panel(values: np.ndarray, name: str, psf_map: PsfMap) -> _Panel:
    """Depth where there is content and the depth is known."""
    depth = torch.from_numpy(np.asarray(values, np.float32))
    unknown = outliers(psf_map).any(0) | ~depth.isfinite()
    known = psf_map.has_content & ~unknown
    lowest = 0.0 if bool((depth[known] >= 0).all()) else -np.inf
    limits = _limits(depth[known], psf_map.microscope.depth_of_field_um, lowest)
    title = name.replace("(um)", "(µm)")
    return _Panel(
        _masked(depth, known), title, "µm", limits, outliers=psf_map.has_content & unknown
    )


def _masked(values: torch.Tensor, shown: torch.Tensor) -> torch.Tensor:
    return torch.where(shown, values, torch.nan)


def _show_field(axes: Axes, image: torch.Tensor, psf_map: PsfMap, shrunk: float) -> None:
    """Show the image with a frame around the centres of the patches."""
    show_image(axes, image.numpy(), "image (dashed: mapped region)")
    add_scale_bar(axes, psf_map.microscope.pixel_size_um * shrunk, image.shape[1])
    corner = float(psf_map.columns[0]) / shrunk, float(psf_map.rows[0]) / shrunk
    extent = (float(at[-1] - at[0]) / shrunk for at in (psf_map.columns, psf_map.rows))
    axes.add_patch(Rectangle(corner, *extent, fill=False, color=COLOURS[4], lw=1.5, ls="--"))


def _show_panel(axes: Axes, panel: _Panel, step_um: float) -> None:
    """Show a map whose patches are `step_um` apart; 0 for a single patch, without a scale bar."""
    drawn = axes.imshow(
        np.ma.masked_invalid(panel.values.numpy()),
        cmap=colour_map(panel.colours),
        vmin=panel.limits[0],
        vmax=panel.limits[1],
    )
    bar = axes.figure.colorbar(drawn, ax=axes, shrink=0.8)
    bar.set_label(panel.unit, fontsize=8)
    bar.ax.tick_params(labelsize=7)
    if panel.outliers is not None and panel.outliers.any():
        _stripe(axes, panel.outliers.numpy())
    axes.set(xticks=[], yticks=[])
    axes.set_title(panel.title, fontsize=8)
    if step_um:
        add_scale_bar(axes, step_um, panel.values.shape[1])


def _stripe(axes: Axes, striped: np.ndarray) -> None:
    """Draw diagonal stripes over the patches (R, C) of a map."""
    rows, columns = striped.shape
    finer = max(1, STRIPES_PX // max(rows, columns))
    y, x = np.ogrid[: rows * finer, : columns * finer]
    dark = (x + y) // STRIPE_PX % 2 == 0
    hidden = ~(np.kron(striped, np.ones((finer, finer), bool)) & dark)
    box = (-0.5, columns - 0.5, rows - 0.5, -0.5)
    pixels = np.ma.masked_where(hidden, np.full(hidden.shape, float(DARK_GREY)))
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=1, extent=box, interpolation="nearest")


def _add_legend(figure: Figure, psf_map: PsfMap, panels: list[_Panel]) -> None:
    """Say below the maps what grey and striped patches are, if there are any."""
    handles = []
    if not psf_map.has_content.all():
        handles.append(Patch(color=GREY, label="no content"))
    if any(panel.outliers is not None and panel.outliers.any() for panel in panels):
        said = "outlier: out of range, or a standard deviation as wide as the trained range"
        style = {"facecolor": GREY, "edgecolor": DARK_GREY, "hatch": "////", "linewidth": 0}
        handles.append(Patch(**style, label=said))
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8)


def _limits(
    values: torch.Tensor, least_span: float, lowest: float = -np.inf
) -> tuple[float, float]:
    """Range of a colour scale: percentiles 1 and 99, widened to at least a span.

    The widened range is symmetric, but does not begin below `lowest`. It begins there, or at 0,
    without any values.
    """
    low, high = max(lowest, 0.0), max(lowest, 0.0)
    if len(values):
        low, high = (float(v) for v in np.percentile(values.numpy(), (1, 99)))
    if high - low >= least_span:
        return low, high
    low = max((low + high - least_span) / 2, min(lowest, low))
    return low, low + least_span


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
