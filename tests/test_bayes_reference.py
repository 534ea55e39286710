"""The Bayes reference: its textures, exact estimates without noise, the prior without light."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import bayes_reference
from bayes_reference import CONTRASTS, SIZE, Config, Reference, noise_power

from benchmarks.object_textures import (
    Textures,
    contrasts_of,
    draw_test_objects,
    measured_textures,
    spectral_slopes,
    uniform_textures,
)
from models.degradations import DEGRADATIONS
from psf import Microscope, synthesize
from psf.noise import poisson_noise, to_photons

FOCUS = torch.tensor([[0.4], [1.0], [2.2], [3.1], [3.8]])
CELLS = [(np.array([s]), np.array([c])) for s, c in ((0.5, 0.15), (1.4, 0.5))]
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
        generator = torch.Generator().manual_seed(0)
        images = poisson_noise(to_photons(textures, photons), generator)
        error = reference.estimate(images, photons) - focus[:, 0]
        errors.append(float(error.square().mean().sqrt()))
    assert errors[0] > 1.5 * errors[1] > 2 * errors[2]
    assert errors[0] < 4 / math.sqrt(12)  # of a guess
    assert errors[2] < 0.15


@pytest.mark.parametrize("name", ["gaussian", "poisson", "both"])
def test_noise_of_the_curves_is_that_of_the_degradation(name):
    """Variance of flat patches, in units of their squared mean."""
    (degradation,) = (d for d in DEGRADATIONS if d.name == name)
    flat, generator = torch.ones(20, SIZE, SIZE), torch.Generator().manual_seed(0)
    recorded = list(degradation.record(flat, degradation.levels, generator))
    for level, patches in zip(degradation.levels, recorded, strict=True):
        found = float(patches.var() / patches.mean() ** 2)
        assert found == pytest.approx(noise_power(name, level), rel=0.03)


def test_prior_of_the_contrast_holds_the_asked_ones():
    assert CONTRASTS[0] < 0.1 < 0.4 < CONTRASTS[-1]
    assert np.ptp(np.diff(np.log(CONTRASTS))) < 1e-12


# --- textures like the test objects


def test_contrast_and_slope_of_textures_are_measured(reference):
    pairs = torch.tensor([[0.75, 0.2], [1.25, 0.5]])
    cells = [Textures(s[None], c[None], torch.ones(1, 1)) for s, c in pairs]
    sharp = torch.zeros(40, 1)
    for cell, (slope, contrast) in zip(cells, pairs, strict=True):
        one = Reference((0.0, 4.0), Microscope(), cell)
        one.transfer = lambda focus: torch.ones(())
        objects = one.gaussian_textures(sharp, 0)
        power = contrasts_of(objects) ** 2  # varies with the few long waves of a texture
        assert np.sqrt(power.mean()) == pytest.approx(float(contrast), rel=0.06)
        # the window mixes frequencies that are 1 or 2 px of the spectrum apart
        assert spectral_slopes(objects).mean() == pytest.approx(float(slope), abs=0.04)


def test_distribution_counts_the_objects_of_each_cell(reference):
    some = [Reference((0, 4), Microscope(), uniform_textures(*pair)) for pair in CELLS]
    for one in some:
        one.transfer = lambda focus: torch.ones(())
    objects = torch.cat(
        [one.gaussian_textures(torch.zeros(n, 1), 0) for one, n in zip(some, (3, 9), strict=True)]
    )
    found = measured_textures(objects, np.array([0.0, 1.0, 2.0]), np.array([0.1, 0.3, 0.9]))
    assert found.weights.tolist() == [[0.25, 0.0], [0.0, 0.75]]
    assert found.slopes.tolist() == [0.5, 1.5]
    assert found.contrasts.tolist() == pytest.approx([0.03**0.5, 0.27**0.5])
    contrasts, slopes = found.draw(4000, np.random.default_rng(0))
    assert set(zip(contrasts.tolist(), slopes.tolist(), strict=True)) == {
        (found.contrasts[0].item(), 0.5),
        (found.contrasts[1].item(), 1.5),
    }
    assert float((slopes == 1.5).double().mean()) == pytest.approx(0.75, abs=0.03)


def test_estimate_knows_the_distribution(reference):
    """A prior with all weight on one texture gives the estimate of that texture alone."""
    slopes, contrasts = np.array([0.6, 1.2]), np.array([0.1, 0.6])
    weights = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    sure = Reference(
        (0, 4), Microscope(), Textures(*map(torch.from_numpy, (slopes, contrasts)), weights)
    )
    alone = Reference((0, 4), Microscope(), uniform_textures(slopes[1:], contrasts[:1]))
    unsure = Reference((0, 4), Microscope(), uniform_textures(slopes, contrasts))
    noise = torch.randn(5, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    images = alone.gaussian_textures(FOCUS, 0) + 0.3 * noise
    found = sure.estimate(images, 0.09)
    assert torch.allclose(found, alone.estimate(images, 0.09), atol=1e-4)
    assert (found - unsure.estimate(images, 0.09)).abs().max() > 0.01


@pytest.mark.slow
def test_objects_are_sharp_ones_of_the_test_images(focus_data):
    objects = draw_test_objects(focus_data, 6, 0)
    assert objects.shape == (6, 64, 64)
    assert objects.min() >= 0 and objects.max() <= 1
    assert torch.equal(objects, draw_test_objects(focus_data, 6, 0))
    assert contrasts_of(objects).min() > 0.05  # the content filter asks for contrast


# --- files


def test_script_writes_table_and_curves(tmp_path, monkeypatch, capsys):
    degradation = DEGRADATIONS[1]
    few = type(degradation)(degradation.name, "", "", (3e4, 3.0), None)
    monkeypatch.setattr(bayes_reference, "DEGRADATIONS", [few])
    objects = Reference((0, 4), Microscope()).textures(0.3, torch.zeros(30, 1), 0)
    monkeypatch.setattr(bayes_reference, "draw_test_objects", lambda data, count, seed: objects)
    small = {"patches": 12, "curve_patches": 12, "contrasts": (0.2,), "photons": (10, 1e4)}
    bayes_reference.main(Config(**{**small, "photons": (1e4,)}, out=tmp_path))
    assert not (tmp_path / "bayes_reference.csv").exists()
    bayes_reference.main(Config(**small, out=tmp_path, data=Path("data")))
    table = bayes_reference.pd.read_csv(tmp_path / "bayes_table.csv")
    assert table["photons"].tolist() == [10, 10_000]
    assert table["r2"].iloc[1] > 0.95
    assert f"| Bayes | 0.2 | {table['r2'].iloc[0]:.3f}" in capsys.readouterr().out
    curves = bayes_reference.pd.read_csv(tmp_path / "bayes_reference.csv")
    assert curves["level"].tolist() == [30_000, 3]
    assert curves["r2"].iloc[0] > curves["r2"].iloc[1]
    quantiles = bayes_reference.pd.read_csv(tmp_path / "bayes_objects.csv")
    median = quantiles.set_index("quantile").loc[0.5]
    assert median["contrast"] == pytest.approx(np.median(contrasts_of(objects)), rel=1e-3)
    assert (tmp_path / "bayes_table.md").is_file()
