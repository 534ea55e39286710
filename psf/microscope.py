"""The microscope: four numbers, what follows from them, and where they stop making sense.

All lengths are micrometres in object space: the pixel size is the camera pixel divided by the
magnification, the wavelength is the emission wavelength in vacuum.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from psf.errors import InputError

# The reference optics (NA 0.45, 500 nm, 0.278 um) sit 0.08 % above Nyquist, where the OTF is
# zero to five digits; a warning there would be noise.
NYQUIST_TOLERANCE = 1.01
LONGEST_WAVELENGTH_UM = 20.0  # beyond it somebody typed nanometres


class SamplingWarning(UserWarning):
    """The camera samples the image too coarsely for the optics."""


@dataclass(frozen=True)
class Microscope:
    """A widefield microscope.

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
        for name, value in asdict(self).items():
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"{name} is {value}; it must be a positive number.")
        if self.wavelength_um > LONGEST_WAVELENGTH_UM:
            raise InputError(
                f"wavelength_um is {self.wavelength_um:g}; it is in um (500 nm are 0.5 um)."
            )
        if self.na >= self.refractive_index:
            raise InputError(
                f"NA {self.na} is not below the refractive index {self.refractive_index}; "
                "give the index of the immersion medium (air 1.0, water 1.33, oil 1.515)."
            )
        if self.pixel_size_um > NYQUIST_TOLERANCE * self.nyquist_pixel_um:
            warnings.warn(
                f"pixel size {self.pixel_size_um:g} um is above Nyquist "
                f"({self.nyquist_pixel_um:.3g} um for NA {self.na:g} at "
                f"{self.wavelength_um:g} um): fine detail is aliased.",
                SamplingWarning,
                stacklevel=3,
            )

    @property
    def cutoff_cycles_per_pixel(self) -> float:
        """Highest spatial frequency that the optics pass, 2 NA pixel / lambda."""
        return 2 * self.na * self.pixel_size_um / self.wavelength_um

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


Microscopes = Microscope | Sequence[Microscope]  # one for a whole batch, or one per sample


def cutoffs(
    microscopes: Microscopes, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Cut-off frequencies in cycles per pixel, shape (1,) for one microscope, else (N,)."""
    if isinstance(microscopes, Microscope):
        microscopes = [microscopes]
    values = [microscope.cutoff_cycles_per_pixel for microscope in microscopes]
    return torch.tensor(values, device=device, dtype=dtype or torch.float32)
