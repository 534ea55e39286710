"""Simulated images as sets of patches: one kind of object, specimen, optics and light each.

The focus of the patches follows a surface: a plane, a dome, a step, a smooth random one, or none.
A focal stack shows the same places in several planes. The patches of an image have places, but are
simulated one by one, since the object of a whole image would need a larger source image.
"""

import math
from collections.abc import Callable
from dataclasses import astuple, dataclass, replace

import numpy as np
import torch

from psf.microscope import Microscope
from psf.model import draw_labels
from simulation.augmentation import add_grain, draw_changes, on_device, vary_contrast
from simulation.bank import Bank
from simulation.crops import blank_crops, generator_of, sample_windows, turned_windows
from simulation.patches import FocusChanges, blur_patches
from simulation.settings import Simulation, draw_microscopes
from simulation.specimens import draw_sparse, draw_specimens

MOST_TILES = 9  # of the source of an image: 1024 x 1024 px
EMPTY = 0.02  # standard deviation of an empty patch, in that of its whole image
BLANK_IMAGES = 0.04  # share of images without any content
HAZE_ONLY = 0.1  # share of the places of a hazy image without an object
# The next numbers are for models whose range of focus ends here; they are scaled for others.
RANGE_WAVES = 4.0
MOST_FOCUS = 5.0  # waves, of the middle of an image
MOST_CHANGE = 2.0  # waves, of focus from the middle of an image to its highest or lowest place
PLANE_STEP_WAVES = (0.05, 1.0)  # between the planes of a stack


@dataclass(frozen=True)
class Images:
    """B images, each of M places in K planes, on the device of the bank of source images."""

    blurred: torch.Tensor  # (B, K, M, H, W) without noise
    labels: torch.Tensor  # (B, K, M, P)
    has_content: torch.Tensor  # (B, K, M) bool
    optics: torch.Tensor  # (B, 4) in the order of OPTICS_NAMES
    places: torch.Tensor  # (B, M, 2) row and column, in patches


def draw_images(
    simulation: Simulation,
    bank: Bank,
    images: int,
    places: int,
    planes: int,
    rng: np.random.Generator,
    focus: np.ndarray | None = None,
) -> Images:
    """Random images without noise; all random numbers come from `rng`.

    `focus` (B, K, M) in waves is that of random surfaces, unless it is given.
    """
    device, model = bank.device, simulation.model
    crops, where, is_empty = _draw_objects(simulation, bank, images, places, rng)
    if focus is None:
        ends = np.abs(model.ranges["focus"])
        focus = _draw_focus(where, planes, rng) * (ends.max() / RANGE_WAVES)
    labels = draw_labels(model, images, rng)[:, None, None].repeat(1, planes, places, 1)
    low, high = model.ranges["focus"]
    labels[..., 0] = torch.from_numpy(np.float32(np.abs(focus) if low >= 0 else focus))
    in_range = (labels[..., 0] >= low) & (labels[..., 0] <= high)
    microscopes = draw_microscopes(simulation, images, rng)
    if isinstance(microscopes, Microscope):
        microscopes = [microscopes] * images
    specimens = draw_specimens(simulation.specimens, images, rng).without_haze_only()
    image = np.tile(np.repeat(np.arange(images), places), planes)  # of each patch, plane by plane
    each = specimens.take(image)
    only = np.tile(rng.random(images * places) < HAZE_ONLY, planes) & (each.haze > 0)
    each = replace(each, haze_only=only, background=np.zeros(len(image)))
    none = FocusChanges(
        np.zeros(0, np.int64), np.zeros((0, 2)), np.ones((0, labels.shape[-1]), np.float32)
    )
    flat = labels.transpose(0, 1).flatten(0, 2)  # plane by plane, so that patch i shows crop i % C
    _, blurred = blur_patches(
        simulation, crops, flat, [microscopes[number] for number in image], none, each
    )
    size = simulation.patch_size
    blurred = blurred.view(planes, images, places, size, size).transpose(0, 1)
    light = on_device(specimens.background, device).view(-1, 1, 1, 1, 1)
    blurred = blurred + light * blurred.mean((1, 2, 3, 4), keepdim=True)
    kept = torch.from_numpy(~only.reshape(planes, images, places)).transpose(0, 1)
    return Images(
        blurred=blurred,
        labels=labels.to(device),
        has_content=(kept & in_range).to(device) & ~is_empty[:, None],
        optics=on_device(np.array([astuple(one) for one in microscopes]), device),
        places=on_device(where, device),
    )


def _draw_objects(
    simulation: Simulation, bank: Bank, images: int, places: int, rng: np.random.Generator
) -> tuple[torch.Tensor, np.ndarray, torch.Tensor]:
    """Crops (B M, S, S), their places (B, M, 2) in patches, and which are empty, (B, M) bool."""
    chosen = [bank.draw_source(rng, MOST_TILES) for _ in range(images)]
    rows = np.concatenate([rng.choice(some, places) for some in chosen])
    owner = np.repeat(np.arange(images), places)
    windows = turned_windows(bank, rows, rng, owner)
    corners = np.array([(bank.occupants[row].row, bank.occupants[row].column) for row in rows])
    where = (corners + windows.centres) / (windows.steps[:, None] * simulation.patch_size)
    changes = draw_changes(images, rng)
    sparse = draw_sparse(simulation.specimens, images, rng)
    noise = generator_of(rng, bank.device)
    pixels = sample_windows(bank, windows).view(images, places, *[bank.crop_size] * 2)
    start = (bank.crop_size - bank.patch_size) // 2
    inner = slice(start, start + bank.patch_size)
    middle = pixels[..., inner, inner]
    low = middle.amin((1, 2, 3), keepdim=True)
    high = middle.amax((1, 2, 3), keepdim=True)
    level = torch.stack(  # below it the object of a sparse image is dark
        [part[:, ::4, ::4].quantile(float(q)) for part, q in zip(middle, sparse, strict=True)]
    ).view(-1, 1, 1, 1)
    # at most 0.9 of the range, since many pixels of drawn objects have the full brightness
    level = torch.minimum(level, low + 0.9 * (high - low))
    low = torch.where(on_device(sparse > 0, bank.device).view(-1, 1, 1, 1), level, low)
    pixels = ((pixels - low) / (high - low).clamp_min(1e-6)).clamp_(0, 1).flatten(0, 1)
    each = changes.part(owner)
    pixels = vary_contrast(pixels, each)
    each = replace(each, grained=each.grained & (sparse == 0)[owner])
    pixels = add_grain(pixels, each, noise)
    middle = pixels.view(images, places, *pixels.shape[1:])[..., inner, inner]
    blank = np.flatnonzero(rng.random(images) < BLANK_IMAGES)
    is_blank = torch.zeros(images, 1, dtype=torch.bool, device=bank.device)
    for number in blank:
        fields = blank_crops(places, bank.crop_size, rng, bank.device)
        pixels[number * places : (number + 1) * places] = fields
        is_blank[number] = True
    spread = middle.std((2, 3))
    is_empty = spread <= EMPTY * middle.std((1, 2, 3), keepdim=True)[..., 0, 0]
    is_empty |= is_blank
    return pixels, where.reshape(images, places, 2), is_empty


def _draw_focus(where: np.ndarray, planes: int, rng: np.random.Generator) -> np.ndarray:
    """Focus (B, K, M) in waves, of places (B, M, 2) in patches.

    Half of the images change by less than a quarter of MOST_CHANGE.
    """
    focus = np.empty((len(where), planes, where.shape[1]))
    for number, some in enumerate(where):
        names = list(SURFACES)
        surface = SURFACES[names[rng.choice(len(names), p=SURFACE_SHARES)]]
        centred = (some - some.mean(0)) / max(float(np.abs(some - some.mean(0)).max()), 1e-6)
        change = MOST_CHANGE * rng.random() ** 2
        step = np.exp(rng.uniform(*np.log(PLANE_STEP_WAVES)))
        middle = rng.uniform(-MOST_FOCUS, MOST_FOCUS)
        if planes > 1:  # the stack contains the plane in focus, mostly
            step = min(step, 8 / planes)
            middle = -step * rng.uniform(-0.2, 1.2) * (planes - 1)
        heights = middle + change * surface(centred, rng)
        focus[number] = heights + step * np.arange(planes)[:, None]
    return focus


def _plane(where: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    angle = rng.uniform(0, 2 * math.pi)
    return where @ np.array([np.sin(angle), np.cos(angle)])


def _dome(where: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    centre = rng.uniform(-1, 1, 2)
    return rng.choice([-1, 1]) * (1 - ((where - centre) ** 2).sum(1))


def _step(where: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.sign(_plane(where, rng) - rng.uniform(-0.5, 0.5))


def _smooth(where: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    waves = rng.normal(0, 2, (3, 2))
    return np.cos(where @ waves.T + rng.uniform(0, 2 * math.pi, 3)).sum(1) / 2


def _any(where: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(-2, 2, len(where))


# Surfaces of focus over places (M, 2) from -1 to 1, of about -1 to 1; `any` has no relation of
# neighbours, as in a thick specimen.
SURFACES: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "constant": lambda where, rng: np.zeros(len(where)),
    "plane": _plane,
    "dome": _dome,
    "step": _step,
    "smooth": _smooth,
    "any": _any,
}
SURFACE_SHARES = (0.2, 0.25, 0.15, 0.1, 0.15, 0.15)
