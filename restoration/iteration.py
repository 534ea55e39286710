"""The iteration of Richardson-Lucy with total variation, and what it starts from.

Richardson (JOSA 62, 55 (1972)) and Lucy (Astron. J. 79, 745 (1974)) for the likelihood of Poisson
counts, total variation after Dey et al. (Microsc. Res. Tech. 69, 260 (2006)), here with a weight
that follows the local light: the noise of the likelihood's gradient is 1 / sqrt(photons), so that
one weight for the whole field flattens what is bright and leaves the noise in what is dim.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from restoration.variant_blur import VariantBlur

LARGEST_TV = 0.1  # more flattens everything; from 1 / (2 + sqrt 2) on, a step could turn negative
SMALLEST_DENOMINATOR = 0.5  # of the step with tv: never reached below LARGEST_TV
# Gradients below this share of the local brightness count as flat. In proportion to tv, since steps
# that are long against it overshoot from pixel to pixel (0.1 dB between 2 and 4 times tv)
TV_ROUNDING, TV_ROUNDING_PER_TV = 1e-2, 4.0
LIGHT_WIDTH_PX = 3.0  # of the Gaussian whose mean is the local light
DIMMEST = 0.02  # of the mean brightness, and one photon: the least local light that is believed
UNSEEN = (
    0.05  # points that give less of their light to the image hardly change: eigen-PSFs err there
)
SMALLEST_IMAGE = 1e-6  # of the mean: no division by zero
LARGEST_FALL = 0.1  # acceleration leaves a pixel this share: from 0 none would come back


@dataclass(frozen=True)
class Restored:
    """What came out, and how."""

    image: torch.Tensor  # (H, W), in the unit of the input, background taken off
    iterations: int
    tv: float
    deviance: float  # Poisson deviance per pixel: near 1 where blur and noise explain the image
    expected: torch.Tensor  # (H, W), what the blur makes of it, with the background


@dataclass(frozen=True)
class Settings:
    """One restoration, numbers instead of rules."""

    background: torch.Tensor  # () or (H, W), photons
    tv: float  # at the mean brightness; sqrt(mean / local) times as much elsewhere
    acceleration: str | None
    mean: float  # of the whole image, photons
    level: float  # the same without the background: the flat start, the scale of the negligible


def restore(
    photons: torch.Tensor, blur: VariantBlur, settings: Settings, iterations: int
) -> Restored:
    """A fixed number of iterations on photons (H, W)."""
    # the forward image of the last one says how well it explains the data
    objects, expected = next(islice(steps(photons[None], blur, settings), iterations, None))
    image = objects[0, *blur.image_part].clone()
    deviance = deviance_per_pixel(photons, expected[0])
    return Restored(image, iterations, settings.tv, deviance, expected[0].clone())


def steps(
    photons: torch.Tensor,
    blur: VariantBlur,
    settings: Settings,
    objects: torch.Tensor | None = None,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Objects on the field and the images expected of them, (N, ...), after 0, 1, 2... updates."""
    level, background = settings.level, settings.background
    unseen = (UNSEEN - blur.seen).clamp(min=0)  # draws the factor of such points to 1
    seen = blur.seen + unseen
    if objects is None:
        objects = torch.full_like(seen, level).expand(len(photons), -1, -1)
    momentum = Momentum(settings.acceleration)
    if settings.tv:
        weight, rounding = prior_scales(photons, blur, settings)
    while True:
        start = momentum.ahead(objects)
        expected = (blur.forward(start) + background).clamp_(min=SMALLEST_IMAGE * level)
        yield objects, expected
        factor = blur.adjoint(photons / expected).add_(unseen).clamp_(min=0).div_(seen)
        if settings.tv:
            # weighted with `seen`, or the prior would take over beyond the borders
            bend = curvature(start, rounding, weight).neg_().add_(1)
            factor /= bend.clamp_(min=SMALLEST_DENOMINATOR)
        updated = factor.mul_(start)
        momentum.learn(objects, start, updated)
        objects = updated


def prior_scales(
    photons: torch.Tensor, blur: VariantBlur, settings: Settings
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight of the total variation, and gradients that count as flat, (N, field).

    Both follow the light around each point: the weight as 1 / sqrt(photons), the rounding as the
    brightness of the object.
    """
    mean = settings.mean
    smooth = np.stack([gaussian_filter(one, LIGHT_WIDTH_PX) for one in photons.cpu().numpy()])
    light = torch.from_numpy(smooth).to(photons).clamp_(min=max(DIMMEST * mean, min(mean, 1.0)))
    (top, left), (height, width) = (part.start for part in blur.image_part), blur.field_shape
    margins = (left, width - left - blur.shape[1], top, height - top - blur.shape[0])
    light = torch.nn.functional.pad(light[:, None], margins, mode="replicate")[:, 0]
    weight = (settings.tv * (mean / light).sqrt()).clamp_(max=LARGEST_TV)
    # mean and level differ by the background, which has noise but no structure
    brightness = (light - (mean - settings.level)).clamp_(min=DIMMEST * settings.level)
    rounding = brightness.mul_((TV_ROUNDING_PER_TV * weight).clamp_(min=TV_ROUNDING))
    return weight, rounding


class Momentum:
    """Extrapolation along the last step, clipped so that brightness stays positive."""

    def __init__(self, kind: str | None) -> None:
        self.kind = kind
        self.count = 0
        self.step: torch.Tensor | None = None  # from one object to the next
        self.gained: torch.Tensor | None = None  # by the last update, from where it started
        self.share: torch.Tensor | float = 0.0

    def ahead(self, objects: torch.Tensor) -> torch.Tensor:
        """Where the next update starts."""
        if self.kind is None or self.step is None:
            return objects
        return torch.maximum(objects + self.share * self.step, LARGEST_FALL * objects)

    def learn(self, before: torch.Tensor, start: torch.Tensor, after: torch.Tensor) -> None:
        """Set the share of the last step that the next extrapolation takes."""
        if self.kind is None:
            return
        self.count += 1
        self.step = after - before
        if self.kind == "momentum":
            self.share = (self.count - 1) / (self.count + 2)
            return
        gained = after - start
        if self.gained is not None:  # Biggs & Andrews, Eq. (8)
            agreement = (gained * self.gained).sum((1, 2), keepdim=True)
            length = self.gained.square().sum((1, 2), keepdim=True)
            smallest = torch.finfo(length.dtype).tiny
            self.share = (agreement / length.clamp(min=smallest)).clamp(0, 1)
        self.gained = gained


def curvature(
    objects: torch.Tensor,
    rounding: float | torch.Tensor,
    weight: float | torch.Tensor = 1.0,
) -> torch.Tensor:
    """div(w grad x / |grad x|) of (N, H, W), with |grad x| = sqrt(|grad x|^2 + rounding^2).

    Forward differences and their exact adjoint: minus the derivative of the total variation. The
    weight w and the rounding are numbers or (N, H, W).
    """
    down, right = torch.zeros_like(objects), torch.zeros_like(objects)
    torch.sub(objects[:, 1:], objects[:, :-1], out=down[:, :-1])
    torch.sub(objects[..., 1:], objects[..., :-1], out=right[..., :-1])
    share = weight / (down.square() + right.square() + rounding**2).sqrt_()
    down *= share
    right *= share
    total = down + right
    total[:, 1:] -= down[:, :-1]
    total[..., 1:] -= right[..., :-1]
    return total


def deviance_per_pixel(photons: torch.Tensor, expected: torch.Tensor) -> float:
    """Mean Poisson deviance; about 1 for counts above one photon around a true expectation."""
    misfit = torch.special.xlogy(photons, photons / expected) - photons + expected
    return 2 * float(misfit.mean(dtype=torch.float64))
