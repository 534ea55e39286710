"""Restoration of an image with the map of its PSF, with care where the map may be wrong."""

from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from micrographs.camera import estimate_camera
from models.mapping import PsfMap
from psf.errors import InputError
from restoration.blur_map import at_pixels, blur_of_map, map_on, support_px
from restoration.correction import corrected_map, scaled
from restoration.fit import BAD_FROM, DARKEST, INPUT_FROM, NOISE_ALLOWED, Fit, judge
from restoration.iteration import Restored, Settings, restore
from restoration.learned import Prior, load_prior
from restoration.prior_choice import learned_is_better
from restoration.richardson_lucy import (
    Work,
    check_image,
    check_restoration,
    in_unit,
    keep_regions,
    restore_tiles,
    settle,
    tiles,
)
from restoration.unrolled import START_STEPS
from restoration.variant_blur import VariantBlur, psf_grid_from_map

PriorName = Literal["auto", "tv", "learned"]
ACCELERATION = "momentum"  # gives the same result in tiles as in one piece
SCALED_PX = 1024**2  # pixels of the largest image whose map is scaled by default: bounds the time
WHOLE_PX = 1536**2  # pixels of the largest image that is restored in one piece: bounds the memory
TILE = 1024  # px, edge of the tiles of a larger image
MISFIT_ALLOWED = 1.25  # times that of the field; under true maps it stays below 1.16
MISFIT_FACTOR, MISFIT_ROUNDS = 0.6, 4  # factor on the labels where the PSF is too large; how often
MISFIT_TILE = 512  # px, edge of the tiles that are restored again
# Local strength of the residuals of a processed image: width of the Gaussian, and the share of the
# field that is quiet. Of 2 and 4 px, 2 gives sharp simulated images up to 0.2 dB more.
RESIDUAL_WIDTH_PX, RESIDUAL_QUIET = 2.0, 0.35
# Share by which labels are lowered where the PSF is most uncertain, since a PSF that is too small
# does less harm than one that is too large. Chosen among 0, 0.2, 0.4, 0.6 and denoising alone, on
# three validation images at 100 photons per pixel.
LOWERED_WHERE_UNCERTAIN = 0.2


@torch.no_grad()
def restore_with_map(
    image: torch.Tensor,
    psf_map: PsfMap,
    iterations: int | str = "auto",
    background: float = 0.0,
    tv: float | str = "auto",
    gain: float = 1.0,
    cautious: bool = True,
    refined: bool | None = None,
    usable: torch.Tensor | None = None,
    white_noise: bool = True,
    prior: PriorName = "auto",
    learned: Prior | None = None,
) -> tuple[Restored, VariantBlur]:
    """Restored image, in the unit of the input, and the operator that was inverted.

    The work is done on the device of the image, tile by tile if the image is large. If the image is
    noisier than photon noise of this gain, a cautious automatic restoration is repeated with the
    gain of its noise, and its `fit` says so.

    Parameters
    ----------
    image : (H, W) tensor, camera offset taken off, not negative
    iterations, background, tv, gain, usable : as for `restoration.richardson_lucy.richardson_lucy`
    cautious : use smaller PSFs where the map is uncertain (`psf_uncertainty`) or the PSF too large
        for the image (`restoration.fit`), and only denoise where the map found no content
    refined : correct the map first (`restoration.correction`); by default if `cautious` is set and
        the image has at most 1024 x 1024 px
    white_noise : False for registered, denoised or compressed images. They get back what the
        restoration cannot explain, see `return_residuals`.
    prior : what is assumed of objects: total variation, or what a network learned of microscope
        objects (`restoration.unrolled`); by default the one that predicts held-out photons better,
        and total variation if its weight or the iterations are given
    learned : the learned prior; by default the one that comes with the project

    Raises
    ------
    InputError
        As `richardson_lucy`, and if the map reaches outside the image.
    """
    shape = (image.shape[0], image.shape[1])
    check_map_fits(psf_map, shape)
    psf_map = map_on(psf_map, image.device)
    rules = (iterations, tv, ACCELERATION)
    check_restoration(*rules)
    learned = prior_to_try(prior, learned, rules)
    if refined is None:
        refined = cautious and image.numel() <= SCALED_PX
    may_fall_back = cautious and iterations == "auto"  # a given count is what the user wants to see
    used = gain
    for is_last in (False, True):
        photons, behind = check_image(image, background, used, shape, psf_map.values, usable)
        choice = (prior, learned)
        restored, blur = _restore(
            photons, behind, psf_map, rules, cautious, refined, usable, choice
        )
        if not restored.iterations:  # the image is the input
            return keep_regions(in_unit(restored, used), image, used * behind, usable), blur
        fit = judge(photons, restored.expected, usable)
        better = noise_gain(image, usable) if fit.noise > NOISE_ALLOWED else 0.0
        if is_last or not may_fall_back or better < NOISE_ALLOWED * used:
            break
        used = better
    if may_fall_back:
        restored = fade_bad_places(photons - behind, restored, fit)
    if not white_noise:
        restored = return_residuals(photons, restored, fit)
    restored = replace(restored, fit=replace(fit, gain=used, faded=may_fall_back))
    return keep_regions(in_unit(restored, used), image, used * behind, usable), blur


def noise_gain(image: torch.Tensor, usable: torch.Tensor | None) -> float:
    """Gain with which photon noise is as strong as the noise of an image; 0 if it shows none."""
    usable = None if usable is None else usable.cpu()
    return estimate_camera(image.cpu(), usable, offset_counts=0.0).gain_counts_per_e or 0.0


def prior_to_try(prior: PriorName, learned: Prior | None, rules: tuple) -> Prior | None:
    """The learned prior where it may be used, else None.

    Raises
    ------
    InputError
        If the learned prior is asked for together with a setting of total variation.
    """
    by_hand = rules[:2] != ("auto", "auto")
    if prior == "learned" and by_hand:
        raise InputError(
            "the learned prior has no weight of total variation and a fixed number of iterations; "
            "leave --tv and --iterations out, or give --prior tv."
        )
    if prior == "tv" or by_hand:
        return None
    return learned or load_prior()


def _restore(
    photons: torch.Tensor,
    behind: torch.Tensor,
    psf_map: PsfMap,
    rules: tuple,
    cautious: bool,
    refined: bool,
    usable: torch.Tensor | None,
    choice: tuple[PriorName, Prior | None],
) -> tuple[Restored, VariantBlur]:
    """Restoration of photons (H, W) with a background, and the operator that was inverted."""
    shape = (photons.shape[0], photons.shape[1])
    if refined:
        psf_map = corrected_map(photons, psf_map, behind, usable)
    prior, learned = choice
    if learned is not None:
        blur = blur_of_map(psf_map, shape)
        settings = learned_settings(photons, blur, behind, psf_map, usable)
        if prior == "learned" or learned_is_better(photons, blur, settings, learned.restore):
            return _finish(photons, psf_map, blur, settings, learned.restore, cautious)
    if cautious:
        lowered = LOWERED_WHERE_UNCERTAIN * psf_uncertainty(psf_map, shape)
        psf_map = scaled(psf_map, 1 - lowered)
    blur = blur_of_map(psf_map, shape)
    settings, count = settle(photons, blur, behind, *rules, usable=usable)
    work = partial(restore, iterations=count)
    return _finish(photons, psf_map, blur, settings, work, cautious and count > 0)


def learned_settings(
    photons: torch.Tensor,
    blur: VariantBlur,
    behind: torch.Tensor,
    psf_map: PsfMap,
    usable: torch.Tensor | None,
) -> Settings:
    """Settings of the learned restoration of photons (H, W)."""
    rules = (START_STEPS, "auto", ACCELERATION)
    settings, _ = settle(photons, blur, behind, *rules, usable=usable)
    changes = at_pixels(psf_changes(psf_map, blur.shape), psf_map, blur.shape)
    return replace(settings, uncertainty=changes)


def _finish(
    photons: torch.Tensor,
    psf_map: PsfMap,
    blur: VariantBlur,
    settings: Settings,
    work: Work,
    cautious: bool,
) -> tuple[Restored, VariantBlur]:
    """Restoration by `work`, in tiles if the image is large, and again where a PSF is too large."""
    if photons.numel() > WHOLE_PX:
        restored = restore_tiles(photons, blur, settings, work, list(tiles(blur.shape, TILE)))
    else:
        restored = work(photons, blur, settings)
    if cautious:
        restored, psf_map, blur = restore_misfits(photons, psf_map, blur, settings, work, restored)
        restored = denoise_blank_places(photons, psf_map, settings, work, restored)
    return restored, blur


def check_map_fits(psf_map: PsfMap, shape: tuple[int, int]) -> None:
    """Refuse a map with places outside the image (H, W)."""
    if psf_map.rows[-1] >= shape[0] or psf_map.columns[-1] >= shape[1]:
        raise InputError(
            f"the map reaches to pixel {float(psf_map.rows[-1]):.0f}, "
            f"{float(psf_map.columns[-1]):.0f}, the image has {shape[0]} x {shape[1]} px; give "
            "the map of this image."
        )


def psf_uncertainty(psf_map: PsfMap, shape: tuple[int, int]) -> torch.Tensor:
    """Uncertainty of the PSF at each place of the map, (R, C), from 0 to 1.

    The fourth power of `psf_changes`: moderate errors of the PSF do little harm.
    """
    return psf_changes(psf_map, shape) ** 4


def psf_changes(psf_map: PsfMap, shape: tuple[int, int]) -> torch.Tensor:
    """Largest change of each PSF of the map within its error bars, (R, C), from 0 to 1.

    |h(v + s) - h(v - s)| / (2 |h(v)|) for the parameter whose standard deviation s changes the PSF
    most.
    """
    model, microscope, values = psf_map.model, psf_map.microscope, psf_map.values
    deviations = psf_map.standard_deviations
    both = replace(psf_map, values=torch.cat([values + deviations, values - deviations], 1))
    size = support_px(both, min(shape))
    norm = psf_grid_from_map(model, values, microscope, size).flatten(2).norm(dim=2)
    changes = []
    for p in range(len(values)):
        shift = torch.zeros_like(values)
        shift[p] = deviations[p]
        above, below = (
            psf_grid_from_map(model, values + sign * shift, microscope, size) for sign in (1, -1)
        )
        changes.append((above - below).flatten(2).norm(dim=2) / (2 * norm))
    return torch.stack(changes).amax(0).clamp(0, 1)


def shrunk_where_misfit(psf_map: PsfMap, misfit: torch.Tensor) -> PsfMap | None:
    """The map with smaller PSFs where the misfit (H, W) is large; None where it is nowhere."""
    rows, columns = (
        x.round().long().clamp(0, n - 1)
        for x, n in zip((psf_map.rows, psf_map.columns), misfit.shape, strict=True)
    )
    too_large = misfit[rows[:, None], columns] > MISFIT_ALLOWED
    too_large &= psf_map.values.abs().amax(0) > 0
    if not too_large.any():
        return None
    return replace(
        psf_map, values=torch.where(too_large, MISFIT_FACTOR * psf_map.values, psf_map.values)
    )


def restore_misfits(
    photons: torch.Tensor,
    psf_map: PsfMap,
    blur: VariantBlur,
    settings: Settings,
    work: Work,
    restored: Restored,
) -> tuple[Restored, PsfMap, VariantBlur]:
    """Restoration, map and blur after the places whose PSF is too large were restored again."""
    shape = blur.shape
    for _ in range(MISFIT_ROUNDS):
        misfit = judge(photons, restored.expected, settings.usable).misfit
        smaller = shrunk_where_misfit(psf_map, misfit)
        if smaller is None:
            break
        changed = (smaller.values != psf_map.values).any(0).to(photons)
        touched = at_pixels(changed, psf_map, shape) > 0
        parts = [part for part in tiles(shape, MISFIT_TILE) if touched[part].any()]
        psf_map, blur = smaller, blur_of_map(smaller, shape)
        restored = restore_tiles(photons, blur, settings, work, parts, before=restored)
    return restored, psf_map, blur


def denoise_blank_places(
    photons: torch.Tensor, psf_map: PsfMap, settings: Settings, work: Work, restored: Restored
) -> Restored:
    """The restoration with denoised input where the map found no content; the blur stays there."""
    blank = (~psf_map.has_content).to(photons)
    if not blank.any():
        return restored
    shape = (photons.shape[0], photons.shape[1])
    share = at_pixels(blank, psf_map, shape).clamp(0, 1)
    point = VariantBlur.from_psf(photons.new_ones(1, 1), shape)
    denoised = work(photons, point, replace(settings, uncertainty=None)).image
    return replace(restored, image=torch.lerp(restored.image, denoised, share))


def fade_bad_places(light: torch.Tensor, restored: Restored, fit: Fit) -> Restored:
    """The restoration, faded into the input `light` (H, W) where residuals are far above noise.

    That is the whole field if its residuals are.
    """
    misfit = fit.misfit * max(fit.noise / NOISE_ALLOWED, 1.0)
    share = ((misfit - BAD_FROM) / (INPUT_FROM - BAD_FROM)).clamp(0, 1)
    return replace(restored, image=torch.lerp(restored.image, light.clamp(min=0), share))


def return_residuals(photons: torch.Tensor, restored: Restored, fit: Fit) -> Restored:
    """The restoration with those of its residuals that are content rather than noise.

    The noise of a processed image is known within a factor of a few, and rather too large, so that
    detail may be taken for noise. Residuals are added again where they are stronger than in the
    quiet places of the image, and only if they are weaker than the noise that was assumed.
    """
    residuals = photons - restored.expected
    shares = residuals.square() / (restored.expected + DARKEST * restored.expected.mean())
    smooth = gaussian_filter(shares.cpu().numpy(), RESIDUAL_WIDTH_PX)
    local = torch.from_numpy(smooth).to(photons)
    quiet = float(np.quantile(smooth, RESIDUAL_QUIET))
    content = (1 - quiet / local.clamp(min=quiet)) * min(max(1 - fit.noise, 0.0), 1.0)
    return replace(restored, image=(restored.image + content * residuals).clamp(min=0))
