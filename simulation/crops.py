"""Sharp crops of a bank of source images, varied before any blur.

A change of the object before the blur leaves the label of the blur true, so training crops are
varied freely. All decisions are drawn on the CPU with NumPy; the pixels stay on the device.
"""

from dataclasses import dataclass, fields, replace
from functools import lru_cache

import numpy as np
import torch
from torch.nn import functional

from simulation.augmentation import (
    add_grain,
    draw_changes,
    mix,
    on_device,
    stretch,
    vary_intensity,
)
from simulation.bank import WHITE, Bank
from simulation.content import PLACES_STEP, is_sharp_and_rich
from simulation.specimens import make_sparse

# Crops processed together on a CPU; 8 take a tenth longer. Even, since crops mix in pairs.
GROUP = 16
MAX_STEP_PX = 2.0  # coarsest sampling of a turned crop: it halves the size of objects
MAX_BLANK_CONTRAST = 0.02  # of crops without content, a fifth of the least with content


@dataclass(frozen=True)
class Windows:
    """Square windows of the tiles of a bank: N sampling grids."""

    rows: np.ndarray  # (N,) of the bank
    centres: np.ndarray  # (N, 2) row and column, px of the tile
    tilts: np.ndarray  # (N,) radians
    steps: np.ndarray  # (N,) px of the tile between two samples
    mirrors: np.ndarray  # (N,) 1, or -1 for a mirrored window

    def part(self, some: slice) -> "Windows":
        """Some of the windows."""
        return Windows(*(getattr(self, field.name)[some] for field in fields(self)))


@dataclass(frozen=True)
class Crops:
    """Accepted crops: pixels (N, crop, crop) float32 in [0, 1] on the bank's device.

    `origins` (N,) on the device tells which of the drawn `names` is the source of each.
    """

    pixels: torch.Tensor
    origins: torch.Tensor
    names: tuple[str, ...]


def draw_crops(
    bank: Bank,
    count: int,
    rng: np.random.Generator,
    augment: bool,
    sparse: np.ndarray | None = None,
) -> Crops:
    """`count` random crops with sharp content.

    Kinds of sources are equally likely, and so are the sources of a kind and the tiles of a source.
    With `augment` a crop is turned, zoomed, flipped and changed in intensity; if two images are
    mixed, the crop has the name of the first. Without it a crop is an unchanged window. A crop
    lies around a place with sharp content. If its central patch does not pass the content filter
    nevertheless, another crop of the batch takes its place. Of each crop, the share `sparse` (N,)
    of the pixels becomes dark; such crops need not pass the filter, since it asks for a full patch.

    Raises
    ------
    InputError
        If hardly any part of the images has sharp content.
    """
    rows = bank.draw(count, rng)
    names = tuple(bank.occupants[row].source.name for row in rows)
    draw = turned_windows if augment else plain_windows
    windows = draw(bank, rows, rng)
    changes = draw_changes(count, rng) if augment else None
    sparse = np.zeros(count) if sparse is None else sparse
    if changes is not None:  # grain would fill the dark parts
        changes = replace(changes, grained=changes.grained & (sparse == 0))
    noise = generator_of(rng, bank.device)
    pixels = torch.empty(count, bank.crop_size, bank.crop_size, device=bank.device)
    good = torch.empty(count, dtype=torch.bool, device=bank.device)
    for some in groups(count, bank.device):
        part = sample_windows(bank, windows.part(some))
        if changes is not None:
            part = mix(stretch(part), changes.part(some))
        part = make_sparse(part, sparse[some], bank.patch_size)
        if changes is not None:
            part = vary_intensity(part, changes.part(some))
        pixels[some], good[some] = part, is_sharp_and_rich(_centre(part, bank.patch_size))
        good[some] |= on_device(sparse[some] > 0, bank.device)
    origins = replacements(good)
    replace_rows(pixels, origins)
    if changes is not None:
        for some in groups(count, bank.device):
            add_grain(pixels[some], changes.part(some), noise)
    return Crops(pixels, origins, names)


def generator_of(rng: np.random.Generator, device: torch.device) -> torch.Generator:
    """Generator on a device, whose seed comes from `rng`."""
    return torch.Generator(device).manual_seed(int(rng.integers(2**62)))


def groups(count: int, device: torch.device) -> list[slice]:
    """Slices of a batch to process one after the other: small ones on a CPU, one elsewhere."""
    size = GROUP if device.type == "cpu" else max(count, 1)
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def replacements(good: torch.Tensor) -> torch.Tensor:
    """Index (N,) of the crop to show at each place: its own if it is good, else good ones in turn.

    The number of good crops stays on the device, so that the processor does not wait for it.
    """
    order = (~good).byte().argsort(stable=True)  # the good ones first
    turn = (~good).cumsum(0) - 1
    places = torch.arange(len(good), device=good.device)
    return torch.where(good, places, order[turn.clamp(min=0) % good.sum().clamp(min=1)])


def replace_rows(pixels: torch.Tensor, origins: torch.Tensor) -> None:
    """Put row `origins[i]` of pixels (N, H, W) at place i; in place."""
    if pixels.device.type == "cpu":  # only the rows that change
        changed = (origins != torch.arange(len(origins))).nonzero()[:, 0]
        pixels[changed] = pixels[origins[changed]]
    else:
        pixels.copy_(pixels[origins])


def plain_windows(bank: Bank, rows: np.ndarray, rng: np.random.Generator) -> Windows:
    """Unchanged windows around sharp places of tiles (N,), on whole pixels."""
    count, half = len(rows), (bank.crop_size - 1) / 2
    far = bank.shapes[rows] - 1.0
    centres = _sharp_centres(bank, rows, np.full((count, 2), half), far - half, rng)
    corners = np.rint(centres - half).clip(0, np.maximum(far - 2 * half, 0))
    ones = np.ones(count)
    return Windows(rows, corners + half, 0 * ones, ones, ones)


def turned_windows(
    bank: Bank, rows: np.ndarray, rng: np.random.Generator, images: np.ndarray | None = None
) -> Windows:
    """Turned and flipped windows around sharp places of tiles (N,), sampled every 1 to 2 px.

    Detail finer than the sampling step is aliased on purpose, since it must stay sharp. In a small
    tile tilt and step are limited to what fits. The window stays inside the tile. Windows of the
    same number in `images` (N,) are turned, sampled and mirrored alike.
    """
    images = np.arange(len(rows)) if images is None else images
    count, edge = images.max(initial=-1) + 1, bank.crop_size - 1
    far = bank.shapes[rows] - 1.0
    room = np.full(count, np.inf)
    np.minimum.at(room, images, far.min(1) / edge)
    # A square tilted by t is wider by cos t + sin t = sqrt(2) sin(t + 45 degrees).
    most_tilt = np.arcsin(np.minimum(room / np.sqrt(2), 1)) - np.pi / 4
    tilts = rng.uniform(-1, 1, count) * most_tilt
    widths = np.cos(tilts) + np.abs(np.sin(tilts))
    most_step = (room / widths).clip(1, MAX_STEP_PX)
    steps = np.exp(rng.uniform(0, 1, count) * np.log(most_step))
    half = (steps * widths * edge / 2)[images, None]
    low, high = np.minimum(half, far / 2), np.maximum(far - half, far / 2)
    centres = _sharp_centres(bank, rows, low, high, rng)
    tilts += np.pi / 2 * rng.integers(0, 4, count)
    mirrors = np.where(rng.random(count) < 0.5, -1.0, 1.0)
    return Windows(rows, centres, tilts[images], steps[images], mirrors[images])


def _sharp_centres(
    bank: Bank, rows: np.ndarray, low: np.ndarray, high: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Centres (N, 2) between limits (N, 2), near random sharp places that leave room, if any do."""
    places = bank.places[rows]  # (N, M, 2)
    known = ~np.isnan(places[..., 0])
    near = (places > low[:, None] - PLACES_STEP) & (places < high[:, None] + PLACES_STEP)
    near = near.all(2)
    usable = np.where(near.any(1, keepdims=True), near, known)
    picks = (rng.random(len(rows)) * usable.sum(1)).astype(int)
    index = (usable.cumsum(1) > picks[:, None]).argmax(1)
    shift = rng.uniform(-PLACES_STEP / 2, PLACES_STEP / 2, (len(rows), 2))
    return np.clip(places[np.arange(len(rows)), index] + shift, low, high)


def sample_windows(bank: Bank, windows: Windows) -> torch.Tensor:
    """Bilinear samples (N, crop, crop) of the windows, in [0, 1]."""
    device, size = bank.device, bank.crop_size
    on_cpu = device.type == "cpu"
    corners, sizes = _boxes(bank, windows) if on_cpu else _whole_tiles(bank, windows)
    grid = _sampling_grid(windows, corners, sizes, size, device)
    # On a CPU the box of each window is read where it lies; elsewhere one call samples all tiles.
    if on_cpu:
        boxes = zip(windows.rows, corners, corners + sizes, strict=True)
        pixels = [bank.pixels[r, None, top:end, left:stop] for r, (top, left), (end, stop) in boxes]
        grids = grid.split(1)
    else:
        pixels, grids = [bank.pixels[on_device(windows.rows, device)]], [grid]
    # The grid lies inside the tile; the padding only absorbs rounding.
    sampled = [
        functional.grid_sample(
            part[:, None].float(), places, "bilinear", padding_mode="border", align_corners=True
        )
        for part, places in zip(pixels, grids, strict=True)
    ]
    return torch.cat(sampled)[:, 0].div_(WHITE)


def _whole_tiles(bank: Bank, windows: Windows) -> tuple[np.ndarray, np.ndarray]:
    """Corners and sizes (N, 2) of the rows of the bank."""
    return np.zeros((len(windows.rows), 2), int), np.full((len(windows.rows), 2), bank.side)


def _boxes(bank: Bank, windows: Windows) -> tuple[np.ndarray, np.ndarray]:
    """Corners and sizes (N, 2) of the boxes of whole pixels around the windows."""
    width = np.abs(np.cos(windows.tilts)) + np.abs(np.sin(windows.tilts))
    half = (windows.steps * width * (bank.crop_size - 1) / 2)[:, None]
    corners = np.floor(windows.centres - half).astype(int).clip(0)
    return corners, np.ceil(windows.centres + half).astype(int).clip(
        max=bank.side - 1
    ) + 1 - corners


def _sampling_grid(
    windows: Windows, corners: np.ndarray, sizes: np.ndarray, crop_size: int, device: torch.device
) -> torch.Tensor:
    """Places (N, crop, crop, 2) for `grid_sample` in images of these corners and sizes (N, 2)."""
    # grid_sample's coordinates run from -1 to 1 between the centres of the outermost pixels.
    to_y, to_x = 2 / (sizes.T - 1)
    y, x = (windows.centres - corners).T
    cosine, sine = windows.steps * np.cos(windows.tilts), windows.steps * np.sin(windows.tilts)
    numbers = [windows.mirrors * cosine * to_x, windows.mirrors * sine * to_y]
    numbers += [sine * to_x, cosine * to_y, x * to_x - 1, y * to_y - 1]
    columns = on_device(np.stack(numbers), device)[..., None]
    x_along, y_along, x_down, y_down, x, y = columns  # each (N, 1)
    along = torch.arange(crop_size, device=device) - (crop_size - 1) / 2
    grid = torch.empty(len(windows.rows), crop_size, crop_size, 2, device=device)
    across, down = x_along * along + x, x_down * along
    torch.sub(across[:, None, :], down[:, :, None], out=grid[..., 0])
    across, down = y_along * along, y_down * along + y
    torch.add(across[:, None, :], down[:, :, None], out=grid[..., 1])
    return grid


def blank_crops(
    count: int, crop_size: int, rng: np.random.Generator, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Crops without content (N, crop, crop): uniform, tilted or smoothly lit fields.

    Their standard deviation is at most 2 % of their mean.
    """
    fields = _smooth_fields(crop_size, torch.device(device))
    kind = rng.integers(0, 3, (count, 1))
    weights = rng.normal(size=(count, len(fields)))
    weights[:, 2:] *= kind == 2  # only the third kind, with curved light, has the later terms
    depth = rng.uniform(0, MAX_BLANK_CONTRAST, (count, 1)) * (kind > 0)
    level = rng.uniform(0.05, 0.9, (count, 1))
    weights, depth, level = (on_device(c, fields.device) for c in (weights, depth, level))
    shape = weights @ fields
    shape = shape - shape.mean(1, keepdim=True)
    shape = shape / shape.std(1, keepdim=True)
    return (level * (1 + depth * shape)).view(count, crop_size, crop_size)


@lru_cache(maxsize=4)
def _smooth_fields(crop_size: int, device: torch.device) -> torch.Tensor:
    """Fields (6, crop * crop): slopes along x and y, then four curved ones."""
    axis = np.linspace(-1, 1, crop_size)
    x, y = np.broadcast_arrays(axis[None, :], axis[:, None])
    terms = [x, y, x * y, x**2, y**2, np.cos(np.pi * (x + y))]
    fields = np.stack(terms).reshape(len(terms), -1).astype(np.float32)
    return on_device(fields, device)


def _centre(pixels: torch.Tensor, patch_size: int) -> torch.Tensor:
    start = (pixels.shape[-1] - patch_size) // 2
    return pixels[:, start : start + patch_size, start : start + patch_size]
