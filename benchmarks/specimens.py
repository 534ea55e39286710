"""Scores of networks on thin, sharp objects, and with one property of real specimens at a time.

    python benchmarks/specimens.py --checkpoints zernike1d_tilted focus

Held-out objects at the paper's optics; in each row every patch has the property. Writes
results/specimens.csv and specimens.md: R^2 and rms error of focus, coverage of the error bars, and
the share of patches that are called content. The rows of patches without an object, or out of the
range of focus, have only the last.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))

from common.command import keep_freed_memory, pick_device, run
from common.files import whole_file, write_csv
from models.checkpoint import load_estimator
from models.data import CONDITIONS, Condition
from models.error_bars import coverage
from models.estimator import Estimator
from models.scoring import SCORES
from psf.errors import InputError
from psf.microscope import Microscope
from simulation.bank import Bank
from simulation.patches import Patches, simulate
from simulation.settings import Simulation
from simulation.sources import load_sources, split_sources
from simulation.specimens import SpecimenRanges

WORLDS = {
    "thin and sharp": SpecimenRanges(),
    "thick": SpecimenRanges(thick=1.0),
    "soft": SpecimenRanges(soft=1.0),
    "hazy": SpecimenRanges(hazy=1.0),
    "bright background": SpecimenRanges(background=1.0),
    "sparse": SpecimenRanges(sparse=1.0),
    "haze alone": SpecimenRanges(haze_only=1.0),
}
OUT_OF_RANGE, BLANK = "out of range", "blank"
NAMES = (*WORLDS, OUT_OF_RANGE, BLANK)
PSF_PX = 127  # support of the PSFs
PART = 32  # patches that are simulated together


@dataclass(frozen=True)
class Config:
    """Settings of the benchmark."""

    checkpoints: tuple[Path, ...]  # networks of one PSF model with focus
    patches: int = 320  # of each row
    microscope: tuple[float, float, float, float] = (0.45, 0.5, 0.278, 1.33)  # NA, um, um, index
    seed: int = 5  # of the patches
    device: str = "auto"  # auto, cpu, cuda, mps
    out: Path = Path("results")  # folder to write


def patches_of(config: Config, estimator: Estimator, bank: Bank, name: str) -> Iterator[Patches]:
    """Simulated patches of one row of the table."""
    simulation = Simulation(
        model=estimator.psf_model,
        microscope=Microscope(*config.microscope),
        optics_ranges=None,
        patch_size=estimator.patch_size,
        psf_size=PSF_PX,
        blank_fraction=0.999 if name == BLANK else 0.0,
        beyond_fraction=0.999 if name == OUT_OF_RANGE else 0.0,
        specimens=WORLDS.get(name, SpecimenRanges()),
    )
    for part in range(-(-config.patches // PART)):
        rng = np.random.default_rng([config.seed, NAMES.index(name), part])
        yield simulate(simulation, bank, PART, rng, augment=False)


def row_of(
    config: Config, estimator: Estimator, name: str, patches: list[Patches], condition: Condition
) -> dict[str, Any]:
    """Scores of one network on the patches of a row under one condition."""
    blurred = torch.cat([some.blurred for some in patches])
    recorded = torch.stack([condition.record(p, seed) for seed, p in enumerate(blurred)])
    found = estimator.predict(recorded, Microscope(*config.microscope))
    called = found.content_probability.numpy() >= 0.5
    row = {"network": estimator.name, "specimen": name, "condition": condition.name}
    row["called_content"] = float(called.mean())
    truth = torch.cat([some.labels for some in patches])[:, 0].numpy()
    if not any(bool(some.has_content.any()) for some in patches):
        return row
    values, bars = found.values[:, 0].numpy(), found.standard_deviations[:, 0].numpy()
    errors = values - truth
    row["r2"] = float(SCORES["r2"](truth, values))
    row["rmse_waves"] = float(np.sqrt(np.mean(errors**2)))
    row["within_68"] = coverage(errors, bars)
    row["within_95"] = coverage(errors, found.half_widths_95[:, 0].numpy())
    if called.any():
        row["rmse_waves_content"] = float(np.sqrt(np.mean(errors[called] ** 2)))
    return row


def markdown(table: pd.DataFrame) -> str:
    """The table for people: R^2, and the share called content, by light."""
    conditions = [c.name for c in CONDITIONS if not c.bits]
    lines = [
        "| network | specimen | " + " | ".join(conditions) + " | within 68 % | called content |"
    ]
    lines.append("|---" * (len(conditions) + 4) + "|")
    for (network, specimen), rows in table.groupby(["network", "specimen"], sort=False):
        by_light = rows.set_index("condition")
        scores = [by_light["r2"].get(c, float("nan")) for c in conditions]
        shares = [f"{by_light['called_content'][c]:.2f}" for c in conditions]
        cells = ["-" if np.isnan(v) else f"{v:.3f}" for v in scores]
        bars = by_light["within_68"].mean()
        cells += ["-" if np.isnan(bars) else f"{bars:.0%}", ", ".join(shares)]
        lines.append(f"| `{network}` | {specimen} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(config: Config) -> None:
    """Simulate, predict, write."""
    keep_freed_memory()
    estimators = [load_estimator(path, pick_device(config.device)) for path in config.checkpoints]
    models = {estimator.psf_model.name for estimator in estimators}
    if len(models) > 1 or "focus" not in estimators[0].psf_model.label_names:
        raise InputError(f"{', '.join(sorted(models))}: give networks of one PSF model with focus.")
    size = estimators[0].patch_size
    crop = size + PSF_PX - 1
    sources = split_sources(load_sources("mixed", crop, 0)[0], 0)["test"]
    bank = Bank(sources, crop, size)
    rows = []
    conditions = [condition for condition in CONDITIONS if not condition.bits]
    for name in tqdm(NAMES, unit="row"):
        patches = list(patches_of(config, estimators[0], bank, name))
        rows += [
            row_of(config, estimator, name, patches, condition)
            for estimator in estimators
            for condition in conditions
        ]
    table = pd.DataFrame(rows).sort_values("network", kind="stable")
    write_csv(config.out / "specimens.csv", table, "%.4f")
    with whole_file(config.out / "specimens.md") as partial:
        partial.write_text(markdown(table), encoding="utf-8")
    print(markdown(table))
    print(f"wrote {config.out / 'specimens.csv'} and specimens.md")


if __name__ == "__main__":
    run(Config, main, __doc__)
