"""Richardson-Lucy restoration under a PSF that varies over the field, whole or tile by tile.

The object is estimated on the extended field of `restoration.variant_blur`, so that the borders of
the image need no treatment. `restoration.iteration` holds the iteration and `restoration.stopping`
the rule that ends it.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise

import torch
from tqdm import tqdm

from micrographs.neighbours import fill_outliers, large_regions
from psf.errors import InputError
from restoration.iteration import LARGEST_TV, Restored, Settings, deviance_per_pixel, restore
from restoration.stopping import choose
from restoration.tile_jobs import Part, Work, restored_parts
from restoration.variant_blur import VariantBlur

# Nesterov's sequence (k - 1) / (k + 2), the same in every tile, and Biggs & Andrews, Appl. Opt. 36,
# 1766 (1997). 10 and 20 accelerated iterations come as far as 20 and 70 plain ones and amplify as
# much noise, so use them with total variation or automatic iterations. With total variation
# "momentum" converges and "biggs" is slower.
ACCELERATIONS = ("momentum", "biggs")
# Weights of total variation times sqrt(mean photons). The search begins with the first, which suits
# smooth objects. A given count of iterations takes the second: of 0.09 and its half, quarter and
# eighth it gains most on the validation images at 1000 photons per pixel (4.04 dB), and is 0.1 dB
# behind 0.09 at 100.
SMOOTHEST_TV_AT_ONE_PHOTON, TYPICAL_TV_AT_ONE_PHOTON = 0.09, 0.045
MOST_ITERATIONS = 10_000  # a larger count is taken for a typing mistake
LEAST_MARGIN = 64  # px around a tile
ALIGNED = 4  # px: tiles begin at multiples, as the folded images of the learned restoration do
FEWEST_SHOWN = 8  # tiles that get a progress bar


def richardson_lucy(
    image: torch.Tensor,
    blur: VariantBlur,
    iterations: int | str = "auto",
    background: float | torch.Tensor = 0.0,
    tv: float | str = "auto",
    acceleration: str | None = "momentum",
    gain: float = 1.0,
    generator: torch.Generator | None = None,
    tile: int | None = None,
    overlap: int | None = None,
    usable: torch.Tensor | None = None,
) -> Restored:
    """Restored image, in the unit of the input.

    Parameters
    ----------
    image : (H, W) tensor, camera offset taken off
    blur : operator for images of this shape; the work is done on its device, in its type
    iterations : a count, or "auto": the count that predicts held-out photons best, see
        `restoration.stopping`. If none is better than a uniform image, the input comes back with
        a note.
    background : out-of-focus light and dark counts, which do not come from the object in focus, in
        the unit of the image; a number or (H, W)
    tv : weight of total variation against the likelihood at the mean brightness, 0 to 0.1. "auto"
        with automatic iterations: chosen like them, between 0.09 and 0.006 / sqrt(mean photons per
        pixel); with a count: 0.045 / sqrt(mean). 0 is plain Richardson-Lucy.
    acceleration : one of `ACCELERATIONS`, or None
    gain : units of the image per photon
    generator : of the held-out photons, on the CPU; by default seeded with 0
    tile : edge of the tiles, pixels, that bounds the memory; by default the image is one piece
    overlap : width of the margin around a tile, pixels; by default the size of the PSF, with which
        tiles and whole differ by 1e-6 after 20 iterations (1e-4 by the rounding of float32)
    usable : (H, W) bool, by default all pixels. Other pixels have weight 0. The result shows the
        estimate from their neighbours, and the input in `micrographs.neighbours.large_regions`.

    Raises
    ------
    InputError
        For an image that is negative, not finite, constant or of another shape than the blur's,
        a background as bright as the image, or settings out of range.
    """
    photons, background = check_image(image, background, gain, blur.shape, blur.eigen_psfs, usable)
    check_restoration(iterations, tv, acceleration)
    margin = blur.psf_size if overlap is None else overlap
    if tile is not None:
        check_tiles(tile, margin, acceleration)
    with torch.no_grad():
        rules = (iterations, tv, acceleration, generator)
        settings, count = settle(photons, blur, background, *rules, usable=usable)
        if tile is None:
            restored = restore(photons, blur, settings, count)
        else:
            parts = list(tiles(blur.shape, tile))
            work = partial(restore, iterations=count)
            restored = restore_tiles(photons, blur, settings, work, parts, margin)
    return keep_regions(in_unit(restored, gain), image, gain * background, usable)


def settle(
    photons: torch.Tensor,
    blur: VariantBlur,
    background: torch.Tensor,
    iterations: int | str,
    tv: float | str,
    acceleration: str | None,
    generator: torch.Generator | None = None,
    usable: torch.Tensor | None = None,
) -> tuple[Settings, int]:
    """Settings as numbers and the count of iterations, for rules such as "auto".

    The count is 0 where no automatic count improves the image, see `restoration.stopping.choose`.
    """
    usable = None if usable is None else usable.to(photons.device)
    mean = float(photons.mean() if usable is None else photons[usable].mean())
    level = mean - float(background.mean())
    if level <= 0:
        raise InputError(
            f"the background is {float(background.mean()):g} photons, but the image has only "
            f"{mean:g} on average; give a lower background."
        )
    automatic = iterations == "auto"
    at_one = SMOOTHEST_TV_AT_ONE_PHOTON if automatic else TYPICAL_TV_AT_ONE_PHOTON
    weight = min(at_one / math.sqrt(mean), LARGEST_TV) if tv == "auto" else float(tv)
    settings = Settings(background, weight, acceleration, mean, level, usable)
    if not automatic:
        return settings, int(iterations)
    choice = choose(photons, blur, settings, tv == "auto", generator)
    if choice is None:
        return settings, 0
    return replace(settings, tv=choice.tv), choice.iterations


def restore_tiles(
    photons: torch.Tensor,
    blur: VariantBlur,
    settings: Settings,
    work: Work,
    parts: Sequence[tuple[slice, slice]],
    margin: int | None = None,
    before: Restored | None = None,
) -> Restored:
    """Restoration of photons (H, W) in the tiles `parts`; other places are those of `before`.

    `work` restores each tile with a margin of the image around it, which is cut off afterwards. It
    has by default the size of the PSF and at least 64 px, as far as the learned restoration sees.
    Outside the margin the object is estimated, as it is outside the image, so that tiles agree with
    the whole without blending. A `ClusterWork` has the tiles restored on its cluster.
    """
    margin = max(blur.psf_size, LEAST_MARGIN) if margin is None else margin
    if before is None:
        image, expected = torch.empty_like(photons), torch.empty_like(photons)
    else:
        image, expected = before.image.clone(), before.expected.clone()
    grown = [_grown(kept, margin, blur) for kept in parts]
    pairs = [(part, _inside(kept, part)) for kept, part in zip(parts, grown, strict=True)]
    done = restored_parts(photons, blur, settings, work, pairs)
    with tqdm(
        desc="tiles", total=len(parts), disable=len(parts) < FEWEST_SHOWN, leave=False
    ) as bar:
        for number, found in done:
            image[parts[number]], expected[parts[number]] = found.image, found.expected
            bar.update()
    deviance = deviance_per_pixel(photons, expected, settings.usable)
    return replace(found, image=image, expected=expected, deviance=deviance)


def tiles(shape: tuple[int, int], edge: int) -> Iterator[tuple[slice, slice]]:
    """Tiles that cover an image (H, W) once, of nearly equal size, none above `edge` pixels."""
    lines = []
    for length in shape:
        count = -(-length // edge)
        ends = [length * i // count for i in range(count + 1)]
        lines.append([slice(a, b) for a, b in pairwise(ends)])
    for rows in lines[0]:
        for columns in lines[1]:
            yield rows, columns


def in_unit(restored: Restored, gain: float) -> Restored:
    """A restoration in photons, converted to units of which `gain` make one photon."""
    return replace(restored, image=restored.image * gain, expected=restored.expected * gain)


def keep_regions(
    restored: Restored,
    image: torch.Tensor,
    background: torch.Tensor,
    usable: torch.Tensor | None,
) -> Restored:
    """The restoration with the input in large regions without usable pixels; all in one unit."""
    if usable is None:
        return restored
    region = large_regions(usable).to(restored.image.device)
    kept = (image.to(restored.image) - background).clamp(min=0)
    return replace(restored, image=torch.where(region, kept, restored.image))


def check_image(
    image: torch.Tensor,
    background: float | torch.Tensor,
    gain: float,
    shape: tuple[int, int],
    like: torch.Tensor,
    usable: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Photons (H, W) and background, () or (H, W), in photons, in the type and place of `like`.

    Pixels that are not usable come back with the median of their usable neighbours.

    Raises
    ------
    InputError
        If the image has another shape or cannot be restored, no pixel is usable, or gain or
        background are not valid.
    """
    if tuple(image.shape) != shape:
        raise InputError(
            f"the image has {' x '.join(map(str, image.shape))} px, the blur was made for "
            f"{shape[0]} x {shape[1]} px; give the blur of this image."
        )
    if not (math.isfinite(gain) and gain > 0):
        raise InputError(f"the gain is {gain:g}; give a positive number of counts per photon.")
    image = image.detach().to(like)
    if usable is not None:
        if not usable.any():
            raise InputError("no pixel of the image is usable; record the image again.")
        image = fill_outliers(image, usable.to(image.device))
    if not torch.isfinite(image).all():
        raise InputError("the image contains NaN or infinite pixels; repair or crop it first.")
    if (image < 0).any():
        raise InputError(
            f"the darkest pixel of the image is {float(image.min()):g}; subtract less of the "
            "camera's offset and give the rest as background."
        )
    if image.min() == image.max():
        raise InputError(
            f"all pixels of the image are {float(image.max()):g}; give an image with structure."
        )
    background = torch.as_tensor(background).to(image)
    if background.shape not in ((), image.shape):
        raise InputError(
            f"the background has shape {tuple(background.shape)}; give one number or an image of "
            "the same shape."
        )
    if not torch.isfinite(background).all() or (background < 0).any():
        raise InputError("the background is negative or not finite; give 0 or more.")
    return image / gain, background / gain


def check_restoration(iterations: int | str, tv: float | str, acceleration: str | None) -> None:
    """Refuse iterations, weights or accelerations that no restoration can have."""
    if isinstance(iterations, str):
        if iterations != "auto":
            raise InputError(f"iterations is '{iterations}'; give a count or 'auto'.")
    elif not 1 <= iterations <= MOST_ITERATIONS or iterations != int(iterations):
        raise InputError(f"{iterations} iterations; give a count from 1 to {MOST_ITERATIONS}.")
    if isinstance(tv, str):
        if tv != "auto":
            raise InputError(f"tv is '{tv}'; give a number or 'auto'.")
    elif not 0 <= tv <= LARGEST_TV:
        raise InputError(f"tv is {tv:g}; give a number from 0 to {LARGEST_TV:g}.")
    if acceleration is not None and acceleration not in ACCELERATIONS:
        names = ", ".join(ACCELERATIONS)
        raise InputError(f"unknown acceleration '{acceleration}'; choose one of {names}, or none.")


def check_tiles(tile: int, margin: int, acceleration: str | None) -> None:
    """Refuse tiles without pixels, and an acceleration that would differ from tile to tile."""
    if tile < 1 or margin < 1:
        raise InputError(f"tiles of {tile} px with margins of {margin} px; give at least 1.")
    if acceleration == "biggs":
        raise InputError("acceleration 'biggs' differs from tile to tile; use 'momentum'.")


def _grown(part: tuple[slice, slice], margin: int, blur: VariantBlur) -> tuple[slice, slice]:
    """A tile with its margin inside the image, at least as large as the PSF."""
    grown = []
    for line, length in zip(part, blur.shape, strict=True):
        missing = max(0, blur.psf_size - (line.stop - line.start) - margin)
        reach = max(margin, missing)
        first = max(0, line.start - reach)
        grown.append(slice(first - first % ALIGNED, min(length, line.stop + reach)))
    return grown[0], grown[1]


def _inside(kept: Part, part: Part) -> Part:
    """Where a tile lies in its part of the image."""
    rows, columns = (
        slice(k.start - p.start, k.stop - p.start) for k, p in zip(kept, part, strict=True)
    )
    return rows, columns
