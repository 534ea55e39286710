"""PSFs (N, K, K) of other open-source programs for a `Scene`, all with one function signature.

Every adapter translates our conventions into those of the program and explains how. In ours
(`psf.gibson_lanni`) z_um moves the stage away from the objective, and 0 is paraxial focus of the
particle. Every program is optional; `INSTALL` names the packages. The brightness is that of the
program.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from psf import Layers, Microscope

TUBE_LENS_UM, MAGNIFICATION = 2e5, 100.0  # of MicroscPSF-Py; they cancel to (NA / M)^2


@dataclass(frozen=True)
class Scene:
    """Task of every program: images of a particle at N positions of the stage."""

    microscope: Microscope
    layers: Layers  # with indices of immersion, coverslip and sample; thicknesses as designed
    depth_um: float
    z_um: np.ndarray  # (N,), even steps, symmetric about 0
    size: int  # K, pixels


@dataclass(frozen=True)
class Peer:
    """A program with its settings."""

    package: str  # import name
    psfs: Callable[[Scene], np.ndarray]
    own_z_um: Callable[[Scene], np.ndarray] | None = None  # z on its axis; None: has no layers
    pixels: bool = False  # whether it integrates over pixels; otherwise point samples


def psfmodels(scene: Scene, subpixels: int, model: str = "scalar") -> np.ndarray:
    """PSFs of psfmodels: Aguet's C++ code, a radial profile that is interpolated linearly.

    Its position zv is that of the focal plane above the coverslip before refraction. Then
    t_i = t_i_focus + depth - zv, so zv = depth - z. `subpixels` s averages s x s points per pixel,
    with a profile that is s times finer. An even PSF is the next smaller odd one with one more row
    and column.
    """
    import psfmodels

    scope = scene.microscope
    compute = {"scalar": psfmodels.scalar_psf, "vectorial": psfmodels.vectorial_psf}[model]
    return compute(
        zv=psfmodels_z(scene),
        nx=scene.size,
        dxy=scope.pixel_size_um,
        pz=scene.depth_um,
        wvl=scope.wavelength_um,
        params=_layer_settings(scene) | {"sf": subpixels, "mode": 1},
        normalize=False,
    )


def psfmodels_z(scene: Scene) -> np.ndarray:
    """Our z on the axis of psfmodels, um."""
    return scene.depth_um - scene.z_um


def _layer_settings(scene: Scene) -> dict[str, float]:
    """Settings of psfmodels and MicroscPSF-Py; a 0 at the end of a name marks the design."""
    layers = scene.layers
    return {
        "NA": scene.microscope.na,
        "ns": layers.n_sample,
        **dict.fromkeys(("ni", "ni0"), layers.n_immersion),
        **dict.fromkeys(("ng", "ng0"), layers.n_coverslip),
        **dict.fromkeys(("tg", "tg0"), layers.coverslip_um),
        "ti0": layers.immersion_um_design,
    }


def microscpsf(scene: Scene) -> np.ndarray:
    """PSFs of MicroscPSF-Py: Li, Xue & Blu's Bessel series, linear between half pixels.

    Its zv adds to the design thickness of the immersion, t_i = t_i* + zv, and does not follow the
    particle's focus, so zv = z - depth n_i / n_s.
    """
    from microscPSF import microscPSF

    scope = scene.microscope
    settings = _layer_settings(scene) | {"M": MAGNIFICATION, "zd0": TUBE_LENS_UM}
    return microscPSF.gLXYZFocalScan(
        settings,
        scope.pixel_size_um,
        scene.size,
        microscpsf_z(scene),
        normalize=False,
        pz=scene.depth_um,
        wvl=scope.wavelength_um,
    )


def microscpsf_z(scene: Scene) -> np.ndarray:
    """Our z on the axis of MicroscPSF-Py, um."""
    return scene.z_um - scene.depth_um * scene.layers.n_immersion / scene.layers.n_sample


def psf_generator(
    scene: Scene, propagator: str, pupil: int, mend_radius: bool = True, **more: Any
) -> np.ndarray:
    """PSFs of psf-generator (BIG, EPFL): Bessel integral by Simpson's rule, or chirp z transform.

    Its z is 0 at the particle's focus, but its phase is k z n_s cos(theta_i), with the angle in the
    immersion and the index of the sample. Our z is therefore its z times n_s / n_i. In the same way
    k r n_s sin(theta_i) makes radii too large by n_i / n_s if the indices differ; `mend_radius`
    corrects it by a larger pixel. A field of K pixels is spread over K - 1 steps, and the planes
    extend from -N step / 2 to N step / 2 in whole nm.
    """
    import psf_generator.propagators as propagators

    scope, layers = scene.microscope, scene.layers
    ratio = layers.n_immersion / layers.n_sample
    pixel_nm = 1e3 * scope.pixel_size_um * (scene.size - 1) / scene.size
    reach_nm = 1e3 * ratio * float(scene.z_um.max())
    model = getattr(propagators, propagator)(
        n_pix_pupil=pupil,
        n_pix_psf=scene.size,
        wavelength=1e3 * scope.wavelength_um,
        na=scope.na,
        pix_size=pixel_nm * (ratio if mend_radius else 1),
        defocus_step=round(2 * reach_nm, 6) / len(scene.z_um),
        n_defocus=len(scene.z_um),
        gibson_lanni=ratio != 1,
        z_p=1e3 * scene.depth_um,
        n_s=layers.n_sample,
        n_i=layers.n_immersion,
        n_i0=layers.n_immersion,
        n_g=layers.n_coverslip,
        n_g0=layers.n_coverslip,
        t_i0=1e3 * layers.immersion_um_design,
        **more,
    )
    if abs(model.defocus_max - reach_nm) > 1e-3 or abs(model.defocus_min + reach_nm) > 1e-3:
        raise ValueError(f"psf-generator rounds {reach_nm} nm to {model.defocus_max} nm.")
    return (model.compute_focus_field().abs() ** 2).sum(1).numpy()


def psf_generator_z(scene: Scene) -> np.ndarray:
    """Our z on the axis of psf-generator, um."""
    return scene.z_um * scene.layers.n_immersion / scene.layers.n_sample


def pyotf(scene: Scene, grid: int) -> np.ndarray:
    """PSFs of pyotf: cropped FFT of a sharp-edged pupil on a grid; scalar, no apodisation."""
    from pyotf.otf import HanserPSF

    scope = scene.microscope
    nm = {"wl": 1e3 * scope.wavelength_um, "res": 1e3 * scope.pixel_size_um}
    model = HanserPSF(
        **nm,
        na=scope.na,
        ni=scope.refractive_index,
        size=grid,
        zrange=1e3 * scene.z_um,
        vec_corr="none",
        condition="none",
    )
    low = grid // 2 - scene.size // 2
    crop = slice(low, low + scene.size)
    return model.PSFi[:, crop, crop]


def prysm(scene: Scene, pupil: int, bits: int = 64) -> np.ndarray:
    """PSFs of prysm: matrix Fourier transform of a sharp-edged pupil, one PSF at a time.

    The focal length follows from NA = diameter / (2 f). The path difference is in nm. Its cache of
    bases ignores their precision, so it is emptied when the precision changes.
    """
    from prysm.conf import config
    from prysm.coordinates import cart_to_polar, make_xy_grid
    from prysm.geometry import circle
    from prysm.propagation import Wavefront, mdft

    if np.finfo(config.precision).bits != bits:
        config.precision = bits
        mdft.clear()
    scope, diameter_mm = scene.microscope, 10.0
    x, y = make_xy_grid(pupil, diameter=diameter_mm)
    radius, _ = cart_to_polar(x, y)
    inside = circle(diameter_mm / 2, radius)
    rho = np.minimum(2 * radius / diameter_mm, 1)
    path_nm = 1e3 * np.sqrt(scope.refractive_index**2 - (scope.na * rho) ** 2)
    step_mm, focal_mm = float(x[0, 1] - x[0, 0]), diameter_mm / (2 * scope.na)
    psfs = []
    for z in scene.z_um.tolist():
        wave = Wavefront.from_amp_and_phase(inside, z * path_nm, scope.wavelength_um, step_mm)
        image = wave.focus_fixed_sampling(focal_mm, scope.pixel_size_um, scene.size)
        psfs.append(image.intensity.data)
    return np.stack(psfs)


PUPIL = 256  # px, the default of deepinv
MENDED = PUPIL / (PUPIL - 1)  # the P points of its pupil span P - 1 of the P steps of the FFT


def deepinv(scene: Scene) -> np.ndarray:
    """PSFs of deepinv: batched FFT of a pupil with Zernike modes (defocus and two sphericals)."""
    coefficients = torch.tensor(np.outer(scene.z_um, _zernike_per_um(scene.microscope)))
    generator = _deepinv_generator(scene.microscope, scene.size)
    return generator.step(len(scene.z_um), coeff=coefficients.float())["filter"][:, 0].numpy()


def deepinv_3d(scene: Scene) -> np.ndarray:
    """PSFs of deepinv's volume generator: exact defocus, one stack per call.

    Its N planes span N steps from the first to the last.
    """
    from deepinv.physics.generator import DiffractionBlurGenerator3D

    scope, count = scene.microscope, len(scene.z_um)
    per_pixel = scope.pixel_size_um / scope.wavelength_um * MENDED
    generator = DiffractionBlurGenerator3D(
        (count, scene.size, scene.size),
        zernike_index=(4,),
        fc=scope.na * per_pixel,
        kb=scope.refractive_index * per_pixel,
        pupil_size=(PUPIL, PUPIL),
        stepz_pixel=2 * float(scene.z_um.max()) / count / scope.pixel_size_um,
    )
    return generator.step(coeff=torch.zeros(1, 1))["filter"][0, 0].numpy()


@lru_cache(maxsize=1)
def _deepinv_generator(scope: Microscope, size: int) -> Any:
    from deepinv.physics.generator import DiffractionBlurGenerator

    cutoff = scope.cutoff_cycles_per_pixel / 2 * MENDED
    modes = {"zernike_index": (4, 11, 22), "pupil_size": (PUPIL, PUPIL)}
    return DiffractionBlurGenerator((size, size), fc=cutoff, **modes)


@lru_cache(maxsize=1)
def _zernike_per_um(scope: Microscope) -> tuple[float, ...]:
    """Noll modes 4, 11, 22 of one um of defocus, waves; the remainder is below 1e-5 waves."""
    node, weight = np.polynomial.legendre.leggauss(60)
    squared = (node + 1) / 2  # rho^2: the modes are Legendre polynomials of 2 rho^2 - 1
    waves = np.sqrt(scope.refractive_index**2 - scope.na**2 * squared) / scope.wavelength_um
    legendre = (np.polynomial.legendre.Legendre.basis(k)(node) for k in (1, 2, 3))
    return tuple(
        float((weight / 2 * waves * p).sum()) * math.sqrt(2 * k + 1)
        for k, p in enumerate(legendre, 1)
    )


# Settings of psf-generator with a uniform pupil, as in our scalar light.
BESSEL = {"propagator": "ScalarSphericalPropagator", "cos_factor": True}
CHIRP = {"propagator": "ScalarCartesianPropagator", "sz_correction": False}

INSTALL = {  # import name: what pip installs
    "psfmodels": "psfmodels",
    "psf_generator": "psf-generator",
    "microscPSF": "MicroscPSF-Py",
    "pyotf": "pyotf",
    "prysm": '"setuptools<81" prysm',
    "deepinv": "deepinv",
}
PEERS = {
    "psfmodels, points": Peer("psfmodels", lambda s: psfmodels(s, 1), psfmodels_z),
    "psfmodels, 3 x 3 sub-pixels": Peer(
        "psfmodels", lambda s: psfmodels(s, 3), psfmodels_z, pixels=True
    ),
    "psf-generator, Bessel 129": Peer(
        "psf_generator", lambda s: psf_generator(s, pupil=129, **BESSEL), psf_generator_z
    ),
    "psf-generator, chirp z 128": Peer(
        "psf_generator", lambda s: psf_generator(s, pupil=128, **CHIRP)
    ),
    "MicroscPSF-Py, one stack": Peer("microscPSF", microscpsf, microscpsf_z),
    "pyotf, 127 grid": Peer("pyotf", lambda s: pyotf(s, 127)),
    "pyotf, 512 grid": Peer("pyotf", lambda s: pyotf(s, 512)),
    "prysm, matrix DFT 128": Peer("prysm", lambda s: prysm(s, 128)),
    "prysm, matrix DFT 128, float32": Peer("prysm", lambda s: prysm(s, 128, bits=32)),
    "deepinv, 2D batch": Peer("deepinv", deepinv),
    "deepinv, 3D stack": Peer("deepinv", deepinv_3d),
}
