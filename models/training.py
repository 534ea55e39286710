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
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn
from torch.nn import functional

from psf.errors import InputError
from psf.files import whole_file

BINS = 80  # of each parameter's histogram
SUPPORT = 1.25  # half ranges, the histogram's ends: beyond the label range by a quarter
BLUR = 0.75  # bins, standard deviation of the histogram that is the target
HUBER_WIDTH = 0.25  # half ranges; larger errors count linearly, since some patches say nothing
VALUE_WEIGHT = 5.0  # of the values' error against the histograms' cross-entropy
FLAG_WEIGHT = 0.1  # of the content flag's cross-entropy
WARM_UP = 0.05  # share of the training during which the learning rate rises
SMALLEST_VARIANCE = 1e-6  # half ranges squared; keeps the logarithm finite


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
    """Outputs of a network: the logits of a histogram per parameter, and the content logit."""
    return parameters * BINS + 1


def bin_edges(like: torch.Tensor) -> torch.Tensor:
    """Edges of the histogram's bins, (BINS + 1,) in standard units."""
    return torch.linspace(-SUPPORT, SUPPORT, BINS + 1, device=like.device, dtype=like.dtype)


def histogram_logits(outputs: torch.Tensor) -> torch.Tensor:
    """(N, P BINS + 1) -> (N, P, BINS), unnormalised log probabilities."""
    parameters = (outputs.shape[1] - 1) // BINS
    return outputs[:, :-1].unflatten(1, (parameters, BINS))


def split_outputs(outputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(N, P BINS + 1) -> values (N, P), log-variances (N, P), content logits (N,).

    Values and variances, in standard units, are the mean and the variance of the histograms: of
    what the patch leaves possible.
    """
    edges = bin_edges(outputs)
    middles = (edges[1:] + edges[:-1]) / 2
    shares = histogram_logits(outputs).softmax(2)
    values = (shares * middles).sum(2)
    variances = (shares * (middles - values[..., None]).square()).sum(2)
    return values, variances.clamp(min=SMALLEST_VARIANCE).log(), outputs[:, -1]


def target_histograms(targets: torch.Tensor) -> torch.Tensor:
    """(N, P) standard units -> (N, P, BINS): a normal distribution around each, in bins."""
    blur = BLUR * 2 * SUPPORT / BINS
    below = torch.special.ndtr((bin_edges(targets) - targets[..., None]) / blur)
    shares = below.diff(dim=2)
    return shares / shares.sum(2, keepdim=True)


def value_loss(
    values: torch.Tensor, targets: torch.Tensor, has_content: torch.Tensor
) -> torch.Tensor:
    """Huber loss of values (N, P) in standard units; blank patches do not count."""
    mask = has_content[:, None].to(values)
    errors = functional.smooth_l1_loss(values, targets, beta=HUBER_WIDTH, reduction="none")
    return (errors * mask).sum() / mask.sum().clamp(min=1) / targets.shape[1]


def estimation_loss(
    outputs: torch.Tensor,
    targets: torch.Tensor,
    has_content: torch.Tensor,
    value_weight: float = VALUE_WEIGHT,
) -> torch.Tensor:
    """Cross-entropy of the histograms, Huber loss of their means, cross-entropy of the flag.

    Regression as classification into blurred bins (HL-Gauss: Imani & White 2018) learns fine
    differences faster than a regression does; the error of the mean looks after the patches whose
    histograms are wide, where most of the squared error is.
    """
    values, _, logits = split_outputs(outputs)
    mask = has_content[:, None].to(values)
    # a label far beyond its range lies in no bin: NaN, which no mask takes away
    targets = torch.where(has_content[:, None], targets, torch.zeros_like(targets))
    entropies = -(target_histograms(targets) * histogram_logits(outputs).log_softmax(2)).sum(2)
    fit = (entropies * mask).sum() / mask.sum().clamp(min=1) / targets.shape[1]
    flag_loss = functional.binary_cross_entropy_with_logits(logits, has_content.to(logits))
    value_fit = value_loss(values, targets, has_content)
    return fit + value_weight * value_fit + FLAG_WEIGHT * flag_loss


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
        partial.write_bytes(save(tensors, {"facts": json.dumps(facts)}))


def load_state(path: Path, network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Restore what `save_state` wrote and return its facts.

    Raises
    ------
    InputError
        If the file is truncated.
    """
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["facts"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise InputError(f"{path} is damaged ({error}); train again in a new folder.") from error
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
