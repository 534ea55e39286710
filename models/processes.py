"""Training in several processes: the device of each one, and what all of them must agree on.

torchrun starts one process per GPU and numbers those of one machine by LOCAL_RANK.
"""

import os
from typing import Any

import torch
from torch import nn

from common.command import pick_device
from psf.errors import InputError

BACKENDS = {"cuda": "nccl", "cpu": "gloo"}  # of torch.distributed; there is none for MPS


def process_device(name: str) -> torch.device:
    """Device of this process; under torchrun on GPUs, the GPU with the number LOCAL_RANK.

    Raises
    ------
    InputError
        If there is no such device, or if processes would have to share a GPU.
    """
    rank = os.environ.get("LOCAL_RANK")
    if name.startswith("cuda:") and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1:
        raise InputError(f"--device {name} is one GPU for several processes; give --device cuda.")
    if rank is None or name not in ("auto", "cuda") or not torch.cuda.is_available():
        return pick_device(name)
    gpus = torch.cuda.device_count()
    if int(rank) >= gpus:
        raise InputError(
            f"process {rank} of this machine has no GPU: the machine has {gpus}. Give torchrun "
            f"--nproc-per-node {gpus}, or train with --device cpu."
        )
    device = torch.device("cuda", int(rank))
    torch.cuda.set_device(device)  # before the first use, or each process claims memory of GPU 0
    return device


def start_processes(device: torch.device) -> tuple[int, int]:
    """Join the other processes that torchrun started; (rank, number of processes).

    Raises
    ------
    InputError
        If processes cannot exchange gradients between such devices.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0, 1
    if device.type not in BACKENDS:
        raise InputError(
            f"several processes cannot train on {device.type}; give --device cpu, or start one."
        )
    # NCCL binds the process to its GPU here; otherwise a barrier has to guess it
    bound = device if device.type == "cuda" else None
    torch.distributed.init_process_group(BACKENDS[device.type], device_id=bound)
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def share_from_first(value: float, world: int, device: torch.device) -> float:
    """Value of the first of `world` processes, so that all of them take the same decision."""
    if world == 1:
        return value
    shared = torch.tensor([value], dtype=torch.float64, device=device)
    torch.distributed.broadcast(shared, 0)
    return float(shared)


class SharedClock:
    """Share of a training that is over by the clock of the first process, the same in all.

    All processes call `share` equally often. Each call but a few continues the last two values of
    the first process, because a broadcast at every step would make the processes wait.
    """

    MOST_CALLS = 25  # between two broadcasts; the first ones come after 1, 2, 4 ... calls

    def __init__(self, world: int, device: torch.device) -> None:
        self.world, self.device = world, device
        self.calls, self.next_after = 0, 0  # since the last broadcast
        self.value, self.per_call = 0.0, 0.0

    def share(self, own: float) -> float:
        """Share of the training that is over; `own` is that by the clock of this process."""
        if self.world == 1:
            return own
        if self.calls == self.next_after and self.value < 1:
            shared = share_from_first(own, self.world, self.device)
            self.per_call = max(0.0, (shared - self.value) / max(self.calls, 1))
            self.per_call = self.per_call if self.next_after else 0.0  # a resumed run begins late
            self.value, self.calls = shared, 0
            self.next_after = min(max(1, 2 * self.next_after), self.MOST_CALLS)
        found = self.value + self.per_call * self.calls
        self.calls += 1
        if found >= 1:  # the end is final, or the processes would go on after it
            self.value, self.per_call = found, 0.0
        return found


def mean_over_processes(value: float, world: int, device: torch.device) -> float:
    """Mean of a number over all processes, the same in each of them."""
    if world == 1:
        return value
    summed = torch.tensor([value], dtype=torch.float64, device=device)
    torch.distributed.all_reduce(summed)
    return float(summed) / world


def share_buffers(network: nn.Module, world: int) -> None:
    """Copy running means and variances of the first process to all; they differ after a step."""
    if world > 1:
        for buffer in network.buffers():
            torch.distributed.broadcast(buffer, 0)


def gather_in_turn(parts: list[Any], world: int) -> list[Any]:
    """Parts of all processes, in which process r has parts r, r + world, r + 2 world, ..."""
    if world == 1:
        return parts
    gathered: list[list[Any]] = [[] for _ in range(world)]
    torch.distributed.all_gather_object(gathered, parts)
    total = sum(len(one) for one in gathered)
    return [gathered[i % world][i // world] for i in range(total)]
