"""Scores by value: R^2 and its interval over images, the SNR of a PSF, coverage, content flag."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from common.pictures import draw_reliability
from models.data import CONDITIONS, Batch
from models.estimator import Prediction
from models.scoring import (
    SCORES,
    Scored,
    psf_snr_db,
    r2_interval,
    score_condition,
    score_parameter,
    squared_pearson,
    table_rows,
)
from psf import Microscope, psf_model

MICROSCOPE = Microscope()
OTHER = Microscope(na=0.3, pixel_size_um=0.4)
GAUSSIAN = psf_model("gaussian1d")
FOCUS = psf_model("zernike1d")
DB = 0.02  # of 20 log10: rounding of float32 PSFs
TRUTH = np.array([0.0, 1.0, 2.0, 3.0])
PREDICTION = np.array([0.0, 1.0, 2.0, 5.0])


def column(*values):
    return torch.tensor(values)[:, None]


def snr(model, truth, predicted, microscopes=MICROSCOPE, size=127):
    found = psf_snr_db(model, column(*truth), column(*predicted), microscopes, size)
    assert found.shape == (len(truth),)
    return found.tolist()


# --- scores of one parameter


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


# --- intervals


def sample(count):
    rng = np.random.default_rng(count)
    truth = rng.uniform(0, 4, count)
    return truth, truth + rng.normal(0, 0.5, count)


def width(truth, prediction, sources, repetitions=500):
    rng = np.random.default_rng(0)
    low, high = r2_interval(truth, prediction, sources, rng, repetitions)
    assert low < SCORES["r2"](truth, prediction) < high
    return high - low


def test_interval_shrinks_with_the_root_of_the_number_of_images():
    few, many = (width(*sample(count), np.arange(count)) for count in (100, 1600))
    # 16 times the images: a quarter of the width, within the scatter of 100 images
    assert 2.5 < few / many < 6


def test_interval_is_that_of_scores_of_images_drawn_anew():
    truth, prediction = sample(200)
    sources = np.sort(np.random.default_rng(4).integers(0, 30, 200))
    rows = [np.flatnonzero(sources == name) for name in range(30)]
    draws = np.random.default_rng(3).integers(30, size=(100, 30))
    drawn = [np.concatenate([rows[name] for name in draw]) for draw in draws]
    scores = [SCORES["r2"](truth[chosen], prediction[chosen]) for chosen in drawn]
    names = np.array([f"image {name:02d}" for name in sources])
    interval = r2_interval(truth, prediction, names, np.random.default_rng(3), repetitions=100)
    np.testing.assert_allclose(interval, np.percentile(scores, (2.5, 97.5)), rtol=1e-9)


def test_patches_of_one_image_with_the_same_error_count_once():
    """25 patches per image repeat its error: the interval is that of 1 patch per image.

    Over patches it would be sqrt(25) = 5 times too narrow.
    """
    truth, prediction = sample(80)
    once = width(truth, prediction, np.arange(80))
    repeated = [np.repeat(values, 25) for values in (truth, prediction)]
    assert width(*repeated, np.repeat(np.arange(80), 25)) == pytest.approx(once, rel=1e-9)
    over_patches = width(*repeated, np.arange(2000), 2000)
    assert once / over_patches == pytest.approx(5, rel=0.25)


def test_errors_shared_within_images_widen_the_interval_by_the_design_effect():
    """Variance grows by 1 + (m - 1) c for m patches per image of correlation c (Kish 1965)."""
    images, patches, ratios = 300, 10, []
    each = np.arange(images * patches)
    sources = each // patches
    for seed in range(4):
        rng = np.random.default_rng(seed)
        # half of the variance of the squared errors belongs to the image, half to the patch
        shared, own = rng.choice([-1, 1], images)[sources], rng.choice([-1, 1], len(each))
        errors = np.sqrt(0.25 * (1 + 0.4 * shared + 0.4 * own)) * rng.choice([-1, 1], len(each))
        truth = rng.choice([0.0, 4.0], len(each))  # the spread of the truth adds no variance
        ratios.append(width(truth, truth + errors, sources) / width(truth, truth + errors, each))
    assert np.mean(ratios) == pytest.approx(math.sqrt(1 + (patches - 1) * 0.5), rel=0.1)


def test_one_image_has_no_interval():
    truth, prediction = sample(50)
    rng = np.random.default_rng(0)
    assert np.isnan(r2_interval(truth, prediction, np.array(["coins"] * 50), rng)).all()
    assert np.isnan(r2_interval(np.ones(50), prediction, np.arange(50), rng)).all()


def test_interval_follows_its_generator():
    truth, prediction = sample(50)
    first, again, other = (
        r2_interval(truth, prediction, np.arange(50), np.random.default_rng(seed), 50)
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


# --- SNR of the PSF


def test_a_perfect_estimate_has_a_very_high_snr():
    assert min(snr(GAUSSIAN, (1.0, 5.0, 20.0), (1.0, 5.0, 20.0), size=79)) > 180
    assert min(snr(FOCUS, (0.0, 2.0), (0.0, 2.0))) > 180


@pytest.mark.parametrize(("fwhm", "found"), [(4.0, 5.0), (5.0, 4.0), (8.0, 8.4), (6.0, 12.0)])
def test_snr_of_gaussians_in_closed_form(fwhm, found):
    """Integrals of products of Gaussians: <a, b> = 1 / (2 pi (a^2 + b^2))."""
    a, b = (w / (2 * math.sqrt(2 * math.log(2))) for w in (fwhm, found))
    difference = 1 / (2 * a**2) + 1 / (2 * b**2) - 2 / (a**2 + b**2)
    expected = 10 * math.log10((1 / (2 * a**2)) / difference)
    # a pixel averages over its area, which widens both by 1/12 px^2
    assert snr(GAUSSIAN, (fwhm,), (found,))[0] == pytest.approx(expected, abs=0.3)


def test_small_errors_cost_20_db_per_factor_of_ten():
    far, near = snr(FOCUS, (2.0, 2.0), (2.1, 2.01))
    assert near - far == pytest.approx(20, abs=0.5)
    above, below = snr(FOCUS, (2.0, 2.0), (2.001, 1.999))
    assert above == pytest.approx(below, abs=0.2)


def test_estimates_out_of_range_count_as_its_end():
    assert snr(GAUSSIAN, (3.0, 18.0), (-7.0, 99.0), size=79) == pytest.approx(
        snr(GAUSSIAN, (3.0, 18.0), (0.0, 20.0), size=79), abs=DB
    )
    at_end, outside, inside = snr(FOCUS, (3.5,) * 3, (4.0, 4.4, 3.9))
    assert outside == pytest.approx(at_end, abs=DB)
    assert inside > at_end + 1


def test_each_patch_has_the_psf_of_its_own_microscope():
    both = snr(FOCUS, (1.0, 1.0), (1.4, 1.4), [MICROSCOPE, OTHER])
    alone = [snr(FOCUS, (1.0,), (1.4,), m)[0] for m in (MICROSCOPE, OTHER)]
    assert both == pytest.approx(alone, abs=DB)
    other_index = snr(GAUSSIAN, (3.0, 3.0), (4.0, 4.0), [MICROSCOPE, OTHER])
    assert other_index[0] == pytest.approx(other_index[1], abs=DB)


# --- a condition


class Patches:
    """A test set of 8 patches whose first pixel is their number; the last two are blank."""

    model = FOCUS
    config = {"psf_size": 127}  # noqa: RUF012
    source_kinds = np.array(["builtin", "file"] * 3 + ["", ""])
    source_names = np.array(["coins", "a.tif"] * 3 + ["", ""])
    truth = torch.linspace(0.5, 2.6, 8)[:, None]

    def recorded(self, condition, batch_size, device):
        optics = torch.tensor([[0.45, 0.5, 0.278, 1.33]] * 4 + [[0.3, 0.5, 0.4, 1.33]] * 4)
        for rows in torch.arange(8).split(batch_size):
            patches = rows[:, None, None].float().expand(-1, 4, 4)
            yield Batch(patches, self.truth[rows], rows < 6, optics[rows])


class Reader:
    """A network that errs by a tenth of a wave more for each patch."""

    def __init__(self, flags):
        self.flags = torch.tensor(flags)

    def um_per_unit(self, microscope):
        return {"focus": microscope.um_per_wave}

    def predict(self, patches, microscope, batch_size):
        rows = patches[:, 0, 0].long()
        values = Patches.truth[rows] + 0.1 * rows[:, None]
        ones = torch.ones(len(rows), 1)
        flags = self.flags[rows]
        return Prediction(("focus",), "waves", values, 0.25 * ones, 0.45 * ones, flags)


FLAGS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.45, 0.1)  # 11 of 12 pairs in order


@pytest.mark.parametrize("batch_size", [3, 4, 64])
def test_a_condition_is_scored_patch_by_patch(batch_size):
    scored = score_condition("net", Reader(FLAGS), Patches(), CONDITIONS[0], batch_size)
    assert scored.condition == "noise-free"
    assert scored.truth[:, 0] == pytest.approx(Patches.truth[:6, 0].numpy())
    errors = (scored.predicted - scored.truth)[:, 0]
    assert errors == pytest.approx(0.1 * np.arange(6), abs=1e-6)
    assert scored.half_widths[:, :, 0] == pytest.approx(np.array([[0.25] * 6, [0.45] * 6]))
    waves = [MICROSCOPE.um_per_wave] * 4 + [OTHER.um_per_wave] * 2
    assert scored.um_per_unit[:, 0] == pytest.approx(waves, rel=1e-6)
    assert scored.sources.tolist() == ["coins", "a.tif"] * 3
    assert scored.kinds.tolist() == ["builtin", "file"] * 3
    assert scored.content_auc == pytest.approx(11 / 12)
    truth = Patches.truth[:6]
    microscopes = [MICROSCOPE] * 4 + [OTHER] * 2
    expected = psf_snr_db(FOCUS, truth, truth + 0.1 * torch.arange(6)[:, None], microscopes, 127)
    assert scored.psf_snr_db[1:] == pytest.approx(expected[1:].numpy(), abs=DB)
    assert scored.psf_snr_db[0] > 180


def test_without_blank_patches_the_flag_has_no_score():
    patches = Patches()
    patches.recorded = lambda *args: (
        replace(b, has_content=b.has_content | True) for b in Patches.recorded(patches, *args)
    )
    scored = score_condition("net", Reader(FLAGS), patches, CONDITIONS[0], 8)
    assert math.isnan(scored.content_auc)
    assert len(scored.truth) == 8


# --- rows of the table


def scored_errors(errors, kinds, um=2.0):
    errors = np.array(errors)[:, None]
    truth = np.linspace(0, 4, len(errors))[:, None]
    half_widths = np.stack([np.full_like(errors, 0.25), np.full_like(errors, 0.45)])
    um = np.full((len(errors), 1), um)
    snrs = 10.0 * np.arange(len(errors))
    kinds = np.array(kinds)
    names = np.char.add(kinds, (np.arange(len(errors)) % 12).astype(str))
    return Scored(
        "n", "c", truth, truth + errors, half_widths, um, snrs, kinds, names, content_auc=0.75
    )


def test_rows_for_all_images_and_for_each_kind():
    errors = np.tile([0.1, -0.2, 0.3, -0.4, 0.5, 0.6], 20)
    scored = scored_errors(errors, (["file"] * 2 + ["builtin"] * 4) * 20)
    rows = {row["images"]: row for row in table_rows(scored, {"network": "n"}, FOCUS)}
    assert list(rows) == ["all", "builtin", "file"]
    assert [row["patches"] for row in rows.values()] == [120, 80, 40]
    # names of 12 patches in turn, 4 of which are files
    assert [row["source_images"] for row in rows.values()] == [12, 8, 4]
    assert [row["coverage_68"] for row in rows.values()] == pytest.approx([1 / 3, 0, 1])
    assert [row["coverage_95"] for row in rows.values()] == pytest.approx([2 / 3, 0.5, 1])
    mean_snr = [10 * (middle + 57) for middle in (2.5, 3.5, 0.5)]  # 19 / 2 rounds of 6 patches
    assert [row["psf_snr_db"] for row in rows.values()] == pytest.approx(mean_snr)
    assert rows["file"]["rmse"] == pytest.approx(math.sqrt(0.025))
    assert rows["file"]["rmse_um"] == pytest.approx(2 * math.sqrt(0.025))
    assert rows["builtin"]["median_abs_error_um"] == pytest.approx(2 * 0.45)
    for row in rows.values():
        assert (row["parameter"], row["unit"], row["condition"]) == ("focus", "waves", "c")
        assert row["content_auc"] == 0.75


def test_one_kind_of_images_has_one_row():
    rows = list(table_rows(scored_errors([0.1] * 30, ["builtin"] * 30), {}, FOCUS))
    assert [row["images"] for row in rows] == ["builtin"]


def test_labels_that_are_no_length_have_no_error_in_um(tmp_path):
    rows = list(table_rows(scored_errors([0.1] * 30, ["file"] * 30, um=math.nan), {}, FOCUS))
    pd.DataFrame(rows).to_csv(tmp_path / "table.csv", index=False)
    table = pd.read_csv(tmp_path / "table.csv", keep_default_na=False)
    assert table["rmse_um"].tolist() == table["median_abs_error_um"].tolist() == [""]
    assert float(table["rmse"].iloc[0]) == pytest.approx(0.1)


def test_scores_of_a_parameter_by_hand():
    truth = np.tile([0.0, 1.0, 2.0, 3.0], 10)
    predicted, um = truth + (truth == 3), np.where(truth == 3, 3.0, 1.0)
    found = score_parameter(truth, predicted, um, np.arange(40))
    assert found["r2"] == pytest.approx(1 - 1 / 5)
    assert found["rmse"] == pytest.approx(0.5)
    assert found["rmse_um"] == pytest.approx(1.5)
    assert found["median_abs_error"] == 0
    assert found["r2_low"] < 0.8 < found["r2_high"]


# --- reliability diagram


@pytest.mark.parametrize("images", ["builtin", "all", "file"])
def test_reliability_is_drawn_for_any_kind_of_images(tmp_path, images):
    row = {"psf_model": "zernike1d", "network": "n", "trained_on": "x", "parameter": "focus"}
    row |= {"images": images, "coverage_68": 0.7, "coverage_95": 0.9}
    table = pd.DataFrame([{**row, "condition": c.name} for c in CONDITIONS])
    draw_reliability(tmp_path / "reliability.png", table)
    with Image.open(tmp_path / "reliability.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert (np.ptp(pixels, 2) > 80).sum() > 200  # a coloured line
