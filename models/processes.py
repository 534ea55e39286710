"""Training in several processes: the device of each one, and what all of them must agree on.

torchrun starts one process per GPU and numbers those of one machine by LOCAL_RANK.
"""

import os

import torch

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
