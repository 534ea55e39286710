"""Noise-free images of tilted planes and domes, in which each object point has its own PSF."""

import numpy as np
import torch

from psf.blur import (
    blur_by_column,
    blur_varying,
    dome_depth_um,
    interpolation_weights,
    tilted_depth_um,
)
from psf.errors import InputError
from psf.microscope import Microscope
from psf.model import PsfModel
from psf.synthesis import synthesize
from simulation.objects import OBJECTS
from simulation.sources import TEST_IMAGES, builtin_sources, read_plane

PROCEDURAL_SEED = 90_001  # training sets use small seeds, so no training object is drawn again
# Focus between two levels gets a blend of their PSFs. Steps of 0.04 waves for a dome of 18 um at
# the reference optics are a small part of the error of single patches.
DOME_LEVELS = 73


def held_out_object(name: str, size: int) -> torch.Tensor:
    """Sharp object (size, size): a kind of OBJECTS, or the corner of a held-out image.

    An image that is too small is continued by its mirror image.
    """
    if name in OBJECTS:
        rng = np.random.default_rng([PROCEDURAL_SEED, list(OBJECTS).index(name)])
        return torch.from_numpy(np.asarray(OBJECTS[name](rng, size), np.float32))
    if name not in TEST_IMAGES:
        raise InputError(
            f"there is no held-out texture '{name}'; choose one of "
            f"{', '.join((*TEST_IMAGES, *OBJECTS))}."
        )
    (source,) = (s for s in builtin_sources() if s.name == name)
    plane = read_plane(source)[:size, :size]
    missing = [(0, size - n) for n in plane.shape]
    return torch.from_numpy(np.pad(plane, missing, mode="symmetric").astype(np.float32))


def image_of_tilted_plane(
    texture: str,
    degrees: float,
    size_px: int,
    model: PsfModel,
    microscope: Microscope,
    psf_px: int,
    signed: bool,
) -> torch.Tensor:
    """Image (size_px, size_px) of a plane that rises along x, each column with its own PSF.

    `model` has focus as its only label; if not signed, it takes the distance from focus.
    """
    size = size_px + psf_px - 1
    depth_um = tilted_depth_um(size, degrees, microscope.pixel_size_um)
    focus = depth_um / microscope.um_per_wave
    focus = focus if signed else focus.abs()

    def psfs_of(columns: torch.Tensor) -> torch.Tensor:
        return synthesize(model, focus[columns, None], microscope, psf_px)

    return blur_by_column(held_out_object(texture, size), psfs_of).clamp(min=0)


def image_of_dome(
    texture: str,
    rim_um: float,
    top_um: float,
    size_px: int,
    model: PsfModel,
    microscope: Microscope,
    psf_px: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Image of a spherical cap and its depth at each pixel, um, both (size_px, size_px).

    `model` has focus as its only label.
    """
    size = size_px + psf_px - 1
    depth_um = dome_depth_um(size, rim_um, top_um)
    focus = depth_um / microscope.um_per_wave
    levels = torch.linspace(float(focus.min()), float(focus.max()), DOME_LEVELS)
    psfs = synthesize(model, levels[:, None], microscope, psf_px)
    weights = interpolation_weights(focus, levels)
    # 4 PSFs at a time: each needs a copy of the whole image
    image = blur_varying(held_out_object(texture, size), psfs, weights, chunk=4).clamp(min=0)
    inner = slice(psf_px // 2, psf_px // 2 + size_px)
    return image, depth_um[inner, inner]
