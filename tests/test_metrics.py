"""Scores by hand, and intervals that behave."""

import numpy as np
import pytest

from models.scoring import SCORES, r2_interval, squared_pearson

TRUTH = np.array([0.0, 1.0, 2.0, 3.0])
PREDICTION = np.array([0.0, 1.0, 2.0, 5.0])


def test_r2_divides_by_the_spread_of_the_truth():
    # residual sum 4; the truth spreads by 5, the prediction by 14: swapped it would be 1 - 4/14
    assert SCORES["r2"](TRUTH, PREDICTION) == pytest.approx(1 - 4 / 5)
    assert SCORES["r2"](PREDICTION, TRUTH) == pytest.approx(1 - 4 / 14)
    assert SCORES["r2"](TRUTH, np.full(4, 1.5)) == pytest.approx(0)


def test_rmse_and_median_absolute_error_by_hand():
    assert SCORES["rmse"](TRUTH, PREDICTION) == pytest.approx(1.0)
    assert SCORES["median_abs_error"](TRUTH, PREDICTION) == 0.0
    assert SCORES["median_abs_error"](TRUTH, TRUTH - [0.5, 1, 2, 7]) == pytest.approx(1.5)


def test_scores_are_not_rounded():
    assert SCORES["rmse"](TRUTH, TRUTH + 1e-7) == pytest.approx(1e-7)
    assert SCORES["r2"](TRUTH, TRUTH + 1e-4) < 1


def test_squared_pearson_is_blind_to_scale_offset_and_sign():
    rng = np.random.default_rng(0)
    prediction = TRUTH + rng.normal(size=4)
    value = squared_pearson(TRUTH, prediction)
    assert 0 < value < 1
    assert squared_pearson(TRUTH, -3 * prediction + 7) == pytest.approx(value)
    assert squared_pearson(TRUTH, 0.1 * TRUTH + 5) == pytest.approx(1)
    assert SCORES["r2"](TRUTH, 0.1 * TRUTH + 5) < 0


def test_squared_pearson_of_a_constant_is_0():
    assert squared_pearson(TRUTH, np.ones(4)) == 0
    assert squared_pearson(np.ones(4), TRUTH) == 0


def sample(count):
    rng = np.random.default_rng(count)
    truth = rng.uniform(0, 4, count)
    return truth, truth + rng.normal(0, 0.5, count)


def test_interval_holds_the_score_and_shrinks_as_1_over_root_n():
    widths = []
    for count in (100, 1600):
        truth, prediction = sample(count)
        low, high = r2_interval(truth, prediction, np.random.default_rng(0))
        assert low < SCORES["r2"](truth, prediction) < high
        widths.append(high - low)
    # 16 times the patches: a quarter of the width, within the scatter of 100 patches
    assert 2.5 < widths[0] / widths[1] < 6


def test_interval_is_that_of_scores_of_patches_drawn_anew():
    truth, prediction = sample(200)
    draws = np.random.default_rng(3).integers(200, size=(100, 200))
    scores = [SCORES["r2"](truth[rows], prediction[rows]) for rows in draws]
    expected = np.percentile(scores, (2.5, 97.5))
    interval = r2_interval(truth, prediction, np.random.default_rng(3), repetitions=100)
    np.testing.assert_allclose(interval, expected, rtol=1e-9)


def test_interval_follows_its_generator():
    truth, prediction = sample(50)
    first, again, other = (
        r2_interval(truth, prediction, np.random.default_rng(seed), 50) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
