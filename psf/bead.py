"""Fit of the PSF model to a z-stack of one bead, by maximum Poisson likelihood.

The expected stack is that of `psf.bead_stack`. The fit minimises the sum of squared deviance
residuals sign(d - m) sqrt(2 (m - d + d log(d / m))) of data d and model m (P. McCullagh &
J. Nelder, Generalized Linear Models (1989), 2.4.2), which maximises the likelihood. Standard errors
are those of the Fisher information sum grad m grad m^T / m. Read noise of variance s^2 is added to
data and model, which makes it nearly Poisson (F. Huang et al., Nature Methods 10, 653 (2013)).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.optimize import least_squares, nnls

from psf.bead_stack import Scene, Values, expected_and_slopes, mode_name, unit_psfs
from psf.errors import InputError
from psf.zernike import Mode

SMALLEST_PX, FEWEST_PLANES = 8, 3  # of a stack that is fitted
LARGEST_MODE_WAVES = 2.0  # rms, bound of each aberration in the fit
SPHERICAL: Mode = (4, 0)
# Grid of starting values: spherical aberration shifts the best focus, so both are searched.
START_SPHERICAL = (-0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3)  # waves rms
START_SHIFTS = (-1.0, -0.5, 0.0, 0.5, 1.0)  # of the focus, depths of field
NA_BOUNDS = (0.05, 0.999)  # of a fitted NA: smallest value, and largest share of the index
NOT_DETERMINED = (
    "the stack does not determine all parameters of the fit: it shows too little of a bead; give "
    "more planes around its focus, or fewer modes (--modes-noll)."
)
FLAT_RESIDUAL = 1e-4  # near 0 the slope of a residual is 0 / 0, so its limit is taken


@dataclass(frozen=True)
class BeadFit:
    """Result of `fit_bead`; photons and background are electrons of one plane and pixel."""

    names: tuple[str, ...]
    values: np.ndarray  # (P,), in the order of `names`
    standard_errors: np.ndarray  # (P,), of photon noise alone
    model: np.ndarray  # (Z, K, K) expected electrons
    dispersion: float  # chi^2 per degree of freedom; 1 if the only error is photon noise

    def __getitem__(self, name: str) -> float:
        return float(self.values[self.names.index(name)])

    @property
    def wavefront_rms_waves(self) -> float:
        """Root mean square of the fitted aberrations."""
        modes = [v for n, v in zip(self.names, self.values, strict=True) if n.startswith("noll")]
        return float(np.sqrt(np.square(modes).sum()))


def fit_bead(
    scene: Scene,
    electrons: np.ndarray,
    progress: Callable[[float], None] | None = None,
    usable: np.ndarray | None = None,
) -> BeadFit:
    """Centre, focus, brightness, background and aberrations fitted to a stack of one bead.

    Parameters
    ----------
    scene : what is known
    electrons : (Z, K, K) array, square planes with the bead near the middle
    progress : called with the deviance at every step
    usable : (Z, K, K) bool; False gives a pixel weight 0. Its value still helps to find the start,
        so give it that of its neighbours

    Raises
    ------
    InputError
        If the stack is too small or not finite.
    """
    check_stack(electrons)
    usable = np.ones(electrons.shape, bool) if usable is None else usable
    likelihood = _Likelihood(scene, electrons, usable, progress)
    bounds = _bounds(scene, *likelihood.shape)
    best = least_squares(
        likelihood.residuals,
        _array(scene, coarse_fit(scene, electrons, usable)[1]),
        likelihood.jacobian,
        bounds=tuple(_array(scene, {n: pair[end] for n, pair in bounds.items()}) for end in (0, 1)),
        x_scale="jac",
        xtol=1e-7,  # relative steps and changes of the deviance far below the standard errors
        ftol=1e-9,
        gtol=None,
        max_nfev=60,
    )
    mean, slopes = likelihood.expected(best.x)
    chi_squared = (np.square(likelihood.data - mean) / mean)[usable].sum()
    return BeadFit(
        names=scene.names,
        values=best.x,
        standard_errors=_standard_errors(mean[usable], slopes[usable.ravel()]),
        model=mean - likelihood.variance,
        dispersion=float(chi_squared / max(usable.sum() - len(best.x), 1)),
    )


def _array(scene: Scene, values: Values) -> np.ndarray:
    return np.array([values[name] for name in scene.names])


class _Likelihood:
    """Deviance residuals of a stack and their derivatives, as `least_squares` asks for them."""

    def __init__(
        self,
        scene: Scene,
        electrons: np.ndarray,
        usable: np.ndarray,
        progress: Callable[[float], None] | None,
    ) -> None:
        self.scene, self.usable, self.progress = scene, usable, progress
        self.shape = len(electrons), electrons.shape[-1]  # planes, edge in px
        self.variance = scene.read_noise_e**2
        self.data = np.maximum(electrons + self.variance, 0)
        self._at, self._expected = b"", (np.empty(0), np.empty(0))

    def expected(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Expected data (Z, K, K) and their derivatives (Z K K, P); the last result is kept."""
        if values.tobytes() != self._at:
            mean, slopes = expected_and_slopes(self.scene, self.scene.named(values), *self.shape)
            self._at, self._expected = values.tobytes(), (mean + self.variance, slopes)
        return self._expected

    def residuals(self, values: np.ndarray) -> np.ndarray:
        """Signed roots of the deviance, (Z K K,)."""
        found = self.usable * _deviance_residuals(self.data, self.expected(values)[0])
        if self.progress is not None:
            self.progress(float(np.square(found).sum()))
        return found.ravel()

    def jacobian(self, values: np.ndarray) -> np.ndarray:
        """Derivatives (Z K K, P) of the residuals."""
        mean, slopes = self.expected(values)
        found = _deviance_residuals(self.data, mean)
        flat = np.abs(found) < FLAT_RESIDUAL
        quotient = (1 - self.data / mean) / np.where(flat, 1, found)
        rates = self.usable * np.where(flat, -1 / np.sqrt(mean), quotient)
        return rates.reshape(-1, 1) * slopes


def _deviance_residuals(data: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Signed roots of the Poisson deviance; 0 log 0 = 0."""
    mean = np.maximum(mean, 1e-9)
    logarithm = np.log(np.where(data > 0, data, 1) / mean)
    deviance = mean - data + np.where(data > 0, data * logarithm, 0)
    return np.sign(data - mean) * np.sqrt(2 * np.maximum(deviance, 0))


def _standard_errors(mean: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    """Standard errors (P,) from the Fisher information, scaled so that its inverse is accurate."""
    information = slopes.T @ (slopes / mean.reshape(-1, 1))
    scale = np.sqrt(np.diag(information))
    if not (scale > 0).all():
        raise InputError(NOT_DETERMINED)
    try:
        inverse = np.linalg.inv(information / np.outer(scale, scale))
    except np.linalg.LinAlgError as error:
        raise InputError(NOT_DETERMINED) from error
    return np.sqrt(np.maximum(np.diag(inverse), 0)) / scale


def check_stack(electrons: np.ndarray) -> None:
    """Refuse a stack that cannot be fitted; see `fit_bead`."""
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


def border_level(stack: np.ndarray) -> tuple[float, float]:
    """Median and standard deviation (from quartiles) of the outer two pixels of all planes."""
    inside = np.zeros(stack.shape[1:], bool)
    inside[2:-2, 2:-2] = True
    low, middle, high = np.percentile(stack[:, ~inside], (25, 50, 75))
    return float(middle), float(high - low) / 1.349  # quartiles of a Gaussian, sigma


def coarse_fit(
    scene: Scene, electrons: np.ndarray, usable: np.ndarray
) -> tuple[float, dict[str, float]]:
    """Weighted error and parameters of the best of a coarse grid of focus and spherical aberration.

    A fit of a strongly aberrated bead that starts without aberration ends in a local minimum.
    """
    planes, size = len(electrons), electrons.shape[-1]
    background, _ = border_level(electrons)
    smooth = gaussian_filter(electrons.astype(float), (1, 1, 1)) - background
    smooth = np.where(usable, smooth, -np.inf)  # another bead may be brighter
    plane, row, column = np.unravel_index(smooth.argmax(), smooth.shape)
    middle = (size - 1) / 2
    start = dict.fromkeys(scene.names, 0.0)
    start |= {"x_px": column - middle, "y_px": row - middle, "photons": 1.0}
    if scene.fit_na:
        start["na"] = float(scene.microscope.na)
    stage_um = scene.stage_um(planes)
    shifts_um = [shift * scene.microscope.depth_of_field_um for shift in START_SHIFTS]
    best_error, best = np.inf, start
    sphericals = START_SPHERICAL if SPHERICAL in scene.modes else (0.0,)
    for shift_um, spherical in product(shifts_um, sphericals):
        focus_um = np.clip(stage_um[plane] + shift_um, stage_um.min(), stage_um.max())
        trial = start | {"z_focus_um": float(focus_um)}
        if SPHERICAL in scene.modes:
            trial[mode_name(SPHERICAL)] = spherical
        error, brightness = _brightness(scene, trial, electrons, usable)
        if error < best_error:
            best_error, best = error, trial | brightness
    return best_error, best


def _bounds(scene: Scene, planes: int, size: int) -> dict[str, tuple[float, float]]:
    """Lowest and highest value of each parameter."""
    middle, half_depth = (size - 1) / 2, (planes - 1) / 2 * abs(scene.z_step_um)
    largest = {
        "x_px": middle,
        "y_px": middle,
        "z_focus_um": 2 * half_depth,
        "x_drift_px_per_um": middle / half_depth,
        "y_drift_px_per_um": middle / half_depth,
        "fading_per_um": 0.9 / half_depth,  # every plane keeps a tenth of its light
        **dict.fromkeys(scene.mode_names, LARGEST_MODE_WAVES),
    }
    bounds = {name: (-value, value) for name, value in largest.items()}
    bounds |= dict.fromkeys(("photons", "background"), (0.0, np.inf))
    if scene.fit_na:
        bounds["na"] = NA_BOUNDS[0], NA_BOUNDS[1] * float(scene.microscope.refractive_index)
    return bounds


def _brightness(
    scene: Scene, values: Values, electrons: np.ndarray, usable: np.ndarray
) -> tuple[float, dict[str, float]]:
    """Weighted squared error, and the photons and background that minimise it."""
    psfs = unit_psfs(replace(scene, light="scalar"), values, len(electrons), electrons.shape[-1])
    weight = usable / np.sqrt(np.maximum(gaussian_filter(electrons, (0, 1, 1)), 1))
    weight = weight.ravel()
    columns = np.stack([psfs.ravel() * weight, weight], 1)
    (photons, background), error = nnls(columns, electrons.ravel() * weight)
    return error, {"photons": max(photons, 1.0), "background": max(background, 1e-3)}
