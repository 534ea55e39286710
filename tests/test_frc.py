"""Fourier ring correlation: closed forms for noise, cut-offs, crossings of a threshold."""

import math

import numpy as np
import pytest
import torch

from restoration.frc import (
    PAIR_THRESHOLD,
    TRUTH_THRESHOLD,
    resolution_px,
    ring_correlation,
    ring_frequencies,
)

SIZE = 256
FREQUENCIES = ring_frequencies()


def noise(seed, shape=(SIZE, SIZE)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def low_passed(image, cutoff):
    """The image without its frequencies above a cut-off, cycles per pixel."""
    y, x = (torch.fft.fftfreq(length, dtype=torch.float64) for length in image.shape)
    inside = torch.hypot(y[:, None], x[None]) < cutoff
    return torch.fft.ifft2(torch.fft.fft2(image) * inside).real


def test_a_signal_in_white_noise_has_its_share_of_the_power():
    # a white signal of power 1 below 0.25 cycles per pixel, in independent noise of power 0.5
    signal = low_passed(noise(0), 0.25)
    one, other = (signal + math.sqrt(0.5) * noise(seed) for seed in (1, 2))
    below, above = FREQUENCIES < 0.23, FREQUENCIES > 0.27
    pair, truth = ring_correlation(one, other), ring_correlation(one, signal)
    assert pair[below].mean() == pytest.approx(1 / 1.5, abs=0.02)
    assert truth[below].mean() == pytest.approx(math.sqrt(1 / 1.5), abs=0.02)
    assert abs(pair[above].mean()) < 0.01
    assert resolution_px(pair, PAIR_THRESHOLD) == pytest.approx(4, abs=0.1)
    assert resolution_px(truth, TRUTH_THRESHOLD) == pytest.approx(4, abs=0.1)


def test_independent_noise_does_not_correlate_and_equal_images_do():
    assert np.abs(ring_correlation(noise(0), noise(1))[4:]).max() < 0.2
    assert ring_correlation(noise(0), 3 * noise(0) + 7) == pytest.approx(1)
    assert ring_correlation(noise(0), -noise(0)) == pytest.approx(-1)


@pytest.mark.parametrize("shape", [(SIZE, SIZE), (200, 300)])
@pytest.mark.parametrize("cutoff", [0.1, 0.3])
def test_the_resolution_of_a_low_passed_pair_is_its_cutoff(shape, cutoff):
    one, other = (low_passed(noise(0, shape), cutoff) + 0.3 * noise(s, shape) for s in (1, 2))
    found = resolution_px(ring_correlation(one, other), PAIR_THRESHOLD)
    ring = FREQUENCIES[1] - FREQUENCIES[0]
    assert 1 / found == pytest.approx(cutoff, abs=2 * ring)


def test_borders_that_both_images_share_do_not_correlate():
    # a ramp does not repeat at its borders: untapered, it correlates along the axes
    ramp = 30 * torch.linspace(0, 1, SIZE).double().expand(SIZE, SIZE)
    correlation = ring_correlation(ramp + noise(0), ramp + noise(1))
    assert correlation[FREQUENCIES > 0.1].mean() < 0.02


def test_the_crossing_lies_between_rings():
    curve = np.where(FREQUENCIES < 0.2, 1.0, 0.0)
    last, first = FREQUENCIES[FREQUENCIES < 0.2][-1], FREQUENCIES[FREQUENCIES > 0.2][0]
    assert resolution_px(curve, 0.25) == pytest.approx(1 / (last + 0.75 * (first - last)))
    assert resolution_px(np.ones_like(curve), 0.5) == 2
    assert resolution_px(np.zeros_like(curve), 0.5) == math.inf
    # the first fall counts: a later rise of noise is no resolution
    assert resolution_px(np.where(np.abs(FREQUENCIES - 0.3) < 0.05, 1, curve), 0.5) > 4.5


def test_the_thresholds_belong_to_the_same_ratio_of_signal_and_noise():
    assert math.sqrt(2 * PAIR_THRESHOLD / (1 + PAIR_THRESHOLD)) == pytest.approx(TRUTH_THRESHOLD)
