"""The Bayes reference: its textures, exact estimates without noise, the prior without light."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import bayes_reference
from bayes_reference import CONTRASTS, NOISE, SIZE, Config, Reference

from models.degradations import DEGRADATIONS, MEAN_ELECTRONS, READ_NOISE_E
from psf import Microscope, synthesize

FOCUS = torch.tensor([[0.4], [1.0], [2.2], [3.1], [3.8]])
GRID = 4 / 160  # waves between two focus values of the posterior


@pytest.fixture(scope="module")
def reference():
    return Reference((0.0, 4.0), Microscope())


@pytest.fixture
def sharp_reference(reference, monkeypatch):
    """Without blur: the textures themselves."""
    monkeypatch.setattr(reference, "transfer", lambda focus: torch.ones(()))
    return reference


# --- textures


@pytest.mark.parametrize("contrast", [0.1, 0.2])
def test_contrast_is_the_asked_one(sharp_reference, contrast):
    """Standard deviation over mean; that of one texture varies with its few long waves."""
    textures = sharp_reference.textures(contrast, torch.zeros(60, 1), 3)
    assert float(textures.mean()) == pytest.approx(1, abs=1e-4)
    power = textures.flatten(1).var(1).mean()
    assert float(power.sqrt()) == pytest.approx(contrast, rel=0.05)
    assert textures.min() >= 0


@pytest.mark.parametrize("slope", [0.7, 1.3])
def test_textures_fall_off_with_their_slope(reference, slope):
    power = reference.texture_power(slope)
    assert float((power * reference.weight).sum()) == pytest.approx(SIZE**2)
    assert power[0, 0] == 0
    # amplitude as f^-slope: power falls by 4^slope from one octave to the next
    assert float(power[0, 10] / power[0, 20]) == pytest.approx(4**slope)
    assert float(power[8, 6] / power[0, 10]) == pytest.approx(1)
    assert float(power[-8, 6] / power[8, 6]) == pytest.approx(1)


def test_blur_is_that_of_the_psf(reference, monkeypatch):
    """A texture blurred in Fourier space against its cyclic convolution with the PSF."""
    focus = torch.tensor([[1.0]])
    blurred = reference.textures(0.1, focus, 5)[0].double()
    kept = float(reference.transfer(focus)[0, 0, 0].real)  # light within the image
    monkeypatch.setattr(reference, "transfer", lambda focus: torch.ones(()))
    sharp = reference.textures(0.1, focus, 5)[0].double()
    psf = kept * synthesize("zernike1d", focus, Microscope(), 127)[0].double()
    for row, column in ((5, 9), (64, 64), (120, 3)):
        rows = (row - torch.arange(-63, 64)) % SIZE
        columns = (column - torch.arange(-63, 64)) % SIZE
        expected = float((psf * sharp[rows][:, columns]).sum())
        assert float(blurred[row, column]) == pytest.approx(expected, rel=1e-4)
        assert abs(float(blurred[row, column] - kept * sharp[row, column])) > 0.005


def test_same_seeds_same_textures_and_estimates(reference):
    first, again = (reference.textures(0.2, FOCUS, 7) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, reference.textures(0.2, FOCUS, 8))
    assert torch.equal(reference.estimate(first, 1e-3), reference.estimate(again, 1e-3))
    focus = bayes_reference.draw_focus(Config(), 50)
    assert torch.equal(focus, bayes_reference.draw_focus(Config(), 50))
    assert not torch.equal(focus, bayes_reference.draw_focus(Config(seed=1), 50))
    assert 0 <= float(focus.min()) and float(focus.max()) <= 4


# --- estimates


@pytest.mark.parametrize("contrast", [0.1, 0.4])
def test_focus_is_found_without_noise(reference, contrast):
    textures = reference.textures(contrast, FOCUS, 0)
    found = reference.estimate(textures, 1e-8)  # some rounding: 0 would have no logarithm
    assert (found - FOCUS[:, 0]).abs().max() < GRID


def test_without_light_the_estimate_is_the_middle_of_the_prior(reference):
    noise = torch.randn(5, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    images = reference.textures(0.2, FOCUS, 0) + 1e4 * noise
    images = images - images.mean((1, 2), keepdim=True) + 1
    found = reference.estimate(images, 1e8)
    assert (found - 2).abs().max() < 0.05


def test_estimates_do_not_depend_on_the_unit_of_light(reference):
    textures = reference.textures(0.2, FOCUS, 0)
    images = textures + 0.03 * torch.randn(
        textures.shape, generator=torch.Generator().manual_seed(0)
    )
    plain = reference.estimate(images, 0.03**2)
    assert torch.allclose(plain, reference.estimate(50 * images, 1.5**2), atol=1e-4)


def test_estimates_do_not_depend_on_shift_and_mirror(reference):
    """The periodogram has no phase; rings have no angle."""
    images = reference.textures(0.2, FOCUS, 0)
    plain = reference.estimate(images, 1e-4)
    for moved in (images.roll((17, -40), (1, 2)), images.flip(2), images.transpose(1, 2)):
        assert torch.allclose(reference.estimate(moved, 1e-4), plain, atol=2e-3)


def test_more_light_is_better(reference):
    focus = bayes_reference.draw_focus(Config(), 40)
    errors = []
    for photons in (3.0, 30.0, 3000.0):
        textures = reference.textures(0.2, focus, 1)
        images, variance = NOISE["poisson"](textures, photons, torch.Generator().manual_seed(0))
        error = reference.estimate(images, variance) - focus[:, 0]
        errors.append(float(error.square().mean().sqrt()))
    assert errors[0] > 1.5 * errors[1] > 2 * errors[2]
    assert errors[0] < 4 / math.sqrt(12)  # of a guess
    assert errors[2] < 0.15


@pytest.mark.parametrize("name", list(NOISE))
def test_noise_has_the_variance_that_the_estimate_is_told(name):
    flat, generator = torch.ones(20, SIZE, SIZE), torch.Generator().manual_seed(0)
    images, variance = NOISE[name](flat, 50.0, generator)
    told = {"gaussian": 2500, "poisson": 50, "both": 50 + READ_NOISE_E**2}[name]
    assert variance == pytest.approx(told)
    assert float(images.var()) == pytest.approx(told, rel=0.02)
    mean = MEAN_ELECTRONS if name == "gaussian" else 50
    assert float(images.mean()) == pytest.approx(mean, rel=0.01)
    assert name in [degradation.name for degradation in DEGRADATIONS]


def test_prior_of_the_contrast_holds_the_asked_ones():
    assert CONTRASTS[0] < 0.1 < 0.4 < CONTRASTS[-1]
    assert np.ptp(np.diff(np.log(CONTRASTS))) < 1e-12


# --- files


def test_script_writes_table_and_curves(tmp_path, monkeypatch, capsys):
    few = [bayes_reference.DEGRADATIONS[1]]
    monkeypatch.setattr(
        bayes_reference, "DEGRADATIONS", [type(d)(d.name, "", "", (3.0, 3e4), None) for d in few]
    )
    config = Config(patches=12, curve_patches=12, contrasts=(0.2,), photons=(10, 1e4), out=tmp_path)
    bayes_reference.main(config)
    table = bayes_reference.pd.read_csv(tmp_path / "bayes_table.csv")
    assert table["photons"].tolist() == [10, 10_000]
    assert table["r2"].iloc[1] > 0.95
    assert f"| Bayes | 0.2 | {table['r2'].iloc[0]:.3f}" in capsys.readouterr().out
    curves = bayes_reference.pd.read_csv(tmp_path / "bayes_reference.csv")
    assert curves["level"].tolist() == [3, 30_000]
    assert curves["r2"].iloc[0] < curves["r2"].iloc[1]
    assert (tmp_path / "bayes_table.md").is_file()
