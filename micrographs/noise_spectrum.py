"""Spectrum of the noise of one image: whether it is white, and its strength at low frequencies.

The pixels of a raw camera image are independent, so its noise has the same power at all spatial
frequencies. Registration, rotation, demosaicing, smoothing, denoising and JPEG remove noise at high
frequencies. They keep most of it at low ones, which the optics transmit and a restoration
amplifies. The power at low frequencies is therefore the one that counts.

The spectrum is measured in overlapping blocks. Content only adds power, so a low quantile over the
blocks is the noise where enough blocks are quiet.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch

BLOCK_PX = 32  # edge of a block: the rings below hold 20 frequencies or more
STEP_PX = 16  # between blocks: under the window, neighbours at half a block are nearly independent
RINGS = 12  # of equal width
LOWEST = 0.045  # cycles per pixel; shading and the window's own spectrum lie below
QUIET_SHARE = 0.25  # quantile of the blocks
CLIPPED_SHARE = 0.01  # of a block's pixels at an end of the range; with more it is left out
FEWEST_SPECTRA = 24  # for a quantile; an image of 112 x 112 px has as many
TOP_RINGS = 4  # 0.49 cycles per pixel and more, which hardly any object reaches through its optics
# Largest ratio among the top rings of white noise. 136 simulated raw images (17 objects, in focus
# and defocused, 10 to 10,000 photons per pixel) stay below 1.18. Shifted, rotated and smoothed
# images exceed 1.9, and 9 of 10 images of JPEG quality 85 exceed 1.3.
FLATTEST = 1.3
LOW_FREQUENCIES = 0.3  # cycles per pixel; above, denoised and compressed images have little noise
# A filter removes noise at these frequencies too, as exp(-c r^2) with at least this c in px^2.
# Content hardly reaches them. Noise of JPEG images and median filters has a plateau there.
KERNEL_FREQUENCIES, SMALLEST_FALL = (0.32, 0.57), 3.0
# Share of the noise that low rings show below which they are taken to show content instead. Noise
# that is 4 times too strong costs little, noise that is half as strong costs all.
HIDDEN = 0.25
ROUNDED = 3.0  # times step^2 / 12, the noise of whole numbers: weaker noise cannot be seen


@dataclass(frozen=True)
class BlockSpectra:
    """Power spectra of the quiet and other blocks of an image."""

    mean: torch.Tensor  # (B,) brightness, counts
    power: torch.Tensor  # (B, RINGS) mean power, counts^2; white noise has its variance in all
    rounding: float  # variance of the rounding of the image's numbers, counts^2


@dataclass(frozen=True)
class LowFrequencyNoise:
    """Where the noise at low frequencies is measured."""

    ring: int
    factor: float  # noise at frequency 0 over that of the ring


def block_spectra(plane: torch.Tensor) -> BlockSpectra:
    """Spectra of the blocks of a plane (H, W); blocks with NaN or clipped pixels are left out."""
    height, width = plane.shape
    known = plane[plane.isfinite()]
    means, powers = [plane.new_zeros(0).double()], [plane.new_zeros(0, RINGS).double()]
    if min(height, width) >= BLOCK_PX and len(known):
        low, high = known.min(), known.max()
        for top in range(0, height - BLOCK_PX + 1, STEP_PX):
            blocks = plane[top : top + BLOCK_PX].unfold(1, BLOCK_PX, STEP_PX).movedim(1, 0)
            clipped = [(blocks == end).double().mean((1, 2)) > CLIPPED_SHARE for end in (low, high)]
            blocks = blocks[blocks.isfinite().all(2).all(1) & ~clipped[0] & ~clipped[1]].double()
            if len(blocks):
                means.append(blocks.mean((1, 2)))
                powers.append(_ring_powers(blocks))
    step = smallest_step(known)
    return BlockSpectra(torch.cat(means), torch.cat(powers), step**2 / 12)


def quiet_power(power: torch.Tensor) -> torch.Tensor:
    """Noise power (RINGS,) of blocks (B, RINGS): a low quantile, corrected for that of white noise.

    Divide the power by the variance that the brightness of each block suggests, so that dark blocks
    are not taken for quiet ones.
    """
    return torch.quantile(power, QUIET_SHARE, dim=0) / quiet_share_of_white_noise()


def is_white(quiet: torch.Tensor) -> bool:
    """Whether the highest frequencies of a spectrum (RINGS,) carry equal power."""
    top = quiet[-TOP_RINGS:]
    return bool(top.max() < FLATTEST * top.min())


def low_frequency_noise(quiet: torch.Tensor, rounding: float) -> LowFrequencyNoise | None:
    """How to measure the noise at frequency 0 of noise that is not white; None where it is hidden.

    Smooth filters let noise fall as exp(-c r^2) near frequency 0 and faster farther out. Continued
    to 0 from two neighbouring rings, the noise is therefore right or too strong. Where content adds
    to the inner ring it is far too strong. So the smallest of the continuations from low rings
    counts, or the median of those from high ones if it is much smaller.

    Parameters
    ----------
    quiet : (RINGS,) noise power
    rounding : power of the rounding to whole numbers, in the same unit
    """
    radius = ring_frequencies()
    seen = quiet > ROUNDED * rounding
    seen = seen[:-1] & seen[1:]
    fall = (quiet[:-1] / quiet[1:]).clamp(min=1.0).log() / radius.square().diff()
    continued = fall.mul(radius[:-1].square()).exp() * quiet[:-1]
    low = seen & (radius[1:] < LOW_FREQUENCIES)
    ring = int(torch.where(low, continued, torch.inf).argmin()) if low.any() else None
    kernel = (radius[:-1] > KERNEL_FREQUENCIES[0]) & (radius[1:] < KERNEL_FREQUENCIES[1])
    if seen[kernel].all() and (fall[kernel] > SMALLEST_FALL).all():
        middle = continued[kernel].median()
        if ring is None or middle < HIDDEN * continued[ring]:
            ring = int((continued == middle).nonzero()[0])
    if ring is None:
        return None
    return LowFrequencyNoise(ring, float(continued[ring] / quiet[ring]))


@lru_cache(maxsize=1)
def ring_frequencies() -> torch.Tensor:
    """Mean spatial frequency (RINGS,) of each ring, cycles per pixel."""
    which, radius = _rings()
    return torch.stack([radius[which == ring].mean() for ring in range(RINGS)])


@lru_cache(maxsize=1)
def quiet_share_of_white_noise() -> torch.Tensor:
    """Low quantile (RINGS,) over the blocks of white noise of variance 1, by simulation."""
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randn(4096, BLOCK_PX, BLOCK_PX, generator=generator, dtype=torch.float64)
    return torch.quantile(_ring_powers(blocks), QUIET_SHARE, dim=0)


def _ring_powers(blocks: torch.Tensor) -> torch.Tensor:
    """Mean power (B, RINGS) of blocks (B, BLOCK_PX, BLOCK_PX) without their mean and slope."""
    window = torch.hann_window(BLOCK_PX, dtype=blocks.dtype)
    window = window[:, None] * window
    window /= window.square().mean().sqrt()
    line = torch.arange(BLOCK_PX).to(blocks) - (BLOCK_PX - 1) / 2
    blocks = blocks - blocks.mean((1, 2), keepdim=True)
    for slope in (line[:, None].expand(BLOCK_PX, -1), line.expand(BLOCK_PX, -1)):
        share = (blocks * slope).sum((1, 2), keepdim=True) / slope.square().sum()
        blocks = blocks - share * slope
    power = torch.fft.fft2(blocks * window).abs().square() / BLOCK_PX**2
    which, _ = _rings()
    return torch.stack([power[:, which == ring].mean(1) for ring in range(RINGS)], 1)


@lru_cache(maxsize=1)
def _rings() -> tuple[torch.Tensor, torch.Tensor]:
    """Ring and spatial frequency of each element of a block's spectrum; -1: in no ring."""
    line = torch.fft.fftfreq(BLOCK_PX, dtype=torch.float64)
    radius = torch.hypot(line[:, None], line)
    edges = torch.linspace(LOWEST, math.sqrt(0.5) + 1e-9, RINGS + 1, dtype=torch.float64)
    return torch.bucketize(radius, edges, right=True) - 1, radius


def smallest_step(values: torch.Tensor) -> float:
    """Smallest difference between two values: 1 of whole numbers, nearly 0 of measured floats."""
    steps = values[: 2**20].unique().diff()
    return float(steps.min()) if len(steps) else 0.0
