"""Procedural textures before the blur: surfaces, powders, patterns and writing.

Like the objects of `simulation.objects`, each `f(rng, size)` returns a (size, size) float32 image
in [0, 1] that is sharp at the scale of one pixel. Their spectra and edges vary widely: a network
that was trained on many kinds of sharp objects takes fewer of them for blurred objects.
"""

import numpy as np
from scipy.spatial import cKDTree

from simulation.brushes import add_points, jittered_grid, log_uniform, smooth_field, to_unit_range


def clouds(rng: np.random.Generator, size: int) -> np.ndarray:
    """Random field with a power-law spectrum and heavy tails, sometimes cut into plateaus.

    The amplitude falls as f^-slope with slopes from 0.5 to 1.5; natural scenes have about 1 (Field,
    J. Opt. Soc. Am. A 4:2379, 1987). The local contrast varies, unlike that of a Gaussian field.
    """
    field = _power_law(rng, size, rng.uniform(0.5, 1.5))
    field *= np.exp(rng.uniform(0, 0.8) * smooth_field(rng, size, log_uniform(rng, 4, 40)))
    if rng.random() < 0.4:
        steps = np.sort(rng.normal(0, 1, rng.integers(1, 5)))
        plateaus = np.searchsorted(steps, field / field.std()).astype(float)
        field = plateaus + rng.uniform(0, 0.3) * field / field.std()
    return _between_quantiles(field, rng)


def labyrinth(rng: np.random.Generator, size: int) -> np.ndarray:
    """Stripes, mazes and blobs: a band of frequencies cut at a level, with edges one pixel wide."""
    pitch_px = log_uniform(rng, 5, 40)
    field = smooth_field(rng, size, pitch_px / 6) - smooth_field(rng, size, pitch_px / 3)
    if rng.random() < 0.4:  # a single direction: hatching or gratings
        angle, y, x = rng.uniform(0, np.pi), *np.mgrid[:size, :size]
        phase = 2 * np.pi * (np.cos(angle) * x + np.sin(angle) * y) / pitch_px
        phase += rng.uniform(0, 3) * smooth_field(rng, size, pitch_px)
        field = np.sin(phase) + rng.uniform(0, 0.5) * field
    slope = np.hypot(*np.gradient(field)) + 1e-3 * field.std()
    level = field.std() * rng.uniform(-0.8, 0.8)
    image = np.clip((field - level) / slope + 0.5, 0, 1)
    image *= np.exp(rng.uniform(0, 0.6) * smooth_field(rng, size, rng.uniform(0.7, 30)))
    return to_unit_range(image, background=rng.uniform(0, 0.3))


def crystals(rng: np.random.Generator, size: int) -> np.ndarray:
    """Packed grains with shaded faces, dark gaps and rough surfaces, like powders and stones."""
    pitch_px = log_uniform(rng, 6, 50)
    sites = jittered_grid(rng, size, max(9, int((size / pitch_px) ** 2)), margin=0.1)
    y, x = np.mgrid[:size, :size].astype(float)
    bend_px = pitch_px * rng.uniform(0, 0.3)
    pixels = np.stack([x, y], -1)
    for axis in (0, 1):
        pixels[..., axis] += bend_px * smooth_field(rng, size, pitch_px / 4)
    distance_px, cell = cKDTree(sites).query(pixels, k=2)
    apart_px = np.linalg.norm(sites[cell[..., 0]] - sites[cell[..., 1]], axis=-1)
    from_edge_px = (distance_px[..., 1] ** 2 - distance_px[..., 0] ** 2) / (2 * apart_px + 1e-9)
    tilt = rng.normal(0, rng.uniform(0.1, 0.6), (len(sites), 2)) / pitch_px
    offset = pixels - sites[cell[..., 0]]
    image = rng.uniform(0.3, 1, len(sites))[cell[..., 0]] + (tilt[cell[..., 0]] * offset).sum(-1)
    if rng.random() < 0.5:  # rounded grains, lit from one side
        image *= np.clip(1.2 - (distance_px[..., 0] / pitch_px) ** 2, 0.1, None)
    image += rng.uniform(0, 0.25) * _power_law(rng, size, rng.uniform(0.2, 1.2))
    gap_px = rng.uniform(-0.5, 0.1 * pitch_px)
    image *= np.clip(from_edge_px - gap_px + 0.5, rng.uniform(0, 0.6), 1)
    return _between_quantiles(image, rng)


def strokes(rng: np.random.Generator, size: int) -> np.ndarray:
    """Short straight or curved strokes, in rows or scattered, like writing or scratches."""
    length_px = log_uniform(rng, 5, 60)
    count = int(rng.uniform(0.05, 0.35) * size**2 / length_px)
    centres = rng.uniform(0, size, (count, 2))
    if rng.random() < 0.5:
        centres[:, 1] = np.rint(centres[:, 1] / (2 * length_px)) * 2 * length_px
        centres[:, 1] += rng.uniform(-0.5, 0.5, count) * length_px
    heading = rng.normal(rng.uniform(0, np.pi), log_uniform(rng, 0.05, 3), count)
    bend = rng.normal(0, rng.uniform(0, 1.5), count) / length_px
    width_px = rng.uniform(0.6, rng.uniform(1, 4))
    along = np.arange(-length_px / 2, length_px / 2, 0.4)
    angle = heading[:, None] + bend[:, None] * along
    x = centres[:, :1] + along * np.cos(angle)
    y = centres[:, 1:] + along * np.sin(angle)
    brightness = np.broadcast_to(rng.uniform(0.5, 1, (count, 1)), x.shape)
    image = np.zeros((size, size))
    for across in np.linspace(-0.5, 0.5, 2 * int(np.ceil(width_px)) + 1) * width_px:
        shifted_x, shifted_y = x - across * np.sin(angle), y + across * np.cos(angle)
        add_points(image, shifted_x.ravel(), shifted_y.ravel(), brightness.ravel())
    if rng.random() < 0.6:  # like ink: crossings are not brighter
        image = np.minimum(image, 0.5 * image.max())
    ground = 1 + rng.uniform(0, 0.3) * _power_law(rng, size, rng.uniform(0.3, 1.2))
    return to_unit_range(image + 0.2 * image.max() * ground.clip(0), background=0.0)


def collage(rng: np.random.Generator, size: int) -> np.ndarray:
    """Opaque polygons of all sizes, each with its own brightness, shading and texture."""
    image = 0.5 + 0.1 * _power_law(rng, size, 1.0)
    textures = [_power_law(rng, size, rng.uniform(0.2, 1.5)) for _ in range(3)]
    largest_px = size * rng.uniform(0.08, 0.3)
    radii_px = [log_uniform(rng, 2.5, largest_px) for _ in range(int(rng.uniform(150, 500)))]
    for radius_px in sorted(
        radii_px, reverse=True
    ):  # the large ones first, so that small ones stay visible
        x0, y0 = rng.uniform(0, size, 2)
        rows = slice(max(0, int(y0 - radius_px) - 1), min(size, int(y0 + radius_px) + 2))
        columns = slice(max(0, int(x0 - radius_px) - 1), min(size, int(x0 + radius_px) + 2))
        y = (np.arange(rows.start, rows.stop) - y0)[:, None]
        x = (np.arange(columns.start, columns.stop) - x0)[None, :]
        inside = np.full((y.size, x.size), np.inf)  # px to the nearest side
        for normal in rng.uniform(0, 2 * np.pi) + _side_angles(rng):
            reach_px = radius_px * rng.uniform(0.3, 0.9)
            inside = np.minimum(inside, reach_px - np.cos(normal) * x - np.sin(normal) * y)
        cover = np.clip(inside + 0.5, 0, 1)
        texture = textures[rng.integers(3)][rows, columns] * rng.exponential(0.06)
        shade = rng.uniform(0, 1) + (rng.normal(0, 0.15) * x + rng.normal(0, 0.15) * y) / radius_px
        image[rows, columns] += cover * (shade + texture - image[rows, columns])
    return _between_quantiles(image, rng)


def _side_angles(rng: np.random.Generator) -> np.ndarray:
    sides = int(rng.integers(3, 7))
    return (np.arange(sides) + rng.uniform(-0.3, 0.3, sides)) * 2 * np.pi / sides


def _power_law(rng: np.random.Generator, size: int, slope: float) -> np.ndarray:
    """Gaussian random field of unit standard deviation whose amplitude falls as f^-slope."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size))
    spectrum = np.fft.rfft2(rng.normal(size=(size, size)))
    field = np.fft.irfft2(spectrum * np.maximum(frequency, 1 / size) ** -slope, s=(size, size))
    return (field - field.mean()) / field.std()


def _between_quantiles(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Scale to [0, 1] between the 0.5 % and 99.5 % quantiles, on a random background."""
    low, high = np.quantile(image, (0.005, 0.995))
    background = rng.uniform(0, 0.3)
    unit = np.clip((image - low) / max(high - low, 1e-9), 0, 1)
    return (background + (1 - background) * unit).astype(np.float32)
