"""Training steps: batches made ahead, losses read in groups, and what stops a run."""

import math
import threading
import time
from contextlib import closing
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import train
from models.ahead import AHEAD, made_ahead
from models.processes import SharedClock
from models.spectral_resnet import SpectralResNet
from models.step_errors import check_finite, fitting_size, is_out_of_memory
from psf import InputError

# --- made ahead


def test_results_come_in_order_from_one_other_thread():
    threads = set()

    def make(index):
        threads.add(threading.get_ident())
        return index**2

    for count in (0, 1, AHEAD, 3 * AHEAD):
        assert list(made_ahead(make, count)) == [i**2 for i in range(count)]
    assert threading.get_ident() not in threads


def test_work_goes_on_while_the_caller_is_busy_but_not_without_end():
    made = []
    with closing(made_ahead(made.append, 100)) as results:
        next(results)
        deadline = time.monotonic() + 10
        while len(made) <= AHEAD and time.monotonic() < deadline:
            time.sleep(0.001)
        assert made == list(range(AHEAD + 1))
    assert len(made) == AHEAD + 1


def test_an_error_takes_the_place_of_its_result():
    def make(index):
        if index == 2:
            raise InputError("shard 2 is damaged")
        return index

    results = made_ahead(make, 10)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(InputError, match="shard 2 is damaged"):
        next(results)


# --- losses


def test_losses_are_read_together():
    steps = [torch.tensor([0.5, 2.0]), torch.tensor([0.25, 1.0])]
    assert check_finite(steps, 7) == [0.5, 0.25]
    assert check_finite([], 7) == []


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([[1.0, 1.0], [math.nan, 1.0], [math.nan, math.nan]], "loss became nan at step 18"),
        ([[1.0, 1.0], [1.0, 1.0], [1.0, math.inf]], "gradient became inf at step 19"),
    ],
)
def test_the_first_step_that_is_not_finite_is_named(steps, message):
    with pytest.raises(InputError, match=f"{message}; .* smaller --learning-rate"):
        check_finite(list(torch.tensor(steps)), 20)


@pytest.fixture
def one_epoch(focus_data, tmp_path):
    return train.Config(
        data=focus_data,
        out=tmp_path / "run",
        epochs=1,
        batch_size=25,
        validation_patches=12,
        device="cpu",
        bf16=False,
    )


def test_a_gradient_that_is_not_finite_reaches_no_file(one_epoch, monkeypatch):
    """The loss of the last step is finite; its update spoils the weights."""
    step = train.Trainer.train_step

    def spoiled(trainer, batch, rate):
        found = step(trainer, batch, rate)
        return torch.stack([found[0], found[1] * math.inf]) if trainer.progress.step == 7 else found

    monkeypatch.setattr(train.Trainer, "train_step", spoiled)
    with pytest.raises(InputError, match="the gradient became inf at step 7"):
        train.main(one_epoch)
    assert {path.name for path in one_epoch.out.iterdir()} == {"run_config.json"}


def test_a_training_that_diverged_stops_before_the_epoch_ends(one_epoch, monkeypatch):
    steps = []

    def diverged(trainer, batch, rate):
        steps.append(trainer.progress.step)
        return torch.tensor([math.nan, 1.0])

    monkeypatch.setattr(train.Trainer, "train_step", diverged)
    monkeypatch.setattr("models.trainer.LOSS_EVERY", 3)
    with pytest.raises(InputError, match="the loss became nan at step 0"):
        train.main(one_epoch)
    assert steps == [0, 1, 2]


# --- memory


def test_the_batch_size_is_halved_until_it_fits():
    tried = []

    def attempt(size):
        tried.append(size)
        if size > 20:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    assert fitting_size(200, attempt) == 16
    assert tried == [128, 64, 32, 16]
    assert fitting_size(64, None) == 32
    assert fitting_size(65, None) == 64
    assert fitting_size(2, None) == 1
    assert fitting_size(1, None) == 0
    assert fitting_size(8, lambda size: attempt(100)) == 0


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 17 GB)"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_errors_of_full_memory_are_known_on_every_device(error, is_memory):
    assert is_out_of_memory(error) is is_memory
    if not is_memory:
        with pytest.raises(RuntimeError, match="mat1"):
            fitting_size(8, lambda size: (_ for _ in ()).throw(error))


@pytest.mark.parametrize(
    ("most", "advice"), [(10, "give --batch-size 8"), (0, "give another --device")]
)
def test_a_device_that_is_too_small_is_told_with_the_size_that_fits(
    one_epoch, monkeypatch, most, advice
):
    forward = SpectralResNet.forward

    def small_device(network, patches, cutoff):
        if len(patches) > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(network, patches, cutoff)

    monkeypatch.setattr(SpectralResNet, "forward", small_device)
    with pytest.raises(
        InputError, match=f"cpu has too little memory for a --batch-size of 25; {advice}"
    ):
        train.main(one_epoch)


# --- compile


class Compiled(nn.Module):
    """Names its weights as a network of torch.compile does."""

    def __init__(self, module):
        super().__init__()
        self._orig_mod = module
        self.calls = 0

    def forward(self, *inputs):
        self.calls += 1
        return self._orig_mod(*inputs)


def test_a_compiled_network_trains_and_keeps_the_names_of_its_weights(
    one_epoch, focus_run, monkeypatch
):
    made = []
    monkeypatch.setattr(torch, "compile", lambda module: made.append(Compiled(module)) or made[0])
    train.main(replace(one_epoch, compile=True))
    assert made[0].calls == 8
    found = load_file(one_epoch.out / "model.safetensors")
    assert found.keys() == load_file(focus_run / "model.safetensors").keys()


def test_a_failure_of_the_compiler_is_one_line(one_epoch, monkeypatch):
    failure = type("InductorError", (RuntimeError,), {"__module__": "torch._inductor.exc"})

    def fail(*_):
        raise failure("No working C++ compiler found\n\nSet TORCHDYNAMO_VERBOSE=1")

    monkeypatch.setattr(torch, "compile", lambda module: Compiled(module))
    monkeypatch.setattr(Compiled, "forward", fail)
    with pytest.raises(InputError) as caught:
        train.main(replace(one_epoch, compile=True))
    assert str(caught.value) == (
        "torch.compile failed (No working C++ compiler found); leave out --compile."
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler
def test_the_real_compiler_gives_the_same_losses(one_epoch):
    losses = []
    for compiled in (False, True):
        trainer = train.Trainer(replace(one_epoch, compile=compiled), 0, 1)
        batches = trainer.feed.batches(0, 0, 3)
        losses.append([float(trainer.train_step(batch, 1e-3)[0]) for batch in batches])
        assert not any("_orig_mod" in name for name in trainer.network.state_dict())
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


# --- the clock of several processes


def test_processes_follow_the_clock_of_the_first_with_few_broadcasts(monkeypatch):
    sent = []

    def share(value, world, device):
        if ranks[0] == 0:
            sent.append(value)
            return value
        return sent[received.pop()]

    monkeypatch.setattr("models.processes.share_from_first", share)
    first, second = (SharedClock(2, torch.device("cpu")) for _ in range(2))
    ranks, found = [0], []
    for step in range(200):
        found.append(first.share(step / 150))
    ranks[0], received = 1, list(range(len(sent)))[::-1]
    assert [second.share(0.0) for _ in range(200)] == found
    # after 0, 1, 3, 7, 15, 31 steps, then every 25, until the end
    assert sent == pytest.approx([s / 150 for s in (0, 1, 3, 7, 15, 31, 56, 81, 106, 131)])
    assert found[:150] == pytest.approx([step / 150 for step in range(150)])
    assert min(found[150:]) >= 1


def test_the_end_of_the_time_is_final(monkeypatch):
    """The clock of the first process may run behind what was continued from it."""
    values = iter([0.2, 0.6, 0.7, 0.7])
    monkeypatch.setattr("models.processes.share_from_first", lambda *_: next(values))
    clock = SharedClock(2, torch.device("cpu"))
    found = [clock.share(0.0) for _ in range(8)]
    assert found == pytest.approx([0.2, 0.6, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])


def test_a_process_alone_follows_its_own_clock():
    clock = SharedClock(1, torch.device("cpu"))
    assert [clock.share(v) for v in (0.1, 0.9, 0.3)] == [0.1, 0.9, 0.3]
