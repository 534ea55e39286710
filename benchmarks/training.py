"""Speed of the training and of a map, for each network.

    python benchmarks/training.py --data data/quick_zernike1d

Prints and writes results/benchmark_training.csv, one row per network and kind of training patches:
patches per second of complete training steps, the same relative to resnet18 on stored patches and
to the same network on stored patches, the share of the time spent waiting for patches, the peak
memory of the process so far, and the seconds for a map of a 1024 x 1024 image at stride 32. A step
reads or simulates, rotates and records the patches, and trains the network, in bf16 where the
processor supports it.
"""

import resource
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))

from common.command import keep_freed_memory, run
from common.files import whole_file
from models.estimator import Estimator
from models.mapping import predict_map
from models.trainer import Progress, Settings, Trainer
from psf import Microscope

WARM_UP_STEPS = 3  # not counted: the first steps fill caches and choose algorithms


@dataclass(frozen=True)
class Config:
    """Settings of the benchmark."""

    data: Path  # folder of generate_training_set.py
    networks: Sequence[str] = ("resnet18", "spectral_resnet")  # as --model of train.py
    patches: Sequence[Literal["stored", "fresh"]] = ("stored", "fresh")  # where they come from
    device: str = "auto"  # auto, cpu, cuda or mps
    steps: int = 40  # training steps per measurement
    rounds: int = 2  # measurements of each network, in turn; the fastest counts
    out: Path = Path("results/benchmark_training.csv")  # table to write


def training_rate(config: Config, network: str, patches: str) -> dict[str, float]:
    """Speed of whole training steps, share of the time for patches, and seconds of a map."""
    settings = Settings(
        data=config.data, model=network, fresh=patches == "fresh", device=config.device
    )
    with closing(Trainer(settings, rank=0, world=1)) as trainer, tqdm(disable=True) as bar:
        trainer.feed.begin(0)
        trainer.steps_per_epoch = WARM_UP_STEPS
        trainer.train_epoch(bar)
        trainer.progress = Progress(epoch=1, step=WARM_UP_STEPS)
        trainer.steps_per_epoch = config.steps
        trainer.train_epoch(bar)
        progress = trainer.progress
        return {
            "patches_per_second": progress.patches_seen / progress.seconds,
            "waiting_share": progress.data_seconds / progress.seconds,
            "map_1024_seconds": map_seconds(trainer),
            "peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        }


def map_seconds(trainer: Trainer) -> float:
    """Seconds for a map of a 1024 x 1024 image at stride 32."""
    estimator = Estimator(trainer.network.eval(), trainer.data_config, trainer.device)
    image = torch.from_numpy(np.random.default_rng(0).random((1024, 1024), np.float32))
    started = time.perf_counter()
    predict_map(estimator, image, Microscope(), 32)
    return time.perf_counter() - started


def main(config: Config) -> None:
    """Measure the networks in turn; print and write the table."""
    keep_freed_memory()
    measured = [
        {"network": network, "patches": patches, **training_rate(config, network, patches)}
        for _ in range(config.rounds)
        for network in config.networks
        for patches in config.patches
    ]
    keys = ["network", "patches"]
    best = pd.DataFrame(measured).sort_values("patches_per_second").groupby(keys).last()
    rate = best["patches_per_second"]
    stored = rate[rate.index.get_level_values("patches") == "stored"].droplevel("patches")
    best["times_resnet18"] = rate / stored.get("resnet18", float("nan"))
    best["times_stored"] = rate / stored.reindex(rate.index.get_level_values("network")).to_numpy()
    with whole_file(config.out) as partial:
        best.to_csv(partial, float_format="%.4g")
    print(best.to_string(float_format=lambda v: f"{v:.3g}"))
    print(f"wrote {config.out}")


if __name__ == "__main__":
    run(Config, main, __doc__)
