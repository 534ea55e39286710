"""Degradations by value: means and variances in electrons, light that is lost."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import benchmark_models
from models.data import PatchSet, normalise
from models.degradations import (
    DEGRADATIONS,
    FULL_SCALE,
    LEVELS,
    MEAN_ELECTRONS,
    READ_NOISE_E,
    recorded_levels,
)
from psf import Microscope, psf_model
from simulation.settings import from_config

BY_NAME = {degradation.name: degradation for degradation in DEGRADATIONS}
FLAT = torch.full((40, 64, 64), 7.0)  # 163,840 pixels: standard errors of 0.35 % of a variance
STATISTICS = 0.02


def record(name, patches, *levels, seed=0):
    """Patches at the last of some levels."""
    generator = torch.Generator().manual_seed(seed)
    return list(BY_NAME[name].record(patches, levels, generator))[-1]


def textures(count=6, size=64):
    return 500 + 400 * torch.rand(count, size, size, generator=torch.Generator().manual_seed(1))


# --- noise


def test_there_are_six_whose_levels_get_worse():
    assert list(BY_NAME) == [
        *("gaussian", "poisson", "both", "rotation"),
        *("global illumination", "axial illumination"),
    ]
    for degradation in DEGRADATIONS:
        assert len(degradation.levels) == LEVELS
        falls = degradation.name in ("poisson", "both", "global illumination")
        assert ((np.diff(degradation.levels) < 0) == falls).all()
        assert degradation.axis and degradation.unit
    assert BY_NAME["rotation"].levels[0] == 0 and 90 in BY_NAME["rotation"].levels


@pytest.mark.parametrize("sigma", [3.0, 1000.0])
def test_gaussian_noise_has_its_sigma_at_a_thousand_electrons(sigma):
    noise = record("gaussian", FLAT, sigma) - MEAN_ELECTRONS
    assert float(noise.std()) == pytest.approx(sigma, rel=STATISTICS)
    assert abs(float(noise.mean())) < 5 * sigma / math.sqrt(FLAT.numel())
    assert float((noise**4).mean()) == pytest.approx(3 * sigma**4, rel=5 * STATISTICS)


@pytest.mark.parametrize("photons", [3.0, 300.0, 30_000.0])
def test_poisson_noise_has_the_variance_of_its_mean(photons):
    # counts of the last level are those photons of the brighter levels that were kept
    counts = record("poisson", FLAT, 7e4, 2 * photons, photons)
    assert float(counts.mean()) == pytest.approx(photons, rel=STATISTICS)
    assert float(counts.var()) == pytest.approx(photons, rel=STATISTICS)
    assert torch.equal(counts, counts.round())


@pytest.mark.parametrize("photons", [3.0, 30_000.0])
def test_both_noises_add_their_variances(photons):
    counts = record("both", FLAT, 7e4, photons)
    assert float(counts.mean()) == pytest.approx(photons, rel=STATISTICS)
    assert float(counts.var()) == pytest.approx(photons + READ_NOISE_E**2, rel=STATISTICS)


def test_shot_noise_follows_the_light_and_read_noise_does_not():
    halves = torch.ones(40, 64, 64)
    halves[:, :, 32:] = 3.0
    dark, bright = record("poisson", halves, 100.0).split(32, 2)
    assert float(dark.var()) == pytest.approx(50, rel=STATISTICS)
    assert float(bright.var()) == pytest.approx(150, rel=STATISTICS)
    dark, bright = record("gaussian", halves, 20.0).split(32, 2)
    assert float(dark.var()) == pytest.approx(float(bright.var()), rel=2 * STATISTICS)
    assert float(dark.mean()) == pytest.approx(MEAN_ELECTRONS / 2, rel=STATISTICS)


# --- illumination


@pytest.mark.parametrize("per_cent", [4.0, 52.0, 100.0])
def test_dimming_the_lamp_costs_grey_levels_and_nothing_else(per_cent):
    patches = textures()
    dimmed = record("global illumination", patches, per_cent)
    assert dimmed.amax((1, 2)).tolist() == pytest.approx(
        [FULL_SCALE * per_cent / 100] * 6, abs=0.51
    )
    assert torch.equal(dimmed, dimmed.round())
    # rounding by up to half a count, in units of the patch's deviation, beside that of float32
    rounding = 0.51 / float(dimmed.flatten(1).std(1).min()) + 1e-5
    assert float((normalise(dimmed) - normalise(patches)).abs().max()) < rounding


def test_dimming_shows_in_few_grey_levels_only():
    """4 % of 16 bit are 2,621 levels."""
    values = record("global illumination", textures(), 4.0)
    assert len(values.unique()) <= 0.04 * FULL_SCALE + 1


@pytest.mark.parametrize("per_cent", [0.0, 30.0, 72.0])
def test_vignetting_takes_its_share_from_the_corners(per_cent):
    light = record("axial illumination", FLAT[:1, :, :63].clone(), per_cent)[0] / 7
    kept = 1 - per_cent / 100
    for row, column in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        assert float(light[row, column]) == pytest.approx(kept, abs=1e-5)
    assert float(light[32, 31]) == pytest.approx(1, abs=1e-3)
    # the loss grows with the square of the distance: half of it in the middle of a side
    assert float(light[0, 31]) == pytest.approx((1 + kept) / 2, abs=1e-5)


# --- levels of a test set


def test_levels_are_recorded_of_the_first_patches_with_content(focus_data):
    test_set = PatchSet(focus_data, "test")
    rows = np.flatnonzero(test_set.has_content.numpy())[:5]
    vignette = BY_NAME["axial illumination"]
    levels = list(recorded_levels(test_set, vignette, 5, 0))
    found = {level.value: level.batch for level in levels}
    assert tuple(found) == vignette.levels
    for level in levels:
        assert level.source_names.tolist() == test_set.source_names[rows].tolist()
    assert torch.equal(found[0.0].patches, test_set.read(rows).float())
    for batch in found.values():
        assert torch.equal(batch.labels, test_set.labels[rows])
        assert batch.has_content.all()


@pytest.mark.parametrize("name", ["gaussian", "poisson", "both"])
def test_the_same_seed_records_the_same_noise(focus_data, name):
    test_set = PatchSet(focus_data, "test")

    def recorded(seed):
        levels = recorded_levels(test_set, BY_NAME[name], 2, seed)
        return torch.stack([level.batch.patches for level in levels])

    first = recorded(0)
    assert torch.equal(first, recorded(0))
    assert not torch.equal(first, recorded(1))


def test_levels_share_their_noise():
    """Correlation of the noise at two levels, on flat patches: 1, and sqrt(p / q) of photons."""

    def correlation(name, *levels):
        generator = torch.Generator().manual_seed(0)
        recorded = BY_NAME[name].record(FLAT, levels, generator)
        return float(torch.corrcoef(torch.stack([p.flatten() for p in recorded]))[0, 1])

    assert correlation("gaussian", 3.0, 1000.0) == pytest.approx(1, abs=1e-3)
    for bright, dark in ((30_000.0, 15_000.0), (6.0, 3.0)):
        found = correlation("poisson", bright, dark)
        assert found == pytest.approx(math.sqrt(0.5), abs=STATISTICS)
    # shared: 4 of the variance of photons, and all 9 of that of the read noise
    shared = (4 + READ_NOISE_E**2) / math.sqrt((16 + READ_NOISE_E**2) * (4 + READ_NOISE_E**2))
    assert correlation("both", 16.0, 4.0) == pytest.approx(shared, abs=STATISTICS)


def test_simulation_is_rebuilt_from_its_data_set(focus_data, focus_config):
    found = from_config(PatchSet(focus_data, "test").config)
    assert found.model == psf_model("zernike1d", {"focus": (0.0, 1.0)})
    assert found.microscope == focus_config.microscope == Microscope()
    assert (found.patch_size, found.psf_size, found.blank_fraction) == (64, 79, 0.1)
    assert found.optics_ranges is None


# --- the table


def test_noise_table_has_a_row_per_level(focus_data, focus_run, tmp_path, monkeypatch):
    few = [replace(d, levels=d.levels[::6]) for d in DEGRADATIONS]
    monkeypatch.setattr(benchmark_models, "DEGRADATIONS", few)
    config = benchmark_models.Config((focus_run,), (focus_data,), tmp_path, True, 12, device="cpu")
    benchmark_models.main(config)
    table = benchmark_models.pd.read_csv(tmp_path / "noise.csv")
    assert table["degradation"].tolist() == np.repeat(list(BY_NAME), 3).tolist()
    assert (table["patches"] == 12).all()
    assert (table["patches_seen"] == 200).all()  # as in the metrics of the run
    assert (table["r2_low"] <= table["r2"]).all() and (table["r2"] <= table["r2_high"]).all()
    dimmed = table[table["degradation"] == "global illumination"].set_index("level")["r2"]
    assert dimmed[52] == pytest.approx(dimmed[100], abs=0.03)  # patches are normalised
