"""Several processes: each takes its own GPU, the backend fits the device, the weights agree."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from models import trainer
from models.checkpoint import load_estimator
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


KEEP_WEIGHTS = """
import os, sys
from pathlib import Path
from safetensors.torch import save_file
import train

class Keeping(train.Trainer):
    def train_epoch(self, bar):
        loss = super().train_epoch(bar)
        weights = {name: p.detach().contiguous() for name, p in self.network.named_parameters()}
        save_file(weights, Path(sys.argv[2]) / f"{os.environ['RANK']}_{self.progress.epoch}")
        return loss

train.Trainer = Keeping
data, folder = map(Path, sys.argv[1:])
train.main(
    train.Config(data=data, out=folder / "run", epochs=2, batch_size=25, device="cpu")
)
"""


def test_two_processes_train_one_network(focus_data, tmp_path):
    """DistributedDataParallel over gloo; each process sees half of every epoch."""
    script = tmp_path / "keep.py"
    script.write_text(KEEP_WEIGHTS)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*launcher, "--nproc-per-node", "2", str(script), str(focus_data), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second = (
        [load_file(tmp_path / f"{rank}_{epoch}") for epoch in (0, 1)] for rank in (0, 1)
    )
    for one, other in zip(first, second, strict=True):
        for name in one:
            assert torch.equal(one[name], other[name]), name
    assert not any(torch.equal(first[0][name], first[1][name]) for name in first[0])
    table = pd.read_csv(tmp_path / "run" / "metrics.csv")
    assert table["patches_seen"].tolist() == [200, 400]
    assert load_estimator(tmp_path / "run").config["run"]["processes"] == 2
    assert done.stdout.count("wrote ") == 1  # only the first process prints
