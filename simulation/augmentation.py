"""Random changes of sharp training crops. The crops are blurred later, so their labels stay true.

Spectral slope, contrast curve, sign, background and grain are drawn at random.
"""

from dataclasses import dataclass, fields

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


@dataclass(frozen=True)
class Changes:
    """Random changes of N crops, each an array (N,)."""

    mixed: np.ndarray  # bool: combined with the other crop of its pair
    weights: np.ndarray  # of the crop itself in a sum of two
    brightest: np.ndarray  # bool: a mixed crop shows the brighter of both, not their sum
    sloped: np.ndarray  # bool: changed in spectral slope
    slopes: np.ndarray  # change of the exponent of the amplitude spectrum
    gammas: np.ndarray  # exponent of the contrast curve
    signs: np.ndarray  # 1, or -1 for inverted crops
    pedestals: np.ndarray  # background, as a share of the brightest pixel
    grained: np.ndarray  # bool: with grain
    grains: np.ndarray  # strength of the grain, in standard deviations of the crop

    def part(self, some: slice | np.ndarray) -> "Changes":
        """Changes of some of the crops: a slice, or their numbers."""
        return Changes(*(getattr(self, field.name)[some] for field in fields(self)))


def draw_changes(count: int, rng: np.random.Generator) -> Changes:
    """Random changes of `count` crops."""
    return Changes(
        mixed=rng.random(count) < MIX_SHARE,
        weights=rng.uniform(0.3, 0.7, count),
        brightest=rng.random(count) < 0.5,
        sloped=rng.random(count) < SLOPE_SHARE,
        slopes=rng.uniform(-MAX_SLOPE_CHANGE, MAX_SLOPE_CHANGE, count),
        gammas=np.exp(rng.uniform(*np.log(GAMMA_RANGE), count)),
        signs=np.where(rng.random(count) < INVERT_SHARE, -1.0, 1.0),
        pedestals=rng.uniform(0, MAX_PEDESTAL, count),
        grained=rng.random(count) < GRAIN_SHARE,
        grains=np.exp(rng.uniform(*np.log(GRAIN_RANGE), count)),
    )


def stretch(pixels: torch.Tensor) -> torch.Tensor:
    """Crops scaled to [0, 1], which removes the background of the image; changed in place."""
    low, high = pixels.amin((-2, -1), True), pixels.amax((-2, -1), True)
    return pixels.sub_(low).div_((high - low).clamp_min(1e-6))


def mix(pixels: torch.Tensor, changes: Changes) -> torch.Tensor:
    """Crops (N, H, W), some of them combined with the other crop of their pair; in place.

    Crops 0 and 1 are a pair, 2 and 3, and so on. A mixed crop is the sum of both, or the brighter
    of both at each pixel.
    """
    mixed = np.flatnonzero(changes.mixed)
    if len(mixed):
        partners = pixels[_index(np.minimum(mixed ^ 1, len(pixels) - 1), pixels)]
        chosen = pixels[_index(mixed, pixels)]
        weight = _column(changes.weights[mixed], pixels)
        brightest = _column(changes.brightest[mixed], pixels) > 0
        summed = weight * chosen + (1 - weight) * partners
        both = torch.where(brightest, torch.maximum(chosen, partners), summed)
        pixels[_index(mixed, pixels)] = both
    return pixels


def vary_intensity(pixels: torch.Tensor, changes: Changes) -> torch.Tensor:
    """Crops (N, H, W) in [0, 1] with new spectral slope, contrast curve, sign and background.

    Changed in place.
    """
    pixels = vary_contrast(pixels, changes)
    signs = _column(changes.signs, pixels)
    most = _most_pedestal(pixels, signs < 0)
    pedestals = torch.minimum(_column(changes.pedestals, pixels), most)
    return pixels.mul_(1 - pedestals).add_(torch.where(signs < 0, 0.0, pedestals))


def vary_contrast(pixels: torch.Tensor, changes: Changes) -> torch.Tensor:
    """Crops (N, H, W) in [0, 1] with new spectral slope, contrast curve and sign; in place."""
    if changes.sloped.any():
        chosen = _index(np.flatnonzero(changes.sloped), pixels)
        slopes = _column(changes.slopes[changes.sloped], pixels)
        pixels[chosen] = _change_slope(pixels[chosen], slopes)
    gammas, signs = _column(changes.gammas, pixels), _column(changes.signs, pixels)
    pixels = pixels.log_().mul_(gammas).exp_()  # faster than pow; 0 stays 0
    return pixels.mul_(signs).add_((signs < 0).to(pixels))


def add_grain(pixels: torch.Tensor, changes: Changes, generator: torch.Generator) -> torch.Tensor:
    """Crops (N, H, W), of which some have a fine grain like a photograph, below their contrast.

    The grain is blurred with its object, so it differs from camera noise. Networks that were
    trained without it took sharp grainy patches for blurred and noisy ones. It is added after the
    content filter, since grain alone would pass the filter. Changed in place.
    """
    grained = np.flatnonzero(changes.grained)
    if not len(grained):
        return pixels
    index = _index(grained, pixels)
    chosen = pixels[index]
    strength = _column(changes.grains[grained], pixels) * deviation(chosen)
    noise = torch.randn(chosen.shape, generator=generator, device=pixels.device)
    pixels[index] = noise.mul_(strength).add_(chosen).clamp_(0, 1)
    return pixels


def _most_pedestal(pixels: torch.Tensor, inverted: torch.Tensor) -> torch.Tensor:
    """Largest background (N, 1, 1) that leaves each crop (N, H, W) the contrast LEFT_CONTRAST.

    It is the solution p of (1 - p) std / ((1 - p) mean + p) = LEFT_CONTRAST. Every fourth pixel is
    enough for mean and standard deviation.
    """
    some = pixels[:, ::4, ::4].contiguous()
    mean, spread = some.mean((1, 2), True), deviation(some)
    room = spread - LEFT_CONTRAST * torch.where(inverted, 1 - mean, mean)
    return room.clamp(min=0) / (room.clamp(min=0) + LEFT_CONTRAST)


def _change_slope(pixels: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """Crops (N, H, W) with spectra times f^change and unchanged mean and standard deviation."""
    size = pixels.shape[-1]
    # The padding keeps the wrap-around of the FFT out of the crop and makes the length fast.
    length = next_fast_len(size + 16, real=True)
    mean, spread = pixels.mean((-2, -1), True), deviation(pixels)
    padding = (0, length - size) * 2
    padded = functional.pad((pixels - mean)[:, None], padding, mode="reflect")[:, 0]
    device = pixels.device
    fy, fx = torch.fft.fftfreq(length, device=device), torch.fft.rfftfreq(length, device=device)
    log_f = torch.hypot(fy[:, None], fx[None, :]).clamp_min(1 / length).log()
    spectrum = torch.fft.rfft2(padded).mul_(torch.exp(change * log_f))
    changed = torch.fft.irfft2(spectrum, s=(length, length))[:, :size, :size]
    changed = changed - changed.mean((-2, -1), True)
    scale = spread / deviation(changed).clamp_min(1e-6)
    return (mean + scale * changed).clamp_(0, 1)


def on_device(values: np.ndarray, device: torch.device) -> torch.Tensor:
    """Numbers that were drawn on the CPU, on a device; float64 becomes float32."""
    if values.dtype == np.float64:
        values = values.astype(np.float32)
    # CUDA goes on with its work while such a copy is made; MPS may read the numbers too late
    return torch.from_numpy(values).to(device, non_blocking=device.type == "cuda")


def _column(values: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    """One value per crop on the device of `like`, (N,) -> (N, 1, 1)."""
    return on_device(values.astype(np.float32), like.device)[:, None, None]


def _index(rows: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    """Row numbers (N,) on the device of `like`."""
    return on_device(rows, like.device)


def deviation(pixels: torch.Tensor) -> torch.Tensor:
    """Standard deviation of each image (N, 1, 1); torch.std is slower."""
    centred = pixels - pixels.mean((-2, -1), True)
    root_count = np.sqrt(pixels.shape[-2] * pixels.shape[-1])
    return torch.linalg.vector_norm(centred, dim=(-2, -1), keepdim=True) / root_count
