"""The training loop: settings, resumable progress, and one epoch at a time."""

import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from common.command import pick_device
from common.files import whole_file
from models.data import CONDITIONS, Batch, Condition, Exposure, PatchSet, expose, normalise, turn
from models.error_bars import FactorsByNoise, measure_factors_by_noise, noise_share
from models.loss import (
    VALUE_WEIGHT,
    Scaler,
    estimation_loss,
    output_count,
    split_outputs,
    value_loss,
)
from models.networks import build
from models.scoring import SCORES
from psf.errors import InputError

DEFAULT_EPOCHS = 12
# Besides the benchmark's: intervals must hold at every photon level, not at three of them.
ERROR_BAR_CONDITIONS = (
    *CONDITIONS,
    *(Condition(f"{photons} photons", photons) for photons in (30, 300, 3000, 10_000)),
)
WARM_UP = 0.05  # share of the training during which the learning rate rises


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides the weights that come out of a training."""

    data: Path  # folder of generate_training_set.py
    model: Literal["spectral_resnet", "resnet18", "resnet34", "resnet50", "resnext50"] = (
        "spectral_resnet"
    )
    max_minutes: float | None = None  # train this long; or
    epochs: int | None = None  # train this many passes over the data (default 12)
    batch_size: int = 64  # per process
    learning_rate: float = 2e-3  # peak, after the warm-up
    weight_decay: float = 0.02
    value_weight: float = VALUE_WEIGHT  # of the values' error against the cross-entropy
    exposure: Exposure = field(default_factory=Exposure)  # light and noise of training patches
    seed: int = 0
    validation_patches: int | None = None  # use the first of them; default all
    device: str = "auto"  # auto, cpu, cuda, mps
    threads: int | None = None  # CPU threads; default all; two runs of one thread each do more
    bf16: bool | None = None  # mixed precision; default where the processor is fast at it


@dataclass
class Progress:
    """What a resumed run has to know besides the tensors."""

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0  # spent in training steps
    data_seconds: float = 0.0  # of them, reading patches
    patches_seen: int = 0
    best: float = math.inf  # validation loss of the saved weights
    rows: list[dict[str, float]] = field(default_factory=list)  # of metrics.csv


class Trainer:
    """A network, its optimiser and its data; one epoch at a time."""

    def __init__(self, config: Settings, rank: int, world: int) -> None:
        self.config, self.rank, self.world = config, rank, world
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.device = pick_device(config.device)
        self.bf16 = prefers_bf16(self.device) if config.bf16 is None else config.bf16
        self.train_set = PatchSet(config.data, "train")
        self.validation_set = PatchSet(config.data, "validation", config.validation_patches)
        self.model = self.train_set.model
        self.scaler = Scaler.from_ranges(self.train_set.config["label_ranges"])
        torch.manual_seed(config.seed)
        outputs = output_count(len(self.model.label_names))
        self.network = build(config.model, outputs).to(self.device)
        self.parallel = DistributedDataParallel(self.network) if world > 1 else self.network
        self.optimizer = build_optimizer(self.network, config.learning_rate, config.weight_decay)
        self.progress = Progress()
        self.steps_per_epoch = self.train_set.count // (config.batch_size * world)
        if not self.steps_per_epoch:
            raise InputError(
                f"{self.train_set.count} training patches are fewer than a batch of "
                f"{config.batch_size} for each of {world} processes; lower --batch-size."
            )

    def autocast(self) -> torch.autocast:
        """Mixed precision, where it is switched on."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def done(self) -> float:
        """Share of the training that is over, by the clock or by the steps; one for all ranks."""
        if self.config.max_minutes is None:
            epochs = self.config.epochs or DEFAULT_EPOCHS
            return self.progress.step / (self.steps_per_epoch * epochs)
        return share_from_first(self.progress.seconds / (60 * self.config.max_minutes), self.world)

    def train_epoch(self, bar: tqdm) -> float:
        """One pass over the training patches, or less when the time is up; the mean loss."""
        config, progress = self.config, self.progress
        self.parallel.train()
        order = epoch_order(
            self.train_set.count, config.seed, progress.epoch, self.rank, self.world
        )
        losses = []
        for start in range(0, self.steps_per_epoch * config.batch_size, config.batch_size):
            done = self.done()
            if done >= 1:
                break
            started = time.perf_counter()
            batch = self.train_set.batch(order[start : start + config.batch_size], self.device)
            progress.data_seconds += time.perf_counter() - started
            losses.append(self.train_step(batch, learning_rate(done, config.learning_rate)))
            progress.seconds += time.perf_counter() - started
            progress.step += 1
            progress.patches_seen += len(batch.labels) * self.world
            bar.update(len(batch.labels) * self.world)
        return float(np.mean(losses)) if losses else math.nan

    def train_step(self, batch: Batch, rate: float) -> float:
        """One step on fresh light and noise; the loss."""
        generator = step_generator(self.device, self.config.seed, self.progress.step, self.rank)
        batch = turn(batch, self.model, generator)
        patches = normalise(expose(batch.patches, self.config.exposure, generator))
        with self.autocast():
            outputs = self.parallel(patches, batch.cutoff)
        targets = self.scaler.scale(batch.labels)
        weight = self.config.value_weight
        loss = estimation_loss(outputs.float(), targets, batch.has_content, weight)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise InputError(
                f"the loss became {value} at step {self.progress.step}; the best weights so far "
                "are kept. Try a smaller --learning-rate."
            )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        return value

    def validate(self) -> tuple[float, dict[str, list[float]]]:
        """Score the validation split: mean value loss over the conditions, R^2 of each parameter.

        The first selects the weights.
        """
        losses, scores = [], {}
        for condition in CONDITIONS:
            targets, values, *_ = self.predict_validation(condition)
            losses.append(float(value_loss(values, targets, torch.ones(len(values)))))
            columns = zip(targets.T.numpy(), values.T.numpy(), strict=True)
            scores[condition.name] = [float(SCORES["r2"](t, p)) for t, p in columns]
        return float(np.mean(losses)), scores

    def measure_error_bars(self) -> list[FactorsByNoise]:
        """Measure the factors of the intervals of each parameter on the validation split."""
        found = [self.predict_validation(condition) for condition in ERROR_BAR_CONDITIONS]
        targets, values, deviations, noise = (
            torch.cat(c).double() for c in zip(*found, strict=True)
        )
        columns = zip((values - targets).numpy().T, deviations.numpy().T, strict=True)
        return [measure_factors_by_noise(e, d, noise.numpy()) for e, d in columns]

    @torch.inference_mode()
    def predict_validation(
        self, condition: Condition
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Targets, values, standard deviations (N, P), standard units; shares of noise (N,).

        Of the patches with content.

        Computed in float32, as `Estimator.predict` computes.
        """
        self.network.eval()
        parts = []
        for batch in self.validation_set.recorded(condition, 64, self.device):
            patches = normalise(batch.patches)
            values, log_variances, _ = split_outputs(self.network(patches, batch.cutoff).float())
            columns = (self.scaler.scale(batch.labels), values, (log_variances / 2).exp())
            columns += (noise_share(patches),)
            parts.append([c[batch.has_content].cpu() for c in columns])
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))


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
