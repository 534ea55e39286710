"""Reference PSFs for tests and benchmarks: float64 quadrature that shares no code with `psf`."""

from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise

import numpy as np
from scipy.integrate import quad_vec
from scipy.special import j0

Profile = Callable[[np.ndarray], np.ndarray]  # radii in pixels -> intensity per pixel area


def focus_wavefront(focus: float) -> Callable[[float], float]:
    """Wavefront W(rho) = focus rho^2, waves."""
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


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference as a share of the peak, of arrays or tensors of any batch."""
    found, expected = (np.asarray(a, dtype=float) for a in (found, expected))
    peak = expected.max((-2, -1), keepdims=True)
    return float((np.abs(found - expected) / peak).max())


@lru_cache(maxsize=8)
def unit_rule(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes and weights on [0, 1]."""
    node, weight = np.polynomial.legendre.leggauss(nodes)
    return (node + 1) / 2, weight / 2


def dense_profile(
    wavefront: Callable[[np.ndarray], np.ndarray], cutoff: float, nodes: int = 1600
) -> Profile:
    """As `hankel_profile`, by a fixed rule that is dense enough for hundreds of waves."""
    rho, weight = unit_rule(nodes)
    pupil = 2 * rho * weight * np.exp(2j * np.pi * wavefront(rho))

    def profile(radii: np.ndarray) -> np.ndarray:
        table = _bessel_table(nodes, cutoff, radii.tobytes())
        return np.pi / 4 * cutoff**2 * ((table @ pupil.real) ** 2 + (table @ pupil.imag) ** 2)

    return profile


@lru_cache(maxsize=2)
def _bessel_table(nodes: int, cutoff: float, radii: bytes) -> np.ndarray:
    return j0(np.pi * cutoff * np.frombuffer(radii)[:, None] * unit_rule(nodes)[0])


def optical_path_um(thickness_um: float, index: float, sine: np.ndarray) -> np.ndarray:
    """Optical path through a layer along a ray, up to a plane at right angles to the ray.

    `sine` is n sin(angle), which is the same in all layers (Snell's law). The path in the layer is
    n t / cos(angle). The ray leaves the layer t tan(angle) beside the axis, which shortens the rest
    of the path by n t tan(angle) sin(angle).
    """
    angle = np.arcsin(sine / index)
    return index * thickness_um / np.cos(angle) - sine * thickness_um * np.tan(angle)


def layered_waves(
    rho: np.ndarray,
    z_um: float,
    depth_um: float,
    na: float,
    wavelength_um: float,
    n_sample: float,
    n_immersion: float,
    n_immersion_design: float,
    n_coverslip: float,
    n_coverslip_design: float,
    coverslip_um: float,
    coverslip_um_design: float,
    immersion_um_design: float,
) -> np.ndarray:
    """Wavefront that layers leave, waves, by rays; 0 on the axis.

    S. F. Gibson & F. Lanni, JOSA A 8, 1601 (1991): the path through the actual layers minus the
    path through the layers of the design. The immersion has the thickness that focuses rays near
    the axis, plus z.
    """
    seen = depth_um / n_sample + coverslip_um / n_coverslip
    designed = immersion_um_design / n_immersion_design + coverslip_um_design / n_coverslip_design
    immersion_um = z_um + n_immersion * (designed - seen)

    def difference_um(sine: np.ndarray) -> np.ndarray:
        return (
            optical_path_um(depth_um, n_sample, sine)
            + optical_path_um(coverslip_um, n_coverslip, sine)
            + optical_path_um(immersion_um, n_immersion, sine)
            - optical_path_um(coverslip_um_design, n_coverslip_design, sine)
            - optical_path_um(immersion_um_design, n_immersion_design, sine)
        )

    return (difference_um(np.zeros(())) - difference_um(na * rho)) / wavelength_um


def disc_rule(radial: int, angular: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Polar rule for the unit disc: radii, angles and weights of sum 1, (radial * angular,)."""
    node, weight = unit_rule(radial)
    rho, theta = np.meshgrid(node, 2 * np.pi * np.arange(angular) / angular, indexing="ij")
    return rho.ravel(), theta.ravel(), (2 * (weight * node)[:, None] / angular + 0 * rho).ravel()


def fields_on_lines(
    pupils: np.ndarray, rho: np.ndarray, theta: np.ndarray, cutoff: float, line: np.ndarray
) -> np.ndarray:
    """Fields (C, L, L) of weighted pupil functions (C, Q), rows y, columns x, at points (px)."""
    steps = 1j * np.pi * cutoff * line[:, None] * rho
    along_y, along_x = np.exp(steps * np.sin(theta)), np.exp(steps * np.cos(theta))
    return np.stack([(along_y * pupil) @ along_x.T for pupil in pupils])


def pupil_on_lines(
    wavefront: Callable[[np.ndarray, np.ndarray], np.ndarray],
    cutoff: float,
    line: np.ndarray,
    radial: int = 64,
    angular: int = 128,
) -> np.ndarray:
    """Intensity (L, L) of any W(rho, theta) where the lines cross, like `pupil_points`."""
    rho, theta, area = disc_rule(radial, angular)
    pupil = area * np.exp(2j * np.pi * wavefront(rho, theta))
    return (
        np.pi
        / 4
        * cutoff**2
        * np.abs(fields_on_lines(pupil[None], rho, theta, cutoff, line)[0]) ** 2
    )


def transmission(sine: np.ndarray, near: float, far: float) -> tuple[np.ndarray, np.ndarray]:
    """Fresnel's amplitudes for light across and along the plane of incidence, near to far.

    Born & Wolf, Principles of Optics, Eq. 1.5.21a; `sine` is n sin(angle), not 0.
    """
    a, b = np.arcsin(sine / near), np.arcsin(sine / far)
    across = 2 * np.sin(b) * np.cos(a) / np.sin(a + b)
    return across, across / np.cos(a - b)


def dipole_points(
    wavefront: Callable[[np.ndarray], np.ndarray],
    cutoff: float,
    na: float,
    indices: tuple[float, ...],
    line: np.ndarray,
    radial: int = 64,
    angular: int = 64,
) -> np.ndarray:
    """Intensity (L, L) of dipoles along x, y and z together, seen without a polariser.

    B. Richards & E. Wolf, Proc. R. Soc. A 253, 358 (1959), from the object outwards, ray by ray.
    The far field of a dipole p along the unit vector k is p - (p k) k. Weyl's integral makes it a
    plane wave of amplitude 1 / cos. The interfaces between `indices`, the sample's first, transmit
    it. The objective turns k parallel to the axis and scales the field with sqrt(cos) in the last
    medium (sine condition). The intensity has unit energy.
    """
    rho, theta, area = disc_rule(radial, angular)
    sine = na * rho
    outwards = np.stack([np.cos(theta), np.sin(theta)])  # in the pupil, away from the axis
    around = np.stack([-np.sin(theta), np.cos(theta)])
    first, last = np.arcsin(sine / indices[0]), np.arcsin(sine / indices[-1])
    ray = np.stack([*(np.sin(first) * outwards), np.cos(first)])
    meridional = np.stack([*(np.cos(first) * outwards), -np.sin(first)])
    sagittal = np.stack([*around, 0 * rho])
    across, along = np.ones_like(rho), np.ones_like(rho)
    for near, far in pairwise(indices):
        by_across, by_along = transmission(sine, near, far)
        across, along = across * by_across, along * by_along
    lens = np.sqrt(np.cos(last)) / np.cos(first) * np.exp(2j * np.pi * wavefront(rho))
    intensity, energy = 0.0, 0.0
    for dipole in np.eye(3):
        far_field = dipole[:, None] - (dipole @ ray) * ray
        radial_part = along * (far_field * meridional).sum(0)
        turned = across * (far_field * sagittal).sum(0)
        pupils = lens * (radial_part * outwards + turned * around)  # x and y
        fields = fields_on_lines(pupils * area, rho, theta, cutoff, line)
        intensity = intensity + (np.abs(fields) ** 2).sum(0)
        energy += float((np.abs(pupils) ** 2 * area).sum())
    return np.pi / 4 * cutoff**2 * intensity / energy


def vertex_of_parabola(values: np.ndarray, place: int) -> float:
    """Where the parabola through three neighbours has its vertex, samples."""
    left, middle, right = (float(values[place + k]) for k in (-1, 0, 1))
    return place + (left - right) / (2 * (left - 2 * middle + right))
