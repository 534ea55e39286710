"""Pixels that do not show the object."""

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
    reach = FILL_PX // 2
    padded = torch.nn.functional.pad(known, (reach,) * 4, value=torch.nan)
    windows = padded.unfold(0, FILL_PX, 1).unfold(1, FILL_PX, 1)  # (H, W, FILL_PX, FILL_PX): a view
    filled = plane.clone()
    for at in (~usable).nonzero().split(2**16):  # bounds the memory of the windows
        y, x = at.T
        filled[y, x] = windows[y, x].flatten(1).nanmedian(1).values.nan_to_num(float(overall))
    return filled


def large_regions(usable: torch.Tensor) -> torch.Tensor:
    """Where (H, W) squares of `REGION_PX` lack usable pixels: borders, gaps, saturated spots."""
    lacking = (~usable).float()[None, None]
    reach = REGION_PX // 2
    # Outside the image nothing is usable, so that strips of 3 px along a border are regions too.
    padded = torch.nn.functional.pad(lacking, (reach,) * 4, value=1.0)
    middles = -torch.nn.functional.max_pool2d(-padded, REGION_PX, 1)  # of squares that lack all
    return torch.nn.functional.max_pool2d(middles, REGION_PX, 1, reach)[0, 0] > 0
