"""Gain, offset and saturation from one simulated image of a known camera."""

import math

import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage import data

from micrographs.camera import Camera, estimate_camera, photons_per_pixel, saturated_share
from psf.noise import camera_counts, to_photons

OFFSET = 100.0
FACTOR = 1.3  # within which the gain of one image is promised


def blurred(name: str) -> torch.Tensor:
    """Smooth content (H, W)."""
    if name == "photograph":
        sharp = torch.from_numpy(data.camera()).float()
    elif name == "texture":
        generator = torch.Generator().manual_seed(3)
        sharp = torch.rand(400, 400, generator=generator) + 0.05
    else:  # a few bright beads on a dark ground
        generator = torch.Generator().manual_seed(4)
        sharp = (torch.rand(400, 400, generator=generator) > 0.9995).float() + 0.002
    sigma = {"photograph": 1.3, "texture": 2.0, "beads": 3.0}[name]
    return torch.from_numpy(gaussian_filter(sharp.numpy(), sigma))


def record(content: torch.Tensor, photons: float, gain: float, read_noise_e=1.6) -> torch.Tensor:
    expected = to_photons(content[None], photons)
    generator = torch.Generator().manual_seed(1)
    return camera_counts(expected, generator, read_noise_e, gain, OFFSET)[0]


@pytest.mark.parametrize("photons", [50, 500, 5000])
@pytest.mark.parametrize("gain", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("name", ["photograph", "beads"])
def test_gain_within_its_factor(name, gain, photons):
    counts = record(blurred(name), photons, gain)
    camera = estimate_camera(counts)
    assert abs(math.log(camera.gain_counts_per_e / gain)) < math.log(FACTOR)
    found = photons_per_pixel(float(counts.mean()), camera)
    assert abs(math.log(found / photons)) < math.log(FACTOR)


def test_offset_of_an_image_with_dark_regions():
    camera = estimate_camera(record(blurred("photograph"), 100, 2.0))
    # the zero of the line lies gain x read_noise^2 = 5.1 counts below the offset
    assert OFFSET - 10 < camera.offset_counts < OFFSET + 2


def test_gain_scales_with_the_counts():
    counts = record(blurred("photograph"), 300, 1.0)
    one, three = estimate_camera(counts), estimate_camera(3 * counts)
    assert three.gain_counts_per_e == pytest.approx(3 * one.gain_counts_per_e, rel=1e-3)
    assert three.offset_counts == pytest.approx(3 * one.offset_counts, rel=1e-3)
    assert three.noise_counts == pytest.approx(3 * one.noise_counts, rel=1e-3)


def test_offset_never_exceeds_the_darkest_blocks_or_falls_below_zero():
    for photons in (50, 5000):
        counts = record(blurred("texture"), photons, 1.0)
        camera = estimate_camera(counts)
        assert 0 <= camera.offset_counts <= float(counts.quantile(0.1))


def test_hot_pixels_and_saturation_leave_the_gain():
    counts = record(blurred("photograph"), 500, 1.0)
    generator = torch.Generator().manual_seed(5)
    hot = torch.rand(counts.shape, generator=generator) > 0.9995
    counts = torch.where(hot, counts + 3000, counts).clamp(max=900)
    camera = estimate_camera(counts)
    assert abs(math.log(camera.gain_counts_per_e)) < math.log(FACTOR)


def test_noise_that_does_not_rise_with_brightness_has_no_gain():
    generator = torch.Generator().manual_seed(6)
    content = blurred("photograph")
    camera = estimate_camera(content + 3 * torch.randn(content.shape, generator=generator))
    assert camera.gain_counts_per_e is None and camera.gain_error is None
    assert camera.noise_counts == pytest.approx(3, rel=0.1)
    assert photons_per_pixel(120.0, camera) is None


@pytest.mark.parametrize("plane", [torch.full((100, 100), 7.0), torch.rand(9, 9)])
def test_images_without_enough_to_see_have_no_gain(plane):
    camera = estimate_camera(plane)
    assert camera.gain_counts_per_e is None
    assert camera.offset_counts <= float(plane.mean())


def test_missing_pixels_are_passed_over():
    counts = record(blurred("photograph"), 500, 1.0)
    whole = estimate_camera(counts)
    counts[:40] = math.nan
    assert estimate_camera(counts).gain_counts_per_e == pytest.approx(
        whole.gain_counts_per_e, rel=0.1
    )
    assert estimate_camera(torch.full((64, 64), math.nan)).gain_counts_per_e is None


def test_large_images_are_measured_in_bands():
    content = blurred("photograph").repeat(4, 5)[:, :2400]
    camera = estimate_camera(record(content, 500, 2.0))
    assert abs(math.log(camera.gain_counts_per_e / 2)) < math.log(FACTOR)


def test_photons_are_counts_above_the_offset_over_the_gain():
    camera = Camera(offset_counts=100.0, gain_counts_per_e=2.0, gain_error=0.1, noise_counts=5.0)
    assert photons_per_pixel(300.0, camera) == 100
    assert photons_per_pixel(90.0, camera) == 0


def test_saturated_share():
    plane = torch.tensor([[4095.0, 4094.0], [0.0, 4095.0]])
    assert saturated_share(plane, 4095.0) == 0.5
    assert saturated_share(plane, 65535.0) == 0
    assert saturated_share(plane, None) == 0
