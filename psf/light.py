"""Kinds of light: amplitude and polarisation in the pupil of the light of an emitter.

The emitters rotate freely or point in all directions, and no polariser is used. theta is the angle
of a ray in the medium around the emitter, n sin(theta) = NA rho.

scalar      a uniform pupil, as in Born & Wolf, 8.8, and in Gibson & Lanni (1991)
aplanatic   a pupil of amplitude (cos theta)^(-1/2), as of an objective that obeys the sine
            condition: equal light per solid angle
vectorial   that amplitude, the polarisation of dipoles along x, y and z (B. Richards & E. Wolf,
            Proc. R. Soc. A 253, 358 (1959), Eqs. 3.1-3.4, in reverse by reciprocity), and the
            Fresnel transmission of the layers of `gibson_lanni`

A dipole's field in the pupil has components exp(i m phi) of order m = 0, 1, 2. Averaged over the
dipoles the intensity is |A_0|^2 + |A_1|^2 / 2 + |A_2|^2, where A_m is the transform of

    a_0 = (t_s + t_p cos theta) / 2,  a_1 = t_p sin theta,  a_2 = (t_s - t_p cos theta) / 2.

Above NA / n = 0.38 the scalar and the vectorial PSF in focus, scaled to the same peak, differ by
more than 1 % of the peak, and `ScalarWarning` is given. Out of focus they differ more: at 4 waves
of defocus the difference reaches 1 % at NA / n = 0.2.
"""

import warnings
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from scipy.special import jv

from psf.gibson_lanni import Layers
from psf.microscope import Optics

SCALAR_LIMIT = 0.38  # NA / n at which `scalar_deviation` reaches 1 %


class ScalarWarning(UserWarning):
    """The NA is too high for scalar light."""


@dataclass(frozen=True)
class Component:
    """Part of a pupil function that varies with the angle as exp(i order phi)."""

    order: int  # 0, 1 or 2; 1 and 2 stand for both signs
    weight: float  # of its intensity
    amplitude: torch.Tensor  # (N or 1, *S), real


def components(
    light: str, optics: Optics, layers: Layers | None, rho: torch.Tensor
) -> list[Component]:
    """Components of the pupil function of one kind of light at pupil radii of shape S."""
    if light == "scalar":
        return [Component(0, 1.0, torch.ones_like(rho)[None])]
    shape = (-1, *[1] * rho.ndim)
    filled = layers.of(optics) if layers else {}
    names = ("n_sample", "n_coverslip", "n_immersion")
    indices = [filled.get(name, optics.refractive_index).reshape(shape) for name in names]
    sine2 = (optics.na.reshape(shape) * rho) ** 2
    cosines = [torch.sqrt(1 - sine2 / n**2) for n in indices]
    if light == "aplanatic":
        return [Component(0, 1.0, cosines[0].rsqrt())]
    amplitude = cosines[2].sqrt() / cosines[0]
    perpendicular, parallel = amplitude, amplitude
    for k in (0, 1) if layers else ():  # Fresnel's equations at the two interfaces
        near, far = indices[k] * cosines[k], indices[k + 1] * cosines[k + 1]
        crossed = indices[k + 1] * cosines[k] + indices[k] * cosines[k + 1]
        perpendicular = perpendicular * 2 * near / (near + far)
        parallel = parallel * 2 * near / crossed
    sine = optics.na.reshape(shape) * rho / indices[0]
    return [
        Component(0, 1.0, (perpendicular + parallel * cosines[0]) / 2),
        Component(1, 0.5, parallel * sine),
        Component(2, 1.0, (perpendicular - parallel * cosines[0]) / 2),
    ]


def warn_if_scalar_is_off(light: str, optics: Optics) -> None:
    """Give a `ScalarWarning` if vectorial light changes the PSF by more than 1 % of its peak."""
    highest = float((optics.na / optics.refractive_index).detach().max())
    if light != "vectorial" and highest > SCALAR_LIMIT:
        warnings.warn(
            f"at NA / n = {highest:.2f} {light} light is off by {scalar_deviation(highest):.1%} of "
            "the peak in focus, and by more out of focus; choose 'vectorial' light.",
            ScalarWarning,
            stacklevel=3,
        )


@lru_cache(maxsize=64)
def scalar_deviation(na_over_n: float) -> float:
    """Largest difference between the scalar and the vectorial PSF in focus, both of peak 1."""
    x, w = np.polynomial.legendre.leggauss(64)
    rho, area = (x + 1) / 2, (x + 1) / 2 * w
    bessel = np.linspace(0, 12, 400) * rho[:, None]
    one = torch.ones(1, dtype=torch.float64)
    optics = Optics(na=na_over_n * one, wavelength_um=one, pixel_size_um=one, refractive_index=one)
    profiles = [
        sum(
            part.weight * ((part.amplitude[0].numpy() * area) @ jv(part.order, bessel)) ** 2
            for part in components(light, optics, None, torch.from_numpy(rho))
        )
        for light in ("scalar", "vectorial")
    ]
    scalar, vectorial = (profile / profile.max() for profile in profiles)
    return float(np.abs(scalar - vectorial).max())
