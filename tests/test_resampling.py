"""Resampling: what a coarser camera would have seen is found from finer pixels."""

import numpy as np
import pytest
import torch

from models.mapping import TensorImage
from models.resampling import ResampledImage, Resampling, fit_resampling
from psf import synthesize
from psf.microscope import simulated_microscopes

LIMITS = (0.425, 0.6)  # cycles per px


def microscope(cutoff):
    """A microscope with that cut-off frequency in cycles per px."""
    return simulated_microscopes([(0.45, 0.5, cutoff * 0.5 / 0.9, 1.33)])[0]


@pytest.mark.parametrize(
    ("cutoff", "binning", "resampled"),
    [
        (0.5, 1, False),
        (0.425, 1, False),
        (0.9, 1, False),
        (0.25, 2, False),
        (0.149, 3, False),
        (0.099, 5, False),
        (0.36, 1, True),
        (0.205, 2, True),
        (0.3, 2, False),
    ],
)
def test_binning_comes_first_and_the_result_is_within_the_limits(cutoff, binning, resampled):
    found = fit_resampling(microscope(cutoff), LIMITS)
    assert found.binning == binning
    assert (found.scale < 1) == resampled
    if cutoff <= LIMITS[1]:
        seen = found.microscope(microscope(cutoff)).cutoff_cycles_per_pixel
        assert LIMITS[0] <= seen <= LIMITS[1]


def test_binned_pixels_are_means_of_their_groups():
    pixels = torch.arange(35.0).reshape(5, 7)
    found = ResampledImage(TensorImage(pixels), Resampling(2))
    assert found.shape == (2, 3)
    expected = torch.tensor([[4.0, 6, 8], [18, 20, 22]])
    assert torch.equal(found.rows(0, 2), expected)
    assert torch.equal(found.rows(1, 2), expected[1:])


def test_resampled_waves_are_the_waves_at_the_new_pixels():
    y, x = np.mgrid[:200, :180].astype(float)
    wave = 5 + np.sin(2 * np.pi * (0.17 * x + 0.11 * y))
    image = ResampledImage(TensorImage(torch.from_numpy(wave).float()), Resampling(1, 0.8))
    assert image.shape == (160, 144)
    v, u = ((np.arange(n) + 0.5) / 0.8 - 0.5 for n in image.shape)
    expected = 5 + np.sin(2 * np.pi * (0.17 * u + 0.11 * v[:, None]))
    inner = (slice(10, -10), slice(10, -10))
    assert np.abs(image.rows(0, 160).numpy() - expected)[inner].max() < 0.01


def test_bands_are_those_of_the_whole():
    pixels = torch.rand(120, 90, generator=torch.Generator().manual_seed(0))
    image = ResampledImage(TensorImage(pixels), Resampling(2, 0.7))
    assert torch.allclose(image.rows(11, 30), image.rows(0, image.shape[0])[11:30])


def test_noise_keeps_white_and_the_mean_is_kept():
    noise = 100 + torch.randn(400, 400, generator=torch.Generator().manual_seed(0))
    image = ResampledImage(TensorImage(noise), Resampling(1, 0.75))
    found = image.rows(0, image.shape[0])[20:-20, 20:-20]
    assert float(found.mean()) == pytest.approx(100, abs=0.01)
    power = torch.fft.rfft2(found - found.mean()).abs().square()
    low, high = power[5:40, 5:40].mean(), power[70:110, 70:110].mean()
    assert float(high / low) == pytest.approx(1, abs=0.15)


def test_psf_on_fine_pixels_becomes_the_psf_on_coarse_ones():
    fine, coarse = microscope(0.25), microscope(0.5)
    label = torch.tensor([[0.8]])
    psf = synthesize("zernike1d", label, fine, 254)[0]
    # an even grid has its centre on pixel 127, in the middle of no group: shift it onto one
    psf = torch.nn.functional.pad(psf, (0, 1, 0, 1))
    found = ResampledImage(TensorImage(psf), Resampling(2)).rows(0, 127) * 4
    expected = synthesize("zernike1d", label, coarse, 127)[0]
    # half a fine pixel apart: compare what does not see a shift
    spectra = [torch.fft.rfft2(image).abs() for image in (found, expected)]
    assert float((spectra[0] - spectra[1]).abs().max()) < 0.01
