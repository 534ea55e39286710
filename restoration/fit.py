"""Judgement of a restoration without a truth: whether its residuals look like photon noise.

The restored object, blurred by the map, is the image that is expected. What the image differs from
it is noise if map, camera and object model are right. The squared residuals over the variance of
photon noise are averaged over the surroundings of each pixel.
"""

from dataclasses import dataclass

import torch
from scipy.ndimage import gaussian_filter

from micrographs.camera import estimate_camera
from micrographs.noise_spectrum import FEWEST_SPECTRA, block_spectra, quiet_power
from restoration.variant_blur import in_float64

WIDTH_PX = 16.0  # standard deviation of the Gaussian that averages squared residuals
FEWEST_USABLE = 0.1  # share of the pixels under that Gaussian from which the misfit is known
DARKEST = 0.05  # share of the mean brightness: in darker places read noise dominates
FITTED = 0.9  # squared residual over the variance of photon noise that a restoration leaves
NOISE_ALLOWED = 1.3  # median misfit; right gains leave 0.8 to 1.1
# Misfit of a place over that of the field. From the first on the place is called bad; up to the
# second its restoration is faded into the input. Scenes of the validation split that are restored
# with estimated maps stay below 1.2.
BAD_FROM, INPUT_FROM = 1.5, 3.0
# Correlation of the residuals of neighbouring pixels. Right fits of raw images leave -0.1 to -0.02,
# since the restoration follows some noise. Maps that are 1.5 times too large leave up to 0.4.
CORRELATED = 0.03
LEAST_FACTOR = 0.25  # least factor on the gain between two restorations: bounds an error of it
# Restorations follow some noise, so their residuals show too little of it. A gain that is too large
# costs little, one that is half as large as the true one costs all (docs/experiments.md).
MARGIN = 1.5
SMALLEST = 1e-30  # mean square of residuals, against division by zero
WORTH_SAYING = 0.005  # share of the field that is bad


@dataclass(frozen=True)
class Fit:
    """How well a restoration explains its image."""

    noise: float  # squared residuals over photon noise, median over the field; 1 is right
    misfit: torch.Tensor  # (H, W) local squared residuals over those of the field; 1 is typical
    correlation: float  # of the residuals of neighbouring pixels; below 0 if they are only noise
    gain: float = 1.0  # counts per photon that the restoration used
    faded: bool = False  # whether bad places were faded into the input

    @property
    def bad(self) -> torch.Tensor:
        """Pixels (H, W) bool whose surroundings are not explained."""
        return self.misfit > BAD_FROM

    @property
    def bad_share(self) -> float:
        """Share of the field that is not explained."""
        return float(self.bad.double().mean())

    @property
    def facts(self) -> dict[str, float]:
        """Its numbers, for a record."""
        found = {"noise": round(self.noise, 4), "correlation": round(self.correlation, 4)}
        return {**found, "bad_share": round(self.bad_share, 5), "gain_counts_per_e": self.gain}

    def sentences(self, gain: float, white_noise: bool) -> list[str]:
        """What is wrong with the fit of a restoration, and why.

        The restoration began with this gain. The residuals of white noise must be white, too.
        """
        found = []
        if self.gain > gain * NOISE_ALLOWED:
            found.append(
                f"the image is noisier than photon noise of {gain:.3g} counts per photon, so "
                f"{self.gain:.3g} was taken (--gain-counts-per-e, --offset-counts)"
            )
        if self.gain * NOISE_ALLOWED < gain:
            found.append(
                f"the image shows less noise than photon noise of {gain:.3g} counts per photon, so "
                f"{self.gain:.3g} was taken (--gain-counts-per-e, --offset-counts)"
            )
        faded = "; the result is faded into the input" if self.faded else ""
        if self.noise > NOISE_ALLOWED:
            found.append(
                f"bad fit: the residuals have {self.noise:.2g} times the variance of photon "
                f"noise{faded}. The map or the optics are wrong, the image was processed, or "
                "--iterations is too small"
            )
        elif self.bad_share > WORTH_SAYING:
            found.append(
                f"bad fit in {self.bad_share:.1%} of the field (outlined){faded}. The PSF is wrong "
                "there, or detail is finer than the optics transmit"
            )
        if white_noise and self.correlation > CORRELATED:
            found.append(
                f"the residuals are not random (correlation of neighbours {self.correlation:.2f}): "
                "the PSF of the map is too large, --iterations is too small, or the image holds "
                "what no optics transmit"
            )
        return found


def judge(photons: torch.Tensor, expected: torch.Tensor, usable: torch.Tensor | None = None) -> Fit:
    """The fit of a restoration that expects an image (H, W) of photons.

    Residuals weaker than photon noise are no misfit: the misfit is relative to `FITTED` at least. A
    PSF that is too large cannot produce the detail of a sharp image and leaves it in the residuals.
    A PSF that is too small fits everything, noise included. Where nearly no pixel is usable, the
    misfit is 0.
    """
    variance = expected + DARKEST * expected.mean()
    residuals = (photons.to(expected) - expected) / variance.sqrt()
    shares = residuals.square()
    weights = torch.ones_like(expected) if usable is None else usable.to(expected)
    total, weight = (
        torch.from_numpy(gaussian_filter(one.cpu().numpy(), WIDTH_PX)).to(expected)
        for one in (shares * weights, weights)
    )
    local = torch.where(weight > FEWEST_USABLE, total / weight.clamp(min=FEWEST_USABLE), 0.0)
    noise = float(local[weights > 0].median())
    return Fit(noise, local / max(noise, FITTED), _correlation(residuals * weights))


def _correlation(residuals: torch.Tensor) -> float:
    """Correlation of the residuals (H, W) of neighbouring pixels along both axes."""
    residuals = in_float64(residuals)
    down = (residuals[1:] * residuals[:-1]).mean()
    right = (residuals[:, 1:] * residuals[:, :-1]).mean()
    return float((down + right) / (2 * residuals.square().mean()).clamp(min=SMALLEST))


def noise_left(
    photons: torch.Tensor, expected: torch.Tensor, usable: torch.Tensor | None = None
) -> float:
    """Factor, from 0.25 to 1, by which the gain of a processed image (H, W) should be changed.

    Processing removes noise at high frequencies, so the residuals are compared with photon noise at
    low ones: about 0.05 to 0.1 cycles per pixel, in quiet blocks. A restoration whose gain is right
    follows the noise there, since the optics transmit these frequencies. Its residuals are weaker
    there than at the next frequencies, and the factor is 1. Residuals that do not fall off are
    content that was taken for noise. The factor is their strength with a margin.
    """
    variance = expected + DARKEST * expected.mean()
    residuals = (photons.to(expected) - expected) / variance.sqrt()
    if usable is not None:
        residuals = torch.where(usable.to(expected.device), residuals, torch.nan)
    power = block_spectra(residuals.cpu()).power
    if len(power) < FEWEST_SPECTRA:
        return 1.0
    lowest, next_one = quiet_power(power)[:2].tolist()
    return min(max(MARGIN * lowest, LEAST_FACTOR), 1.0) if lowest >= next_one else 1.0


def better_gain(
    image: torch.Tensor,
    photons: torch.Tensor,
    expected: torch.Tensor,
    fit: Fit,
    used: float,
    usable: torch.Tensor | None = None,
    may_lower: bool = False,
) -> float:
    """Gain that suits the residuals of a restoration; the one that was `used` if it does.

    Parameters
    ----------
    image, photons : (H, W), in counts, and divided by the gain that was used
    may_lower : whether the gain may become smaller; only that of processed images is so uncertain
    """
    if fit.noise > NOISE_ALLOWED:
        found = noise_gain(image, usable)
        return found if found >= NOISE_ALLOWED * used else used
    factor = noise_left(photons, expected, usable) if may_lower else 1.0
    return factor * used if factor * NOISE_ALLOWED < 1 else used


def noise_gain(image: torch.Tensor, usable: torch.Tensor | None) -> float:
    """Gain with which photon noise is as strong as the noise of an image; 0 if it shows none."""
    usable = None if usable is None else usable.cpu()
    return estimate_camera(image.cpu(), usable, offset_counts=0.0).gain_counts_per_e or 0.0
