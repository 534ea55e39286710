"""Procedural microscopy-like objects before the blur, sharp at the scale of one pixel.

Each `f(rng, size)` draws density, scale and brightness from `rng`, fills the whole field and
returns a (size, size) float32 image in [0, 1]. The same state of `rng` gives the same image.
"""

from collections.abc import Callable

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from simulation.brushes import (
    add_discs,
    add_points,
    ellipse,
    jittered_grid,
    log_uniform,
    smooth_field,
    stencil,
    to_unit_range,
)
from simulation.textures import clouds, collage, crystals, labyrinth, strokes

Object = Callable[[np.random.Generator, int], np.ndarray]

# Mean number of leaves above a point, so that exp(-4) = 2 % of the field stays uncovered.
LEAF_LAYERS = 4.0


def beads(rng: np.random.Generator, size: int) -> np.ndarray:
    """Fluorescent beads from below one pixel to a few pixels, scattered or in clumps."""
    per_px = log_uniform(rng, 1.5e-3, 2e-2)
    count = max(8, int(per_px * size**2))
    xy_px = rng.uniform(0, size, (count, 2))
    if rng.random() < 0.3:
        parents = rng.integers(0, max(4, count // 6), count)
        xy_px = xy_px[parents] + rng.normal(0, rng.uniform(3, 12), (count, 2))
    radius_px = np.full(count, rng.uniform(0.3, 3.5))
    if rng.random() < 0.5:
        radius_px = rng.uniform(0.3, rng.uniform(1.0, 4.0), count)
    brightness = np.exp(rng.normal(0, rng.uniform(0.0, 0.6), count))
    image = np.zeros((size, size))
    add_discs(image, xy_px, radius_px, brightness)
    return to_unit_range(image, background=rng.uniform(0, 0.15))


def filaments(rng: np.random.Generator, size: int) -> np.ndarray:
    """Networks of worm-like curves, 0.5 to 3 px wide, like microtubules or actin."""
    length_px = rng.uniform(0.3, 1.2) * size
    count = max(8, int(rng.uniform(0.06, 0.25) * size**2 / length_px))
    step_px = 0.5
    # The heading does a random walk: persistence length = 1 / (variance of the heading per pixel).
    persistence_px = log_uniform(rng, 15, 600)
    turns = rng.normal(0, np.sqrt(step_px / persistence_px), (count, int(length_px / step_px)))
    heading = np.cumsum(turns, axis=1) + rng.uniform(0, 2 * np.pi, (count, 1))
    x_px = np.cumsum(np.cos(heading), axis=1) * step_px
    y_px = np.cumsum(np.sin(heading), axis=1) * step_px
    # The middles of the curves are uniform over the field, so that its border is as full.
    x_px += rng.uniform(0, size, (count, 1)) - x_px.mean(axis=1, keepdims=True)
    y_px += rng.uniform(0, size, (count, 1)) - y_px.mean(axis=1, keepdims=True)
    brightness = np.exp(rng.normal(0, rng.uniform(0.1, 0.6), (count, 1)))
    width_px = rng.uniform(0.5, rng.uniform(0.6, 3.0), (count, 1))
    image = np.zeros((size, size))
    for across in np.linspace(-0.5, 0.5, 5):
        x = x_px - across * width_px * np.sin(heading)
        y = y_px + across * width_px * np.cos(heading)
        add_points(image, x.ravel(), y.ravel(), np.broadcast_to(brightness, x.shape).ravel())
    return to_unit_range(image, background=rng.uniform(0, 0.2))


def nuclei(rng: np.random.Generator, size: int) -> np.ndarray:
    """Overlapping ellipses with a chromatin-like texture and bright spots on a faint haze."""
    radius_px = rng.uniform(7, 26)
    count = max(6, int(rng.uniform(0.5, 1.2) * size**2 / (np.pi * radius_px**2)))
    chromatin = _chromatin(rng, size)
    image = np.zeros((size, size))
    for x, y in jittered_grid(rng, size, count):
        semi_px = radius_px * rng.uniform(0.75, 1.25) * np.array([1.0, rng.uniform(0.55, 1.0)])
        rows, columns, inside = ellipse(x, y, semi_px, rng.uniform(0, np.pi), size)
        image[rows, columns] += inside * chromatin[rows, columns] * rng.uniform(0.4, 1.0)
    return to_unit_range(image, background=rng.uniform(0, 0.2))


def round_cells(rng: np.random.Generator, size: int) -> np.ndarray:
    """Round cells or spheres of nearly one size, side by side: filled, rimmed or ring-like.

    Their spectrum has rings like that of a defocused PSF. A network needs sharp round cells in
    training to distinguish a round object from a blurred image.
    """
    radius_px = log_uniform(rng, 5, 34)
    pitch_px = 2 * radius_px * rng.uniform(1.05, 1.6)
    centres = jittered_grid(rng, size, max(9, int((size / pitch_px) ** 2)))
    texture = 1 + rng.uniform(0.03, 0.4) * smooth_field(rng, size, rng.uniform(0.5, 3))
    squash, hole, spread = rng.uniform(0, 0.15), rng.uniform(0, 0.9), rng.uniform(0, 0.1)
    is_ring = rng.random() < 0.35
    image = np.zeros((size, size))
    for x, y in centres:
        semi_px = radius_px * np.exp(rng.normal(0, spread)) * np.array([1, 1 - squash])
        angle, brightness = rng.uniform(0, np.pi), rng.uniform(0.5, 1.0)
        rows, columns, inside = ellipse(x, y, semi_px, angle, size)
        image[rows, columns] += inside * texture[rows, columns].clip(0.1) * brightness
        if is_ring:
            rows, columns, inside = ellipse(x, y, hole * semi_px, angle, size)
            image[rows, columns] *= 1 - 0.8 * inside
    return to_unit_range(image, background=rng.uniform(0, 0.3))


def membranes(rng: np.random.Generator, size: int) -> np.ndarray:
    """Cell outlines (curved Voronoi edges of varied thickness and brightness) with puncta."""
    spacing_px = rng.uniform(9, 32)
    sites = jittered_grid(rng, size, max(9, int((size / spacing_px) ** 2)), margin=0.2)
    y_px, x_px = np.mgrid[:size, :size].astype(float)
    bend_px = spacing_px * rng.uniform(0, 0.35)
    pixels = np.stack(
        [
            x_px + bend_px * smooth_field(rng, size, spacing_px / 2),
            y_px + bend_px * smooth_field(rng, size, spacing_px / 2),
        ],
        axis=-1,
    )
    distance_px, cell = cKDTree(sites).query(pixels, k=2)
    first, second = cell[..., 0], cell[..., 1]
    apart_px = np.linalg.norm(sites[first] - sites[second], axis=-1)
    from_edge_px = (distance_px[..., 1] ** 2 - distance_px[..., 0] ** 2) / (2 * apart_px)
    half_width_px = rng.uniform(0.3, rng.uniform(0.4, 1.2), len(sites))
    brightness = rng.uniform(rng.uniform(0.2, 0.9), 1.0, len(sites))
    # Both neighbours contribute equally, so that an edge looks the same on both sides.
    line = np.clip((half_width_px[first] + half_width_px[second]) / 2 + 0.5 - from_edge_px, 0, 1)
    image = line * brightness[first] * brightness[second]
    image += rng.uniform(0, 0.15) * rng.uniform(0, 1, len(sites))[first]
    puncta = int(log_uniform(rng, 2e-4, 6e-3) * size**2)
    add_discs(
        image,
        rng.uniform(0, size, (puncta, 2)),
        rng.uniform(0.3, 1.8, puncta),
        rng.uniform(0.2, 1.0, puncta),
    )
    return to_unit_range(image, background=rng.uniform(0, 0.15))


def dead_leaves(rng: np.random.Generator, size: int) -> np.ndarray:
    """Opaque leaves that hide each other, with sizes by a 1/r^3 law as in natural scenes.

    The model is that of Lee, Mumford and Huang, Int. J. Computer Vision 41:35-59 (2001).
    """
    r_min_px, r_max_px = rng.uniform(1.0, 2.5), size * rng.uniform(0.06, 0.25)
    mean_area_px = 2 * np.pi * np.log(r_max_px / r_min_px) / (r_min_px**-2 - r_max_px**-2)
    count = int(LEAF_LAYERS * size**2 / mean_area_px)
    radius_px = sample_leaf_radii(rng, count, r_min_px, r_max_px)
    owner = _stack_leaves(rng, radius_px, size)
    # Leaf 0 is the background, seen where no leaf lies.
    grey = rng.uniform(0, 1, count + 1) ** rng.uniform(0.6, 2.0)
    roughness = rng.uniform(0, rng.choice([0.02, 0.25]), count + 1)
    texture = ndimage.gaussian_filter(rng.normal(size=(size, size)), rng.uniform(0, 0.8))
    image = np.clip(grey[owner] + roughness[owner] * texture / texture.std(), 0, 1)
    return image.astype(np.float32)


# The order is part of the seed of every procedural image.
OBJECTS: dict[str, Object] = {
    "beads": beads,
    "filaments": filaments,
    "nuclei": nuclei,
    "round_cells": round_cells,
    "membranes": membranes,
    "dead_leaves": dead_leaves,
    "collage": collage,
    "crystals": crystals,
    "labyrinth": labyrinth,
    "strokes": strokes,
    "clouds": clouds,
}


def sample_leaf_radii(
    rng: np.random.Generator, count: int, r_min_px: float, r_max_px: float
) -> np.ndarray:
    """Random radii (count,) in [r_min_px, r_max_px] with density proportional to 1 / r^3."""
    u = rng.uniform(0, 1, count)
    return (r_min_px**-2 - u * (r_min_px**-2 - r_max_px**-2)) ** -0.5


def _stack_leaves(rng: np.random.Generator, radius_px: np.ndarray, size: int) -> np.ndarray:
    """Number (size, size) of the topmost leaf at each pixel, from 1; 0 if there is none."""
    count = len(radius_px)
    # Some centres lie outside the field; otherwise the border would lack large leaves.
    margin_px = radius_px[:, None]
    xy_px = rng.uniform(-margin_px, size + margin_px, (count, 2))
    angle, aspect = rng.uniform(0, np.pi, count), rng.uniform(rng.uniform(0.3, 1), 1, count)
    corners = rng.random(count) < rng.choice([0.0, 0.5])
    owner = np.zeros(size * size, dtype=np.int64)
    # Leaves of similar size share one stencil. The number of a leaf decides which is on top.
    size_class = np.ceil(np.log2(radius_px) * 2).astype(int)
    for this_class in np.unique(size_class):
        index = np.flatnonzero(size_class == this_class)
        reach = int(np.ceil(radius_px[index].max())) + 1
        for part in np.array_split(index, 1 + len(index) * reach**2 // 100_000):
            column, row, x, y = stencil(xy_px[part], reach)
            cosine, sine = np.cos(angle[part])[:, None, None], np.sin(angle[part])[:, None, None]
            u = np.abs(cosine * x + sine * y)
            v = np.abs(cosine * y - sine * x) / aspect[part][:, None, None]
            box = corners[part][:, None, None]
            inside = np.where(box, np.maximum(u, v) * np.sqrt(2), np.hypot(u, v))
            inside = inside <= radius_px[part][:, None, None]
            inside &= (column >= 0) & (column < size) & (row >= 0) & (row < size)
            leaf = np.broadcast_to(part[:, None, None] + 1, inside.shape)[inside]
            np.maximum.at(owner, (row * size + column)[inside], leaf)
    return owner.reshape(size, size)


def _chromatin(rng: np.random.Generator, size: int) -> np.ndarray:
    """Positive texture (size, size) with grains of 1 to 3 px and sparse bright foci."""
    texture = np.zeros((size, size))
    for sigma_px in (0.6, 1.2, 2.5):
        grains = ndimage.gaussian_filter(rng.normal(size=(size, size)), sigma_px)
        texture += rng.uniform(0.2, 1.0) * grains / grains.std()
    texture = np.exp(rng.uniform(0.2, 0.6) * texture / texture.std())
    foci = int(rng.uniform(0.001, 0.006) * size**2)
    add_discs(
        texture,
        rng.uniform(0, size, (foci, 2)),
        rng.uniform(0.4, 2.0, foci),
        rng.uniform(0.5, 2.5, foci),
    )
    return texture
