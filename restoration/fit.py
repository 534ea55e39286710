"""Judgement of a restoration without a truth: whether its residuals look like photon noise.

The restored object, blurred by the map, is the image that is expected. What the image differs from
it is noise if map, camera and object model are right. The squared residuals over the variance of
photon noise are averaged over the surroundings of each pixel.
"""

from dataclasses import dataclass

import torch
from scipy.ndimage import gaussian_filter

WIDTH_PX = 16.0  # standard deviation of the Gaussian that averages squared residuals
FEWEST_USABLE = 0.1  # share of the pixels under that Gaussian from which the misfit is known
DARKEST = 0.05  # share of the mean brightness: in darker places read noise dominates
FITTED = 0.9  # squared residual over the variance of photon noise that a restoration leaves
NOISE_ALLOWED = 1.3  # median misfit; right gains leave 0.8 to 1.1
# Misfit of a place over that of the field. From the first on the place is called bad; up to the
# second its restoration is faded into the input. Scenes of the validation split that are restored
# with estimated maps stay below 1.2.
BAD_FROM, INPUT_FROM = 1.5, 3.0
WORTH_SAYING = 0.005  # share of the field that is bad


@dataclass(frozen=True)
class Fit:
    """How well a restoration explains its image."""

    noise: float  # squared residuals over photon noise, median over the field; 1 is right
    misfit: torch.Tensor  # (H, W) local squared residuals over those of the field; 1 is typical
    gain: float = 1.0  # counts per photon that the restoration used

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
        shares = {"noise": round(self.noise, 4), "bad_share": round(self.bad_share, 5)}
        return {**shares, "gain_counts_per_e": self.gain}

    def sentences(self, gain: float) -> list[str]:
        """What is wrong with the fit of a restoration that began with this gain, and why."""
        found = []
        if self.gain > gain * NOISE_ALLOWED:
            found.append(
                f"the image is noisier than photon noise of {gain:.3g} counts per photon, so "
                f"{self.gain:.3g} was taken (--gain-counts-per-e, --offset-counts)"
            )
        if self.noise > NOISE_ALLOWED:
            found.append(
                f"bad fit: the residuals have {self.noise:.2g} times the variance of photon noise, "
                "so the result is faded into the input. The map or the optics are wrong, or the "
                "image was processed"
            )
        elif self.bad_share > WORTH_SAYING:
            found.append(
                f"bad fit in {self.bad_share:.1%} of the field (outlined), where the result is "
                "faded into the input. The PSF is wrong there, or detail is finer than the optics "
                "transmit"
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
    shares = (photons.to(expected) - expected).square() / variance
    weights = torch.ones_like(expected) if usable is None else usable.to(expected)
    total, weight = (
        torch.from_numpy(gaussian_filter(one.cpu().numpy(), WIDTH_PX)).to(expected)
        for one in (shares * weights, weights)
    )
    local = torch.where(weight > FEWEST_USABLE, total / weight.clamp(min=FEWEST_USABLE), 0.0)
    noise = float(local[weights > 0].median())
    return Fit(noise, local / max(noise, FITTED))
