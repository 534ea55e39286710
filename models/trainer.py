"""Training of a network: settings, progress that can be resumed, and the loop over one epoch."""

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from models.data import CONDITIONS, Batch, Condition, Exposure, PatchSet, expose, normalise, turn
from models.error_bars import FactorsByNoise, measure_factors_by_noise, noise_share
from models.feeding import Feed, FreshFeed, StoredFeed
from models.loss import (
    VALUE_WEIGHT,
    Scaler,
    estimation_loss,
    output_count,
    split_outputs,
    value_loss,
)
from models.networks import ModelName, build, exact_float32
from models.processes import (
    SharedClock,
    gather_in_turn,
    mean_over_processes,
    process_device,
    share_buffers,
)
from models.scoring import SCORES
from models.step_errors import check_finite, fitting_size, is_compile_error, is_out_of_memory
from psf.errors import InputError

DEFAULT_EPOCHS = 12  # 240,000 patches seen with the default training set; not tuned
# Patches of an epoch with --fresh, as many as the default training set holds. The weights are
# scored and saved after each.
FRESH_EPOCH = 20_480
# Steps between two looks at the losses. A look waits for the GPU; 25 steps are a few seconds at
# most, and a training that diverged is stopped after them.
LOSS_EVERY = 25
VALIDATION_BATCH = 64  # patches; more are no faster on a CPU
# Pixels of recorded validation patches that a GPU keeps, 2 GiB in float32; their noise is drawn on
# the CPU, which takes longer than a short epoch.
MOST_KEPT = 2**29
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
    # simulate new patches for every step, like those in --data, of which only validation is read
    fresh: bool = False
    epoch_patches: int = FRESH_EPOCH  # patches of an epoch with --fresh, rounded to whole steps
    # architecture of the network
    model: ModelName = "spectral_resnet"
    max_minutes: float | None = None  # length of the training; or give --epochs
    epochs: int | None = None  # epochs: of --epoch-patches, or of all in --data (default 12)
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
    compile: bool = False  # compile the network with torch.compile; the first steps take minutes


@dataclass
class Progress:
    """State of a training besides its tensors; a resumed run needs it."""

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0  # spent in training steps
    data_seconds: float = 0.0  # of these, spent waiting for patches
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
        self.validation_set = PatchSet(config.data, "validation", config.validation_patches)
        self.data_config, self.model = self.validation_set.config, self.validation_set.model
        self.scaler = Scaler.from_ranges(self.data_config["label_ranges"]).to(self.device)
        torch.manual_seed(config.seed)
        outputs = output_count(len(self.model.label_names))
        self.network = build(config.model, outputs).to(self.device)
        self.parallel = in_parallel(self.network, self.device) if world > 1 else self.network
        if config.compile:
            # self.network stays as it is, so that the weights are saved with their own names
            self.parallel = torch.compile(self.parallel)
        self.optimizer = build_optimizer(self.network, config.learning_rate, config.weight_decay)
        self.progress = Progress()
        self._kept: dict[Condition, list[Batch]] = {}
        self.clock = SharedClock(world, self.device)
        self.feed = self._open_feed()
        self.steps_per_epoch = self.feed.steps

    def _open_feed(self) -> Feed:
        """Source of the training batches."""
        config = self.config
        common = (config.batch_size, self.device, config.seed, self.rank, self.world)
        if config.fresh:
            return FreshFeed(config.data, self.data_config, config.epoch_patches, *common)
        return StoredFeed(PatchSet(config.data, "train"), *common)

    def close(self) -> None:
        """End what runs in the background."""
        self.feed.close()

    def autocast(self) -> torch.autocast:
        """Context of the forward pass: bfloat16 if it is switched on."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def done(self) -> float:
        """Share of the training that is over, by time or by steps; the same in all processes."""
        if self.config.max_minutes is None:
            epochs = self.config.epochs or DEFAULT_EPOCHS
            return self.progress.step / (self.steps_per_epoch * epochs)
        return self.clock.share(self.progress.seconds / (60 * self.config.max_minutes))

    def train_epoch(self, bar: tqdm) -> float:
        """Mean loss of one epoch, or of a part of it when the time is up."""
        config, progress = self.config, self.progress
        self.parallel.train()
        losses, found = [], []  # numbers, and results of steps that still lie on the device
        with closing(
            self.feed.batches(progress.epoch, progress.step, self.steps_per_epoch)
        ) as batches:
            started = time.perf_counter()
            for _ in range(self.steps_per_epoch):
                done = self.done()
                if done >= 1:
                    break
                found.append(self._next_step(batches, learning_rate(done, config.learning_rate)))
                progress.step += 1
                progress.patches_seen += config.batch_size * self.world
                if len(found) == LOSS_EVERY:
                    losses += check_finite(found, progress.step)
                    found = []
                    show_progress(bar, done, progress.patches_seen, losses[-1])
                bar.update(config.batch_size * self.world)
                now = time.perf_counter()
                progress.seconds, started = progress.seconds + now - started, now
        losses += check_finite(found, progress.step)
        progress.seconds += time.perf_counter() - started
        mean = float(np.mean(losses)) if losses else math.nan
        return mean_over_processes(mean, self.world, self.device)

    def _next_step(self, batches: Iterator[Batch], rate: float) -> torch.Tensor:
        """Result of `train_step` on the next batch.

        Raises
        ------
        InputError
            If the device runs out of memory, or cannot compile the network.
        """
        started = time.perf_counter()
        try:
            batch = next(batches)
            self.progress.data_seconds += time.perf_counter() - started
            return self.train_step(batch, rate)
        except RuntimeError as error:
            if self.config.compile and is_compile_error(error):
                reason = str(error).strip().splitlines()[0]
                raise InputError(
                    f"torch.compile failed ({reason}); leave out --compile."
                ) from error
            if not is_out_of_memory(error):
                raise
        # Only here is the memory of the step free: the error above kept it.
        size = self.config.batch_size
        fits = fitting_size(size, None if self.world > 1 else self._try_step)
        raise InputError(
            f"{self.device} has too little memory for a --batch-size of {size}; "
            + (f"give --batch-size {fits}." if fits else "give another --device.")
        )

    def train_step(self, batch: Batch, rate: float) -> torch.Tensor:
        """Loss and length of the gradient of one step, (2,) on the device.

        Illumination and noise are drawn for it. Nothing here waits for the device.
        """
        generator = step_generator(self.device, self.config.seed, self.progress.step, self.rank)
        loss = self._loss(self.parallel, batch, generator)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        length = nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        return torch.stack([loss.detach(), length])

    def _loss(self, network: nn.Module, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        """Loss of a network on a batch, which is turned and exposed at random."""
        batch = turn(batch, self.model, generator)
        patches = normalise(expose(batch.patches, self.config.exposure, generator))
        with self.autocast():
            outputs = network(patches, batch.cutoff)
        targets = self.scaler.scale(batch.labels)
        weight = self.config.value_weight
        return estimation_loss(outputs.float(), targets, batch.has_content, weight)

    def _try_step(self, size: int) -> None:
        """Compute the gradient for a batch of `size` arbitrary patches, and drop it."""
        edge = self.data_config["patch_size"]
        patches = torch.rand(size, edge, edge, device=self.device)
        labels = torch.zeros(size, len(self.model.label_names), device=self.device)
        optics = self.validation_set.optics[:1].expand(size, -1)
        batch = Batch(patches, labels, torch.ones(size, dtype=torch.bool), optics).to(self.device)
        self._loss(self.network, batch, step_generator(self.device, 0, 0)).backward()
        self.optimizer.zero_grad(set_to_none=True)

    def validate(self) -> tuple[float, dict[str, list[float]]]:
        """Validation loss, and R^2 of each parameter by condition; the same in all processes.

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
        as `Estimator.predict` does. The processes share the patches, and each gets all results.
        """
        self.network.eval()
        share_buffers(self.network, self.world)
        parts = []
        for batch in self._recorded(condition):
            patches = normalise(batch.patches)
            with exact_float32(self.device):
                outputs = self.network(patches, batch.cutoff).float()
            values, log_variances, _ = split_outputs(outputs)
            columns = (self.scaler.scale(batch.labels), values, (log_variances / 2).exp())
            parts.append((*columns, noise_share(patches), batch.has_content))
        # copied together at the end: a copy waits for the device
        parts = [tuple(column.cpu() for column in part) for part in parts]
        *columns, has_content = (
            torch.cat(c) for c in zip(*gather_in_turn(parts, self.world), strict=True)
        )
        return tuple(column[has_content] for column in columns)

    def _recorded(self, condition: Condition) -> Iterable[Batch]:
        """Validation patches of this process; a GPU keeps those that it needs after every epoch."""
        recorded = self.validation_set.recorded(
            condition, VALIDATION_BATCH, self.device, self.rank, self.world
        )
        values = len(CONDITIONS) * self.validation_set.count * self.data_config["patch_size"] ** 2
        if self.device.type == "cpu" or condition not in CONDITIONS or values > MOST_KEPT:
            return recorded
        if condition not in self._kept:
            self._kept[condition] = list(recorded)
        return self._kept[condition]


def show_progress(bar: tqdm, done: float, patches_seen: int, loss: float) -> None:
    """Let the bar of a training show the loss, and know how many patches are to come."""
    if done > 0:
        bar.total = round(patches_seen / done)
    bar.set_postfix(loss=f"{loss:.3g}", refresh=False)


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


def step_generator(device: torch.device, seed: int, step: int, rank: int = 0) -> torch.Generator:
    """Generator of one step's noise; a resumed run draws the noise it would have drawn anyway."""
    mixed = np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(mixed) % 2**63)


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
