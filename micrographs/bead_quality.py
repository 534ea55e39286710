"""How well the fit of a bead describes its stack, in numbers and in one sentence.

Photon noise of neighbouring pixels is independent, so products of their residuals are zero on
average. What is left of these products is the error of the model, whatever the gain of the camera.
"""

import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from micrographs.bead_search import fwhm_px
from micrographs.metadata import flag_of
from psf.bead import LARGEST_MODE_WAVES, BeadFit, coarse_fit
from psf.bead_stack import NUISANCES, Scene, expected_and_slopes, expected_stack
from psf.errors import InputError
from psf.microscope import SamplingWarning
from psf.zernike import noll_to_nm

# Wrong optics, wrong steps and stacks without a bead explain less than the first, with noise or
# without; fits that miss no more than an aberration or the size of the bead explain more than the
# second.
LEAST_EXPLAINED, WELL_EXPLAINED = 0.9, 0.98
CORRELATED = 0.1  # correlation of neighbouring residuals that photon noise alone does not reach
MUCH_MORE_THAN_NOISE = 1.5  # dispersion, above which the standard errors are too small
LESS_THAN_NOISE = 0.8  # dispersion; photon noise is never so small
AT_BOUND = 0.95  # share of the largest value of an aberration
STEP = 0.02  # relative change of a number of the optics, to see what it does to the model
FACTORS = (0.4, 0.5, 0.7, 1.4, 2.0, 2.5)  # of a number that may be far off
MUCH_BETTER = 0.85  # ratio of the errors of coarse fits; a right number seldom improves so much
LOW_MODES = (5, 6, 7, 8, 9, 10, 11, 22)  # Noll, the common aberrations of an objective
CLEAR_CAUSE = 0.4  # share of the excess of chi^2 that one number of the optics explains

LARGEST_ERROR = 0.05  # rms of systematic errors over the peak; 0.003 for a real bead


@dataclass(frozen=True)
class Quality:
    """Verdict on a fit."""

    explained: float  # share of the light's variance over the stack that the model explains
    correlation: float  # of the residuals of neighbouring pixels; 0 if they are only noise
    verdict: str  # "good", "fair" or "bad"
    sentence: str  # what is wrong and its likely cause, or what the errors mean


def judge_fit(scene: Scene, electrons: np.ndarray, usable: np.ndarray, fit: BeadFit) -> Quality:
    """Verdict on the fit of a stack (Z, K, K) with usable pixels (Z, K, K)."""
    error = np.where(usable, electrons - fit.model, 0)
    light = np.where(usable, fit.model - fit["background"], 0)
    missed = max(0.0, _neighbours(error, error)) / max(_neighbours(light, light), 1e-30)
    explained = max(0.0, 1 - missed)
    noise = _noise(scene, electrons, usable, fit)
    correlation = _neighbours(noise, noise) / max(float(np.square(noise).mean()), 1e-30)
    is_systematic = correlation > CORRELATED and fit.dispersion > LESS_THAN_NOISE
    height = float((fit.model - fit["background"]).max())
    is_far_off = is_systematic and float(error.std()) > LARGEST_ERROR * height
    if explained < LEAST_EXPLAINED or is_far_off:
        verdict = "bad"
    elif is_systematic and explained < WELL_EXPLAINED:
        verdict = "fair"
    else:
        verdict = "good"
    cause = ""
    if verdict != "good":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SamplingWarning)  # of optics that the user did not give
            cause = next(_causes(scene, electrons, usable, fit, verdict == "bad"), _UNKNOWN)
    return Quality(explained, correlation, verdict, _sentence(verdict, explained, cause))


_UNKNOWN = (
    "the stack may not show a single small bead, or --na, --wavelength-um, --refractive-index, "
    "--pixel-size-um, --z-step-um or the layers may be wrong"
)


def _sentence(verdict: str, explained: float, cause: str) -> str:
    shares = f"the model explains {explained:.1%} of the light's variation"
    if verdict == "good":
        return f"the fit is good: {shares}"
    worth = "do not use its parameters" if verdict == "bad" else "its parameters are rough"
    return f"the fit is {verdict} ({shares}; {worth}); likely cause: {cause}."


def _noise(scene: Scene, electrons: np.ndarray, usable: np.ndarray, fit: BeadFit) -> np.ndarray:
    """Residuals (Z, K, K) in standard deviations of photon and read noise; 0 if not usable."""
    variance = np.maximum(fit.model + scene.read_noise_e**2, 1e-9)
    return np.where(usable, electrons - fit.model, 0) / np.sqrt(variance)


def explain_dispersion(
    correlation: float, dispersion: float, electrons_per_count: float
) -> list[str]:
    """What an error above or below photon noise means, in lines for the user."""
    gain = f"--electrons-per-count {electrons_per_count / max(dispersion, 1e-9):.2g}"
    if dispersion < LESS_THAN_NOISE:
        return [
            f"The remaining error is smaller than photon noise. {gain} would explain it, unless "
            "the stack was averaged or denoised."
        ]
    if dispersion <= MUCH_MORE_THAN_NOISE:
        return []
    if correlation > CORRELATED:
        return [
            "The remaining error exceeds photon noise and is not random: the PSF has details that "
            "the model lacks. The standard errors do not include this error of the model."
        ]
    return [
        f"The remaining error exceeds photon noise and is random: {gain} would explain it. The "
        f"standard errors are {dispersion**0.5:.2g} times as large as printed."
    ]


def _neighbours(a: np.ndarray, b: np.ndarray) -> float:
    """Mean product of neighbouring pixels along x and y."""
    return float(((a[:, 1:] * b[:, :-1]).mean() + (a[..., 1:] * b[..., :-1]).mean()) / 2)


def _causes(
    scene: Scene, electrons: np.ndarray, usable: np.ndarray, fit: BeadFit, is_bad: bool
) -> Iterator[str]:
    """Likely causes of a bad fit, the likeliest first."""
    noise = _noise(scene, electrons, usable, fit)
    z_um = scene.stage_um(len(noise))
    focus, step = fit["z_focus_um"], abs(scene.z_step_um)
    if not z_um.min() - step / 2 <= focus <= z_um.max() + step / 2:
        yield "the focus lies outside of the stack; record planes on both sides of it"
    places = _spot(noise, fit, fwhm_px(scene))
    if places is not None:
        yield (
            f"something else, perhaps another bead, lies {places[0]:+.0f} px along x and "
            f"{places[1]:+.0f} px along y from the bead; give a smaller --size"
        )
    yield from _wrong_numbers(scene, noise, usable, fit)
    if is_bad:  # since it takes as long as the fit
        yield from _far_off_numbers(scene, electrons, usable)
    at_bound = [
        name.removesuffix("_waves")
        for name, value in zip(fit.names, fit.values, strict=True)
        if name in scene.mode_names and abs(value) > AT_BOUND * LARGEST_MODE_WAVES
    ]
    if at_bound:
        yield (
            f"{', '.join(at_bound)} reached the largest aberration that is fitted "
            f"({LARGEST_MODE_WAVES:g} waves); this is no bead, or the optics are wrong"
        )


def _spot(noise: np.ndarray, fit: BeadFit, width: float) -> tuple[float, float] | None:
    """Place (x, y) in px from the bead of a spot that the model lacks, or None."""
    excess = np.maximum(noise, 0).sum(0)
    size = excess.shape[-1]
    y, x = np.indices(excess.shape) - (size - 1) / 2
    x, y = x - fit["x_px"], y - fit["y_px"]
    far = np.hypot(x, y) > 4 * width
    row, column = np.unravel_index(np.where(far, excess, -np.inf).argmax(), excess.shape)
    spread = float(np.std(noise)) * len(noise) ** 0.5
    if not far.any() or excess[row, column] < max(0.7 * excess.max(), 10 * spread):
        return None
    return float(x[row, column]), float(y[row, column])


def _wrong_numbers(
    scene: Scene, noise: np.ndarray, usable: np.ndarray, fit: BeadFit
) -> Iterator[str]:
    """The number of the optics that, changed, would improve the fit most, if it does so clearly.

    Each is tried as one more parameter of a linear fit of the residuals, the aberrations that were
    not fitted all together.
    """
    planes, size = len(noise), noise.shape[-1]
    mean, slopes = expected_and_slopes(scene, scene.named(fit.values), planes, size)
    weight = (usable / np.sqrt(np.maximum(mean + scene.read_noise_e**2, 1e-9))).ravel()
    basis, _ = np.linalg.qr(slopes * weight[:, None])
    left = noise.ravel() - basis @ (basis.T @ noise.ravel())
    excess = float(left @ left) - usable.sum()
    found: dict[str, tuple[float, float]] = {}
    for flag, changes in _changed_scenes(scene, fit.values).items():
        stacks = [expected_stack(*change, planes, size) - mean for change in changes]
        more = np.stack([stack.ravel() * weight for stack in stacks], 1)
        more -= basis @ (basis.T @ more)
        rates, *_ = np.linalg.lstsq(more, left, rcond=None)
        found[flag] = float(left @ more @ rates) / max(excess, 1e-30), float(rates[0])
    flag, (share, rate) = max(found.items(), key=lambda item: item[1][0])
    if share <= CLEAR_CAUSE or (flag == "--bead-um" and rate < 0):
        return
    if flag == "--modes-noll":
        yield "the PSF has aberrations that are not fitted; give more --modes-noll"
    else:
        yield f"{flag} is too {'small' if rate > 0 else 'large'}"


def _changed_scenes(scene: Scene, values: np.ndarray) -> dict[str, list[tuple[Scene, np.ndarray]]]:
    """Scenes with one number a little larger, and their parameters, by the flag of the number."""
    microscope, more = scene.microscope, 1 + STEP
    changed = {"--z-step-um": replace(scene, z_step_um=scene.z_step_um * more)}
    for name in ("na", "pixel_size_um"):
        with suppress(InputError):  # the NA may be the largest of its medium
            larger = replace(microscope, **{name: float(getattr(microscope, name)) * more})
            changed[flag_of(name)] = replace(scene, microscope=larger)
    # the blur grows with the square of the diameter
    width = 0.1 * float(fwhm_px(scene) * microscope.pixel_size_um)
    changed["--bead-um"] = replace(scene, bead_um=float(np.hypot(scene.bead_um, width)))
    changes = {flag: [(other, values)] for flag, other in changed.items()}
    end = len(NUISANCES) + len(scene.modes)
    modes = [mode for mode in map(noll_to_nm, LOW_MODES) if mode not in scene.modes]
    if modes:
        changes["--modes-noll"] = [
            (replace(scene, modes=(*scene.modes, mode)), np.insert(values, end, STEP))
            for mode in modes
        ]
    return changes


def _far_off_numbers(scene: Scene, electrons: np.ndarray, usable: np.ndarray) -> Iterator[str]:
    """The number of the optics that, by a large factor, would improve a coarse fit most."""
    given, microscope = coarse_fit(scene, electrons, usable)[0], scene.microscope
    errors: dict[tuple[str, float], float] = {}
    for factor in FACTORS:
        step = scene.z_step_um * factor
        others = {("--z-step-um", step): replace(scene, z_step_um=step)}
        for name in ("na", "pixel_size_um"):
            value = float(getattr(microscope, name)) * factor
            with suppress(InputError):  # no microscope has such a number
                other = replace(microscope, **{name: value})
                others[flag_of(name), value] = replace(scene, microscope=other)
        for key, other in others.items():
            errors[key] = coarse_fit(other, electrons, usable)[0] / given
    (flag, value), error = min(errors.items(), key=lambda item: item[1])
    if error < MUCH_BETTER:
        yield f"{flag} is wrong, since {value:.2g} fits much better"
