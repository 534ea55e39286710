"""Sharp crops of source images: drawn, varied and filtered for content before any blur.

A change of the object before the blur leaves the label of the blur true, so training crops are
varied freely. The content filter sees only the unblurred centre, so it cannot depend on the label.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch.nn import functional

from psf.errors import InputError
from simulation.augmentation import add_grain, deviation, mix, stretch, vary_intensity
from simulation.sources import Source, read_plane

# If fewer crops than this pass the content filter, the images are unsuitable.
MIN_ACCEPTED_SHARE = 0.01
PROPOSALS_BEFORE_GIVING_UP = 500  # drawn before that share is judged
GROUP = 8  # crops drawn together: they fit the cache of a processor core

MAX_STEP_PX = 2.0  # coarsest sampling of a turned crop: it halves the size of objects
MAX_BLANK_CONTRAST = 0.02  # of crops without content, a fifth of the least with content

# The content filter. Contrast and detail are relative to the mean of the patch.
MIN_CONTRAST = 0.1  # standard deviation of the patch
MIN_QUADRANT_DETAIL = 0.04  # standard deviation of white texture with the same differences
MIN_SHARPNESS = 0.14  # between a smooth gradient (1/16) and an ideal edge (1/4); see `sharpness`
MIN_GOOD_QUADRANTS = 3  # of 4: one quadrant may be background
MIN_PATCH_PX = 32  # gives quadrants of 16 px, for differences over up to 8 px
PLACES_STEP = 32  # px between the windows that `sharp_places` tests


@dataclass(frozen=True)
class Crops:
    """Accepted crops: pixels (N, crop, crop) float32 in [0, 1], and the source of each."""

    pixels: torch.Tensor
    names: tuple[str, ...]


def draw_crops(
    sources: Sequence[Source],
    count: int,
    crop_size: int,
    patch_size: int,
    rng: np.random.Generator,
    augment: bool,
) -> Crops:
    """`count` random crops whose central `patch_size` px pass the content filter.

    Before the filter, kinds of sources are equally likely, and so are the sources of a kind.
    With `augment` a crop is turned, zoomed, flipped and changed in intensity; if two images are
    mixed, the crop has the name of the first. Without it a crop is an unchanged window.

    Raises
    ------
    InputError
        If the sizes do not fit, or hardly any crop passes the content filter.
    """
    if not MIN_PATCH_PX <= patch_size <= crop_size:
        raise InputError(
            f"A patch of {patch_size} px in a crop of {crop_size} px is not possible. Give a patch "
            f"of at least {MIN_PATCH_PX} px that fits into its crop."
        )
    if not sources:
        raise InputError("There is no source image to draw crops from; give at least one.")
    kept: list[torch.Tensor] = []
    names: list[str] = []
    proposed = 0
    while len(names) < count:
        if proposed >= PROPOSALS_BEFORE_GIVING_UP and len(names) < MIN_ACCEPTED_SHARE * proposed:
            raise InputError(_nothing_sharp(sources, len(names), proposed))
        drawn = _draw_sources(sources, min(GROUP, count - len(names)), rng)
        proposed += len(drawn)
        if augment:
            pixels = _augmented(drawn, crop_size, patch_size, rng)
        else:
            pixels = torch.stack(
                [plain_window(_draw_plane(one, rng), crop_size, rng) for one in drawn]
            )
        good = is_sharp_and_rich(_centre(pixels, patch_size))
        kept.append(add_grain(pixels[good], rng) if augment else pixels[good])
        names += [one.name for one, passed in zip(drawn, good.tolist(), strict=True) if passed]
    return Crops(torch.cat(kept) if kept else torch.zeros(0, crop_size, crop_size), tuple(names))


def blank_crops(count: int, crop_size: int, rng: np.random.Generator) -> torch.Tensor:
    """Crops without content (N, crop, crop): uniform, tilted or smoothly lit fields.

    Their standard deviation is at most 2 % of their mean.
    """
    axis = np.linspace(-1, 1, crop_size)
    x, y = axis[None, :], axis[:, None]
    # Only the third kind, with curved light, has more than the first two terms.
    terms = [x + 0 * y, y + 0 * x, x * y, x**2 + 0 * y, y**2 + 0 * x, np.cos(np.pi * (x + y))]
    fields = np.stack(terms).reshape(len(terms), -1)
    kind = rng.integers(0, 3, (count, 1))
    weights = rng.normal(size=(count, len(terms)))
    weights[:, 2:] *= kind == 2
    shape = weights @ fields
    shape -= shape.mean(axis=1, keepdims=True)
    shape /= shape.std(axis=1, keepdims=True)
    depth = rng.uniform(0, MAX_BLANK_CONTRAST, (count, 1)) * (kind > 0)
    level = rng.uniform(0.05, 0.9, (count, 1))
    crops = (level * (1 + depth * shape)).reshape(count, crop_size, crop_size)
    return torch.from_numpy(crops.astype(np.float32))


def plain_window(plane: np.ndarray, crop_size: int, rng: np.random.Generator) -> torch.Tensor:
    """Copy of a window (crop, crop) of the plane at a random place."""
    row, column = (int(rng.integers(0, side - crop_size + 1)) for side in plane.shape)
    return torch.from_numpy(plane[row : row + crop_size, column : column + crop_size].copy())


def turned_window(
    plane: np.ndarray,
    crop_size: int,
    rng: np.random.Generator,
    places: np.ndarray | None = None,
) -> torch.Tensor:
    """Turned and flipped window (crop, crop), sampled every 1 to 2 px and inside the plane.

    Detail finer than the sampling step is aliased on purpose, since it must stay sharp. In a small
    image tilt and step are limited to what fits. The window is centred near one of `places` (M, 2)
    if any of them leaves room for it.
    """
    room = (min(plane.shape) - 1) / (crop_size - 1)
    # A square tilted by t is wider by cos t + sin t = sqrt(2) sin(t + 45 degrees).
    most_tilt = np.arcsin(min(room / np.sqrt(2), 1.0)) - np.pi / 4
    tilt = rng.uniform(-most_tilt, most_tilt)
    width = np.cos(tilt) + abs(np.sin(tilt))
    step = float(np.exp(rng.uniform(0, np.log(max(1.0, min(MAX_STEP_PX, room / width))))))
    half = step * width * (crop_size - 1) / 2
    far = np.array(plane.shape) - 1
    low = np.minimum(half, far / 2)
    high = np.maximum(far - half, far / 2)
    centre = rng.uniform(low, high)
    if places is not None:
        near = places[((places > low - PLACES_STEP) & (places < high + PLACES_STEP)).all(1)]
        if len(near):
            shift = rng.uniform(-PLACES_STEP / 2, PLACES_STEP / 2, 2)
            centre = np.clip(near[rng.integers(len(near))] + shift, low, high)
    tilt += np.pi / 2 * rng.integers(0, 4)
    mirror = -1 if rng.random() < 0.5 else 1
    return _interpolate(plane, centre[1], centre[0], tilt, step, crop_size, mirror)


def _augmented(
    drawn: list[Source], crop_size: int, patch_size: int, rng: np.random.Generator
) -> torch.Tensor:
    windows = []
    for source in drawn:
        page = source.pages[int(rng.integers(0, len(source.pages)))]
        places = _known_places(source, page, patch_size)
        windows.append(turned_window(read_plane(source, page), crop_size, rng, places))
    pixels = stretch(torch.stack(windows))
    return vary_intensity(mix(pixels, rng), rng)


@lru_cache(maxsize=4096)  # an entry has a few hundred bytes
def _known_places(source: Source, page: int, patch_size: int) -> np.ndarray:
    return sharp_places(read_plane(source, page), patch_size)


def _draw_sources(sources: Sequence[Source], count: int, rng: np.random.Generator) -> list[Source]:
    kinds = sorted({source.kind for source in sources})
    of_kind = [[source for source in sources if source.kind == kind] for kind in kinds]
    picks = rng.random((count, 2))
    groups = (of_kind[int(kind * len(kinds))] for kind in picks[:, 0])
    return [group[int(one * len(group))] for group, one in zip(groups, picks[:, 1], strict=True)]


def _draw_plane(source: Source, rng: np.random.Generator) -> np.ndarray:
    return read_plane(source, source.pages[int(rng.integers(0, len(source.pages)))])


def _interpolate(
    plane: np.ndarray, x: float, y: float, tilt: float, step: float, crop_size: int, mirror: int
) -> torch.Tensor:
    """Bilinear samples of a tilted square grid around (x, y), `step` px apart. (crop, crop)."""
    height, width = plane.shape
    along = (np.arange(crop_size) - (crop_size - 1) / 2) * step
    # grid_sample's coordinates run from -1 to 1 between the centres of the outermost pixels.
    to_x, to_y = 2 / (width - 1), 2 / (height - 1)
    cosine, sine = np.cos(tilt), np.sin(tilt)
    columns, rows = mirror * along, along
    x_columns, x_rows = _float32((columns * cosine + x) * to_x - 1), _float32(rows * sine * to_x)
    y_columns, y_rows = _float32(columns * sine * to_y), _float32((rows * cosine + y) * to_y - 1)
    grid = torch.empty(1, crop_size, crop_size, 2)
    torch.sub(x_columns[None, :], x_rows[:, None], out=grid[0, ..., 0])
    torch.add(y_columns[None, :], y_rows[:, None], out=grid[0, ..., 1])
    # The grid lies inside the plane; the padding only absorbs rounding.
    return functional.grid_sample(
        torch.from_numpy(plane)[None, None],
        grid,
        mode="bilinear",
        padding_mode="border",
        align_corners=True,
    )[0, 0]


def _centre(pixels: torch.Tensor, patch_size: int) -> torch.Tensor:
    start = (pixels.shape[-1] - patch_size) // 2
    return pixels[:, start : start + patch_size, start : start + patch_size]


def _float32(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32))


def _nothing_sharp(sources: Sequence[Source], accepted: int, proposed: int) -> str:
    some = ", ".join(source.name for source in sources[:3]) + (", ..." if len(sources) > 3 else "")
    return (
        f"Only {accepted} of {proposed} crops of {len(sources)} images ({some}) are sharp and "
        "detailed enough. Give images in focus with detail all over the field; leave out blurred, "
        "empty or enlarged ones."
    )


def is_sharp_and_rich(patches: torch.Tensor) -> torch.Tensor:
    """Content filter: whether patches (N, H, W) have contrast and sharp detail. (N,) bool.

    Three of the four quadrants need sharp detail.
    """
    mean = patches.mean((-2, -1)).clamp_min(1e-6)
    contrast = deviation(patches)[:, 0, 0] / mean
    quarters = _quadrants(patches)  # (N, 4, h, w)
    # White texture of standard deviation s has D = 4 s^2. A slow gradient has almost none.
    detail = (_structure_function(quarters, 4) / 4).sqrt()  # (N, 4)
    good = detail >= MIN_QUADRANT_DETAIL * mean[:, None]
    good &= sharpness(quarters) >= MIN_SHARPNESS
    return (contrast >= MIN_CONTRAST) & (good.sum(1) >= MIN_GOOD_QUADRANTS)


def sharpness(pixels: torch.Tensor) -> torch.Tensor:
    """Ratio (N, C) of fine to coarse detail of images (N, C, H, W): least of D(1)/D(4), D(2)/D(8).

    The structure function D(d) is the mean squared difference of pixels d px apart, down plus
    across. It grows as d^2 in a smooth image (ratio 1/16) and as d at sharp edges (1/4); it is
    constant for isolated points and white noise (1). Two scales are needed, since noise on a
    blurred background makes D(1) large. Brightness and contrast cancel.
    """
    structure = {lag: _structure_function(pixels, lag) for lag in (1, 2, 4, 8)}
    fine = structure[1] / structure[4].clamp_min(1e-12)
    coarse = structure[2] / structure[8].clamp_min(1e-12)
    return torch.minimum(fine, coarse)


def sharp_places(plane: np.ndarray, patch_size: int) -> np.ndarray:
    """Centres (M, 2), row and column, of the windows of a plane that pass the content filter."""
    tiles = torch.from_numpy(plane).unfold(0, patch_size, PLACES_STEP)
    tiles = tiles.unfold(1, patch_size, PLACES_STEP)  # (rows, columns, patch, patch)
    good = torch.stack([is_sharp_and_rich(row) for row in tiles])
    return good.nonzero().numpy() * PLACES_STEP + (patch_size - 1) / 2


def _structure_function(pixels: torch.Tensor, lag: int) -> torch.Tensor:
    down = pixels[..., lag:, :] - pixels[..., :-lag, :]
    across = pixels[..., lag:] - pixels[..., :-lag]
    # The squared norm is several times faster here than the mean of squares.
    return sum(
        torch.linalg.vector_norm(step, dim=(-2, -1)).square() / step[0, 0].numel()
        for step in (down, across)
    )


def _quadrants(patches: torch.Tensor) -> torch.Tensor:
    """(N, H, W) -> (N, 4, H // 2, W // 2)."""
    half = patches.shape[-2] // 2, patches.shape[-1] // 2
    parts = patches[:, : 2 * half[0], : 2 * half[1]].unflatten(2, (2, -1)).unflatten(1, (2, -1))
    return parts.transpose(2, 3).flatten(1, 2)
