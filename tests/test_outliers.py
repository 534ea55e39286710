"""Outliers: what is sharper than the PSF is found, and what the optics can show is kept."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.transform import rotate

from micrographs.cleaned import CleanedImage
from micrographs.neighbours import fill_outliers, large_regions
from micrographs.outliers import describe_outliers, find_outliers, saturation_level
from micrographs.sharpness import sharpest_shares
from models.checkpoint import load_estimator
from models.mapping import TensorImage, predict_map
from psf import Microscope
from psf.model import psf_model
from psf.synthesis import synthesize
from restoration.richardson_lucy import richardson_lucy
from restoration.variant_blur import VariantBlur
from simulation.objects import OBJECTS

SIZE = 192
CUTOFF = Microscope().cutoff_cycles_per_pixel
CLEAN = 1e-4  # largest share of the pixels of a clean image that may be left out


@pytest.fixture(scope="module")
def in_focus():
    psf = synthesize(psf_model("zernike1d"), torch.tensor([[0.0]]), Microscope(), 127)[0]
    return VariantBlur.from_psf(psf, (SIZE, SIZE))


def counts(light, photons, seed=0):
    """Image of a camera: gain 2, offset 100, read noise 1.6 electrons."""
    generator = torch.Generator().manual_seed(seed)
    noise = 3.2 * torch.randn(light.shape, generator=generator)
    scaled = light / light.mean() * photons
    return (2 * torch.poisson(scaled, generator=generator) + 100 + noise).round()


@pytest.fixture(scope="module")
def cells(in_focus):
    """Image of nuclei in focus at 300 photons per pixel."""
    sharp = torch.tensor(OBJECTS["nuclei"](np.random.default_rng(5), SIZE + 126))
    return counts(in_focus.forward(sharp[None])[0] + 0.05, 300)


def single_pixels(share, seed=1):
    return torch.rand(SIZE, SIZE, generator=torch.Generator().manual_seed(seed)) < share


def left_out(found, where):
    return float((~found.usable)[where].double().mean())


def test_the_bound_is_that_of_the_psf_in_focus():
    model = psf_model("zernike1d")
    for pixel_um in (0.2, 0.278):
        optics = Microscope(pixel_size_um=pixel_um)
        psf = synthesize(model, torch.tensor([[0.0]]), optics, 127)[0]
        single, _ = sharpest_shares(optics.cutoff_cycles_per_pixel)
        assert single == pytest.approx(float(psf[63, 64] / psf[63, 63]), abs=0.02)


@pytest.mark.parametrize("kind", ["beads", "filaments", "nuclei", "dead_leaves", "strokes"])
@pytest.mark.parametrize("photons", [30, 3000])
def test_sharp_objects_are_kept(in_focus, kind, photons):
    sharp = torch.tensor(OBJECTS[kind](np.random.default_rng(2), SIZE + 126))
    image = counts(in_focus.forward(sharp[None])[0] + 0.02, photons)
    found = find_outliers(image, 65535, CUTOFF)
    assert 1 - float(found.usable.double().mean()) <= CLEAN


def test_points_in_focus_are_kept_and_hot_pixels_of_the_same_brightness_are_not(in_focus):
    generator = torch.Generator().manual_seed(4)
    height, width = in_focus.field_shape
    points = torch.zeros(height, width)
    points[torch.randint(0, height, (80,), generator=generator), torch.arange(80) * 3] = 1.0
    light = in_focus.forward(points[None])[0] + 0.01
    image = counts(light, 50)
    assert find_outliers(image, 65535, CUTOFF).usable.all()
    hot = single_pixels(0.002)
    spoiled = torch.where(hot, image.max(), image)
    found = find_outliers(spoiled, 65535, CUTOFF)
    assert left_out(found, hot) > 0.95
    assert left_out(found, ~hot) < 1e-3


def test_hot_pixels_at_20_times_the_mean_are_all_found(cells):
    hot = single_pixels(0.001)
    found = find_outliers(torch.where(hot, 20 * cells.mean(), cells), 65535, CUTOFF)
    assert left_out(found, hot) == 1
    assert left_out(found, ~hot) <= CLEAN
    assert found.shares["hot"] == pytest.approx(float(hot.double().mean()), abs=1e-4)
    assert describe_outliers(found.shares) == [
        f"pixels left out: {100 * found.shares['hot']:.2g} % hot"
    ]


def test_dead_pixels_and_columns_are_found_in_an_even_field():
    image = counts(torch.ones(SIZE, SIZE), 300)
    dead = single_pixels(0.001)
    found = find_outliers(torch.where(dead, 100.0, image), 65535, CUTOFF)
    assert left_out(found, dead) == 1
    assert found.shares["dead"] == pytest.approx(float(dead.double().mean()))
    column = torch.where(torch.arange(SIZE) == 77, 100.0, image)
    assert left_out(find_outliers(column, 65535, CUTOFF), np.s_[:, 77]) == 1
    image[:, 77] -= 180  # 5 standard deviations of a pixel: only the whole column shows it
    found = find_outliers(image, 65535, CUTOFF)
    assert left_out(found, np.s_[:, 77]) == 1
    assert found.usable[:, :77].all()
    assert found.usable[:, 78:].all()


def test_cosmic_rays_of_several_pixels_are_found(cells):
    rays = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    for k in range(5):
        rays[20 + 30 * k, 40:47] = True  # along a row
        steps = torch.arange(6)
        rays[30 + 30 * k + steps, 100 + steps] = True  # diagonal
        rays[15 + 30 * k : 19 + 30 * k, 150:152] = True  # two pixels wide
    found = find_outliers(torch.where(rays, cells + 8 * cells.mean(), cells), 65535, CUTOFF)
    assert left_out(found, rays) > 0.8
    assert left_out(found, ~rays) <= 1e-3


@pytest.mark.parametrize(("order", "fill"), [(0, 0.0), (1, 0.0), (1, 480.0), (3, 65535.0)])
def test_corners_of_a_rotated_image_are_a_border(cells, order, fill):
    turned = torch.tensor(rotate(cells.numpy(), 7, order=order, cval=fill, clip=False))
    corners = turned == fill
    found = find_outliers(turned, None, CUTOFF)
    assert left_out(found, corners) > (0.999 if fill == 0 else 0.95)
    near = torch.tensor(rotate(np.ones((SIZE - 10, SIZE - 10)), 7, order=0)) > 0
    inner = torch.nn.functional.pad(near, (5,) * 4)
    assert left_out(found, inner) < 2e-3
    assert found.shares["border"] + found.shares["saturated"] > 0.9 * float(corners.double().mean())


def test_missing_pixels_are_left_out_and_named(cells):
    stitched = cells.clone()
    stitched[:20] = torch.nan
    found = find_outliers(stitched, 65535, CUTOFF)
    assert not found.usable[:22].any()  # two rows beside them are interpolated
    assert found.usable[22:].all()
    assert found.shares["missing"] == pytest.approx(20 / SIZE)
    assert "10 % without a value (NaN)" in describe_outliers(found.shares)[0]


def test_a_dark_background_without_noise_is_no_border(in_focus):
    points = torch.zeros(in_focus.field_shape)
    points[100:140:20, 100:140:20] = 5e3
    image = in_focus.forward(points[None])[0].clamp(min=0).round() + 100
    assert (image[:, 0] == 100).all()
    assert find_outliers(image, 65535, CUTOFF).usable.all()


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_a_pile_at_the_largest_value_is_saturation(cells, bits):
    largest = 2.0**bits - 1
    scaled = (cells * largest / cells.quantile(0.98)).round()
    assert saturation_level(scaled) is None
    found = find_outliers(scaled.clamp(max=largest), 65535, CUTOFF)
    assert found.shares["saturated"] == pytest.approx(0.02, abs=0.002)
    summed = 4 * scaled.clamp(max=largest)  # of four frames
    assert find_outliers(summed, None, CUTOFF).shares == found.shares
    floats = scaled.clamp(max=largest) / largest  # the same in another unit
    assert find_outliers(floats, None, CUTOFF).shares == found.shares


@pytest.mark.parametrize("times", [2, 3, 4])
def test_an_image_enlarged_by_repeating_pixels_is_kept(cells, times):
    fine = cells.repeat_interleave(times, 0).repeat_interleave(times, 1)
    found = find_outliers(fine, 65535, CUTOFF / times)
    assert 1 - float(found.usable.double().mean()) < 1e-3


def test_a_saturated_spot_at_the_edge_is_not_called_a_border(cells):
    top = cells.quantile(0.9)
    spoiled = cells.clamp(max=top)
    spoiled[:12, :12] = top
    shares = find_outliers(spoiled, None, CUTOFF).shares
    assert shares["border"] < 5e-3  # the pixels beside it, which interpolation would have mixed
    assert shares["saturated"] == pytest.approx(0.1, abs=0.01)


def test_bands_of_a_large_plane_agree_with_the_whole(cells, monkeypatch):
    hot = single_pixels(0.002)
    spoiled = torch.where(hot, 20 * cells.mean(), cells)
    whole = find_outliers(spoiled, 65535, CUTOFF).usable
    monkeypatch.setattr("micrographs.outliers.MOST_ROWS", 64)
    assert float((find_outliers(spoiled, 65535, CUTOFF).usable != whole).double().mean()) < 1e-4


def test_outliers_take_the_median_of_their_neighbours():
    ramp = torch.arange(100.0).reshape(10, 10)
    usable = torch.ones(10, 10, dtype=torch.bool)
    usable[4, 4], usable[5, 5] = False, False
    found = fill_outliers(torch.where(usable, ramp, 1e6), usable)
    assert (found - ramp).abs().max() <= 1
    assert torch.equal(found[usable], ramp[usable])
    assert not large_regions(usable).any()


def test_regions_are_squares_and_strips_without_usable_pixels():
    usable = torch.ones(40, 40, dtype=torch.bool)
    usable[10:20, 5:12] = False
    usable[:3] = False
    expected = ~usable
    usable[:, 30], usable[25, 25] = False, False
    assert torch.equal(large_regions(usable), expected)


@pytest.mark.parametrize("shape", [(1, 1), (5, 40), (17, 33)])
@pytest.mark.parametrize("value", [0.0, 7.0, float("nan")])
def test_constant_and_tiny_planes_are_no_error(shape, value):
    found = find_outliers(torch.full(shape, value), 65535)
    assert bool(found.usable.all()) == (value == value)


def gain_db(found, truth):
    """Signal to noise ratio after an affine fit, without the borders."""
    found, truth = (image[16:-16, 16:-16].flatten().double() for image in (found, truth))
    found, truth = found - found.mean(), truth - truth.mean()
    fitted = (found @ truth) / (found @ found) * found
    return float(10 * torch.log10(truth.square().sum() / (truth - fitted).square().sum()))


class InMemory(TensorImage):
    """Stands in for a plane of a file."""

    full_scale = 65535.0


def test_focus_and_restoration_are_as_without_hot_pixels():
    optics, focus = Microscope(), 1.5
    psf = synthesize(psf_model("zernike1d"), torch.tensor([[focus]]), optics, 127)[0]
    blur = VariantBlur.from_psf(psf, (SIZE, SIZE))
    sharp = torch.tensor(OBJECTS["dead_leaves"](np.random.default_rng(1), SIZE + 126))
    image = counts(blur.forward(sharp[None])[0] + 0.05, 500)
    estimator = load_estimator("zernike1d_tilted")
    spoiled = torch.where(single_pixels(0.001), 20 * image.mean(), image)
    focuses, scores = [], []
    for pixels in (image, spoiled):
        cleaned = CleanedImage(InMemory(pixels), CUTOFF)
        focuses.append(float(predict_map(estimator, cleaned, optics, 32).values[0].median()))
        usable = find_outliers(pixels, None, CUTOFF).usable
        light = (pixels - 100).clamp(min=0)
        restored = richardson_lucy(light, blur, gain=2.0, usable=usable).image
        scores.append(gain_db(restored, sharp[blur.image_part]))
    assert focuses[1] == pytest.approx(focuses[0], abs=0.05)
    assert scores[1] == pytest.approx(scores[0], abs=0.1)
    unaware = predict_map(estimator, spoiled, optics, 32).values[0].median()
    assert abs(float(unaware) - focuses[0]) > 0.1


def test_patches_with_many_outliers_have_no_content():
    image = counts(torch.tensor(OBJECTS["dead_leaves"](np.random.default_rng(1), 256)) + 0.1, 500)
    image[:, :60] = 0.0
    estimator = load_estimator("zernike1d_tilted")
    found = predict_map(estimator, CleanedImage(InMemory(image), None), Microscope(), 32)
    # 128 px patches that begin at 0, 32, 64...: 60, 28 and 0 of their columns are black
    assert (found.content[:, :2] == 0).all()
    assert (found.content[:, 2:] > 0).all()


@pytest.mark.parametrize("side", ["top", "bottom", "left", "right"])
@pytest.mark.parametrize(("width", "share"), [(1, 0.0), (1, 0.5), (2, 0.0)])
def test_single_lines_that_a_shift_leaves_at_an_edge_are_borders(side, width, share):
    # a shift by half a pixel mixes the first line with the filling value
    generator = torch.Generator().manual_seed(0)
    smooth = gaussian_filter(torch.rand(160, 144, generator=generator).numpy(), 3) ** 2
    plane = torch.poisson(torch.from_numpy(smooth * 4000), generator=generator)
    assert not any(find_outliers(plane).shares.values())
    turns = {"top": 0, "left": 1, "bottom": 2, "right": 3}[side]
    turned = torch.rot90(plane, -turns)  # the side is on top
    turned[:width] *= share
    found = find_outliers(torch.rot90(turned, turns))
    at_top = torch.rot90(found.usable, -turns)
    assert not at_top[:width].any()
    assert at_top[4:].all()
