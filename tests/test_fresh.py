"""Training on fresh patches: each is drawn for its step, and a kill leaves no trace."""

import json
import math
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import train
from common.files import write_json
from models import feeding
from models.checkpoint import load_estimator
from models.data import PatchSet
from models.trainer import Settings, Trainer
from psf import InputError
from simulation.patches import Patches

CPU = torch.device("cpu")


class StandIn:
    """Stands in for the simulator: stored patches, chosen by seed, rank and step."""

    drawn: list[tuple[int, int, int]]  # (rank, step, count) of each call

    def __init__(self, folder, config, device, seed, rank=0, world=1):
        self.patch_set, self.config, self.device = PatchSet(folder, "train"), config, device
        self.seed, self.rank, self.world = seed, rank, world

    def draw(self, step: int, count: int) -> list[Patches]:
        type(self).drawn.append((self.rank, step, count))
        rng = np.random.default_rng([self.seed, step, self.rank])
        batch = self.patch_set.batch(rng.integers(0, self.patch_set.count, count), self.device)
        patches = batch.patches / 65535  # the brightest pixel of a patch at 1
        columns = (batch.labels, batch.has_content, batch.optics)
        origins = torch.zeros(count, dtype=torch.int64)
        return [Patches(patches, patches, patches, *columns, origins, ("image", ""))]

    def close(self) -> None:
        type(self).drawn.append("closed")


@pytest.fixture
def simulator(monkeypatch):
    """The stand-in; its list of calls."""
    monkeypatch.setattr(feeding, "PatchStream", StandIn)
    StandIn.drawn = []
    return StandIn.drawn


@pytest.fixture(scope="module")
def two_epochs(focus_data):
    return train.Config(
        data=focus_data,
        fresh=True,
        epoch_patches=40,  # 2.5 batches
        out=Path(),
        epochs=2,
        batch_size=16,
        seed=3,
        validation_patches=12,
        device="cpu",
        bf16=False,
    )


@pytest.fixture(scope="module")
def uninterrupted(two_epochs, tmp_path_factory):
    """Folder of a run, and the calls of the simulator."""
    out = tmp_path_factory.mktemp("fresh") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feeding, "PatchStream", StandIn)
        StandIn.drawn = []
        train.main(replace(two_epochs, out=out))
    return out, StandIn.drawn


def test_a_run_draws_every_step_once_and_tells_so(uninterrupted):
    out, drawn = uninterrupted
    # the first call before the clock starts loads the images
    assert drawn == [(0, step, 16) for step in (0, 0, 1, 2, 3)] + ["closed"]
    table = pd.read_csv(out / "metrics.csv")
    assert table["patches_seen"].tolist() == [32, 64]
    config = load_estimator(out).config
    best = table["validation_loss"].idxmin()
    assert config["run"]["patches_seen"] == table["patches_seen"][best]
    assert config["run"]["epochs"] == table["epoch"][best]
    assert config["run"]["fresh"] is True
    assert config["settings"]["fresh"] is True
    assert config["settings"]["epoch_patches"] == 40
    card = (out / "README.md").read_text()
    assert "patches simulated during the training, each seen once" in card
    assert f"{config['run']['epochs']:.1f} epochs of fresh patches" in card
    assert "200 patches" not in card


def test_a_stored_run_tells_so(focus_run):
    config = load_estimator(focus_run).config
    assert config["run"]["fresh"] is False
    assert config["settings"]["fresh"] is False
    assert "200 patches of" in (focus_run / "README.md").read_text()


class Killed(BaseException):
    """What a kill looks like from the inside."""


def test_killed_run_resumes_onto_the_same_weights(
    simulator, two_epochs, uninterrupted, tmp_path, monkeypatch
):
    config, step = replace(two_epochs, out=tmp_path / "killed"), train.Trainer.train_step

    def killed_in_the_second_epoch(trainer, batch, rate):
        if trainer.progress.step == 3:
            raise Killed
        return step(trainer, batch, rate)

    with monkeypatch.context() as patch:
        patch.setattr(train.Trainer, "train_step", killed_in_the_second_epoch)
        with pytest.raises(Killed):
            train.main(config)
    with pytest.raises(InputError, match=r"different configuration .*settings.fresh\)"):
        train.main(replace(config, fresh=False))
    del simulator[:]
    train.main(config)
    assert simulator == [(0, step, 16) for step in (2, 2, 3)] + ["closed"]
    for name in ("model.safetensors", "state.safetensors"):
        found, expected = load_file(config.out / name), load_file(uninterrupted[0] / name)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_a_run_of_epochs_needs_as_many_processes_as_before(simulator, two_epochs, tmp_path):
    config = replace(two_epochs, out=tmp_path / "run", epochs=1)
    train.main(config)
    with closing(Trainer(config, 0, 1)) as trainer:
        trainer.world = 2
        with pytest.raises(InputError, match=r"by 1 process, .* are 2; .*--nproc-per-node 1"):
            train.prepare(replace(config, resume=True), trainer)


@pytest.mark.parametrize("rank", [0, 1])
def test_each_process_has_its_own_stream(simulator, two_epochs, rank):
    trainer = Trainer(
        Settings(data=two_epochs.data, fresh=True, epoch_patches=100, batch_size=10), 0, 1
    )
    assert trainer.steps_per_epoch == 10
    feed = feeding.FreshFeed(
        two_epochs.data, trainer.data_config, 100, 10, CPU, seed=3, rank=rank, world=2
    )
    assert feed.steps == 5
    assert feed.epoch_patches == 100
    assert (feed.stream.seed, feed.stream.rank, feed.stream.world) == (3, rank, 2)
    batch = next(feed.batches(epoch=4, step=17, count=1))
    assert simulator == [(rank, 17, 10)]
    # rounded to 16 bits as stored patches are
    top = batch.patches.amax((1, 2))
    assert torch.equal(top, torch.full((10,), 65535.0))
    assert torch.equal(batch.patches, batch.patches.round())


def test_an_error_of_the_simulator_reaches_the_user(simulator, two_epochs, tmp_path, monkeypatch):
    def changed(stream, step, count):
        raise InputError("image.png has changed since the data set was made.")

    monkeypatch.setattr(StandIn, "draw", changed)
    with pytest.raises(InputError, match="has changed since"):
        train.main(replace(two_epochs, out=tmp_path / "run"))
    assert simulator == ["closed"]


def without(folder: Path, split: str, tmp_path: Path) -> Path:
    """A copy of a data folder that has no patches of a split."""
    config = json.loads((folder / "config.json").read_text())
    config["patches"][split] = 0
    copy = tmp_path / "data"
    write_json(copy / "config.json", config)
    for path in folder.glob("*.h5"):
        if not path.name.startswith(split):
            (copy / path.name).symlink_to(path)
    return copy


def test_a_folder_without_training_patches_needs_fresh(two_epochs, tmp_path):
    data = without(two_epochs.data, "train", tmp_path)
    with pytest.raises(InputError, match="data has no training patches; give --fresh"):
        train.main(replace(two_epochs, out=tmp_path / "run", data=data, fresh=False))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_without_validation_patches_is_refused(simulator, two_epochs, tmp_path, fresh):
    data = without(two_epochs.data, "validation", tmp_path)
    with pytest.raises(
        InputError, match=r"has no validation patches; make .*--validation-patches 2000"
    ):
        train.main(replace(two_epochs, out=tmp_path / "run", data=data, fresh=fresh))
    assert not (tmp_path / "run").exists()
    config = json.loads((data / "config.json").read_text())
    write_json(data / "config.json", {**config, "patches": {"train": 200, "validation": 40}})
    with pytest.raises(InputError, match=r"validation_00000\.h5 is missing; run generate_"):
        train.main(replace(two_epochs, out=tmp_path / "run", data=data, fresh=fresh))


@pytest.mark.parametrize("value", [0, -5])
def test_an_epoch_needs_patches(two_epochs, tmp_path, value):
    with pytest.raises(InputError, match=f"--epoch-patches is {value}; it must be positive"):
        train.main(replace(two_epochs, out=tmp_path / "run", epoch_patches=value))


def test_mean_of_an_epoch_is_that_of_its_steps(simulator, two_epochs, tmp_path, monkeypatch):
    """More steps than are looked at together, and a rest."""
    losses, step = [], train.Trainer.train_step

    def noted(trainer, batch, rate):
        found = step(trainer, batch, rate)
        losses.append(float(found[0]))
        return found

    monkeypatch.setattr(train.Trainer, "train_step", noted)
    monkeypatch.setattr("models.trainer.LOSS_EVERY", 3)
    train.main(replace(two_epochs, out=tmp_path / "run", epochs=1, epoch_patches=50, batch_size=10))
    table = pd.read_csv(tmp_path / "run" / "metrics.csv")
    assert len(losses) == 5
    assert table["train_loss"][0] == pytest.approx(np.mean(losses), rel=1e-4)
    assert math.isfinite(table["validation_loss"][0])
