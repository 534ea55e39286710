"""Several processes: each takes its own GPU, the backend fits the device, the weights agree."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from models import trainer
from models.checkpoint import load_estimator
from models.data import CONDITIONS, PatchSet
from models.processes import process_device, share_from_first, start_processes
from psf import InputError

ROOT = Path(__file__).parents[1]
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 1)


@pytest.fixture
def two_gpus(monkeypatch):
    """A machine with two GPUs; the list of those that were made the current one."""
    current = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    return current


@pytest.fixture
def joined(monkeypatch):
    """Second of two processes; the arguments of `init_process_group`."""
    calls = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    distributed = torch.distributed
    monkeypatch.setattr(distributed, "init_process_group", lambda *a, **k: calls.append((a, k)))
    monkeypatch.setattr(distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    return calls


@pytest.mark.parametrize("name", ["auto", "cuda"])
@pytest.mark.parametrize("rank", [0, 1])
def test_each_process_takes_the_gpu_of_its_local_rank(two_gpus, monkeypatch, name, rank):
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    assert process_device(name) == torch.device("cuda", rank)
    assert two_gpus == [torch.device("cuda", rank)]


def test_without_torchrun_and_on_the_cpu_no_gpu_is_claimed(two_gpus, monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert process_device("auto") == torch.device("cuda")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert process_device("cpu") == CPU
    assert two_gpus == []


def test_more_processes_than_gpus_are_refused(two_gpus, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(InputError, match=r"the machine has 2\. Give torchrun --nproc-per-node 2"):
        process_device("auto")


def test_one_gpu_for_several_processes_is_refused(two_gpus, joined):
    with pytest.raises(InputError, match="--device cuda:1 is one GPU for several processes"):
        process_device("cuda:1")


@pytest.mark.parametrize(("device", "backend"), [(CPU, "gloo"), (CUDA, "nccl")])
def test_backend_is_that_of_the_device(two_gpus, joined, device, backend):
    """With `--device cpu` gradients lie on the CPU, where NCCL cannot reach them."""
    assert start_processes(device) == (1, 2)
    ((arguments, options),) = joined
    assert arguments == (backend,)
    assert options["device_id"] == (CUDA if backend == "nccl" else None)


def test_a_device_without_a_backend_is_refused(joined):
    with pytest.raises(InputError, match="cannot train on mps; give --device cpu"):
        start_processes(torch.device("mps"))


def test_decisions_are_shared_where_the_backend_reaches_them(monkeypatch):
    """NCCL broadcasts tensors of the GPU alone; a value of the first process replaces this one."""
    devices = []

    def broadcast(tensor, source):
        devices.append((tensor.device, source))
        tensor.fill_(0.75)

    monkeypatch.setattr(torch.distributed, "broadcast", broadcast)
    meta = torch.device("meta")  # stands for a GPU; its tensors have no values
    with pytest.raises(RuntimeError):
        share_from_first(0.5, 2, meta)
    assert share_from_first(0.5, 2, CPU) == 0.75
    assert devices == [(meta, 0), (CPU, 0)]
    assert share_from_first(0.5, 1, CPU) == 0.5


@pytest.mark.parametrize(("device", "expected"), [(CPU, None), (CUDA, [CUDA])])
def test_gradients_are_averaged_on_the_gpu_of_the_process(monkeypatch, device, expected):
    found = []
    monkeypatch.setattr(
        trainer, "DistributedDataParallel", lambda _, device_ids: found.append(device_ids)
    )
    trainer.in_parallel(torch.nn.Linear(1, 1), device)
    assert found == [expected]


def test_emulated_bfloat16_is_not_used(monkeypatch):
    """A GPU older than Ampere runs bfloat16 by emulation, slower than float32."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert trainer.prefers_bf16(CUDA)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation
    )
    assert not trainer.prefers_bf16(CUDA)
    assert not trainer.prefers_bf16(torch.device("mps"))


# Trains with two processes. Then, with the first weights again: one step on patches that a single
# process may see in one batch, and a validation with batches of 7.
TWO_PROCESSES = """
import copy, json, sys
from dataclasses import replace
from pathlib import Path
from safetensors.torch import save_file
import train
from models import trainer
from tests.test_processes import one_step

data, folder = map(Path, sys.argv[1:])
trainer.VALIDATION_BATCH = 7

class Keeping(train.Trainer):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.first = copy.deepcopy(self.network.state_dict())
        self.losses = []

    def train_epoch(self, bar):
        self.losses.append(super().train_epoch(bar))
        weights = {name: p.detach().contiguous() for name, p in self.network.named_parameters()}
        save_file(weights, folder / f"{self.rank}_{self.progress.epoch}")
        return self.losses[-1]

    def close(self):
        loss, gradients = one_step(self, self.first)
        save_file(gradients, folder / f"{self.rank}_gradients")
        for buffer in self.network.buffers():
            buffer += self.rank  # those of the first process count
        facts = {"loss": loss, "epochs": self.losses, "validation": self.validate()}
        (folder / f"{self.rank}.json").write_text(json.dumps(facts))

train.Trainer = Keeping
train.main(
    train.Config(data=data, out=folder / "run", epochs=2, batch_size=25, device="cpu")
)
"""


def one_step(trainer_, first):
    """Loss and gradients of one step with weights `first`; processes share its 40 patches.

    Patches are neither turned nor exposed, since each process draws that by itself. All have
    content, since each process takes the mean over its patches with content. Normalisations use
    their running means, since each process has those of its own batch.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "turn", lambda batch, *_: batch)
        patch.setattr(trainer, "expose", lambda patches, *_: patches)
        patch.setattr(trainer_, "bf16", False)
        trainer_.network.load_state_dict(first)
        trainer_.network.eval()
        patch_set = PatchSet(trainer_.config.data, "train")
        chosen = np.flatnonzero(patch_set.has_content.numpy())[:40]
        found = trainer_.train_step(patch_set.batch(chosen[trainer_.rank :: trainer_.world]), 1e-3)
    gradients = {name: p.grad.contiguous() for name, p in trainer_.network.named_parameters()}
    trainer_.network.load_state_dict(first)
    return float(found[0]), gradients


@pytest.fixture(scope="module")
def two_processes(focus_data, tmp_path_factory):
    """Folder of what two processes wrote, and what they printed."""
    folder = tmp_path_factory.mktemp("two")
    script = folder / "two.py"
    script.write_text(TWO_PROCESSES)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*launcher, "--nproc-per-node", "2", str(script), str(focus_data), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_two_processes_train_one_network(two_processes):
    """DistributedDataParallel over gloo; each process sees half of every epoch."""
    folder, printed = two_processes
    first, second = ([load_file(folder / f"{rank}_{epoch}") for epoch in (0, 1)] for rank in (0, 1))
    for one, other in zip(first, second, strict=True):
        for name in one:
            assert torch.equal(one[name], other[name]), name
    assert not any(torch.equal(first[0][name], first[1][name]) for name in first[0])
    table = pd.read_csv(folder / "run" / "metrics.csv")
    assert table["patches_seen"].tolist() == [200, 400]
    assert load_estimator(folder / "run").config["run"]["processes"] == 2
    assert printed.count("wrote ") == 1  # only the first process prints


def test_two_processes_are_one_with_the_double_batch(two_processes, focus_data):
    folder, _ = two_processes
    facts = [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]
    # weights of the same seed, as they were at the beginning
    alone = trainer.Trainer(trainer.Settings(data=focus_data, batch_size=50, device="cpu"), 0, 1)
    first = copy.deepcopy(alone.network.state_dict())
    loss, gradients = one_step(alone, first)
    assert facts[0]["loss"] != pytest.approx(facts[1]["loss"], rel=1e-3)
    assert np.mean([each["loss"] for each in facts]) == pytest.approx(loss, rel=1e-5)
    for rank in (0, 1):
        for name, found in load_file(folder / f"{rank}_gradients").items():
            assert torch.allclose(found, gradients[name], rtol=1e-3, atol=1e-6), name
    assert max(float(g.abs().max()) for g in gradients.values()) > 1e-2

    # the validation too, although each process predicts every other batch of it
    expected_loss, expected = alone.validate()
    for each in facts:
        assert each["validation"][0] == pytest.approx(expected_loss, rel=1e-5)
        for condition, scores in expected.items():
            assert each["validation"][1][condition] == pytest.approx(scores, abs=1e-5)
    # the loss of an epoch is that of both
    assert facts[0]["epochs"] == facts[1]["epochs"]
    table = pd.read_csv(folder / "run" / "metrics.csv")
    assert table["train_loss"].tolist() == pytest.approx(facts[0]["epochs"], rel=1e-4)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_share_the_batches_of_a_recording(focus_data, world):
    patch_set = PatchSet(focus_data, "test", 32)
    whole = torch.cat([b.patches for b in patch_set.recorded(CONDITIONS[3], 5, CPU)])
    shared = [
        [b.patches for b in patch_set.recorded(CONDITIONS[3], 5, CPU, rank, world)]
        for rank in range(world)
    ]
    assert {len(parts) for parts in shared} <= {7 // world, 7 // world + 1}
    in_turn = [shared[i % world][i // world] for i in range(7)]
    assert torch.equal(torch.cat(in_turn), whole)
