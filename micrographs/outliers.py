"""Pixels that do not show the object: hot, dead, saturated and missing ones, and filled borders."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from micrographs.neighbours import grown, solid, some
from micrographs.noise_spectrum import smallest_step
from micrographs.sharpness import SHARPEST_CUTOFF, too_sharp

KINDS = ("hot", "dead", "border", "saturated", "missing")
BAND_PX = 2**23  # of a plane that are searched together, about: bounds the memory
FEWEST_ROWS, MOST_ROWS = 128, 1024  # that are searched together
OVERLAP_ROWS = 32  # of neighbouring bands, two blocks

FEWEST_BORDER_PX = 64  # of one value that make a border, and along the edge a quarter of them
MOST_BORDER_VALUES = 4  # that are tried, the most frequent ones along the edge
SOLID_PX = 3  # edge of the squares that a border is made of; chance leaves no solid squares
MIXED_PX = 2  # width of the pixels beside a border that interpolation mixed with it
BORDER_JUMP = 0.02  # least step from a border to the image, as a share of the range of brightness

# Lines at the edge: how many can be odd, and how many next ones tell what is usual. A step between
# the medians of two lines is odd from so many times the usual one, and from a share of the level.
MOST_EDGE_LINES, INNER_LINES, EDGE_FACTOR, EDGE_JUMP = 2, 16, 8.0, 0.05

FEWEST_PILED = 50  # pixels at the largest value that can be saturation; enlarged pixels repeat
PILE_WIDTH = 0.005  # share of the range below the largest value with which the pile is compared
PILE_FACTOR = 4.0  # times as many pixels must have the largest value as lie just below


@dataclass(frozen=True)
class Outliers:
    """Pixels of a plane that do not show the object."""

    usable: torch.Tensor  # (H, W) bool: all others
    shares: dict[str, float]  # of the pixels, by `KINDS`; each pixel counts once


def describe_outliers(shares: Mapping[str, float]) -> list[str]:
    """One sentence for the user on the shares of outliers by kind, if there are any."""
    words = {"border": "in or beside filled borders", "missing": "without a value (NaN)"}
    found = [
        f"{share_in_words(share)} {words.get(kind, kind)}"
        for kind, share in shares.items()
        if share
    ]
    return [f"pixels left out: {', '.join(found)}"] if found else []


def share_in_words(share: float) -> str:
    """A share as percent, with two digits."""
    return f"{100 * share:.2g} %" if share >= 1e-5 else "less than 0.001 %"


def find_outliers(
    plane: torch.Tensor,
    full_scale: float | None = None,
    cutoff: float | None = None,
    ends: tuple[bool, bool] = (True, True),
) -> Outliers:
    """Hot, dead, saturated and missing pixels and filled borders of a plane (H, W) of counts.

    Parameters
    ----------
    full_scale : largest count that the file can hold. Saturation below it is found too, as a pile
        of pixels at the largest value.
    cutoff : highest frequency of the optics, cycles per px; by default `SHARPEST_CUTOFF`
    ends : whether the first and the last row are edges of the image
    """
    plane = plane.detach().cpu().float()
    height, width = plane.shape
    step = min(max(BAND_PX // width, FEWEST_ROWS), MOST_ROWS)
    level = saturation_level(plane, full_scale)
    kinds = torch.zeros(plane.shape, dtype=torch.uint8)  # 0: usable, else 1 + place in KINDS
    for start in range(0, height, step):
        stop = min(start + step, height)
        first, last = max(0, start - OVERLAP_ROWS), min(height, stop + OVERLAP_ROWS)
        at_ends = (ends[0] and first == 0, ends[1] and last == height)
        found = _kinds_of_band(plane[first:last], (level, full_scale), cutoff, at_ends)
        kinds[start:stop] = found[start - first : stop - first]
    counts = torch.bincount(kinds.flatten(), minlength=1 + len(KINDS)).tolist()
    shares = {kind: n / kinds.numel() for kind, n in zip(KINDS, counts[1:], strict=True)}
    return Outliers(kinds == 0, shares)


def saturation_level(plane: torch.Tensor, full_scale: float | None = None) -> float | None:
    """Count from which pixels are saturated; None if none are.

    It is the largest value of the plane if that is full scale, or if many more pixels have this
    value than lie just below it.
    """
    known = plane[plane.isfinite()]
    if not len(known):
        return None
    top = float(known.max())
    if full_scale is not None and top >= full_scale:
        return full_scale
    reach = PILE_WIDTH * (top - float(some(known).median()))
    piled = int((known == top).sum())
    # The next value lies one step lower, whatever the unit of the image is.
    below = int((known >= top - max(reach, smallest_step(known))).sum()) - piled
    return top if piled >= FEWEST_PILED and piled > PILE_FACTOR * below and reach > 0 else None


def _kinds_of_band(
    plane: torch.Tensor,
    levels: tuple[float | None, float | None],
    cutoff: float | None,
    ends: tuple[bool, bool],
) -> torch.Tensor:
    """Kinds (H, W) of the pixels of some rows: 0 for usable ones, else 1 + the place in `KINDS`.

    The levels are those of saturation and of full scale. A border at full scale, or at the level of
    many other pixels, is saturated.
    """
    level, full_scale = levels
    missing = ~plane.isfinite()
    border = _borders(plane, missing, ends)
    saturated = torch.zeros_like(missing) if level is None else plane >= level
    if full_scale == level or (border & saturated).sum() < saturated.sum() / 2:
        border &= ~saturated
    known = torch.where(missing | border, torch.nan, plane)
    hot, dead = too_sharp(known, cutoff or SHARPEST_CUTOFF)
    kinds = torch.zeros(plane.shape, dtype=torch.uint8)
    # the last one of several counts
    for kind, found in zip(
        ("saturated", "dead", "hot", "border", "missing"),
        (saturated, dead, hot, border, missing),
        strict=True,
    ):
        kinds[found] = 1 + KINDS.index(kind)
    return kinds


# --- borders


def _borders(plane: torch.Tensor, missing: torch.Tensor, ends: tuple[bool, bool]) -> torch.Tensor:
    """Regions (H, W) of exactly one value along the edges of the image that it ends at abruptly.

    Registration, rotation and stitching fill what they do not know with one value. A dark
    background of one value is no border: brightness rises from it step by step.
    """
    edges = [plane[:, 0], plane[:, -1], plane[: ends[0]].flatten(), plane[-1:][: ends[1]].flatten()]
    along = torch.cat(edges)
    values, counts = along[along.isfinite()].unique(return_counts=True)
    frequent = counts.argsort(descending=True)[:MOST_BORDER_VALUES]
    border = torch.zeros_like(missing)
    for value in values[frequent[counts[frequent] >= FEWEST_BORDER_PX / 4]]:
        border |= _border_of(plane, plane == value, float(value), ends)
    if missing.any() or border.any():
        border |= grown(solid(missing, SOLID_PX) | border, MIXED_PX)
    border |= _edge_lines(plane, ends)
    return border & ~missing


def _edge_lines(plane: torch.Tensor, ends: tuple[bool, bool]) -> torch.Tensor:
    """Outermost lines (H, W) bool that differ from the next ones as no neighbouring lines do.

    A shift by less than two pixels leaves one or two lines of the filling value, or of a mixture
    with it. Some cameras return dark or bright first lines.
    """
    height, width = plane.shape
    lines = torch.zeros(plane.shape, dtype=torch.bool)
    if ends[0]:
        lines[: _odd_lines(plane)] = True
    if ends[1]:
        lines[height - _odd_lines(plane.flip(0)) :] = True
    lines[:, : _odd_lines(plane.T)] = True
    lines[:, width - _odd_lines(plane.T.flip(0)) :] = True
    return lines


def _odd_lines(plane: torch.Tensor) -> int:
    """Number of first lines of a plane (L, N) that differ from the next as no neighbours do."""
    lines = plane[: INNER_LINES + MOST_EDGE_LINES]
    if len(lines) < INNER_LINES:
        return 0
    levels = lines.nanmedian(1).values.nan_to_num()
    steps = levels.diff().abs()
    usual = EDGE_FACTOR * float(steps[MOST_EDGE_LINES:].square().mean().sqrt())
    least = EDGE_JUMP * float(levels[MOST_EDGE_LINES:].abs().median())
    odd = (steps[:MOST_EDGE_LINES] > max(usual, least)).nonzero().flatten().tolist()
    return odd[-1] + 1 if odd else 0


def _border_of(
    plane: torch.Tensor, same: torch.Tensor, value: float, ends: tuple[bool, bool]
) -> torch.Tensor:
    """Those pixels of one value that make a border, (H, W)."""
    squares = solid(same, SOLID_PX)
    labels, count = ndimage.label(squares.numpy())
    if not count:
        return torch.zeros_like(same)
    edges = labels[:, 0], labels[:, -1], labels[: ends[0]].ravel(), labels[-1:][: ends[1]].ravel()
    at_edge = np.setdiff1d(np.unique(np.concatenate(edges)), 0)
    low, high = _range_of(plane[~same & plane.isfinite()])
    found = torch.zeros_like(same)
    for one in at_edge:
        region = torch.from_numpy(labels == one)
        beside = grown(region, MIXED_PX + 1) & ~grown(region, MIXED_PX)
        steps = (plane[beside] - value).abs()
        steps = steps[steps.isfinite()]
        if region.sum() >= FEWEST_BORDER_PX and len(steps) and high > low:
            if float(some(steps).quantile(0.25)) > BORDER_JUMP * (high - low):
                found |= region
    if not found.any():
        return found
    # The thin ends of a corner hold no squares.
    parts, _ = ndimage.label(same.numpy())
    kept = np.unique(parts[found.numpy()])
    return torch.from_numpy(np.isin(parts, kept))


def _range_of(values: torch.Tensor) -> tuple[float, float]:
    """Percentiles 1 and 99."""
    if not len(values):
        return 0.0, 0.0
    few = some(values)
    return float(few.quantile(0.01)), float(few.quantile(0.99))
