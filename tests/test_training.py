"""Training: what the loss sees, the schedule, and that a kill leaves no trace in the weights."""

import math
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import train
from models import build
from models.checkpoint import load_estimator
from models.data import PatchSet, normalise
from models.feeding import epoch_order
from models.loss import (
    BINS,
    SMALLEST_VARIANCE,
    SUPPORT,
    Scaler,
    estimation_loss,
    output_count,
    split_outputs,
    target_histograms,
    value_loss,
)
from models.run_state import load_state, save_state
from models.trainer import (
    WARM_UP,
    Trainer,
    build_optimizer,
    learning_rate,
    step_generator,
)
from psf import InputError

CPU = torch.device("cpu")


# --- parts


def test_scaler_maps_the_range_to_minus_one_and_one():
    scaler = Scaler.from_ranges([[0.0, 4.0], [-2.0, 2.0]])
    labels = torch.tensor([[0.0, -2.0], [4.0, 2.0], [1.0, 1.0]])
    expected = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [-0.5, 0.5]])
    assert torch.equal(scaler.scale(labels), expected)
    assert torch.equal(scaler.unscale(expected), labels)


def outputs_of(histograms, flags):
    """Network outputs whose softmax is (N, P, BINS) histograms."""
    return torch.cat([histograms.clamp(min=1e-30).log().flatten(1), flags[:, None]], 1)


def test_outputs_are_a_histogram_per_parameter_then_the_flag():
    assert output_count(3) == 3 * BINS + 1
    targets = torch.tensor([[-0.9, 0.0, 0.7], [0.3, -0.31, 1.0]])
    outputs = outputs_of(target_histograms(targets), torch.tensor([3.0, -2.0]))
    values, log_variances, logits = split_outputs(outputs)
    assert torch.allclose(values, targets, atol=1e-3)
    assert logits.tolist() == [3, -2]
    # the blur of 0.75 bins and the width of the bins themselves
    bin_width = 2 * SUPPORT / BINS
    expected = bin_width**2 * (0.75**2 + 1 / 12)
    assert torch.allclose(log_variances.exp(), torch.tensor(expected), rtol=0.02)


def test_two_peaks_give_their_mean_and_spread():
    peaks = target_histograms(torch.tensor([[-0.8], [0.8]])).mean(0, keepdim=True)
    values, log_variances, _ = split_outputs(outputs_of(peaks, torch.zeros(1)))
    assert float(values) == pytest.approx(0, abs=1e-5)
    assert float(log_variances) == pytest.approx(2 * math.log(0.8), abs=0.01)


def test_target_histograms_sum_to_one_and_stay_within_reach_of_the_blur():
    shares = target_histograms(torch.linspace(-1, 1, 41)[:, None])
    assert torch.allclose(shares.sum(2), torch.ones(41, 1), atol=1e-6)
    assert float(shares.topk(5).values.sum(2).min()) > 0.99


def test_a_histogram_of_one_bin_has_the_smallest_variance():
    outputs = torch.full((1, BINS + 1), -500.0)
    outputs[0, 7] = 500
    values, log_variances, _ = split_outputs(outputs)
    assert float(values) == pytest.approx(-SUPPORT + 7.5 * 2 * SUPPORT / BINS)
    assert float(log_variances) == pytest.approx(math.log(SMALLEST_VARIANCE))


def test_loss_masks_the_values_of_blank_patches():
    torch.manual_seed(0)
    outputs = torch.randn(6, 2 * BINS + 1, requires_grad=True)
    has_content = torch.tensor([True, False, True, False, True, True])
    estimation_loss(outputs, torch.randn(6, 2).clamp(-1, 1), has_content).backward()
    assert (outputs.grad[~has_content, :-1] == 0).all()
    assert (outputs.grad[has_content, :-1] != 0).all()
    # the histograms of an untrained network are all wide: the flag follows the objects
    assert torch.equal(outputs.grad[:, -1] < 0, has_content)


def test_flag_is_learned_from_patches_with_narrow_histograms():
    narrow = torch.full((4, BINS + 1), -20.0)
    narrow[:, 30], narrow[:, -1] = 20.0, 0.0
    wide = torch.zeros(4, BINS + 1)  # uniform: standard deviation 1.25 / sqrt(3)
    outputs = torch.cat([narrow, wide]).requires_grad_()
    has_content = torch.tensor([True, True, False, False] * 2)
    estimation_loss(outputs, torch.zeros(8, 1), has_content).backward()
    # more content lowers the loss where there is some, and where focus can be told
    falls = outputs.grad[:, -1] < 0
    assert falls.tolist() == [True, True, *[False] * 6]
    assert torch.allclose(outputs.grad[:, -1].abs(), torch.tensor(0.1 * 0.5 / 8))


@pytest.mark.parametrize("deviation", [0.25, 0.32])
def test_patches_count_as_content_below_half_of_the_deviation_of_the_labels(deviation):
    places = torch.linspace(-SUPPORT, SUPPORT, BINS + 1).unfold(0, 2, 1).mean(1)
    outputs = torch.zeros(1, BINS + 1)
    outputs[0, :BINS] = -0.5 * (places / deviation) ** 2
    outputs.requires_grad_()
    estimation_loss(outputs, torch.zeros(1, 1), torch.tensor([True])).backward()
    # labels that are uniform over -1 to 1 deviate by 0.577
    assert (float(outputs.grad[0, -1]) < 0) == (deviation < 0.577 / 2)


def test_loss_of_a_batch_of_blanks_is_that_of_the_flag():
    outputs = torch.randn(4, BINS + 1, generator=torch.Generator().manual_seed(0))
    outputs.requires_grad_()
    loss = estimation_loss(outputs, torch.zeros(4, 1), torch.zeros(4, dtype=torch.bool))
    loss.backward()
    flags = outputs.detach()[:, -1]
    assert float(loss.detach()) == pytest.approx(0.1 * float(flags.exp().log1p().mean()))
    assert (outputs.grad[:, :-1] == 0).all()
    assert torch.allclose(outputs.grad[:, -1], 0.1 * flags.sigmoid() / 4)


def test_loss_is_least_for_a_histogram_at_the_truth_as_wide_as_the_errors(monkeypatch):
    truth = 0.3 * torch.randn(4000, 1, generator=torch.Generator().manual_seed(1))
    content = torch.ones(4000, dtype=torch.bool)
    edges = torch.linspace(-SUPPORT, SUPPORT, BINS + 1)

    def loss(offset, width):
        shares = torch.special.ndtr((edges - offset) / width).diff()
        outputs = outputs_of(shares.expand(4000, 1, BINS), torch.full((4000,), 9.0))
        return float(estimation_loss(outputs, truth.clamp(-1, 1), content))

    monkeypatch.setattr("models.loss.UNINFORMATIVE", math.inf)  # the flag of all counts alike
    assert loss(0, 0.3) < min(loss(0.1, 0.3), loss(-0.1, 0.3))
    assert loss(0, 0.3) < min(loss(0, 0.2), loss(0, 0.4))


def test_errors_above_half_a_range_count_linearly():
    content, width = torch.ones(1, dtype=torch.bool), 1.0

    def loss(error):
        return float(value_loss(torch.tensor([[error]]), torch.zeros(1, 1), content))

    assert loss(0.1) == pytest.approx(0.1**2 / (2 * width))
    assert loss(-width) == pytest.approx(width / 2)
    assert loss(2.0) == pytest.approx(2 - width / 2)
    assert loss(-3.0) - loss(2.0) == pytest.approx(1)


def test_loss_adds_histograms_values_and_flag_with_their_weights():
    outputs, targets = torch.zeros(1, BINS + 1), torch.full((1, 1), 0.5)
    entropy, fit, flag = math.log(BINS), 0.5**2 / 2, 0.1 * math.log(2)
    some, none = torch.ones(1, dtype=torch.bool), torch.zeros(1, dtype=torch.bool)
    found = float(estimation_loss(outputs, targets, some))
    assert found == pytest.approx(entropy + 10 * fit + flag)
    assert float(estimation_loss(outputs, targets, some, 0)) == pytest.approx(entropy + flag)
    assert float(estimation_loss(outputs, targets, none)) == pytest.approx(flag)


def test_learning_rate_rises_to_the_peak_and_falls_as_half_a_cosine():
    peak = 3e-3
    assert learning_rate(0, peak) == pytest.approx(0.02 * peak)
    assert learning_rate(WARM_UP, peak) == pytest.approx(peak)
    assert learning_rate(WARM_UP / 2, peak) == pytest.approx(0.51 * peak)
    assert learning_rate((1 + WARM_UP) / 2, peak) == pytest.approx(peak / 2)
    assert learning_rate(WARM_UP + (1 - WARM_UP) / 4, peak) == pytest.approx(
        peak * (1 + math.sqrt(0.5)) / 2
    )
    assert learning_rate(1, peak) == pytest.approx(0, abs=1e-12)
    assert learning_rate(1.1, peak) == pytest.approx(0, abs=1e-12)  # the clock may overshoot


def test_biases_and_normalisations_do_not_decay():
    network = build("resnet18", 3)
    decay = {
        id(p): group["weight_decay"]
        for group in build_optimizer(network, 1e-3, 0.02).param_groups
        for p in group["params"]
    }
    for module in network.modules():
        for parameter in module.parameters(recurse=False):
            matrix = isinstance(module, nn.Conv2d | nn.Linear) and parameter.ndim > 1
            assert decay[id(parameter)] == (0.02 if matrix else 0.0)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_share_an_epoch_without_overlap(world):
    parts = [epoch_order(100, 7, 3, rank, world) for rank in range(world)]
    assert {len(part) for part in parts} == {100 // world}
    together = np.concatenate(parts)
    assert len(set(together.tolist())) == len(together)
    assert set(together.tolist()) <= set(range(100))
    if world == 1:
        assert sorted(together) == list(range(100))


def test_epochs_and_seeds_differ_in_order():
    first = epoch_order(50, 0, 0)
    assert np.array_equal(first, epoch_order(50, 0, 0))
    assert not np.array_equal(first, epoch_order(50, 0, 1))
    assert not np.array_equal(first, epoch_order(50, 1, 0))


def test_steps_seeds_and_ranks_have_noise_of_their_own():
    draws = {
        (seed, step, rank): float(torch.rand(1, generator=step_generator(CPU, seed, step, rank)))
        for seed in range(3)
        for step in range(3)
        for rank in range(2)
    }
    assert len(set(draws.values())) == len(draws)
    again = torch.rand(1, generator=step_generator(CPU, 1, 2, 0))
    assert float(again) == draws[1, 2, 0]


def learn(network, optimizer, steps):
    for step in range(steps):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        network(x).square().mean().backward()
        optimizer.step()


def test_state_goes_on_bit_exactly(tmp_path):
    def fresh(seed):
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))
        return network, build_optimizer(network, 1e-2, 0.02)

    network, optimizer = fresh(0)
    learn(network, optimizer, 3)
    save_state(tmp_path / "state.safetensors", network, optimizer, {"epoch": 3, "best": 0.1})
    other, other_optimizer = fresh(1)
    facts = load_state(tmp_path / "state.safetensors", other, other_optimizer)
    assert facts == {"epoch": 3, "best": 0.1}
    learn(network, optimizer, 2)
    learn(other, other_optimizer, 2)
    for (name, a), b in zip(network.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_truncated_state_is_refused_by_name(tmp_path):
    network = nn.Linear(4, 2)
    optimizer = build_optimizer(network, 1e-2, 0.02)
    path = tmp_path / "state.safetensors"
    save_state(path, network, optimizer, {})
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"state\.safetensors is damaged"):
        load_state(path, network, optimizer)


def test_network_overfits_a_handful_of_patches(focus_data):
    torch.manual_seed(0)
    patch_set = PatchSet(focus_data, "train")
    chosen = np.flatnonzero(patch_set.has_content.numpy())[:12]
    chosen = np.append(chosen, np.flatnonzero(~patch_set.has_content.numpy())[:4])
    batch = patch_set.batch(chosen, CPU)
    scaler = Scaler.from_ranges(patch_set.config["label_ranges"])
    targets, patches = scaler.scale(batch.labels), normalise(batch.patches)
    network = build("spectral_resnet", output_count(1)).train()
    optimizer = build_optimizer(network, 3e-3, 0.0)
    errors = []
    for _ in range(150):
        outputs = network(patches, batch.cutoff)
        values, _, logits = split_outputs(outputs.detach())
        errors.append(float((values - targets)[batch.has_content].square().mean().sqrt()))
        loss = estimation_loss(outputs, targets, batch.has_content)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert errors[0] > 0.4  # half ranges; labels that are spread evenly have 0.58
    assert errors[-1] < 0.25 * errors[0]
    assert torch.equal(logits > 0, batch.has_content)


# --- runs


@pytest.fixture(scope="module")
def two_epochs(focus_data):
    return train.Config(
        data=focus_data,
        out=Path(),
        epochs=2,
        batch_size=50,
        seed=3,
        device="cpu",
        bf16=False,
    )


@pytest.fixture(scope="module")
def uninterrupted(two_epochs, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "uninterrupted"
    train.main(replace(two_epochs, out=out))
    return out


def test_run_writes_what_it_promises(uninterrupted):
    table = pd.read_csv(uninterrupted / "metrics.csv")
    assert table["epoch"].tolist() == [1, 2]
    assert table["patches_seen"].tolist() == [200, 400]
    assert np.isfinite(table.to_numpy()).all()
    assert {"r2_focus_noise-free", "r2_focus_10 photons"} <= set(table.columns)
    with Image.open(uninterrupted / "curves.png") as image:
        assert np.asarray(image.convert("L")).std() > 5
    assert not list(uninterrupted.glob("*partial*"))


def test_training_starts_from_the_weights_of_another(two_epochs, uninterrupted, tmp_path):
    config = replace(two_epochs, out=tmp_path / "on", start_from=uninterrupted, learning_rate=1e-9)
    train.main(config)
    found = load_file(config.out / "model.safetensors")
    expected = load_file(uninterrupted / "model.safetensors")
    weights = [name for name in expected if name.endswith("weight")]
    assert all(torch.allclose(found[name], expected[name], atol=1e-5) for name in weights)
    assert f"starting from {uninterrupted}" in (config.out / "README.md").read_text()


def test_weights_that_fit_are_taken_from_another_architecture(
    two_epochs, uninterrupted, tmp_path, capsys
):
    """The wide network has the spectral branch of the other, and more channels in pixels."""
    wide = replace(two_epochs, out=tmp_path / "wide", model="spectral_resnet_wide")
    with closing(Trainer(wide, 0, 1)) as trainer:
        before = {k: v.clone() for k, v in trainer.network.state_dict().items()}
        train.start_from(uninterrupted, trainer)
        found = trainer.network.state_dict()
    given = load_file(uninterrupted / "model.safetensors")
    fitting = {k for k, v in given.items() if k in found and found[k].shape == v.shape}
    for name, tensor in found.items():
        assert torch.equal(tensor, given[name] if name in fitting else before[name]), name
    spectral = {name for name in given if name.startswith("spectral.")}
    assert spectral and spectral <= fitting
    assert any(name.startswith("pixel.") for name in found.keys() - fitting)
    assert f"{len(fitting)} of {len(found)} arrays of weights are those of" in (
        capsys.readouterr().out
    )


def test_training_does_not_start_from_another_psf_model(two_epochs, gaussian_data, focus_run):
    config = replace(two_epochs, data=gaussian_data)
    with closing(Trainer(config, 0, 1)) as trainer:
        with pytest.raises(InputError, match=r"for zernike1d; this training is of a .* gaussian1d"):
            train.start_from(focus_run, trainer)


def test_training_does_not_start_from_another_kind_of_network(two_epochs, uninterrupted, tmp_path):
    config = replace(two_epochs, out=tmp_path / "x", start_from=uninterrupted, model="resnet18")
    with pytest.raises(InputError, match="is a spectral_resnet for zernike1d; this training is of"):
        train.main(config)


class Killed(BaseException):
    """What a kill looks like from the inside."""


def test_killed_run_resumes_onto_the_same_weights(two_epochs, uninterrupted, tmp_path, monkeypatch):
    config = replace(two_epochs, out=tmp_path / "killed", resume=True)  # nothing there yet: starts
    step = train.Trainer.train_step

    def killed_in_the_second_epoch(trainer, batch, rate):
        if trainer.progress.step == 6:
            raise Killed
        return step(trainer, batch, rate)

    with monkeypatch.context() as patch:
        patch.setattr(train.Trainer, "train_step", killed_in_the_second_epoch)
        with pytest.raises(Killed):
            train.main(config)
    assert len(pd.read_csv(config.out / "metrics.csv")) == 1
    with pytest.raises(InputError, match=r"different configuration \(settings.epochs\)"):
        train.main(replace(config, epochs=3))
    train.main(replace(config, resume=False))
    with pytest.raises(InputError, match="holds a finished run; give another --out"):
        train.main(replace(config, resume=False))
    for name in ("model.safetensors", "state.safetensors"):
        found, expected = load_file(config.out / name), load_file(uninterrupted / name)
        assert found.keys() == expected.keys()
        for key in expected:
            assert torch.equal(found[key], expected[key]), key
    tables = [
        pd.read_csv(p / "metrics.csv").drop(columns="minutes") for p in (config.out, uninterrupted)
    ]
    pd.testing.assert_frame_equal(*tables)
    assert (config.out / "run.json").exists()


def test_resuming_a_finished_run_changes_nothing(two_epochs, uninterrupted):
    before = (uninterrupted / "model.safetensors").read_bytes()
    train.main(replace(two_epochs, out=uninterrupted, resume=True))
    assert (uninterrupted / "model.safetensors").read_bytes() == before
    assert len(pd.read_csv(uninterrupted / "metrics.csv")) == 2


def test_weights_of_the_best_validation_are_kept(two_epochs, tmp_path, monkeypatch):
    losses, weights = iter([1.0, 0.5, 0.7]), []

    def validate(trainer):
        weights.append({k: v.clone() for k, v in trainer.network.state_dict().items()})
        return next(losses), {"noise-free": [0.0]}

    monkeypatch.setattr(train.Trainer, "validate", validate)
    train.main(replace(two_epochs, out=tmp_path / "best", epochs=3, batch_size=100))
    kept = load_file(tmp_path / "best" / "model.safetensors")
    assert all(torch.equal(kept[k], weights[1][k]) for k in kept)
    assert not all(torch.equal(kept[k], weights[2][k]) for k in kept)


def test_non_finite_loss_stops_and_leaves_the_best_weights(
    two_epochs, uninterrupted, tmp_path, monkeypatch
):
    config = replace(two_epochs, out=tmp_path / "diverged")
    step = train.Trainer.train_step

    def diverged_at_the_sixth_step(trainer, batch, rate):
        if trainer.progress.step == 5:
            nn.init.constant_(trainer.network.head[0].weight, math.nan)
        return step(trainer, batch, rate)

    monkeypatch.setattr(train.Trainer, "train_step", diverged_at_the_sixth_step)
    with pytest.raises(InputError, match=r"became nan at step 5; .*--learning-rate"):
        train.main(config)
    weights = load_estimator(config.out).network.state_dict()
    assert all(torch.isfinite(w).all() for w in weights.values())
    first_epoch = pd.read_csv(uninterrupted / "metrics.csv").iloc[0]
    assert pd.read_csv(config.out / "metrics.csv")["validation_loss"].tolist() == [
        first_epoch["validation_loss"]
    ]


def test_time_budget_ends_the_training(two_epochs, tmp_path):
    config = replace(two_epochs, out=tmp_path / "clock", epochs=None, max_minutes=0.01)
    train.main(config)
    table = pd.read_csv(config.out / "metrics.csv")
    # the step that is under way is finished
    assert 0.01 <= table["minutes"].iloc[-1] < 0.05
    best = table.loc[table["validation_loss"].idxmin()]
    assert load_estimator(config.out).config["run"]["patches_seen"] == best["patches_seen"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_minutes": 1.0}, "--max-minutes or --epochs, not both"),
        ({"epochs": 0}, "--epochs is 0; it must be positive"),
        ({"epochs": None, "max_minutes": 0.0}, r"--max-minutes is 0\.0; it must"),
        ({"batch_size": 0}, "--batch-size is 0; it must"),
        ({"batch_size": -64}, "--batch-size is -64; it must"),
        ({"learning_rate": math.nan}, "--learning-rate is nan; it must"),
        ({"seed": -1}, "--seed is -1; it cannot be negative"),
        ({"batch_size": 201}, "200 training patches are fewer than a batch of 201"),
        ({"device": "cuda:99"}, "device 'cuda:99' is not available"),
        ({"data": Path("no/such/folder")}, "config.json is missing: .* is no training set"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(
    two_epochs, tmp_path, changes, message
):
    with pytest.raises(InputError, match=message):
        train.main(replace(two_epochs, out=tmp_path / "run", **changes))
    assert list(tmp_path.iterdir()) == []


def test_labels_far_beyond_their_range_do_not_reach_the_loss():
    """Of patches without content: they lie in no bin of the histogram."""
    torch.manual_seed(0)
    outputs = torch.randn(3, output_count(1))
    content = torch.tensor([True, True, False])
    losses = [
        estimation_loss(outputs, torch.tensor([[0.2], [-0.4], [far]]), content)
        for far in (0.0, 50.0)
    ]
    assert torch.isfinite(losses[1])
    assert torch.equal(*losses)
