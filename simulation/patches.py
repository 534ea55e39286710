"""Simulated patches: a sharp crop, a drawn PSF, their blur on the valid region, the label."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from typing import Any

import numpy as np
import torch

from psf.blur import blur_valid, blur_varying, interpolation_weights
from psf.errors import InputError
from psf.microscope import OPTICS_NAMES, Microscope, simulated_microscopes
from psf.model import PsfModel, draw_labels, extreme_labels
from psf.model import from_config as model_from_config
from psf.synthesis import ENERGY_TOLERANCE, synthesize_with_loss
from simulation.crops import blank_crops, draw_crops
from simulation.sources import Source

MAX_NA_PER_INDEX = 0.92  # steepest rays drawn, 67 degrees
LEVELS = 9  # PSFs of a patch whose focus changes across it; blended linearly between them
LEVELS_REACH = 0.8  # they reach this many patches from its middle, beyond its corners
BEYOND = (1.15, 1.6)  # "beyond the range" of focus, in ends of the range
SUPPORT_STEP = 16  # px between the supports that `fit_support` tries


@dataclass(frozen=True)
class OpticsRanges:
    """Ranges for --vary-optics, from which the optics of each patch are drawn uniformly.

    An NA range ends at 0.92 times the index that was drawn, if that is lower.

    Raises
    ------
    InputError
        If a range is not positive and rising, or allows an NA that its lowest index does not.
    """

    na: tuple[float, float] = (0.3, 0.8)
    wavelength_um: tuple[float, float] = (0.45, 0.7)
    nyquist_share: tuple[float, float] = (0.85, 1.2)  # pixel size / Nyquist pixel
    refractive_index: tuple[float, float] = (1.0, 1.52)

    def __post_init__(self) -> None:
        for name, (low, high) in asdict(self).items():
            if not 0 < low <= high < math.inf:
                raise InputError(
                    f"{name} range {low} to {high}: give two positive, rising numbers."
                )
        if self.na[0] > MAX_NA_PER_INDEX * self.refractive_index[0]:
            raise InputError(
                f"NA from {self.na[0]} is above {MAX_NA_PER_INDEX} times the lowest refractive "
                f"index {self.refractive_index[0]}; change one of the ranges."
            )


@dataclass(frozen=True)
class Simulation:
    """Everything but the source images that decides what a patch looks like."""

    model: PsfModel
    microscope: Microscope
    optics_ranges: OpticsRanges | None  # None: every patch has `microscope`
    patch_size: int  # px
    psf_size: int  # px, support of the PSF
    blank_fraction: float  # share of patches without content
    patches_per_crop: int = 1  # blurs, each with its own PSF, that a training crop serves for
    focus_change_waves: float = 0.0  # half of the patches: up to this much across a patch,
    # and any other parameters by up to as much
    beyond_fraction: float = 0.0  # share of patches beyond the range, without a label

    def __post_init__(self) -> None:
        if not (self.focus_change_waves >= 0 and 0 <= self.beyond_fraction < 1):
            raise InputError(
                "a change of focus cannot be negative, a share of patches lies in 0 to below 1."
            )
        if (self.focus_change_waves or self.beyond_fraction) and not self._has_focus:
            raise InputError(
                f"{self.model.name} has no focus in waves that could change across a patch or lie "
                "beyond its range."
            )

    @property
    def _has_focus(self) -> bool:
        return self.model.label_names[0] == "focus"

    @property
    def crop_size(self) -> int:
        """Edge of the sharp crop whose valid blur is a patch, px."""
        return self.patch_size + self.psf_size - 1


@dataclass(frozen=True)
class Patches:
    """A batch of simulated patches."""

    sharp: torch.Tensor  # (N, H, W) the object, in [0, 1]
    psfs: torch.Tensor  # (N, K, K) of the patch's middle
    blurred: torch.Tensor  # (N, H, W) without noise
    labels: torch.Tensor  # (N, P) in the patch's middle
    has_content: torch.Tensor  # (N,) bool; False: blank, or focus beyond the model's range
    optics: torch.Tensor  # (N, 4) in the order of OPTICS_NAMES
    names: tuple[str, ...]  # source image of each patch, "" for blank ones


def simulate(
    simulation: Simulation,
    sources: Sequence[Source],
    count: int,
    rng: np.random.Generator,
    augment: bool,
) -> Patches:
    """Draw `count` noise-free patches; all randomness comes from `rng`."""
    margin = (simulation.psf_size - 1) // 2
    middle = slice(margin, margin + simulation.patch_size)
    uses = simulation.patches_per_crop if augment else 1
    crop_count = -(-count // uses)
    blank = rng.random(crop_count) < simulation.blank_fraction
    crops = draw_crops(
        sources, crop_count, simulation.crop_size, simulation.patch_size, rng, augment=augment
    )
    pixels = crops.pixels
    if blank.any():
        pixels[torch.from_numpy(blank)] = blank_crops(int(blank.sum()), simulation.crop_size, rng)
    microscopes = draw_microscopes(simulation, count, rng)
    labels = draw_labels(simulation.model, count, rng)
    beyond = _move_beyond(simulation, labels, rng)
    psfs, _ = synthesize_with_loss(simulation.model, labels, microscopes, simulation.psf_size)
    per_patch = [microscopes] * count if isinstance(microscopes, Microscope) else microscopes
    names = ["" if b else n for b, n in zip(blank, crops.names, strict=True)]
    blurred = torch.cat([blur_valid(pixels[: len(h)], h) for h in psfs.split(crop_count)])
    for index, slope, shares in _draw_changes(simulation, count, rng):
        blurred[index] = _blur_sloped(
            simulation, pixels[index % crop_count], labels[index], per_patch[index], slope, shares
        )
    return Patches(
        sharp=pixels[:, middle, middle].repeat(uses, 1, 1)[:count],
        psfs=psfs,
        blurred=blurred.clamp_(min=0),  # rounding of the FFT reaches -1e-7
        labels=labels,
        has_content=torch.from_numpy(~blank).repeat(uses)[:count] & ~beyond,
        optics=torch.tensor([astuple(microscope) for microscope in per_patch]),
        names=tuple(names * uses)[:count],
    )


def _move_beyond(
    simulation: Simulation, labels: torch.Tensor, rng: np.random.Generator
) -> torch.Tensor:
    """Move the focus of some labels (N, P), in place, beyond its range; which, (N,) bool."""
    if not simulation.beyond_fraction:
        return torch.zeros(len(labels), dtype=torch.bool)
    beyond = torch.from_numpy(rng.random(len(labels)) < simulation.beyond_fraction)
    ends = torch.tensor([end for end in simulation.model.ranges["focus"] if end])
    sides = ends[torch.from_numpy(rng.integers(0, len(ends), len(labels)))]
    far = sides * torch.from_numpy(rng.uniform(*BEYOND, len(labels)).astype(np.float32))
    labels[:, 0] = torch.where(beyond, far, labels[:, 0])
    return beyond


def _draw_changes(
    simulation: Simulation, count: int, rng: np.random.Generator
) -> list[tuple[int, tuple[float, float], torch.Tensor]]:
    """The sloped patches: index, change of focus (down, across) in waves per patch, shares (P,).

    Each parameter changes by its share of the change of focus, along the same direction.
    """
    if not simulation.focus_change_waves:
        return []
    sloped = rng.random(count) < 0.5
    steepness = rng.uniform(0, simulation.focus_change_waves, count)
    angle = rng.uniform(0, 2 * math.pi, count)
    changes = np.stack([steepness * np.sin(angle), steepness * np.cos(angle)], 1)
    shares = np.ones((count, len(simulation.model.label_names)), np.float32)
    shares[:, 1:] = rng.uniform(-1, 1, shares[:, 1:].shape)
    return [
        (index, tuple(changes[index]), torch.from_numpy(shares[index]))
        for index in np.flatnonzero(sloped).tolist()
    ]


def _blur_sloped(
    simulation: Simulation,
    crop: torch.Tensor,
    label: torch.Tensor,
    microscope: Microscope,
    slope: tuple[float, float],
    shares: torch.Tensor,
) -> torch.Tensor:
    """Blur one crop (S, S) whose PSF changes linearly, `label` (P,) holding in its middle."""
    steps = (torch.arange(len(crop)) - (len(crop) - 1) / 2) / simulation.patch_size
    offsets = slope[0] * steps[:, None] + slope[1] * steps  # waves of focus, (S, S)
    reach = LEVELS_REACH * math.hypot(*slope)
    levels = torch.linspace(-reach, reach, LEVELS)
    labels = label + levels[:, None] * shares
    psfs, _ = synthesize_with_loss(simulation.model, labels, microscope, simulation.psf_size)
    return blur_varying(crop, psfs, interpolation_weights(offsets, levels))


def from_config(config: Mapping[str, Any]) -> Simulation:
    """Rebuild the simulation of a data set from its config.json."""
    ranges = config["optics_ranges"]
    return Simulation(
        model=model_from_config(config["psf_model"]),
        microscope=Microscope(**config["microscope"]),
        optics_ranges=OpticsRanges(**{k: tuple(v) for k, v in ranges.items()}) if ranges else None,
        patch_size=config["patch_size"],
        psf_size=config["psf_size"],
        blank_fraction=config["blank_fraction"],
        patches_per_crop=config["patches_per_crop"],
        # data sets of before these settings were flat and within the range
        focus_change_waves=config.get("focus_change_waves", 0.0),
        beyond_fraction=config.get("beyond_fraction", 0.0),
    )


def draw_microscopes(
    simulation: Simulation, count: int, rng: np.random.Generator
) -> Microscope | list[Microscope]:
    """Draw the optics of `count` patches: one microscope, or one per patch from the ranges."""
    ranges = simulation.optics_ranges
    if ranges is None:
        return simulation.microscope
    na_share = rng.random(count)
    wavelength = rng.uniform(*ranges.wavelength_um, count)
    share = rng.uniform(*ranges.nyquist_share, count)
    index = rng.uniform(*ranges.refractive_index, count)
    highest = np.minimum(ranges.na[1], MAX_NA_PER_INDEX * index)
    na = ranges.na[0] + (highest - ranges.na[0]) * na_share
    pixel = share * wavelength / (4 * na)
    return simulated_microscopes(np.stack([na, wavelength, pixel, index], 1).tolist())


def steepest_optics(simulation: Simulation) -> Microscope:
    """Optics of this simulation with the steepest rays in the finest pixels: the widest PSFs."""
    ranges = simulation.optics_ranges
    if ranges is None:
        return simulation.microscope
    index, wavelength = ranges.refractive_index[0], ranges.wavelength_um[0]
    na = min(ranges.na[1], MAX_NA_PER_INDEX * index)
    pixel = ranges.nyquist_share[0] * wavelength / (4 * na)
    return Microscope(na, wavelength, pixel, index)


def lost_energy(simulation: Simulation) -> float:
    """Largest share of energy that a PSF of this simulation loses outside its support."""
    labels = extreme_labels(simulation.model)
    optics = steepest_optics(simulation)
    _, lost = synthesize_with_loss(simulation.model, labels, optics, simulation.psf_size)
    return float(lost.max())


def check_energy(simulation: Simulation) -> float:
    """`lost_energy` of a simulation whose PSFs fit their support.

    Raises
    ------
    InputError
        If it is above 1 %: the patch would be too bright and its label untrue.
    """
    worst = lost_energy(simulation)
    if worst > ENERGY_TOLERANCE:
        raise InputError(
            f"the widest PSF of {simulation.model.name} {dict(simulation.model.ranges)} loses "
            f"{worst:.1%} of its energy outside {simulation.psf_size} px (limit 1 %); give a "
            "larger --psf-size, larger patches or a smaller range."
        )
    return worst


def fit_support(simulation: Simulation) -> Simulation:
    """Give the PSFs the smallest support below the patch size that keeps 99 % of their energy.

    Where none does it is the largest, for `check_energy` to refuse. Small supports need small
    crops: generation is faster, and smaller source images can be used.
    """
    largest = simulation.patch_size - 1 + simulation.patch_size % 2  # odd: centred on a pixel
    for size in (*range(SUPPORT_STEP - 1, largest, SUPPORT_STEP), largest):
        fitted = replace(simulation, psf_size=size)
        if lost_energy(fitted) <= ENERGY_TOLERANCE:
            break
    return fitted


def optics_limits(simulation: Simulation) -> dict[str, Any]:
    """Ranges of the optics that the patches cover, by name, for checks at prediction time."""
    microscope, ranges = simulation.microscope, simulation.optics_ranges
    if ranges is None:
        limits = {n: [v, v] for n, v in zip(OPTICS_NAMES, astuple(microscope), strict=True)}
        cutoff = [microscope.cutoff_cycles_per_pixel] * 2
    else:
        limits = {n: list(getattr(ranges, n)) for n in OPTICS_NAMES if n != "pixel_size_um"}
        limits["pixel_size_um"] = [
            ranges.nyquist_share[0] * ranges.wavelength_um[0] / (4 * ranges.na[1]),
            ranges.nyquist_share[1] * ranges.wavelength_um[1] / (4 * ranges.na[0]),
        ]
        cutoff = [share / 2 for share in ranges.nyquist_share]
    return {**limits, "cutoff_cycles_per_pixel": cutoff}
