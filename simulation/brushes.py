"""Brushes that draw procedural objects: discs, points, ellipses, random fields and grids."""

import numpy as np
from scipy import ndimage


def stencil(xy_px: np.ndarray, reach: int) -> tuple[np.ndarray, ...]:
    """Pixels around each of n points: column (n, 1, s), row (n, s, 1), and their offsets x, y."""
    near = np.rint(xy_px).astype(int)
    offsets = np.arange(-reach, reach + 1)
    column = near[:, 0, None, None] + offsets[None, None, :]
    row = near[:, 1, None, None] + offsets[None, :, None]
    return column, row, column - xy_px[:, 0, None, None], row - xy_px[:, 1, None, None]


def add_discs(
    image: np.ndarray, xy_px: np.ndarray, radius_px: np.ndarray, brightness: np.ndarray
) -> None:
    """Add discs with edges one pixel wide; a disc below half a pixel of radius is only fainter."""
    size = image.shape[0]
    reach = int(np.ceil(radius_px.max(initial=0.5) + 1))
    column, row, x, y = stencil(xy_px, reach)
    cover = np.clip(radius_px[:, None, None] + 0.5 - np.hypot(x, y), 0, 1)
    weight = cover * brightness[:, None, None]
    inside = (weight > 0) & (column >= 0) & (column < size) & (row >= 0) & (row < size)
    flat = (row * size + column)[inside]
    image += np.bincount(flat, weight[inside], minlength=size * size).reshape(size, size)


def add_points(image: np.ndarray, x_px: np.ndarray, y_px: np.ndarray, weight: np.ndarray) -> None:
    """Add points, each spread over its four neighbouring pixels with bilinear weights."""
    size = image.shape[0]
    inside = (x_px >= 0) & (x_px < size - 1) & (y_px >= 0) & (y_px < size - 1)
    x_px, y_px, weight = x_px[inside], y_px[inside], weight[inside]
    column, row = x_px.astype(int), y_px.astype(int)
    x, y = x_px - column, y_px - row
    corners = [(0, 0, (1 - x) * (1 - y)), (0, 1, x * (1 - y)), (1, 0, (1 - x) * y), (1, 1, x * y)]
    for down, right, share in corners:
        flat = (row + down) * size + column + right
        image += np.bincount(flat, weight * share, minlength=size * size).reshape(size, size)


def ellipse(
    x_px: float, y_px: float, semi_px: np.ndarray, angle: float, size: int
) -> tuple[slice, slice, np.ndarray]:
    """Rows and columns of an ellipse's bounding box, and the share of each pixel that it covers."""
    reach = semi_px.max() + 1
    rows = slice(max(0, int(y_px - reach)), min(size, int(y_px + reach) + 2))
    columns = slice(max(0, int(x_px - reach)), min(size, int(x_px + reach) + 2))
    y = np.arange(rows.start, rows.stop)[:, None] - y_px
    x = np.arange(columns.start, columns.stop)[None, :] - x_px
    u = (np.cos(angle) * x + np.sin(angle) * y) / semi_px[0]
    v = (np.cos(angle) * y - np.sin(angle) * x) / semi_px[1]
    return rows, columns, np.clip((1 - np.hypot(u, v)) * semi_px.min() + 0.5, 0, 1)


def smooth_field(rng: np.random.Generator, size: int, scale_px: float) -> np.ndarray:
    """Gaussian random field of unit standard deviation with features of `scale_px`."""
    field = ndimage.gaussian_filter(rng.normal(size=(size, size)), scale_px, mode="wrap")
    return field / field.std()


def jittered_grid(
    rng: np.random.Generator, size: int, count: int, margin: float = 0.0
) -> np.ndarray:
    """About `count` points (n, 2), one per cell of a square grid with a relative margin."""
    low, high = -margin * size, (1 + margin) * size
    side = max(2, round(np.sqrt(count) * (1 + 2 * margin)))
    pitch_px = (high - low) / side
    column, row = np.meshgrid(np.arange(side), np.arange(side))
    corners = np.stack([column.ravel(), row.ravel()], axis=-1) * pitch_px + low
    return corners + rng.uniform(0, pitch_px, corners.shape)


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Random value whose logarithm is uniform."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def to_unit_range(image: np.ndarray, background: float) -> np.ndarray:
    """Image in [background, 1]; the brightest 0.2 % saturate, so that no single spot dominates."""
    top = max(float(np.quantile(image, 0.998)), 1e-9)
    return (background + (1 - background) * np.clip(image / top, 0, 1)).astype(np.float32)
