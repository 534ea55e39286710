"""True focus of the tiles of a real focal stack, without a model of the PSF.

A tile is as large as a patch of the network. Its sharpness in a plane is the variance of a
difference of two Gaussians. The plane of largest sharpness, refined by a parabola, is the tile's
focus. Sharpness is measured on the pixels that the network sees.

Noise, dirt on the camera and light from other planes add to the variance of a tile in every plane.
Their sum is the floor: the mean of the lowest quarter of the tile's own planes. So the floor needs
no model of the camera. It holds some signal if the stack is short, and then fewer tiles count.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from common.files import naming_damage, read_json
from psf.errors import InputError
from psf.microscope import OPTICS_NAMES

# Widths of the two Gaussians. They pass frequencies about 0.13 cycles per px, a quarter of the
# networks' cut-off frequency, where defocus acts most and noise is weak.
DETAIL_PX = (1.2, 2.4)
FLOOR_SHARE = 0.25  # of the planes, those of least sharpness, whose mean is the floor
# Least peak over the floor. In pure noise the largest of 30 planes is about 1.2 times the floor.
LEAST_PEAK = 1.6
TOP = 0.5  # part of the height above the floor from which planes belong to the parabola
BALANCE = 0.5  # least reach of the parabola on one side of the best plane, part of the other side's
SUFFIXES = (".tif", ".tiff")


@dataclass(frozen=True)
class Stack:
    """A focal stack and what is known of it."""

    name: str
    path: Path
    z: np.ndarray  # (K,) of the planes
    in_um: bool  # False: z counts planes
    optics: Mapping[str, float]  # by OPTICS_NAMES


@dataclass(frozen=True)
class TileFocus:
    """Where N tiles are in focus."""

    z: np.ndarray  # (N,) of the focus; NaN where the truth is unknown
    contrast: np.ndarray  # (N,) largest sharpness over the floor
    # (N,) the same detail under a Hann window: 1 if it is spread evenly, 0 if it lies at the edge,
    # 4 if it lies in the middle
    centred: np.ndarray


def find_stacks(folder: Path, optics_path: Path | None = None) -> list[Stack]:
    """Focal stacks of a folder that have a truth file, by name.

    Raises
    ------
    InputError
        If there is none, or the optics or the z of one are missing.
    """
    given = {} if optics_path is None else read_json(optics_path, "folder of optics")
    pairs = [(path, truth_path(path)) for path in sorted(folder.glob("*"))]
    found = [read_stack(path, truth, given) for path, truth in pairs if truth is not None]
    if not found:
        raise InputError(
            f"{folder} holds no NAME_stack.tif with NAME_truth.json, and no NAME.tif with "
            "NAME.json; give --folder."
        )
    return found


def truth_path(path: Path) -> Path | None:
    """The truth file of a stack; None if the file is no stack or has no truth."""
    if path.suffix.lower() not in SUFFIXES:
        return None
    names = (f"{path.stem.removesuffix('_stack')}_truth.json", f"{path.stem}.json")
    return next((path.with_name(name) for name in names if path.with_name(name).is_file()), None)


def read_stack(path: Path, truth: Path, given: Mapping[str, Any]) -> Stack:
    """A stack, with z from its truth file; optics in `given` replace those of the truth file."""
    name = path.stem.removesuffix("_stack")
    content = read_json(truth, "folder of a truth")
    with naming_damage(truth, "truth of a focal stack"):
        in_um = "z_um" in content
        if not in_um and "z_plane" not in content:
            raise InputError(f"{truth} lacks z_um, or z_plane, of the planes.")
        z = np.array(content["z_um" if in_um else "z_plane"], float)
        if z.ndim != 1 or len(set(z.tolist())) != len(z) or not np.isfinite(z).all():
            raise InputError(f"{truth}: the z of the planes must be different, finite numbers.")
        facts = {**pixel_named(content), **pixel_named(given.get(path.stem, given.get(name, {})))}
        optics = {n: float(facts[n]) for n in OPTICS_NAMES if facts.get(n) is not None}
    missing = [n for n in OPTICS_NAMES if n not in optics]
    if missing:
        raise InputError(
            f"the optics of stack {name} lack {', '.join(missing)}; add them to {truth.name}, or "
            f'give --optics FILE.json with {{"{name}": {{"{missing[0]}": ...}}}}.'
        )
    return Stack(name, path, z, in_um, optics)


def pixel_named(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts, with the pixel size as pixel_size_um, which truth files also call pixel_um."""
    pixel = {"pixel_size_um": facts["pixel_um"]} if "pixel_um" in facts else {}
    return pixel | dict(facts)


def sharpness(image: torch.Tensor, size: int, stride: int) -> torch.Tensor:
    """Variance of the fine detail (2, R, C) in the tiles of an image (H, W).

    Tiles are squares of `size` px, `stride` px apart, from the upper left corner, as the patches of
    a map. The second variance is weighted by a Hann window, so that detail at the edge of a tile
    hardly counts.
    """
    pixels = image.double().numpy()
    fine, coarse = (gaussian_filter(pixels, width, mode="nearest") for width in DETAIL_PX)
    detail = torch.from_numpy(fine - coarse)[None, None]
    line = torch.hann_window(size + 1, dtype=torch.float64)[1:]
    windows = torch.stack([torch.ones(size, size).double(), torch.outer(line, line)])[:, None]
    windows = windows / windows.sum((2, 3), keepdim=True)
    mean, square = (
        torch.nn.functional.conv2d(part, windows, stride=stride)[0]
        for part in (detail, detail.square())
    )
    return (square - mean.square()).clamp(min=0)


def tile_focus(sharp: np.ndarray, z: np.ndarray) -> TileFocus:
    """Focus of N tiles by their two kinds of sharpness (2, K, N) in K planes at z (K,), any order.

    The focus is known if the sharpest plane is neither the first nor the last one, and its
    sharpness is at least LEAST_PEAK times the floor.
    """
    order = np.argsort(z)
    sharp, z = np.asarray(sharp, float)[:, order], np.asarray(z, float)[order]
    lowest = max(1, round(FLOOR_SHARE * len(z)))
    floor = np.sort(sharp, 1)[:, :lowest].mean(1)  # (2, N)
    best = sharp[0].argmax(0)
    peak = sharp[:, best, np.arange(len(best))]  # (2, N)
    inside = (best > 0) & (best < len(z) - 1)
    known = inside & (peak[0] >= LEAST_PEAK * floor[0]) & (peak[0] > 0)
    focus = np.full(len(best), np.nan)
    for n in np.flatnonzero(known):
        focus[n] = refined_peak(sharp[0, :, n] - floor[0, n], z, best[n])
    contrast = np.divide(peak[0], floor[0], out=np.ones(len(best)), where=floor[0] > 0)
    contrast[(peak[0] > 0) & (floor[0] == 0)] = np.inf
    height = peak - floor
    centred = np.divide(height[1], height[0], out=np.zeros(len(best)), where=height[0] > 0)
    return TileFocus(focus, contrast, centred)


def refined_peak(height: np.ndarray, z: np.ndarray, best: int) -> float:
    """Position of a peak: the vertex of a parabola through the planes of its upper half.

    These are the planes around the best one, in a row, that are higher than TOP of it, and always
    its two neighbours. More planes than three average the noise. The best plane itself is returned
    where the parabola has no vertex between them.
    """
    low, high = best - 1, best + 1
    while low > 0 and height[low - 1] > TOP * height[best]:
        low -= 1
    while high < len(z) - 1 and height[high + 1] > TOP * height[best]:
        high += 1
    # With unequal steps, a plane close to the best one gives the slope there, but no curvature: a
    # small error of it moves the vertex far into the wide gap on the other side.
    while low > 0 and z[best] - z[low] < BALANCE * (z[high] - z[best]):
        low -= 1
    while high < len(z) - 1 and z[high] - z[best] < BALANCE * (z[best] - z[low]):
        high += 1
    near = slice(low, high + 1)
    centre, scale = z[best], np.ptp(z[near])
    x = (z[near] - centre) / scale  # of order one, so that the fit is well conditioned
    curvature, slope, _ = np.polyfit(x, height[near] / height[best], 2)
    if curvature >= 0:
        return float(centre)
    vertex = -slope / (2 * curvature)
    return float(centre + scale * vertex) if x[0] <= vertex <= x[-1] else float(centre)
