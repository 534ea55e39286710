"""Restoration tile by tile, of images whose fields and weights do not fit in memory."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from tqdm import tqdm

from psf.deconvolution import check, check_settings, settle
from psf.errors import InputError
from psf.iteration import Restored, deviance_per_pixel, restore
from psf.variant import VariantBlur

FEWEST_SHOWN = 8  # tiles that get a progress bar


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
    """Restore an image in tiles; arguments as `psf.deconvolution.richardson_lucy`.

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
