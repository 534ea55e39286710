"""Degradations of the paper's robustness figure, with physical units, applied to test patches.

Shajkofci & Liebling (2020) degrade test images by Gaussian noise, Poisson noise, both, rotation,
and global and axial changes of the illumination. Each is a `Degradation` here: its levels with
their unit, and a function that records noise-free patches at all levels. All levels share their
random numbers, so that R^2 against the level is a smooth curve.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from models.data import Batch, PatchSet
from psf.blur import blur_valid
from psf.errors import InputError
from psf.model import draw_labels
from psf.noise import (
    axial_illumination,
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

LEVELS = 13  # per degradation: about three per decade of light
# Per pixel, under Gaussian noise without shot noise: the brightest light of the benchmark's table.
MEAN_ELECTRONS = 1000.0
READ_NOISE_E = 3.0  # added to Poisson noise: the largest read noise of the training
# Mean per pixel; the training has 3 to 30,000.
PHOTONS = tuple(np.geomspace(30_000, 3, LEVELS).tolist())
FULL_SCALE = 2**16 - 1  # counts; a 16-bit camera, under a lamp that is dimmed

# From noise-free patches (N, H, W) and levels to the recorded patches at each level.
Record = Callable[[torch.Tensor, Sequence[float], torch.Generator], Iterator[torch.Tensor]]


@dataclass(frozen=True)
class Degradation:
    """One panel of the figure."""

    name: str
    axis: str  # label of the figure's axis
    unit: str  # of the levels
    levels: tuple[float, ...]  # from the best image to the worst
    record: Record | None  # None: the object is rotated before the blur instead


@dataclass(frozen=True)
class Level:
    """Recorded patches at one level of a degradation."""

    value: float  # in the unit of the degradation
    batch: Batch
    source_names: np.ndarray  # (N,) source image of each patch


def _gaussian(
    patches: torch.Tensor, sigmas: Sequence[float], generator: torch.Generator
) -> Iterator[torch.Tensor]:
    expected = to_photons(patches, MEAN_ELECTRONS)
    noise = torch.randn(expected.shape, generator=generator)
    for sigma in sigmas:
        yield expected + sigma * noise


def _poisson(
    patches: torch.Tensor, photons: Sequence[float], generator: torch.Generator
) -> Iterator[torch.Tensor]:
    """Counts at falling light: each photon of a level is kept at random for the next one.

    Photons that are kept with a probability p have a Poisson distribution of p times the mean.
    """
    counts = poisson_noise(to_photons(patches, photons[0]), generator)
    yield counts
    for brighter, level in pairwise(photons):
        kept = torch.full_like(counts, level / brighter)
        counts = torch.binomial(counts, kept, generator=generator)
        yield counts


def _both(
    patches: torch.Tensor, photons: Sequence[float], generator: torch.Generator
) -> Iterator[torch.Tensor]:
    read_noise = READ_NOISE_E * torch.randn(patches.shape, generator=generator)
    for counts in _poisson(patches, photons, generator):
        yield counts + read_noise


def _dim(
    patches: torch.Tensor, per_cent: Sequence[float], generator: torch.Generator
) -> Iterator[torch.Tensor]:
    top = patches.amax((1, 2), keepdim=True).clamp(min=1e-9)
    for level in per_cent:
        yield global_illumination(patches / top * FULL_SCALE, level / 100).round()


def _vignette(
    patches: torch.Tensor, per_cent: Sequence[float], generator: torch.Generator
) -> Iterator[torch.Tensor]:
    for level in per_cent:
        yield axial_illumination(patches, level / 100)


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
        "rotation",
        "rotation of the object",
        "degrees",
        tuple(np.linspace(0, 180, LEVELS).tolist()),
        None,
    ),
    Degradation(
        "global illumination",
        "light of the lamp",
        "per cent",
        tuple(np.linspace(100, 4, LEVELS).tolist()),
        _dim,
    ),
    Degradation(
        "axial illumination",
        "light lost at the corners",
        "per cent",
        tuple(np.linspace(0, 72, LEVELS).tolist()),
        _vignette,
    ),
)


def recorded_levels(
    test_set: PatchSet, degradation: Degradation, count: int, seed: int
) -> Iterator[Level]:
    """First `count` test patches with content, recorded at each level of a degradation.

    The same seed gives the same noise.
    """
    rows = np.flatnonzero(test_set.has_content.numpy())[:count]
    batch = test_set.batch(rows, torch.device("cpu"))
    generator = torch.Generator().manual_seed(seed)
    levels = degradation.record(batch.patches, degradation.levels, generator)
    for value, patches in zip(degradation.levels, levels, strict=True):
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
