"""Run all steps in order: simulate, train, benchmark, map, restore. Finished steps are skipped.

    python reproduce.py --scale quick

smoke: tiny numbers, about a minute, to see that everything runs. quick: 20,000 patches and two
trainings of 3.6 minutes on two cores. full: the size of the paper, five PSF models and three
networks, for a GPU.
"""

import subprocess
import sys
import time
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from common.command import run
from psf.errors import InputError
from psf.microscope import OPTICS_NAMES, Microscope

MAPPED = "zernike1d"  # the PSF model of the tilted plane that the map is made of


@dataclass(frozen=True)
class Config:
    """What to reproduce."""

    scale: Literal["smoke", "quick", "full"] = "quick"


@dataclass(frozen=True)
class Scale:
    """Size of a reproduction, and what it must reach."""

    psf_models: tuple[str, ...]
    networks: tuple[str, ...]  # the first one also draws the map
    images: str
    train_patches: int
    validation_patches: int
    test_patches: int
    budget: tuple[str, str]  # option of train.py
    stride: int
    restoration: tuple[str, ...]  # options of deconvolve.py
    expected_r2: dict[str, float]  # of the first network, by condition


SCALES = {
    "smoke": Scale(
        ("zernike1d",),
        ("spectral_resnet", "resnet18"),
        "builtin",
        512,
        64,
        128,
        ("--epochs", "1"),
        32,
        ("--iterations", "10", "--refine", "no"),
        {},
    ),
    "quick": Scale(
        ("zernike1d",),
        ("spectral_resnet", "resnet18"),
        "mixed",
        20_000,
        500,
        1600,
        ("--max-minutes", "3.6"),
        16,
        (),
        {"noise-free": 0.98, "1000 photons": 0.86, "100 photons": 0.84},
    ),
    "full": Scale(
        ("gaussian1d", "gaussian2d", "zernike1d", "zernike2d", "astigmatic"),
        ("spectral_resnet", "resnet34", "resnext50"),
        "mixed",
        500_000,
        5000,
        10_000,
        ("--epochs", "30"),
        16,
        (),
        {},
    ),
}


@dataclass(frozen=True)
class Step:
    """One command; it is finished when `marker` exists and is newer than those it needs."""

    title: str
    command: tuple[str, ...]
    marker: Path
    needs: tuple[Path, ...] = ()

    def is_finished(self) -> bool:
        """Whether its result is there and up to date."""
        if not self.marker.exists():
            return False
        written = self.marker.stat().st_mtime
        return all(n.exists() and n.stat().st_mtime <= written for n in self.needs)


def model_steps(name: str, model: str, scale: Scale) -> list[Step]:
    """Simulate, train every network and benchmark, for one PSF model."""
    data = Path("data") / f"{name}_{model}"
    runs = {network: Path("runs") / f"{name}_{model}" / network for network in scale.networks}
    results = Path("results") / name / model
    counts = ("--train-patches", str(scale.train_patches))
    counts += ("--validation-patches", str(scale.validation_patches))
    counts += ("--test-patches", str(scale.test_patches))
    counts += ("--patches-per-crop", "1")  # slower, but every patch shows content of its own
    generate = ("generate_training_set.py", "--psf-model", model, "--images", scale.images, *counts)
    steps = [Step(f"simulate {model}", (*generate, "--out", str(data)), data / "run.json")]
    for network, folder in runs.items():
        command = ("train.py", "--data", str(data), "--out", str(folder), "--model", network)
        command += (*scale.budget, "--resume")
        marker = folder / "run.json"
        steps.append(Step(f"train {network}", command, marker, (data / "run.json",)))
    command = ("benchmark_models.py", "--data", str(data), "--out", str(results))
    command += ("--checkpoints", *map(str, runs.values()))
    markers = tuple(folder / "run.json" for folder in runs.values())
    steps.append(Step(f"benchmark {model}", command, results / "benchmark.json", markers))
    return steps


def map_steps(name: str, scale: Scale) -> list[Step]:
    """Blur a held-out image as a tilted plane, map and restore it."""
    plane, out = Path("data") / f"{name}_tilted_plane", Path("results") / name / "map"
    checkpoint = Path("runs") / f"{name}_{MAPPED}" / scale.networks[0]
    optics = zip(OPTICS_NAMES, astuple(Microscope()), strict=True)
    flags = [text for key, value in optics for text in (f"--{key.replace('_', '-')}", str(value))]
    command = ("estimate_psf_map.py", str(plane / "image.tif"), "--checkpoint", str(checkpoint))
    command += (*flags, "--stride", str(scale.stride), "--out", str(out))
    command += ("--truth", str(plane / "truth.tif"))
    restored = Path("results") / name / "restored"
    restore = ("deconvolve.py", str(plane / "image.tif"), "--map", str(out), *scale.restoration)
    return [
        Step(
            "blur a photograph as a tilted plane",
            ("simulate_tilted_plane.py", "--out", str(plane)),
            plane / "run.json",
        ),
        Step(
            "map the tilted plane",
            command,
            out / "config.json",
            (plane / "run.json", checkpoint / "run.json"),
        ),
        Step(
            "restore the tilted plane",
            (*restore, "--out", str(restored)),
            restored / "restoration.json",
            (out / "config.json",),
        ),
    ]


def run_step(step: Step, number: int, total: int) -> None:
    """Run a step as a command of its own, or say that it is done."""
    if step.is_finished():
        print(f"[{number}/{total}] {step.title}: already done ({step.marker.parent})")
        return
    print(f"[{number}/{total}] {step.title}: python {' '.join(step.command)}", flush=True)
    started = time.perf_counter()
    code = subprocess.run([sys.executable, *step.command], check=False).returncode
    if code:
        raise InputError(
            f"'{step.title}' stopped with exit code {code} (see above). The same command of "
            "reproduce.py goes on from here."
        )
    print(f"[{number}/{total}] {step.title}: {time.perf_counter() - started:.0f} s", flush=True)


def compare(name: str, scale: Scale) -> None:
    """Print the reached beside the expected R^2."""
    if not scale.expected_r2:
        return
    table = pd.read_csv(Path("results") / name / MAPPED / "benchmark.csv")
    rows = (table["architecture"] == scale.networks[0]) & (table["images"] == "builtin")
    first = table[rows].set_index("condition")
    print(f"\nR² of focus on photographs and micrographs never seen, {scale.networks[0]}")
    for condition, expected in scale.expected_r2.items():
        reached = first.loc[condition, "r2"]
        verdict = "reached" if reached >= expected else "NOT reached"
        print(f"  {condition:14s} {reached:.3f}   expected at least {expected:.2f}: {verdict}")


def main(config: Config) -> None:
    """Run the steps, then say what is where."""
    name, scale = config.scale, SCALES[config.scale]
    steps = [step for model in scale.psf_models for step in model_steps(name, model, scale)]
    steps += map_steps(name, scale)
    started = time.perf_counter()
    for number, step in enumerate(steps, 1):
        run_step(step, number, len(steps))
    print(f"\nfinished in {(time.perf_counter() - started) / 60:.1f} minutes; look at")
    for model in scale.psf_models:
        print(f"  data/{name}_{model}/preview.png            simulated patches")
        print(f"  results/{name}/{model}/scatter.png         predicted against true")
    print(f"  results/{name}/map/overview.png                the map beside its truth")
    print(f"  results/{name}/restored/side_by_side.png       the image beside its restoration")
    compare(name, scale)


if __name__ == "__main__":
    run(Config, main, __doc__)
