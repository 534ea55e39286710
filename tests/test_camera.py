"""Gain, offset and saturation from one simulated image of a known camera."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter, rotate, shift, zoom
from skimage import data

from micrographs.camera import (
    Camera,
    describe_camera,
    estimate_camera,
)
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


def light_of(counts: torch.Tensor, camera: Camera) -> float:
    """Mean photons per pixel."""
    return (float(counts.mean()) - camera.offset_counts) / camera.gain_counts_per_e


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
    found = light_of(counts, camera)
    assert abs(math.log(found / photons)) < math.log(FACTOR)


def processed(counts: torch.Tensor, how: str) -> torch.Tensor:
    """Counts (H, W) as common programs return them."""
    plane = counts.double().numpy()
    if how == "shifted by half a pixel":
        plane = shift(plane, (0.5, 0.5), order=1, mode="nearest")
    elif how == "rotated":
        plane = rotate(plane, 7, order=1, reshape=False, mode="nearest")
    elif how == "smoothed":
        plane = gaussian_filter(plane, 1.0)
    elif how == "enlarged":
        plane = zoom(plane, 2, order=1)[: plane.shape[0], : plane.shape[1]]
    elif how == "JPEG":
        levels = (plane * 200 / plane.max()).round().clip(0, 255).astype(np.uint8)
        stream = io.BytesIO()
        Image.fromarray(levels).save(stream, "JPEG", quality=85)
        plane = np.asarray(Image.open(stream)) * plane.max() / 200
    return torch.from_numpy(plane)


@pytest.mark.parametrize("photons", [10, 100, 1000, 10_000])
@pytest.mark.parametrize("name", ["photograph", "texture", "beads"])
def test_noise_of_raw_images_is_white(name, photons):
    assert estimate_camera(record(blurred(name), photons, 2.0)).white_noise


@pytest.mark.parametrize("photons", [100, 1000])
@pytest.mark.parametrize("name", ["photograph", "texture"])
@pytest.mark.parametrize(
    "how", ["shifted by half a pixel", "rotated", "smoothed", "enlarged", "JPEG"]
)
def test_noise_of_processed_images_is_that_at_low_frequencies(how, name, photons):
    # Too small a gain lets the restoration amplify noise, four times the gain costs little. JPEG
    # removes noise at all frequencies where it is weak. Enlarging by 2 puts the noise of 4 pixels
    # into each frequency.
    counts = record(blurred(name), photons, 2.0)
    camera = estimate_camera(processed(counts, how))
    assert not camera.white_noise
    raw = 2.0 * float((counts - OFFSET).median())  # variance of the photon noise
    expected = raw * {"enlarged": 4.0, "JPEG": 0.75}.get(how, 1.0)
    assert 0.5 * expected < camera.noise_counts**2 < 5 * expected
    light = float(counts.median()) - camera.offset_counts
    assert camera.gain_counts_per_e * light == pytest.approx(camera.noise_counts**2, rel=0.5)


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


def test_noise_that_does_not_rise_with_brightness_gives_the_gain_of_equal_photon_noise():
    generator = torch.Generator().manual_seed(6)
    content = blurred("photograph")
    camera = estimate_camera(content + 3 * torch.randn(content.shape, generator=generator))
    assert (camera.gain_source, camera.offset_source) == ("assumed", "assumed")
    assert camera.gain_error is None and camera.offset_counts == 0
    assert camera.noise_counts == pytest.approx(3, rel=0.1)
    assert camera.gain_counts_per_e == pytest.approx(9 / float(content.median()), rel=0.3)


@pytest.mark.parametrize("scale", [1e-4, 1e4])
@pytest.mark.parametrize("process", ["raw", "shifted", "constant noise"])
def test_camera_scales_with_the_image_whatever_is_found(process, scale):
    counts = record(blurred("photograph"), 300, 2.0).double()
    if process == "shifted":
        counts = processed(counts, "shifted by half a pixel")
    if process == "constant noise":
        generator = torch.Generator().manual_seed(6)
        counts = blurred("photograph").double()
        counts += 3 * torch.randn(counts.shape, generator=generator, dtype=torch.float64)
    one, other = estimate_camera(counts), estimate_camera(scale * counts)
    assert other.gain_counts_per_e == pytest.approx(scale * one.gain_counts_per_e, rel=1e-3)
    assert other.offset_counts == pytest.approx(scale * one.offset_counts, rel=1e-3, abs=1e-9)
    assert (other.white_noise, other.gain_source) == (one.white_noise, one.gain_source)


def test_a_given_offset_leads_to_the_same_gain_wherever_the_image_begins():
    counts = record(blurred("photograph"), 300, 2.0)
    one = estimate_camera(counts, offset_counts=OFFSET)
    other = estimate_camera(counts + 900, offset_counts=OFFSET + 900)
    assert one.offset_source == other.offset_source == "given"
    assert (one.offset_counts, other.offset_counts) == (OFFSET, OFFSET + 900)
    assert other.gain_counts_per_e == pytest.approx(one.gain_counts_per_e, rel=1e-3)
    assert one.gain_counts_per_e == pytest.approx(2, rel=0.1)
    assert estimate_camera(counts, gain_counts_per_e=5.0).gain_counts_per_e == 5.0
    assert estimate_camera(counts, gain_counts_per_e=5.0).gain_source == "given"


@pytest.mark.parametrize("plane", [torch.full((100, 100), 7.0), torch.rand(9, 9)])
def test_images_without_noise_to_see_have_4000_photons_per_pixel(plane):
    camera = estimate_camera(plane)
    assert (camera.gain_source, camera.offset_source) == ("assumed", "assumed")
    assert light_of(plane, camera) == pytest.approx(4000, rel=1e-6)


def test_missing_pixels_are_passed_over():
    counts = record(blurred("photograph"), 500, 1.0)
    whole = estimate_camera(counts)
    counts[:40] = math.nan
    assert estimate_camera(counts).gain_counts_per_e == pytest.approx(
        whole.gain_counts_per_e, rel=0.1
    )
    nothing = estimate_camera(torch.full((64, 64), math.nan))
    assert nothing.gain_counts_per_e is None


def test_large_images_are_measured_in_bands():
    content = blurred("photograph").repeat(4, 5)[:, :2400]
    camera = estimate_camera(record(content, 500, 2.0))
    assert abs(math.log(camera.gain_counts_per_e / 2)) < math.log(FACTOR)


def test_camera_says_where_its_numbers_come_from():
    raw = record(blurred("photograph"), 300, 2.0)
    found = describe_camera(estimate_camera(raw))
    assert len(found) == 1 and found[0].count("(found)") == 2 and "--gain" not in found[0]
    given = describe_camera(estimate_camera(raw, None, 90.0, 2.5))
    assert "offset 90 counts (given), gain 2.5 counts per photon (given)" in given[0]
    smooth = describe_camera(estimate_camera(processed(raw, "smoothed")))
    assert "registered, denoised, compressed" in smooth[1]
    flat = describe_camera(estimate_camera(torch.full((100, 100), 7.0)))
    assert flat[0].count("(assumed)") == 2 and "--gain-counts-per-e" in flat[0]
