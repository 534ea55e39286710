"""Train a network on simulated patches: data/NAME -> runs/NAME/.

    python train.py --data data/zernike1d --out runs/zernike1d --fresh --max-minutes 60

With --fresh every patch is simulated for its step and seen once; --data then gives the settings
and the validation patches. Without --fresh the training patches stored in --data are used.
Writes model.safetensors (the weights with the lowest validation loss), config.json with the error
bars measured on the validation split, README.md (model card), metrics.csv and curves.png.
The same command continues a run that was stopped. With --epochs it ends with the weights of a run
without a stop; with --max-minutes it trains for the time that is left.
Several GPUs: torchrun --nproc-per-node 2 train.py ...
"""

import platform
import sys
import time
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from common.command import keep_freed_memory, next_command, run
from common.files import claim_folder, read_json, run_record, write_csv, write_json
from common.output import hold_folder
from common.pictures import draw_curves
from models import error_bars
from models.checkpoint import load_estimator, save_checkpoint
from models.data import CONDITIONS
from models.processes import process_device, start_processes
from models.run_state import load_state, save_state
from models.trainer import Progress, Settings, Trainer
from psf.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Settings of a training run."""

    out: Path  # folder to write, e.g. runs/zernike1d
    start_from: Path | None = None  # checkpoint to begin with: a folder, or a shipped name
    resume: bool = False  # accept a finished run in --out; a stopped one goes on in any case
    tensorboard: bool = False  # also write TensorBoard events (needs the package tensorboard)


# Settings that must be above 0 if they are given, and settings that must not be below 0.
POSITIVE = ("max_minutes", "epochs", "batch_size", "learning_rate", "threads", "validation_patches")
POSITIVE += ("epoch_patches",)
NOT_NEGATIVE = ("seed", "value_weight")


def describe(config: Config, data: dict[str, Any]) -> dict[str, Any]:
    """Content of run_config.json; a resumed run must have the same."""
    fixed = ("max_minutes", "epochs", "batch_size", "learning_rate", "weight_decay", "seed")
    fixed += ("value_weight", "validation_patches")
    if config.fresh:
        fixed += ("epoch_patches",)
    made = config.data / "run.json"
    return {
        "data_command": read_json(made, "training set")["command"] if made.exists() else "",
        "architecture": config.model,
        "exposure": asdict(config.exposure),
        "settings": {"fresh": config.fresh} | {name: getattr(config, name) for name in fixed},
        "start_from": str(config.start_from or ""),
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
            epochs=progress.patches_seen / trainer.feed.epoch_patches,
            patches_seen=progress.patches_seen,
            fresh=trainer.config.fresh,
            processor=processor_name(trainer.device),
            processes=trainer.world,
            bf16=trainer.bf16,
        ),
    }


def processor_name(device: torch.device) -> str:
    """Name of the GPU, or of the CPU with the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{threads} thread{'s' if threads > 1 else ''} of {cpu_name()}"


def cpu_name() -> str:
    """Name of the CPU on Linux, its architecture elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def record_epoch(
    trainer: Trainer, description: dict[str, Any], train_loss: float, writer: Any
) -> None:
    """Validate, save the weights if they are the best, and write metrics, curves and state.

    All processes validate; the first one writes.
    """
    progress, out = trainer.progress, trainer.config.out
    loss, scores = trainer.validate()
    if trainer.rank > 0:
        return
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
    write_csv(out / "metrics.csv", pd.DataFrame(progress.rows), "%.5g")
    draw_curves(out / "curves.png", pd.DataFrame(progress.rows))
    save_state(out / "state.safetensors", trainer.network, trainer.optimizer, asdict(progress))
    if writer is not None:
        for name, value in row.items():
            writer.add_scalar(tensorboard_tag(name), value, progress.step)
        writer.flush()


def tensorboard_tag(column: str) -> str:
    """Name in TensorBoard of a column of metrics.csv; what stands before the slash is a group."""
    if column.startswith("r2_"):
        parameter, _, condition = column.rpartition("_")
        return f"{parameter}/{condition}".replace(" ", "_")
    losses = {"train_loss": "loss/training", "validation_loss": "loss/validation"}
    return losses.get(column, f"run/{column}")


def epoch_line(progress: Progress, seconds_left: float) -> str:
    """What the last epoch reached, as a line for the terminal."""
    last, before = progress.rows[-1], [{}, *progress.rows][-2]
    patches = last["patches_seen"] - before.get("patches_seen", 0)
    minutes = last["minutes"] - before.get("minutes", 0.0)
    scores = []
    for condition in CONDITIONS:
        found = [value for name, value in last.items() if name.endswith(f"_{condition.name}")]
        if found and not condition.bits:
            scores.append(f"{condition.name} {np.mean(found):.3f}")
    best = " (best)" if last["validation_loss"] == progress.best else ""
    return (
        f"epoch {last['epoch']}: R² {', '.join(scores)}; loss {last['train_loss']:.3f}, "
        f"validation {last['validation_loss']:.4f}{best}; {patches / max(minutes, 1e-9) / 60:.0f} "
        f"patches/s, {duration(seconds_left)} left"
    )


def duration(seconds: float) -> str:
    """A time as hours and minutes, or as seconds below two minutes."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:02.0f} min"


def add_error_bars(trainer: Trainer) -> None:
    """Measure the error bars of the saved weights in all processes, and add them to config.json."""
    best = load_estimator(trainer.config.out, trainer.device)
    trainer.network.load_state_dict(best.network.state_dict())
    found = error_bars.to_config(trainer.measure_error_bars())
    if trainer.rank == 0:
        save_checkpoint(trainer.config.out, trainer.network, {**best.config, "calibration": found})


def open_writer(config: Config) -> Any:
    """TensorBoard writer if --tensorboard is given, else None."""
    if not config.tensorboard:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError(
            "--tensorboard needs a package that is missing: "
            "pip install -r requirements-tensorboard.txt."
        ) from error
    return SummaryWriter(str(config.out / "tensorboard"))


def prepare(config: Config, trainer: Trainer) -> dict[str, Any]:
    """Description of the run; claims the output folder, or loads the run that is in it."""
    description = describe(config, trainer.data_config)
    state = config.out / "state.safetensors"
    if trainer.rank == 0:
        if (config.out / "run.json").exists() and not config.resume:
            raise InputError(f"{config.out} holds a finished run; give another --out.")
        claim_folder(config.out, description, "training run", "run_config.json")
    if config.start_from is not None:
        start_from(config.start_from, trainer)
    if state.exists():
        facts = load_state(state, trainer.network, trainer.optimizer)
        trainer.progress = Progress(**facts)
        check_processes(trainer)
        if trainer.rank == 0:
            print(f"resumed after epoch {trainer.progress.epoch}")
    return description


def check_processes(trainer: Trainer) -> None:
    """Refuse another number of processes than before, with which the epochs have other steps.

    A training of --max-minutes may change it, since it counts no steps.
    """
    config, progress = trainer.config, trainer.progress
    before = progress.patches_seen // max(progress.step * config.batch_size, 1)
    if config.max_minutes is None and progress.step and before != trainer.world:
        raise InputError(
            f"{config.out} was trained by {before} process{'es' if before > 1 else ''}, and now "
            f"there are {trainer.world}; give torchrun --nproc-per-node {before}, or another --out."
        )


def start_from(checkpoint: Path, trainer: Trainer) -> None:
    """Load the weights of a checkpoint, e.g. to adapt a shipped one to other optics.

    Of a network of another architecture, the weights of the same name and shape are loaded.

    Raises
    ------
    InputError
        If it is of another PSF model, or nothing of it fits.
    """
    estimator = load_estimator(checkpoint, trainer.device)
    weights, own = estimator.network.state_dict(), trainer.network.state_dict()
    fitting = {k: v for k, v in weights.items() if k in own and own[k].shape == v.shape}
    found = (estimator.config["architecture"], estimator.psf_model.name)
    asked = (trainer.config.model, trainer.model.name)
    if found[1] != asked[1] or not any(v.ndim > 1 for v in fitting.values()):
        raise InputError(
            f"{checkpoint} is a {found[0]} for {found[1]}; this training is of a {asked[0]} for "
            f"{asked[1]}. Give another --start-from, --model or --data."
        )
    trainer.network.load_state_dict(fitting, strict=False)
    if len(fitting) < len(own) and trainer.rank == 0:
        print(f"{len(fitting)} of {len(own)} arrays of weights are those of {checkpoint}")


def check_settings(config: Config) -> None:
    """Refuse numbers that no training can use."""
    if config.max_minutes is not None and config.epochs is not None:
        raise InputError("give --max-minutes or --epochs, not both.")
    for name in POSITIVE:
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise InputError(f"--{name.replace('_', '-')} is {value}; it must be positive.")
    for name in NOT_NEGATIVE:
        value = getattr(config, name)
        if not value >= 0:
            raise InputError(f"--{name.replace('_', '-')} is {value}; it cannot be negative.")


def finish(trainer: Trainer) -> None:
    """Add the error bars to the checkpoint, and print where the results are."""
    config, progress = trainer.config, trainer.progress
    add_error_bars(trainer)
    if trainer.rank > 0:
        return
    rate = progress.patches_seen / max(progress.seconds, 1e-9)
    share = progress.data_seconds / max(progress.seconds, 1e-9)
    print(
        f"{progress.patches_seen:,} patches in {progress.seconds / 60:.1f} minutes: "
        f"{rate:.0f} per second, {share:.1%} of the time waiting for patches"
    )
    write_json(config.out / "run.json", run_record(minutes=progress.seconds / 60))
    print(f"wrote {config.out} (look at {config.out / 'curves.png'})")
    folders = {"--checkpoints": config.out, "--data": config.data}
    folders["--out"] = Path("results") / config.out.name
    print(next_command("benchmark_models.py", *folders.items()))


def main(config: Config) -> None:
    """Train until the time or the epochs are over."""
    check_settings(config)
    keep_freed_memory()
    rank, world = start_processes(process_device(config.device))
    with hold_folder(config.out) if rank == 0 else nullcontext():
        with closing(Trainer(config, rank, world)) as trainer:
            train(trainer)
    if world > 1:
        torch.distributed.destroy_process_group()


def introduction(trainer: Trainer) -> str:
    """Network, processor and training patches, as a line for the terminal."""
    weights = sum(p.numel() for p in trainer.network.parameters())
    count, kind = trainer.feed.epoch_patches, "fresh" if trainer.config.fresh else "stored"
    return (
        f"{trainer.config.model}, {weights:,} weights, on {processor_name(trainer.device)}"
        f"{', bf16' if trainer.bf16 else ''}; {count:,} {kind} patches per epoch"
    )


def train(trainer: Trainer) -> None:
    """Train in one of several processes; the first one writes."""
    config, is_first = trainer.config, trainer.rank == 0
    description = prepare(config, trainer)
    progress = trainer.progress
    writer = open_writer(config) if is_first else None
    if is_first:
        print(introduction(trainer))
    if (done := trainer.done()) < 1:
        trainer.feed.begin(progress.step)
    started = time.perf_counter()
    before = done
    # The bar counts the whole run. Where nobody watches, a line a minute is enough.
    interval = 1 if sys.stderr.isatty() else 60
    with tqdm(
        initial=progress.patches_seen, unit="patch", disable=not is_first, mininterval=interval
    ) as bar:
        while done < 1:
            bar.set_description(f"epoch {progress.epoch + 1}", refresh=False)
            train_loss = trainer.train_epoch(bar)
            progress.epoch += 1
            done = trainer.done()
            bar.total = round(progress.patches_seen / done)
            record_epoch(trainer, description, train_loss, writer)
            if is_first:
                share = (1 - min(done, 1)) / max(done - before, 1e-9)
                bar.write(epoch_line(progress, share * (time.perf_counter() - started)))
            if trainer.world > 1:
                torch.distributed.barrier()
    finish(trainer)


if __name__ == "__main__":
    run(Config, main, __doc__)
