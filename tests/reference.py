"""Independent PSFs for the tests: float64 quadrature with SciPy, nothing shared with `psf`."""

from collections.abc import Callable

import numpy as np
from scipy.integrate import quad_vec
from scipy.special import j0

Profile = Callable[[np.ndarray], np.ndarray]  # radii in pixels -> intensity per pixel area


def focus_wavefront(focus: float) -> Callable[[float], float]:
    return lambda rho: focus * rho**2


def hankel_profile(wavefront: Callable[[float], float], cutoff: float) -> Profile:
    """Intensity of unit energy at radii r, by adaptive quadrature (good to about 1e-10)."""

    def profile(radii: np.ndarray) -> np.ndarray:
        def integrand(rho: float) -> np.ndarray:
            return 2 * rho * np.exp(2j * np.pi * wavefront(rho)) * j0(np.pi * cutoff * radii * rho)

        amplitude, _ = quad_vec(integrand, 0, 1, epsabs=1e-11, epsrel=1e-10, norm="max")
        return np.pi / 4 * cutoff**2 * np.abs(amplitude) ** 2

    return profile


def points(profile: Profile, size: int) -> np.ndarray:
    """Point samples (K, K) on the grid that is symmetric about its middle."""
    line = np.arange(size) - (size - 1) / 2
    return _on_lines(profile, line)


def pixels(profile: Profile, size: int, nodes: int = 6) -> np.ndarray:
    """Integral over each pixel (K, K), by Gauss-Legendre points inside the pixel."""
    offset, weight = np.polynomial.legendre.leggauss(nodes)
    line = (np.arange(size)[:, None] - (size - 1) / 2 + offset / 2).ravel()
    inside = _on_lines(profile, line).reshape(size, nodes, size, nodes)
    return np.einsum("iajb,a,b->ij", inside, weight / 2, weight / 2)


def pupil_points(
    wavefront: Callable[[np.ndarray, np.ndarray], np.ndarray],
    cutoff: float,
    x: np.ndarray,
    y: np.ndarray,
) -> np.ndarray:
    """Intensity of any wavefront W(rho, theta) at points x, y (pixels): polar quadrature."""
    node, weight = np.polynomial.legendre.leggauss(120)
    rho, theta = np.meshgrid((node + 1) / 2, 2 * np.pi * np.arange(360) / 360, indexing="ij")
    area = (weight / 2)[:, None] * rho * (2 * np.pi / 360)
    pupil = area * np.exp(2j * np.pi * wavefront(rho, theta)) / np.pi
    field = [
        (pupil * np.exp(1j * np.pi * cutoff * rho * (a * np.cos(theta) + b * np.sin(theta)))).sum()
        for a, b in zip(x, y, strict=True)
    ]
    return np.pi / 4 * cutoff**2 * np.abs(field) ** 2


def _on_lines(profile: Profile, line: np.ndarray) -> np.ndarray:
    squares, place = np.unique(np.round(line[:, None] ** 2 + line**2, 12), return_inverse=True)
    return profile(np.sqrt(squares))[place].reshape(len(line), len(line))
