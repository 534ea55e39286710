"""Training of the context network: images of its steps, resumption, and what it writes."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import train_context
from common.files import write_json
from models import context_training
from models.checkpoint import load_estimator
from models.context_training import (
    ImageStream,
    Seen,
    encode,
    feature_path,
    image_sources,
    read_features,
    record_images,
    some_places,
    write_features,
)
from models.data import Exposure, read_data_config
from models.loss import split_outputs, value_loss
from psf import InputError
from simulation import images
from simulation.settings import from_config
from simulation.sources import read_plane

SIGMAS = 5  # statistical tolerance
SMALL = ((1, 1), (1, 3), (2, 2))  # planes and places


@pytest.fixture(scope="module", autouse=True)
def small():
    """Few patches in each step and in the validation, and no procedural images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(context_training, "SIZES", SMALL)
        patch.setattr(context_training, "PER_DRAW", 12)
        patch.setattr(images, "BLANK_IMAGES", 0.0)
        patch.setattr(images, "MOST_FOCUS", 4.0)  # the end of the range
        patch.setattr(context_training, "ROWS", 64)
        patch.setattr(train_context, "VALIDATION_SIZES", ((1, 1), (2, 3)))
        patch.setattr(train_context, "VALIDATION_DRAWS", 1)
        patch.setattr(train_context, "VALIDATION_PHOTONS", (math.inf, 100.0))
        patch.setattr(train_context, "SAVE_EVERY", 2)
        patch.setattr(train_context, "BATCH", 2)
        yield


@pytest.fixture(scope="module")
def config(focus_run, focus_data):
    return train_context.Config(
        checkpoint=focus_run, data=focus_data, out=Path(), draws=3, steps=5, device="cpu", seed=2
    )


@pytest.fixture(scope="module")
def uninterrupted(config, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "images"
    train_context.main(replace(config, out=out))
    return out


@pytest.fixture(scope="module")
def stream(config):
    estimator, data = load_estimator(config.checkpoint), read_data_config(config.data)
    simulation = from_config(data)
    sources = image_sources(config.data, data, simulation.crop_size, "train")
    return ImageStream(estimator, simulation, sources, Exposure(), seed=7)


# --- images of a draw


def assert_equal(found, expected):
    for name in vars(expected):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


def test_draws_do_not_depend_on_where_a_run_goes_on(stream, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    write_features(stream, whole, 4)
    write_features(stream, killed, 2)
    feature_path(killed, 0).unlink()
    kept = feature_path(killed, 1).stat().st_mtime_ns
    write_features(stream, killed, 4)
    assert feature_path(killed, 1).stat().st_mtime_ns == kept
    expected = read_features(whole, 4, stream.bank.device)
    found = read_features(killed, 4, stream.bank.device)
    assert len(found) == 4 * context_training.EXPOSURES
    for one, other in zip(found, expected, strict=True):
        assert_equal(one, other)
    for one, other in zip(stream.seen(3, stream.images(3)), expected[9:], strict=True):
        assert_equal(one, other)
    # the exposures of an image share its objects, not its noise
    assert torch.equal(expected[0].targets, expected[1].targets)
    assert not torch.equal(expected[0].features, expected[1].features)
    assert expected[2].places.shape != expected[3].places.shape or not torch.equal(
        expected[2].places, expected[3].places
    )


def test_some_places_keep_what_belongs_to_them():
    number = torch.arange(2.0 * 3 * 7).view(2, 3, 7)
    seen = Seen(
        features=number[..., None].expand(2, 3, 7, 4),
        facts=number[..., None].expand(2, 3, 7, 2),
        places=torch.arange(7.0).view(1, 7, 1).expand(2, 7, 2),
        targets=number.view(-1, 1),
        has_content=number.flatten() % 2 == 0,
    )
    counts = set()
    for seed in range(60):
        found = some_places(seen, np.random.default_rng(seed))
        kept = found.places[0, :, 0].long()
        counts.add(len(kept))
        assert (kept.diff() > 0).all()
        assert torch.equal(found.features[..., 0], number[:, :, kept])
        assert torch.equal(found.facts[..., 1], number[:, :, kept])
        assert torch.equal(found.targets[:, 0], number[:, :, kept].flatten())
        assert torch.equal(found.has_content, number[:, :, kept].flatten() % 2 == 0)
    assert counts == {1, 2, 3, 4, 5, 6, 7}


def test_an_image_has_one_light(stream):
    given = torch.rand(3, 2, 4, 32, 32, generator=torch.Generator().manual_seed(0)) + 0.5
    given[:, :, 1] *= 3  # a bright place stays three times as bright
    photons, read, clean = np.array([50.0, 800.0, 50.0]), np.array([1.0, 4.0, 1.0]), np.zeros(3)
    clean[2] = 1
    found = record_images(given, photons, read, clean > 0, torch.Generator().manual_seed(1))
    mean = found.mean((1, 2, 3, 4))
    assert mean[:2].tolist() == pytest.approx([50, 800], rel=0.01)
    assert torch.equal(found[2], given[2])
    bright, dim = found[:, :, 1].mean((1, 2, 3)), found[:, :, 0].mean((1, 2, 3))
    assert (bright / dim)[:2].tolist() == pytest.approx([3, 3], rel=0.05)
    expected = given / given.mean((1, 2, 3, 4), keepdim=True)
    noise = found[1] - 800 * expected[1]
    error = SIGMAS * math.sqrt(2 / noise.numel())
    assert float(noise.var()) == pytest.approx(800 + 4**2, rel=error)


def test_the_encoder_sees_each_patch_with_its_optics(stream):
    drawn = stream.images(0, (2, 3))
    seen = encode(stream.estimator, drawn, drawn.blurred, stream.scaler)
    estimator = stream.estimator
    features, facts = estimator.features(drawn.blurred[0, 1], stream.simulation.microscope)
    assert torch.allclose(seen.features[0, 1], features, atol=1e-5)
    assert torch.allclose(seen.facts[0, 1], facts, atol=1e-5)
    # labels of 0 to 1 waves are -1 to 1 in standard units
    targets = (2 * drawn.labels - 1).flatten(0, 2)
    assert torch.allclose(seen.targets, targets, atol=1e-6)


def test_splits_share_no_source(config):
    data = read_data_config(config.data)
    names = {
        split: {one.name for one in image_sources(config.data, data, 100, split)}
        for split in ("train", "validation", "test")
    }
    assert all(names.values())
    assert not names["train"] & names["validation"]
    assert not (names["train"] | names["validation"]) & names["test"]


def test_larger_procedural_images_take_the_place_of_those_of_the_data(config, monkeypatch):
    of_the_data = context_training.procedural_sources(1, 512)
    monkeypatch.setattr(context_training, "SOURCES_PER_KIND", 4)
    monkeypatch.setattr(context_training, "training_sources", lambda *_: of_the_data)
    monkeypatch.setattr(context_training, "load_sources", lambda *_: (of_the_data, []))
    names = [one.name for one in of_the_data]
    data = {"images": "procedural", "seed": 0, "source_images": {"validation": names}}
    train, validation = (
        image_sources(config.data, data, 100, split) for split in ("train", "validation")
    )
    assert len(train) == 4 * len(validation) == 4 * len(of_the_data)
    assert not {*train} & {*validation} and not {*train, *validation} & {*of_the_data}
    assert read_plane(validation[0]).shape == (context_training.SOURCE_PX,) * 2


# --- a run


def test_run_writes_a_checkpoint_with_both_networks(uninterrupted, focus_run):
    estimator, encoder = load_estimator(uninterrupted), load_estimator(focus_run)
    assert estimator.context is not None
    for name, tensor in encoder.network.state_dict().items():
        assert torch.equal(estimator.network.state_dict()[name], tensor), name
    assert estimator.config["calibration"] == encoder.config["calibration"]
    table = pd.read_csv(uninterrupted / "metrics.csv")
    assert table["step"].tolist() == [2, 4, 5]
    best = table["validation_loss"].idxmin()
    scores = estimator.config["context"]["validation"]
    assert list(scores) == [
        f"{sizes}, {light}"
        for sizes in ("1 x 1", "2 x 3")
        for light in ("noise-free", "100 photons")
    ]
    for name, score in scores.items():
        assert table[f"r2 {name}"][best] == pytest.approx(score, rel=1e-4)
    assert estimator.config["context"]["settings"]["steps"] == 5
    assert not (uninterrupted / "features").exists()
    # the context has learned something: its last layer was zero
    assert (estimator.context.leave[1].weight != 0).any()


def test_scores_are_those_of_encoder_and_context_together(uninterrupted, stream):
    estimator = load_estimator(uninterrupted)
    drawn = stream.images(3, (2, 3))
    seen = encode(estimator, drawn, drawn.blurred, stream.scaler)
    loss, scores, found = train_context.validate(estimator, estimator.context, {"a": [seen]})
    outputs = train_context.outputs_of(estimator, estimator.context, seen).detach()
    values = split_outputs(outputs)[0]
    kept = seen.has_content
    errors = (values - seen.targets)[kept].numpy()
    spread = ((seen.targets - seen.targets[kept].mean())[kept] ** 2).sum()
    assert scores["a"] == pytest.approx(1 - float((errors**2).sum() / spread), abs=1e-4)
    assert np.allclose(found[0][0], errors)
    targets, ones = seen.targets[kept], torch.ones(int(kept.sum()))
    assert loss == pytest.approx(float(value_loss(values[kept], targets, ones)))


class Killed(BaseException):
    """What a kill looks like from the inside."""


def test_killed_run_resumes_onto_the_same_weights(config, uninterrupted, tmp_path, monkeypatch):
    killed, train_step = replace(config, out=tmp_path / "killed"), train_context.train_step

    def killed_at_the_fourth_step(*given):
        if given[-1] == 3:
            raise Killed
        return train_step(*given)

    with monkeypatch.context() as patch:
        patch.setattr(train_context, "train_step", killed_at_the_fourth_step)
        with pytest.raises(Killed):
            train_context.main(killed)
    assert pd.read_csv(killed.out / "metrics.csv")["step"].tolist() == [2]
    with pytest.raises(InputError, match=r"different configuration \(settings.steps\)"):
        train_context.main(replace(killed, steps=6))
    train_context.main(killed)
    for name in ("context.safetensors", "state.safetensors"):
        found, expected = load_file(killed.out / name), load_file(uninterrupted / name)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected), name


def test_finished_run_simulates_nothing_again(config, uninterrupted, monkeypatch, capsys):
    before = {path.name: path.read_bytes() for path in uninterrupted.iterdir() if path.is_file()}
    monkeypatch.setattr(train_context, "write_features", None)  # calling it would be an error
    train_context.main(replace(config, out=uninterrupted))
    assert "is finished" in capsys.readouterr().out
    after = {path.name: path.read_bytes() for path in uninterrupted.iterdir() if path.is_file()}
    assert after == before


# --- what cannot be trained


def refused(config, tmp_path, message, **changed):
    with pytest.raises(InputError, match=message) as caught:
        train_context.main(replace(config, out=tmp_path / "run", **changed))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "run_config.json").exists()


def test_data_of_another_psf_model_are_refused(config, gaussian_data, tmp_path):
    refused(config, tmp_path, "have different PSF models", data=gaussian_data)


def test_data_of_another_patch_size_are_refused(config, tmp_path):
    data = json.loads((config.data / "config.json").read_text("utf-8"))
    write_json(tmp_path / "data" / "config.json", {**data, "patch_size": 96})
    refused(config, tmp_path, "patches of 64 px and .* of 96 px", data=tmp_path / "data")


def test_models_without_focus_are_refused(config, gaussian_data, tmp_path, monkeypatch):
    estimator = load_estimator(config.checkpoint)
    model = json.loads((gaussian_data / "config.json").read_text("utf-8"))["psf_model"]
    gaussian = replace(estimator, config={**estimator.config, "psf_model": model})
    monkeypatch.setattr(train_context, "load_estimator", lambda *_: gaussian)
    refused(config, tmp_path, "gaussian1d has no focus in waves", data=gaussian_data)


def test_encoders_without_features_are_refused(config, tmp_path, monkeypatch):
    estimator = load_estimator(config.checkpoint)
    rival = replace(estimator, network=torch.nn.Identity())
    monkeypatch.setattr(train_context, "load_estimator", lambda *_: rival)
    refused(config, tmp_path, "is no spectral_resnet")
