"""Seconds of a restoration of 512 x 512 pixels, by prior.

    python benchmarks/restoration_speed.py

Simulated images of the validation split, each with the map that a network estimates beforehand, are
restored by `restore_with_map` with each prior in turn. Prints and writes
results/benchmark_restoration_speed.csv: the median, the worst, and what the automatic choice took.
"""

import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))

from common.command import keep_freed_memory, run
from common.files import write_csv
from psf.errors import InputError
from psf.synthesis import EnergyWarning
from restoration.compared import trial_of
from restoration.scenes import SUPPORTS_PX, Case, make_scene
from restoration.with_map import restore_with_map
from simulation.objects import OBJECTS

PRIORS = ("auto", "learned", "tv")
MAP_KINDS = ("tilted plane", "random map")


@dataclass(frozen=True)
class Config:
    """Settings of the benchmark."""

    out: Path = Path("results/benchmark_restoration_speed.csv")  # table to write
    size: int = 512  # px, edge of the images
    photons: tuple[float, ...] = (1000.0, 100.0)  # mean per pixel
    threads: int = 2  # of the processor
    seed: int = 1  # of maps, objects and noise


def cases(config: Config) -> list[Case]:
    """One image of each kind of procedural objects and each light."""
    models, found = list(SUPPORTS_PX), []
    for index, kind in enumerate(OBJECTS):
        model, map_kind = models[index % len(models)], MAP_KINDS[index // len(models) % 2]
        for photons in config.photons:
            place = (index, kind, model, map_kind, photons, config.size, config.seed)
            found.append(Case(*place, split="validation"))
    return found


def measure(config: Config) -> pd.DataFrame:
    """Seconds of each image and prior, and the prior that the automatic choice took."""
    rows = []
    for case in tqdm(cases(config), unit="image"):
        trial = trial_of(make_scene(case))
        for prior in PRIORS:
            started = time.perf_counter()
            restored, _ = restore_with_map(trial.image, trial.psf_map, prior=prior)
            seconds = time.perf_counter() - started
            row = {"objects": case.name, "photons": case.photons, "prior": prior}
            rows.append(row | {"took": restored.prior, "seconds": seconds})
    return pd.DataFrame(rows)


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Median and worst seconds by prior, and the share of images that took the learned one."""
    lines = []
    for prior, part in table.groupby("prior", sort=False):
        line = {"prior": prior, "images": len(part), "median_s": np.median(part["seconds"])}
        line |= {"worst_s": part["seconds"].max(), "learned": (part["took"] == "learned").mean()}
        lines.append(line)
    return pd.DataFrame(lines)


def main(config: Config) -> None:
    """Measure, print, write."""
    if config.size < 256 or config.threads < 1 or not config.photons:
        raise InputError("give a --size of at least 256, one thread and one --photons.")
    torch.set_num_threads(config.threads)
    keep_freed_memory()
    warnings.simplefilter("ignore", EnergyWarning)  # a little light falls outside the supports
    summary = summarise(measure(config))
    write_csv(config.out, summary)
    print(summary.to_string(index=False, float_format=lambda v: f"{v:.3g}"))
    print(f"wrote {config.out}")


if __name__ == "__main__":
    run(Config, main, __doc__)
