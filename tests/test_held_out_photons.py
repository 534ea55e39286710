"""Held-out photons: independent halves, likelihoods of known value, and no leak to the methods."""

import math

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from scipy.ndimage import gaussian_filter

from benchmarks import held_out_photons, restoration_methods
from benchmarks.held_out_photons import Config
from benchmarks.held_out_scores import (
    WIDTHS_PX,
    Halves,
    best_width,
    log_likelihood,
    per_pixel,
    score,
    split_in_half,
)
from benchmarks.restoration_methods import INPUT, METHODS, Estimate, Method, View
from benchmarks.tiles import bootstrap
from psf.errors import InputError
from psf.microscope import Microscope

OPTICS = vars(Microscope(na=0.45, wavelength_um=0.5, pixel_size_um=0.278, refractive_index=1.33))


def poisson(expected: np.ndarray, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).poisson(expected)).float()


def usable(photons: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(photons, dtype=torch.bool)


def test_halves_of_poisson_photons_are_two_independent_exposures():
    photons = poisson(np.full((300, 300), 20.0))
    first, second = split_in_half(photons, 0)
    assert torch.equal(first + second, photons)
    for half in (first, second):
        assert float(half.mean()) == pytest.approx(10, rel=0.01)
        assert float(half.var()) == pytest.approx(10, rel=0.03)
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.01
    assert torch.equal(split_in_half(photons, 0)[0], first)
    assert not torch.equal(split_in_half(photons, 1)[0], first)


def test_the_width_follows_the_content():
    flat = poisson(np.full((160, 160), 5.0))
    assert best_width(flat, usable(flat), 0) == WIDTHS_PX[-1]
    detail = poisson(np.random.default_rng(1).choice([1.0, 4000.0], (160, 160)))
    assert best_width(detail, usable(detail), 0) <= 0.35
    smooth = gaussian_filter(np.random.default_rng(2).normal(size=(160, 160)), 4)
    soft = poisson(50 * np.exp(0.4 * smooth / smooth.std()))
    assert 1 <= best_width(soft, usable(soft), 0) < WIDTHS_PX[-1]


def test_a_wrong_brightness_costs_its_divergence():
    light, factor = 8.0, 1.5
    halves = Halves(*[torch.full((160, 160), light)] * 2, torch.ones(160, 160).bool())
    wrong = torch.full((160, 160), factor * light)
    facts, _ = score(Estimate(wrong, wrong), "ours", halves, np.full((160, 160), light), 0.0)
    mean, *_ = bootstrap(per_pixel, np.array([facts["advantage"]]), np.array([facts["pixels"]]))
    assert mean == pytest.approx(light * (math.log(factor) - factor + 1))
    assert sum(facts["pixels"]) == (160 - 64) ** 2


def test_a_brighter_second_exposure_and_unusable_pixels_change_no_order():
    expected = 30 + 10 * np.sin(np.arange(160) / 3)[None] * np.ones((160, 1))
    first, second = poisson(expected, 1), poisson(3 * expected, 2)
    second[80, 80] = 1e5
    known = usable(first)
    known[80, 80] = False
    halves = Halves(first, second, known)
    assert halves.ratio == pytest.approx(3, rel=0.01)
    true = torch.from_numpy(expected)
    smooth = gaussian_filter(first.numpy(), 1.0)
    facts, _ = score(Estimate(true, true), "ours", halves, smooth, 1.0)
    noise = np.square(smooth - expected).mean() / 2 * 3 / 30  # loss of a noisy mean, nats
    assert sum(facts["advantage"]) / sum(facts["pixels"]) == pytest.approx(noise, rel=0.25)


def test_no_single_photon_decides():
    held_out, expected = np.ones((10, 10)), np.ones((10, 10))
    expected[0, 0] = 0
    lost = (log_likelihood(held_out, np.ones((10, 10))) - log_likelihood(held_out, expected)).sum()
    assert lost == pytest.approx(-math.log(0.0099) - 1, abs=0.1)


def test_the_mean_is_per_pixel_and_over_planes():
    tiles, pixels = np.array([[1.0] * 10, [6.0] * 10]), np.array([[10.0] * 10, [20.0] * 10])
    assert bootstrap(per_pixel, tiles, pixels) == pytest.approx((0.2, 0.2, 0.2))
    tiles = np.random.default_rng(0).normal(1, 1, (1, 400))
    _, low, high = bootstrap(per_pixel, tiles, np.ones((1, 400)))
    assert (high - low) / 2 == pytest.approx(1.96 / 20, rel=0.1)
    assert np.isnan(bootstrap(per_pixel, tiles[:, :4], np.ones((1, 4)))[1])


@pytest.fixture
def image(tmp_path, monkeypatch):
    """A file of 400 photons per pixel, with a method that knows the expected image."""
    content = gaussian_filter(np.random.default_rng(0).normal(size=(192, 192)), 1.5)
    expected = 400 + 100 * content / content.std()
    counts = 100 + 2 * poisson(expected).numpy()
    tifffile.imwrite(tmp_path / "image.tif", counts.astype(np.uint16))
    known, seen = torch.from_numpy(expected / 2).float(), []

    def knowing(view: View) -> Estimate:
        seen.append(view)
        return Estimate(known, known)

    methods = {INPUT: METHODS[INPUT], "ours": Method(knowing, (), uses_map=False)}
    monkeypatch.setattr(restoration_methods, "METHODS", methods)
    return tmp_path / "image.tif", seen


def test_methods_see_the_first_half_alone(image, tmp_path):
    path, seen = image
    out = tmp_path / "out"
    camera = {"offset_counts": 100.0, "gain_counts_per_e": 2.0}
    config = Config(
        image=path, **OPTICS, **camera, out=out, scratch=tmp_path / "kept", device="cpu"
    )
    held_out_photons.main(config)
    estimator = held_out_photons.load_estimator("focus", torch.device("cpu"))
    halves = held_out_photons.make_halves(config, estimator, 0)
    assert torch.equal(seen[0].light, halves.first)
    assert seen[0].gain == 1
    assert float(halves.first.mean()) == pytest.approx(200, rel=0.01)
    table = pd.read_csv(out / "held_out_photons.csv").set_index("method")
    assert table.loc["ours", "advantage"] > 0 > table.loc["first half as it is", "advantage"]
    # noise of variance 1 / light in the logarithm of the expected image costs half a nat
    gap = table.loc["ours", "advantage"] - table.loc["first half as it is", "advantage"]
    assert gap == pytest.approx(0.5, abs=0.05)
    summary = pd.read_csv(out / "held_out_photons_summary.csv").set_index("method")
    assert summary.index[0] == "ours"
    assert summary.loc["first half as it is", "planes_behind"] == 1
    assert "| ours |" in (out / "held_out_photons.md").read_text("utf-8")
    assert (out / "held_out_photons.png").stat().st_size > 10_000
    dict(held_out_photons.restore_all(config, [0]))
    assert len(seen) == 1  # the finished result was read


def test_a_second_exposure_replaces_the_second_half(image, tmp_path):
    path, _ = image
    counts = 100 + 2 * poisson(np.full((192, 192), 400.0), 5).numpy()
    other = tmp_path / "second.tif"
    tifffile.imwrite(other, counts.astype(np.uint16))
    camera = {"offset_counts": 100.0, "gain_counts_per_e": 2.0}
    config = Config(image=path, second=other, **OPTICS, **camera, out=tmp_path)
    estimator = held_out_photons.load_estimator("focus", torch.device("cpu"))
    halves = held_out_photons.make_halves(config, estimator, 0)
    assert torch.equal(halves.second, torch.from_numpy((counts - 100) / 2))
    assert float(halves.first.mean()) == pytest.approx(400, rel=0.01)
    tifffile.imwrite(other, counts[:150].astype(np.uint16))
    with pytest.raises(InputError, match="has another size"):
        held_out_photons.make_halves(config, estimator, 0)
