"""Model of a z-stack of one bead: expected electrons and their derivatives.

Each plane is background + photons h. The PSF h sums to 1 over an infinite plane, so light that
defocus spreads outside the image is missing from the plane, as in the data. The bead's position
along the stage is known up to an offset. The bead may drift sideways and fade, both at a constant
rate. A bead of known diameter d blurs the planes like a Gaussian of the lateral variance of a
uniform ball, d^2 / 20 per axis.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch.autograd import forward_ad

from psf.gibson_lanni import Layers
from psf.microscope import Microscope
from psf.model import psf_model
from psf.synthesis import synthesize_with_loss
from psf.zernike import Mode, nm_to_noll

NUISANCES = (  # parameters of every fit, in the order of fit.json
    "x_px",
    "y_px",
    "z_focus_um",
    "photons",
    "background",
    "x_drift_px_per_um",  # from plane to plane, since a stage is seldom parallel to the axis
    "y_drift_px_per_um",
    "fading_per_um",  # of the brightness, relative
)
TILTS: tuple[Mode, ...] = ((1, 1), (1, -1))  # they move the PSF along x and along y

Values = Mapping[str, float]  # a value for each of `Scene.names`


@dataclass(frozen=True)
class Scene:
    """What is known about a bead stack before the fit.

    Plane k of P lies at z = (k - (P - 1) / 2) z_step_um. A positive step means that the stage
    moves the bead away from the objective from one plane to the next.
    """

    microscope: Microscope
    z_step_um: float
    modes: tuple[Mode, ...]  # aberrations to fit, (n, m)
    layers: Layers | None = None
    depth_um: float = 0.0  # of the bead below the coverslip
    light: str = "vectorial"
    read_noise_e: float = 0.0  # electrons rms
    fit_na: bool = False
    bead_um: float = 0.0  # diameter; 0: a point

    @property
    def mode_names(self) -> tuple[str, ...]:
        """Parameters of the aberrations, one per mode."""
        return tuple(mode_name(mode) for mode in self.modes)

    @property
    def names(self) -> tuple[str, ...]:
        """Parameters of the fit, in their order, with units."""
        return (*NUISANCES, *self.mode_names, *(("na",) if self.fit_na else ()))

    def named(self, values: np.ndarray) -> dict[str, float]:
        """Values (P,) of the parameters by name."""
        return dict(zip(self.names, values.tolist(), strict=True))

    def stage_um(self, planes: int) -> np.ndarray:
        """Nominal z of the planes (Z,), um."""
        return (np.arange(planes) - (planes - 1) / 2) * self.z_step_um


def mode_name(mode: Mode) -> str:
    """Name of the fit parameter of an aberration, `noll11_waves` for example."""
    return f"noll{nm_to_noll(*mode)}_waves"


def expected_stack(scene: Scene, values: np.ndarray, planes: int, size: int) -> np.ndarray:
    """Expected electrons (Z, K, K) for values (P,) of the parameters `scene.names`."""
    named = scene.named(values)
    psfs = unit_psfs(scene, named, planes, size)
    return named["background"] + named["photons"] * _fading(scene, named, planes) * psfs


def _fading(scene: Scene, values: Values, planes: int) -> np.ndarray:
    """Brightness of the planes (Z, 1, 1) relative to the middle."""
    return (1 - values["fading_per_um"] * scene.stage_um(planes))[:, None, None]


def expected_and_slopes(
    scene: Scene, values: Values, planes: int, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Expected electrons (Z, K, K) and their derivatives (Z K K, P) in the order of the names."""
    psfs, psf_slopes = _psfs_and_slopes(scene, values, planes, size)
    z_um, fading = scene.stage_um(planes)[:, None, None], _fading(scene, values, planes)
    photons = values["photons"] * fading
    slopes = {name: photons * slope for name, slope in psf_slopes.items()}
    slopes |= {
        "photons": fading * psfs,
        "background": np.ones_like(psfs),
        "x_drift_px_per_um": slopes["x_px"] * z_um,
        "y_drift_px_per_um": slopes["y_px"] * z_um,
        "fading_per_um": -values["photons"] * z_um * psfs,
    }
    mean = values["background"] + photons * psfs
    return mean, np.stack([slopes[name].ravel() for name in scene.names], 1)


def unit_psfs(scene: Scene, values: Values, planes: int, size: int) -> np.ndarray:
    """PSFs (Z, K, K) of unit energy."""
    labels = _labels(scene, values, planes)
    return _blurred_by_bead(scene, _synthesize(scene, labels, _na(scene, values), size))


def _psfs_and_slopes(
    scene: Scene, values: Values, planes: int, size: int
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """PSFs (Z, K, K) of unit energy, and their derivatives with respect to what shapes them."""
    labels, na, slopes = _labels(scene, values, planes), _na(scene, values), {}
    with warnings.catch_warnings(), forward_ad.dual_level():
        # torch loads a part of itself for this that it calls deprecated
        warnings.simplefilter("ignore", FutureWarning)
        for name, tangent in _tangents(scene, labels, na).items():
            number = na
            if name == "na":
                number = torch.tensor(na, dtype=torch.float64)
                number = forward_ad.make_dual(number, torch.ones_like(number))
            dual = _synthesize(scene, forward_ad.make_dual(labels, tangent), number, size)
            psfs, slope = forward_ad.unpack_dual(dual)
            slopes[name] = _blurred_by_bead(scene, slope)
    return _blurred_by_bead(scene, psfs), slopes


def _na(scene: Scene, values: Values) -> float:
    return values["na"] if scene.fit_na else scene.microscope.na


def _tilt_waves_per_px(scene: Scene, na: float) -> float:
    """Tilt in waves rms that moves the PSF by one pixel: c waves move it by -4 c / cut-off."""
    return -replace(scene.microscope, na=na).cutoff_cycles_per_pixel / 4


def _labels(scene: Scene, values: Values, planes: int) -> torch.Tensor:
    """Labels (Z, 3 + modes) of the PSF model: z, the tilts along x and y, the aberrations."""
    stage_um = scene.stage_um(planes)
    per_px = _tilt_waves_per_px(scene, _na(scene, values))
    tilts = (
        per_px * (values[f"{axis}_px"] + values[f"{axis}_drift_px_per_um"] * stage_um)
        for axis in "xy"
    )
    aberrations = np.tile([values[name] for name in scene.mode_names], (planes, 1))
    columns = [stage_um - values["z_focus_um"], *tilts, aberrations]
    return torch.from_numpy(np.column_stack(columns))


def _tangents(scene: Scene, labels: torch.Tensor, na: float) -> dict[str, torch.Tensor]:
    """Derivatives of the labels (Z, P) with respect to each parameter that shapes the PSF."""
    per_px = _tilt_waves_per_px(scene, na)
    rates = {"x_px": (1, per_px), "y_px": (2, per_px), "z_focus_um": (0, -1.0)}  # column, rate
    rates |= {name: (3 + m, 1.0) for m, name in enumerate(scene.mode_names)}
    tangents = {name: torch.zeros_like(labels) for name in rates}
    for name, (column, rate) in rates.items():
        tangents[name][:, column] = rate
    if scene.fit_na:
        tangents["na"] = torch.zeros_like(labels)
        tangents["na"][:, 1:3] = labels[:, 1:3] / na  # so that the bead keeps its place
    return tangents


def _synthesize(
    scene: Scene, labels: torch.Tensor, na: float | torch.Tensor, size: int
) -> torch.Tensor:
    """PSFs (Z, K, K) of a point, of unit energy on an infinite plane."""
    model = psf_model(
        "gibson_lanni",
        modes=(*TILTS, *scene.modes),
        layers=scene.layers,
        depth_um=scene.depth_um,
        light=scene.light,
    )
    microscope = replace(scene.microscope, na=na)
    psfs, lost = synthesize_with_loss(model, labels, microscope, size)
    return psfs * (1 - lost)[:, None, None]


def _blurred_by_bead(scene: Scene, planes: torch.Tensor) -> np.ndarray:
    """PSFs (Z, K, K) of a bead of known size from those of a point."""
    if not scene.bead_um:
        return planes.numpy()
    across = _bead_blur(scene.bead_um / float(scene.microscope.pixel_size_um), planes.shape[-1])
    return across @ planes.numpy() @ across.T


@lru_cache(maxsize=4)
def _bead_blur(diameter_px: float, size: int) -> np.ndarray:
    """Matrix (K, K) that blurs band-limited lines like a bead of this diameter."""
    node, weight = np.polynomial.legendre.leggauss(2 * size + 32)
    frequency, variance = node / 2, diameter_px**2 / 20
    transfer = weight / 2 * np.exp(-2 * np.pi**2 * variance * frequency**2)
    distance = np.arange(size)[:, None] - np.arange(size)
    return np.cos(2 * np.pi * distance[..., None] * frequency) @ transfer
