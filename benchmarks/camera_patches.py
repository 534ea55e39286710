"""Patches of held-out objects as a camera records them, with aliasing as it happens.

Objects are drawn on a grid whose pixels are at most Nyquist's, blurred there, and averaged over
camera pixels. So frequencies above the Nyquist frequency of the camera fold as in a camera.
"""

import math
import warnings
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn import functional

from psf.blur import blur_valid
from psf.microscope import Microscope, SamplingWarning
from psf.model import PsfModel, draw_labels
from psf.synthesis import synthesize_with_loss
from simulation.content import is_sharp_and_rich
from simulation.settings import Simulation, fit_support
from simulation.sources import (
    PROCEDURAL_COUNT_PER_KIND,
    Source,
    builtin_sources,
    procedural_sources,
    read_plane,
    split_sources,
)

MOST_SUBPIXELS = 4  # fine pixels along a camera pixel: enough for 4 times the Nyquist pixel
SOURCE_PX = 704  # edge of the procedural objects, larger than the largest crop of the objectives
SOURCE_SEED = 1700  # of the procedural objects, another one than that of any training
LARGEST_SUPPORT_PX = 511  # of a PSF on the fine grid, for 4 waves on pixels of Nyquist / 4
MOST_TRIES = 30  # crops that are drawn to find one with content; then the last one is taken
CHUNK = 16  # patches that are blurred together; their crops take 30 MB


@dataclass(frozen=True)
class CameraPatches:
    """Noise-free patches of a camera."""

    pixels: torch.Tensor  # (N, P, P)
    labels: torch.Tensor  # (N, labels) of the PSF model
    sources: np.ndarray  # (N,) names of the objects


def nyquist_share(microscope: Microscope) -> float:
    """Pixel over the largest pixel without aliasing."""
    return microscope.pixel_size_um / microscope.nyquist_pixel_um


def subpixels(microscope: Microscope) -> int:
    """Fine pixels along a camera pixel, so that a fine pixel is at most the Nyquist pixel."""
    return min(MOST_SUBPIXELS, math.ceil(nyquist_share(microscope)))


def with_pixel(microscope: Microscope, pixel_size_um: float) -> Microscope:
    """The optics with another pixel, without a warning if it is coarse."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SamplingWarning)  # coarse pixels are the subject here
        return replace(microscope, pixel_size_um=pixel_size_um)


def seidel_waves_per_um(microscope: Microscope) -> float:
    """Waves of Seidel focus that describe the exact phase of 1 um of defocus best.

    Least squares over the pupil, with a free piston: W = z / lambda (n - sqrt(n^2 - NA^2 rho^2)).
    """
    rho_squared = (np.arange(1000) + 0.5) / 1000  # even in the area of the pupil
    n = microscope.refractive_index
    waves = (n - np.sqrt(n**2 - microscope.na**2 * rho_squared)) / microscope.wavelength_um
    return float(np.polyfit(rho_squared, waves, 1)[0])


def held_out_sources() -> list[list[Source]]:
    """Held-out photographs, and held-out procedural objects."""
    drawn = procedural_sources(PROCEDURAL_COUNT_PER_KIND, SOURCE_PX, SOURCE_SEED)
    held_out = split_sources(builtin_sources() + drawn, 0)["test"]
    return [[s for s in held_out if s.kind == kind] for kind in ("builtin", "procedural")]


def draw_crop(
    sources: list[Source], edge: int, inner: int, patch_size: int, rng: np.random.Generator
) -> tuple[torch.Tensor, str]:
    """A sharp crop (edge, edge) whose inner part has content, and the name of its source.

    The content filter sees the inner part on the pixels of the network, as in training. A
    photograph that is smaller than the crop is enlarged.
    """
    start = (edge - inner) // 2
    for _ in range(MOST_TRIES):
        source = sources[rng.integers(len(sources))]
        plane = torch.from_numpy(read_plane(source))[None, None]
        zoom = max(1.0, edge / min(plane.shape[2:]))
        if zoom > 1:
            sides = [max(edge, round(zoom * side)) for side in plane.shape[2:]]
            plane = functional.interpolate(plane, sides, mode="bicubic").clamp(0, 1)
        top, left = (int(rng.integers(side - edge + 1)) for side in plane.shape[2:])
        crop = plane[0, 0, top : top + edge, left : left + edge]
        crop = torch.rot90(crop, int(rng.integers(4)))
        seen = crop[start : start + inner, start : start + inner]
        seen = functional.interpolate(seen[None, None], (patch_size, patch_size), mode="area")[0]
        if is_sharp_and_rich(seen)[0]:
            break
    return crop, source.name


def simulate_camera(
    model: PsfModel, microscope: Microscope, patch_px: int, seen_px: int, count: int, seed: int
) -> CameraPatches:
    """`count` patches (patch_px, patch_px) of held-out photographs and procedural objects in turn.

    The content filter sees an object on `seen_px` pixels along an edge, those of the network.
    """
    finer = subpixels(microscope)
    fine = with_pixel(microscope, microscope.pixel_size_um / finer)
    simulation = Simulation(model, fine, None, LARGEST_SUPPORT_PX, LARGEST_SUPPORT_PX, 0.0)
    support, inner = fit_support(simulation).psf_size, patch_px * finer
    rng = np.random.default_rng([seed, count])
    labels = draw_labels(model, count, rng)
    kinds, pixels, names = held_out_sources(), [], []
    for part in labels.split(CHUNK):
        crops = []
        for _ in range(len(part)):
            kind = kinds[len(names) % len(kinds)]
            crop, name = draw_crop(kind, inner + support - 1, inner, seen_px, rng)
            crops.append(crop)
            names.append(name)
        psfs, _ = synthesize_with_loss(model, part, fine, support)
        blurred = blur_valid(torch.stack(crops), psfs).clamp_(min=0)
        pixels.append(functional.avg_pool2d(blurred[:, None], finer)[:, 0])
    return CameraPatches(torch.cat(pixels), labels, np.array(names))
