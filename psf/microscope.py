"""The microscope: its four numbers, what follows from them, and the values that are refused.

All lengths are micrometres in object space. The pixel size is the camera pixel divided by the
magnification. The wavelength is the emission wavelength in vacuum.
"""

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import TypeVar

import torch

from psf.errors import InputError

# The pixel of the reference optics (NA 0.45, 500 nm, 0.278 um) is 0.08 % larger than Nyquist's.
# The OTF is zero to five digits there, so a warning would not help anybody.
NYQUIST_TOLERANCE = 1.01
LONGEST_WAVELENGTH_UM = 20.0  # a larger number is surely in nanometres
LARGEST_PIXEL_UM = 50.0  # a larger number is surely in nanometres too


class SamplingWarning(UserWarning):
    """The camera samples the image too coarsely for the optics."""


Number = TypeVar("Number", float, torch.Tensor)


def cutoff_cycles_per_pixel(na: Number, wavelength_um: Number, pixel_size_um: Number) -> Number:
    """Highest spatial frequency that the optics transmit, 2 NA pixel / lambda."""
    return 2 * na * pixel_size_um / wavelength_um


def plain(number: "float | torch.Tensor") -> float:
    """The value of a number that may be a tensor, without its gradient."""
    return float(number.detach()) if isinstance(number, torch.Tensor) else number


@dataclass(frozen=True)
class Microscope:
    """A widefield microscope.

    In Python a number may also be a tensor without axes; gradients then flow through it.

    Raises
    ------
    InputError
        If a length, the NA or the index is not positive and finite, or NA >= refractive_index.
    """

    na: float = 0.45  # numerical aperture of the objective
    wavelength_um: float = 0.5  # emission wavelength in vacuum, um
    pixel_size_um: float = 0.278  # camera pixel / magnification, um
    refractive_index: float = 1.33  # of the medium around the object (air 1.0, water 1.33)

    def __post_init__(self) -> None:
        for name, value in ((f.name, plain(getattr(self, f.name))) for f in fields(self)):
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"{name} is {value}; give a positive number.")
        if plain(self.wavelength_um) > LONGEST_WAVELENGTH_UM:
            raise InputError(
                f"wavelength_um is {plain(self.wavelength_um):g}; give it in um (500 nm are "
                "0.5 um)."
            )
        if plain(self.pixel_size_um) > LARGEST_PIXEL_UM:
            raise InputError(
                f"pixel_size_um is {plain(self.pixel_size_um):g}; give it in um in object space, "
                "the camera pixel divided by the magnification."
            )
        if plain(self.na) >= plain(self.refractive_index):
            raise InputError(
                f"NA {plain(self.na)} is not below the refractive index "
                f"{plain(self.refractive_index)}; "
                "give the index of the immersion medium (air 1.0, water 1.33, oil 1.515)."
            )
        if plain(self.pixel_size_um) > NYQUIST_TOLERANCE * plain(self.nyquist_pixel_um):
            warnings.warn(
                f"pixel size {plain(self.pixel_size_um):g} um is above Nyquist "
                f"({plain(self.nyquist_pixel_um):.3g} um for NA {plain(self.na):g} at "
                f"{plain(self.wavelength_um):g} um): fine detail is aliased.",
                SamplingWarning,
                stacklevel=3,
            )

    @property
    def cutoff_cycles_per_pixel(self) -> float:
        """Highest spatial frequency that the optics transmit, 2 NA pixel / lambda."""
        return cutoff_cycles_per_pixel(self.na, self.wavelength_um, self.pixel_size_um)

    @property
    def nyquist_pixel_um(self) -> float:
        """Largest pixel that samples the image without aliasing, lambda / (4 NA)."""
        return self.wavelength_um / (4 * self.na)

    @property
    def depth_of_field_um(self) -> float:
        """Classical depth of field, n lambda / NA^2."""
        return self.refractive_index * self.wavelength_um / self.na**2

    @property
    def um_per_wave(self) -> float:
        """Depth z of one wave of Seidel focus in the paraxial limit, 2 n lambda / NA^2."""
        return 2 * self.depth_of_field_um


OPTICS_NAMES = tuple(field.name for field in fields(Microscope))  # of config.json and shards
Microscopes = Microscope | Sequence[Microscope]  # one for a whole batch, or one per sample


@dataclass(frozen=True)
class Optics:
    """The numbers of one microscope, each of shape (1,), or of N microscopes, each (N,)."""

    na: torch.Tensor
    wavelength_um: torch.Tensor
    pixel_size_um: torch.Tensor
    refractive_index: torch.Tensor

    @classmethod
    def of(
        cls,
        microscopes: Microscopes,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float64,
    ) -> "Optics":
        """The numbers of one microscope, or of a sequence of microscopes."""
        if isinstance(microscopes, Microscope):
            microscopes = [microscopes]
        return cls(*(_column(microscopes, f.name, device, dtype) for f in fields(cls)))

    @property
    def cutoff_cycles_per_pixel(self) -> torch.Tensor:
        """Highest spatial frequency that the optics transmit, 2 NA pixel / lambda."""
        return cutoff_cycles_per_pixel(self.na, self.wavelength_um, self.pixel_size_um)

    def __len__(self) -> int:
        return len(self.na)

    def to(self, device: torch.device, dtype: torch.dtype) -> "Optics":
        """The same numbers on a device; all of them are copied at once."""
        numbers = torch.stack([getattr(self, field.name) for field in fields(self)])
        # CUDA goes on with its work while such a copy is made
        return Optics(*numbers.to(device, dtype, non_blocking=device.type == "cuda"))

    def part(self, samples: slice) -> "Optics":
        """Optics of some of N samples; a single microscope serves every sample."""
        if len(self) == 1:
            return self
        return Optics(*(getattr(self, f.name)[samples] for f in fields(self)))


def _column(
    microscopes: Sequence[Microscope], name: str, device: torch.device | str, dtype: torch.dtype
) -> torch.Tensor:
    values = [getattr(microscope, name) for microscope in microscopes]
    if any(isinstance(value, torch.Tensor) for value in values):
        return torch.stack([torch.as_tensor(value).to(device, dtype) for value in values])
    return torch.tensor(values, device=device, dtype=dtype)


def simulated_microscopes(optics: Iterable[Sequence[float]]) -> list[Microscope]:
    """Microscopes from rows of (na, wavelength_um, pixel_size_um, refractive_index).

    They do not warn of coarse pixels: a simulation chooses them on purpose, and who read them from
    a file has been warned when it was made.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SamplingWarning)
        return [Microscope(*numbers) for numbers in optics]


def cutoffs(
    microscopes: Microscopes, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Cut-off frequencies in cycles per pixel, shape (1,) for one microscope, else (N,)."""
    if isinstance(microscopes, Microscope):
        microscopes = [microscopes]
    values = [plain(microscope.cutoff_cycles_per_pixel) for microscope in microscopes]
    return torch.tensor(values, device=device, dtype=dtype or torch.float32)
