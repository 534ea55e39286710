"""How long to iterate and how much to smooth: what predicts photons that were held out best.

A binomial split of Poisson counts gives two independent images of the same object: one is restored,
and judged by the likelihood of the other. On images larger than `SEARCH_PX` four windows speak for
the whole.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from restoration.iteration import Settings, steps
from restoration.variant_blur import VariantBlur

KEPT_FOR_TRAINING = 0.9  # share of the photons; with half of them the search stops early
PATIENCE = 5  # iterations without a significant gain end the search
SIGNIFICANT_GAIN = 1.0  # in the log likelihood of the photons that were held out
MOST_ITERATIONS = 200
HALVINGS = 4  # of the weight of total variation
SEARCH_PX = 600**2  # pixels of the largest image that is searched as a whole
WINDOW = 256  # px, edge of each of four windows of a larger one


@dataclass(frozen=True)
class Choice:
    """What the photons that were held out advise."""

    iterations: int
    tv: float
    score: float  # log likelihood of the held-out photons


def choose(
    photons: torch.Tensor,
    blur: VariantBlur,
    settings: Settings,
    search_tv: bool,
    generator: torch.Generator | None = None,
) -> Choice:
    """Choose the number of iterations for photons (H, W) and, on request, the weight.

    The weight of `settings` is halved as long as that predicts better: objects of fine detail take
    an eighth of what suits smooth ones.
    """
    training, held_out = split(photons, generator)
    windows = []
    for part in search_windows(photons, blur.psf_size):
        shape = photons[part].shape
        window = blur.window(part[0].start, part[1].start, (shape[0], shape[1]))
        background = settings.background[part] if settings.background.ndim else settings.background
        local = replace(settings, background=background)
        windows.append((training[part], held_out[part], window, local))
    best = _stop(windows, settings.tv)
    for halving in range(1, HALVINGS + 1 if search_tv and settings.tv else 1):
        found = _stop(windows, settings.tv / 2**halving)
        if found.score <= best.score:
            break
        best = found
    return best


def split(
    photons: torch.Tensor, generator: torch.Generator | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Nine tenths of the photons (H, W), scaled to be as bright as all, and the counts held out."""
    generator = generator or torch.Generator().manual_seed(0)
    counts = photons.round().double().cpu()
    training = torch.binomial(counts, torch.full_like(counts, KEPT_FOR_TRAINING), generator)
    # as bright as the whole, so that background and weights are the same
    return training.to(photons) / KEPT_FOR_TRAINING, (counts - training).to(photons)


def likelihood(held_out: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Log likelihood (H, W) of held-out counts under the image expected of all photons."""
    predicted = (1 - KEPT_FOR_TRAINING) * expected
    return held_out * predicted.log() - predicted


def _stop(windows: Sequence[tuple], tv: float) -> Choice:
    """Iterate on all windows at once until their held-out photons are predicted best."""
    runs = [steps(seen[None], blur, replace(local, tv=tv)) for seen, _, blur, local in windows]
    best = Choice(0, tv, -math.inf)
    for count, found in enumerate(zip(*runs, strict=True)):
        score = 0.0
        for (_, held_out, _, _), (_, expected) in zip(windows, found, strict=True):
            score += float(likelihood(held_out, expected[0]).sum(dtype=torch.float64))
        if score > best.score + SIGNIFICANT_GAIN:
            best = Choice(count, tv, score)
        if count - best.iterations >= PATIENCE or count >= MOST_ITERATIONS:
            break
    return best


def search_windows(photons: torch.Tensor, smallest: int) -> list[tuple[slice, slice]]:
    """The whole of a small image; of each quarter of a large one, the window of most contrast.

    Windows have at least `smallest` px, the edge of the PSF, where the image has.
    """
    height, width = photons.shape
    if height * width <= SEARCH_PX:
        return [(slice(0, height), slice(0, width))]
    edge_y, edge_x = (min(max(WINDOW, smallest), length) for length in (height, width))
    return [
        max(
            ((slice(y, y + edge_y), slice(x, x + edge_x)) for y in tops for x in lefts),
            key=lambda part: float(photons[part].var()),
        )
        for tops in _starts(height, edge_y)
        for lefts in _starts(width, edge_x)
    ]


def _starts(length: int, edge: int) -> list[list[int]]:
    """Where windows of this edge begin in either half of a line; they overlap by half or more."""
    found = []
    for low, high in ((0, length // 2), (length // 2, length)):
        first = min(low, length - edge)
        last = max(first, high - edge)
        count = max(1, math.ceil(2 * (last - first) / edge)) + 1
        found.append([first + (last - first) * i // (count - 1) for i in range(count)])
    return found
