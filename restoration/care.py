"""Care where the map of the PSFs may be wrong: smaller PSFs, or only denoising."""

import warnings
from dataclasses import replace

import torch

from models.mapping import PsfMap
from psf.light import ScalarWarning
from psf.microscope import Microscopes
from psf.model import PsfModel
from psf.synthesis import synthesize_with_loss
from restoration.blur_map import at_pixels, blur_of_map, support_px
from restoration.fit import judge
from restoration.iteration import Restored, Settings
from restoration.richardson_lucy import Work, restore_tiles, tiles
from restoration.variant_blur import VariantBlur

MISFIT_ALLOWED = 1.25  # times that of the field; under true maps it stays below 1.16
MISFIT_FACTOR, MISFIT_ROUNDS = 0.6, 4  # factor on the labels where the PSF is too large; how often
MISFIT_TILE = 512  # px, edge of the tiles that are restored again


def psf_uncertainty(psf_map: PsfMap, shape: tuple[int, int]) -> torch.Tensor:
    """Uncertainty of the PSF at each place of the map, (R, C), from 0 to 1.

    The fourth power of `psf_changes`: moderate errors of the PSF do little harm.
    """
    return psf_changes(psf_map, shape) ** 4


def psf_changes(psf_map: PsfMap, shape: tuple[int, int]) -> torch.Tensor:
    """Largest change of each PSF of the map within its error bars, (R, C), from 0 to 1."""
    values, deviations = psf_map.values, psf_map.standard_deviations
    both = replace(psf_map, values=torch.cat([values + deviations, values - deviations], 1))
    labels, bars = (channels.flatten(1).T for channels in (values, deviations))
    size = support_px(both, min(shape))
    changes = changes_within_bars(psf_map.model, labels, bars, psf_map.microscope, size)
    return changes.reshape(values.shape[1:])


def changes_within_bars(
    model: PsfModel,
    labels: torch.Tensor,
    bars: torch.Tensor,
    microscope: Microscopes,
    size: int,
) -> torch.Tensor:
    """Largest change (N,) of the PSFs of labels (N, P) within their error bars, from 0 to 1.

    |h(v + s) - h(v - s)| / (2 |h(v)|) for the parameter whose bar s changes the PSF most.
    """
    low, high = labels.new_tensor(model.label_ranges).T

    def psfs(moved: torch.Tensor) -> torch.Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ScalarWarning)  # nobody can choose another light here
            return synthesize_with_loss(model, moved.clamp(low, high), microscope, size)[0]

    norm = psfs(labels).flatten(1).norm(dim=1)
    found = []
    for shift in torch.diag_embed(bars).unbind(1):  # of one parameter each, (N, P)
        difference = psfs(labels + shift) - psfs(labels - shift)
        found.append(difference.flatten(1).norm(dim=1) / (2 * norm))
    return torch.stack(found).amax(0).clamp(0, 1)


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
