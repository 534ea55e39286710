"""Blur by one PSF and by varying PSFs against direct sums, and the depth of test surfaces."""

import math

import numpy as np
import pytest
import torch
from scipy.signal import convolve2d

from psf import InputError, Microscope, synthesize_with_loss
from psf.blur import (
    blur_by_column,
    blur_valid,
    blur_varying,
    dome_depth_um,
    interpolation_weights,
    tilted_depth_um,
)

# largest difference for values of order one, float64 or float32: rounding of the FFT
EXACT, FLOAT32 = 1e-12, 1e-5


def random(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).uniform(size=shape))


def random_psfs(count, size, seed=1):
    psfs = random(count, size, size, seed=seed)
    return psfs / psfs.sum((1, 2), keepdim=True)


def close(found, expected, tolerance=EXACT):
    assert found.shape == expected.shape
    assert float((torch.as_tensor(found) - torch.as_tensor(expected)).abs().max()) < tolerance


@pytest.mark.parametrize("size", [1, 2, 5, 8, 13])
@pytest.mark.parametrize("shape", [(17, 29), (32, 13), (13, 13)])
def test_is_the_valid_part_of_direct_convolution(size, shape):
    images, psfs = random(3, *shape), random_psfs(3, size)
    expected = [
        convolve2d(x, h, mode="valid") for x, h in zip(images.numpy(), psfs.numpy(), strict=True)
    ]
    close(blur_valid(images, psfs), np.stack(expected))
    close(blur_valid(images.float(), psfs.float()).double(), np.stack(expected), FLOAT32)


def test_one_psf_serves_a_whole_batch():
    images, psf = random(3, 20, 30), random_psfs(1, 7)
    close(blur_valid(images, psf), blur_valid(images, psf.expand(3, 7, 7)))


def test_a_delta_cuts_out_the_centre():
    images = random(2, 20, 30)
    delta = torch.zeros(1, 7, 7, dtype=torch.float64)
    delta[0, 3, 3] = 1
    close(blur_valid(images, delta), images[:, 3:-3, 3:-3])


def test_convolution_is_no_correlation():
    image = torch.zeros(1, 15, 15, dtype=torch.float64)
    image[0, 7, 7] = 1
    psf = random_psfs(1, 5)
    close(blur_valid(image, psf)[0, 3:8, 3:8], psf[0])


def test_a_constant_image_keeps_its_value():
    blurred = blur_valid(torch.full((1, 40, 40), 3.0, dtype=torch.float64), random_psfs(1, 9))
    close(blurred, torch.full((1, 32, 32), 3.0, dtype=torch.float64))


def test_nothing_wraps_around():
    # a change of the first or last column must not reach the other side
    image = random(1, 24, 24)
    changed = image.clone()
    changed[:, :, 0] += 100
    psf = random_psfs(1, 7)
    difference = (blur_valid(changed, psf) - blur_valid(image, psf)).abs()
    assert float(difference[:, :, 0].min()) > 1
    assert float(difference[:, :, 1:].max()) < EXACT * 100


def test_refuses_a_psf_larger_than_the_image():
    with pytest.raises(InputError, match="9 px does not fit an image of 8 x 20 px"):
        blur_valid(random(1, 8, 20), random_psfs(1, 9))


def test_varying_blur_with_one_psf_is_plain_blur():
    image, psf = random(20, 30), random_psfs(1, 7)
    ones = torch.ones(1, 20, 30, dtype=torch.float64)
    close(blur_varying(image, psf, ones), blur_valid(image[None], psf)[0])


@pytest.mark.parametrize("size", [6, 7])
def test_each_object_point_shows_its_own_psf(size):
    psfs, weights = random_psfs(2, size), random(1, 40, 50, seed=3)
    weights = torch.cat([weights, 1 - weights])
    image, expected = torch.zeros(40, 50).double(), torch.zeros(41 - size, 51 - size).double()
    for row, column, brightness in ((12, 9, 1.0), (13, 12, 2.0), (25, 31, 0.5), (30, 40, 3.0)):
        image[row, column] = brightness
        own = (weights[:, row, column, None, None] * psfs).sum(0)  # the PSF at this point
        expected[row - size + 1 : row + 1, column - size + 1 : column + 1] += brightness * own
    close(blur_varying(image, psfs, weights), expected)


def test_weights_act_before_the_convolution():
    # light of the left half goes one way, light of the right half the other way, over the border
    psfs = torch.zeros(2, 7, 7, dtype=torch.float64)
    psfs[0, 3, 6], psfs[1, 3, 0] = 1, 1  # to the right, to the left
    weights = torch.zeros(2, 21, 21, dtype=torch.float64)
    weights[0, :, :10], weights[1, :, 10:] = 1, 1
    image = torch.zeros(21, 21, dtype=torch.float64)
    image[10, 9], image[10, 10] = 1, 5
    blurred = blur_varying(image, psfs, weights)
    assert float(blurred[7, 9 + 3 - 3]) == pytest.approx(1)
    assert float(blurred[7, 10 - 3 - 3]) == pytest.approx(5)
    assert float(blurred.sum()) == pytest.approx(6)


def test_the_number_of_psfs_at_once_changes_nothing():
    image, psfs, weights = random(20, 30), random_psfs(9, 5), random(9, 20, 30, seed=4)
    expected = blur_varying(image, psfs, weights)
    close(blur_varying(image, psfs, weights, chunk=2), expected)
    close(blur_varying(image, psfs, weights, chunk=1), expected)


def test_a_constant_image_keeps_its_value_under_varying_blur():
    levels = torch.linspace(0, 3, 4, dtype=torch.float64)
    weights = interpolation_weights(3 * random(40, 40), levels).flip(1)
    constant = interpolation_weights(torch.full((40, 40), 1.3, dtype=torch.float64), levels)
    psfs, _ = synthesize_with_loss("zernike1d", levels[:, None], Microscope(), 21)
    blurred = blur_varying(torch.full((40, 40), 2.0, dtype=torch.float64), psfs, constant)
    close(blurred, torch.full((20, 20), 2.0, dtype=torch.float64))
    # where the PSF varies, points give and take; what all points give is still all their light
    image = torch.zeros(40, 40, dtype=torch.float64)
    image[20:-20, 20:-20] = 1
    assert float(blur_varying(image, psfs, weights).sum()) == pytest.approx(float(image.sum()))


LEVELS = torch.tensor([-1.0, 0.0, 0.5, 2.0], dtype=torch.float64)


def test_interpolation_weights_sum_to_one_and_give_back_the_values():
    values = 3 * random(30, 20) - 1
    weights = interpolation_weights(values, LEVELS)
    close(weights.sum(0), torch.ones(30, 20, dtype=torch.float64))
    close((weights * LEVELS[:, None, None]).sum(0), values)
    assert float(weights.min()) >= 0
    assert int((weights > 0).sum(0).max()) <= 2  # only the two neighbouring levels


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (-1.0, [1, 0, 0, 0]),
        (0.0, [0, 1, 0, 0]),
        (0.25, [0, 0.5, 0.5, 0]),
        (1.625, [0, 0, 0.25, 0.75]),
        (2.0, [0, 0, 0, 1]),
        (-5.0, [1, 0, 0, 0]),  # outside: the nearest level
        (7.0, [0, 0, 0, 1]),
    ],
)
def test_interpolation_weights_by_hand(value, expected):
    weights = interpolation_weights(torch.tensor([[value]], dtype=torch.float64), LEVELS)
    assert weights.ravel().tolist() == pytest.approx(expected)


def test_one_level_has_all_the_weight():
    one_level = torch.tensor([1.0], dtype=torch.float64)
    weights = interpolation_weights(random(4, 5), one_level)
    close(weights, torch.ones(1, 4, 5, dtype=torch.float64))


# --- columns with their own PSFs, and surfaces


def gaussians(widths_px, size=15):
    at = torch.arange(size) - size // 2
    squared = at[:, None] ** 2 + 0.5 * at**2 + 0.3 * at[:, None] * at  # neither x nor y is special
    psfs = torch.exp(-squared / (2 * widths_px[:, None, None] ** 2))
    return psfs / psfs.sum((1, 2), keepdim=True)


def test_plane_rises_by_the_tangent_of_its_tilt():
    depth = tilted_depth_um(101, 6.0, 0.32)
    assert depth[50] == 0
    assert float(depth[100] - depth[0]) == pytest.approx(32 * math.tan(math.radians(6)), rel=1e-5)
    assert depth[60] > 0 > depth[40]
    with pytest.raises(InputError, match="90 degrees"):
        tilted_depth_um(10, 90, 0.3)


def test_dome_has_its_top_in_the_middle_and_a_flat_rim():
    depth = dome_depth_um(101, -10.0, 8.0)
    assert float(depth[50, 50]) == pytest.approx(8, abs=1e-4)
    assert float(depth[0, 0]) == pytest.approx(-10, abs=1e-4)
    assert float(depth.min()) == pytest.approx(-10, abs=1e-4)
    assert torch.allclose(depth, depth.T) and torch.allclose(depth, depth.flip(0))
    assert bool((depth[50, 50:95].diff() < 0).all())


def test_column_blur_is_the_sum_over_object_columns():
    generator = torch.Generator().manual_seed(0)
    sharp = torch.rand(40, 50, generator=generator)
    widths = torch.linspace(0.5, 3, 50)
    found = blur_by_column(sharp, lambda columns: gaussians(widths[columns]))
    weights = torch.eye(50)[:, None].expand(50, 40, 50)  # PSF i at column i alone
    expected = blur_varying(sharp, gaussians(widths), weights)
    assert found.shape == (26, 36)
    assert torch.allclose(found, expected, atol=1e-6)


def test_column_blur_with_one_psf_is_a_convolution():
    sharp = torch.rand(33, 47, generator=torch.Generator().manual_seed(1))
    psfs = gaussians(torch.tensor([1.7]))
    found = blur_by_column(sharp, lambda columns: psfs.expand(len(columns), -1, -1))
    assert torch.allclose(found, blur_valid(sharp[None], psfs)[0], atol=1e-6)


def test_column_blur_refuses_psfs_larger_than_the_object():
    psfs = gaussians(torch.tensor([1.7]))
    with pytest.raises(InputError, match="15 px does not fit"):
        blur_by_column(torch.rand(14, 40), lambda columns: psfs.expand(len(columns), -1, -1))
