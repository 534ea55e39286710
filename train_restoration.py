"""Train the network of the learned restoration on simulated images: -> runs/NAME/.

    torchrun --nproc-per-node 2 train_restoration.py --out runs/restoration --threads 1

Objects are crops of built-in and fresh procedural images. They are blurred by PSFs that vary over
the image, exposed, and restored with maps that are as wrong as estimated ones. Writes
restoration.safetensors (the weights with the highest gain on validation images), config.json,
README.md (model card) and metrics.csv. The same command continues a run that was stopped.
"""

import math
import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from common.command import keep_freed_memory, next_command, run
from common.files import claim_folder, run_record, write_csv, write_json
from common.output import hold_folder
from models.processes import SharedClock, process_device, start_processes
from models.run_state import load_state, save_state
from models.trainer import build_optimizer, learning_rate, prefers_bf16
from psf.errors import InputError
from restoration import problems
from restoration.learned import KIND, save_prior
from restoration.learned_training import (
    Exercise,
    average_gradients,
    draw_exercises,
    loss_of,
    on_device,
    sources_of,
    validate,
    validation_exercises,
)
from restoration.step_network import StepNetwork
from restoration.unrolled import CHANNELS, START_STEPS, STEPS, Design
from simulation.sources import Source
from simulation.stream import RENEWAL, ObjectStream

DEFAULT_STEPS = 4000  # an hour in two processes of one thread each
SAVE_EVERY = 200  # steps between validations, after which a stopped run goes on


@dataclass(frozen=True)
class Config:
    """Settings of the training."""

    out: Path  # folder to write
    design: Design = "image"  # what the network corrects: the object, or the ratio of the images
    max_minutes: float | None = None  # length of the training; or give --steps
    steps: int | None = None  # length of the training (default 4000)
    batch_size: int = 8  # images per step and process
    learning_rate: float = 1.5e-3  # highest, after the warm-up
    weight_decay: float = 0.01  # of weight matrices
    images: str = "mixed"  # sources of the objects: builtin, procedural, mixed, or a folder
    seed: int = 0  # of weights and images
    device: str = "auto"  # auto, cpu, cuda, mps
    threads: int | None = None  # CPU threads of each process (default: all)


def describe(config: Config) -> dict[str, Any]:
    """Content of run_config.json; a resumed run must have the same."""
    fixed = ("design", "max_minutes", "steps", "batch_size", "learning_rate", "weight_decay")
    return {name: getattr(config, name) for name in (*fixed, "images", "seed")}


@dataclass
class Progress:
    """State of a training besides its tensors."""

    step: int = 0
    seconds: float = 0.0
    best: float = -math.inf  # gain on the validation images, dB
    rows: Sequence[dict[str, float]] = ()


class Training:
    """A network with its optimiser and its images."""

    def __init__(self, config: Config, sources: dict[str, list[Source]], rank: int, world: int):
        self.config, self.rank, self.world = config, rank, world
        self.device = process_device(config.device)
        torch.manual_seed(config.seed)
        network = StepNetwork(CHANNELS, STEPS).to(self.device, memory_format=torch.channels_last)
        self.network = network
        self.optimizer = build_optimizer(network, config.learning_rate, config.weight_decay)
        sizes = problems.CROP_PX, problems.IMAGE_PX
        cpu = torch.device("cpu")  # a crop is processed on its own, with SciPy in parts
        self.stream = ObjectStream(sources["train"], config.seed, sizes, cpu, rank, world)
        found = validation_exercises(sources["validation"], config.batch_size, config.seed)
        self.validation = [[on_device(one, self.device) for one in batch] for batch in found]
        self.progress, self.clock = Progress(), SharedClock(world, self.device)
        self.autocast = torch.autocast(
            self.device.type, torch.bfloat16, enabled=prefers_bf16(self.device)
        )

    def close(self) -> None:
        """End what runs in the background."""
        self.stream.close()

    def done(self) -> float:
        """Share of the training that is over, the same in all processes."""
        config, progress = self.config, self.progress
        if config.max_minutes is None:
            return progress.step / (config.steps or DEFAULT_STEPS)
        return self.clock.share(progress.seconds / (60 * config.max_minutes))

    def draw(self) -> list[Exercise]:
        """Images of the next step, which depend on its number only."""
        count, step = self.config.batch_size, self.progress.step
        self.stream.renew(step * count // RENEWAL)
        rng = np.random.default_rng([self.config.seed, self.rank, 1, step])
        exercises = draw_exercises(self.stream.bank, count, rng)
        return [on_device(one, self.device) for one in exercises]

    def step(self, done: float) -> float:
        """Loss of one step."""
        exercises = self.draw()
        with self.autocast:
            loss = loss_of(self.network, exercises, self.config.design)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(done, self.config.learning_rate)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(self.network, self.world)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        return float(loss.detach())


def save(training: Training, gains: dict[str, Any], source_count: int) -> None:
    """Write weights, config and model card."""
    config, progress = training.config, training.progress
    images = progress.step * config.batch_size * training.world
    record = run_record(
        steps=progress.step,
        images=images,
        minutes=progress.seconds / 60,
        processes=training.world,
    )
    content = {
        "kind": KIND,
        "design": config.design,
        "steps": STEPS,
        "start_steps": START_STEPS,
        "channels": CHANNELS,
        "weights": sum(p.numel() for p in training.network.parameters()),
        "settings": describe(config),
        "training": {
            "sources": source_count,
            "photons": problems.PHOTONS,
            "psf_models": problems.MODELS,
            **asdict(problems.OPTICS),
        },
        "gains": gains,
        "run": record,
    }
    save_prior(config.out, training.network, content)


def record_validation(training: Training, losses: list[float], sources: int) -> str:
    """Validate; save the weights if they are the best, and the state. Returns a line."""
    progress, out = training.progress, training.config.out
    gain, gains = validate(training.network, training.validation, training.config.design)
    row = {"step": progress.step, "minutes": progress.seconds / 60}
    row |= {"train_loss": float(np.mean(losses)), "validation_gain_db": gain}
    row |= {f"{k} photons, {n}": v for k, found in gains.items() for n, v in found.items()}
    progress.rows = [*progress.rows, row]
    if gain > progress.best:
        progress.best = gain
        save(training, gains, sources)
    write_csv(out / "metrics.csv", pd.DataFrame(progress.rows), "%.5g")
    save_state(out / "state.safetensors", training.network, training.optimizer, asdict(progress))
    return f"step {progress.step}: validation gain {gain:.3f} dB"


def train(training: Training, sources: int) -> None:
    """Train until the time is over; the first process writes."""
    progress, is_first = training.progress, training.rank == 0
    losses: list[float] = []
    done = training.done()
    with tqdm(total=100, unit="%", disable=not is_first, mininterval=10) as bar:
        while done < 1:
            started = time.perf_counter()
            losses.append(training.step(done))
            progress.step += 1
            progress.seconds += time.perf_counter() - started
            done = training.done()
            bar.update(min(100 * done, 100) - bar.n)
            if progress.step % SAVE_EVERY and done < 1:
                continue
            if is_first:
                bar.write(record_validation(training, losses, sources))
            losses = []
            if training.world > 1:
                torch.distributed.barrier()


def prepare(training: Training) -> None:
    """Claim the output folder, or go on with the run in it."""
    out = training.config.out
    if training.rank == 0:
        if (out / "run.json").exists():
            raise InputError(f"{out} holds a finished run; give another --out.")
        claim_folder(out, describe(training.config), "training run", "run_config.json")
    state = out / "state.safetensors"
    if state.exists():
        facts = load_state(state, training.network, training.optimizer)
        training.progress = Progress(**facts)
        if training.rank == 0:
            print(f"resumed after step {training.progress.step}")


def main(config: Config) -> None:
    """Train with the settings of the command line."""
    if config.max_minutes is not None and config.steps is not None:
        raise InputError("give --max-minutes or --steps, not both.")
    for name in ("max_minutes", "steps", "batch_size", "learning_rate", "threads"):
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise InputError(f"--{name.replace('_', '-')} is {value}; it must be positive.")
    keep_freed_memory()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    rank, world = start_processes(process_device(config.device))
    sources = sources_of(config.images, config.seed)
    with (
        hold_folder(config.out) if rank == 0 else nullcontext(),
        closing(Training(config, sources, rank, world)) as training,
    ):
        prepare(training)
        train(training, len(sources["train"]))
        if rank == 0:
            write_json(config.out / "run.json", run_record(minutes=training.progress.seconds / 60))
            print(f"wrote {config.out} (see {config.out / 'metrics.csv'})")
            print(next_command("deconvolve.py", "image.tif", ("--prior-folder", config.out)))
    if world > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    run(Config, main, __doc__)
