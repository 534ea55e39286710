"""Depth calibrations: curves of known shape and noise give z back, and an honest error."""

import numpy as np
import pytest

from models.depth_curve import Curve
from models.depth_fit import (
    LeftOut,
    _usable_range,
    fit_depth,
    leave_one_plane_out,
    plane_means,
)
from psf import InputError, Microscope

MICROSCOPE = Microscope()
UM_PER_WAVE = MICROSCOPE.um_per_wave  # 6.57
Z_UM = np.linspace(-15, 15, 41)
PATCHES = 50


def stack(curve, z_um=Z_UM, patch_noise=0.2, plane_noise=0.0, seed=0):
    """Estimates (K, N) with noise of patches and of whole planes, and their deviations."""
    rng = np.random.default_rng(seed)
    values = curve(z_um)[:, None] + rng.normal(0, plane_noise, (len(z_um), 1))
    values = values + rng.normal(0, patch_noise, (len(z_um), PATCHES))
    return values, np.full_like(values, max(patch_noise, 1e-3))


def fitted(curve, signed, z_um=Z_UM, **noise):
    values, deviations = stack(curve, z_um, **noise)
    return fit_depth(values, deviations, z_um, signed, MICROSCOPE)


def rising(z):
    return (z - 1.7) / UM_PER_WAVE


def saturating(z):
    return 2.5 * np.tanh((z - 1.7) / 12)


def vee(z):
    return np.abs(z - 2.3) / UM_PER_WAVE


def soft_vee(z):
    """Does not reach zero in focus, and saturates at 1.8."""
    return np.minimum(np.hypot(0.4, (z - 2.3) / UM_PER_WAVE), 1.8)


# --- curves


@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("curve", [rising, saturating])
def test_signed_curves_give_z_back_in_either_direction(curve, direction):
    found = fitted(lambda z: direction * curve(z), signed=True)
    assert found.focus_z_um == pytest.approx(1.7, abs=0.3)
    assert np.sign(found.z_um[-1] - found.z_um[0]) == direction
    z = np.linspace(*found.usable_um, 50) + found.focus_z_um
    depth = found.depth_um(direction * curve(z)) + found.focus_z_um
    assert np.abs(depth - z).max() < 0.6
    assert found.usable_um[1] - found.usable_um[0] > 25


@pytest.mark.parametrize("curve", [vee, soft_vee])
def test_unsigned_curves_give_the_distance_from_focus(curve):
    found = fitted(curve, signed=False, patch_noise=0.05)
    distance = np.linspace(max(1.5, found.usable_um[0]), found.usable_um[1] - 0.3, 40)
    for side in (1, -1):
        depth = found.depth_um(curve(2.3 + side * distance))
        assert np.abs(depth - distance).max() < 0.5


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("curve", [vee, soft_vee])
def test_focal_plane_is_found_to_a_tenth_of_a_um(curve, seed):
    # a step of 0.75 um: the error is a small part of it
    found = fitted(curve, signed=False, patch_noise=0.1, seed=seed)
    assert found.focus_z_um == pytest.approx(2.3, abs=0.1)


def test_a_stack_of_one_side_counts_from_its_end():
    z = np.linspace(0, 12, 25)
    found = fitted(lambda z: (z + 3) / UM_PER_WAVE, False, z, patch_noise=0.05)
    assert found.focus_z_um == pytest.approx(0, abs=0.3)


def test_saturated_ends_are_not_usable():
    found = fitted(soft_vee, signed=False, patch_noise=0.05)
    saturated = UM_PER_WAVE * np.sqrt(1.8**2 - 0.4**2)  # 11.5 um
    assert 8 < found.usable_um[1] < saturated + 0.8
    assert found.is_usable(np.array([5.0, 14.0])).tolist() == [True, False]


def test_uneven_planes():
    z = np.sort(np.random.default_rng(1).uniform(-15, 15, 40))
    found = fitted(rising, True, z, patch_noise=0.05)
    assert np.abs(found.depth_um(rising(z)) + found.focus_z_um - z).max() < 0.4


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("curve", "signed"), [(saturating, True), (soft_vee, False)])
def test_curves_are_monotone_whatever_the_noise(curve, signed, seed):
    found = fitted(curve, signed, patch_noise=0.8, plane_noise=0.2, seed=seed)
    values = np.linspace(found.values[0], found.values[-1], 2000)
    assert (np.diff(found.values) > 0).all()
    assert (np.diff(found.depth_um(values)) >= 0).all()


# --- errors


@pytest.mark.parametrize("plane_noise", [0.03, 0.06])
def test_error_of_planes_left_out_is_their_noise(plane_noise):
    # the noise of a plane in um, and that of a curve through the other 40
    rms = [
        fitted(rising, True, patch_noise=0.1, plane_noise=plane_noise, seed=seed).rms_um
        for seed in range(10)
    ]
    noise_um = np.hypot(plane_noise, 0.1 / np.sqrt(PATCHES)) * UM_PER_WAVE
    assert noise_um < np.mean(rms) < 1.3 * noise_um


def test_error_of_single_patches_is_their_noise():
    found = fitted(rising, True, patch_noise=0.1)
    assert found.patch_rms_um == pytest.approx(0.1 * UM_PER_WAVE, rel=0.1)


def test_a_plane_left_out_has_no_part_in_its_own_error():
    values, deviations = stack(rising, patch_noise=0.01)
    values[20] += 1.0
    errors = leave_one_plane_out(values, deviations, Z_UM, signed=True).means_um
    assert errors[20] == pytest.approx(UM_PER_WAVE, rel=0.02)
    falling = leave_one_plane_out(-values, deviations, Z_UM, signed=True).means_um
    assert falling[20] == pytest.approx(UM_PER_WAVE, rel=0.02)


def test_deviations_go_through_the_slope():
    found = fitted(saturating, signed=True, patch_noise=0.02)
    for z in (1.7, 8.0, -8.0):
        slope = 2.5 / 12 / np.cosh((z - 1.7) / 12) ** 2
        assert found.deviation_um(saturating(z), 0.1) == pytest.approx(0.1 / slope, rel=0.15)
    assert np.isnan(found.deviation_um(9.0, 0.1))
    everywhere = found.deviation_um(np.linspace(found.values[0], found.values[-1], 500), 0.05)
    assert (everywhere > 0.1).all()


# --- patches


def test_patches_count_by_their_deviation_and_far_ones_hardly():
    values = np.array([[1.0, 1.1, 0.9, 1.05, 0.95, 9.0, np.nan]])
    deviations = np.array([[0.1] * 7])
    mean = plane_means(values, deviations).means[0]
    assert mean == pytest.approx(1.0, abs=0.08)
    sure = np.array([[1e-3, *[0.1] * 6]])
    assert plane_means(values, sure).means[0] == pytest.approx(1.0, abs=1e-3)


def test_planes_without_patches_are_left_out():
    values, deviations = stack(rising)
    values[[3, 17]] = np.nan
    found = fit_depth(values, deviations, Z_UM, True, MICROSCOPE)
    assert found.focus_z_um == pytest.approx(1.7, abs=0.3)
    assert np.isnan(leave_one_plane_out(values, deviations, Z_UM, True).means_um[3])


# --- refusals


def test_estimates_that_do_not_follow_z_are_refused():
    noise = np.random.default_rng(0).normal(0, 1, (41, PATCHES))
    for signed in (True, False):
        with pytest.raises(InputError, match="does not follow z: its rank correlation"):
            fit_depth(noise, np.ones_like(noise), Z_UM, signed, MICROSCOPE)
    same = np.ones((41, PATCHES))
    with pytest.raises(InputError, match="correlation with z is 0"):
        fit_depth(same, same, Z_UM, True, MICROSCOPE)


def test_an_unsigned_estimate_is_no_signed_one():
    with pytest.raises(InputError, match="does not follow z"):
        fitted(lambda z: np.abs(z), signed=True)


def test_few_planes_and_repeated_z_are_refused():
    with pytest.raises(InputError, match=r"4 planes have patches .* at least 5"):
        fitted(rising, True, Z_UM[:4])
    with pytest.raises(InputError, match="two planes have the same z"):
        fitted(rising, True, np.repeat(Z_UM, 2))


def test_a_limit_that_nothing_keeps_is_refused():
    values, deviations = stack(rising, plane_noise=0.1)
    with pytest.raises(InputError, match=r"up to 0\.01 um.* larger --limit-um"):
        fit_depth(values, deviations, Z_UM, True, MICROSCOPE, limit_um=0.01)


def test_a_range_no_wider_than_its_errors_is_refused():
    curve = Curve(np.array([0.0, 1.0]), np.array([0.0, 50.0]), lambda z: z, 0.0, 1.0)
    x_um = np.array([0.0, 10.0, 10.1, 30.0])
    errors = LeftOut(np.array([90.0, 2.0, 2.0, 90.0]), np.full((4, 3), 0.05))
    with pytest.raises(InputError, match=r"is 10 to 10\.1 um, no wider than the errors in it"):
        _usable_range(curve, x_um, 0.0, errors, limit_um=60.0)
    errors.means_um[:] = 0.05
    assert _usable_range(curve, x_um, 0.0, errors, limit_um=60.0).range_um == (0.0, 30.0)


@pytest.mark.parametrize("end", [0.0, 19.68])
def test_stack_on_one_side_of_focus_gives_the_distance_from_its_end(end):
    z_um = np.arange(7) * 3.28  # the plane in focus is the first or the last one
    found = fitted(lambda z: np.abs(z - end) / UM_PER_WAVE, False, z_um, patch_noise=0.02)
    assert found.focus_z_um == pytest.approx(end, abs=0.5)
    distance = np.array([5.0, 10.0, 15.0])
    assert np.abs(found.depth_um(distance / UM_PER_WAVE) - distance).max() < 0.5
