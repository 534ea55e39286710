"""Shape of a defocus over the pupil: Seidel's quadratic one, or the exact one of steep rays.

An emitter z away from the focal plane changes the path of a ray by z (n - sqrt(n^2 - NA^2 rho^2)).
For low NA this is NA^2 z rho^2 / (2 n). At NA / n = 0.8 it contains 0.1 waves rms of spherical
aberration for each 4 waves of defocus.
"""

import numpy as np
import torch

from psf.microscope import Microscope, plain

NODES = 24  # of the integrals over the pupil: 1e-9 up to NA / n = 0.96


def exact_shape(rho: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Path of one wave of exact defocus at pupil radii of shape S, waves, (N, *S).

    `sine` (N,) is NA / n. One wave is the defocus to which rho^2 fits best over the pupil, by least
    squares with a free piston.
    """
    squared = (sine.square().reshape(-1, *[1] * rho.ndim)) * rho.square()
    path = squared / (1 + (1 - squared).sqrt())  # 1 - sqrt(1 - squared), also for low NA
    return path / _slope(sine).reshape(-1, *[1] * rho.ndim)


def um_per_exact_wave(microscope: Microscope) -> float:
    """Defocus z in um whose path fits one wave of rho^2 best."""
    n = plain(microscope.refractive_index)
    sine = torch.tensor([plain(microscope.na) / n], dtype=torch.float64)
    return plain(microscope.wavelength_um) / (n * float(_slope(sine)))


def _slope(sine: torch.Tensor) -> torch.Tensor:
    """Best slope (N,) of 1 - sqrt(1 - (NA / n)^2 rho^2) over rho^2, evenly over the pupil."""
    node, weight = np.polynomial.legendre.leggauss(NODES)
    u, w = (torch.from_numpy(a).to(sine) / 2 for a in (node + 1, weight))
    squared = sine.square()[:, None] * u
    path = squared / (1 + (1 - squared).sqrt())
    return 12 * (path * (u - 0.5) * w).sum(1)  # the variance of rho^2 is 1/12
