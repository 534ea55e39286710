"""Maps scaled by held-out photons: wrong ones come nearer to the truth, right ones stay."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from models.mapping import PsfMap
from psf import Microscope, psf_model
from restoration.blur_map import blur_of_map
from restoration.narrowing import (
    CELL,
    EVIDENCE_NEEDED,
    best_logarithm,
    evidence,
    fit_map_scale,
    scaled,
)
from restoration.richardson_lucy import check_image, settle
from restoration.with_map import restore_with_map

SHAPE = (128, 160)


def psf_map(values):
    places = [torch.linspace(16, edge - 17, 4) for edge in SHAPE]
    one = torch.ones(1, 4, 4)
    model = psf_model("gaussian1d")
    return PsfMap(model, Microscope(), values * one, 0.1 * one, one[0], *places)


def photograph_through(true_map, photons=1000.0):
    """Truth and noisy image of random squares."""
    blur = blur_of_map(true_map, SHAPE)
    rng = np.random.default_rng(4)
    objects = np.full(blur.field_shape, 0.2)
    for _ in range(150):
        y, x = (rng.integers(0, edge) for edge in objects.shape)
        height, width = rng.integers(3, 14, 2)
        objects[y : y + height, x : x + width] = rng.uniform(0.05, 1)
    objects = torch.from_numpy(objects).float()
    objects *= photons / objects.mean()
    clean = blur.forward(objects[None])[0].clamp(min=0)
    noisy = torch.poisson(clean, torch.Generator().manual_seed(1))
    return objects[blur.image_part], noisy


def scaled_by_photons(image, found):
    blur = blur_of_map(found, SHAPE)
    photons, background = check_image(image, 0.0, 1.0, blur.shape, blur.eigen_psfs)
    settings, count = settle(photons, blur, background, "auto", "auto", "momentum")
    return fit_map_scale(photons, found, blur, settings, count)


@pytest.mark.parametrize("factor", [1.3, 1.6])
def test_wrong_maps_come_nearer_to_the_truth(factor):
    truth = psf_map(5.0)
    _, image = photograph_through(truth)
    better = scaled_by_photons(image, scaled(truth, factor))
    error = float((better.values - 5.0).abs().mean())
    assert error < 0.5 * 5.0 * (factor - 1)


def test_the_right_map_stays_as_it_is():
    truth = psf_map(5.0)
    _, image = photograph_through(truth)
    assert float((scaled_by_photons(image, truth).values / truth.values - 1).abs().max()) < 0.03


def test_only_the_wrong_part_changes():
    truth = psf_map(4.0)
    _, image = photograph_through(truth)
    wrong = replace(truth, values=truth.values.clone())
    wrong.values[..., 2:] *= 1.6
    better = scaled_by_photons(image, wrong)
    assert float((better.values[..., 3] - 4.0).abs().mean()) < 1.2  # of 2.4
    assert float((better.values[..., 0] - 4.0).abs().mean()) < 0.5


def test_scaled_maps_restore_better():
    truth = psf_map(5.0)
    sharp, image = photograph_through(truth)
    wrong = scaled(truth, 1.6)
    errors = [
        float((restore_with_map(image, wrong, refined=flag)[0].image - sharp).square().mean())
        for flag in (False, True)
    ]
    assert errors[1] < 0.8 * errors[0]


def test_the_best_factor_is_the_peak_of_a_parabola():
    def table(peak, height=400.0):
        factors = (0.64, 0.8, 1.0)
        return {f: np.full((1, 1), -height * (math.log(f) - peak) ** 2) for f in factors}

    assert best_logarithm(table(-0.25)) == pytest.approx(-0.25, abs=1e-6)
    assert best_logarithm(table(-1.0)) == pytest.approx(math.log(0.64))  # the last factor tried
    assert best_logarithm(table(0.0)) == 0
    # 20 times 0.25^2 is too little evidence
    assert 20 * 0.25**2 < EVIDENCE_NEEDED
    assert best_logarithm(table(-0.25, height=20.0)) == 0


def test_evidence_counts_the_cells_around():
    held_out = torch.full((4 * CELL, 5 * CELL), 10.0)
    training = torch.full_like(held_out, 100.0)
    # predicted 11 instead of 10 in each pixel: a loss of 11 - 10 - 10 log 1.1
    loss = evidence(held_out, 1.1 * training, training)
    assert loss.shape == (4, 5)
    per_pixel = 10 * math.log(1.1) - 1
    assert loss == pytest.approx(per_pixel * CELL**2 * 4 * math.pi * 1.25**2, rel=1e-3)


def test_images_smaller_than_a_cell_and_without_iterations_keep_their_map():
    found = psf_map(2.0)
    small = torch.rand(20, 20) + 1
    assert fit_map_scale(small, found, None, None, 3) is found
    large = torch.rand(200, 200) + 1
    assert fit_map_scale(large, found, None, None, 0) is found
