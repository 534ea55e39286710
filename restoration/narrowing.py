"""Maps whose PSFs are narrowed, place by place, to what the image itself says.

With a PSF that is too wide, what a restoration expects predicts photons that were held out worse
than with the right one. So the image is restored from nine tenths of its photons
with the map as it is and with all its labels scaled by a few factors, and each place takes the
factor under which its surroundings predict the last tenth best: the estimate of image and PSF in
turns, one round of it, from the map of the network onwards. This mends maps of objects that a
network takes for blurred, round cells say, and of photographs that were soft before.
"""

import math
from dataclasses import replace
from itertools import islice

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from tqdm import tqdm

from models.mapping import PsfMap
from psf.blur import interpolate_grid
from restoration.blur_map import blur_of_map
from restoration.iteration import Settings, steps
from restoration.stopping import likelihood, split

NARROWER = (0.8, 0.64, 0.5, 0.36)  # factors on all labels; wider PSFs would do more harm than good
PRIOR_OF_FACTOR = 0.35  # standard deviation of its logarithm, before the image is seen
EVIDENCE_NEEDED = 8.0  # in log likelihood, for any other factor than 1
MOST_ITERATIONS = 80  # for each factor
FEWEST_SHOWN_PX = 600**2  # pixels of the smallest image that gets a progress bar
CELL = 32  # px, edge of the cells whose likelihood is summed
WIDTH_CELLS = 1.25  # of the Gaussian over neighbouring cells, which share their likelihood


def refine(photons: torch.Tensor, psf_map: PsfMap, settings: Settings, iterations: int) -> PsfMap:
    """Scale the labels of a map, place by place, to what photons (H, W) say.

    Parameters
    ----------
    settings, iterations : those of the restoration under the map as it is, from
        `restoration.richardson_lucy.settle`; all factors are judged after as many iterations,
        since a PSF that is too narrow predicts best when stopped early

    Returns
    -------
    The map, with other values where a factor other than 1 is clearly better.
    """
    shape = (photons.shape[0], photons.shape[1])
    if min(shape) < CELL:
        return psf_map
    training, held_out = split(photons)
    count = min(iterations, MOST_ITERATIONS)
    found: dict[float, np.ndarray] = {}
    with tqdm(
        total=1 + len(NARROWER),
        desc="refine the map",
        leave=False,
        disable=photons.numel() < FEWEST_SHOWN_PX,
    ) as bar:
        for factor in (1.0, *NARROWER):
            blur = blur_of_map(scaled(psf_map, factor), shape)
            _, expected = next(islice(steps(training[None], blur, settings), count, None))
            prior = -((math.log(factor) / PRIOR_OF_FACTOR) ** 2) / 2
            found[factor] = evidence(held_out, expected[0], training) + prior
            bar.update()
            if factor < 1:
                best = np.max([found[one] for one in found if one > factor], 0)
                needed = np.maximum(best, found[1.0] + EVIDENCE_NEEDED)
                if (found[factor] < needed).all():
                    break  # nothing still narrower will do
    logarithm = best_logarithm(found)
    if not logarithm.any():
        return psf_map
    smooth = torch.from_numpy(gaussian_filter(logarithm, WIDTH_CELLS, mode="nearest")).float()
    middles = [(torch.arange(cells) + 0.5) * CELL for cells in smooth.shape]
    factors = interpolate_grid(smooth, *middles, psf_map.rows, psf_map.columns).exp()
    return scaled(psf_map, factors)


def scaled(psf_map: PsfMap, factor: float | torch.Tensor) -> PsfMap:
    """The map with all labels times a number, or times (R, C)."""
    return replace(psf_map, values=psf_map.values * factor)


def evidence(held_out: torch.Tensor, expected: torch.Tensor, training: torch.Tensor) -> np.ndarray:
    """Log likelihood of the held-out photons around each cell, (H // CELL, W // CELL).

    Less that under the training photons as they are, which is the same for every map and keeps the
    differences precise.
    """
    gain = likelihood(held_out, expected) - likelihood(held_out, training.clamp(min=1.0))
    rows, columns = (edge // CELL for edge in gain.shape)
    cut = gain[: rows * CELL, : columns * CELL].double().cpu().numpy()
    cells = cut.reshape(rows, CELL, columns, CELL).sum((1, 3))
    # a mean over 4 pi s^2 cells, in effect, and as many times as much evidence
    return gaussian_filter(cells, WIDTH_CELLS, mode="nearest") * 4 * math.pi * WIDTH_CELLS**2


def best_logarithm(found: dict[float, np.ndarray]) -> np.ndarray:
    """Logarithm of the best factor of each cell: the peak of a parabola around the best one tried.

    Cells keep 1 unless another is better by EVIDENCE_NEEDED, so that good maps stay as they are.
    """
    factors = sorted(found)
    logs = np.log(factors)
    table = np.stack([found[factor] for factor in factors])
    best = table.argmax(0)
    certain = table.max(0) > found[1.0] + EVIDENCE_NEEDED
    peak = np.where(certain, logs[best], 0.0)
    for cell in zip(*np.nonzero(certain), strict=True):
        at = best[cell]
        if not 0 < at < len(factors) - 1:
            continue
        around = slice(at - 1, at + 2)
        bend, slope, _ = np.polyfit(logs[around], table[(around, *cell)], 2)
        if bend < 0:
            peak[cell] = np.clip(-slope / (2 * bend), logs[at - 1], logs[at + 1])
    return peak
