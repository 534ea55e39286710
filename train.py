"""Train a network on simulated patches: data/NAME -> runs/NAME/.

    python train.py --data data/zernike1d --out runs/zernike1d --max-minutes 4

Writes model.safetensors (best weights by validation), config.json, README.md (model card),
metrics.csv and curves.png. `--resume` goes on after a kill: with --epochs onto the same weights as
without the kill; with --max-minutes, whose schedule follows the clock, with the time left. Several
processes: torchrun --nproc-per-node 2 train.py ...
"""

import math
import platform
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from models import build
from models.checkpoint import save_checkpoint
from models.data import CONDITIONS, Batch, Exposure, PatchSet, expose, normalise, turn
from models.metrics import SCORES
from models.training import (
    Scaler,
    build_optimizer,
    epoch_order,
    estimation_loss,
    learning_rate,
    load_state,
    output_count,
    prefers_bf16,
    save_state,
    share_from_first,
    split_outputs,
    start_processes,
    step_generator,
)
from psf.command import pick_device, run
from psf.errors import InputError
from psf.files import claim_folder, run_record, whole_file, write_json
from psf.pictures import draw_curves

DEFAULT_EPOCHS = 12


@dataclass(frozen=True)
class Config:
    """Settings of a training run."""

    data: Path  # folder of generate_training_set.py
    out: Path  # folder to write, e.g. runs/zernike1d
    model: Literal["spectral_resnet", "resnet18", "resnet34", "resnet50", "resnext50"] = (
        "spectral_resnet"
    )
    max_minutes: float | None = None  # train this long; or
    epochs: int | None = None  # train this many passes over the data (default 12)
    batch_size: int = 64  # per process
    learning_rate: float = 2e-3  # peak, after the warm-up
    weight_decay: float = 0.02
    exposure: Exposure = field(default_factory=Exposure)  # light and noise of training patches
    seed: int = 0
    device: str = "auto"  # auto, cpu, cuda, mps
    bf16: bool | None = None  # mixed precision; default where the processor is fast at it
    resume: bool = False  # go on where a killed run stopped
    tensorboard: bool = False  # also write TensorBoard events (needs the package tensorboard)


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

    def __init__(self, config: Config, rank: int, world: int) -> None:
        self.config, self.rank, self.world = config, rank, world
        self.device = pick_device(config.device)
        self.bf16 = prefers_bf16(self.device) if config.bf16 is None else config.bf16
        self.train_set = PatchSet(config.data, "train")
        self.validation_set = PatchSet(config.data, "validation")
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
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            outputs = self.parallel(patches, batch.cutoff)
        loss = estimation_loss(outputs.float(), self.scaler.scale(batch.labels), batch.has_content)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise InputError(
                f"the loss became {value} at step {self.progress.step}; the best weights so far "
                f"are in {self.config.out}. Try a smaller --learning-rate."
            )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        return value

    @torch.inference_mode()
    def validate(self) -> tuple[float, dict[str, list[float]]]:
        """Mean validation loss over the conditions, and R^2 of each parameter per condition."""
        self.network.eval()
        losses, scores = [], {}
        for condition in CONDITIONS:
            truth, predicted, loss = [], [], []
            for batch in self.validation_set.recorded(condition, 64, self.device):
                outputs = self.network(normalise(batch.patches), batch.cutoff).float()
                targets = self.scaler.scale(batch.labels)
                loss.append(float(estimation_loss(outputs, targets, batch.has_content)))
                truth.append(batch.labels[batch.has_content].cpu())
                values = self.scaler.unscale(split_outputs(outputs)[0])
                predicted.append(values[batch.has_content].cpu())
            losses.append(np.mean(loss))
            columns = zip(torch.cat(truth).T.numpy(), torch.cat(predicted).T.numpy(), strict=True)
            scores[condition.name] = [float(SCORES["r2"](t, p)) for t, p in columns]
        return float(np.mean(losses)), scores


def describe(config: Config, data: dict[str, Any]) -> dict[str, Any]:
    """Content of run_config.json: what a resumed run must share with the one it goes on with."""
    fixed = ("max_minutes", "epochs", "batch_size", "learning_rate", "weight_decay", "seed")
    return {
        "architecture": config.model,
        "exposure": asdict(config.exposure),
        "settings": {name: getattr(config, name) for name in fixed},
        "data": data,
    }


def checkpoint_config(
    trainer: Trainer, description: dict[str, Any], scores: dict[str, list[float]]
) -> dict[str, Any]:
    """Content of the checkpoint's config.json."""
    data, progress = description["data"], trainer.progress
    copied = ("psf_model", "label_names", "label_unit", "label_ranges", "patch_size")
    return {
        "kind": "checkpoint",
        **{name: data[name] for name in copied},
        "optics_limits": data["optics_limits"],
        **description,
        "validation": scores,
        "run": run_record(
            minutes=progress.seconds / 60,
            epochs=progress.patches_seen / trainer.train_set.count,
            patches_seen=progress.patches_seen,
            processor=processor_name(trainer.device),
            processes=trainer.world,
            bf16=trainer.bf16,
        ),
    }


def processor_name(device: torch.device) -> str:
    """What did the work, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} threads of {platform.processor() or platform.machine()}"


def record_epoch(
    trainer: Trainer, description: dict[str, Any], train_loss: float, writer: Any
) -> None:
    """Validate, keep the weights if they are the best, write metrics, curves and state."""
    progress, out = trainer.progress, trainer.config.out
    loss, scores = trainer.validate()
    row = {"epoch": progress.epoch, "minutes": progress.seconds / 60}
    row |= {"patches_seen": progress.patches_seen, "train_loss": train_loss}
    row |= {"validation_loss": loss}
    for condition, values in scores.items():
        names = trainer.model.label_names
        row |= {f"r2_{n}_{condition}": v for n, v in zip(names, values, strict=True)}
    progress.rows.append(row)
    if loss < progress.best:
        progress.best = loss
        save_checkpoint(out, trainer.network, checkpoint_config(trainer, description, scores))
    with whole_file(out / "metrics.csv") as partial:
        pd.DataFrame(progress.rows).to_csv(partial, index=False, float_format="%.5g")
    draw_curves(out / "curves.png", pd.DataFrame(progress.rows))
    save_state(out / "state.safetensors", trainer.network, trainer.optimizer, asdict(progress))
    if writer is not None:
        for name, value in row.items():
            writer.add_scalar(name, value, progress.step)


def open_writer(config: Config) -> Any:
    """TensorBoard writer, if asked for."""
    if not config.tensorboard:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError("--tensorboard needs the package: pip install tensorboard.") from error
    return SummaryWriter(str(config.out / "tensorboard"))


def prepare(config: Config, trainer: Trainer) -> dict[str, Any]:
    """Claim the output folder, or take up the run that is in it."""
    description = describe(config, trainer.train_set.config)
    state = config.out / "state.safetensors"
    if trainer.rank == 0:
        if state.exists() and not config.resume:
            raise InputError(f"{config.out} holds a run; add --resume to go on, or choose another.")
        claim_folder(config.out, description, "training run", "run_config.json")
    if config.resume and state.exists():
        facts = load_state(state, trainer.network, trainer.optimizer)
        trainer.progress = Progress(**facts)
        print(f"resumed after epoch {trainer.progress.epoch}")
    return description


def main(config: Config) -> None:
    """Train until the time or the epochs are over."""
    if config.max_minutes is not None and config.epochs is not None:
        raise InputError("give --max-minutes or --epochs, not both.")
    for name in ("max_minutes", "epochs", "batch_size", "learning_rate"):
        if not (getattr(config, name) or 1) > 0:
            raise InputError(f"--{name.replace('_', '-')} must be positive.")
    rank, world = start_processes()
    trainer = Trainer(config, rank, world)
    description = prepare(config, trainer)
    progress, writer = trainer.progress, open_writer(config) if rank == 0 else None
    if rank == 0:
        weights = sum(p.numel() for p in trainer.network.parameters())
        print(
            f"{config.model}, {weights:,} weights, on {processor_name(trainer.device)}"
            f"{', bf16' if trainer.bf16 else ''}; {trainer.train_set.count:,} patches"
        )
    while trainer.done() < 1:
        with tqdm(
            total=trainer.steps_per_epoch * config.batch_size * world,
            unit="patch",
            desc=f"epoch {progress.epoch + 1}",
            disable=rank > 0,
            mininterval=1,
        ) as bar:
            train_loss = trainer.train_epoch(bar)
        progress.epoch += 1
        if rank == 0:
            record_epoch(trainer, description, train_loss, writer)
            last = progress.rows[-1]
            print("  ".join(f"{k} {v:.4g}" for k, v in last.items()))
        if world > 1:
            torch.distributed.barrier()
    if rank == 0:
        rate = progress.patches_seen / max(progress.seconds, 1e-9)
        share = progress.data_seconds / max(progress.seconds, 1e-9)
        print(
            f"{progress.patches_seen:,} patches in {progress.seconds / 60:.1f} minutes: "
            f"{rate:.0f} per second, {share:.1%} of the time reading data"
        )
        write_json(config.out / "run.json", run_record(minutes=progress.seconds / 60))
        print(f"wrote {config.out} (look at {config.out / 'curves.png'})")
        print(
            f"next: python benchmark_models.py --checkpoints {config.out} "
            f"--data {config.data} --out results/{config.out.name}"
        )
    if world > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    run(Config, main, __doc__)
