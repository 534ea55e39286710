"""Means of planes, the plane of best focus and the drift of a series, against closed forms."""

import numpy as np
import pandas as pd
import pytest

from models.drift import best_focus, drift_of, plane_mean
from models.series_drift import SeriesAxes, drift_curves

RNG = np.random.default_rng


def test_a_mean_has_the_error_of_patches_that_share_pixels():
    deviations = np.full(400, 0.3)
    means = [plane_mean(RNG(seed).normal(1.5, 0.3, 400), deviations, 1) for seed in range(60)]
    found = np.array([mean.value for mean in means])
    assert means[0].error == pytest.approx(0.3 / 20)
    assert found.mean() == pytest.approx(1.5, abs=0.01)
    assert found.std() == pytest.approx(0.3 / 20, rel=0.3)
    # sixteen patches have one error in common where they overlap four times along each side
    assert plane_mean(found, deviations[:60], 4).error == pytest.approx(0.3 / np.sqrt(60 / 16))
    assert plane_mean(found[:4], deviations[:4], 4).error == pytest.approx(0.3)  # never below one


def test_outliers_hardly_move_a_mean():
    values = np.r_[RNG(0).normal(1, 0.1, 95), np.full(5, 4.0)]
    assert plane_mean(values, np.full(100, 0.1), 1).value == pytest.approx(1, abs=0.04)
    assert values.mean() > 1.1


def test_the_mean_of_a_tilt_is_that_of_its_places():
    """Places with small errors do not count more: else the mean would move with the light."""
    tilt = np.linspace(0, 2, 101)
    assert plane_mean(tilt, np.linspace(0.01, 1, 101), 1).value == pytest.approx(1, abs=1e-6)


def test_nothing_is_known_without_patches():
    assert np.isnan(plane_mean(np.array([]), np.array([]), 1)).all()


@pytest.mark.parametrize("signed", [True, False])
def test_best_focus_lies_between_the_planes(signed):
    z = 2.0 * np.arange(11)
    found = []
    for seed in range(30):
        noise = RNG(seed).normal(0, 0.1, 11)
        true = 0.9 * (z - 8.7) if signed else np.hypot(0.9 * (z - 8.7), 0.6)
        found.append(best_focus(z, true + noise, np.full(11, 0.1), signed))
    values, errors = np.array(found).T
    assert abs(values.mean() - 8.7) < 0.05
    assert 0.5 < values.std() / errors.mean() < 2
    falling = best_focus(z, -0.9 * (z - 8.7) if signed else true, np.full(11, 0.1), signed)
    assert falling.value == pytest.approx(8.7, abs=0.2)


def test_best_focus_out_of_the_stack_is_not_told():
    z = np.arange(8.0)
    assert np.isnan(best_focus(z, np.hypot(z + 3, 0.5), np.full(8, 0.1), False)).all()
    few = np.array([1, 0.2, 1, np.nan, np.nan, np.nan, np.nan, np.nan])
    assert np.isnan(best_focus(z, few, np.full(8, 0.1), False)).all()


def test_drift_is_the_change_of_a_line_with_its_error():
    at = np.linspace(0, 10, 21)
    found = [
        drift_of(at, 3 + 0.18 * at + RNG(seed).normal(0, 0.1, 21), np.full(21, 0.1))
        for seed in range(60)
    ]
    changes = np.array([one.change.value for one in found])
    errors = np.array([one.change.error for one in found])
    assert changes.mean() == pytest.approx(1.8, abs=0.03)
    assert changes.std() == pytest.approx(errors.mean(), rel=0.35)
    assert all(one.is_sure and not one.turns for one in found)
    flat = drift_of(at, RNG(1).normal(0, 0.1, 21), np.full(21, 0.1))
    assert not flat.is_sure
    # a curve that leaves the line by more than its errors has a larger error
    wild = drift_of(at, 0.18 * at + np.sin(3 * at), np.full(21, 0.1))
    assert wild.change.error > 4 * errors.mean()


def test_noise_has_no_minimum_but_a_v_has():
    for seed in range(100):
        noise = RNG(seed).normal(0, 0.1, 15)
        assert not drift_of(np.arange(15), noise, np.full(15, 0.1)).turns
        v = np.abs(np.arange(15) - 3.0) * 0.3 + noise / 3
        assert drift_of(np.arange(15), v, np.full(15, 0.5)).turns


def test_unknown_time_points_are_left_out():
    at = np.arange(5.0)
    values = np.array([1, np.nan, 3, 4, np.nan])
    assert drift_of(at, values, np.full(5, 0.1)).change.value == pytest.approx(3)
    assert drift_of(at, np.full(5, np.nan), np.full(5, 0.1)) is None


def table(times, depths, focus, error=0.05):
    """Rows of planes.csv of one channel; `focus` is a function of t and z in um."""
    rows = [
        {"t": t, "z": z, "channel": 0, "z_um": 2.0 * z, "depth_um": focus(t, 2.0 * z)}
        for t in range(times)
        for z in range(depths)
    ]
    return pd.DataFrame(rows).assign(depth_standard_error_um=error)


def axes(times, depths, interval_s=None, signed=False):
    return SeriesAxes(times, depths, {0: "a"}, interval_s, 2.0, "depth_um", signed, True)


@pytest.mark.parametrize(
    ("interval_s", "label", "last", "span"),
    [
        (None, "frame", 10, "10 frames"),
        (5, "time (s)", 50, "50 s"),
        (600, "time (min)", 100, "100 min"),
        (3600, "time (h)", 10, "10 h"),
    ],
)
def test_time_axis(interval_s, label, last, span):
    found = drift_curves(table(11, 1, lambda t, z: 1 + 0.2 * t), axes(11, 1, interval_s))
    assert found.x_label == label
    assert found.curves[0].at[-1] == pytest.approx(last)
    assert found.curves[0].sentence.startswith(
        "drift of the mean distance from focus: +2.00 ± 0.05"
    )
    assert span in found.curves[0].sentence


def test_a_v_is_told_of_a_network_without_sign_alone():
    planes = table(11, 1, lambda t, z: abs(t - 4))
    found = drift_curves(planes, axes(11, 1, 3600))
    assert "looks like a V; the mean is smallest at 4 h" in found.notes[0]
    assert "falls and rises again, by 6 µm over 10 h" in found.curves[0].sentence
    assert drift_curves(planes, axes(11, 1, 3600, signed=True)).notes == []


def test_stacks_of_a_series_show_their_plane_of_best_focus():
    planes = table(6, 9, lambda t, z: np.hypot(z - 6 - 0.5 * t, 0.4))
    found = drift_curves(planes, axes(6, 9, 3600))
    np.testing.assert_allclose(found.curves[0].values, 6 + 0.5 * np.arange(6), atol=0.02)
    assert "plane of best focus: +2.5" in found.curves[0].sentence
    single = drift_curves(table(1, 9, lambda t, z: np.hypot(z - 6.5, 0.4)), axes(1, 9))
    assert single.x_label == "z (µm)"
    assert single.curves[0].marked == pytest.approx(6.5, abs=0.02)
    assert "z = 6.50 ±" in single.curves[0].sentence and "(plane 3.25)" in single.curves[0].sentence


def test_one_plane_has_no_drift():
    assert drift_curves(table(1, 1, lambda t, z: 1.0), axes(1, 1)) is None
