"""Changes of a sharp crop that leave the label of a later blur true.

Spectral slope, contrast curve, sign, background and grain of training crops are drawn at random.
"""

import numpy as np
import torch
from scipy.fft import next_fast_len
from torch.nn import functional

GAMMA_RANGE = (0.5, 2.0)
MAX_PEDESTAL = 0.5
LEFT_CONTRAST = 0.15  # after the pedestal: few crops then fail the gate, which asks for 0.1
INVERT_SHARE = 0.3
MIX_SHARE = 0.2
SLOPE_SHARE = 0.1
MAX_SLOPE_CHANGE = 0.3
GRAIN_SHARE = 0.4
GRAIN_RANGE = (0.01, 0.3)  # standard deviations of the crop


def stretch(pixels: torch.Tensor) -> torch.Tensor:
    """Scale each crop to [0, 1]: the pedestal of the image makes way for a random one."""
    low, high = pixels.amin((-2, -1), True), pixels.amax((-2, -1), True)
    return pixels.sub_(low).div_((high - low).clamp_min(1e-6))


def mix(pixels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Add the next crop to some of the crops (N, H, W), or take the brighter of both."""
    mixed = np.flatnonzero(rng.random(len(pixels)) < MIX_SHARE)
    if len(mixed):
        partners = pixels[(mixed + 1) % len(pixels)]
        weight = _column(rng.uniform(0.3, 0.7, len(mixed)))
        summed = weight * pixels[mixed] + (1 - weight) * partners
        brighter = torch.maximum(pixels[mixed], partners)
        pixels[mixed] = torch.where(_column(rng.random(len(mixed))) < 0.5, summed, brighter)
    return pixels


def vary_intensity(pixels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Change spectral slope, contrast curve, sign and background of crops (N, H, W) in [0, 1]."""
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
    # Inversion and pedestal are one line: x -> offset + scale x.
    scale = np.where(inverted, -1.0, 1.0) * (1 - pedestal)
    offset = np.where(inverted, 1.0, pedestal)
    return pixels.mul_(_column(scale)).add_(_column(offset))


def add_grain(pixels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Give some crops (N, H, W) a fine grain, like that of a photograph, below their contrast.

    Blurred with its object, grain tells nothing of noise; without it in training, sharp grainy
    patches were taken for blurred and noisy ones. It comes after the gate, which it would pass.
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
    """Background (N,) that leaves each crop (N, H, W) the contrast LEFT_CONTRAST.

    (1 - p) std / ((1 - p) mean + p) = LEFT_CONTRAST, solved for p; every fourth pixel will do.
    """
    some = pixels[:, ::4, ::4].flatten(1)
    mean, spread = some.mean(1).double().numpy(), some.std(1).double().numpy()
    room = spread - LEFT_CONTRAST * np.where(inverted, 1 - mean, mean)
    return np.maximum(room, 0) / (np.maximum(room, 0) + LEFT_CONTRAST)


def _change_slope(pixels: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """Multiply the spectrum by f^change, keeping mean and standard deviation. (N, H, W)."""
    size = pixels.shape[-1]
    # Padded to keep the wrap-around of the FFT away from the crop, and to a fast length.
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
    """Compute the standard deviation of each image (N, 1, 1); torch.std is slower."""
    centred = pixels - pixels.mean((-2, -1), True)
    root_count = np.sqrt(pixels.shape[-2] * pixels.shape[-1])
    return torch.linalg.vector_norm(centred, dim=(-2, -1), keepdim=True) / root_count
