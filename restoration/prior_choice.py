"""Choice between the learned prior and total variation, by held-out photons.

Both restore nine tenths of the photons, and the likelihood of the rest judges them. So an object
that the learned prior never saw costs little. Large images are judged by a few windows.
"""

import math
from collections.abc import Callable

import torch

from restoration.iteration import Restored, Settings, steps
from restoration.stopping import (
    PATIENCE,
    SIGNIFICANT_GAIN,
    likelihood,
    search_windows,
    split,
)
from restoration.variant_blur import VariantBlur, in_float64

WINDOWS_FROM_PX = 320**2  # pixels of the smallest image that is judged by windows
MOST_STEPS = 40  # of total variation


def learned_is_better(
    photons: torch.Tensor,
    blur: VariantBlur,
    settings: Settings,
    learned: Callable[[torch.Tensor, VariantBlur, Settings], Restored],
    generator: torch.Generator | None = None,
) -> bool:
    """Whether `learned` predicts held-out photons of an image (H, W) better than total variation.

    The weight of total variation is that of `settings`, the number of its steps the best one.
    """
    training, held_out = split(photons, generator)
    gain = 0.0
    for part in search_windows(photons, blur.psf_size, WINDOWS_FROM_PX):
        seen, rest, local = training[part], held_out[part], settings.of_part(part)
        window = blur.part(part)

        def score(expected: torch.Tensor, rest=rest, usable=local.usable) -> float:
            return float(in_float64(likelihood(rest, expected, usable)).sum())

        rival, last = -math.inf, 0
        for count, (_, expected) in enumerate(steps(seen[None], window, local)):
            found = score(expected[0])
            if found > rival + SIGNIFICANT_GAIN:
                rival, last = found, count
            if count - last >= PATIENCE or count >= MOST_STEPS:
                break
        gain += score(learned(seen, window, local).expected) - rival
    return gain > 0
