"""Smooth maps: truth is found again, outliers and blanks do no harm, error bars hold."""

import numpy as np
import pytest

from models.smoothing import _box_filtered, block_folds, second_differences, smooth_map
from psf import InputError

ROWS, COLUMNS, OVERLAP = 30, 40, 4.0
Y, X = np.mgrid[:ROWS, :COLUMNS] / 20.0
TRUTH = 1 + 0.8 * X - 0.5 * Y + 0.4 * X * Y + 0.3 * np.sin(2 * X)
EVERYWHERE = np.ones((ROWS, COLUMNS), bool)


def noisy(sigma, seed=0):
    """The true map with errors that overlapping patches share."""
    noise = np.random.default_rng(seed).standard_normal((1, ROWS, COLUMNS))
    return TRUTH + sigma * _box_filtered(noise, OVERLAP)[0]


def rms(values):
    return float(np.sqrt(np.mean(values**2)))


def test_bending_is_that_of_a_thin_plate():
    differences = second_differences((6, 7), 1.0)
    bending = differences.T @ differences
    y, x = np.mgrid[:6, :7].astype(float)
    flat = (3 + 2 * x - y).ravel()
    assert flat @ bending @ flat == pytest.approx(0, abs=1e-9)
    bowl, twist = (x**2).ravel(), (x * y).ravel()
    assert bowl @ bending @ bowl == pytest.approx(2**2 * 6 * 5)
    assert twist @ bending @ twist == pytest.approx(2 * 5 * 6)


def test_shared_errors_have_unit_variance_and_the_correlation_of_overlap():
    noise = _box_filtered(np.random.default_rng(0).standard_normal((400, 16, 20)), 4.0)
    assert np.var(noise) == pytest.approx(1, abs=0.03)
    assert np.mean(noise[:, :, 1:] * noise[:, :, :-1]) == pytest.approx(0.75, abs=0.03)
    assert np.mean(noise[:, :, 4:] * noise[:, :, :-4]) == pytest.approx(0, abs=0.03)


def test_smoothing_lowers_the_error_of_a_noisy_map():
    sigma = np.full_like(TRUTH, 0.2)
    values = noisy(0.2)
    found = smooth_map(values, sigma, EVERYWHERE, OVERLAP)
    assert rms(found.values - TRUTH) < 0.6 * rms(values - TRUTH)


def test_error_bars_of_the_smooth_map_hold():
    sigma = np.full_like(TRUTH, 0.2)
    ratios = []
    for seed in range(6):
        found = smooth_map(noisy(0.2, seed), sigma, EVERYWHERE, OVERLAP)
        ratios.append((found.values - TRUTH) / found.standard_deviations)
    assert 0.6 < rms(np.stack(ratios)) < 1.3


def test_outliers_do_not_spread():
    sigma = np.full_like(TRUTH, 0.1)
    values = noisy(0.1)
    spoiled = values.copy()
    spoiled[::7, ::9] += 5
    clean = smooth_map(values, sigma, EVERYWHERE, OVERLAP, strength=1.0)
    found = smooth_map(spoiled, sigma, EVERYWHERE, OVERLAP, strength=1.0)
    assert rms(found.values - clean.values) < 0.05
    assert found.outliers > clean.outliers + 0.01


def test_blank_patches_are_filled_and_have_wide_error_bars():
    content = EVERYWHERE.copy()
    content[10:20, 12:26] = False
    values = np.where(content, noisy(0.05), 1e6)  # whatever a blank patch says
    found = smooth_map(values, np.full_like(TRUTH, 0.05), content, OVERLAP, 1e-2)
    assert rms((found.values - TRUTH)[10:20, 12:26]) < 0.15
    inside = found.standard_deviations[13:17, 16:22].mean()
    assert inside > 1.5 * np.median(found.standard_deviations[content])


def test_sure_patches_count_more_than_unsure_ones():
    sigma = np.where(np.arange(COLUMNS) % 2, 0.02, 0.5) * np.ones((ROWS, 1))
    rng = np.random.default_rng(3)
    values = TRUTH + sigma * rng.standard_normal(TRUTH.shape)
    weighted = smooth_map(values, sigma, EVERYWHERE, 1.0, strength=0.1)
    blind = smooth_map(values, np.full_like(sigma, 0.25), EVERYWHERE, 1.0, strength=0.1)
    assert rms(weighted.values - TRUTH) < 0.5 * rms(blind.values - TRUTH)


def test_cross_validation_smooths_noise_more_than_structure():
    flat = smooth_map(noisy(0.3) - TRUTH, np.full_like(TRUTH, 0.3), EVERYWHERE, OVERLAP)
    wavy = np.sin(3 * X) * np.cos(3 * Y)
    fine = smooth_map(wavy, np.full_like(TRUTH, 0.02), EVERYWHERE, OVERLAP)
    assert fine.strength < flat.strength
    assert rms(fine.values - wavy) < 0.1


def test_units_do_not_matter():
    sigma = np.full_like(TRUTH, 0.2)
    first = smooth_map(noisy(0.2), sigma, EVERYWHERE, OVERLAP)
    second = smooth_map(1000 * noisy(0.2), 1000 * sigma, EVERYWHERE, OVERLAP)
    assert first.strength == second.strength
    assert np.allclose(1000 * first.values, second.values, rtol=1e-6)


def test_large_maps_are_smoothed_on_averaged_cells():
    y, x = np.mgrid[:300, :260] / 150.0
    truth = np.sin(2 * x) + y**2
    values = truth + 0.2 * np.random.default_rng(0).standard_normal(truth.shape)
    found = smooth_map(values, np.full_like(truth, 0.2), np.ones(truth.shape, bool), 1.0, 1.0)
    assert found.values.shape == truth.shape
    assert rms(found.values - truth) < 0.1


def test_folds_are_blocks_as_wide_as_two_patches():
    folds = block_folds((32, 48), 4.0, seed=0)
    assert (folds.reshape(4, 8, 6, 8).transpose(0, 2, 1, 3).reshape(24, 64).std(1) == 0).all()
    assert set(np.unique(folds)) == set(range(5))


def test_single_rows_and_single_patches_pass():
    for shape in ((1, 1), (1, 5), (2, 2)):
        values = np.arange(np.prod(shape), dtype=float).reshape(shape)
        found = smooth_map(values, np.ones(shape), np.ones(shape, bool), 2.0, 1e-3)
        assert np.allclose(found.values, values, atol=0.05)


def test_bad_input_is_refused():
    ones = np.ones((4, 4))
    with pytest.raises(InputError, match="nothing to smooth"):
        smooth_map(ones, ones, ones < 0, 1.0)
    with pytest.raises(InputError, match="must be positive"):
        smooth_map(ones, ones, ones > 0, 1.0, strength=0)
