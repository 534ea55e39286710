"""Training of the learned restoration: its random images, its loss, its runs."""

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import train_restoration
from psf import InputError, Microscope, psf_model
from psf.synthesis import synthesize_with_loss
from restoration import learned_training, problems
from restoration.care import changes_within_bars
from restoration.learned import load_prior
from restoration.learned_training import log_errors, loss_of, sources_of, validate
from restoration.problems import (
    MOST_LOST,
    Exercise,
    draw_exercises,
    draw_maps,
    exposed,
    two_psf_blur,
)
from restoration.step_network import StepNetwork
from restoration.unrolled import CHANNELS, STEPS
from restoration.variant_blur import VariantBlur
from simulation.bank import Bank

SIGMAS = 5  # statistical tolerance


@pytest.fixture(scope="module", autouse=True)
def small():
    """Small images, few of them, and no procedural ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(problems, "IMAGE_PX", 64)
        patch.setattr(problems, "SUPPORTS_PX", (15, 31))
        patch.setattr(problems, "SUPPORT_SHARES", (0.5, 0.5))
        for module in (problems, learned_training):
            patch.setattr(module, "CROP_PX", 94)
        patch.setattr(learned_training, "IMAGE_PX", 64)
        patch.setattr(learned_training, "VALIDATION", 2)
        patch.setattr(train_restoration, "SAVE_EVERY", 2)
        yield


@pytest.fixture(scope="module")
def bank():
    return Bank(sources_of("builtin", 0)["train"], 94, 64)


@pytest.fixture(scope="module")
def exercises(bank):
    return draw_exercises(bank, 4, np.random.default_rng(3))


def test_the_same_numbers_give_the_same_exercises(bank, exercises):
    again = draw_exercises(bank, 4, np.random.default_rng(3))
    for one, other in zip(exercises, again, strict=True):
        assert torch.equal(one.problem.photons, other.problem.photons)
        assert torch.equal(one.truth, other.truth)
        assert torch.equal(one.problem.blur.eigen_psfs, other.problem.blur.eigen_psfs)


def test_an_image_without_blur_is_its_truth_with_photon_noise(monkeypatch):
    monkeypatch.setattr(problems, "GAIN_SPREAD", 0.0)
    monkeypatch.setattr(problems, "READ_SHARE", 0.0)
    monkeypatch.setattr(problems, "PHOTONS", (200.0, 200.1))
    point = torch.zeros(2, 15, 15)
    point[:, 7, 7] = 1
    blur = two_psf_blur(point, torch.rand(2, 2))
    crop = 0.2 + torch.rand(78, 78, generator=torch.Generator().manual_seed(0))
    found = exposed(crop, blur, blur, 0.3, np.random.default_rng(0))
    photons, truth = found.problem.photons, found.truth
    assert float(truth.mean()) == pytest.approx(200, rel=1e-3)
    spread = ((photons - truth).square() / truth).mean()
    assert float(spread) == pytest.approx(1, abs=SIGMAS * math.sqrt(2 / photons.numel()))
    assert (found.problem.settings.uncertainty == 0.3).all()


def test_psfs_of_a_map_fit_into_their_support():
    model, size = psf_model("zernike1d"), 31
    labels, wrong, bars, optics = draw_maps(model, 16, size, np.random.default_rng(0))
    assert labels.shape == wrong.shape == (2, 16, 1) and bars.shape == (16, 1)
    in_focus = synthesize_with_loss(model, torch.zeros(16, 1), optics, size)[1]
    for one in (*labels, *wrong):
        lost = synthesize_with_loss(model, one, optics, size)[1]
        assert (lost <= in_focus.clamp(min=MOST_LOST) * 1.05).all()
    assert (bars > 0).all() and float((wrong - labels).abs().max()) > 0.02


def test_a_psf_changes_with_its_error_bar():
    model, optics = psf_model("gaussian2d"), [Microscope()] * 3
    labels = torch.full((3, 2), 4.0)
    bars = torch.tensor([[0.0, 0.0], [0.1, 0.1], [2.0, 2.0]])
    none, small, large = changes_within_bars(model, labels, bars, optics, 31).tolist()
    # |dh| / |h| of a Gaussian whose width along one axis changes by a share s is s sqrt(3) / 2
    assert none == 0 and small == pytest.approx(0.1 / 4 * math.sqrt(3) / 2, rel=0.1)
    assert 10 * small < large <= 1


def test_the_error_is_that_of_the_image_at_first(exercises):
    part = exercises[0].problem.blur.image_part
    seen = torch.zeros(4, *exercises[0].problem.blur.field_shape)
    seen[:, *part] = torch.stack([one.problem.photons for one in exercises])
    torch.testing.assert_close(log_errors(seen, exercises), torch.zeros(4))
    half = seen.clone()
    half[:, *part] = (seen[:, *part] + torch.stack([one.truth for one in exercises])) / 2
    assert (log_errors(half, exercises) < math.log(0.3)).all()


def test_training_on_one_batch_lowers_its_error(exercises):
    torch.manual_seed(0)
    network = StepNetwork(CHANNELS, STEPS)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    losses = []
    for _ in range(6):
        loss = loss_of(network, exercises[:2], "image")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.1


def test_gains_are_told_apart_by_light(exercises):
    """The network is untrained, so that it gains about as much as more steps of the start."""
    gain, gains = validate(StepNetwork(CHANNELS, STEPS), [exercises], "image")
    assert math.isfinite(gain)
    assert set(gains) <= {"10 to 100", "100 to 1000", "1000 to 10000"} and gains


def test_exercises_of_a_device_are_the_same(exercises):
    one = exercises[0]
    assert learned_training.on_device(one, torch.device("cpu")) is one
    moved = learned_training.on_device(one, torch.device("meta"))
    assert isinstance(moved, Exercise) and isinstance(moved.problem.blur, VariantBlur)
    assert moved.problem.photons.is_meta and moved.problem.settings.uncertainty.is_meta


# --- the script


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "restoration"
    return train_restoration.Config(
        out=out, steps=5, batch_size=2, images="builtin", device="cpu", seed=1
    )


@pytest.fixture(scope="module")
def uninterrupted(config):
    train_restoration.main(config)
    return config.out


def test_a_run_leaves_weights_a_card_and_its_progress(uninterrupted):
    prior = load_prior(uninterrupted)
    assert prior.config["run"]["steps"] in (2, 4, 5)
    table = pd.read_csv(uninterrupted / "metrics.csv")
    assert table["step"].tolist() == [2, 4, 5]
    card = (uninterrupted / "README.md").read_text()
    assert "train_restoration.py" in card or "command" in card
    assert not json.loads((uninterrupted / "run_config.json").read_text())["max_minutes"]


def test_a_stopped_run_ends_with_the_weights_of_one_without_a_stop(
    uninterrupted, config, tmp_path, monkeypatch
):
    stopped = replace(config, out=tmp_path / "stopped")
    step, done = train_restoration.Training.step, []

    def stop(training, share):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(share)
        return step(training, share)

    monkeypatch.setattr(train_restoration.Training, "step", stop)
    with pytest.raises(KeyboardInterrupt):
        train_restoration.main(stopped)
    monkeypatch.undo()
    monkeypatch.setattr(train_restoration, "SAVE_EVERY", 2)
    train_restoration.main(stopped)
    for name in ("restoration.safetensors", "state.safetensors"):
        found, wanted = load_file(stopped.out / name), load_file(uninterrupted / name)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_wrong_settings_are_refused(config, uninterrupted):
    with pytest.raises(InputError, match="finished run"):
        train_restoration.main(config)
    with pytest.raises(InputError, match="not both"):
        train_restoration.main(replace(config, max_minutes=1.0))
    with pytest.raises(InputError, match="--batch-size is 0"):
        train_restoration.main(replace(config, batch_size=0))
