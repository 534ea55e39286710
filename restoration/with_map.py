"""Restoration of an image with the map of its PSF, with care where the map may be wrong."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from common.cluster import Cluster
from models.mapping import PsfMap
from psf.errors import InputError
from restoration.blur_map import at_pixels, blur_of_map, map_on
from restoration.care import (
    denoise_blank_places,
    psf_changes,
    psf_uncertainty,
    restore_misfits,
)
from restoration.correction import corrected_map, scaled
from restoration.fit import BAD_FROM, DARKEST, INPUT_FROM, NOISE_ALLOWED, Fit, better_gain, judge
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
from restoration.tile_jobs import ClusterWork
from restoration.unrolled import START_STEPS
from restoration.variant_blur import VariantBlur

PriorName = Literal["auto", "tv", "learned"]
ACCELERATION = "momentum"  # gives the same result in tiles as in one piece
CORRECTED_PX = (
    1024**2
)  # pixels of the largest image whose map is corrected by default: bounds the time
WHOLE_PX = 1536**2  # pixels of the largest image that is restored in one piece: bounds the memory
TILE = 1024  # px, edge of the tiles of a larger image
ATTEMPTS = 3  # restorations at most, each with a gain that suits the residuals of the last
# Local strength of the residuals of a processed image: width of the Gaussian, and the share of the
# field that is quiet. Of 2 and 4 px, 2 gives sharp simulated images up to 0.2 dB more.
RESIDUAL_WIDTH_PX, RESIDUAL_QUIET = 2.0, 0.35
# Share by which labels are lowered where the PSF is most uncertain, since a PSF that is too small
# does less harm than one that is too large. Chosen among 0, 0.2, 0.4, 0.6 and denoising alone, on
# three validation images at 100 photons per pixel. Maps that held-out photons corrected are not
# lowered: that cost chelsea and beads 0.1 dB, and round cells 0.3 to 0.9 dB.
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
    cluster: Cluster | None = None,
) -> tuple[Restored, VariantBlur]:
    """Restored image, in the unit of the input, and the operator that was inverted.

    The work is done on the device of the image. A cautious automatic restoration is repeated with
    a gain that suits the noise of the residuals; `fit` says which.

    Parameters
    ----------
    image : (H, W) tensor, camera offset taken off, not negative
    iterations, background, tv, gain, usable : as for `richardson_lucy`
    cautious : use smaller PSFs where a map that is not refined is uncertain, or the PSF too large
        for the image (`restoration.fit`), and only denoise where the map found no content
    refined : correct the map first (`restoration.correction`); by default if `cautious` is set, the
        noise is white (else held-out photons do not test a map) and at most 1024 x 1024 px
    white_noise : False for registered, denoised or compressed images. They get back what the
        restoration cannot explain, see `return_residuals`.
    prior : total variation or `restoration.unrolled`; by default the one that predicts held-out
        photons better, and total variation if its weight or the iterations are given
    learned : the learned prior; by default the one that comes with the project
    cluster : restores the tiles of a large image, with the same result

    Raises
    ------
    InputError
        As `richardson_lucy`, and if the map reaches outside the image.
    """
    check_map_fits(psf_map, (image.shape[0], image.shape[1]))
    rules = (iterations, tv, ACCELERATION)
    check_restoration(*rules)
    if refined is None:
        refined = cautious and white_noise and image.numel() <= CORRECTED_PX
    learned = prior_to_try(prior, learned, rules)
    psf_map = map_on(psf_map, image.device)
    plan = Plan(psf_map, rules, cautious, refined, usable, prior == "auto", learned, cluster)
    may_fall_back = cautious and iterations == "auto"  # a given count is what the user wants to see
    attempts = ATTEMPTS if may_fall_back else 1
    photons, behind, restored, blur, used = _with_suitable_gain(
        image, background, gain, plan, attempts, white_noise
    )
    if fit := restored.fit:  # else the image is the input
        if may_fall_back:
            restored = fade_bad_places(photons - behind, restored, fit)
        if not white_noise:
            restored = return_residuals(photons, restored, fit)
        restored = replace(restored, fit=replace(fit, gain=used, faded=may_fall_back))
    return keep_regions(in_unit(restored, used), image, used * behind, usable), blur


def _with_suitable_gain(
    image: torch.Tensor,
    background: float,
    gain: float,
    plan: "Plan",
    attempts: int,
    white_noise: bool,
) -> tuple[torch.Tensor, torch.Tensor, Restored, VariantBlur, float]:
    """Photons, their background, the restoration, its operator, and the gain that suits it."""
    may_lower = not white_noise and image.numel() <= WHOLE_PX  # of larger images it takes too long
    shape, like = (image.shape[0], image.shape[1]), plan.psf_map.values
    for attempt in range(1, attempts + 1):
        photons, behind = check_image(image, background, gain, shape, like, plan.usable)
        restored, blur = plan.restore(photons, behind)
        if not restored.iterations:
            break
        fit = judge(photons, restored.expected, plan.usable)
        restored = replace(restored, fit=fit)
        if attempt == attempts:
            break
        found = better_gain(image, photons, restored.expected, fit, gain, plan.usable, may_lower)
        if found == gain:
            break
        gain = found
    return photons, behind, restored, blur, gain


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


@dataclass(frozen=True)
class Plan:
    """How the photons of an image are restored; see `restore_with_map`."""

    psf_map: PsfMap
    rules: tuple  # iterations, weight of total variation, acceleration
    cautious: bool
    refined: bool
    usable: torch.Tensor | None
    compares: bool  # the learned prior with total variation
    learned: Prior | None  # None: total variation
    cluster: Cluster | None = None  # restores tiles

    def restore(self, photons: torch.Tensor, behind: torch.Tensor) -> tuple[Restored, VariantBlur]:
        """Restoration of photons (H, W) with a background, and the operator that was inverted."""
        psf_map, shape = self.psf_map, (photons.shape[0], photons.shape[1])
        if self.refined:
            psf_map = corrected_map(photons, psf_map, behind, self.usable)
        if self.learned is not None:
            work, blur = self.learned.restore, blur_of_map(psf_map, shape)
            settings = self.learned_settings(photons, behind, psf_map, blur)
            if not self.compares or learned_is_better(photons, blur, settings, work):
                return self.finish(photons, psf_map, blur, settings, work)
        if self.cautious and not self.refined:
            lowered = LOWERED_WHERE_UNCERTAIN * psf_uncertainty(psf_map, shape)
            psf_map = scaled(psf_map, 1 - lowered)
        blur = blur_of_map(psf_map, shape)
        settings, count = settle(photons, blur, behind, *self.rules, usable=self.usable)
        if not count:
            return restore(photons, blur, settings, 0), blur
        return self.finish(photons, psf_map, blur, settings, partial(restore, iterations=count))

    def learned_settings(
        self, photons: torch.Tensor, behind: torch.Tensor, psf_map: PsfMap, blur: VariantBlur
    ) -> Settings:
        """Settings of the learned restoration, with the uncertainty of the PSFs."""
        rules = (START_STEPS, "auto", ACCELERATION)
        settings, _ = settle(photons, blur, behind, *rules, usable=self.usable)
        changes = at_pixels(psf_changes(psf_map, blur.shape), psf_map, blur.shape)
        return replace(settings, uncertainty=changes)

    def finish(
        self,
        photons: torch.Tensor,
        psf_map: PsfMap,
        blur: VariantBlur,
        settings: Settings,
        work: Work,
    ) -> tuple[Restored, VariantBlur]:
        """Restoration by `work`, in tiles if the image is large, with care if it is asked for."""
        if self.cluster is not None:
            work = ClusterWork(work, self.cluster)
        if photons.numel() > WHOLE_PX:
            restored = restore_tiles(photons, blur, settings, work, list(tiles(blur.shape, TILE)))
        else:
            restored = work(photons, blur, settings)
        if self.cautious:
            restored, psf_map, blur = restore_misfits(
                photons, psf_map, blur, settings, work, restored
            )
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
