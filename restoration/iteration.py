"""One restoration by Richardson-Lucy with total variation: its iteration and its start.

Richardson (JOSA 62, 55 (1972)) and Lucy (Astron. J. 79, 745 (1974)) maximise the likelihood of
Poisson counts. Total variation enters as by Dey et al. (Microsc. Res. Tech. 69, 260 (2006)), but
its weight follows the local light. The noise of the likelihood's gradient is 1 / sqrt(photons), so
one weight for the whole field would flatten bright places and leave the noise in dim ones.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count, islice

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from common.progress import tell_progress
from restoration.fit import Fit
from restoration.variant_blur import VariantBlur, in_float64

# Largest weight of total variation. Larger ones flatten everything, and from 1 / (2 + sqrt 2) on
# the denominator of a step could turn negative: 2 + sqrt 2 is the largest curvature.
LARGEST_TV = 0.1
SMALLEST_DENOMINATOR = 0.5  # a guard only: with LARGEST_TV the denominator stays above 0.65
# Gradients below this share of the local brightness count as flat. The share grows with tv, since
# steps that are long against it overshoot from pixel to pixel. 2 and 4 times tv differ by 0.1 dB.
TV_ROUNDING, TV_ROUNDING_PER_TV = 1e-2, 4.0
LIGHT_WIDTH_PX = 3.0  # the local light is a mean under a Gaussian of this standard deviation
DIMMEST = 0.02  # least local light, as a share of the mean brightness; also at least one photon
# Points of the field that send a smaller share of their light into the image hardly change. At
# 0.001 the errors of the eigen-PSFs were as large as the light of such points, and two of the
# validation images with beads diverged.
UNSEEN = 0.05
SMALLEST_IMAGE = 1e-6  # least expected image, as a share of the mean: avoids division by zero
LARGEST_FALL = 0.1  # extrapolation leaves a pixel this share; from 0 it could never rise again
NOT_RESTORED = (
    "no number of iterations predicts held-out photons better than an image of uniform "
    "brightness; the image is returned as it was, without the background"
)


@dataclass(frozen=True)
class Restored:
    """A restored image, and how it was made."""

    image: torch.Tensor  # (H, W), in the unit of the input, background taken off
    iterations: int  # 0: the image is the input, and the note says why
    tv: float  # weight of total variation at the mean brightness
    deviance: float  # Poisson deviance per pixel: near 1 where blur and noise explain the image
    expected: torch.Tensor  # (H, W), the restored object blurred again, with the background
    note: str = ""  # a sentence for the user, if something needs to be said
    prior: str = "total variation"  # or "learned"
    fit: Fit | None = None  # judged by `restoration.with_map` only


@dataclass(frozen=True)
class Settings:
    """Settings of one restoration as numbers, all rules resolved."""

    background: torch.Tensor  # () or (H, W), photons
    tv: float  # at the mean brightness; sqrt(mean / local) times as much elsewhere
    acceleration: str | None
    mean: float  # of the whole image, photons
    level: float  # mean without the background: brightness of the uniform start
    usable: torch.Tensor | None = None  # (H, W) bool; pixels without it have weight 0. None: all
    # (H, W) of the PSFs, from 0 to 1; only the learned restoration uses it. None: they are certain
    uncertainty: torch.Tensor | None = None

    def of_part(self, part: tuple[slice, slice]) -> "Settings":
        """The same settings for a part of the image."""
        background = self.background[part] if self.background.ndim else self.background
        usable, uncertainty = (
            None if image is None else image[part] for image in (self.usable, self.uncertainty)
        )
        return replace(self, background=background, usable=usable, uncertainty=uncertainty)

    def cloned(self) -> "Settings":
        """The same settings with images of their own."""
        names = ("background", "usable", "uncertainty")
        images = {name: getattr(self, name) for name in names}
        return replace(self, **{n: i if i is None else i.clone() for n, i in images.items()})


def restore(
    photons: torch.Tensor, blur: VariantBlur, settings: Settings, iterations: int
) -> Restored:
    """Restoration of photons (H, W) after a number of iterations.

    After 0 iterations the image is the input, and `expected` the image of the uniform start.
    """
    # one step more than asked for: it yields the image that is expected of the last object
    objects, expected = next(islice(steps(photons[None], blur, settings), iterations, None))
    deviance = deviance_per_pixel(photons, expected[0], settings.usable)
    if iterations == 0:
        image, tv, note = (photons - settings.background).clamp(min=0), 0.0, NOT_RESTORED
    else:
        image, tv, note = objects[0, *blur.image_part].clone(), settings.tv, ""
    return Restored(image, iterations, tv, deviance, expected[0].clone(), note)


def steps(
    photons: torch.Tensor,
    blur: VariantBlur,
    settings: Settings,
    begun: torch.Tensor | None = None,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Objects (N, field) and the images (N, H, W) expected of them, after 0, 1, 2... updates.

    The first object is `begun` (N, field), or uniform. Pixels that are not usable have weight 0:
    the factor of an update is A^T (w photons / expected) / A^T w.
    """
    level, background, usable = settings.level, settings.background, settings.usable
    seen = blur.seen if usable is None else blur.seen_by(usable)
    unseen = (UNSEEN - seen).clamp(min=0)  # pulls the factor of such points to 1
    objects = uniform_start(photons, blur, settings, seen) if begun is None else begun
    seen = seen + unseen
    momentum = Momentum(settings.acceleration)
    if settings.tv:
        weight, rounding = prior_scales(photons, blur, settings)
    for number in count():
        tell_progress("restore", number)
        start = momentum.ahead(objects)
        expected = (blur.forward(start) + background).clamp_(min=SMALLEST_IMAGE * level)
        yield objects, expected
        ratio = photons / expected if usable is None else photons / expected * usable
        factor = blur.adjoint(ratio).add_(unseen).clamp_(min=0).div_(seen)
        if settings.tv:
            # divides by seen * (1 - tv div), not by seen - tv div: outside the image, where seen is
            # small, the prior would outweigh the data
            bend = curvature(start, rounding, weight).neg_().add_(1)
            factor /= bend.clamp_(min=SMALLEST_DENOMINATOR)
        updated = factor.mul_(start)
        momentum.learn(objects, start, updated)
        objects = updated


def uniform_start(
    photons: torch.Tensor, blur: VariantBlur, settings: Settings, seen: torch.Tensor
) -> torch.Tensor:
    """Objects (N, field) of uniform brightness; the local light where no usable pixel sees them.

    The likelihood moves such points hardly at all, so that they would stay at the mean.
    """
    objects = torch.full_like(seen, settings.level).expand(len(photons), -1, -1)
    if settings.usable is None:
        return objects
    hidden = (seen < UNSEEN) & (blur.seen >= UNSEEN)
    if not hidden.any():
        return objects
    light = local_light(photons, blur, settings) - (settings.mean - settings.level)
    return torch.where(hidden, light.clamp_(min=DIMMEST * settings.level), objects)


def prior_scales(
    photons: torch.Tensor, blur: VariantBlur, settings: Settings
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight of the total variation and gradient that counts as flat, both (N, field).

    The weight follows the local light as 1 / sqrt(photons). The gradient that counts as flat is a
    share of the local brightness of the object.
    """
    mean = settings.mean
    light = local_light(photons, blur, settings)
    weight = (settings.tv * (mean / light).sqrt()).clamp_(max=LARGEST_TV)
    # mean and level differ by the background, which adds noise but no structure
    brightness = (light - (mean - settings.level)).clamp_(min=DIMMEST * settings.level)
    rounding = brightness.mul_((TV_ROUNDING_PER_TV * weight).clamp_(min=TV_ROUNDING))
    return weight, rounding


def local_light(photons: torch.Tensor, blur: VariantBlur, settings: Settings) -> torch.Tensor:
    """Brightness (N, field) of the surroundings, in photons, continued outside the image.

    Pixels that are not usable hold the median of usable neighbours, see
    `restoration.richardson_lucy.check_image`.
    """
    mean = settings.mean
    smooth = np.stack([gaussian_filter(one, LIGHT_WIDTH_PX) for one in photons.cpu().numpy()])
    light = torch.from_numpy(smooth).to(photons).clamp_(min=max(DIMMEST * mean, min(mean, 1.0)))
    (top, left), (height, width) = (part.start for part in blur.image_part), blur.field_shape
    margins = (left, width - left - blur.shape[1], top, height - top - blur.shape[0])
    return torch.nn.functional.pad(light[:, None], margins, mode="replicate")[:, 0]


class Momentum:
    """Extrapolation along the last step, limited so that brightness stays positive."""

    def __init__(self, kind: str | None) -> None:
        self.kind = kind
        self.count = 0
        self.step: torch.Tensor | None = None  # from one object to the next
        self.gained: torch.Tensor | None = None  # by the update alone, without extrapolation
        self.share: torch.Tensor | float = 0.0

    def ahead(self, objects: torch.Tensor) -> torch.Tensor:
        """Object from which the next update starts."""
        if self.kind is None or self.step is None:
            return objects
        return torch.maximum(objects + self.share * self.step, LARGEST_FALL * objects)

    def learn(self, before: torch.Tensor, start: torch.Tensor, after: torch.Tensor) -> None:
        """Choose the share of the last step by which the next start is extrapolated."""
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
    """div(w grad x / |grad x|) of images (N, H, W), with |grad x|^2 + rounding^2 for |grad x|^2.

    Forward differences and their exact adjoint, so that this is minus the derivative of the total
    variation. The weight w and the rounding are numbers or (N, H, W).
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


def deviance_per_pixel(
    photons: torch.Tensor, expected: torch.Tensor, usable: torch.Tensor | None = None
) -> float:
    """Mean Poisson deviance of the usable pixels.

    It is about 1 if counts above one photon scatter around `expected`.
    """
    misfit = torch.special.xlogy(photons, photons / expected) - photons + expected
    return 2 * float(in_float64(misfit if usable is None else misfit[usable]).mean())
