"""Richardson-Lucy restoration under a blur that varies over the field.

Maximum likelihood of Poisson counts by the multiplicative iteration of Richardson (JOSA 62, 55
(1972)) and Lucy (Astron. J. 79, 745 (1974)), with total variation as a prior after Dey et al.
(Microsc. Res. Tech. 69, 260 (2006)). The object is estimated on the extended field of
`psf.variant`, so that image borders need no treatment. Images are photons per pixel.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

import torch

from psf.errors import InputError
from psf.variant import VariantBlur

ACCELERATIONS = ("momentum", "biggs")
# Against 0, 1/3 and 3.3 times this weight, at the best iteration of each: first in 20 of 24 images
# (4 photographs, 2 PSFs, 10, 100 and 1000 photons per pixel), at most 0.13 dB behind in the others
TV_AT_ONE_PHOTON = 0.09
LARGEST_TV = 0.1  # more flattens everything; from 1 / (2 + sqrt 2) on, a step could turn negative
SMALLEST_DENOMINATOR = 0.5  # of the step with tv: never reached below LARGEST_TV
# Gradients below this share of the mean brightness count as flat. In proportion to tv, since steps
# that are long against it overshoot from pixel to pixel (0.1 dB between 2 and 4 times tv)
TV_ROUNDING, TV_ROUNDING_PER_TV = 1e-2, 4.0
UNSEEN = 1e-3  # points that give less of their light to the image hardly change
SMALLEST_IMAGE = 1e-6  # of the mean: no division by zero
LARGEST_FALL = 0.1  # acceleration leaves a pixel this share: from 0 none would come back
KEPT_FOR_TRAINING = 0.9  # share of the photons, see `hold_out`
PATIENCE = 5  # iterations without a significant gain end the search
SIGNIFICANT_GAIN = 1.0  # in the log likelihood of the photons that were held out
MOST_ITERATIONS = 300  # of the automatic rule
ABSURD_ITERATIONS = 10_000


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
    tv: float
    acceleration: str | None
    level: float  # mean brightness, photons: the flat start and the scale of what is negligible


def richardson_lucy(
    image: torch.Tensor,
    blur: VariantBlur,
    iterations: int | str = "auto",
    background: float | torch.Tensor = 0.0,
    tv: float | str = "auto",
    acceleration: str | None = "momentum",
    caution: torch.Tensor | None = None,
    gain: float = 1.0,
    generator: torch.Generator | None = None,
) -> Restored:
    """Restore one image.

    Parameters
    ----------
    image : (H, W) tensor, camera offset taken off
    blur : operator for images of this shape; its device and type are used
    iterations : a count, or "auto": stop when photons that were held out are predicted best
        (`hold_out`), which takes twice the time per iteration
    background : out-of-focus light and dark counts that no object in the plane explains, in the
        unit of the image; scalar or (H, W)
    tv : weight of the total variation against the likelihood, 0 to 0.1; "auto" is
        0.09 / sqrt(mean photons per pixel), 0 is plain Richardson-Lucy
    acceleration : "momentum" (Nesterov's sequence (k - 1) / (k + 2), the same in every tile),
        "biggs" (Biggs & Andrews, Appl. Opt. 36, 1766 (1997)) or None. 10 and 20 accelerated
        iterations come as far as 20 and 70 plain ones, into the noise as well: use tv or "auto"
        with them. With tv, "momentum" converges and "biggs" brakes.
    caution : (H, W) tensor from 0 to 1, optional
        Share of the input in the result: 1 leaves a pixel as it is, for regions where nobody
        knows the PSF
    gain : units of the image per photon
    generator : on the CPU, of the photons that are held out; by default seeded with 0

    Raises
    ------
    InputError
        For an image that is negative, not finite, constant or of another shape than the blur's,
        a background as bright as the image, or settings out of range.
    """
    photons, background = check(image, blur, background, gain)
    check_settings(iterations, tv, acceleration)
    settings = settings_for(photons, background, tv, acceleration)
    with torch.no_grad():
        if iterations == "auto":
            restored = hold_out(photons, blur, settings, generator)
        else:
            restored = restore(photons, blur, settings, int(iterations))
    result = restored.image
    if caution is not None:
        result = blend(result, (photons - background).clamp(min=0), caution)
    return replace(restored, image=result * gain, expected=restored.expected * gain)


def restore(
    photons: torch.Tensor, blur: VariantBlur, settings: Settings, iterations: int
) -> Restored:
    """A fixed number of iterations on photons (H, W)."""
    steps = _steps(photons[None], blur, settings)
    # the forward image of the last one says how well it explains the data
    objects, expected = next(islice(steps, iterations, None))
    return _restored(objects, expected, photons, blur, settings, iterations)


def hold_out(
    photons: torch.Tensor,
    blur: VariantBlur,
    settings: Settings,
    generator: torch.Generator | None = None,
) -> Restored:
    """Iterate until a tenth of the photons, held out, is predicted best by the other nine.

    A binomial split of Poisson counts gives two independent images of the same object. One is
    restored beside the whole image and judged on the other; the whole image is taken from the
    iteration where this likelihood is highest. Behind the best iteration, which only the truth
    tells (the 24 images of TV_AT_ONE_PHOTON): 0.05 dB on average, 0.3 dB at most. A split in halves
    stops earlier (0.2 and 0.9 dB), the discrepancy principle, deviance = 1, earlier still (0.6 and
    1.5 dB).
    """
    generator = generator or torch.Generator().manual_seed(0)
    counts = photons.round().double().cpu()
    training = torch.binomial(counts, torch.full_like(counts, KEPT_FOR_TRAINING), generator)
    # as bright as the whole, so that background and weights are the same
    pair = torch.stack([photons, training.to(photons) / KEPT_FOR_TRAINING])
    held_out = (counts - training).to(photons)
    share = 1 - KEPT_FOR_TRAINING
    best, kept = -math.inf, None
    for count, (objects, expected) in enumerate(_steps(pair, blur, settings)):
        predicted = share * expected[1]
        score = float((held_out * predicted.log() - predicted).sum(dtype=torch.float64))
        if score > best + SIGNIFICANT_GAIN:
            best, kept = score, (count, objects[:1], expected[:1])
        if count - kept[0] >= PATIENCE or count >= MOST_ITERATIONS:
            break
    return _restored(kept[1], kept[2], photons, blur, settings, kept[0])


def _steps(
    photons: torch.Tensor, blur: VariantBlur, settings: Settings
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Objects on the field and the images expected of them, (N, ...), after 0, 1, 2... updates."""
    level, background = settings.level, settings.background
    unseen = (UNSEEN - blur.seen).clamp(min=0)  # draws the factor of such points to 1
    seen = blur.seen + unseen
    objects = torch.full_like(seen, level).expand(len(photons), -1, -1)
    momentum = Momentum(settings.acceleration)
    rounding = level * max(TV_ROUNDING, TV_ROUNDING_PER_TV * settings.tv)
    while True:
        start = momentum.ahead(objects)
        expected = (blur.forward(start) + background).clamp_(min=SMALLEST_IMAGE * level)
        yield objects, expected
        factor = blur.adjoint(photons / expected).add_(unseen).clamp_(min=0).div_(seen)
        if settings.tv:
            # weighted with `seen`, or the prior would take over beyond the borders
            bend = curvature(start, rounding).mul_(-settings.tv).add_(1)
            factor /= bend.clamp_(min=SMALLEST_DENOMINATOR)
        updated = factor.mul_(start)
        momentum.learn(objects, start, updated)
        objects = updated


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


def curvature(objects: torch.Tensor, rounding: float) -> torch.Tensor:
    """div(grad x / |grad x|) of (N, H, W), with |grad x| = sqrt(|grad x|^2 + rounding^2).

    Forward differences and their exact adjoint: minus the derivative of the total variation.
    """
    down, right = torch.zeros_like(objects), torch.zeros_like(objects)
    torch.sub(objects[:, 1:], objects[:, :-1], out=down[:, :-1])
    torch.sub(objects[..., 1:], objects[..., :-1], out=right[..., :-1])
    length = (down.square() + right.square() + rounding**2).sqrt_()
    down /= length
    right /= length
    total = down + right
    total[:, 1:] -= down[:, :-1]
    total[..., 1:] -= right[..., :-1]
    return total


def deviance_per_pixel(photons: torch.Tensor, expected: torch.Tensor) -> float:
    """Mean Poisson deviance; about 1 for counts above one photon around a true expectation."""
    misfit = torch.special.xlogy(photons, photons / expected) - photons + expected
    return 2 * float(misfit.mean(dtype=torch.float64))


def _restored(
    objects: torch.Tensor,
    expected: torch.Tensor,
    photons: torch.Tensor,
    blur: VariantBlur,
    settings: Settings,
    iterations: int,
) -> Restored:
    image = objects[0, *blur.image_part].clone()
    deviance = deviance_per_pixel(photons, expected[0])
    return Restored(image, iterations, settings.tv, deviance, expected[0].clone())


def blend(restored: torch.Tensor, plain: torch.Tensor, caution: torch.Tensor) -> torch.Tensor:
    """Share `caution` of the plain image.

    Afterwards and not within the iterations: a pixel held back there would push the light that it
    cannot explain into its neighbours.
    """
    if caution.shape != restored.shape:
        raise InputError(
            f"the caution weights have {' x '.join(map(str, caution.shape))} px, the image "
            f"{restored.shape[0]} x {restored.shape[1]} px."
        )
    if not ((caution >= 0) & (caution <= 1)).all():
        raise InputError("caution weights lie between 0 and 1.")
    return torch.lerp(restored, plain, caution.to(restored))


def settings_for(
    photons: torch.Tensor, background: torch.Tensor, tv: float | str, acceleration: str | None
) -> Settings:
    """Rules turned into numbers for one image."""
    mean = float(photons.mean())
    level = mean - float(background.mean())
    if level <= 0:
        raise InputError(
            f"the background is {float(background.mean()):g} photons, but the image has only "
            f"{mean:g} on average; give a lower background."
        )
    weight = min(TV_AT_ONE_PHOTON / math.sqrt(mean), LARGEST_TV) if tv == "auto" else float(tv)
    return Settings(background, weight, acceleration, level)


def check(
    image: torch.Tensor, blur: VariantBlur, background: float | torch.Tensor, gain: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Photons (H, W) and background, () or (H, W), in photons; refuses what is no image."""
    if tuple(image.shape) != blur.shape:
        raise InputError(
            f"the image has {' x '.join(map(str, image.shape))} px, the blur was made for "
            f"{blur.shape[0]} x {blur.shape[1]} px."
        )
    if not (math.isfinite(gain) and gain > 0):
        raise InputError(f"the gain is {gain:g}; give a positive number of counts per photon.")
    image = image.detach().to(blur.eigen_psfs)
    if not torch.isfinite(image).all():
        raise InputError("the image contains NaN or infinite pixels; repair or crop it first.")
    if (image < 0).any():
        raise InputError(
            f"the darkest pixel of the image is {float(image.min()):g}; subtract less of the "
            "camera's offset and give the rest as background."
        )
    if image.min() == image.max():
        raise InputError(f"all pixels of the image are {image[0, 0]:g}; there is nothing to see.")
    background = torch.as_tensor(background).to(image)
    if background.shape not in ((), image.shape):
        raise InputError("the background is one number or an image of the same shape.")
    if not torch.isfinite(background).all() or (background < 0).any():
        raise InputError("the background is negative or not finite; give 0 or more.")
    return image / gain, background / gain


def check_settings(iterations: int | str, tv: float | str, acceleration: str | None) -> None:
    """Refuse settings that cannot be meant."""
    if isinstance(iterations, str):
        if iterations != "auto":
            raise InputError(f"iterations is '{iterations}'; give a count or 'auto'.")
    elif not 1 <= iterations <= ABSURD_ITERATIONS or iterations != int(iterations):
        raise InputError(f"{iterations} iterations; give a count from 1 to {ABSURD_ITERATIONS}.")
    if isinstance(tv, str):
        if tv != "auto":
            raise InputError(f"tv is '{tv}'; give a number or 'auto'.")
    elif not 0 <= tv <= LARGEST_TV:
        raise InputError(f"tv is {tv:g}; give a number from 0 to {LARGEST_TV:g}.")
    if acceleration is not None and acceleration not in ACCELERATIONS:
        names = ", ".join(ACCELERATIONS)
        raise InputError(f"unknown acceleration '{acceleration}'; choose one of {names}, or none.")
