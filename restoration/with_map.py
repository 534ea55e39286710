"""From a map of PSF parameters to the blur that is undone, and where to be careful with it."""

from dataclasses import replace

import torch
from scipy.ndimage import gaussian_filter

from models.mapping import PsfMap
from psf.errors import InputError
from restoration.blur_map import at_pixels, blur_of_map, support_px
from restoration.iteration import Restored
from restoration.narrowing import refine, scaled
from restoration.richardson_lucy import (
    blend,
    check,
    check_settings,
    richardson_lucy,
    richardson_lucy_tiled,
    settle,
    tiles,
)
from restoration.variant_blur import VariantBlur, psf_grid_from_map

REFINED_PX = 1024**2  # of the largest image whose map is refined unasked
WHOLE_PX = 1536**2  # pixels of the largest image that is restored in one piece
TILE = 1024
MISFIT_WIDTH_PX = 16.0  # of the Gaussian that squared residuals are averaged with
MISFIT_ALLOWED = 1.25  # of the typical one; true maps stay below 1.16
DARKEST = 0.05  # of the mean brightness: read noise prevails in what is darker
RETREAT, RETREATS = 0.6, 4  # factor on the labels of a PSF that is too wide, and how often
RETREAT_TILE = 512  # px, edge of what is restored again
# Of the labels where nothing is known of the PSF: one that is too narrow does less harm than one
# that is too wide. Against 0, 0.4, 0.6 and leaving the blur there, on three images of validation
NARROWED = 0.2


def doubt_of_map(psf_map: PsfMap, shape: tuple[int, int]) -> torch.Tensor:
    """How unsure the PSF is at each place of the map, (R, C), from 0 to 1.

    |h(v + s) - h(v - s)| / (2 |h(v)|) in the parameter whose standard deviation s matters most, to
    the fourth power, since moderate errors of the PSF do little harm.
    """
    model, microscope, values = psf_map.model, psf_map.microscope, psf_map.values
    deviations = psf_map.standard_deviations
    widest = replace(psf_map, values=torch.cat([values + deviations, values - deviations], 1))
    size = support_px(widest, min(shape))
    plain = psf_grid_from_map(model, values, microscope, size)
    norm = plain.flatten(2).norm(dim=2)
    doubts = []
    for p in range(len(values)):
        shift = torch.zeros_like(values)
        shift[p] = psf_map.standard_deviations[p]
        above, below = (
            psf_grid_from_map(model, values + sign * shift, microscope, size) for sign in (1, -1)
        )
        doubts.append((above - below).flatten(2).norm(dim=2) / (2 * norm))
    return torch.stack(doubts).amax(0).clamp(0, 1) ** 4


def misfit_of(image: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Local misfit (H, W) of what a restoration expects of an image, 1 where it is typical.

    Squared residuals over their variance under Poisson noise, averaged over the surroundings and
    divided by the median of the field, so that no gain has to be known. A PSF that is too wide
    cannot make the detail of a sharp image and leaves it in the residuals; one that is too narrow
    fits everything, noise included.
    """
    variance = expected + DARKEST * expected.mean()
    shares = ((image.to(expected) - expected).square() / variance).cpu().numpy()
    local = torch.from_numpy(gaussian_filter(shares, MISFIT_WIDTH_PX))
    return local / local.median().clamp(min=torch.finfo(local.dtype).tiny)


def sharpened(psf_map: PsfMap, misfit: torch.Tensor) -> PsfMap | None:
    """The map with narrower PSFs where they misfit (H, W); None where none does."""
    places = (
        x.round().long().clamp(0, n - 1)
        for x, n in zip((psf_map.rows, psf_map.columns), misfit.shape, strict=True)
    )
    rows, columns = places
    too_wide = misfit[rows[:, None], columns] > MISFIT_ALLOWED
    too_wide &= psf_map.values.abs().amax(0) > 0
    if not too_wide.any():
        return None
    values = torch.where(too_wide, RETREAT * psf_map.values, psf_map.values)
    return replace(psf_map, values=values)


def restore_with_map(
    image: torch.Tensor,
    psf_map: PsfMap,
    iterations: int | str = "auto",
    background: float = 0.0,
    tv: float | str = "auto",
    gain: float = 1.0,
    cautious: bool = True,
    refined: bool | None = None,
) -> tuple[Restored, VariantBlur]:
    """Restore an image (H, W) with the map of its PSF; large ones tile by tile.

    Parameters
    ----------
    image : (H, W) tensor, camera offset taken off, not negative
    iterations, background, tv, gain : as for `restoration.richardson_lucy.richardson_lucy`
    cautious : narrow the PSFs where they are uncertain, see `doubt_of_map`, or too wide for the
        image, see `misfit_of`, and take off noise only where the map found no content
    refined : scale the map first to what the image says, see `restoration.narrowing`, in
        several times the time; by default where `cautious` is set and the image has up to
        1024 x 1024 px

    Returns
    -------
    Restored, in the unit of the input, and the operator that was undone.

    Raises
    ------
    InputError
        As `richardson_lucy`.
    """
    shape = (image.shape[0], image.shape[1])
    if psf_map.rows[-1] >= shape[0] or psf_map.columns[-1] >= shape[1]:
        raise InputError(
            f"the map reaches to pixel {float(psf_map.rows[-1]):.0f}, "
            f"{float(psf_map.columns[-1]):.0f}, the image has {shape[0]} x {shape[1]} px; give "
            "the map of this image."
        )
    settings = {"background": background, "gain": gain}
    if refined or (refined is None and cautious and image.numel() <= REFINED_PX):
        blur = blur_of_map(psf_map, shape)
        photons, behind = check(image, blur, background, gain)
        check_settings(iterations, tv, "momentum")
        with torch.no_grad():
            chosen, count = settle(photons, blur, behind, iterations, tv, "momentum")
            better = refine(photons, psf_map, chosen, count)
        if better is psf_map:  # what was chosen for it still holds
            iterations, tv = count, chosen.tv
        psf_map = better
    if cautious:
        psf_map = scaled(psf_map, 1 - NARROWED * doubt_of_map(psf_map, shape))
    blur = blur_of_map(psf_map, shape)
    if image.numel() > WHOLE_PX:
        restored = richardson_lucy_tiled(image, blur, iterations, tv=tv, tile=TILE, **settings)
    else:
        restored = richardson_lucy(image, blur, iterations, tv=tv, **settings)
    if not cautious:
        return restored, blur
    settings |= {"iterations": restored.iterations, "tv": restored.tv}
    for _ in range(RETREATS):
        narrower = sharpened(psf_map, misfit_of(image, restored.expected))
        if narrower is None:
            break
        changed = (narrower.values != psf_map.values).any(0).to(image)
        touched = at_pixels(changed, psf_map, shape) > 0
        parts = [part for part in tiles(shape, RETREAT_TILE) if touched[part].any()]
        psf_map, blur = narrower, blur_of_map(narrower, shape)
        restored = richardson_lucy_tiled(
            image, blur, tile=RETREAT_TILE, only=parts, before=restored, **settings
        )
    blank = (psf_map.content < 0.5).float()
    if blank.any():
        share = at_pixels(blank, psf_map, shape).clamp(0, 1)
        point = VariantBlur.from_psf(restored.image.new_ones(1, 1), shape)
        denoised = richardson_lucy(image, point, **settings).image
        restored = replace(restored, image=blend(restored.image, denoised, share))
    return restored, blur
