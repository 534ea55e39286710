"""Maps corrected by held-out photons: each label by itself, place by place.

Under a wrong PSF, the restored object predicts held-out photons worse than under the right one. So
the image is restored from half of its photons: with the map as it is, and with each label a step
higher and a step lower. The other half of the photons judges these maps, cell by cell. A parabola
through the three log likelihoods of a cell says where its best label lies, and how sure that is.
The correction is the most probable smooth field under these parabolas and a Gaussian prior.

Two choices make this precise. Half of the photons, where a tenth would do for the number of
iterations, gives six times the evidence. And the weight of total variation is the one that predicts
the held-out photons best: a weaker one favours PSFs that are too large, a stronger one PSFs that
are too small.

Where the map holds astigmatism, only the astigmatism is corrected, see `corrected_labels`.

The image is judged with 2 x 2 px binned. A quarter of the pixels keeps most of the evidence, since
wide PSFs transmit little fine detail.
"""

import math
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch.nn.functional import avg_pool2d

from models.mapping import PsfMap
from psf.blur import interpolate_grid
from psf.microscope import simulated_microscopes
from restoration.blur_map import blur_of_map, support_px
from restoration.iteration import LARGEST_TV, Settings, steps
from restoration.stopping import likelihood, split
from restoration.variant_blur import VariantBlur

KEPT = 0.5  # share of the photons that the image is restored from
BIN = 2  # px; edge of the squares of pixels that are summed
# Too few iterations favour PSFs that are too small. Under weak total variation, the iteration is
# slow: after 40 of them, PSFs of beads and of squares 3 to 5 % too small seem best, after 80 less.
# Round cells, under strong total variation, need 40.
ITERATIONS, ITERATIONS_IF_SLOW = 40, 80
SLOW_BELOW = 0.1  # weight of total variation at one photon
# Weight of total variation times sqrt(photons) that is tried first. It is halved as long as that
# predicts better: round cells want 0.13 to 0.18, beads an eighth of that.
SMOOTHEST_TV_AT_ONE_PHOTON, HALVINGS = 0.36, 6
CELL = 32  # px, edge of the cells whose likelihood is summed: the default stride of a map
WIDTH_CELLS = 1.25  # standard deviation of the Gaussian that smooths the bends of the parabolas
# Standard deviation of a label's error before the image is seen: a share of the label and a share
# of its range. Errors of maps of simulated images are about that large. It is also the small step.
STEP_OF_LABEL, STEP_OF_RANGE = 0.1, 0.02
LARGEST_CORRECTION = 1.5  # steps at a time; farther away, the parabolas are no longer valid
TV_STEP = 0.5  # halvings of the weight by which it follows the corrected map
ROUNDS = 2  # of small steps: the second finds a fifth to a half of the gain of the first
WORTH_A_ROUND = 10.0  # expected gain in log likelihood of the whole image for which labels change
# The errors of a map are alike over this distance, and partly over the whole field: standard
# deviation of a Gaussian in cells, and share of the variance. About the patch of a network.
LIKE_CELLS, SHARE_OF_FIELD = 3.0, 0.5


@dataclass(frozen=True)
class Trial:
    """A binned image whose photons are split, to judge maps of the image with."""

    training: torch.Tensor  # (H, W) photons per binned pixel, scaled to all photons
    held_out: torch.Tensor  # (H, W)
    settings: Settings
    psf_size: int  # binned px
    iterations: int = ITERATIONS

    def blur(self, psf_map: PsfMap) -> VariantBlur:
        """Blur of the binned image by a map of the image."""
        height, width = self.training.shape
        return blur_of_map(binned_map(psf_map), (height, width), self.psf_size)

    def with_halvings(self, halvings: float) -> "Trial":
        """The trial with a weight of total variation that was halved so many times."""
        weight = min(self.settings.tv / 2**halvings, LARGEST_TV)
        return replace(self, settings=replace(self.settings, tv=weight))

    def evidence(self, psf_map: PsfMap, blur: VariantBlur | None = None) -> np.ndarray:
        """Log likelihood of the held-out photons of each cell, (H // CELL, W // CELL).

        The likelihood under the training photons themselves is subtracted. It is the same for every
        map and keeps the differences between maps precise.
        """
        blur = blur or self.blur(psf_map)
        states = steps(self.training[None], blur, self.settings)
        _, expected = next(islice(states, self.iterations, None))
        usable = self.settings.usable
        gain = likelihood(self.held_out, expected[0], usable, KEPT)
        gain = gain - likelihood(self.held_out, self.training.clamp(min=1.0), usable, KEPT)
        edge = CELL // BIN
        rows, columns = (length // edge for length in gain.shape)
        cut = gain[: rows * edge, : columns * edge].cpu().double().numpy()
        return cut.reshape(rows, edge, columns, edge).sum((1, 3))


def corrected_map(
    photons: torch.Tensor,
    psf_map: PsfMap,
    background: torch.Tensor,
    usable: torch.Tensor | None = None,
) -> PsfMap:
    """The map with its labels corrected, place by place, as photons (H, W) suggest.

    The very same map comes back where held-out photons see no reason for a change.

    Parameters
    ----------
    background : () or (H, W), photons
    usable : (H, W) bool, by default all pixels
    """
    if min(photons.shape) < 2 * CELL or not corrected_labels(psf_map):
        return psf_map
    trial, base = settled_trial(photons, psf_map, background, usable)
    for _ in range(ROUNDS):
        trial, base = with_best_tv(trial, psf_map, base)
        correction, expected_gain = small_correction(trial, psf_map, base)
        if expected_gain < WORTH_A_ROUND:
            break
        better = shifted(psf_map, correction)
        found = trial.evidence(better)
        if found.sum() <= base.sum():
            break
        psf_map, base = better, found
    return psf_map


def settled_trial(
    photons: torch.Tensor,
    psf_map: PsfMap,
    background: torch.Tensor,
    usable: torch.Tensor | None,
) -> tuple[Trial, np.ndarray]:
    """Trial of an image (H, W), with the best weight of total variation, and its map's evidence."""
    counts = BIN**2 * binned(photons)
    behind = BIN**2 * (binned(background) if background.ndim else background)
    good = None if usable is None else binned(usable.to(photons)) == 1
    mean = float(counts.mean() if good is None or not good.any() else counts[good].mean())
    level = max(mean - float(behind.mean()), 0.01 * mean)
    size = support_px(binned_map(scaled(psf_map, 1 + STEP_OF_LABEL)), min(counts.shape))
    smoothest = min(SMOOTHEST_TV_AT_ONE_PHOTON / math.sqrt(KEPT * mean), LARGEST_TV)
    settings = Settings(behind, smoothest, "momentum", mean, level, good)
    trial = Trial(*split(counts, kept=KEPT), settings, size)
    blur = trial.blur(psf_map)
    tried: list[tuple[Trial, np.ndarray]] = []

    def score(halvings: float) -> float:
        one = trial.with_halvings(halvings)
        tried.append((one, one.evidence(psf_map, blur)))
        return float(tried[-1][1].sum())

    scores = [score(0)]
    while len(scores) <= HALVINGS:
        scores.append(score(len(scores)))
        if scores[-1] < scores[-2]:
            break
    trial, evidence = max(tried, key=lambda one: one[1].sum())
    if trial.settings.tv * math.sqrt(KEPT * mean) < SLOW_BELOW:
        trial = replace(trial, iterations=ITERATIONS_IF_SLOW)
        evidence = trial.evidence(psf_map, blur)
    return trial, evidence


def with_best_tv(trial: Trial, psf_map: PsfMap, base: np.ndarray) -> tuple[Trial, np.ndarray]:
    """The trial with the best weight of total variation for a map, and the map's evidence under it.

    The weight is the peak of a parabola through three weights.
    """
    blur = trial.blur(psf_map)
    stronger, weaker = (
        float(trial.with_halvings(halvings).evidence(psf_map, blur).sum())
        for halvings in (-TV_STEP, TV_STEP)
    )
    bend = 2 * float(base.sum()) - stronger - weaker
    halvings = TV_STEP * (weaker - stronger) / (2 * bend) if bend > 0 else 0.0
    better = trial.with_halvings(float(np.clip(halvings, -TV_STEP, TV_STEP)))
    found = better.evidence(psf_map, blur)
    return (better, found) if found.sum() > base.sum() else (trial, base)


def small_correction(trial: Trial, psf_map: PsfMap, base: np.ndarray) -> tuple[torch.Tensor, float]:
    """Most probable correction (P, R, C) in steps, and its expected gain in log likelihood.

    Labels are taken as independent. With the prior covariance K of the field, the slopes g of the
    parabolas and their bends H, the most probable field is (I + K H)^-1 K g.
    """
    covariance = prior_covariance(base.shape)
    corrections, gain = [torch.zeros_like(one) for one in psf_map.values], 0.0
    for p in corrected_labels(psf_map):
        one_step = torch.zeros_like(psf_map.values)
        one_step[p] = 1.0
        above = trial.evidence(shifted(psf_map, one_step))
        below = trial.evidence(shifted(psf_map, -one_step))
        slope = ((above - below) / 2).ravel()
        # single cells are noisy; a bend below 0 would have no peak
        bend = gaussian_filter(2 * base - above - below, WIDTH_CELLS, mode="nearest")
        bend = bend.clip(min=0).ravel()
        best = np.linalg.solve(np.eye(bend.size) + covariance * bend, covariance @ slope)
        best = best.clip(-LARGEST_CORRECTION, LARGEST_CORRECTION)
        gain += float(best @ (slope - bend * best / 2))
        corrections[p] = on_map(best.reshape(base.shape), psf_map)
    return torch.stack(corrections), gain


def corrected_labels(psf_map: PsfMap) -> list[int]:
    """Labels that held-out photons correct: the signed ones, or all if none is signed.

    A soft object can be taken for a larger PSF, but not for astigmatism. Of six validation images
    with astigmatism at 1000 photons per pixel, five gain more if their focus stays as it is (mean
    gain 3.17 dB; 2.92 dB with the focus corrected, 2.50 dB with the map of the network). Maps of
    the focus alone gain 1.0 dB on the mean of three images.

    Widths in pixels are left alone. They can be narrower than a binned pixel, and corrections of
    them cost round cells 0.2 dB and beads 1.7 dB.
    """
    if psf_map.unit == "px":
        return []
    signed = [p for p, (low, _) in enumerate(psf_map.model.label_ranges) if low < 0]
    return signed or list(range(len(psf_map.values)))


def prior_covariance(shape: tuple[int, int]) -> np.ndarray:
    """Covariance of the errors of a map between the cells (R, C), in squared steps."""
    y, x = np.indices(shape).reshape(2, -1)
    squared = np.square(y[:, None] - y) + np.square(x[:, None] - x)
    return SHARE_OF_FIELD + (1 - SHARE_OF_FIELD) * np.exp(-squared / (2 * LIKE_CELLS**2))


def scaled(psf_map: PsfMap, factor: float | torch.Tensor) -> PsfMap:
    """The map with all labels times a number, or times (R, C)."""
    return replace(psf_map, values=psf_map.values * factor)


def shifted(psf_map: PsfMap, correction: torch.Tensor) -> PsfMap:
    """The map with its labels changed by a number (P, R, C) of steps, inside their ranges."""
    values = psf_map.values
    low, high = values.new_tensor(psf_map.model.label_ranges).T[..., None, None]
    step = STEP_OF_LABEL * values.abs() + STEP_OF_RANGE * (high - low)
    return replace(psf_map, values=(values + correction * step).clamp(low, high))


def on_map(cells: np.ndarray, psf_map: PsfMap) -> torch.Tensor:
    """Values (R, C) at the places of a map, interpolated from those of the cells."""
    values = torch.from_numpy(cells).to(psf_map.values)
    middles = [(torch.arange(count).to(values) + 0.5) * CELL - 0.5 for count in values.shape]
    return interpolate_grid(values, *middles, psf_map.rows, psf_map.columns)


def binned(image: torch.Tensor) -> torch.Tensor:
    """Means (H // BIN, W // BIN) of squares of pixels."""
    return avg_pool2d(image[None], BIN)[0]


def binned_map(psf_map: PsfMap) -> PsfMap:
    """The same map for the binned image."""
    optics = psf_map.microscope
    microscope = simulated_microscopes(
        [(optics.na, optics.wavelength_um, BIN * optics.pixel_size_um, optics.refractive_index)]
    )[0]
    values = psf_map.values / BIN if psf_map.unit == "px" else psf_map.values
    rows, columns = ((places - (BIN - 1) / 2) / BIN for places in (psf_map.rows, psf_map.columns))
    return replace(psf_map, microscope=microscope, values=values, rows=rows, columns=columns)
