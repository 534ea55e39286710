"""Settings of simulated patches: PSF model, optics, sizes, and the support that the PSFs need."""

import math
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, field, replace
from typing import Any

import numpy as np

from psf.errors import InputError
from psf.microscope import OPTICS_NAMES, Microscope, simulated_microscopes
from psf.model import PsfModel, extreme_labels
from psf.model import from_config as model_from_config
from psf.synthesis import ENERGY_TOLERANCE, synthesize_with_loss
from simulation.specimens import SpecimenRanges

MAX_NA_PER_INDEX = 0.96  # steepest rays that are drawn, 74 degrees: NA 1.45 in oil
# Share of the energy that a PSF may have outside its support. It is cut off, and its light spread
# over the rest. Only steep rays on the finest pixels come near.
MOST_LOST = 0.05
SUPPORT_STEP = 16  # px between the supports that `fit_support` tries


@dataclass(frozen=True)
class OpticsRanges:
    """Ranges for --vary-optics, from which the optics of each patch are drawn.

    The share of the Nyquist pixel is uniform in its logarithm, the other numbers are uniform. The
    NA stays below 0.96 times the refractive index that was drawn.

    Raises
    ------
    InputError
        If a range is not positive and rising, or its lowest NA is too high for its lowest index.
    """

    na: tuple[float, float] = (0.3, 0.8)  # lowest and highest numerical aperture
    wavelength_um: tuple[float, float] = (0.45, 0.7)  # shortest and longest emission wavelength, um
    nyquist_share: tuple[float, float] = (0.85, 1.2)  # pixel size / largest pixel without aliasing
    refractive_index: tuple[float, float] = (1.0, 1.52)  # around the object, from air to oil

    def __post_init__(self) -> None:
        for name, (low, high) in asdict(self).items():
            if not 0 < low <= high < math.inf:
                raise InputError(
                    f"{name} range {low} to {high}: give two positive, rising numbers."
                )
        if self.na[0] > MAX_NA_PER_INDEX * self.refractive_index[0]:
            raise InputError(
                f"NA from {self.na[0]} is above {MAX_NA_PER_INDEX} times the lowest refractive "
                f"index {self.refractive_index[0]}; give a lower NA or a higher index."
            )


@dataclass(frozen=True)
class Simulation:
    """All settings that determine a patch, except for the source images."""

    model: PsfModel
    microscope: Microscope
    optics_ranges: OpticsRanges | None  # None: every patch has `microscope`
    patch_size: int  # px
    psf_size: int  # px, support of the PSF
    blank_fraction: float  # share of patches without content
    patches_per_crop: int = 1  # patches of one training crop, each with its own PSF
    # In a quarter of the patches focus changes by up to this across the patch, and every other
    # parameter by up to as much.
    focus_change_waves: float = 0.0
    beyond_fraction: float = 0.0  # share of patches out of the range of focus, without a label
    specimens: SpecimenRanges = field(default_factory=SpecimenRanges)

    def __post_init__(self) -> None:
        if not (self.focus_change_waves >= 0 and 0 <= self.beyond_fraction < 1):
            raise InputError(
                f"the change of focus is {self.focus_change_waves:g} waves, the share of patches "
                f"out of range {self.beyond_fraction:g}; give at least 0, and a share below 1."
            )
        parts = self.focus_change_waves, self.beyond_fraction, not self.specimens.is_plain
        if any(parts) and not self._has_focus:
            raise InputError(
                f"{self.model.name} has no focus in waves; leave out --focus-change-waves, "
                "--beyond-fraction and --specimens."
            )

    @property
    def _has_focus(self) -> bool:
        return self.model.label_names[0] == "focus"

    @property
    def crop_size(self) -> int:
        """Edge of the sharp crop that is blurred to a patch, px."""
        return self.patch_size + self.psf_size - 1


def from_config(config: Mapping[str, Any]) -> Simulation:
    """Simulation of a data set, rebuilt from its config.json."""
    ranges = config["optics_ranges"]
    return Simulation(
        model=model_from_config(config["psf_model"]),
        microscope=Microscope(**config["microscope"]),
        optics_ranges=OpticsRanges(**{k: tuple(v) for k, v in ranges.items()}) if ranges else None,
        patch_size=config["patch_size"],
        psf_size=config["psf_size"],
        blank_fraction=config["blank_fraction"],
        patches_per_crop=config["patches_per_crop"],
        # older data sets lack these keys: their focus is constant and within the range
        focus_change_waves=config.get("focus_change_waves", 0.0),
        beyond_fraction=config.get("beyond_fraction", 0.0),
        specimens=_specimens(config.get("specimens")),
    )


def _specimens(config: Mapping[str, Any] | None) -> SpecimenRanges:
    """Specimens of a data set; older ones have thin, sharp objects."""
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in (config or {}).items()}
    return SpecimenRanges(**values)


def draw_microscopes(
    simulation: Simulation, count: int, rng: np.random.Generator
) -> Microscope | list[Microscope]:
    """Optics of `count` patches: a single microscope, or a random one per patch."""
    ranges = simulation.optics_ranges
    if ranges is None:
        return simulation.microscope
    na_share = rng.random(count)
    wavelength = rng.uniform(*ranges.wavelength_um, count)
    share = np.exp(rng.uniform(*np.log(ranges.nyquist_share), count))
    index = rng.uniform(*ranges.refractive_index, count)
    highest = np.minimum(ranges.na[1], MAX_NA_PER_INDEX * index)
    na = ranges.na[0] + (highest - ranges.na[0]) * na_share
    pixel = share * wavelength / (4 * na)
    return simulated_microscopes(np.stack([na, wavelength, pixel, index], 1).tolist())


def steepest_optics(simulation: Simulation) -> Microscope:
    """Optics with the widest PSFs of this simulation: steepest rays and finest pixels."""
    ranges = simulation.optics_ranges
    if ranges is None:
        return simulation.microscope
    index, wavelength = ranges.refractive_index[0], ranges.wavelength_um[0]
    na = min(ranges.na[1], MAX_NA_PER_INDEX * index)
    pixel = ranges.nyquist_share[0] * wavelength / (4 * na)
    return Microscope(na, wavelength, pixel, index)


def lost_energy(simulation: Simulation) -> float:
    """Largest share of energy that a PSF of this simulation has outside its support."""
    labels = extreme_labels(simulation.model)
    optics = steepest_optics(simulation)
    _, lost = synthesize_with_loss(simulation.model, labels, optics, simulation.psf_size)
    return float(lost.max())


def check_energy(simulation: Simulation) -> float:
    """Largest share of energy outside the support, for a simulation whose PSFs fit into it.

    Raises
    ------
    InputError
        If it is above 5 %: a PSF that is cut off so much does not match its label.
    """
    worst = lost_energy(simulation)
    if worst > MOST_LOST:
        raise InputError(
            f"the widest PSF of {simulation.model.name} {dict(simulation.model.ranges)} loses "
            f"{worst:.1%} of its energy outside {simulation.psf_size} px (limit 5 %); give a "
            "larger --psf-size, larger patches or a smaller range."
        )
    return worst


def fit_support(simulation: Simulation) -> Simulation:
    """Simulation with the smallest support that keeps 99 % of the energy of every PSF.

    The support is at most the patch size; `check_energy` refuses it if that is too small. A small
    support needs small crops, so generation is faster and smaller source images can be used.
    """
    largest = simulation.patch_size - 1 + simulation.patch_size % 2  # odd: centred on a pixel
    for size in (*range(SUPPORT_STEP - 1, largest, SUPPORT_STEP), largest):
        fitted = replace(simulation, psf_size=size)
        if lost_energy(fitted) <= ENERGY_TOLERANCE:
            break
    return fitted


def optics_limits(simulation: Simulation) -> dict[str, Any]:
    """Ranges of the optics of the patches by name; predictions are checked against them."""
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
