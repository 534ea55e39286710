"""Run all steps in order: simulate, train, benchmark, map, restore. Finished steps are skipped.

    python reproduce.py --scale quick

The scale smoke takes about a minute and shows that everything runs. The scale quick simulates
16,000 patches and trains two networks for 2.6 minutes each. The scale full has the size of the
paper, with five PSF models and three networks on 15 million patches each, and needs a GPU.
"""

import subprocess
import sys
import time
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Literal

import pandas as pd

from common.command import run
from psf.errors import InputError
from psf.microscope import OPTICS_NAMES, Microscope

MAPPED = "zernike1d"  # PSF model of the tilted plane, which shows pure defocus


@dataclass(frozen=True)
class Config:
    """Settings of a reproduction."""

    scale: Literal["smoke", "quick", "full"] = "quick"  # size of the data sets and trainings


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Size of a reproduction, and the scores that it must reach."""

    psf_models: tuple[str, ...]
    networks: tuple[str, ...]  # the first one also makes the map
    images: str  # as --images of generate_training_set.py
    train_patches: int
    validation_patches: int
    test_patches: int
    budget: tuple[str, ...]  # options of train.py for the patches and the end of the training
    stride: int  # of the map, px
    restoration: tuple[str, ...] = ()  # options of deconvolve.py
    # Least R^2 of the first network by condition. Lower scores mean that something is broken.
    expected_r2: dict[str, float] = field(default_factory=dict)


SCALES = {
    "smoke": Scale(
        psf_models=("zernike1d",),
        networks=("spectral_resnet", "resnet18"),
        images="builtin",
        train_patches=512,
        validation_patches=64,
        test_patches=128,
        budget=("--epochs", "1"),
        stride=32,
        restoration=("--iterations", "10", "--refine", "no"),
    ),
    "quick": Scale(
        psf_models=("zernike1d",),
        networks=("spectral_resnet", "resnet18"),
        images="mixed",
        train_patches=16_000,
        validation_patches=500,
        test_patches=1600,
        budget=("--max-minutes", "2.6"),
        stride=16,
        expected_r2={"noise-free": 0.98, "1000 photons": 0.86, "100 photons": 0.84},
    ),
    "full": Scale(
        psf_models=("gaussian1d", "gaussian2d", "zernike1d", "zernike2d", "astigmatic"),
        networks=("spectral_resnet", "resnet34", "resnext50"),
        images="mixed",
        train_patches=0,  # all are fresh: 15 million for each network
        validation_patches=5000,
        test_patches=10_000,
        budget=("--fresh", "--epochs", "75", "--epoch-patches", "200000"),
        stride=16,
    ),
}


@dataclass(frozen=True)
class Step:
    """One command; it is finished when `marker` exists and is newer than the files in `needs`."""

    title: str
    command: tuple[str, ...]
    marker: Path
    needs: tuple[Path, ...] = ()

    def is_finished(self) -> bool:
        """Whether the result exists and is up to date."""
        if not self.marker.exists():
            return False
        written = self.marker.stat().st_mtime
        return all(n.exists() and n.stat().st_mtime <= written for n in self.needs)


def model_steps(name: str, model: str, scale: Scale) -> list[Step]:
    """Steps of one PSF model: simulate, train every network, benchmark."""
    data = Path("data") / f"{name}_{model}"
    runs = {network: Path("runs") / f"{name}_{model}" / network for network in scale.networks}
    results = Path("results") / name / model
    counts = ("--train-patches", str(scale.train_patches))
    counts += ("--validation-patches", str(scale.validation_patches))
    counts += ("--test-patches", str(scale.test_patches))
    counts += ("--patches-per-crop", "1")  # slower, but no two patches show the same content
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
    """Steps that blur a test image as a tilted plane, map its PSF and restore it."""
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
    """Run a step in a process of its own, unless it is finished."""
    if step.is_finished():
        print(f"[{number}/{total}] {step.title}: already done ({step.marker.parent})")
        return
    print(f"[{number}/{total}] {step.title}: python {' '.join(step.command)}", flush=True)
    started = time.perf_counter()
    code = subprocess.run([sys.executable, *step.command], check=False).returncode
    if code:
        raise InputError(
            f"'{step.title}' stopped with exit code {code}; its message is above. Give the same "
            "command again to continue from this step."
        )
    print(f"[{number}/{total}] {step.title}: {time.perf_counter() - started:.0f} s", flush=True)


def compare(name: str, scale: Scale) -> None:
    """Print the R^2 that was reached beside the least that is expected."""
    if not scale.expected_r2:
        return
    table = pd.read_csv(Path("results") / name / MAPPED / "benchmark.csv")
    rows = (table["architecture"] == scale.networks[0]) & (table["images"] == "builtin")
    first = table[rows].set_index("condition")
    print(f"\nR² of focus on photographs and micrographs never trained on, {scale.networks[0]}")
    for condition, expected in scale.expected_r2.items():
        reached = first.loc[condition, "r2"]
        verdict = "reached" if reached >= expected else "NOT reached"
        print(f"  {condition:14s} {reached:.3f}   expected at least {expected:.2f}: {verdict}")


def main(config: Config) -> None:
    """Run the steps, then print where the results are."""
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
