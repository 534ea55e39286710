"""Maps corrected by held-out photons: wrong ones come nearer to the truth, right ones stay."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.mapping import PsfMap
from psf import Microscope, psf_model
from restoration import correction
from restoration.blur_map import blur_of_map
from restoration.correction import (
    BIN,
    CELL,
    STEP_OF_LABEL,
    STEP_OF_RANGE,
    Trial,
    binned,
    binned_map,
    corrected_labels,
    corrected_map,
    prior_covariance,
    scaled,
    settled_trial,
    shifted,
    small_correction,
)
from restoration.with_map import restore_with_map

SHAPE = (128, 160)


@pytest.fixture
def any_label(monkeypatch):
    """Widths of Gaussians are corrected too: they make quick images."""
    monkeypatch.setattr(correction, "corrected_labels", lambda psf_map: range(len(psf_map.values)))


def psf_map(widths):
    """Map of one width, px, everywhere, or of one along x and one along y."""
    places = [torch.linspace(16, edge - 17, 4) for edge in SHAPE]
    values = torch.tensor(widths).reshape(-1, 1, 1) * torch.ones(1, 4, 4)
    model = psf_model("gaussian1d" if len(values) == 1 else "gaussian2d")
    spread = torch.full_like(values, 0.1)
    return PsfMap(model, Microscope(), values, spread, torch.ones(4, 4), *places)


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


def corrected(image, found):
    return corrected_map(image, found, torch.tensor(0.0))


@pytest.mark.parametrize("factor", [1.15, 1.4])
def test_wrong_maps_come_nearer_to_the_truth(any_label, factor):
    truth = psf_map(5.0)
    _, image = photograph_through(truth)
    better = corrected(image, scaled(truth, factor))
    error = float((better.values - 5.0).abs().mean())
    assert error < 0.5 * 5.0 * (factor - 1)


def test_the_right_map_stays_nearly_as_it_is(any_label):
    truth = psf_map(5.0)
    _, image = photograph_through(truth)
    assert float((corrected(image, truth).values / truth.values - 1).abs().mean()) < 0.06


def test_only_the_wrong_part_changes(any_label):
    truth = psf_map(4.0)
    _, image = photograph_through(truth)
    wrong = replace(truth, values=truth.values.clone())
    wrong.values[..., 2:] *= 1.4
    better = corrected(image, wrong)
    assert float((better.values[..., 3] - 4.0).abs().mean()) < 0.8  # of 1.6
    assert float((better.values[..., 0] - 4.0).abs().mean()) < 0.6


def test_each_label_is_corrected_by_itself(any_label):
    _, image = photograph_through(psf_map((5.0, 4.0)))
    x, y = corrected(image, psf_map((6.2, 4.0))).values.mean((1, 2)).tolist()
    assert x == pytest.approx(5.0, abs=0.6) and y == pytest.approx(4.0, abs=0.4)


def test_corrected_maps_restore_better(any_label):
    truth = psf_map(5.0)
    sharp, image = photograph_through(truth)
    wrong = scaled(truth, 1.6)
    errors = [
        float(
            (restore_with_map(image, wrong, 40, cautious=False, refined=flag)[0].image - sharp)
            .square()
            .mean()
        )
        for flag in (False, True)
    ]
    assert errors[1] < 0.8 * errors[0]


def test_evidence_is_the_likelihood_of_each_cell():
    _, image = photograph_through(psf_map(5.0))
    trial, _ = settled_trial(image, psf_map(5.0), torch.tensor(0.0), None)
    evidence = replace(trial, iterations=0).evidence(psf_map(5.0))  # under a uniform image
    mean = 0.5 * trial.settings.mean
    own = 0.5 * trial.training.double()
    gain = trial.held_out * (mean / own).log() - mean + own
    edge = CELL // BIN
    assert evidence.shape == (4, 5)
    assert evidence[1, 2] == pytest.approx(
        float(gain[edge : 2 * edge, 2 * edge : 3 * edge].sum()), rel=1e-3
    )


def test_the_binned_map_gives_the_blur_of_the_binned_image():
    truth = psf_map(5.0)
    sharp = torch.zeros(SHAPE)
    sharp[64:66, 80:82] = 1.0  # one binned pixel
    blur, small = blur_of_map(truth, SHAPE), blur_of_map(binned_map(truth), (64, 80))

    def blurred(one, image):
        field = torch.zeros(one.field_shape)
        field[one.image_part] = image
        return one.forward(field[None])[0]

    found, expected = blurred(small, binned(sharp)), binned(blurred(blur, sharp))
    # within a binned pixel the light counts as one point, which makes the PSF a little narrower
    assert float((found - expected).abs().max()) < 0.06 * float(expected.max())
    assert float(found.sum()) == pytest.approx(float(expected.sum()), rel=1e-3)


class Parabolas(Trial):
    """A trial whose evidence is a parabola of the correction of a width of 5 px, in steps."""

    def __init__(self, bend, best):
        self.__dict__.update(bend=bend, best=best)

    def evidence(self, psf_map, blur=None):
        step = STEP_OF_LABEL * 5.0 + STEP_OF_RANGE * 20.0
        taken = (float(psf_map.values.mean()) - 5.0) / step
        return np.full((4, 5), -self.bend / 2 * (taken - self.best) ** 2)


@pytest.mark.parametrize(
    ("bend", "best", "expected"),
    [(100.0, -0.8, -0.8), (0.001, -0.8, 0.0), (100.0, 0.8, 0.8)],
    ids=["strong evidence is followed", "weak evidence is not", "to either side"],
)
def test_small_corrections(any_label, bend, best, expected):
    trial, found = Parabolas(bend, best), psf_map(5.0)
    correction, gain = small_correction(trial, found, trial.evidence(found))
    assert float(correction.mean()) == pytest.approx(expected, abs=0.02)
    assert 0 <= gain <= 20 * bend / 2 * best**2 + 1e-9


def test_corrections_are_counted_in_steps():
    better = shifted(psf_map(5.0), torch.full((1, 4, 4), 2.0)).values
    assert float(better.mean()) == pytest.approx(5.0 + 2 * (0.1 * 5.0 + 0.02 * 20.0))
    assert float(shifted(psf_map(0.1), torch.full((1, 4, 4), -3.0)).values.max()) == 0


def test_errors_of_a_map_are_alike_nearby():
    covariance = prior_covariance((3, 20))
    assert np.diag(covariance) == pytest.approx(np.ones(60))
    assert covariance[0, 1] > covariance[0, 5] > covariance[0, 19] == pytest.approx(0.5, abs=1e-6)


def test_images_smaller_than_two_cells_keep_their_map():
    found = psf_map(2.0)
    assert corrected_map(torch.rand(2 * CELL - 1, 200) + 1, found, torch.tensor(0.0)) is found


def test_of_a_focus_with_astigmatism_only_the_astigmatism_is_corrected():
    def labels(name):
        model = psf_model(name)
        return corrected_labels(
            replace(psf_map(3.0), model=model, values=torch.zeros(len(model.label_names), 4, 4))
        )

    assert labels("zernike2d") == [1, 2]
    assert labels("zernike1d") == [0]


def test_widths_in_pixels_stay_as_they_are():
    _, image = photograph_through(psf_map(5.0))
    wrong = psf_map(6.0)
    assert corrected(image, wrong) is wrong
