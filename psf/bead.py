"""Fit of the PSF model to a z-stack of one bead, by maximum Poisson likelihood.

Each plane is background + photons h, with h the PSF whose sum over an infinite plane is 1: light
that defocus throws out of the image is not made up for. The bead's position along the stage is
known up to an offset; it may drift sideways and fade at a constant rate. A bead of known size
blurs the planes like a Gaussian of the same lateral variance, that of a uniform ball, d^2 / 20
per axis.

The likelihood is maximised as a sum of squared deviance residuals
sign(d - m) sqrt(2 (m - d + d log(d / m))) of data d and model m (P. McCullagh & J. Nelder,
Generalized Linear Models (1989), 2.4.2); standard errors are those of the Fisher information
sum grad m grad m^T / m. Read noise of variance s^2 is added to data and model, which makes it
nearly Poisson (F. Huang et al., Nature Methods 10, 653 (2013)).
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from scipy.optimize import least_squares, nnls
from torch.autograd import forward_ad

from psf.errors import InputError
from psf.gibson_lanni import Layers
from psf.microscope import Microscope
from psf.model import psf_model
from psf.synthesis import synthesize_with_loss
from psf.zernike import Mode, nm_to_noll

NUISANCES = (
    "x_px",
    "y_px",
    "z_focus_um",
    "photons",
    "background",
    "x_drift_px_per_um",  # of the bead from plane to plane: a stage is seldom parallel to the axis
    "y_drift_px_per_um",
    "fading_per_um",  # of the brightness, relative
)
FIRST_MODE = len(NUISANCES)
TILTS: tuple[Mode, ...] = ((1, 1), (1, -1))
SIGNAL_TO_NOISE = 5.0  # of the brightest pixel, smoothed, below which there is no bead
SMALLEST_PX, FEWEST_PLANES = 8, 3
LARGEST_MODE_WAVES = 2.0  # rms
SPHERICAL: Mode = (4, 0)
START_SPHERICAL = (-0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3)  # waves rms
START_SHIFTS = (-1.0, -0.5, 0.0, 0.5, 1.0)  # of the focus, depths of field


@dataclass(frozen=True)
class Scene:
    """What is known about a bead stack before the fit.

    Plane k of P lies at z = (k - (P - 1) / 2) z_step_um: a positive step means that the stage
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
    bead_um: float = 0.0  # diameter

    @property
    def names(self) -> tuple[str, ...]:
        """Parameters of the fit, in their order, with units."""
        noll = tuple(f"noll{nm_to_noll(*mode)}_waves" for mode in self.modes)
        optics = ("na",) if self.fit_na else ()
        return (*NUISANCES, *noll, *optics)


@dataclass(frozen=True)
class BeadFit:
    """Result of `fit_bead`; photons and background are electrons of one plane and pixel."""

    names: tuple[str, ...]
    values: np.ndarray  # (P,), in the order of `names`
    standard_errors: np.ndarray  # (P,), of photon noise alone
    model: np.ndarray  # (Z, K, K) expected electrons
    dispersion: float  # chi^2 per degree of freedom; 1 where photon noise is all that is left

    def __getitem__(self, name: str) -> float:
        return float(self.values[self.names.index(name)])

    @property
    def wavefront_rms_waves(self) -> float:
        """Root mean square of the fitted aberrations."""
        modes = [v for n, v in zip(self.names, self.values, strict=True) if n.startswith("noll")]
        return float(np.sqrt(np.square(modes).sum()))


def expected_stack(scene: Scene, values: np.ndarray, planes: int, size: int) -> np.ndarray:
    """Expected electrons (Z, K, K) of the parameters `scene.names`."""
    psfs, _ = _psfs(scene, values, planes, size, derivatives=False)
    return values[4] + values[3] * _fading(scene, values, planes) * psfs


def fit_bead(
    scene: Scene, electrons: np.ndarray, progress: Callable[[float], None] | None = None
) -> BeadFit:
    """Fit centre, focus, brightness, background and aberrations to a stack of one bead.

    Parameters
    ----------
    scene : what is known
    electrons : (Z, K, K) array, square planes with the bead near the middle
    progress : called with the deviance at every step

    Raises
    ------
    InputError
        If the stack is too small, not finite, or holds no bead.
    """
    check_stack(electrons)
    planes, size = len(electrons), electrons.shape[-1]
    variance = scene.read_noise_e**2
    data = np.maximum(electrons + variance, 0)
    cache: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}

    def model(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Expected data and its derivatives (Z K K, P), computed once for both callers."""
        key = values.tobytes()
        if key not in cache:
            cache.clear()
            psfs, slopes = _psfs(scene, values, planes, size, derivatives=True)
            z_um = _stage(scene, planes)[:, None, None]
            fading = _fading(scene, values, planes)
            photons = values[3] * fading
            x, y, z, *rest = (photons * s for s in slopes)
            drifts = x * z_um, y * z_um, -values[3] * z_um * psfs
            columns = [x, y, z, fading * psfs, np.ones_like(psfs), *drifts, *rest]
            mean = values[4] + photons * psfs + variance
            cache[key] = mean, np.stack([c.ravel() for c in columns], 1)
        return cache[key]

    def residuals(values: np.ndarray) -> np.ndarray:
        found = _deviance_residuals(data, model(values)[0])
        if progress is not None:
            progress(float(np.square(found).sum()))
        return found.ravel()

    def jacobian(values: np.ndarray) -> np.ndarray:
        mean, slopes = model(values)
        found = _deviance_residuals(data, mean)
        flat = np.abs(found) < 1e-4  # where the quotient is 0 / 0
        quotient = (1 - data / mean) / np.where(flat, 1, found)
        return np.where(flat, -1 / np.sqrt(mean), quotient).reshape(-1, 1) * slopes

    start, lowest, highest = _start(scene, electrons)
    best = least_squares(
        residuals,
        start,
        jacobian,
        bounds=(lowest, highest),
        x_scale="jac",
        xtol=1e-7,
        ftol=1e-9,
        gtol=None,
        max_nfev=60,
    )
    mean, slopes = model(best.x)
    information = slopes.T @ (slopes / mean.reshape(-1, 1))
    scale = np.sqrt(np.diag(information))
    covariance = np.linalg.inv(information / np.outer(scale, scale)) / np.outer(scale, scale)
    chi2 = (np.square(data - mean) / mean).sum() / (data.size - len(best.x))
    return BeadFit(
        names=scene.names,
        values=best.x,
        standard_errors=np.sqrt(np.diag(covariance)),
        model=mean - variance,
        dispersion=float(chi2),
    )


def check_stack(electrons: np.ndarray) -> None:
    """Refuse stacks that hold no bead to fit; see `fit_bead`."""
    if electrons.ndim != 3 or electrons.shape[1] != electrons.shape[2]:
        raise InputError(f"the stack has shape {electrons.shape}; give square planes (Z, K, K).")
    planes, size = len(electrons), electrons.shape[-1]
    if planes < FEWEST_PLANES or size < SMALLEST_PX:
        raise InputError(
            f"the stack has {planes} planes of {size} x {size} px; give at least "
            f"{FEWEST_PLANES} of {SMALLEST_PX} x {SMALLEST_PX}."
        )
    if not np.isfinite(electrons).all():
        raise InputError("the stack contains NaN or infinite values.")
    smooth = gaussian_filter(electrons.astype(float), (0, 1, 1))
    background, noise = _border(smooth)
    if smooth.max() - background < SIGNAL_TO_NOISE * max(noise, 1e-12):
        raise InputError(
            "there is no bead in the stack: its brightest spot is not "
            f"{SIGNAL_TO_NOISE:g} times the noise of the border above the background."
        )


def _border(stack: np.ndarray) -> tuple[float, float]:
    """Median and spread (by quartiles) of the outermost two pixels of all planes."""
    inside = np.zeros(stack.shape[1:], bool)
    inside[2:-2, 2:-2] = True
    low, middle, high = np.percentile(stack[:, ~inside], (25, 50, 75))
    return float(middle), float(high - low) / 1.349


def _start(scene: Scene, electrons: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Starting values, lower and upper bounds.

    Focus and spherical aberration, which shifts it, are searched on a coarse grid: from no
    aberration the fit of a strongly aberrated bead ends in a local minimum.
    """
    planes, size = len(electrons), electrons.shape[-1]
    background, _ = _border(electrons)
    smooth = gaussian_filter(electrons.astype(float), (1, 1, 1)) - background
    plane, row, column = np.unravel_index(smooth.argmax(), smooth.shape)
    middle = (size - 1) / 2
    half_depth = (planes - 1) / 2 * abs(scene.z_step_um)
    optics = [float(scene.microscope.na)] if scene.fit_na else []
    rest = [0.0] * len(scene.modes)
    start = np.array([column - middle, row - middle, 0, 1, 0, 0, 0, 0, *rest, *optics])
    z_brightest = (plane - (planes - 1) / 2) * scene.z_step_um
    best = np.inf, start
    for shift in START_SHIFTS:
        for spherical in START_SPHERICAL if SPHERICAL in scene.modes else (0.0,):
            trial = start.copy()
            trial[2] = np.clip(
                z_brightest + shift * scene.microscope.depth_of_field_um, -half_depth, half_depth
            )
            if SPHERICAL in scene.modes:
                trial[FIRST_MODE + scene.modes.index(SPHERICAL)] = spherical
            quality, trial[3], trial[4] = _brightness(scene, trial, electrons)
            best = min(best, (quality, trial), key=lambda pair: pair[0])
    reach = LARGEST_MODE_WAVES
    drift, fading = middle / half_depth, 0.9 / half_depth  # no plane fades away
    lowest = [-middle, -middle, -2 * half_depth, 0, 0, -drift, -drift, -fading]
    highest = [middle, middle, 2 * half_depth, np.inf, np.inf, drift, drift, fading]
    lowest, highest = lowest + [-reach] * len(rest), highest + [reach] * len(rest)
    ceiling = 0.999 * float(scene.microscope.refractive_index)
    lowest, highest = lowest + [0.05] * len(optics), highest + [ceiling] * len(optics)
    return best[1], np.array(lowest), np.array(highest)


def _brightness(
    scene: Scene, values: np.ndarray, electrons: np.ndarray
) -> tuple[float, float, float]:
    """Weighted squared error, photons and background that suit the other values best."""
    scalar = replace(scene, light="scalar")
    psfs, _ = _psfs(scalar, values, len(electrons), electrons.shape[-1], derivatives=False)
    weight = 1 / np.sqrt(np.maximum(gaussian_filter(electrons, (0, 1, 1)), 1).ravel())
    columns = np.stack([psfs.ravel() * weight, weight], 1)
    (photons, background), error = nnls(columns, electrons.ravel() * weight)
    return error, max(photons, 1.0), max(background, 1e-3)


def _stage(scene: Scene, planes: int) -> np.ndarray:
    """Nominal z of the planes, um."""
    return (np.arange(planes) - (planes - 1) / 2) * scene.z_step_um


def _fading(scene: Scene, values: np.ndarray, planes: int) -> np.ndarray:
    """Brightness of the planes (Z, 1, 1) relative to the middle."""
    return (1 - values[7] * _stage(scene, planes))[:, None, None]


def _deviance_residuals(data: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Signed roots of the Poisson deviance; 0 log 0 = 0."""
    mean = np.maximum(mean, 1e-9)
    logarithm = np.log(np.where(data > 0, data, 1) / mean)
    deviance = mean - data + np.where(data > 0, data * logarithm, 0)
    return np.sign(data - mean) * np.sqrt(2 * np.maximum(deviance, 0))


def _psfs(
    scene: Scene, values: np.ndarray, planes: int, size: int, derivatives: bool
) -> tuple[np.ndarray, list[np.ndarray]]:
    """PSFs (Z, K, K) of unit energy, and their slopes in x, y, focus, the modes (and NA)."""
    model = psf_model(
        "gibson_lanni",
        modes=(*TILTS, *scene.modes),
        layers=scene.layers,
        depth_um=scene.depth_um,
        light=scene.light,
    )
    modes = len(scene.modes)
    na = float(values[FIRST_MODE + modes]) if scene.fit_na else scene.microscope.na
    quarter = replace(scene.microscope, na=na).cutoff_cycles_per_pixel / 4
    stage = _stage(scene, planes)
    # a tilt of c waves rms moves the PSF by -4 c / cutoff pixels
    tilts = (-quarter * (values[k] + values[5 + k] * stage) for k in (0, 1))
    aberrations = np.tile(values[FIRST_MODE : FIRST_MODE + modes], (planes, 1))
    labels = torch.from_numpy(np.column_stack([stage - values[2], *tilts, aberrations]))

    across = _bead_blur(scene.bead_um / float(scene.microscope.pixel_size_um), size)

    def blur(planes: np.ndarray) -> np.ndarray:
        return across @ planes @ across.T if scene.bead_um else planes

    def synthesize(labels: torch.Tensor, na: float | torch.Tensor) -> torch.Tensor:
        microscope = replace(scene.microscope, na=na)
        psfs, lost = synthesize_with_loss(model, labels, microscope, size)
        return psfs * (1 - lost)[:, None, None]

    if not derivatives:
        return blur(synthesize(labels, na).numpy()), []
    slopes = []
    scales = [(1, -quarter), (2, -quarter), (0, -1.0), *((3 + m, 1.0) for m in range(modes))]
    with warnings.catch_warnings(), forward_ad.dual_level():
        # torch loads a part of itself for this that it calls deprecated
        warnings.simplefilter("ignore", FutureWarning)
        for column, scale in scales:
            tangent = torch.zeros_like(labels)
            tangent[:, column] = scale
            dual = synthesize(forward_ad.make_dual(labels, tangent), na)
            psfs, slope = forward_ad.unpack_dual(dual)
            slopes.append(slope.numpy())
        if scene.fit_na:
            number = torch.tensor(na, dtype=torch.float64)
            # the tilts follow the cut-off, so that the centre stays
            tangent = torch.zeros_like(labels)
            tangent[:, 1:3] = labels[:, 1:3] / na
            dual = synthesize(
                forward_ad.make_dual(labels, tangent),
                forward_ad.make_dual(number, torch.ones_like(number)),
            )
            psfs, slope = forward_ad.unpack_dual(dual)
            slopes.append(slope.numpy())
    return blur(psfs.numpy()), [blur(slope) for slope in slopes]


@lru_cache(maxsize=4)
def _bead_blur(diameter_px: float, size: int) -> np.ndarray:
    """Matrix (K, K) that blurs band-limited lines like a bead of this diameter."""
    node, weight = np.polynomial.legendre.leggauss(2 * size + 32)
    frequency, variance = node / 2, diameter_px**2 / 20
    transfer = weight / 2 * np.exp(-2 * np.pi**2 * variance * frequency**2)
    distance = np.arange(size)[:, None] - np.arange(size)
    return np.cos(2 * np.pi * distance[..., None] * frequency) @ transfer
