"""Noise by its moments, illumination and rotation by value."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm, poisson

from psf import InputError
from psf.noise import (
    PIXEL_GAIN,
    PIXEL_READ_NOISE_E,
    axial_illumination,
    camera_counts,
    fast_poisson_noise,
    gaussian_noise,
    global_illumination,
    pixel_noise,
    poisson_noise,
    quantise,
    rotate,
    to_photons,
)

SAMPLES = 400_000
SIGMAS = 5  # of the sampling error; the seed is fixed
ROUNDING = 1e-5  # relative, float32
MEANS = (2, 10, 100, 1000)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def flat(photons, count=SAMPLES):
    return torch.full((1, 1, count), float(photons))


def moments(values, weights=None):
    """Mean, variance and skewness, in float64."""
    values = np.asarray(values, dtype=float).ravel()
    mean = np.average(values, weights=weights)
    variance, third = (np.average((values - mean) ** k, weights=weights) for k in (2, 3))
    return np.array([mean, variance, third / variance**1.5])


def poisson_moments(mean):
    return np.array([mean, mean, mean**-0.5])


def sampling_errors(mean):
    """Standard errors of the three moments of SAMPLES Poisson variates, by influence functions."""
    counts = np.arange(mean + 20 * int(math.sqrt(mean) + 3))
    share = poisson.pmf(counts, mean)
    z = (counts - mean) / math.sqrt(mean)
    skewness = mean**-0.5
    influences = (
        counts - mean,
        (counts - mean) ** 2 - mean,
        z**3 - 3 * z - 1.5 * skewness * (z**2 - 1) - skewness,
    )
    return np.array([math.sqrt(share @ i**2 / SAMPLES) for i in influences])


# --- photons and noise


@pytest.mark.parametrize("photons", MEANS)
def test_exact_poisson_noise_has_the_moments_of_poisson(photons):
    found = moments(poisson_noise(flat(photons), seeded()))
    assert (np.abs(found - poisson_moments(photons)) < SIGMAS * sampling_errors(photons)).all()


# by how much mean, variance and skewness of the fast noise may differ besides the sampling error:
# the expansion adds 1/18 and rounding 1/12 to the variance, clipping at zero takes some at 2
FAST_BIAS = {
    2: (0.015, 0.1, 0.04),
    10: (1e-3, 0.14, 1e-2),
    100: (1e-3, 0.14, 1e-3),
    1000: (1e-3, 0.14, 1e-3),
}


@pytest.mark.parametrize("photons", MEANS)
def test_fast_poisson_noise_has_nearly_the_moments_of_poisson(photons):
    found = moments(fast_poisson_noise(flat(photons), seeded()))
    allowed = SIGMAS * sampling_errors(photons) + FAST_BIAS[photons]
    assert (np.abs(found - poisson_moments(photons)) < allowed).all()


@pytest.mark.parametrize("photons", MEANS)
def test_fast_poisson_noise_is_biased_no_more_than_stated(photons):
    # the same formula on a fine table of normal quantiles, without sampling error
    z = norm.ppf((np.arange(2_000_000) + 0.5) / 2_000_000)
    table = np.maximum(np.round(photons + math.sqrt(photons) * z + (z * z - 1) / 6), 0)
    bias = np.abs(moments(table) - poisson_moments(photons))
    assert (bias < FAST_BIAS[photons]).all()


@pytest.mark.parametrize("noise", [poisson_noise, fast_poisson_noise])
def test_counts_are_whole_and_not_negative(noise):
    counts = noise(flat(0.5, 10_000), seeded())
    assert torch.equal(counts, counts.round())
    assert float(counts.min()) == 0


@pytest.mark.parametrize("noise", [poisson_noise, fast_poisson_noise])
def test_each_pixel_has_its_own_mean(noise):
    photons = torch.tensor([4.0, 50.0, 400.0]).reshape(3, 1, 1).expand(3, 200, 200)
    found = noise(photons, seeded()).mean((1, 2))
    for value, mean in zip(found.tolist(), (4, 50, 400), strict=True):
        assert value == pytest.approx(mean, abs=SIGMAS * math.sqrt(mean) / 200 + 0.01)


def test_refuses_negative_photons():
    with pytest.raises(InputError, match="negative"):
        poisson_noise(torch.tensor([[[1.0, -0.1]]]), seeded())


def test_no_light_gives_no_photons():
    assert float(poisson_noise(flat(0, 1000), seeded()).abs().max()) == 0


def test_read_noise_is_a_standard_deviation_in_electrons():
    noise = gaussian_noise(flat(10), 1.6, seeded()) - 10
    mean, variance, skewness = moments(noise)
    assert mean == pytest.approx(0, abs=SIGMAS * 1.6 / math.sqrt(SAMPLES))
    assert variance == pytest.approx(1.6**2, rel=SIGMAS * math.sqrt(2 / SAMPLES))
    assert skewness == pytest.approx(0, abs=SIGMAS * math.sqrt(6 / SAMPLES))


def test_read_noise_per_sample():
    noise = gaussian_noise(torch.zeros(3, 300, 300), torch.tensor([0.0, 1.0, 5.0]), seeded())
    deviation = noise.std((1, 2)).tolist()
    assert deviation == pytest.approx([0, 1, 5], rel=SIGMAS / math.sqrt(2 * 300**2))


@pytest.mark.parametrize(
    ("gain", "offset", "read_noise"), [(1, 0, 1.6), (2.5, 100, 3), (0.4, 7, 0)]
)
def test_camera_counts_follow_the_photon_transfer_curve(gain, offset, read_noise):
    photons = 50
    counts = camera_counts(flat(photons), seeded(), read_noise, gain, offset)
    mean, variance, _ = moments(counts)
    electrons = photons + read_noise**2
    error = SIGMAS / math.sqrt(SAMPLES)
    assert mean == pytest.approx(gain * photons + offset, abs=error * gain * math.sqrt(electrons))
    # the fourth moment of Poisson adds less than a hundredth to the error of the variance
    assert variance == pytest.approx(gain**2 * electrons, rel=1.01 * math.sqrt(2) * error)


@pytest.mark.parametrize("settings", [{"gain_counts_per_e": 0}, {"read_noise_e": -1}])
def test_refuses_a_camera_that_makes_no_sense(settings):
    with pytest.raises(InputError):
        camera_counts(flat(1, 10), seeded(), **settings)


@pytest.mark.parametrize("photons", [30.0, torch.tensor([10.0, 100.0, 1000.0])])
def test_to_photons_sets_the_mean_of_each_image(photons):
    images = torch.rand(3, 40, 50, generator=seeded()) * torch.tensor([1.0, 9, 1e-3])[:, None, None]
    scaled = to_photons(images, photons)
    expected = torch.as_tensor(photons).expand(3).tolist()
    assert scaled.mean((1, 2)).tolist() == pytest.approx(expected, rel=ROUNDING)
    ratio = scaled / images
    assert (ratio.amax((1, 2)) / ratio.amin((1, 2))).tolist() == pytest.approx(
        [1] * 3, rel=ROUNDING
    )


def test_to_photons_leaves_a_dark_image_dark():
    assert float(to_photons(torch.zeros(1, 8, 8), 100.0).abs().max()) == 0


RANDOM = {
    "exact": lambda x, g: poisson_noise(x, g),
    "fast": lambda x, g: fast_poisson_noise(x, g),
    "read": lambda x, g: gaussian_noise(x, 1.6, g),
    "camera": lambda x, g: camera_counts(x, g),
}


@pytest.mark.parametrize("name", RANDOM)
def test_same_seed_same_bytes(name):
    first, again, other = (RANDOM[name](flat(20, 1000), seeded(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("name", RANDOM)
def test_the_expected_photons_are_not_overwritten(name):
    photons = flat(20, 1000)
    RANDOM[name](photons, seeded())
    assert torch.equal(photons, flat(20, 1000))


# --- grey levels


@pytest.mark.parametrize("bits", [1, 4, 8, 16])
def test_quantise_uses_all_levels_of_a_ramp(bits):
    levels = 2**bits
    ramp = torch.linspace(0, 3, 4 * levels + 1)[None, None]
    counts = quantise(ramp, bits)
    assert torch.equal(counts.unique(), torch.arange(levels, dtype=torch.float32))
    assert float(counts[0, 0, 2 * levels]) == pytest.approx((levels - 1) / 2, abs=0.5)


def test_quantise_scales_each_image_by_its_own_brightest_pixel():
    images = torch.tensor([[[0.0, 1.0, 4.0]], [[0.0, 100.0, 200.0]]])
    assert quantise(images, 4).tolist() == [[[0, 4, 15]], [[0, 8, 15]]]


@pytest.mark.parametrize("bits", [0, 17])
def test_quantise_refuses_other_depths(bits):
    with pytest.raises(InputError, match=f"number of bits is {bits}"):
        quantise(torch.ones(1, 2, 2), bits)


# --- illumination


def test_lamp_multiplies_the_light_of_each_image():
    photons = torch.rand(3, 5, 7, generator=seeded())
    torch.testing.assert_close(global_illumination(photons, 0.5), photons / 2)
    each = global_illumination(photons, torch.tensor([1.0, 2.0, 0.1]))
    torch.testing.assert_close(each[1], 2 * photons[1])
    torch.testing.assert_close(each[2], 0.1 * photons[2])


@pytest.mark.parametrize("gain", [0.0, -1.0])
def test_refuses_a_lamp_without_light(gain):
    with pytest.raises(InputError, match=r"gain is .* give more than 0"):
        global_illumination(torch.ones(1, 2, 2), gain)


@pytest.mark.parametrize("shape", [(41, 41), (41, 61)])
def test_vignetting_at_centre_edge_and_corner(shape):
    light = axial_illumination(torch.full((1, *shape), 10.0), 0.4)[0]
    rows, columns = shape[0] // 2, shape[1] // 2
    assert float(light[rows, columns]) == pytest.approx(10)
    for corner in (light[0, 0], light[0, -1], light[-1, 0], light[-1, -1]):
        assert float(corner) == pytest.approx(10 * (1 - 0.4), rel=ROUNDING)
    for edge in (light[0, columns], light[rows, -1]):
        assert float(edge) == pytest.approx(10 * (1 - 0.4 / 2), rel=ROUNDING)  # 1/2 = 1 / sqrt(2)^2
    assert float(light[rows, columns + columns // 2]) == pytest.approx(
        10 * (1 - 0.4 / 8), rel=ROUNDING
    )


def test_vignetting_about_another_axis_and_per_sample():
    centre = torch.tensor([[-1.0, 1.0], [0.0, 0.5]])  # (y, x): the upper right corner; right
    light = axial_illumination(torch.ones(2, 41, 41), torch.tensor([0.2, 1.0]), centre)
    assert float(light[0, 0, 40]) == pytest.approx(1)
    assert float(light[0, 0, 0]) == pytest.approx(1 - 0.2 * 2, rel=ROUNDING)
    assert float(light[0, 40, 0]) == pytest.approx(1 - 0.2 * 4, rel=ROUNDING)
    assert float(light[1, 20, 30]) == pytest.approx(1)
    assert float(light[1, 20, 0]) == pytest.approx(0, abs=0.2)  # clipped, never negative
    assert float(light.min()) >= 0


@pytest.mark.parametrize("loss", [-0.1, 1.1])
def test_vignetting_refuses_losses_outside_0_to_1(loss):
    with pytest.raises(InputError, match="give 0 to 1"):
        axial_illumination(torch.ones(1, 4, 4), loss)


# --- rotation


@pytest.mark.parametrize(("shape", "size"), [((50, 64), 30), ((51, 65), 31)])
def test_rotation_by_nothing_is_the_exact_middle(shape, size):
    images = torch.rand(2, *shape, generator=seeded())
    top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
    expected = images[:, top : top + size, left : left + size]
    torch.testing.assert_close(rotate(images, 0.0, size), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize(("degrees", "turns"), [(90, -1), (180, 2), (-90, 1), (270, 1)])
def test_quarter_turns_run_from_x_to_y_against_rot90(degrees, turns):
    images = torch.rand(2, 60, 60, generator=seeded())
    expected = torch.rot90(images[:, 10:-10, 10:-10], turns, (1, 2))
    torch.testing.assert_close(rotate(images, float(degrees), 40), expected, atol=1e-4, rtol=0)


def test_rotation_per_sample():
    images = torch.rand(1, 60, 60, generator=seeded()).expand(2, 60, 60)
    both = rotate(images, torch.tensor([0.0, 90.0]), 40)
    torch.testing.assert_close(both[0], rotate(images[:1], 0.0, 40)[0])
    torch.testing.assert_close(both[1], rotate(images[:1], 90.0, 40)[0])


@pytest.mark.parametrize("degrees", [17.0, 45.0, 133.0])
def test_rotation_moves_smooth_objects_to_where_they_belong(degrees):
    def blobs(degrees):
        line = torch.arange(91, dtype=torch.float64) - 45
        a = math.radians(degrees)
        spots = ((12.0, 5.0, 1.0), (-8.0, 14.0, 0.5))  # x, y, brightness
        return sum(
            b
            * torch.exp(-((line - (math.cos(a) * x - math.sin(a) * y)) ** 2) / 18)
            * torch.exp(-((line - (math.sin(a) * x + math.cos(a) * y)) ** 2) / 18)[:, None]
            for x, y, b in spots
        )[None]

    found = rotate(blobs(0), degrees, 61)
    # 2 %: the cubic kernel of torch (a = -0.75) is not exact even for a ramp
    torch.testing.assert_close(found, blobs(degrees)[:, 15:-15, 15:-15], atol=0.02, rtol=0)


def test_rotation_never_looks_outside_the_image():
    images = torch.ones(1, 60, 100)
    for degrees in range(0, 180, 15):
        turned = rotate(images, float(degrees), 40)
        assert float((turned - 1).abs().max()) < ROUNDING


def test_refuses_a_square_that_does_not_fit_when_turned():
    with pytest.raises(InputError, match="41 px does not fit 60 x 100 px"):
        rotate(torch.ones(1, 60, 100), 10.0, 41)


# --- pixels of sCMOS cameras


@pytest.mark.parametrize("electrons", [0.0, 2000.0])
def test_pixels_differ_in_gain_and_read_noise(electrons):
    noisy = pixel_noise(flat(electrons), seeded(4))
    mean, variance, _ = moments(noisy)
    # The noise is r x^2 z of normal variates x and z, where E[x^4] = 3. Its fourth moment is that
    # of x^8 z^4, 105 times 3.
    read = 3 * PIXEL_READ_NOISE_E**2
    expected = read + (PIXEL_GAIN * electrons) ** 2
    assert mean == pytest.approx(electrons, abs=SIGMAS * math.sqrt(expected / SAMPLES))
    spread = math.sqrt((105 * 3 * PIXEL_READ_NOISE_E**4 + 2 * expected**2) / SAMPLES)
    assert variance == pytest.approx(expected, abs=SIGMAS * spread)


def test_few_pixels_have_most_of_the_read_noise():
    noise = np.sort(pixel_noise(flat(0), seeded(5)).square().numpy().ravel())[::-1]
    # of normal noise, the noisiest 5 % of the pixels have 28 % of the squares
    assert noise[: SAMPLES // 20].sum() > 0.7 * noise.sum()
    assert np.median(noise) < (0.3 * PIXEL_READ_NOISE_E) ** 2
