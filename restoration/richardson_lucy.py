"""Richardson-Lucy restoration under a blur that varies over the field.

The object is estimated on the extended field of `restoration.variant_blur`, so that the borders of
the image need no treatment. The iteration is that of `restoration.iteration`, and
`restoration.stopping` says when it ends. Images are photons per pixel; large ones are restored tile
by tile.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from tqdm import tqdm

from psf.errors import InputError
from restoration.iteration import LARGEST_TV, Restored, Settings, deviance_per_pixel, restore
from restoration.stopping import choose
from restoration.variant_blur import VariantBlur

ACCELERATIONS = ("momentum", "biggs")
# At the mean brightness. A search begins with the first, which suits smooth objects; of fixed
# weights the second is best at 1000 photons per pixel and 0.1 dB behind the first at 100
# (photographs and procedural objects of the validation split)
SMOOTHEST_TV_AT_ONE_PHOTON, TYPICAL_TV_AT_ONE_PHOTON = 0.09, 0.045
ABSURD_ITERATIONS = 10_000
FEWEST_SHOWN = 8  # tiles that get a progress bar


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
        `restoration.stopping`
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


def richardson_lucy_tiled(
    image: torch.Tensor,
    blur: VariantBlur,
    iterations: int | str = "auto",
    background: float = 0.0,
    tv: float | str = "auto",
    acceleration: str | None = "momentum",
    gain: float = 1.0,
    tile: int = 1024,
    overlap: int | None = None,
    generator: torch.Generator | None = None,
    only: Sequence[tuple[slice, slice]] | None = None,
    before: Restored | None = None,
) -> Restored:
    """Restore an image in tiles; arguments as `restoration.richardson_lucy.richardson_lucy`.

    Each tile is restored with a margin of real image around it, which is then cut off. What lies
    beyond the margin is estimated, as it is beyond the borders of the image, so that tiles agree
    with the whole without blending.

    Parameters
    ----------
    blur : operator of the whole image, `VariantBlur.from_psfs`; its weights are made tile by tile
    iterations, tv : "auto" finds them for the whole image, from a few windows
    acceleration : "momentum" or None; "biggs" would go another way in every tile
    tile : edge of what is kept of a tile, pixels
    overlap : width of the margin, pixels; by default the size of the PSF (1e-6 after 20
        iterations; rounding in float32 makes 1e-4)

    only, before : tiles to restore, and the result that keeps the other places

    Raises
    ------
    InputError
        As `richardson_lucy`; also for a tile or margin below one pixel.
    """
    photons, background = check(image, blur, background, gain)
    check_settings(iterations, tv, acceleration)
    if acceleration == "biggs":
        raise InputError("acceleration 'biggs' differs from tile to tile; use 'momentum'.")
    overlap = blur.psf_size if overlap is None else overlap
    if tile < 1 or overlap < 1:
        raise InputError(f"tiles of {tile} px with margins of {overlap} px; give at least 1.")
    if background.ndim:
        raise InputError("in tiles, the background is one number.")
    inner = list(tiles(blur.shape, tile)) if only is None else only
    with torch.no_grad():
        settings, count = settle(photons, blur, background, iterations, tv, acceleration, generator)
        if before is None:
            result, expected = torch.empty_like(photons), torch.empty_like(photons)
        else:
            result, expected = before.image / gain, before.expected / gain
        for kept in tqdm(inner, desc="tiles", disable=len(inner) < FEWEST_SHOWN, leave=False):
            part = _grown(kept, overlap, blur)
            found = restore(photons[part], _window(blur, part), settings, count)
            inside = tuple(
                slice(k.start - p.start, k.stop - p.start) for k, p in zip(kept, part, strict=True)
            )
            result[kept], expected[kept] = found.image[inside], found.expected[inside]
        deviance = deviance_per_pixel(photons, expected)
    return Restored(result * gain, count, settings.tv, deviance, expected * gain)


def tiles(shape: tuple[int, int], edge: int) -> Iterator[tuple[slice, slice]]:
    """Tiles that cover an image (H, W), as equal as whole pixels allow, none above `edge`."""
    lines = []
    for length in shape:
        count = -(-length // edge)
        ends = [length * i // count for i in range(count + 1)]
        lines.append([slice(a, b) for a, b in pairwise(ends)])
    for rows in lines[0]:
        for columns in lines[1]:
            yield rows, columns


def _grown(part: tuple[slice, slice], margin: int, blur: VariantBlur) -> tuple[slice, slice]:
    """A tile with its margin, inside the image, at least as large as the PSF."""
    grown = []
    for line, length in zip(part, blur.shape, strict=True):
        missing = max(0, blur.psf_size - (line.stop - line.start) - margin)
        reach = max(margin, missing)
        grown.append(slice(max(0, line.start - reach), min(length, line.stop + reach)))
    return grown[0], grown[1]


def _window(blur: VariantBlur, part: tuple[slice, slice]) -> VariantBlur:
    rows, columns = part
    shape = rows.stop - rows.start, columns.stop - columns.start
    return blur.window(rows.start, columns.start, shape)
