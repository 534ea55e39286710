"""Train the network that sees the patches of an image together, and add it to a checkpoint.

    python train_context.py --checkpoint runs/zernike1d --data data/zernike1d --out runs/images

The encoder, which is the network of the checkpoint, stays as it is. Images are simulated with the
settings of the data folder: one kind of object, specimen, optics and light each, with focus that
changes over the image, and focal stacks. They are seen by the encoder once; its features are kept
in features/ while the second network is trained on them. Writes a checkpoint folder with both
networks. After an interrupted run the same command continues.
"""

import math
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from common.command import keep_freed_memory, next_command, pick_device, run
from common.files import claim_folder, run_record, write_csv, write_json
from common.output import hold_folder
from models import error_bars
from models.checkpoint import load_estimator, save_checkpoint, save_context
from models.context import ContextNet
from models.context_training import (
    ImageStream,
    Seen,
    encode,
    image_sources,
    read_features,
    record_images,
    some_places,
    write_features,
)
from models.data import Exposure, read_data_config
from models.estimator import Estimator
from models.loss import estimation_loss, output_count, split_outputs, value_loss
from models.run_state import load_state, save_state
from models.scoring import SCORES
from models.spectral_resnet import SpectralResNet
from models.trainer import learning_rate
from psf.errors import InputError
from simulation.settings import Simulation, from_config

BATCH = 4  # exposed draws in a step, so that it sees several kinds of images
SAVE_EVERY = 100  # steps between validations, after which a stopped run goes on
VALIDATION_SIZES = ((1, 1), (1, 25), (9, 12))  # planes and places
VALIDATION_DRAWS = 3  # of each size, of about 256 patches
VALIDATION_PHOTONS = (math.inf, 1000.0, 100.0, 10.0)


@dataclass(frozen=True)
class Config:
    """Settings of the training."""

    checkpoint: Path  # encoder: a folder of train.py, or the name of shipped weights
    data: Path  # folder of generate_training_set.py, whose settings the images have
    out: Path  # folder to write
    draws: int = 600  # of about 256 patches; each is exposed three times
    steps: int = 3000  # training steps, on BATCH exposed draws each
    learning_rate: float = 5e-4  # highest, after the warm-up
    weight_decay: float = 0.02  # of weight matrices
    exposure: Exposure = field(default_factory=Exposure)  # light and noise of the images
    seed: int = 0  # of weights and images
    device: str = "auto"  # auto, cpu, cuda, mps
    threads: int | None = None  # CPU threads (default: all)


def make_validation(stream: ImageStream, config: Config) -> dict[str, list[Seen]]:
    """Validation images as the encoder sees them, by planes, places and light."""
    found: dict[str, list[Seen]] = {}
    numbers = [(s, d) for s in range(len(VALIDATION_SIZES)) for d in range(VALIDATION_DRAWS)]
    for size, draw in tqdm(numbers, desc="validation images", unit="draw"):
        planes, places = VALIDATION_SIZES[size]
        images = stream.images(VALIDATION_DRAWS * size + draw, (planes, places))
        for photons in VALIDATION_PHOTONS:
            generator = torch.Generator(stream.bank.device).manual_seed(size + 10 * draw)
            count = len(images.blurred)
            light, read = np.full(count, photons), np.full(count, 1.6)
            clean = np.full(count, math.isinf(photons))
            recorded = record_images(images.blurred, light, read, clean, generator)
            seen = encode(stream.estimator, images, recorded, stream.scaler)
            name = "noise-free" if math.isinf(photons) else f"{photons:g} photons"
            found.setdefault(f"{planes} x {places}, {name}", []).append(seen)
    return found


def outputs_of(estimator: Estimator, context: ContextNet, seen: Seen) -> torch.Tensor:
    """Outputs (B K M, outputs) of encoder and context together."""
    count = seen.features.shape[1] * seen.features.shape[2]
    keys = torch.arange(count, device=seen.features.device)
    with torch.no_grad():
        base = estimator.network.outputs(seen.features)
    return (base + context(seen.features, seen.facts, seen.places, keys)).flatten(0, 2)


@torch.no_grad()
def validate(
    estimator: Estimator, context: ContextNet, validation: dict[str, list[Seen]]
) -> tuple[float, dict[str, float], list[tuple[np.ndarray, ...]]]:
    """Mean value loss, R^2 of the first parameter by condition, and errors with deviations."""
    context.eval()
    losses, scores, found = [], {}, []
    for name, some in validation.items():
        outputs = torch.cat([outputs_of(estimator, context, seen) for seen in some]).cpu()
        kept = torch.cat([seen.has_content for seen in some]).cpu()
        targets = torch.cat([seen.targets for seen in some]).cpu()[kept]
        values, log_variances, _ = split_outputs(outputs[kept])
        losses.append(float(value_loss(values, targets, torch.ones(len(values)))))
        scores[name] = float(SCORES["r2"](targets[:, 0].numpy(), values[:, 0].numpy()))
        noise = torch.cat([seen.facts[..., 1].flatten() for seen in some]).cpu()[kept]
        deviations = (log_variances / 2).exp()
        found.append(tuple(t.double().numpy() for t in (values - targets, deviations, noise)))
    return float(np.mean(losses)), scores, found


def check_encoder(config: Config, estimator: Estimator, simulation: Simulation) -> None:
    """Refuse an encoder that does not fit the data folder, or has no features."""
    found, asked = config.checkpoint, config.data
    if estimator.psf_model != simulation.model:
        raise InputError(f"{found} and {asked} have different PSF models; give another --data.")
    if simulation.model.label_names[0] != "focus":
        raise InputError(
            f"{simulation.model.name} has no focus in waves; give another --checkpoint."
        )
    if estimator.patch_size != simulation.patch_size:
        raise InputError(
            f"{found} takes patches of {estimator.patch_size} px and {asked} has patches of "
            f"{simulation.patch_size} px; give another --data."
        )
    if not isinstance(estimator.network, SpectralResNet):
        raise InputError(f"{found} is no spectral_resnet; give another --checkpoint.")


def describe(config: Config, estimator: Estimator, data: dict[str, Any]) -> dict[str, Any]:
    """Content of run_config.json; a resumed run must have the same."""
    fixed = ("draws", "steps", "learning_rate", "weight_decay", "seed")
    return {
        "encoder": estimator.fingerprint,
        "data": data,
        "exposure": asdict(config.exposure),
        "settings": {name: getattr(config, name) for name in fixed},
    }


def save(
    config: Config,
    estimator: Estimator,
    context: ContextNet,
    found: list[tuple[np.ndarray, ...]],
    scores: dict[str, float],
    description: dict[str, Any],
) -> None:
    """Write the checkpoint: encoder, context, and the calibration of their error bars."""
    errors, deviations, noise = (np.concatenate(c) for c in zip(*found, strict=True))
    columns = zip(errors.T, deviations.T, strict=True)
    factors = [error_bars.measure_factors_by_noise(e, d, noise) for e, d in columns]
    entry = {
        "calibration": error_bars.to_config(factors),
        "settings": description["settings"],
        "specimens": description["data"]["specimens"],
        "validation": scores,
        "run": run_record(),
    }
    save_context(config.out, context)
    save_checkpoint(config.out, estimator.network, {**estimator.config, "context": entry})


def train(config: Config) -> None:
    """Train until the steps are over; go on with a stopped run."""
    device = pick_device(config.device)
    estimator = load_estimator(config.checkpoint, device)
    data = read_data_config(config.data)
    simulation = from_config(data)
    check_encoder(config, estimator, simulation)
    description = describe(config, estimator, data)
    claim_folder(config.out, description, "training of a context network", "run_config.json")
    torch.manual_seed(config.seed)
    context = ContextNet(output_count(len(estimator.config["label_names"]))).to(device)
    optimizer = torch.optim.AdamW(
        context.parameters(), config.learning_rate, weight_decay=config.weight_decay
    )
    state, facts = config.out / "state.safetensors", {"step": 0, "best": math.inf, "rows": []}
    if state.exists():
        facts = load_state(state, context, optimizer)
        print(f"resumed after step {facts['step']}")
    if facts["step"] == config.steps:
        print(f"{config.out} is finished; give another --out to train again")
        return

    def stream_of(split: str, seed: int) -> ImageStream:
        sources = image_sources(config.data, data, simulation.crop_size, split)
        return ImageStream(estimator, simulation, sources, config.exposure, seed)

    validation = make_validation(stream_of("validation", config.seed + 1), config)
    folder = config.out / "features"
    folder.mkdir(exist_ok=True)
    write_features(stream_of("train", config.seed + 2), folder, config.draws)
    seen = read_features(folder, config.draws, device)
    started, losses = time.perf_counter(), []
    first = facts["step"]
    bar = tqdm(total=config.steps, initial=first, unit="step", desc="train", mininterval=5)
    with bar:
        for step in range(first, config.steps):
            losses.append(train_step(config, estimator, context, optimizer, seen, step))
            bar.update()
            if (step + 1) % SAVE_EVERY and step + 1 < config.steps:
                continue
            value, scores, found = validate(estimator, context, validation)
            facts["step"] = step + 1
            row = {"step": step + 1, "train_loss": float(np.mean(losses)), "validation_loss": value}
            facts["rows"].append(row | {f"r2 {name}": score for name, score in scores.items()})
            losses = []
            bar.set_postfix(loss=f"{row['train_loss']:.3g}", validation=f"{value:.3g}")
            if value < facts["best"]:
                facts["best"] = value
                save(config, estimator, context, found, scores, description)
            write_csv(config.out / "metrics.csv", pd.DataFrame(facts["rows"]), "%.5g")
            save_state(state, context, optimizer, facts)
    write_json(config.out / "run.json", run_record(minutes=(time.perf_counter() - started) / 60))
    shutil.rmtree(folder)
    print(f"wrote {config.out} (see {config.out / 'metrics.csv'})")
    print(next_command("estimate_psf_map.py", "image.tif", ("--checkpoint", config.out)))


def train_step(
    config: Config,
    estimator: Estimator,
    context: ContextNet,
    optimizer: torch.optim.Optimizer,
    seen: list[Seen],
    step: int,
) -> float:
    """Loss of one step, whose images depend on its number only."""
    context.train()
    rng = np.random.default_rng([config.seed, step])
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step / config.steps, config.learning_rate)
    optimizer.zero_grad()
    total = 0.0
    for number in rng.integers(0, len(seen), BATCH):
        some = some_places(seen[number], rng)
        outputs = outputs_of(estimator, context, some)
        loss = estimation_loss(outputs, some.targets, some.has_content) / BATCH
        loss.backward()
        total += float(loss.detach())
    torch.nn.utils.clip_grad_norm_(context.parameters(), 1.0)
    optimizer.step()
    return total


def main(config: Config) -> None:
    """Train with the settings of the command line."""
    keep_freed_memory()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    with hold_folder(config.out):
        train(config)


if __name__ == "__main__":
    run(Config, main, __doc__)
