"""Fourier ring correlation: up to which frequency two images agree.

Of two restorations of independent exposures it is the resolution measure of light microscopy
(Banterle et al., J. Struct. Biol. 183, 363 (2013); Nieuwenhuizen et al., Nat. Methods 10, 557
(2013)). A prior that both restorations share raises it, even where the detail is wrong. The
correlation with the truth has no such fault, but needs a truth.
"""

import math

import numpy as np
import torch

RINGS = 64  # between 0 and 0.5 cycles per pixel: of an image of 256 px, each is two steps wide
TAPER = 0.125  # share of each edge that falls to 0, since borders that differ would correlate
PAIR_THRESHOLD = 1 / 7  # for two exposures, of Nieuwenhuizen et al.
# For one image and the truth. It belongs to 1/7 if the image is the mean of both exposures:
# sqrt(2 F / (1 + F)), Rosenthal & Henderson, J. Mol. Biol. 333, 721 (2003).
TRUTH_THRESHOLD = 0.5
NYQUIST_PX = 2.0  # finest resolution that pixels can show


def ring_frequencies() -> np.ndarray:
    """Middle frequencies (RINGS,) of the rings, cycles per pixel."""
    return (np.arange(RINGS) + 0.5) * 0.5 / RINGS


def ring_correlation(one: torch.Tensor, other: torch.Tensor) -> np.ndarray:
    """Correlation (RINGS,) of the Fourier transforms of two images (H, W), ring by ring.

    Re(sum F1 F2*) / sqrt(sum |F1|^2 sum |F2|^2). It is S / (S + N) for signals of power S in
    independent noise of power N, and sqrt(S / (S + N)) if one of the images has no noise. Rings
    without any signal have 0.
    """
    first, second = (torch.fft.fft2(tapered(image)).numpy() for image in (one, other))
    y, x = (np.fft.fftfreq(length) for length in one.shape)
    radius = np.hypot(y[:, None], x)
    ring = np.minimum(radius * 2 * RINGS, RINGS).astype(int)  # the last one holds the corners
    ring[0, 0] = RINGS  # the mean is no structure

    def sums(values: np.ndarray) -> np.ndarray:
        return np.bincount(ring.ravel(), values.ravel(), RINGS + 1)[:RINGS]

    cross = sums((first * second.conj()).real)
    power = np.sqrt(sums(np.abs(first) ** 2) * sums(np.abs(second) ** 2))
    return np.divide(cross, power, out=np.zeros(RINGS), where=power > 0)


def resolution_px(correlation: np.ndarray, threshold: float) -> float:
    """Period in pixels at which a correlation (RINGS,) first falls below a threshold.

    It is at least 2 px, and infinite if the correlation starts below the threshold.
    """
    below = np.flatnonzero(correlation < threshold)
    if not len(below):
        return NYQUIST_PX
    last = below[0]
    if last == 0:
        return math.inf
    frequencies, (high, low) = ring_frequencies(), correlation[last - 1 : last + 1]
    share = (high - threshold) / (high - low)
    crossing = frequencies[last - 1] + share * (frequencies[last] - frequencies[last - 1])
    return 1 / float(crossing)


def tapered(image: torch.Tensor) -> torch.Tensor:
    """Image (H, W) without its mean, in double precision, that falls to 0 at its borders."""
    image = image.double() - image.double().mean()
    for axis, length in enumerate(image.shape):
        edge = round(TAPER * length)
        rise = torch.sin(math.pi / 2 * (torch.arange(edge).double() + 0.5) / edge) ** 2
        line = torch.cat([rise, torch.ones(length - 2 * edge).double(), rise.flip(0)])
        image = image * line.reshape([-1 if a == axis else 1 for a in range(2)])
    return image
