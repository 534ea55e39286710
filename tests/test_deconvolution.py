"""Richardson-Lucy: conserved light, no shift, borders, noise, stopping, tiles, bad input."""

import math

import pytest
import torch
from skimage import data

from psf import InputError, Microscope, synthesize_with_loss
from restoration.iteration import Momentum, Settings, curvature, deviance_per_pixel, prior_scales
from restoration.richardson_lucy import richardson_lucy, tiles
from restoration.stopping import choose, search_windows
from restoration.variant_blur import VariantBlur

SIZE, K = 128, 31


def psf_of(z_um, size=K):
    psfs, _ = synthesize_with_loss("gibson_lanni", torch.tensor([[z_um]]), Microscope(), size)
    return psfs[0]


def plain_blur(z_um=2.0, shape=(SIZE, SIZE)):
    return VariantBlur.from_psf(psf_of(z_um), shape)


def varying_blur(shape=(SIZE, SIZE)):
    """Defocus of 0.5 to 3 um along the columns."""
    psfs = torch.stack([psf_of(z_um) for z_um in (0.5, 1.0, 2.0, 3.0)])[None].expand(2, 4, K, K)
    rows = torch.tensor([0.0, shape[0] - 1])
    return VariantBlur.from_psfs(psfs, rows, torch.linspace(0, shape[1] - 1, 4), shape)


def scene(blur, photons=300.0, corner=(100, 150)):
    """Photons (field) of a part of a photograph with real content outside the image."""
    height, width = blur.field_shape
    part = data.camera()[corner[0] : corner[0] + height, corner[1] : corner[1] + width]
    part = torch.from_numpy(part.copy()).float()
    return part / part.mean() * photons


def seen_through(blur, objects, seed=0):
    """Expected image, and one with Poisson noise."""
    clean = blur.forward(objects[None])[0].clamp(min=0)
    return clean, torch.poisson(clean, torch.Generator().manual_seed(seed))


def psnr(found, truth):
    return 10 * math.log10(float(truth.max() ** 2 / (found - truth).square().mean()))


def centroid(image):
    y, x = (torch.arange(n, dtype=torch.float64) for n in image.shape)
    total = image.double().sum()
    return float((image.sum(1) * y).sum() / total), float((image.sum(0) * x).sum() / total)


BLURS = pytest.mark.parametrize("make", [plain_blur, varying_blur])


@BLURS
def test_restores_what_was_blurred(make):
    blur = make()
    objects = scene(blur)
    truth, (_, noisy) = objects[blur.image_part], seen_through(blur, objects)
    restored = richardson_lucy(noisy, blur)
    assert psnr(restored.image, truth) > psnr(noisy, truth) + 2
    assert 0.7 < restored.deviance < 1.05  # a small image, with as many unknowns again outside
    assert float(restored.image.min()) >= 0


@BLURS
@pytest.mark.parametrize("acceleration", [None, "momentum", "biggs"])
def test_keeps_the_flux(make, acceleration):
    blur = make()
    spot = torch.zeros(blur.field_shape)
    spot[50:100, 50:100] = scene(blur)[50:100, 50:100]
    clean = blur.forward(spot[None])[0].clamp(min=0)
    restored = richardson_lucy(clean, blur, 20, tv=0, acceleration=acceleration)
    assert float(restored.image.sum()) == pytest.approx(float(clean.sum()), rel=1e-3)
    assert float(restored.image.min()) >= 0


@pytest.mark.parametrize("size", [30, 31])
def test_does_not_shift(size):
    psf = torch.zeros(size, size, dtype=torch.float64)
    middle = size // 2
    psf[middle - 3 : middle + 4, middle - 3 : middle + 4] = psf_of(0.5, 7).double()
    blur = VariantBlur.from_psf(psf, (64, 72))
    objects = torch.full(blur.field_shape, 0.01, dtype=torch.float64)
    top, left = (part.start for part in blur.image_part)
    objects[top + 30, left + 41] = 1000
    restored = richardson_lucy(blur.forward(objects[None])[0], blur, 30, tv=0).image
    assert centroid(restored[20:41, 31:52]) == pytest.approx((10, 10), abs=0.05)
    assert float(restored[30, 41]) > 2 * float(blur.forward(objects[None])[0].max())


def test_a_delta_gives_back_the_image():
    delta = torch.zeros(9, 9)
    delta[4, 4] = 1
    blur = VariantBlur.from_psf(delta, (40, 50))
    image = torch.poisson(scene(blur)[4:-4, 4:-4], torch.Generator().manual_seed(0))
    restored = richardson_lucy(image, blur, 5, tv=0).image
    assert torch.allclose(restored, image, rtol=1e-4)


@BLURS
@pytest.mark.parametrize("tv", [0.0, "auto"])
def test_borders_neither_ring_nor_darken(make, tv):
    blur = make()
    objects = scene(blur)
    objects[40:90, :30] = objects.max()  # bright, and cut by the border
    truth, (clean, _) = objects[blur.image_part], seen_through(blur, objects)
    restored = richardson_lucy(clean, blur, 20, tv=tv).image
    error = (restored - truth).square()
    border = torch.ones_like(truth, dtype=torch.bool)
    border[8:-8, 8:-8] = False
    assert float(error[border].mean().sqrt()) < 2 * float(error[~border].mean().sqrt())
    assert float(restored[30:70, :5].mean()) == pytest.approx(float(truth.max()), rel=0.05)


def test_background_is_taken_off():
    blur = plain_blur()
    objects = scene(blur)
    truth, (clean, _) = objects[blur.image_part], seen_through(blur, objects)
    restored = richardson_lucy(clean + 200, blur, 20, background=200.0, tv=0)
    assert psnr(restored.image, truth) > psnr(clean, truth) + 1
    as_image = richardson_lucy(clean + 200, blur, 20, background=torch.full_like(clean, 200), tv=0)
    assert torch.allclose(as_image.image, restored.image)


def test_the_gain_is_a_unit():
    blur = plain_blur(shape=(64, 64))
    _, noisy = seen_through(blur, scene(blur, 50))
    photons = richardson_lucy(noisy, blur, background=2.0)
    counts = richardson_lucy(4 * noisy, blur, background=8.0, gain=4.0)
    assert counts.iterations == photons.iterations
    assert torch.allclose(counts.image, 4 * photons.image)


def test_curvature_is_minus_the_derivative_of_the_total_variation():
    image = torch.rand(1, 9, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    variable = image.clone().requires_grad_()
    down = torch.nn.functional.pad(variable.diff(dim=1), (0, 0, 0, 1))
    right = torch.nn.functional.pad(variable.diff(dim=2), (0, 1))
    (down.square() + right.square() + 0.1**2).sqrt().sum().backward()
    assert torch.allclose(curvature(image, 0.1), -variable.grad)


@pytest.mark.parametrize("tv", [0.003, 0.03, 0.1])
def test_tv_lowers_the_total_variation_and_stays_in_bounds(tv):
    blur = varying_blur()
    objects = scene(blur)
    _, noisy = seen_through(blur, objects)

    def variation(image):
        return float(image.diff(dim=0).abs().sum() + image.diff(dim=1).abs().sum())

    rough = richardson_lucy(noisy, blur, 60, tv=0).image
    smooth = richardson_lucy(noisy, blur, 60, tv=tv).image
    assert variation(smooth) < 0.8 * variation(rough)
    assert torch.isfinite(smooth).all()
    assert float(smooth.max()) < 2 * float(objects.max())
    assert float(smooth.mean()) == pytest.approx(float(noisy.mean()), rel=0.05)


def test_accelerated_iterations_come_farther_than_plain_ones():
    blur = plain_blur()
    objects = scene(blur)
    clean, _ = seen_through(blur, objects)
    ways = (None, "biggs", "momentum")
    plain, *faster = (richardson_lucy(clean, blur, 20, tv=0, acceleration=a) for a in ways)
    slow = richardson_lucy(clean, blur, 50, tv=0, acceleration=None)
    for restored in faster:
        assert restored.deviance < slow.deviance < plain.deviance


def test_biggs_takes_the_share_of_the_last_step_that_repeats():
    momentum = Momentum("biggs")
    first, second = torch.full((1, 2, 2), 4.0), torch.full((1, 2, 2), 6.0)
    assert momentum.ahead(first) is first
    momentum.learn(first, first, second)  # gained 2, nothing to compare with
    assert torch.equal(momentum.ahead(second), second)
    momentum.learn(second, second, second + 1)  # gained 1: half of the last
    assert torch.equal(momentum.ahead(second + 1), second + 1 + 0.5)


@BLURS
def test_the_automatic_stop_beats_too_few_and_too_many_iterations(make):
    blur = make()
    objects = scene(blur, photons=100)
    truth, (_, noisy) = objects[blur.image_part], seen_through(blur, objects)
    restored = {n: richardson_lucy(noisy, blur, n, tv=0, acceleration=None) for n in (5, 200)}
    restored["auto"] = richardson_lucy(noisy, blur, tv=0, acceleration=None)
    scores = {n: psnr(r.image, truth) for n, r in restored.items()}
    assert 5 < restored["auto"].iterations < 100
    assert scores["auto"] > max(scores[5], scores[200])


def test_the_automatic_stop_is_near_the_best_count_and_repeatable():
    blur = plain_blur()
    objects = scene(blur, photons=100)
    truth, (_, noisy) = objects[blur.image_part], seen_through(blur, objects)
    chosen = richardson_lucy(noisy, blur)
    tried = [richardson_lucy(noisy, blur, n, tv=chosen.tv).image for n in range(2, 26, 2)]
    assert psnr(chosen.image, truth) > max(psnr(image, truth) for image in tried) - 0.5
    assert torch.equal(richardson_lucy(noisy, blur).image, chosen.image)
    again = richardson_lucy(noisy, blur, chosen.iterations, tv=chosen.tv)
    assert torch.equal(again.image, chosen.image)


@pytest.mark.parametrize("tile", [{}, {"tile": 40}])
def test_an_image_that_cannot_be_improved_comes_back_with_a_note(tile):
    blur = plain_blur(shape=(96, 96))
    noise = torch.poisson(torch.full((96, 96), 20.0), torch.Generator().manual_seed(0))
    almost_constant = torch.full((96, 96), 100.0)
    almost_constant[40, 40] = 101
    for image in (noise, almost_constant):
        restored = richardson_lucy(2 * image, blur, background=6.0, gain=2.0, **tile)
        assert restored.iterations == 0 and restored.tv == 0
        assert torch.allclose(restored.image, 2 * image - 6)
        assert "the image is returned as it was" in restored.note
    asked = richardson_lucy(noise, blur, 3)
    assert asked.iterations == 3 and not asked.note
    assert float(asked.image.std()) < 0.5 * float(noise.std())


def test_the_search_never_chooses_0_iterations():
    blur = plain_blur(shape=(96, 96))
    objects = scene(blur, photons=2.0)
    _, faint = seen_through(blur, objects)
    level = float(faint.mean())
    settings = Settings(torch.tensor(0.0), 0.05, "momentum", level, level)
    assert choose(faint, blur, settings, True).iterations >= 1
    flat = torch.poisson(torch.full((96, 96), 2.0), torch.Generator().manual_seed(0))
    assert choose(flat, blur, settings, True) is None


def test_fine_detail_gets_less_smoothing():
    blur = plain_blur()
    smooth = torch.full(blur.field_shape, 100.0)
    smooth[:, 80:] = 300
    fine = 50 + 600 * (
        torch.rand(blur.field_shape, generator=torch.Generator().manual_seed(3)) > 0.9
    )
    found = [richardson_lucy(seen_through(blur, o)[1], blur) for o in (smooth, fine)]
    assert found[0].tv == pytest.approx(
        0.09 / math.sqrt(float(seen_through(blur, smooth)[1].mean()))
    )
    assert found[1].tv < found[0].tv / 2
    truth = fine[blur.image_part]
    flat = richardson_lucy(seen_through(blur, fine)[1], blur, tv=found[0].tv)
    assert psnr(found[1].image, truth) > psnr(flat.image, truth) + 0.3


def test_dim_places_are_smoothed_more_than_bright_ones():
    blur = plain_blur()
    objects = torch.full(blur.field_shape, 20.0)
    objects[:, blur.field_shape[1] // 2 :] = 2000.0
    _, noisy = seen_through(blur, objects)
    settings = Settings(torch.tensor(0.0), 3e-4, "momentum", float(noisy.mean()), 1010.0)
    weight, rounding = (
        one[0, *blur.image_part] for one in prior_scales(noisy[None], blur, settings)
    )
    ratio = float(weight[:, :40].mean() / weight[:, -40:].mean())
    assert ratio == pytest.approx(10, rel=0.05)  # sqrt of the ratio of photons
    assert float(rounding[:, -40:].mean() / rounding[:, :40].mean()) == pytest.approx(99, rel=0.05)


def test_four_windows_represent_a_large_image():
    image = torch.rand(700, 700, generator=torch.Generator().manual_seed(0))
    image[300:340, 100:140] += 5
    image[600:640, 600:640] += 5
    windows = search_windows(image, 31)
    assert len(windows) == 4
    assert all(image[part].shape == (256, 256) for part in windows)
    assert [float(image[part].max()) > 5 for part in windows] == [True, False, False, True]
    assert search_windows(image[:500, :500], 31) == [(slice(0, 500), slice(0, 500))]
    narrow = search_windows(image[:, :100].repeat(8, 1), 31)
    assert all(image[:, :100].repeat(8, 1)[part].numel() for part in narrow)


def test_dark_images_and_single_bright_pixels_stay_finite():
    blur = plain_blur(shape=(64, 64))
    _, noisy = seen_through(blur, scene(blur, photons=0.5))
    assert int((noisy == 0).sum()) > 1000
    restored = richardson_lucy(noisy, blur)
    assert torch.isfinite(restored.image).all()
    noisy[20:50, 20:50] = 0
    noisy[35, 35] = 1e4  # a cosmic ray
    assert torch.isfinite(richardson_lucy(noisy, blur, 50, tv=0).image).all()


def test_deviance_is_one_per_pixel():
    expected = torch.full((300, 300), 50.0, dtype=torch.float64)
    counts = torch.poisson(expected, torch.Generator().manual_seed(0))
    # mean 1 + 1 / (6 mu), standard error sqrt(2 / pixels)
    assert deviance_per_pixel(counts, expected) == pytest.approx(1 + 1 / 300, abs=0.02)
    assert deviance_per_pixel(expected, expected) == 0


@pytest.mark.parametrize("acceleration", [None, "momentum"])
def test_tiles_are_the_whole(acceleration):
    blur = varying_blur((150, 170))
    _, noisy = seen_through(blur, scene(blur))
    for iterations in (1, 20):
        arguments = {"iterations": iterations, "acceleration": acceleration, "gain": 2.0}
        whole = richardson_lucy(noisy, blur, **arguments)
        tiled = richardson_lucy(noisy, blur, tile=60, **arguments)
        difference = (tiled.image - whole.image).norm() / whole.image.norm()
        assert float(difference) < 1e-3
        assert tiled.tv == whole.tv
        assert tiled.deviance == pytest.approx(whole.deviance, rel=0.05)  # with its margins


def test_tiles_have_no_seams_and_one_count():
    blur = varying_blur((150, 170))
    objects = scene(blur)
    truth, (_, noisy) = objects[blur.image_part], seen_through(blur, objects)
    tiled = richardson_lucy(noisy, blur, tile=60)
    error = (tiled.image - truth).square()
    seams = torch.cat([error[:, 55:58].flatten(), error[:, 112:115].flatten()])
    assert float(seams.mean()) < 1.5 * float(error.mean())
    assert psnr(tiled.image, truth) > psnr(noisy, truth) + 2


def test_tiles_take_their_part_of_a_background_image():
    blur = varying_blur((100, 110))
    clean, noisy = seen_through(blur, scene(blur))
    slope = torch.linspace(0, 200, 110).expand(100, -1)
    whole = richardson_lucy(noisy + slope, blur, 5, background=slope)
    tiled = richardson_lucy(noisy + slope, blur, 5, background=slope, tile=60)
    assert float((tiled.image - whole.image).norm() / whole.image.norm()) < 1e-3
    assert float(whole.image[:, 80:].mean()) == pytest.approx(float(clean[:, 80:].mean()), rel=0.05)


def test_tiles_smaller_than_the_psf_grow():
    blur = plain_blur(shape=(64, 80))
    _, noisy = seen_through(blur, scene(blur))
    whole = richardson_lucy(noisy, blur, 3).image
    tiled = richardson_lucy(noisy, blur, 3, tile=5, overlap=30).image
    assert float((tiled - whole).norm() / whole.norm()) < 1e-3
    assert torch.isfinite(richardson_lucy(noisy, blur, 1, tile=5, overlap=1).image).all()


def test_tiles_cover_an_image_once():
    covered = torch.zeros(100, 37)
    for part in tiles((100, 37), 30):
        covered[part] += 1
        assert max(covered[part].shape) <= 30
    assert torch.equal(covered, torch.ones(100, 37))


BLUR = plain_blur(shape=(40, 40))
IMAGE = 100 + torch.rand(40, 40, generator=torch.Generator().manual_seed(0))
NAN = torch.full((40, 40), torch.nan)


@pytest.mark.parametrize(
    ("image", "arguments", "message"),
    [
        (IMAGE[:30], {}, "the image has 30 x 40 px, the blur was made for 40 x 40 px"),
        (IMAGE[None], {}, "the image has 1 x 40 x 40 px"),
        (NAN, {}, "the image contains NaN or infinite pixels"),
        (IMAGE - 101, {}, "the darkest pixel of the image is -0.99.*subtract less"),
        (0 * IMAGE, {}, "all pixels of the image are 0; give an image with structure"),
        (torch.full((40, 40), 7.0), {}, "all pixels of the image are 7"),
        (IMAGE, {"background": 200.0}, "the background is 200 photons, but the image has only 100"),
        (IMAGE, {"background": -1.0}, "the background is negative or not finite"),
        (
            IMAGE,
            {"background": torch.ones(3)},
            "the background has shape \\(3,\\); give one number or an image",
        ),
        (IMAGE, {"iterations": 0}, "0 iterations; give a count from 1 to 10000"),
        (IMAGE, {"iterations": 10**9}, "1000000000 iterations; give a count"),
        (IMAGE, {"iterations": 2.5}, "2.5 iterations; give a count"),
        (IMAGE, {"iterations": "many"}, "iterations is 'many'; give a count or 'auto'"),
        (IMAGE, {"tv": -0.1}, "tv is -0.1; give a number from 0 to 0.1"),
        (IMAGE, {"tv": math.nan}, "tv is nan; give a number from 0 to 0.1"),
        (IMAGE, {"tv": "much"}, "tv is 'much'; give a number or 'auto'"),
        (IMAGE, {"acceleration": "warp"}, "unknown acceleration 'warp'; choose one of momentum"),
        (IMAGE, {"gain": 0.0}, "the gain is 0; give a positive number"),
    ],
)
def test_refuses(image, arguments, message):
    with pytest.raises(InputError, match=message) as error:
        richardson_lucy(image, BLUR, **arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"acceleration": "biggs"}, "'biggs' differs from tile to tile"),
        ({"tile": 0}, "tiles of 0 px"),
        ({"overlap": 0}, "margins of 0 px"),
    ],
)
def test_tiles_refuse(arguments, message):
    with pytest.raises(InputError, match=message):
        richardson_lucy(IMAGE, BLUR, **{"tile": 20} | arguments)
