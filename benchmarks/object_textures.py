"""Contrast and spectral slope of the sharp objects of a data set, and their distribution."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from models.data import read_data_config
from simulation.bank import MOST_DRAWN, Bank
from simulation.crops import draw_crops
from simulation.settings import from_config
from simulation.sources import load_sources, split_sources

# Frequencies of the fit, cycles per px: above the leakage of the window, up to Nyquist.
FITTED = (4 / 128, 0.5)
RINGS = 12  # of equal width in the logarithm; the fit weighs all scales alike


@dataclass(frozen=True)
class Textures:
    """Distribution of Gaussian textures: a weight for each slope and contrast."""

    slopes: torch.Tensor  # (S,) the amplitude falls as f^-slope
    contrasts: torch.Tensor  # (C,) standard deviation / mean
    weights: torch.Tensor  # (S, C), of sum 1

    def draw(self, count: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Random contrasts (N,) and slopes (N,)."""
        cells = rng.choice(self.weights.numel(), count, p=self.weights.flatten().numpy())
        columns = len(self.contrasts)
        return self.contrasts[cells % columns], self.slopes[cells // columns]


def uniform_textures(slopes: np.ndarray, contrasts: np.ndarray) -> Textures:
    """Distribution in which all pairs of these slopes (S,) and contrasts (C,) are as likely."""
    count = len(slopes) * len(contrasts)
    weights = torch.full((len(slopes), len(contrasts)), 1 / count, dtype=torch.float64)
    return Textures(torch.from_numpy(slopes), torch.from_numpy(contrasts), weights)


def measured_textures(
    objects: torch.Tensor, slope_edges: np.ndarray, contrast_edges: np.ndarray
) -> Textures:
    """Distribution of contrast and slope of objects (N, H, W) in cells between these edges.

    Values outside the edges count in the outermost cells. A cell has its middle slope, and the
    geometric mean of its two edges of contrast.
    """
    slopes = np.clip(spectral_slopes(objects), slope_edges[0], slope_edges[-1])
    contrasts = np.clip(contrasts_of(objects), contrast_edges[0], contrast_edges[-1])
    counts, _, _ = np.histogram2d(slopes, contrasts, (slope_edges, contrast_edges))
    return Textures(
        torch.from_numpy((slope_edges[1:] + slope_edges[:-1]) / 2),
        torch.from_numpy(np.sqrt(contrast_edges[1:] * contrast_edges[:-1])),
        torch.from_numpy(counts / counts.sum()),
    )


def draw_test_objects(data: Path, count: int, seed: int) -> torch.Tensor:
    """Sharp objects (N, H, W) of the test images of a data set, drawn as for its test patches."""
    config = read_data_config(data)
    simulation = from_config(config)
    sources, _ = load_sources(config["images"], simulation.crop_size, config["seed"])
    test = split_sources(sources, config["seed"])["test"]
    bank = Bank(test, simulation.crop_size, simulation.patch_size)
    rng = np.random.default_rng(seed)
    sizes = [min(MOST_DRAWN, count - start) for start in range(0, count, MOST_DRAWN)]
    start = (simulation.crop_size - simulation.patch_size) // 2
    middle = slice(start, start + simulation.patch_size)
    crops = [draw_crops(bank, size, rng, augment=False).pixels for size in sizes]
    return torch.cat([some[:, middle, middle] for some in crops])


def contrasts_of(objects: torch.Tensor) -> np.ndarray:
    """Standard deviation / mean (N,) of images (N, H, W)."""
    return (objects.std((1, 2)) / objects.mean((1, 2))).double().numpy()


def spectral_slopes(objects: torch.Tensor) -> np.ndarray:
    """Slope (N,) of the amplitude spectra of images (N, H, W): minus their d log A / d log f.

    Least squares on the mean power in rings, of the image under a Hann window.
    """
    height, width = objects.shape[1:]
    window = torch.outer(*(torch.hann_window(n + 1)[1:].double() for n in (height, width)))
    images = objects.double() * window
    images -= images.sum((1, 2), keepdim=True) / window.sum() * window
    power = torch.fft.rfft2(images).abs().square()
    frequency = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width))
    edges = np.geomspace(*FITTED, RINGS + 1)
    rings = [(frequency >= low) & (frequency < high) for low, high in pairwise(edges)]
    rings = [ring for ring in rings if ring.any()]
    logs = torch.stack([power[:, ring].mean(1).log() for ring in rings])  # (rings, N)
    where = [float(frequency[ring].log().mean()) for ring in rings]
    return -np.polyfit(where, logs.numpy(), 1)[0] / 2
