"""Restoration tile by tile, of images whose fields and weights do not fit in memory."""

from collections.abc import Iterator
from itertools import pairwise

import torch

from psf.deconvolution import Restored, check, check_settings, hold_out, restore, settings_for
from psf.errors import InputError
from psf.variant import VariantBlur


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
) -> Restored:
    """Restore an image in tiles; arguments as `psf.deconvolution.richardson_lucy`.

    Each tile is restored with a margin of real image around it, which is then cut off. What lies
    beyond the margin is estimated, as it is beyond the borders of the image, so that tiles agree
    with the whole without blending.

    Parameters
    ----------
    blur : operator of the whole image, `VariantBlur.from_psfs`; its weights are made tile by tile
    iterations : "auto" finds the count on the tile with the highest contrast
    acceleration : "momentum" or None; "biggs" would go another way in every tile
    tile : edge of what is kept of a tile, pixels
    overlap : width of the margin, pixels; by default the size of the PSF (1e-6 after 20
        iterations; rounding in float32 makes 1e-4)

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
    settings = settings_for(photons, background, tv, acceleration)
    inner = list(tiles(blur.shape, tile))
    outer = [_grown(part, overlap, blur) for part in inner]
    with torch.no_grad():
        if iterations == "auto":
            contrasts = [float(photons[part].var()) for part in outer]
            part = outer[contrasts.index(max(contrasts))]
            iterations = hold_out(
                photons[part], _window(blur, part), settings, generator
            ).iterations
        result, expected, misfit = torch.empty_like(photons), torch.empty_like(photons), 0.0
        for kept, part in zip(inner, outer, strict=True):
            found = restore(photons[part], _window(blur, part), settings, int(iterations))
            inside = tuple(
                slice(k.start - p.start, k.stop - p.start) for k, p in zip(kept, part, strict=True)
            )
            result[kept], expected[kept] = found.image[inside], found.expected[inside]
            misfit += found.deviance * photons[kept].numel() / photons.numel()
    return Restored(result * gain, int(iterations), settings.tv, misfit, expected * gain)


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
