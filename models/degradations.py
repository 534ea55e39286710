"""Degradations of the paper's robustness figure, with physical units, applied to test patches.

Shajkofci & Liebling (2020) degrade test images by Gaussian noise, Poisson noise, both, rotation,
and global and axial changes of the illumination. Each is a `Degradation` here: its levels with
their unit, and a function that records noise-free patches at one level.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from models.data import Batch, PatchSet
from psf.blur import blur_valid
from psf.errors import InputError
from psf.model import draw_labels
from psf.noise import (
    axial_illumination,
    camera_counts,
    gaussian_noise,
    global_illumination,
    poisson_noise,
    rotate,
    to_photons,
)
from psf.synthesis import synthesize
from simulation.bank import MOST_DRAWN, Bank
from simulation.crops import draw_crops
from simulation.settings import Simulation, draw_microscopes
from simulation.sources import Source, plane_shape

LEVELS = 25  # per degradation: enough for a smooth curve in the figure
# Per pixel, under Gaussian noise without shot noise: the brightest light of the benchmark's table.
MEAN_ELECTRONS = 1000.0
READ_NOISE_E = 3.0  # added to Poisson noise: the largest read noise of the training
# Mean per pixel; the training has 8 to 30,000.
PHOTONS = tuple(np.geomspace(3, 30_000, LEVELS).tolist())
FULL_SCALE = 2**16 - 1  # counts; a 16-bit camera, under a lamp that is dimmed

Record = Callable[[torch.Tensor, float, torch.Generator], torch.Tensor]


@dataclass(frozen=True)
class Degradation:
    """One panel of the figure."""

    name: str
    axis: str  # label of the figure's axis
    unit: str  # of the levels
    levels: tuple[float, ...]  # rising
    record: Record | None  # None: the object is rotated before the blur instead


@dataclass(frozen=True)
class Level:
    """Recorded patches at one level of a degradation."""

    value: float  # in the unit of the degradation
    batch: Batch
    source_names: np.ndarray  # (N,) source image of each patch


def _gaussian(patches: torch.Tensor, sigma: float, generator: torch.Generator) -> torch.Tensor:
    return gaussian_noise(to_photons(patches, MEAN_ELECTRONS), sigma, generator)


def _poisson(patches: torch.Tensor, photons: float, generator: torch.Generator) -> torch.Tensor:
    return poisson_noise(to_photons(patches, photons), generator)


def _both(patches: torch.Tensor, photons: float, generator: torch.Generator) -> torch.Tensor:
    return camera_counts(to_photons(patches, photons), generator, READ_NOISE_E)


def _dim(patches: torch.Tensor, per_cent: float, generator: torch.Generator) -> torch.Tensor:
    top = patches.amax((1, 2), keepdim=True).clamp(min=1e-9)
    return global_illumination(patches / top * FULL_SCALE, per_cent / 100).round()


def _vignette(patches: torch.Tensor, per_cent: float, generator: torch.Generator) -> torch.Tensor:
    return axial_illumination(patches, per_cent / 100)


DEGRADATIONS = (
    Degradation(
        "gaussian",
        f"read noise, mean {MEAN_ELECTRONS:g} e⁻/px, no shot noise",
        "e⁻",
        tuple(np.geomspace(1, 1000, LEVELS).tolist()),
        _gaussian,
    ),
    Degradation("poisson", "photons per pixel, shot noise", "photons/px", PHOTONS, _poisson),
    Degradation(
        "both",
        f"photons per pixel, shot and {READ_NOISE_E:g} e⁻ read noise",
        "photons/px",
        PHOTONS,
        _both,
    ),
    Degradation(
        "rotation", "rotation of the object", "degrees", tuple(np.linspace(0, 180, LEVELS)), None
    ),
    Degradation(
        "global illumination",
        "light of the lamp",
        "per cent",
        tuple(np.linspace(4, 100, LEVELS)),
        _dim,
    ),
    Degradation(
        "axial illumination",
        "light lost at the corners",
        "per cent",
        tuple(np.linspace(0, 72, LEVELS)),
        _vignette,
    ),
)


def recorded_levels(
    test_set: PatchSet, degradation: Degradation, count: int, seed: int
) -> Iterator[Level]:
    """First `count` test patches with content at each level, with the same noise at each call."""
    rows = np.flatnonzero(test_set.has_content.numpy())[:count]
    batch = test_set.batch(rows, torch.device("cpu"))
    for index, value in enumerate(degradation.levels):
        generator = torch.Generator().manual_seed(seed + index)
        patches = degradation.record(batch.patches, value, generator)
        recorded = Batch(patches, batch.labels, batch.has_content, batch.optics)
        yield Level(value, recorded, test_set.source_names[rows])


def turned_levels(
    simulation: Simulation,
    sources: list[Source],
    angles_degrees: tuple[float, ...],
    count: int,
    seed: int,
) -> Iterator[Level]:
    """The same `count` objects, rotated by each angle and then blurred by the same PSFs.

    Raises
    ------
    InputError
        If no source is large enough for a rotated crop; smaller sources are left out.
    """
    rng = np.random.default_rng(seed)
    side = math.ceil((simulation.crop_size + 3) * math.sqrt(2)) + 2
    large = [
        source
        for source in sources
        if all(min(plane_shape(source, page)) >= side for page in source.pages)
    ]
    if not large:
        raise InputError(
            f"no test image has the {side} x {side} px of a rotated crop; give --data with larger "
            "--images."
        )
    bank = Bank(large, side, simulation.patch_size)
    sizes = [min(MOST_DRAWN, count - start) for start in range(0, count, MOST_DRAWN)]
    crops = [draw_crops(bank, size, rng, augment=False) for size in sizes]
    objects = torch.cat([some.pixels for some in crops])
    names = [some.names[origin] for some in crops for origin in some.origins.tolist()]
    labels = draw_labels(simulation.model, count, rng)
    microscopes = draw_microscopes(simulation, count, rng)
    psfs = synthesize(simulation.model, labels, microscopes, simulation.psf_size)
    each = microscopes if isinstance(microscopes, list) else [microscopes] * count
    optics = torch.tensor(
        [[m.na, m.wavelength_um, m.pixel_size_um, m.refractive_index] for m in each]
    )
    for degrees in angles_degrees:
        turned = rotate(objects, degrees, simulation.crop_size).clamp(min=0)
        patches = blur_valid(turned, psfs).clamp_(min=0)
        batch = Batch(patches, labels, torch.ones(count, dtype=torch.bool), optics)
        yield Level(degrees, batch, np.array(names))
