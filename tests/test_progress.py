"""What a run shows while it trains: its line per epoch, its bar, and TensorBoard events."""

import sys
from dataclasses import replace

import pandas as pd
import pytest

import train
from psf import InputError


@pytest.fixture
def two_epochs(focus_data, tmp_path):
    return train.Config(
        data=focus_data,
        out=tmp_path / "run",
        epochs=2,
        batch_size=50,
        validation_patches=12,
        device="cpu",
        tensorboard=True,
    )


def test_tensorboard_gets_the_columns_of_the_metrics(two_epochs):
    """At the steps where the epochs end, in groups of losses and scores."""
    pytest.importorskip("tensorboard", reason="pip install -r requirements-tensorboard.txt")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train.main(two_epochs)
    events = EventAccumulator(str(two_epochs.out / "tensorboard")).Reload()
    table = pd.read_csv(two_epochs.out / "metrics.csv")
    columns = {
        "loss/training": "train_loss",
        "loss/validation": "validation_loss",
        "r2_focus/noise-free": "r2_focus_noise-free",
        "r2_focus/10_photons": "r2_focus_10 photons",
        "run/patches_seen": "patches_seen",
    }
    assert set(columns) <= set(events.Tags()["scalars"])
    for tag, column in columns.items():
        assert [event.step for event in events.Scalars(tag)] == [4, 8]
        found = [event.value for event in events.Scalars(tag)]
        assert found == pytest.approx(table[column].tolist(), rel=1e-3)


def test_a_missing_tensorboard_is_told_before_the_training(two_epochs, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match=r"pip install -r requirements-tensorboard\.txt"):
        train.main(two_epochs)
    assert not (two_epochs.out / "metrics.csv").exists()


def test_the_line_of_an_epoch():
    rows = [
        {"epoch": 1, "minutes": 1.0, "patches_seen": 6000, "validation_loss": 0.5},
        {"epoch": 2, "minutes": 1.5, "patches_seen": 12000, "train_loss": 2.5}
        | {"validation_loss": 0.25, "r2_a_noise-free": 0.9, "r2_b_noise-free": 0.7}
        | {"r2_a_8-bit": 0.1, "r2_b_8-bit": 0.1, "r2_a_10 photons": 0.2, "r2_b_10 photons": 0.4},
    ]
    progress = train.Progress(rows=rows, best=0.25)
    assert train.epoch_line(progress, 3900) == (
        "epoch 2: R² noise-free 0.800, 10 photons 0.300; loss 2.500, validation 0.2500 (best); "
        "200 patches/s, 1 h 05 min left"
    )
    later = train.epoch_line(replace(progress, best=0.2), 90)
    assert "(best)" not in later
    assert later.endswith("90 s left")


@pytest.mark.slow
def test_the_bar_counts_the_whole_run(two_epochs, capfd):
    train.main(replace(two_epochs, tensorboard=False))
    captured = capfd.readouterr()
    assert "epoch 2: " in captured.err
    assert "400/400" in captured.err
    assert captured.out.count(" left\n") == 2
