"""Pixels of weight 0 in a restoration: their values play no part, and neighbours replace them."""

import pytest
import torch

from psf import InputError
from psf.blur import interpolate_grid
from restoration.fit import judge
from restoration.iteration import deviance_per_pixel
from restoration.richardson_lucy import richardson_lucy
from restoration.stopping import likelihood
from restoration.variant_blur import VariantBlur

SIZE = 96
ROUNDING = 1e-4  # of float32, amplified by some tens of iterations


@pytest.fixture(scope="module")
def scene():
    """A smooth random object, its blur, and its image at 300 photons per pixel."""
    generator = torch.Generator().manual_seed(3)
    distance = torch.arange(-8.0, 9.0)
    profile = torch.exp(-distance.square() / (2 * 1.8**2))
    psf = profile[:, None] * profile
    blur = VariantBlur.from_psf(psf, (SIZE, SIZE))
    height, width = blur.field_shape
    coarse = 600 * torch.rand(16, 16, generator=generator) ** 3 + 50
    places = torch.linspace(0, height - 1, 16)
    truth = interpolate_grid(coarse, places, places, torch.arange(height), torch.arange(width))
    photons = torch.poisson(blur.forward(truth[None])[0], generator)
    return truth[blur.image_part], blur, photons


def scattered(share=0.01):
    """Usable pixels: all but some single ones, a column, and a corner."""
    usable = torch.rand(SIZE, SIZE, generator=torch.Generator().manual_seed(1)) >= share
    usable[:, 40] = False
    usable[:20, :20] = False
    return usable


def error(image, truth, where=...):
    return float((image - truth)[where].square().mean().sqrt() / truth.std())


def test_all_pixels_usable_changes_nothing(scene):
    _, blur, photons = scene
    every = torch.ones_like(photons, dtype=torch.bool)
    found, expected = (richardson_lucy(photons, blur, usable=u) for u in (every, None))
    assert found.iterations == expected.iterations
    assert torch.allclose(found.image, expected.image, rtol=ROUNDING)
    assert found.deviance == pytest.approx(expected.deviance, rel=1e-5)


@pytest.mark.parametrize("garbage", [0.0, 5e4, float("nan")])
def test_the_values_of_masked_pixels_play_no_part(scene, garbage):
    _, blur, photons = scene
    usable = scattered()
    spoiled = torch.where(usable, photons, garbage)
    found, expected = (richardson_lucy(p, blur, usable=usable) for p in (spoiled, photons))
    assert found.iterations == expected.iterations
    assert torch.equal(found.image[20:], expected.image[20:])
    assert found.deviance == expected.deviance


def test_masked_pixels_show_what_their_neighbours_say(scene):
    truth, blur, photons = scene
    usable = scattered()
    spoiled = torch.where(usable, photons, 0.0)
    whole = richardson_lucy(photons, blur).image
    found = richardson_lucy(spoiled, blur, usable=usable).image
    unaware = richardson_lucy(spoiled, blur).image
    beside = ~usable
    beside[:22, :22] = False  # the corner is a region, not an outlier
    assert error(found, truth, beside) < 1.25 * error(whole, truth, beside)
    assert error(unaware, truth, beside) > 2 * error(found, truth, beside)


def test_regions_without_usable_pixels_keep_the_input(scene):
    _, blur, photons = scene
    usable = scattered(0)
    kept = torch.where(usable, photons, 7.0)
    found = richardson_lucy(kept, blur, background=2.0, usable=usable).image
    assert (found[:20, :20] == 5).all()
    assert (found[:20, 21:40] != kept[:20, 21:40] - 2).all()


def test_a_point_that_no_usable_pixel_sees_takes_the_local_light():
    # the PSF is a point, so that nobody sees the object under a dead pixel
    generator = torch.Generator().manual_seed(0)
    dark_and_bright = torch.full((64, 64), 20.0)
    dark_and_bright[:, 32:] = 2000.0
    photons = torch.poisson(dark_and_bright, generator)
    usable = torch.ones(64, 64, dtype=torch.bool)
    usable[10:60:10, 8], usable[10:60:10, 56] = False, False
    point = VariantBlur.from_psf(torch.ones(1, 1), (64, 64))
    found = richardson_lucy(photons, point, 5, usable=usable).image
    shares = found[~usable] / dark_and_bright[~usable]
    assert shares.min() > 0.8
    assert shares.max() < 1.25


def test_likelihood_deviance_and_misfit_count_usable_pixels_alone(scene):
    _, _, photons = scene
    usable, expected = scattered(), photons.mean().expand(SIZE, SIZE)
    spoiled = torch.where(usable, photons, 1e5)
    found = [
        (
            float(likelihood(one, expected, usable).sum()),
            deviance_per_pixel(one, expected, usable),
            float(judge(one, expected, usable).misfit.max()),
        )
        for one in (spoiled, photons)
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    assert found[0][1] == pytest.approx(
        deviance_per_pixel(photons[usable], expected[usable]), rel=1e-9
    )


def test_an_image_without_usable_pixels_is_refused(scene):
    _, blur, photons = scene
    with pytest.raises(InputError, match="no pixel of the image is usable"):
        richardson_lucy(photons, blur, usable=torch.zeros_like(photons, dtype=torch.bool))
