"""Scores of the default network without single parts of it, on the validation split.

    python benchmarks/ablation.py --data data/zernike1d --epochs 2

Trains each variant, which has one change, on the same number of patches. Writes
results/ablation.csv: R^2 by condition and kind of validation images (mean over the parameters), and
patches per second. Test images are not used. A variant that is in the table already is skipped, so
that the same command continues an interrupted run. See docs/experiments.md.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from common.command import keep_freed_memory, run
from common.files import write_csv
from models.data import CONDITIONS
from models.loss import output_count
from models.scoring import SCORES
from models.spectral_resnet import SpectralResNet
from models.trainer import Settings, Trainer, build_optimizer


@dataclass(frozen=True)
class Variant:
    """One change, of arguments of `SpectralResNet` or of settings of the training."""

    network: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


VARIANTS = {
    "default": Variant(),
    "another seed": Variant(settings={"seed": 1}),
    "windows of 64 px only": Variant({"windows": (64,)}),
    "windows of 128 px only": Variant({"windows": (128,)}),
    "windows of 32, 64 and 128 px": Variant({"windows": (32, 64, 128)}),
    "windows of 64, 96 and 128 px": Variant({"windows": (64, 96, 128)}),
    "8 directions": Variant({"angles": 8}),
    "32 directions": Variant({"angles": 32}),
    "40 radii": Variant({"radii": 40}),
    "no pixel branch": Variant({"pixel_widths": ()}),
    "twice the pixel branch": Variant({"pixel_widths": (32, 64, 128)}),
    "half the spectral branch": Variant({"spectral_widths": (16, 32, 48, 64)}),
    "cross-entropy alone": Variant(settings={"value_weight": 0.0}),
    "four times the weight of the values": Variant(settings={"value_weight": 20.0}),
    "twice the learning rate": Variant(settings={"learning_rate": 4e-3}),
    "half the learning rate": Variant(settings={"learning_rate": 1e-3}),
    "batches of 128": Variant(settings={"batch_size": 128}),
    "resnet18": Variant(settings={"model": "resnet18"}),
}


@dataclass(frozen=True)
class Config:
    """Settings of the ablation."""

    data: Path  # folder of generate_training_set.py
    epochs: int = 2  # passes over the data per variant
    variants: Sequence[str] = tuple(VARIANTS)  # names of variants to train
    threads: int | None = None  # CPU threads (default: all)
    out: Path = Path("results/ablation.csv")  # table to write


def train_variant(config: Config, variant: Variant) -> Trainer:
    """Trainer of one variant, after its training."""
    settings = {"epochs": config.epochs, "threads": config.threads, **variant.settings}
    trainer = Trainer(Settings(data=config.data, **settings), rank=0, world=1)
    if variant.network:
        torch.manual_seed(trainer.config.seed)
        outputs = output_count(len(trainer.model.label_names))
        network = SpectralResNet(outputs, **variant.network).to(trainer.device)
        trainer.network = trainer.parallel = network.to(memory_format=torch.channels_last)
        rate, decay = trainer.config.learning_rate, trainer.config.weight_decay
        trainer.optimizer = build_optimizer(network, rate, decay)
    with tqdm(total=trainer.feed.epoch_patches * config.epochs, unit="patch", mininterval=1) as bar:
        while trainer.done() < 1:
            trainer.train_epoch(bar)
            trainer.progress.epoch += 1
    return trainer


def validation_scores(trainer: Trainer) -> dict[str, float]:
    """R^2 by condition and kind of validation images, mean over the parameters."""
    patch_set = trainer.validation_set
    kinds = patch_set.source_kinds[patch_set.has_content.numpy()]
    scores = {}
    for condition in CONDITIONS:
        targets, values, *_ = (t.numpy() for t in trainer.predict_validation(condition))
        for kind in np.unique(kinds):
            rows = kinds == kind
            columns = zip(targets[rows].T, values[rows].T, strict=True)
            r2 = [SCORES["r2"](t, p) for t, p in columns]
            scores[f"{kind} {condition.name}"] = float(np.mean(r2))
    return scores


def main(config: Config) -> None:
    """Train the variants that are missing from the table, and print the table."""
    keep_freed_memory()
    rows = pd.read_csv(config.out).to_dict("records") if config.out.exists() else []
    for name in config.variants:
        if name in {row["variant"] for row in rows}:
            continue
        print(name, flush=True)
        trainer = train_variant(config, VARIANTS[name])
        progress = trainer.progress
        scores = validation_scores(trainer)
        facts = {"variant": name, "patches_seen": progress.patches_seen}
        facts["patches_per_second"] = progress.patches_seen / progress.seconds
        rows.append({**facts, "mean": float(np.mean(list(scores.values()))), **scores})
        write_csv(config.out, pd.DataFrame(rows), "%.4f")
    print(pd.DataFrame(rows).to_string(float_format=lambda v: f"{v:.3f}"))
    print(f"wrote {config.out}")


if __name__ == "__main__":
    run(Config, main, __doc__)
