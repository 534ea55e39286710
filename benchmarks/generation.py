"""Patches simulated per second, beside a simple loop of scipy.signal.fftconvolve, in one run.

    python benchmarks/generation.py

Writes results/benchmark_generation.csv and prints it. The rows are the simple loop (one PSF by FFT
of the pupil and one fftconvolve per patch), fftconvolve alone with given PSFs, our synthesis and
blur of the same crops and labels, generate_training_set.py (crops, augmentation, PSFs, blur,
files), and the fresh patches of train.py, with constant focus and with focus that changes across
half of the patches. The script is timed with the start of its processes and, from the difference
of a long and a short run, without it. All patches have 128 px and the given PSFs 127 px.
"""

import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.signal import fftconvolve

sys.path.insert(0, str(Path(__file__).parents[1]))

from common.command import keep_freed_memory, pick_device, run
from common.files import read_json, write_csv
from psf import Microscope, draw_labels, psf_model, synthesize
from psf.blur import blur_valid
from simulation.stream import PatchStream

PATCH, SUPPORT, BATCH = 128, 127, 64  # px, px, patches


@dataclass(frozen=True)
class Config:
    """Settings of the benchmark."""

    out: Path = Path("results/benchmark_generation.csv")  # table to write
    seconds: float = 5.0  # shortest time of a measurement
    patches: int = 24576  # training patches of generate_training_set.py
    workers: int = 2  # its processes
    batch: int = 64  # fresh patches that are simulated together
    device: str = "auto"  # of the fresh patches: auto, cpu, cuda or mps


def plain_psf(focus_waves: float, microscope: Microscope) -> np.ndarray:
    """PSF (127, 127) as simple scripts compute it: the squared FFT of a padded pupil."""
    size = 2 * PATCH
    frequency = np.fft.fftfreq(size) / (microscope.cutoff_cycles_per_pixel / 2)
    rho2 = frequency[:, None] ** 2 + frequency**2
    pupil = (rho2 <= 1) * np.exp(2j * np.pi * focus_waves * rho2)
    psf = np.fft.fftshift(np.abs(np.fft.fft2(pupil)) ** 2)
    low = size // 2 - SUPPORT // 2
    psf = psf[low : low + SUPPORT, low : low + SUPPORT]
    return (psf / psf.sum()).astype(np.float32)


def rate(work: Callable[[], int], seconds: float) -> float:
    """Patches per second of `work`, which returns the number of its patches; after a warm-up."""
    work()
    done, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        done += work()
    return done / elapsed


def generate(folder: str, *options: str) -> None:
    """Run generate_training_set.py with photographs and procedural images."""
    command = [sys.executable, "generate_training_set.py", "--out", f"{folder}/data"]
    command += ["--images", "mixed", "--validation-patches", "64", "--test-patches", "64", *options]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[1], capture_output=True)


def generation_seconds(patches: int, workers: int) -> float:
    """Run time of generate_training_set.py, seconds."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        generate(folder, "--train-patches", str(patches), "--workers", str(workers))
        return time.perf_counter() - started


def stream_rate(config: Config, *options: str) -> float:
    """Fresh training patches per second on the device."""
    with tempfile.TemporaryDirectory() as folder:
        generate(folder, "--train-patches", "0", *options)
        data = Path(folder) / "data"
        device = pick_device(config.device)
        stream = PatchStream(data, read_json(data / "config.json", "training set"), device, seed=0)
    steps = itertools.count()

    def draw() -> int:
        parts = stream.draw(next(steps), config.batch)
        return sum(len(part.has_content.cpu()) for part in parts)  # waits for the device

    try:
        return rate(draw, config.seconds)
    finally:
        stream.close()


def main(config: Config) -> None:
    """Measure the rates, print and write them."""
    keep_freed_memory()
    microscope, rng = Microscope(), np.random.default_rng(0)
    crop = PATCH + SUPPORT - 1
    crops = torch.from_numpy(rng.random((BATCH, crop, crop), np.float32))
    model = psf_model("zernike1d")
    labels = draw_labels(model, BATCH, rng)
    psfs = synthesize(model, labels, microscope, SUPPORT)
    arrays, kernels, focus = crops.numpy(), psfs.numpy(), labels[:, 0].tolist()

    def plain_loop() -> int:
        for crop, waves in zip(arrays[:8], focus[:8], strict=True):
            fftconvolve(crop, plain_psf(waves, microscope), mode="valid")
        return 8

    def convolve_loop() -> int:
        for crop, kernel in zip(arrays[:8], kernels[:8], strict=True):
            fftconvolve(crop, kernel, mode="valid")
        return 8

    def ours() -> int:
        blur_valid(crops, synthesize(model, labels, microscope, SUPPORT))
        return BATCH

    few = config.patches // 6
    whole, start = (generation_seconds(n, config.workers) for n in (config.patches, few))
    rates = {
        "plain loop: PSF by FFT, fftconvolve": rate(plain_loop, config.seconds),
        "fftconvolve alone": rate(convolve_loop, config.seconds),
        "ours: synthesis and blur": rate(ours, config.seconds),
        "ours: generate_training_set.py, from start to end": config.patches / whole,
        "ours: the same without the start": (config.patches - few) / (whole - start),
        "ours: fresh patches": stream_rate(config),
        "ours: fresh patches, one per crop": stream_rate(config, "--patches-per-crop", "1"),
        "ours: fresh patches, focus changes": stream_rate(config, "--focus-change-waves", "1.2"),
    }
    base = rates["plain loop: PSF by FFT, fftconvolve"]
    table = pd.DataFrame(
        {"what": name, "patches_per_second": value, "times_plain_loop": value / base}
        for name, value in rates.items()
    )
    write_csv(config.out, table)
    print(table.to_string(index=False, float_format=lambda v: f"{v:.1f}"))
    print(f"wrote {config.out}")


if __name__ == "__main__":
    run(Config, main, __doc__)
