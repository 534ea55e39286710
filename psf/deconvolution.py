"""Richardson-Lucy restoration under a blur that varies over the field.

The object is estimated on the extended field of `psf.variant`, so that image borders need no
treatment; the iteration is that of `psf.iteration`, stopped as `psf.held_out` advises. Images are
photons per pixel.
"""

import math
from dataclasses import replace

import torch

from psf.errors import InputError
from psf.held_out import choose
from psf.iteration import LARGEST_TV, Restored, Settings, restore
from psf.variant import VariantBlur

ACCELERATIONS = ("momentum", "biggs")
# At the mean brightness. A search begins with the first, which suits smooth objects; of fixed
# weights the second is best at 1000 photons per pixel and 0.1 dB behind the first at 100
# (photographs and procedural objects of the validation split)
SMOOTHEST_TV_AT_ONE_PHOTON, TYPICAL_TV_AT_ONE_PHOTON = 0.09, 0.045
ABSURD_ITERATIONS = 10_000


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
    iterations : a count, or "auto": stop when photons that were held out are predicted best, see
        `psf.held_out`
    background : out-of-focus light and dark counts that no object in the plane explains, in the
        unit of the image; scalar or (H, W)
    tv : weight of the total variation against the likelihood at the mean brightness, 0 to 0.1.
        "auto" with automatic iterations is found like them, between 0.09 and 0.006 / sqrt(mean
        photons per pixel); with a count it is 0.045 / sqrt(mean). 0 is plain Richardson-Lucy
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
    with torch.no_grad():
        settings, count = settle(photons, blur, background, iterations, tv, acceleration, generator)
        restored = restore(photons, blur, settings, count)
    result = restored.image
    if caution is not None:
        result = blend(result, (photons - background).clamp(min=0), caution)
    return replace(restored, image=result * gain, expected=restored.expected * gain)


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


def settle(
    photons: torch.Tensor,
    blur: VariantBlur,
    background: torch.Tensor,
    iterations: int | str,
    tv: float | str,
    acceleration: str | None,
    generator: torch.Generator | None = None,
) -> tuple[Settings, int]:
    """Rules turned into numbers for one image: settings and iterations."""
    mean = float(photons.mean())
    level = mean - float(background.mean())
    if level <= 0:
        raise InputError(
            f"the background is {float(background.mean()):g} photons, but the image has only "
            f"{mean:g} on average; give a lower background."
        )
    automatic = iterations == "auto"
    at_one = SMOOTHEST_TV_AT_ONE_PHOTON if automatic else TYPICAL_TV_AT_ONE_PHOTON
    weight = min(at_one / math.sqrt(mean), LARGEST_TV) if tv == "auto" else float(tv)
    settings = Settings(background, weight, acceleration, mean, level)
    if not automatic:
        return settings, int(iterations)
    choice = choose(photons, blur, settings, tv == "auto", generator)
    return replace(settings, tv=choice.tv), choice.iterations


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
