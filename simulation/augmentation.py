"""Random changes of sharp training crops. The crops are blurred later, so their labels stay true.

Spectral slope, contrast curve, sign, background and grain are drawn at random.
"""

import numpy as np
import torch
from scipy.fft import next_fast_len
from torch.nn import functional

GAMMA_RANGE = (0.5, 2.0)  # exponents of the contrast curve
MAX_PEDESTAL = 0.5  # largest background, as a share of the brightest pixel
LEFT_CONTRAST = 0.15  # the background leaves this contrast; the content filter needs 0.1
INVERT_SHARE = 0.3  # of the crops: dark structures on a bright field
MIX_SHARE = 0.2  # of the crops: combined with another crop
SLOPE_SHARE = 0.1  # of the crops: changed in spectral slope
MAX_SLOPE_CHANGE = 0.3  # of the exponent of the amplitude spectrum; natural images have about -1
GRAIN_SHARE = 0.4  # of the crops: with grain
GRAIN_RANGE = (0.01, 0.3)  # strength of the grain, in standard deviations of the crop


def stretch(pixels: torch.Tensor) -> torch.Tensor:
    """Crops scaled to [0, 1], which removes the background of the image; changed in place."""
    low, high = pixels.amin((-2, -1), True), pixels.amax((-2, -1), True)
    return pixels.sub_(low).div_((high - low).clamp_min(1e-6))


def mix(pixels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Crops (N, H, W), of which some are added to the next crop or show the brighter of both."""
    mixed = np.flatnonzero(rng.random(len(pixels)) < MIX_SHARE)
    if len(mixed):
        partners = pixels[(mixed + 1) % len(pixels)]
        weight = _column(rng.uniform(0.3, 0.7, len(mixed)))
        summed = weight * pixels[mixed] + (1 - weight) * partners
        brighter = torch.maximum(pixels[mixed], partners)
        pixels[mixed] = torch.where(_column(rng.random(len(mixed))) < 0.5, summed, brighter)
    return pixels


def vary_intensity(pixels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Crops (N, H, W) in [0, 1] with new spectral slope, contrast curve, sign and background."""
    count = len(pixels)
    sloped = rng.random(count) < SLOPE_SHARE
    change = rng.uniform(-MAX_SLOPE_CHANGE, MAX_SLOPE_CHANGE, count)
    gamma = np.exp(rng.uniform(*np.log(GAMMA_RANGE), count))
    inverted = rng.random(count) < INVERT_SHARE
    pedestal = rng.uniform(0, MAX_PEDESTAL, count)
    if sloped.any():
        chosen = torch.from_numpy(sloped)
        pixels[chosen] = _change_slope(pixels[chosen], _column(change[sloped]))
    pixels = pixels.clamp_(min=1e-6).log_().mul_(_column(gamma)).exp_()  # faster than pow
    pedestal = np.minimum(pedestal, _most_pedestal(pixels, inverted))
    # Inversion and background together are a linear function: x -> offset + scale x.
    scale = np.where(inverted, -1.0, 1.0) * (1 - pedestal)
    offset = np.where(inverted, 1.0, pedestal)
    return pixels.mul_(_column(scale)).add_(_column(offset))


def add_grain(pixels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Crops (N, H, W), of which some have a fine grain like a photograph, below their contrast.

    The grain is blurred with its object, so it differs from camera noise. Networks that were
    trained without it took sharp grainy patches for blurred and noisy ones. It is added after the
    content filter, since grain alone would pass the filter.
    """
    grained = np.flatnonzero(rng.random(len(pixels)) < GRAIN_SHARE)
    if not len(grained):
        return pixels
    chosen = pixels[grained]
    strength = _column(np.exp(rng.uniform(*np.log(GRAIN_RANGE), len(grained)))) * deviation(chosen)
    noise = torch.from_numpy(rng.standard_normal(chosen.shape, np.float32))
    pixels[grained] = (chosen + strength * noise).clamp_(0, 1)
    return pixels


def _most_pedestal(pixels: torch.Tensor, inverted: np.ndarray) -> np.ndarray:
    """Largest background (N,) that leaves each crop (N, H, W) the contrast LEFT_CONTRAST.

    It is the solution p of (1 - p) std / ((1 - p) mean + p) = LEFT_CONTRAST. Every fourth pixel is
    enough for mean and standard deviation.
    """
    some = pixels[:, ::4, ::4].flatten(1)
    mean, spread = some.mean(1).double().numpy(), some.std(1).double().numpy()
    room = spread - LEFT_CONTRAST * np.where(inverted, 1 - mean, mean)
    return np.maximum(room, 0) / (np.maximum(room, 0) + LEFT_CONTRAST)


def _change_slope(pixels: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """Crops (N, H, W) with spectra times f^change and unchanged mean and standard deviation."""
    size = pixels.shape[-1]
    # The padding keeps the wrap-around of the FFT out of the crop and makes the length fast.
    length = next_fast_len(size + 16, real=True)
    mean, spread = pixels.mean((-2, -1), True), deviation(pixels)
    padding = (0, length - size) * 2
    padded = functional.pad((pixels - mean)[:, None], padding, mode="reflect")[:, 0]
    fy, fx = torch.fft.fftfreq(length), torch.fft.rfftfreq(length)
    log_f = torch.hypot(fy[:, None], fx[None, :]).clamp_min(1 / length).log()
    spectrum = torch.fft.rfft2(padded).mul_(torch.exp(change * log_f))
    changed = torch.fft.irfft2(spectrum, s=(length, length))[:, :size, :size]
    changed = changed - changed.mean((-2, -1), True)
    scale = spread / deviation(changed).clamp_min(1e-6)
    return (mean + scale * changed).clamp_(0, 1)


def _column(values: np.ndarray) -> torch.Tensor:
    """One value per crop, (N,) -> (N, 1, 1)."""
    return torch.from_numpy(np.asarray(values, np.float32))[:, None, None]


def deviation(pixels: torch.Tensor) -> torch.Tensor:
    """Standard deviation of each image (N, 1, 1); torch.std is slower."""
    centred = pixels - pixels.mean((-2, -1), True)
    root_count = np.sqrt(pixels.shape[-2] * pixels.shape[-1])
    return torch.linalg.vector_norm(centred, dim=(-2, -1), keepdim=True) / root_count
