"""Parts of the training loop: loss, schedule, resumable state, processes."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from psf.files import whole_file

BETA = 0.5  # of the loss below: 0 is the plain likelihood, 1 weights all errors alike
CONTENT_WEIGHT = 0.3  # of the content term against one parameter's likelihood
WARM_UP = 0.05  # share of the training during which the learning rate rises
LOG_VARIANCE_LIMITS = (-12.0, 4.0)


@dataclass(frozen=True)
class Scaler:
    """Labels in units of half their range, centred: what the network regresses."""

    middle: torch.Tensor  # (P,)
    half_range: torch.Tensor  # (P,)

    @staticmethod
    def from_ranges(ranges: list[list[float]]) -> "Scaler":
        """From the label ranges [[low, high], ...] of a data set."""
        low, high = torch.tensor(ranges, dtype=torch.float32).T
        return Scaler((low + high) / 2, (high - low) / 2)

    def scale(self, labels: torch.Tensor) -> torch.Tensor:
        """(N, P) labels in their unit -> standard units."""
        return (labels - self.middle.to(labels)) / self.half_range.to(labels)

    def unscale(self, values: torch.Tensor) -> torch.Tensor:
        """(N, P) standard units -> label unit."""
        return values * self.half_range.to(values) + self.middle.to(values)


def output_count(parameters: int) -> int:
    """Outputs of a network: value and log-variance per parameter, and the content logit."""
    return 2 * parameters + 1


def split_outputs(outputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(N, 2 P + 1) -> values (N, P), log-variances (N, P), content logits (N,)."""
    parameters = (outputs.shape[1] - 1) // 2
    values, log_variances, logits = outputs.split([parameters, parameters, 1], 1)
    return values, log_variances.clamp(*LOG_VARIANCE_LIMITS), logits[:, 0]


def estimation_loss(
    outputs: torch.Tensor, targets: torch.Tensor, has_content: torch.Tensor
) -> torch.Tensor:
    """Gaussian negative log-likelihood of the values plus cross-entropy of the content flag.

    Each sample's likelihood is weighted by its variance to the power BETA, without gradient, so
    that hard patches are not given up early (Seitzer et al., ICLR 2022, Eq. 5). Blank patches
    count for the flag only.
    """
    values, log_variances, logits = split_outputs(outputs)
    likelihood = (values - targets).square() * torch.exp(-log_variances) / 2 + log_variances / 2
    weighted = likelihood * torch.exp(BETA * log_variances.detach())
    mask = has_content[:, None].to(weighted)
    value_loss = (weighted * mask).sum() / mask.sum().clamp(min=1) / targets.shape[1]
    flag_loss = functional.binary_cross_entropy_with_logits(logits, has_content.to(logits))
    return value_loss + CONTENT_WEIGHT * flag_loss


def learning_rate(progress: float, peak: float) -> float:
    """Linear warm-up, then half a cosine to zero; progress runs from 0 to 1."""
    if progress < WARM_UP:
        return peak * (0.02 + 0.98 * progress / WARM_UP)
    share = min((progress - WARM_UP) / (1 - WARM_UP), 1.0)
    return peak * (1 + math.cos(math.pi * share)) / 2


def build_optimizer(network: nn.Module, peak: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019); biases and normalisations do not decay."""
    matrices = [p for p in network.parameters() if p.ndim > 1]
    vectors = [p for p in network.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=peak)


def epoch_order(count: int, seed: int, epoch: int, rank: int = 0, world: int = 1) -> np.ndarray:
    """Shuffled indices of one epoch; each of `world` processes takes every world-th of them."""
    order = np.random.default_rng([seed, epoch]).permutation(count)
    return order[: count // world * world][rank::world]


def step_generator(device: torch.device, seed: int, step: int, rank: int = 0) -> torch.Generator:
    """Generator of one step's noise: a resumed run draws what the first one would have drawn."""
    mixed = np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(mixed) % 2**63)


def save_state(
    path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, facts: Mapping[str, Any]
) -> None:
    """Write all that a resumed run needs to one safetensors file; JSON-able `facts` ride along."""
    tensors = {f"network/{k}": v.contiguous() for k, v in network.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            tensors[f"optimizer/{index}/{key}"] = value.contiguous()
    with whole_file(path) as partial:
        save_file(tensors, partial, {"facts": json.dumps(facts)})


def load_state(path: Path, network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Restore what `save_state` wrote and return its facts."""
    with safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["facts"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    network.load_state_dict(
        {k.removeprefix("network/"): v for k, v in tensors.items() if k.startswith("network/")}
    )
    state = optimizer.state_dict()
    for name, value in tensors.items():
        if name.startswith("optimizer/"):
            _, index, key = name.split("/")
            state["state"].setdefault(int(index), {})[key] = value
    optimizer.load_state_dict(state)
    return facts


def start_processes() -> tuple[int, int]:
    """Join the processes that torchrun started, if it did; (rank, world size)."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return 0, 1
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    torch.distributed.init_process_group(backend)
    return torch.distributed.get_rank(), world


def share_from_first(value: float, world: int) -> float:
    """The first process' value, so that all of them take the same decision."""
    if world == 1:
        return value
    shared = torch.tensor([value], dtype=torch.float64)
    if torch.distributed.get_backend() == "nccl":
        shared = shared.cuda()
    torch.distributed.broadcast(shared, 0)
    return float(shared)


def prefers_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32 there: recent GPUs, CPUs with AMX or AVX512-BF16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    if device.type != "cpu":
        return False
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in checks)
