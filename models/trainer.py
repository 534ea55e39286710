"""Training of a network: settings, progress that can be resumed, and the loop over one epoch."""

import json
import math
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
from models.processes import process_device, share_from_first
from models.scoring import SCORES
from psf.errors import InputError

DEFAULT_EPOCHS = 12  # 240,000 patches seen with the default training set; not tuned
# More photon levels than the benchmark has, so that the intervals hold between them too.
ERROR_BAR_CONDITIONS = (
    *CONDITIONS,
    *(Condition(f"{photons} photons", photons) for photons in (30, 300, 3000, 10_000)),
)
WARM_UP = 0.05  # share of the training during which the learning rate rises; not tuned


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All that decides the weights of a trained network."""

    data: Path  # training set, a folder of generate_training_set.py
    # architecture of the network
    model: Literal["spectral_resnet", "resnet18", "resnet34", "resnet50", "resnext50"] = (
        "spectral_resnet"
    )
    max_minutes: float | None = None  # length of the training; or give --epochs
    epochs: int | None = None  # passes over the training patches (default 12)
    batch_size: int = 64  # patches per step and process; batches of 32 scored alike
    learning_rate: float = 2e-3  # highest, after the warm-up; twice this rate scored lower
    weight_decay: float = 0.02  # of weight matrices, as in AdamW; not tuned
    value_weight: float = VALUE_WEIGHT  # weight of the Huber loss beside the cross-entropy
    exposure: Exposure = field(default_factory=Exposure)  # illumination and noise of the patches
    seed: int = 0  # decides initial weights, order of patches and noise
    validation_patches: int | None = None  # use only the first of them (default: all)
    device: str = "auto"  # auto, cpu, cuda or mps
    threads: int | None = None  # CPU threads of this process (default: all)
    bf16: bool | None = None  # mixed precision (default where the processor supports bfloat16)


@dataclass
class Progress:
    """State of a training besides its tensors; a resumed run needs it."""

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0  # spent in training steps
    data_seconds: float = 0.0  # of these, spent reading patches
    patches_seen: int = 0
    best: float = math.inf  # validation loss of the saved weights
    rows: list[dict[str, float]] = field(default_factory=list)  # rows of metrics.csv


class Trainer:
    """A network with its optimiser and data; trains one epoch at a time."""

    def __init__(self, config: Settings, rank: int, world: int) -> None:
        self.config, self.rank, self.world = config, rank, world
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.device = process_device(config.device)
        self.bf16 = prefers_bf16(self.device) if config.bf16 is None else config.bf16
        self.train_set = PatchSet(config.data, "train")
        self.validation_set = PatchSet(config.data, "validation", config.validation_patches)
        self.model = self.train_set.model
        self.scaler = Scaler.from_ranges(self.train_set.config["label_ranges"])
        torch.manual_seed(config.seed)
        outputs = output_count(len(self.model.label_names))
        self.network = build(config.model, outputs).to(self.device)
        self.parallel = in_parallel(self.network, self.device) if world > 1 else self.network
        self.optimizer = build_optimizer(self.network, config.learning_rate, config.weight_decay)
        self.progress = Progress()
        self.steps_per_epoch = self.train_set.count // (config.batch_size * world)
        if not self.steps_per_epoch:
            raise InputError(
                f"{self.train_set.count} training patches are fewer than a batch of "
                f"{config.batch_size} for each of {world} processes; give a smaller --batch-size."
            )

    def autocast(self) -> torch.autocast:
        """Context of the forward pass: bfloat16 if it is switched on."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def done(self) -> float:
        """Share of the training that is over, by time or by steps; the same in all processes."""
        if self.config.max_minutes is None:
            epochs = self.config.epochs or DEFAULT_EPOCHS
            return self.progress.step / (self.steps_per_epoch * epochs)
        done = self.progress.seconds / (60 * self.config.max_minutes)
        return share_from_first(done, self.world, self.device)

    def train_epoch(self, bar: tqdm) -> float:
        """Mean loss of one pass over the training patches, or of a part when the time is up."""
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
        """Loss of one step, with illumination and noise drawn for it."""
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
                "are kept. Give a smaller --learning-rate."
            )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        return value

    def validate(self) -> tuple[float, dict[str, list[float]]]:
        """Validation loss, and R^2 of each parameter by condition.

        The loss is the mean Huber loss of the values over the conditions. It selects the weights.
        """
        losses, scores = [], {}
        for condition in CONDITIONS:
            targets, values, *_ = self.predict_validation(condition)
            losses.append(float(value_loss(values, targets, torch.ones(len(values)))))
            columns = zip(targets.T.numpy(), values.T.numpy(), strict=True)
            scores[condition.name] = [float(SCORES["r2"](t, p)) for t, p in columns]
        return float(np.mean(losses)), scores

    def measure_error_bars(self) -> list[FactorsByNoise]:
        """Factors of the intervals of each parameter, measured on the validation patches."""
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
        """Targets, values and standard deviations (N, P), and noise shares (N,).

        They are in standard units, of the validation patches with content, and computed in float32
        as `Estimator.predict` does.
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


def in_parallel(network: nn.Module, device: torch.device) -> DistributedDataParallel:
    """The network, with gradients averaged over all processes."""
    on_gpu = device.type == "cuda"
    return DistributedDataParallel(network, device_ids=[device] if on_gpu else None)


def learning_rate(progress: float, peak: float) -> float:
    """Learning rate at a progress of 0 to 1: linear warm-up, then half a cosine down to zero."""
    if progress < WARM_UP:
        return peak * (0.02 + 0.98 * progress / WARM_UP)
    share = min((progress - WARM_UP) / (1 - WARM_UP), 1.0)
    return peak * (1 + math.cos(math.pi * share)) / 2


def build_optimizer(network: nn.Module, peak: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019), without decay of biases and normalisations."""
    matrices = [p for p in network.parameters() if p.ndim > 1]
    vectors = [p for p in network.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=peak)


def epoch_order(count: int, seed: int, epoch: int, rank: int = 0, world: int = 1) -> np.ndarray:
    """Shuffled patch indices of one epoch; process `rank` of `world` takes every world-th."""
    order = np.random.default_rng([seed, epoch]).permutation(count)
    return order[: count // world * world][rank::world]


def step_generator(device: torch.device, seed: int, step: int, rank: int = 0) -> torch.Generator:
    """Generator of one step's noise; a resumed run draws the noise it would have drawn anyway."""
    mixed = np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(mixed) % 2**63)


def save_state(
    path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, facts: Mapping[str, Any]
) -> None:
    """Write all that a resumed run needs to one safetensors file; `facts` must suit JSON."""
    tensors = {f"network/{k}": v.contiguous() for k, v in network.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            tensors[f"optimizer/{index}/{key}"] = value.contiguous()
    with whole_file(path) as partial:
        partial.write_bytes(save(tensors, {"facts": json.dumps(facts)}))


def load_state(path: Path, network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Facts that `save_state` wrote; network and optimiser get back their saved state.

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
        raise InputError(f"{path} is damaged ({error}); train again with another --out.") from error
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


def prefers_bf16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16: GPUs from Ampere on, CPUs with AMX or AVX512-BF16.

    Elsewhere bfloat16 is emulated, which is slower than float32.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in checks)
