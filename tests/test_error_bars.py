"""Error bars by value: known mistakes of the deviations come back as factors, coverage holds."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from models import error_bars
from models.checkpoint import load_estimator
from models.data import PatchSet
from models.error_bars import (
    BINS,
    GAUSSIAN_FACTORS,
    GROUPS,
    SMALLEST_BIN,
    UNMEASURED,
    UNMEASURED_BY_NOISE,
    FactorsByNoise,
    IntervalFactors,
    coverage,
    interval_factors,
    measure_factors,
    measure_factors_by_noise,
    noise_share,
)
from models.loss import Scaler
from models.trainer import ERROR_BAR_CONDITIONS
from psf import Microscope

COUNT = 120_000  # 10,000 per bin: a standard error of 1 % of both factors
FACTOR = 0.05  # relative; five standard errors


def draw_deviations(count=COUNT, seed=0):
    return np.exp(np.random.default_rng([seed, 1]).uniform(-3, 0, count))


def draw_errors(deviations, seed=0):
    return deviations * np.random.default_rng([seed, 2]).standard_normal(len(deviations))


def test_honest_deviations_keep_the_gaussian_factors():
    deviations = draw_deviations()
    found = measure_factors(draw_errors(deviations), deviations)
    assert found.factor_68 == pytest.approx([1.0] * BINS, rel=FACTOR)
    assert found.factor_95 == pytest.approx([1.96] * BINS, rel=FACTOR)


@pytest.mark.parametrize("mistake", [0.25, 3.0])
def test_deviations_of_a_wrong_scale_come_back_with_the_factor(mistake):
    deviations = draw_deviations()
    found = measure_factors(mistake * draw_errors(deviations), deviations)
    assert found.factor_68 == pytest.approx([mistake] * BINS, rel=FACTOR)
    assert found.factor_95 == pytest.approx([1.96 * mistake] * BINS, rel=FACTOR)


def test_signs_and_units_of_the_errors_do_not_matter():
    deviations = draw_deviations(4800)
    errors = draw_errors(deviations)
    plain = measure_factors(errors, deviations)
    assert measure_factors(-errors, deviations) == plain
    in_um = measure_factors(6.57 * errors, 6.57 * deviations)
    assert in_um.factor_95 == pytest.approx(plain.factor_95)
    assert np.subtract(in_um.log_deviation, plain.log_deviation) == pytest.approx(math.log(6.57))


def test_heavy_tails_have_a_factor_of_their_own():
    """Laplace errors: P(|e| > x) = exp(-x / scale)."""
    deviations = draw_deviations()
    found = measure_factors(
        deviations * np.random.default_rng([0, 3]).laplace(size=COUNT), deviations
    )
    wider = 1.5 * FACTOR  # such a quantile has a standard error of 1.5 %
    assert found.factor_68 == pytest.approx([-math.log(1 - 0.6827)] * BINS, rel=wider)
    assert found.factor_95 == pytest.approx([-math.log(0.05)] * BINS, rel=wider)
    ratio = np.divide(found.factor_95, found.factor_68)
    assert (ratio > 1.2 * 1.96).all()


def test_factors_follow_the_predicted_deviation():
    """Confident predictions three times too sure, doubtful ones right, a power law between."""
    deviations = draw_deviations()
    true = deviations * 3 ** (-np.log(deviations) / 3)
    found = measure_factors(true * draw_errors(np.ones(COUNT)), deviations)
    at = np.exp([-2.8, -1.5, -0.2])
    expected = 3 ** (-np.log(at) / 3)
    low, high = found.factors(at)
    assert low == pytest.approx(expected, rel=FACTOR)
    assert high == pytest.approx(1.96 * expected, rel=FACTOR)


def test_factors_are_constant_beyond_the_table():
    table = IntervalFactors((-2.0, 0.0), (3.0, 1.0), (8.0, 2.0))
    low, high = table.factors(np.exp([-9.0, -2.0, -1.0, 0.0, 5.0]))
    assert low.tolist() == pytest.approx([3, 3, 2, 1, 1])
    assert high.tolist() == pytest.approx([8, 8, 5, 2, 2])


@pytest.mark.parametrize("count", [600, 2000, 20_000])
def test_held_out_coverage_is_close_to_nominal(count):
    """Wrong scale, wrong trend and heavy tails at once, on errors that were not measured."""

    def draw(seed, count):
        deviations = draw_deviations(count, seed)
        tails = np.random.default_rng([seed, 3]).standard_t(3, count)
        return 2 * deviations**0.6 * tails, deviations

    shares = []
    for seed in range(8):
        found = measure_factors(*draw(seed, count))
        errors, deviations = draw(1000 + seed, 20_000)
        shares.append([coverage(errors, f * deviations) for f in found.factors(deviations)])
    # bins of 50 patches, of 600: the quantile of each is uncertain by 0.07, their mean by 0.02
    assert np.mean(shares, 0) == pytest.approx([0.6827, 0.95], abs=0.03)
    errors, deviations = draw(0, 20_000)
    assert coverage(errors, 1.96 * deviations) < 0.6  # as the network had it


def test_factors_follow_the_noise():
    """Deviations that are right in noise and four times too large without: both are found."""
    deviations = draw_deviations()
    noise = np.exp(np.random.default_rng(5).uniform(-9, 0, COUNT))
    errors = draw_errors(deviations) * np.where(noise > math.exp(-4.5), 1.0, 0.25)
    found = measure_factors_by_noise(errors, deviations, noise)
    assert len(found.tables) == GROUPS
    at = np.exp([-2.8, -1.5, -0.2])
    low, high = found.factors(at, np.exp([-0.3] * 3))
    assert low == pytest.approx([1.0] * 3, rel=2 * FACTOR)
    assert high == pytest.approx([1.96] * 3, rel=2 * FACTOR)
    low, high = found.factors(at, np.exp([-8.0] * 3))
    assert low == pytest.approx([0.25] * 3, rel=2 * FACTOR)
    halfway = found.factors(at, np.exp(np.full(3, np.mean(found.log_noise[3:5]))))[0]
    assert halfway == pytest.approx([0.625] * 3, rel=2 * FACTOR)


def test_noise_share_is_that_of_white_noise_on_smooth_content():
    y, x = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")
    smooth = torch.sin(x / 20) * torch.cos(y / 25)
    smooth = smooth / smooth.std()
    noise = torch.randn(128, 128, generator=torch.Generator().manual_seed(0))
    shares = [0.01, 0.1, 0.5]
    patches = torch.stack([(1 - s) ** 0.5 * smooth + s**0.5 * noise for s in shares])
    assert noise_share(patches).tolist() == pytest.approx(shares, rel=0.05)
    assert 0 < float(noise_share(torch.zeros(1, 9, 9))) < 1e-6


def test_coverage_counts_the_errors_inside():
    errors, half_widths = np.array([-1.0, 0.5, 2.0, -3.0]), np.array([1.0, 0.4, 2.5, 2.9])
    assert coverage(errors, half_widths) == 0.5


@pytest.mark.parametrize(
    ("count", "bins"), [(0, 1), (SMALLEST_BIN - 1, 1), (SMALLEST_BIN, 1), (125, 3), (9999, BINS)]
)
def test_number_of_bins(count, bins):
    deviations = draw_deviations(count)
    found = measure_factors(draw_errors(deviations), deviations)
    assert len(found.log_deviation) == len(found.factor_68) == len(found.factor_95) == bins
    assert (found == UNMEASURED) == (count < SMALLEST_BIN)
    assert list(found.log_deviation) == sorted(found.log_deviation)


def test_unmeasured_factors_are_gaussian():
    low, high = UNMEASURED.factors(np.array([1e-3, 1.0, 50.0]))
    assert low.tolist() == [GAUSSIAN_FACTORS[0]] * 3
    assert high.tolist() == [GAUSSIAN_FACTORS[1]] * 3


def test_config_keeps_the_tables():
    deviations = draw_deviations(2000)
    noise = np.random.default_rng(4).uniform(0.01, 1, 2000)
    found = [
        measure_factors_by_noise(k * draw_errors(deviations, k), deviations, noise) for k in (1, 2)
    ]
    config = json.loads(json.dumps({"calibration": error_bars.to_config(found)}))
    again = error_bars.from_config(config, 2)
    for one, other in zip(found, again, strict=True):
        assert other.log_noise == pytest.approx(one.log_noise, abs=1e-6)
        assert len(other.tables) == len(one.tables) == 2000 // (BINS * SMALLEST_BIN)
        for name in ("log_deviation", "factor_68", "factor_95"):
            for a, b in zip(one.tables, other.tables, strict=True):
                assert getattr(a, name) == pytest.approx(getattr(b, name), abs=1e-6)
    assert error_bars.from_config({}, 3) == [UNMEASURED_BY_NOISE] * 3


def test_each_parameter_has_its_own_factors():
    tables = [
        IntervalFactors((0.0,), (2.0,), (5.0,)),
        IntervalFactors((-1.0, 1.0), (1.0, 3.0), (2.0, 6.0)),
    ]
    each = [FactorsByNoise((0.0,), (table,)) for table in tables]
    config = {"calibration": error_bars.to_config(each)}
    deviations = torch.tensor([[0.1, 1.0], [9.0, math.e]])
    found = interval_factors(config, deviations, torch.tensor([0.1, 0.5]))
    assert torch.allclose(found[0], torch.tensor([[2.0, 2.0], [2.0, 3.0]]))
    assert torch.allclose(found[1], torch.tensor([[5.0, 4.0], [5.0, 6.0]]))


# --- of a trained network


def test_intervals_of_a_checkpoint_are_those_of_its_config(focus_run, focus_data):
    estimator = load_estimator(focus_run)
    patches = PatchSet(focus_data, "test").read(np.arange(12))

    def intervals(tables):
        config = {k: v for k, v in estimator.config.items() if k != "calibration"}
        each = [FactorsByNoise((0.0,), (table,)) for table in tables]
        config |= {"calibration": error_bars.to_config(each)} if tables else {}
        found = replace(estimator, config=config).predict(patches, Microscope())
        return found.standard_deviations, found.half_widths_95

    raw, raw_95 = intervals([])
    assert torch.allclose(raw_95, 1.96 * raw)
    low, high = intervals([IntervalFactors((0.0,), (0.5,), (3.0,))])
    assert torch.allclose(low, 0.5 * raw)
    assert torch.allclose(high, 3 * raw)


def test_training_measures_the_factors_on_the_validation_split(focus_run, focus_data):
    """Shares of validation patches within the intervals, predicted as a user does."""
    estimator, patch_set = load_estimator(focus_run), PatchSet(focus_data, "validation")
    errors, half_widths = [], []
    for condition in ERROR_BAR_CONDITIONS:
        for batch in patch_set.recorded(condition, 64, torch.device("cpu")):
            found, rows = estimator.predict(batch.patches, Microscope()), batch.has_content
            errors.append((found.values - batch.labels)[rows, 0])
            half_widths.append(
                torch.stack([found.standard_deviations[rows, 0], found.half_widths_95[rows, 0]])
            )
    errors, half_widths = torch.cat(errors).numpy(), torch.cat(half_widths, 1).numpy()
    (entry,) = estimator.config["calibration"]
    groups = max(1, min(GROUPS, len(errors) // (BINS * SMALLEST_BIN)))
    assert len(entry["tables"]) == groups
    per_group = len(errors) // groups // SMALLEST_BIN
    assert len(entry["tables"][0]["factor_95"]) == min(BINS, per_group)
    assert coverage(errors, half_widths[0]) == pytest.approx(0.6827, abs=0.04)
    assert coverage(errors, half_widths[1]) == pytest.approx(0.95, abs=0.03)
    # raw deviations are in standard units: half a range
    half_range = float(Scaler.from_ranges(estimator.config["label_ranges"]).half_range)
    raw = half_range * np.exp(entry["tables"][0]["log_deviation"])
    assert (raw > 0.02).all() and (raw < 1).all()
