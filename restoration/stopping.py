"""Number of iterations and weight of total variation that predict held-out photons best.

A binomial split of Poisson counts gives two independent images of the same object. One is restored,
and the likelihood of the other judges the result. Images larger than `SEARCH_PX` are judged by four
windows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from restoration.iteration import Settings, steps
from restoration.variant_blur import VariantBlur, in_float64

KEPT_FOR_TRAINING = 0.9  # share of the photons; with half of them the search stops too early
PATIENCE = 5  # iterations in a row without a significant gain that end the search
SIGNIFICANT_GAIN = 1.0  # of the log likelihood: smaller differences are noise
MOST_ITERATIONS = 200  # bounds the time of a search that goes on gaining
# Halvings of the weight of total variation, at most. Filaments and membranes of the validation
# images gain 1.2 to 1.5 dB at an eighth of the weight for smooth objects; one more step is tried.
HALVINGS = 4
SEARCH_PX = 600**2  # pixels of the largest image that is searched as a whole: bounds the time
WINDOW = 256  # px, edge of each of four windows of a larger image


@dataclass(frozen=True)
class Choice:
    """The settings that predict held-out photons best."""

    iterations: int
    tv: float
    score: float  # log likelihood of the held-out photons


def choose(
    photons: torch.Tensor,
    blur: VariantBlur,
    settings: Settings,
    search_tv: bool,
    generator: torch.Generator | None = None,
) -> Choice | None:
    """Best number of iterations for photons (H, W) and, if `search_tv`, best weight of tv.

    None where no number of iterations predicts held-out photons better than the uniform start. The
    weight of `settings` is halved as long as held-out photons are predicted better: objects of fine
    detail need an eighth of the weight of smooth ones.
    """
    training, held_out = split(photons, generator)
    windows = []
    for part in search_windows(photons, blur.psf_size):
        windows.append((training[part], held_out[part], blur.part(part), settings.of_part(part)))
    best = _stop(windows, settings.tv)
    for halving in range(1, HALVINGS + 1 if search_tv and settings.tv else 1):
        found = _stop(windows, settings.tv / 2**halving)
        if found.score <= best.score:
            break
        best = found
    return best if best.iterations else None


def split(
    photons: torch.Tensor,
    generator: torch.Generator | None = None,
    kept: float = KEPT_FOR_TRAINING,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A share of the photons (H, W), scaled to the brightness of all, and the held-out counts.

    The split is drawn on the CPU, so that it is the same on every device.
    """
    generator = generator or torch.Generator().manual_seed(0)
    counts = photons.cpu().double().round()
    training = torch.binomial(counts, torch.full_like(counts, kept), generator)
    # scaled, so that background and weights of the whole image hold for the training photons
    return training.to(photons) / kept, (counts - training).to(photons)


def likelihood(
    held_out: torch.Tensor,
    expected: torch.Tensor,
    usable: torch.Tensor | None = None,
    kept: float = KEPT_FOR_TRAINING,
) -> torch.Tensor:
    """Log likelihood (H, W) of held-out counts, given the image that is expected of all photons.

    It is 0 for pixels that are not usable.
    """
    predicted = (1 - kept) * expected
    found = held_out * predicted.log() - predicted
    return found if usable is None else found * usable


def _stop(windows: Sequence[tuple], tv: float) -> Choice:
    """Best iteration over all windows together; 0 where none is better than the uniform start."""
    runs = [steps(seen[None], blur, replace(local, tv=tv)) for seen, _, blur, local in windows]
    best = Choice(0, tv, -math.inf)
    for count, found in enumerate(zip(*runs, strict=True)):
        score = 0.0
        for (_, held_out, _, local), (_, expected) in zip(windows, found, strict=True):
            score += float(in_float64(likelihood(held_out, expected[0], local.usable)).sum())
        if score > best.score + SIGNIFICANT_GAIN:
            best = Choice(count, tv, score)
        if count - best.iterations >= PATIENCE or count >= MOST_ITERATIONS:
            break
    return best


def search_windows(
    photons: torch.Tensor, smallest: int, most_px: int = SEARCH_PX
) -> list[tuple[slice, slice]]:
    """Parts of an image (H, W) to search: all of a small one, four windows of a large one.

    An image of more than `most_px` pixels is large. Each quarter gives the window with the largest
    variance. Windows measure at least `smallest` px, the edge of the PSF, or the whole length of
    the image if that is shorter.
    """
    height, width = photons.shape
    if height * width <= most_px:
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
    """First pixels of windows in each half of a line; neighbours overlap by half or more."""
    found = []
    for low, high in ((0, length // 2), (length // 2, length)):
        first = min(low, length - edge)
        last = max(first, high - edge)
        count = max(1, math.ceil(2 * (last - first) / edge)) + 1
        found.append([first + (last - first) * i // (count - 1) for i in range(count)])
    return found
