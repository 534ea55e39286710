"""Simulated patches: a sharp crop, a random PSF, the blurred patch and its label."""

import math
from dataclasses import astuple, dataclass

import numpy as np
import torch

from psf.blur import blur_along, blur_valid, chebyshev_nodes
from psf.microscope import Microscope, Microscopes
from psf.model import draw_labels
from simulation.augmentation import on_device
from simulation.bank import Bank
from simulation.crops import blank_crops, draw_crops
from simulation.settings import Simulation, draw_microscopes
from simulation.specimens import (
    Specimens,
    draw_sparse,
    draw_specimens,
    haze_labels,
    specimen_psfs,
    varied_psfs,
)

# Focus changes linearly up to this distance from the middle, in patches; a corner of the patch is
# at 0.71. Object points that are farther away have the PSF at this distance.
REACH = 0.8
# PSFs along a change of focus, besides one per radian of the fastest change of phase. A defocused
# PSF is band-limited in focus: its intensity has up to one cycle per wave.
MORE_NODES = 3
SLOPED_SHARE = 0.25  # of the patches, whose focus changes; each takes three times as long
# Focus of patches that are out of range, in ends of the range. Farther out, little detail is left.
OUT_OF_RANGE = (1.1, 2.6)


@dataclass(frozen=True)
class Patches:
    """A batch of simulated patches, on the device of the bank of source images."""

    crops: torch.Tensor  # (C, S, S) the objects, in [0, 1]; patch i shows the middle of crop i % C
    psfs: torch.Tensor  # (N, K, K) in the middle of the patch
    blurred: torch.Tensor  # (N, H, W) without noise
    labels: torch.Tensor  # (N, P) in the middle of the patch
    has_content: torch.Tensor  # (N,) bool; False: blank, only haze, or focus out of range
    optics: torch.Tensor  # (N, 4) in the order of OPTICS_NAMES
    origins: torch.Tensor  # (C,) index of each crop's source image in `drawn`
    drawn: tuple[str, ...]  # names of the source images; the last is "", of blank crops

    @property
    def sharp(self) -> torch.Tensor:
        """Objects (N, H, W) of the patches."""
        start, edge = (self.psfs.shape[-1] - 1) // 2, self.blurred.shape[-1]
        middle = slice(start, start + edge)
        numbers = torch.arange(len(self.labels), device=self.crops.device) % len(self.crops)
        return self.crops[numbers, middle, middle]

    @property
    def names(self) -> tuple[str, ...]:
        """Source image of each patch, "" for blank ones."""
        origins = self.origins.tolist()
        return tuple(self.drawn[origins[i % len(origins)]] for i in range(len(self.labels)))


def simulate(
    simulation: Simulation, bank: Bank, count: int, rng: np.random.Generator, augment: bool
) -> Patches:
    """`count` random patches without noise, on the device of the bank.

    All random numbers come from `rng`, except for the grain of the crops: it comes from a generator
    on the device, whose seed comes from `rng`.
    """
    device = bank.device
    uses = simulation.patches_per_crop if augment else 1
    crop_count = -(-count // uses)
    sparse = draw_sparse(simulation.specimens, crop_count, rng)
    crops = draw_crops(bank, crop_count, rng, augment, sparse)
    pixels, origins = crops.pixels, crops.origins
    blank = np.flatnonzero(rng.random(crop_count) < simulation.blank_fraction)
    if len(blank):
        where = on_device(blank, device)
        pixels[where] = blank_crops(len(blank), simulation.crop_size, rng, device)
        origins[where] = crop_count  # the last name
    microscopes = draw_microscopes(simulation, count, rng)
    labels = draw_labels(simulation.model, count, rng)
    out_of_range = _move_out_of_range(simulation, labels, rng)
    specimens = draw_specimens(simulation.specimens, count, rng)
    has_content = np.tile(~np.isin(np.arange(crop_count), blank), uses)[:count] & ~out_of_range
    has_content &= ~specimens.haze_only
    changes = draw_changes(simulation, count, rng)
    psfs, blurred = blur_patches(simulation, pixels, labels, microscopes, changes, specimens)
    each = [microscopes] * count if isinstance(microscopes, Microscope) else microscopes
    return Patches(
        crops=pixels,
        psfs=psfs,
        blurred=blurred,
        labels=on_device(labels.numpy(), device),
        has_content=on_device(has_content, device),
        optics=on_device(np.array([astuple(microscope) for microscope in each]), device),
        origins=origins,
        drawn=(*crops.names, ""),
    )


def _move_out_of_range(
    simulation: Simulation, labels: torch.Tensor, rng: np.random.Generator
) -> np.ndarray:
    """Move the focus of some labels (N, P) out of its range, in place; which of them, (N,) bool."""
    if not simulation.beyond_fraction:
        return np.zeros(len(labels), bool)
    out_of_range = rng.random(len(labels)) < simulation.beyond_fraction
    ends = torch.tensor([end for end in simulation.model.ranges["focus"] if end])
    sides = ends[torch.from_numpy(rng.integers(0, len(ends), len(labels)))]
    far = sides * torch.from_numpy(rng.uniform(*OUT_OF_RANGE, len(labels)).astype(np.float32))
    labels[:, 0] = torch.where(torch.from_numpy(out_of_range), far, labels[:, 0])
    return out_of_range


@dataclass(frozen=True)
class FocusChanges:
    """Patches whose focus changes linearly across them."""

    patches: np.ndarray  # (C,) their numbers, rising
    slopes: np.ndarray  # (C, 2) change of focus down and across, waves per patch
    shares: np.ndarray  # (C, P) change of each parameter per wave of focus


def draw_changes(simulation: Simulation, count: int, rng: np.random.Generator) -> FocusChanges:
    """Changes of focus in SLOPED_SHARE of the patches, if the simulation has any."""
    shares = np.ones((count, len(simulation.model.label_names)), np.float32)
    if not simulation.focus_change_waves:
        return FocusChanges(np.zeros(0, np.int64), np.zeros((0, 2)), shares[:0])
    chosen = np.flatnonzero(rng.random(count) < SLOPED_SHARE)
    steepness = rng.uniform(0, simulation.focus_change_waves, count)[chosen]
    angle = rng.uniform(0, 2 * math.pi, count)[chosen]
    shares[:, 1:] = rng.uniform(-1, 1, shares[:, 1:].shape)
    slopes = steepness[:, None] * np.stack([np.sin(angle), np.cos(angle)], 1)
    return FocusChanges(chosen, slopes, shares[chosen])


def blur_patches(
    simulation: Simulation,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    microscopes: Microscopes,
    changes: FocusChanges,
    specimens: Specimens,
) -> tuple[torch.Tensor, torch.Tensor]:
    """PSFs (N, K, K) of labels (N, P), and blurred patches (N, H, W) with haze and background.

    Patch i shows crop i % C of `pixels` (C, S, S). The PSFs are those in the middle of the patches.
    """
    device, count = pixels.device, len(labels)
    psfs = specimen_psfs(
        simulation.model, labels, microscopes, simulation.psf_size, specimens, device
    )
    if not len(changes.patches):
        blurred = blur_valid(pixels, psfs)
    else:
        blurred = pixels.new_empty(count, simulation.patch_size, simulation.patch_size)
        even = np.setdiff1d(np.arange(count), changes.patches)
        index = on_device(even, device)
        blurred[index] = blur_valid(pixels[index % len(pixels)], psfs[index])
        phases = 2 * math.pi * REACH * np.hypot(*changes.slopes.T)
        nodes = MORE_NODES + np.ceil(phases).astype(int)
        for node_count in np.unique(nodes):
            part = np.flatnonzero(nodes == node_count)
            index = on_device(changes.patches[part], device)
            some = FocusChanges(changes.patches[part], changes.slopes[part], changes.shares[part])
            blurred[index] = blur_changing(
                simulation, pixels, labels, microscopes, some, specimens, node_count
            )
    add_haze(simulation, blurred, pixels, labels, microscopes, specimens)
    return psfs, blurred.clamp_(min=0)  # rounding of the FFT reaches -1e-7


def add_haze(
    simulation: Simulation,
    blurred: torch.Tensor,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    microscopes: Microscopes,
    specimens: Specimens,
) -> None:
    """Add the light of other layers and of the background to blurred patches (N, H, W), in place.

    The other layer shows the mirrored crop: another object of the same kind.
    """
    device, hazy = pixels.device, np.flatnonzero(specimens.haze)
    if len(hazy):
        index = on_device(hazy, device)
        if not isinstance(microscopes, Microscope):
            microscopes = [microscopes[number] for number in hazy]
        layers = haze_labels(labels, specimens, hazy)
        psfs = varied_psfs(simulation.model, layers, microscopes, simulation.psf_size, device)
        haze = blur_valid(pixels[index % len(pixels)].flip(1, 2), psfs)
        haze = haze * on_device(specimens.haze[hazy], device)[:, None, None]
        has_object = on_device(~specimens.haze_only[hazy], device)[:, None, None]
        blurred[index] = blurred[index] * has_object + haze
    lit = np.flatnonzero(specimens.background)
    if len(lit):
        index = on_device(lit, device)
        light = on_device(specimens.background[lit], device)[:, None, None]
        blurred[index] += light * blurred[index].mean((1, 2), keepdim=True)


def blur_changing(
    simulation: Simulation,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    microscopes: Microscopes,
    changes: FocusChanges,
    specimens: Specimens,
    nodes: int,
) -> torch.Tensor:
    """Blur of the crops of some patches by PSFs that change linearly, from `nodes` PSFs each.

    Patch i shows crop i % C of `pixels` (C, S, S). `labels` (N, P) are those of all patches, in
    their middle.
    """
    device, numbers = pixels.device, changes.patches
    crops = pixels[on_device(numbers, device) % len(pixels)]
    reach = REACH * np.hypot(*changes.slopes.T)  # (C,) waves
    offsets = reach[:, None] * chebyshev_nodes(nodes)  # (C, nodes)
    steps = torch.from_numpy(np.float32(offsets[..., None] * changes.shares[:, None]))
    along = (labels[torch.from_numpy(numbers)][:, None] + steps).flatten(0, 1)
    if not isinstance(microscopes, Microscope):
        microscopes = [microscopes[number] for number in numbers for _ in range(nodes)]
    # A tilted specimen is thin: the slices of each of its points would take five times as long.
    each = specimens.take(np.repeat(numbers, nodes)).thin()
    psfs = specimen_psfs(simulation.model, along, microscopes, simulation.psf_size, each, device)
    size = simulation.crop_size
    axis = (torch.arange(size, device=device) - (size - 1) / 2) / simulation.patch_size
    slopes = on_device(changes.slopes / reach[:, None], device)
    places = slopes[:, :1, None] * axis[:, None] + slopes[:, 1:, None] * axis
    return blur_along(crops, psfs.unflatten(0, (-1, nodes)), places.clamp_(-1, 1))
