"""Patches on which an exported network is compared with the network itself."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from models.data import Exposure, expose, normalise
from models.estimator import Estimator
from psf.errors import InputError
from psf.microscope import Microscope, cutoffs, simulated_microscopes
from simulation.bank import Bank
from simulation.patches import simulate
from simulation.settings import from_config
from simulation.sources import builtin_sources, split_sources

COUNT = 24  # simulated patches; not tuned
COUNTS_16_BIT = 60000.0  # near the end of the range of a 16-bit camera
TINY_CONTRAST = 1e-3  # standard deviation of a patch as a share of its mean
CUTOFFS = 3  # across the range of the training


@dataclass(frozen=True)
class Case:
    """Patches that a network must read alike in both forms."""

    name: str
    patches: torch.Tensor  # (N, H, W)
    microscopes: list[Microscope]  # N
    exact: torch.Tensor | None = None  # the same patches, of which float32 loses fewer digits

    @property
    def reference(self) -> torch.Tensor:
        """Patches (N, H, W) that PyTorch reads."""
        return self.patches if self.exact is None else self.exact

    @property
    def cutoffs(self) -> torch.Tensor:
        """Cut-off frequencies (N,), cycles per px."""
        return cutoffs(self.microscopes)


def simulated_case(estimator: Estimator, count: int = COUNT, seed: int = 0) -> Case:
    """Patches of held-out built-in images, simulated as in the training of the network.

    Raises
    ------
    InputError
        If the network's config.json does not say how its training patches were made.
    """
    if "data" not in estimator.config:
        raise InputError(f"config.json of {estimator.name} lacks its data set; train again.")
    simulation = from_config(estimator.config["data"])
    sources = split_sources(builtin_sources(), 0)["test"]
    bank = Bank(sources, simulation.crop_size, simulation.patch_size)
    found = simulate(simulation, bank, count, np.random.default_rng(seed), augment=False)
    generator = torch.Generator().manual_seed(seed)
    patches = expose(found.blurred, Exposure(), generator)
    return Case("simulated", patches, simulated_microscopes(found.optics.tolist()))


def cases(estimator: Estimator) -> Iterator[Case]:
    """Simulated patches, other batch sizes and cut-offs, and patches that are hard to normalise."""
    first = simulated_case(estimator)
    yield first
    patches, optics = first.patches, first.microscopes
    yield Case("batch of 1", patches[:1], optics[:1])
    yield Case("batch of 7", patches[-7:], optics[-7:])
    yield _tiny_contrast(first)
    largest = patches.amax((1, 2), keepdim=True).clamp(min=1e-30)
    yield Case("16-bit counts", (COUNTS_16_BIT * patches / largest).round(), optics)
    levels = torch.tensor([0.0, 0.1, 500.1, 65535.0])[:, None, None]
    yield Case("constant", levels.expand(-1, *patches.shape[1:]).contiguous(), optics[:4])
    for optic in microscopes_across(estimator):
        name = f"cut-off {optic.cutoff_cycles_per_pixel:.3g}"
        yield Case(name, patches[:4], [optic] * 4)


def _tiny_contrast(case: Case) -> Case:
    """The patches of a case with little contrast.

    In PyTorch, the mean of such a patch is wrong in its last digits, which changes the prediction
    by as much as the runtimes may differ. So PyTorch reads the patches without their means.
    """
    standard = normalise(case.patches)
    faint = 1000 * (1 + TINY_CONTRAST * standard)
    exact = faint.double() - faint.double().mean((1, 2), keepdim=True)
    return Case("tiny contrast", faint, case.microscopes, exact.float())


def microscopes_across(estimator: Estimator, count: int = CUTOFFS) -> list[Microscope]:
    """Microscopes with cut-offs from the lowest to the highest of the training."""
    limits = estimator.config["optics_limits"]
    low, high = limits["cutoff_cycles_per_pixel"]
    index = limits["refractive_index"][1]
    na, wavelength = limits["na"][0], limits["wavelength_um"][0]
    # the pixel size alone is changed, since the network sees nothing but the cut-off
    pixels = np.linspace(low, high, count) * wavelength / (2 * na)
    return simulated_microscopes([(na, wavelength, pixel, index) for pixel in pixels.tolist()])
