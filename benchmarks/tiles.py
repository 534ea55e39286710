"""Tiles of a field: sums over them, and intervals of what follows from the sums."""

from collections.abc import Callable

import numpy as np
from scipy.ndimage import gaussian_filter

from common.overviews import busiest

BORDER_PX = 32  # of the field that no score counts: shifts and PSFs reach into it
TILE_PX = 128
FEWEST_TILES = 5  # for an interval
DRAWS = 2000  # bootstrap samples of the tiles
SHOWN_PX = 200  # edge of a detail in a picture


def inner(image: np.ndarray) -> np.ndarray:
    """The part of an image that is scored."""
    return image[BORDER_PX:-BORDER_PX, BORDER_PX:-BORDER_PX]


def tile_sums(values: np.ndarray) -> np.ndarray:
    """Sums (R, C) over tiles of nearly equal size that cover an image (H, W)."""
    for axis in (0, 1):
        count = max(1, round(values.shape[axis] / TILE_PX))
        starts = [values.shape[axis] * i // count for i in range(count)]
        values = np.add.reduceat(values, starts, axis)
    return values


def bootstrap(score: Callable[..., np.ndarray], *sums: np.ndarray) -> tuple[float, float, float]:
    """Mean over planes of a score of sums over tiles, and its 95 % interval.

    The interval is a bootstrap over tiles. A tile is drawn in all planes at once, since they show
    the same object. It is NaN if there are few tiles.

    Parameters
    ----------
    score : takes the totals of the sums, (..., planes) each, and gives a score of each plane
    sums : (planes, tiles) each
    """
    mean, count = float(score(*(one.sum(1) for one in sums)).mean()), sums[0].shape[1]
    if count < FEWEST_TILES:
        return mean, np.nan, np.nan
    drawn = np.random.default_rng(0).integers(count, size=(DRAWS, count))
    weights = np.stack([np.bincount(one, minlength=count) for one in drawn])  # (DRAWS, tiles)
    found = score(*(weights @ one.T for one in sums)).mean(1)
    low, high = np.quantile(found, (0.025, 0.975))
    return mean, float(low), float(high)


def shown_part(truth: np.ndarray) -> tuple[slice, slice]:
    """The part of the field with most detail."""
    edge = min(SHOWN_PX, *truth.shape)
    top, left = busiest(truth - gaussian_filter(truth, 8), edge, 1)[0]
    return slice(top, top + edge), slice(left, left + edge)
