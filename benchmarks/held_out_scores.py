"""Likelihood of held-out photons under the image that a restoration expects, tile by tile."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from benchmarks.restoration_methods import INPUT, Estimate
from benchmarks.tiles import inner, shown_part, tile_sums

SMOOTHED = "first half, smoothed"
# Widths of the Gaussian that are tried, px, from none to wider than any detail, a factor 1.4 apart
WIDTHS_PX = (0.0, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0)
# Least expected photons as a share of the mean. Without it one photon in a pixel where a method
# expects none would decide everything.
LEAST_EXPECTED = 0.01
# Least photons where the first half itself predicts the second: the mean that a count of 0 suggests
# under Jeffreys' prior of a Poisson rate.
LEAST_OF_ITSELF = 0.5


@dataclass(frozen=True)
class Halves:
    """Two exposures of one object, in photons."""

    first: torch.Tensor  # (H, W) to restore
    second: torch.Tensor  # (H, W) to judge by
    usable: torch.Tensor  # (H, W) bool

    @property
    def ratio(self) -> float:
        """Light of the second exposure over that of the first."""
        return float(self.second[self.usable].mean() / self.first[self.usable].mean())


def split_in_half(photons: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Each photon of an image (H, W), rounded to whole ones, goes to one of two images."""
    counts = photons.double().round()
    generator = torch.Generator().manual_seed(seed)
    first = torch.binomial(counts, torch.full_like(counts, 0.5), generator)
    return first.float(), (counts - first).float()


def log_likelihood(held_out: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Poisson log likelihood (H, W) of counts, without the term that depends on them alone."""
    expected = np.maximum(expected, LEAST_EXPECTED * expected.mean())
    return held_out * np.log(expected) - expected


def best_width(first: torch.Tensor, usable: torch.Tensor, seed: int) -> float:
    """Width of the Gaussian, px, under which one half of an exposure predicts the other best."""
    seen, held_out = (one.double().numpy() for one in split_in_half(first, seed))
    weights = usable.double().numpy()

    def total(width: float) -> float:
        expected = gaussian_filter(seen, width) if width else np.maximum(seen, LEAST_OF_ITSELF)
        return float(inner(log_likelihood(held_out, expected) * weights).sum())

    return max(WIDTHS_PX, key=total)


def score(
    estimate: Estimate, method: str, halves: Halves, smooth: np.ndarray, width: float
) -> tuple[dict[str, Any], np.ndarray]:
    """Likelihood above that of the smoothed half, summed over tiles, and a detail of the estimate.

    A second exposure may be brighter or dimmer: expected images are scaled by the ratio of all
    light, the same for every method.
    """
    expected = estimate.expected.double().cpu().numpy()
    if method == INPUT:
        expected = np.maximum(expected, LEAST_OF_ITSELF)
    held_out, weights = halves.second.double().numpy(), halves.usable.double().numpy()
    found, reference = (
        log_likelihood(held_out, halves.ratio * image) for image in (expected, smooth)
    )
    facts = {
        "advantage": tile_sums(inner((found - reference) * weights)).ravel().tolist(),
        "pixels": tile_sums(inner(weights)).ravel().tolist(),
        "photons_per_pixel": float(halves.first.mean()),
        "smoothing_px": width,
    }
    objects = estimate.objects.cpu().numpy()
    return {**facts, **estimate.facts}, objects[shown_part(smooth)]


def per_pixel(advantage: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Advantage of usable pixels, from sums."""
    return advantage / np.maximum(pixels, 1)
