"""NA of the objective, estimated from the cut-off frequency 2 NA / lambda of an image's spectrum.

    found = estimate_na(planes, wavelength_um, pixel_size_um, refractive_index)

The radial power spectrum is described by white noise and content:

    P(f) = noise + exp(a - b ln f + shape(f)) |OTF(f / cutoff, focus)|^2 pixel(f)^2

The object's spectrum is a power law times a smooth shape, a few cosines of ln f. The OTF is that of
an ideal lens with defocus. For each pair of cut-off and focus the other numbers are fitted. The
evidence of the fits, by Laplace's approximation (MacKay 2003, Information Theory, Inference, and
Learning Algorithms, ch. 27), gives the probability of each cut-off. Its mean and standard deviation
are the estimate. A high cut-off and an image out of focus are thus told apart only as far as the
spectrum tells them apart.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch

from micrographs.camera import estimate_camera
from micrographs.cleaned import survey
from micrographs.micrograph import Micrograph
from micrographs.radial_spectrum import RadialSpectrum, radial_spectrum
from psf.errors import InputError
from psf.microscope import Microscope
from psf.model import psf_model
from psf.synthesis import synthesize_with_loss

CUTOFFS = np.exp(np.arange(math.log(0.06), math.log(1.3), 0.02))  # cycles per pixel, tried
FOCI = np.array([0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0])  # waves, tried
# Before the image is seen, a focus w has probability 1 / (1 + (w / TYPICAL_FOCUS)^2): people record
# in focus. On 110 simulated images of training objects 0.35 and 0.2 did alike, and 0.7 erred more.
# The numbers below were compared on the same images.
TYPICAL_FOCUS = 0.35
SLOPE, SLOPE_DEVIATION = 2.5, 1.0  # power of photographs falls as f^-2, that of sharp edges as f^-3
SHAPES = 4  # cosines in the object's spectrum; with 2, 80 % lie within two standard errors, not 95
SHAPE_DEVIATION = 0.5  # of the first cosine, natural logarithm; 1 tells a third fewer images
CONTENT_ERROR = 0.15  # of each ring's content; with 0.05 only 45 % lie within their standard error
FLOOR_ERROR = 0.005  # of each ring's noise: no camera is white to more digits
MODEL_ERROR = 0.01  # of the cut-off, for the steps of CUTOFFS and light at high NA
LARGEST_ERROR = 0.15  # relative standard error up to which the NA counts as told
HIGHEST_CUTOFF = 0.62  # cycles per pixel; above it, aliased light covers the noise
LOWER_QUANTILE, UPPER_QUANTILE = 0.05, 0.95
# NA / n of the tabulated OTFs; the nearest one is taken. Vectorial light changes the OTF: with
# that of low NA, estimates at NA / n of 0.75 to 0.95 in focus were 6 to 8 % too low.
NA_PER_INDEX = np.array([0.3, 0.6, 0.75, 0.87, 0.95])
OUT_OF_FOCUS = 0.5  # waves, from which defocus is named as the reason
ROUNDS = (6, 8, 46)  # of a fit; after each number, hopeless fits are left out
HOPELESS = 3.0  # times the loss of the best fit and one for each frequency
MOST_PLANES = 40  # of a focal stack that are read
# Power beyond the cut-off that contradicts a given NA, relative to the noise and to its error.
CONTRADICTING_SHARE, CONTRADICTING_ERRORS = 0.1, 5.0


@dataclass(frozen=True)
class CutoffEstimate:
    """The cut-off frequency of a spectrum, cycles per pixel."""

    cutoff: float
    error: float  # standard error
    lowest: float  # with a probability of 95 % the cut-off is higher
    highest: float  # and with the same probability lower
    focus_waves: float  # of the image, magnitude

    @property
    def is_told(self) -> bool:
        """Whether the spectrum ends where the camera sees it, and sharply enough."""
        return self.error < LARGEST_ERROR * self.cutoff and self.highest < HIGHEST_CUTOFF


@dataclass(frozen=True)
class NaEstimate:
    """The NA that a spectrum tells."""

    na: float
    error: float  # standard error
    plane: int  # the sharpest one, from 0
    focus_waves: float  # of that plane, magnitude


def estimate_na(
    planes: Sequence[Micrograph],
    wavelength_um: float,
    pixel_size_um: float,
    refractive_index: float,
) -> NaEstimate:
    """NA of the objective that recorded an image, or the planes of a focal stack.

    The sharpest plane decides.

    Raises
    ------
    InputError
        If the noise is not that of a raw image, or the spectrum does not tell the NA. The message
        says why, and how high the NA is at least.
    """
    found = sharpest(planes)
    if found is None:
        raise InputError(
            "the NA cannot be told: the image is smaller than 96 px, or saturated or constant all "
            "over; give --na."
        )
    index, spectrum = found
    _check_raw(planes[index])
    na_per_cutoff = wavelength_um / (2 * pixel_size_um)
    cutoff = estimate_cutoff(spectrum, refractive_index / na_per_cutoff)
    if not cutoff.is_told:
        raise InputError(
            f"the NA cannot be told from the image's spectrum: {_reason(cutoff)}. It is at least "
            f"{na_per_cutoff * cutoff.lowest:.2g} (95 %); give --na."
        )
    na = float(f"{na_per_cutoff * cutoff.cutoff:.3g}")  # as printed, so that it can be given again
    return NaEstimate(na, na_per_cutoff * cutoff.error, index, cutoff.focus_waves)


def _check_raw(plane: Micrograph) -> None:
    """Refuse an image whose spectrum does not end in white noise."""
    found = survey(plane)
    if not estimate_camera(found.sample, found.usable).white_noise:
        raise InputError(
            "the NA cannot be told, since the spectrum does not end in white noise: the image was "
            "processed, or the pixels are too large for its detail; give --na, or a raw image."
        )


def sharpest(planes: Sequence[Micrograph]) -> tuple[int, RadialSpectrum] | None:
    """Index and spectrum of the plane with the most content at high frequencies."""
    count = len(planes)
    indices = np.unique(np.linspace(0, count - 1, min(count, MOST_PLANES)).round().astype(int))
    spectra = {int(k): radial_spectrum(planes[k]) for k in indices}
    spectra = {k: spectrum for k, spectrum in spectra.items() if spectrum is not None}
    return max(spectra.items(), key=lambda one: _gradient_energy(one[1]), default=None)


def power_beyond(spectrum: RadialSpectrum, cutoff: float) -> bool:
    """Whether a spectrum holds power that optics with this cut-off, cycles per px, do not transmit.

    It is that just beyond the cut-off, compared with the noise above 0.5 cycles per pixel.
    """
    low = cutoff + 2 * spectrum.bin  # the window blurs the spectrum
    beyond = (spectrum.frequency > low) & (spectrum.frequency < 1.3 * low) & ~spectrum.is_top
    if not beyond.any() or low > 0.45:
        return False
    weights = spectrum.samples[beyond]
    excess = np.average(spectrum.power[beyond], weights=weights) / spectrum.floor - 1
    error = math.sqrt(1 / weights.sum() + 1 / spectrum.samples[spectrum.is_top].sum())
    return bool(excess > max(CONTRADICTING_SHARE, CONTRADICTING_ERRORS * error))


def estimate_cutoff(spectrum: RadialSpectrum, highest: float = math.inf) -> CutoffEstimate:
    """Cut-off frequency of a spectrum; `highest` is the cut-off at an NA equal to the index."""
    cutoffs = CUTOFFS[CUTOFFS < highest]
    if not len(cutoffs):
        raise InputError("the pixels are too fine to tell the NA; bin the image, or give --na.")
    transfer = log_transfer(cutoffs, spectrum.frequency, spectrum.bin, cutoffs / highest)
    evidence = _evidence(spectrum, transfer.reshape(-1, len(spectrum.frequency)))
    prior = np.gradient(FOCI) / (1 + (FOCI / TYPICAL_FOCUS) ** 2)
    log_odds = evidence.reshape(len(cutoffs), len(FOCI)) + np.log(prior / prior.sum())
    odds = np.exp(log_odds - log_odds.max())
    odds /= odds.sum()
    weights = odds.sum(1)
    mean = float(weights @ cutoffs)
    deviation = math.sqrt(weights @ np.square(cutoffs - mean))
    ends = np.interp((LOWER_QUANTILE, UPPER_QUANTILE), np.cumsum(weights), cutoffs)
    error = math.hypot(deviation, MODEL_ERROR * mean)
    return CutoffEstimate(mean, error, *map(float, ends), float(odds.sum(0) @ FOCI))


def log_transfer(
    cutoffs: np.ndarray, frequency: np.ndarray, bin_px: float, na_per_index: np.ndarray
) -> np.ndarray:
    """Logarithm of |OTF|^2 times that of a pixel, (C, FOCI, K), as a Hann window sees it.

    `na_per_index` (C,) is NA / n of each cut-off.
    """
    blurred = np.zeros((len(cutoffs), len(FOCI), len(frequency)))
    nearest = NA_PER_INDEX[np.abs(na_per_index[:, None] - NA_PER_INDEX).argmin(1)]
    for one in np.unique(nearest):
        rows = nearest == one
        share, table = _transfer_table(float(one))
        for step, weight in ((-1, 1 / 6), (0, 2 / 3), (1, 1 / 6)):  # the window's spectrum
            at = (frequency + step * bin_px) / cutoffs[rows, None]
            for k, line in enumerate(table):
                blurred[rows, k] += weight * np.interp(at, share, line, right=0.0)
    angle = (np.arange(16) + 0.5) * np.pi / 32
    x, y = np.outer(np.cos(angle), frequency), np.outer(np.sin(angle), frequency)
    pixel = np.square(np.sinc(x) * np.sinc(y)).mean(0)
    return np.log(np.maximum(blurred, 1e-14) * pixel)  # 1e-14 lies far below any noise


@lru_cache(maxsize=len(NA_PER_INDEX))
def _transfer_table(na_per_index: float) -> tuple[np.ndarray, np.ndarray]:
    """Shares of the cut-off (S,) and |OTF|^2 there for each focus (FOCI, S), an ideal lens."""
    size, cutoff = 255, 0.4  # cycles per pixel: the OTF is sampled finely, and 3 waves fit in
    microscope = Microscope(na_per_index, 1.0, cutoff / (2 * na_per_index), 1.0)
    model, foci = psf_model("zernike1d", light="vectorial"), torch.from_numpy(FOCI)[:, None]
    psfs, _ = synthesize_with_loss(model, foci, microscope, size, pixel_integration=False)
    share, x = np.linspace(0, 1, 257), np.arange(size) - size // 2
    # A section of the OTF is the Fourier transform of the projection; the PSF is symmetric.
    return share, (psfs.sum(1).numpy() @ np.cos(2 * np.pi * cutoff * np.outer(x, share))) ** 2


def _evidence(spectrum: RadialSpectrum, transfer: np.ndarray) -> np.ndarray:
    """Logarithm of the evidence (G,) of each transfer function (G, K), up to a constant.

    The likelihood of a ring's power is that of a mean of `samples` exponential numbers. Where no
    model fits, the likelihood is weakened by what the best one lacks.
    """
    power = torch.from_numpy(spectrum.power)
    content = np.clip(1 - spectrum.floor / spectrum.power, 0, 1)
    variance = 1 / spectrum.samples + (CONTENT_ERROR * content) ** 2 + FLOOR_ERROR**2
    samples = torch.from_numpy(1 / variance)
    fit = _Fit(power, samples, torch.from_numpy(transfer), *_shapes(spectrum.frequency))
    loss, information = fit.run(math.log(spectrum.floor))
    unexplained = max(1.0, 2 * float(loss.min()) / len(power))
    return (-loss / unexplained - information / 2).numpy()


def _shapes(frequency: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Terms of the object's ln spectrum (Q, K), and the prior mean and precision of their weights.

    The first is the amplitude, the second the slope, the others are cosines.
    """
    place = np.log(frequency / frequency[0]) / np.log(frequency[-1] / frequency[0])
    cosines = [np.cos(np.pi * j * place) for j in range(1, SHAPES + 1)]
    terms = np.stack([np.ones_like(frequency), -np.log(frequency / 0.1), *cosines])
    mean = [0.0, SLOPE] + [0.0] * SHAPES
    free = 1e-6  # the amplitude may be anything
    deviations = [SLOPE_DEVIATION, *(SHAPE_DEVIATION / j for j in range(1, SHAPES + 1))]
    precision = [free, *(deviation**-2 for deviation in deviations)]
    as_tensor = [torch.tensor(values, dtype=torch.float64) for values in (mean, precision)]
    return torch.from_numpy(terms), *as_tensor


@dataclass(frozen=True)
class _Fit:
    """Fits of one spectrum by G transfer functions, with the Levenberg-Marquardt method."""

    power: torch.Tensor  # (K,)
    samples: torch.Tensor  # (K,)
    transfer: torch.Tensor  # (G, K), ln
    terms: torch.Tensor  # (Q, K)
    mean: torch.Tensor  # (Q,) of the prior
    precision: torch.Tensor  # (Q,)

    def run(self, log_floor: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss (G,) and ln |information| (G,) at the best weights; infinite where hopeless."""
        fit, kept = self, torch.arange(len(self.transfer))
        weights = self._start(log_floor)
        for rounds in ROUNDS:
            loss, weights = fit._improve(weights, rounds)
            hopeful = loss < HOPELESS * (loss.min() + len(self.power))
            kept, weights, loss = kept[hopeful], weights[hopeful], loss[hopeful]
            fit = replace(fit, transfer=fit.transfer[hopeful])
        _, parts = fit._loss(weights)
        information, _ = fit._slopes(weights, parts)
        all_loss, all_information = (
            torch.full((len(self.transfer),), math.inf, dtype=torch.float64) for _ in range(2)
        )
        all_loss[kept], all_information[kept] = loss, information.slogdet()[1]
        return all_loss, all_information

    def _improve(self, weights: torch.Tensor, rounds: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss (G,) and weights (G, 1 + Q) after some rounds."""
        damping = torch.full((len(weights),), 1e-2, dtype=torch.float64)
        loss, parts = self._loss(weights)
        for _ in range(rounds):
            information, gradient = self._slopes(weights, parts)
            damped = information + torch.diag_embed(
                damping[:, None] * information.diagonal(dim1=1, dim2=2)
            )
            trial = weights + torch.linalg.solve(damped, gradient).clamp(-2, 2)
            new, _ = self._loss(trial)
            better = new < loss
            gain = (loss - new)[better].max() if better.any() else 1.0
            weights = torch.where(better[:, None], trial, weights)
            damping = torch.where(better, damping / 3, damping * 5)
            loss, parts = self._loss(weights)
            if gain < 0.01:
                break
        return loss, weights

    def _start(self, log_floor: float) -> torch.Tensor:
        """First weights (G, 1 + Q): the prior's, and the amplitude of the lowest frequency."""
        weights = torch.cat([torch.tensor([log_floor], dtype=torch.float64), self.mean])
        weights = weights.repeat(len(self.transfer), 1)
        lowest = (self.power[0] - math.exp(log_floor)).clamp(min=1e-3 * self.power[0]).log()
        guess = weights[:, 1:] @ self.terms[:, 0] + self.transfer[:, 0]
        weights[:, 1] = (lowest - guess).clamp(max=60)
        return weights

    def _loss(self, weights: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Negative ln of likelihood and prior (G,), and noise, content and their sum (G, K)."""
        noise = weights[:, :1].exp()
        content = (weights[:, 1:] @ self.terms + self.transfer).clamp(max=80).exp()
        model = noise + content
        loss = self.samples * (self.power / model - 1 + (model / self.power).log())
        prior = (weights[:, 1:] - self.mean).square() * self.precision / 2
        return loss.sum(1) + prior.sum(1), (noise, content, model)

    def _slopes(
        self, weights: torch.Tensor, parts: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Expected information (G, 1 + Q, 1 + Q) and falling gradient (G, 1 + Q) of the loss."""
        noise, content, model = parts
        slopes = torch.cat([(noise / model)[:, None], (content / model)[:, None] * self.terms], 1)
        weighted = slopes * self.samples
        tiny = torch.full((1,), 1e-6, dtype=torch.float64)  # the noise may be anything
        information = weighted @ slopes.mT + torch.diag(torch.cat([tiny, self.precision]))
        misfit = (weighted @ ((self.power - model) / model)[..., None])[..., 0]
        misfit[:, 1:] -= self.precision * (weights[:, 1:] - self.mean)
        return information, misfit


def _gradient_energy(spectrum: RadialSpectrum) -> float:
    """Energy of the gradient of the content: large in focus, whatever the brightness of haze."""
    content = np.clip(spectrum.power - spectrum.floor, 0, None)
    return float((content * spectrum.frequency**3)[~spectrum.is_top].sum())


def _reason(cutoff: CutoffEstimate) -> str:
    """Why a cut-off is not told."""
    if cutoff.lowest > 0.7 * HIGHEST_CUTOFF:
        return "it lies near or above the highest frequency of the camera; the pixels are too large"
    if cutoff.focus_waves > OUT_OF_FOCUS:
        return "the image is out of focus; take one in focus, or a focal stack"
    return "too little fine detail stands out from the noise; take more light, or a focal stack"
