"""Whether a restoration finds that the noise of its image was assumed too strong."""

import pytest
import torch
from scipy.ndimage import gaussian_filter

from models.mapping import PsfMap
from psf.microscope import Microscope
from psf.model import psf_model
from restoration.blur_map import blur_of_map
from restoration.fit import LEAST_FACTOR, MARGIN, NOISE_ALLOWED, noise_left
from restoration.with_map import restore_with_map

SHAPE = (112, 128)
PHOTONS = 200.0


def residuals_of(share, generator):
    """An image (H, W) whose residuals have a share of the variance of photon noise."""
    noise = torch.randn(SHAPE, generator=generator)
    return PHOTONS + (share * PHOTONS) ** 0.5 * noise


def smoothed(image, width_px):
    return torch.from_numpy(gaussian_filter(image.double().numpy(), width_px)).float()


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_weak_residuals_at_low_frequencies_bound_the_gain(share):
    # Smoothing keeps the strength of the noise at low frequencies.
    image = smoothed(residuals_of(share, torch.Generator().manual_seed(0)), 1.0)
    factor = noise_left(image, torch.full(SHAPE, PHOTONS))
    assert factor == pytest.approx(MARGIN * share, rel=0.25)


def test_the_gain_falls_by_a_bounded_factor_at_once():
    image = smoothed(residuals_of(0.01, torch.Generator().manual_seed(0)), 1.0)
    assert noise_left(image, torch.full(SHAPE, PHOTONS)) == LEAST_FACTOR


def test_residuals_without_low_frequencies_keep_the_gain():
    # The restoration followed the noise that the optics transmit.
    image = smoothed(residuals_of(0.4, torch.Generator().manual_seed(0)), 1.0)
    image = PHOTONS + image - smoothed(image, 2.5)
    assert noise_left(image, torch.full(SHAPE, PHOTONS)) == 1.0


def test_residuals_of_small_images_keep_the_gain():
    image = smoothed(residuals_of(0.4, torch.Generator().manual_seed(0)), 1.0)
    assert noise_left(image[:40], torch.full((40, SHAPE[1]), PHOTONS)) == 1.0


def test_pixels_that_are_not_usable_do_not_count():
    image = smoothed(residuals_of(0.4, torch.Generator().manual_seed(0)), 1.0)
    usable = torch.ones(SHAPE, dtype=torch.bool)
    usable[:16] = False
    spoiled = torch.where(usable, image, 10 * PHOTONS)
    expected = torch.full(SHAPE, PHOTONS)
    assert noise_left(spoiled, expected, usable) == noise_left(
        image.where(usable, 0), expected, usable
    )


def processed_scene():
    """Map, truth and smoothed image (H, W) of an object with edges, 1000 photons per pixel."""
    places = torch.tensor([16.0, 56.0, 96.0])
    values = torch.full((1, 3, 3), 7.0)  # px, FWHM
    found = PsfMap(
        psf_model("gaussian1d"),
        Microscope(),
        values,
        torch.full_like(values, 0.1),
        torch.ones(3, 3),
        places,
        places,
    )
    blur = blur_of_map(found, SHAPE)
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 1, 24, 24, generator=generator) + 0.1
    objects = torch.nn.functional.interpolate(coarse, blur.field_shape, mode="nearest")[0, 0]
    objects = objects * 1000 / objects.mean()
    image = torch.poisson(blur.forward(objects[None])[0].clamp(min=0), generator)
    return found, objects[blur.image_part], smoothed(image, 0.6)


def error(restored, truth):
    return float((restored.image - truth).square().mean())


def test_noise_assumed_too_strong_is_lowered_for_processed_images_only():
    found, truth, image = processed_scene()
    options = {"gain": 30.0, "refined": False, "prior": "tv"}
    kept, _ = restore_with_map(image, found, **options)
    lowered, _ = restore_with_map(image, found, white_noise=False, **options)
    assert kept.fit.gain == 30.0
    assert lowered.fit.gain < 30.0 / NOISE_ALLOWED
    assert error(lowered, truth) < 0.9 * error(kept, truth)
    assert "less noise" in " ".join(lowered.fit.sentences(30.0, white_noise=False))
    # a count of iterations that the user gave is kept, and with it the gain
    fixed, _ = restore_with_map(image, found, 5, white_noise=False, **options)
    assert fixed.fit.gain == 30.0
