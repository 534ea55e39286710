"""Neighbourhoods of pixels in a plane: what is near some places, and what replaces outliers."""

import math
from collections.abc import Callable

import torch

FILL_PX = 5  # edge of the window whose median fills an outlier
REGION_PX = 5  # a square of this edge without a usable pixel makes a region, not an outlier


def fill_outliers(plane: torch.Tensor, usable: torch.Tensor) -> torch.Tensor:
    """The plane (H, W) with the median of usable neighbours in pixels that are not usable.

    Pixels without usable neighbours, as inside of a black border, get the median of the plane.
    """
    if usable.all():
        return plane
    known = torch.where(usable, plane, torch.nan)
    overall = known.nanmedian()
    if not overall.isfinite():
        return torch.zeros_like(plane)
    filled = plane.clone()
    filled[~usable] = medians_near(known, (~usable).nonzero()).nan_to_num(float(overall))
    return filled


def medians_near(known: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Medians (N,) of the known pixels around places (N, 2); NaN where there are none."""
    return _near(known, places, FILL_PX, lambda windows: windows.nanmedian(1).values)


def smallest_near(plane: torch.Tensor, places: torch.Tensor, size: int) -> torch.Tensor:
    """Smallest known values (N,) in squares around places (N, 2)."""
    return _near(plane, places, size, lambda windows: windows.nan_to_num(math.inf).amin(1))


def _near(
    plane: torch.Tensor,
    places: torch.Tensor,
    size: int,
    what: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """What (N,) a function finds in squares (N, size^2) around places (N, 2)."""
    padded = torch.nn.functional.pad(plane, (size // 2,) * 4, value=torch.nan)
    windows = padded.unfold(0, size, 1).unfold(1, size, 1)  # (H, W, size, size): a view
    parts = places.split(2**16)  # bounds the memory of the windows
    return torch.cat([what(windows[part[:, 0], part[:, 1]].flatten(1)) for part in parts])


def large_regions(usable: torch.Tensor) -> torch.Tensor:
    """Where (H, W) squares of `REGION_PX` lack usable pixels: borders, gaps, saturated spots.

    Strips of 3 px along a border are regions too.
    """
    return solid(~usable, REGION_PX)


def grown(found: torch.Tensor, reach: int) -> torch.Tensor:
    """Pixels (H, W) within a square of 2 reach + 1 px around those found."""
    for axis in (0, 1):
        more, length = found.clone(), found.shape[axis]
        for step in range(1, min(reach, length - 1) + 1):
            inner, outer = (found.narrow(axis, at, length - step) for at in (0, step))
            more.narrow(axis, 0, length - step).logical_or_(outer)
            more.narrow(axis, step, length - step).logical_or_(inner)
        found = more
    return found


def solid(same: torch.Tensor, size: int) -> torch.Tensor:
    """Pixels (H, W) in squares that are all the same; outside the image everything is."""
    return grown(~grown(~same, size // 2), size // 2)


def some(values: torch.Tensor) -> torch.Tensor:
    """Evenly spaced ones of many values, enough for quantiles."""
    return values.flatten()[:: max(1, values.numel() // 2**16)]
