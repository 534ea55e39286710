"""PSFs of a map drawn on a grid over its image, and which values of a map are outliers."""

from typing import NamedTuple, Protocol

import numpy as np
import torch
from matplotlib.axes import Axes

from common.pictures import add_scale_bar, colour_map, show_image
from psf.microscope import Microscope
from psf.model import PsfModel
from psf.synthesis import synthesize_with_loss

FEWEST, MOST = 5, 8  # PSFs along the longer side of an image, if they fit without overlap
FILLED = 0.7  # share of the spacing; PSFs that fill it are large enough, so more of them are drawn
VISIBLE = 0.05  # of the peak: the edge of a PSF that an eye can see in a picture
SIZES_PX = (31, 63, 127, 255)  # of the grids on which PSFs are computed, tried in turn
LOST_LIGHT = 0.05  # share that may lie outside the grid
DIMMED = 0.4  # brightness of the white of the image behind the PSFs
# Share of the trained range by which a value may lie outside it. Noise does that to PSFs at the
# ends of the range, e.g. in focus.
MARGIN = 0.05


class PsfMap(Protocol):
    """What a picture needs of a `models.mapping.PsfMap`."""

    model: PsfModel
    names: tuple[str, ...]
    unit: str
    microscope: Microscope
    values: torch.Tensor  # (P, R, C)
    standard_deviations: torch.Tensor  # (P, R, C)
    content: torch.Tensor  # (R, C) probability
    has_content: torch.Tensor  # (R, C) bool
    rows: torch.Tensor  # (R,) pixels of the camera
    columns: torch.Tensor  # (C,)


class PsfGrid(NamedTuple):
    """PSFs to draw over an image, as squares that do not overlap."""

    psfs: torch.Tensor  # (N, K, K), each with the peak 1
    places_px: torch.Tensor  # (N, 2) row and column of the centres
    enlarged: int  # factor that the PSFs are drawn larger than the image


def outliers(psf_map: PsfMap) -> torch.Tensor:
    """Values (P, R, C) that say nothing, bool.

    They lie outside the range of the training, or have a standard deviation as wide as that of the
    whole range: 1 / sqrt(12) of it.
    """
    low, high = torch.tensor(psf_map.model.label_ranges)[..., None, None].unbind(1)
    margin = MARGIN * (high - low)
    outside = (psf_map.values < low - margin) | (psf_map.values > high + margin)
    return outside | (psf_map.standard_deviations > (high - low) / 12**0.5)


def psf_grid(psf_map: PsfMap, shape: tuple[int, int]) -> PsfGrid:
    """PSFs at places of a map of an image of (H, W) pixels, where the map is reliable.

    The PSFs are enlarged by the largest whole factor at which they do not overlap.
    """
    good = (psf_map.has_content & ~outliers(psf_map).any(0)).numpy()
    steps = {stride: _counts(psf_map, shape, stride) for stride in range(1, max(good.shape) + 1)}
    # A map of few patches has all of them.
    allowed = [stride for stride, counts in steps.items() if max(counts) <= MOST]
    many = [stride for stride in allowed if max(steps[stride]) >= FEWEST] or allowed[:1]
    chosen = _choose_places(good, many[0], steps[many[0]])
    if not chosen:
        return PsfGrid(torch.empty(0, 1, 1), torch.empty(0, 2), 1)
    edge = _visible_psfs(psf_map, chosen).shape[1]
    spacings = {stride: _spacing_px(psf_map, shape, stride) for stride in allowed}
    fitting = [stride for stride in many if spacings[stride] >= edge]
    if fitting:
        filled = {s: (spacings[s] // edge) * edge / spacings[s] for s in fitting}
        best = max(fitting, key=lambda s: (min(filled[s], FILLED), max(steps[s])))
    else:
        best = next((s for s in allowed if spacings[s] >= edge), allowed[-1])
    enlarged = max(1, int(spacings[best] // edge))
    step = _spacing_px(psf_map, shape, 1)
    chosen = _choose_places(good, best, steps[best], enlarged * edge / step)
    places = [(psf_map.rows[r], psf_map.columns[c]) for r, c in chosen]
    return PsfGrid(_visible_psfs(psf_map, chosen), torch.tensor(places), enlarged)


def draw_psfs(
    axes: Axes, image: torch.Tensor, psf_map: PsfMap, shrunk: float = 1.0, bars: bool = True
) -> PsfGrid:
    """Draw the PSFs of a map over its dimmed image; returns them.

    Parameters
    ----------
    image : the whole field, with `shrunk` times fewer pixels along each axis than the camera's
    bars : with scale bars, that of enlarged PSFs on the right
    """
    height, width = image.shape
    show_image(axes, image.numpy())
    (field,) = axes.images
    low, high = field.get_clim()
    field.set_clim(low, low + (high - low) / DIMMED)
    grid = psf_grid(psf_map, (round(height * shrunk), round(width * shrunk)))
    half = grid.enlarged * grid.psfs.shape[1] / 2 / shrunk
    for psf, place in zip(grid.psfs.numpy(), grid.places_px.numpy() / shrunk, strict=True):
        pixels = colour_map("inferno")(psf)
        pixels[..., 3] = np.clip(5 * (psf - VISIBLE / 2), 0, 1)  # the dark rim is transparent
        y, x = place
        box = (x - half, x + half, y + half, y - half)
        axes.imshow(pixels, extent=box, interpolation="bilinear", zorder=2)
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    pixel_um = psf_map.microscope.pixel_size_um * shrunk
    if bars:
        add_scale_bar(axes, pixel_um, width)
        if grid.enlarged > 1 and len(grid.psfs):
            add_scale_bar(axes, pixel_um / grid.enlarged, width, 0.7, "PSFs: ")
    return grid


def step_px(psf_map: PsfMap) -> float | None:
    """Camera pixels between neighbouring patches of a map; None for a single patch."""
    steps = (float(p[1] - p[0]) for p in (psf_map.rows, psf_map.columns) if len(p) > 1)
    return next(steps, None)


def _spacing_px(psf_map: PsfMap, shape: tuple[int, int], stride: int) -> float:
    """Pixels between every `stride`-th patch of a map; the side of the image for one patch."""
    return stride * (step_px(psf_map) or float(min(shape)))


def _counts(psf_map: PsfMap, shape: tuple[int, int], stride: int) -> tuple[int, int]:
    """PSFs along y and x at every `stride`-th patch, whose squares lie inside the image."""
    spacing = _spacing_px(psf_map, shape, stride)
    grid = zip((len(psf_map.rows), len(psf_map.columns)), shape, strict=True)
    along_y, along_x = (
        max(1, min((count - 1) // stride + 1, int(length // spacing))) for count, length in grid
    )
    return along_y, along_x


def _choose_places(
    good: np.ndarray, stride: int, counts: tuple[int, int], apart: float = 1.0
) -> list[tuple[int, int]]:
    """Indices (row, column) of the good patches nearest to a regular grid.

    They are at least `apart` patches from each other along one axis. Where the patch of the regular
    grid is not good, the nearest one in its cell takes its place.
    """
    most = np.array(counts)
    first = (np.array(good.shape) - 1 - (most - 1) * stride) // 2
    indices = np.argwhere(good)
    cells = np.rint((indices - first) / stride).clip(0, most - 1).astype(int)
    distances = np.abs(indices - (first + stride * cells)).max(1)
    order = np.argsort(distances, kind="stable")
    _, nearest = np.unique(cells[order] @ (counts[1], 1), return_index=True)
    chosen: list[tuple[int, int]] = []
    for row, column in indices[order[np.sort(nearest)]].tolist():
        if all(max(abs(row - r), abs(column - c)) >= apart for r, c in chosen):
            chosen.append((row, column))
    return chosen


def _visible_psfs(psf_map: PsfMap, places: list[tuple[int, int]]) -> torch.Tensor:
    """PSFs (N, K, K) at patches of a map, each with the peak 1, on the visible part of the grid."""
    rows, columns = torch.tensor(places).T
    low, high = torch.tensor(psf_map.model.label_ranges).T
    labels = psf_map.values[:, rows, columns].T.clamp(low, high)
    for size in SIZES_PX:
        psfs, lost = synthesize_with_loss(psf_map.model, labels, psf_map.microscope, size)
        if float(lost.max()) <= LOST_LIGHT:
            break
    psfs = psfs / psfs.amax((1, 2), keepdim=True)
    middle = size // 2
    far = (torch.arange(size) - middle).abs()
    seen = (psfs >= VISIBLE).any(0)
    half = min(middle, int(torch.maximum(far[:, None], far)[seen].max()) + 1)
    inner = slice(middle - half, middle + half + 1)
    return psfs[:, inner, inner]
