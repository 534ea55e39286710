"""Time, memory and quality of the restoration of a large image, the map included.

    python benchmarks/deconvolution_large.py

Blurs procedural objects as a tilted plane, with 1000 photons per pixel, and runs deconvolve.py on
the file as a user would. The time includes the start of Python and all files written. Prints the
table and writes results/benchmark_deconvolution_large.csv.
"""

import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import tifffile
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from common.command import run
from common.files import whole_file, write_csv
from psf import Microscope, psf_model
from psf.errors import InputError
from restoration.variant_blur import VariantBlur, psf_grid_from_map
from simulation.objects import OBJECTS

ROOT = Path(__file__).parents[1]
HIGHEST_FOCUS_WAVES = 2.5  # at the right border
PSF_SIZE = 95  # px; holds 99 % of the light at the highest focus
LEVELS = 17  # PSFs along x, 0.16 waves apart; the blur blends neighbours linearly
PHOTONS = 1000  # mean photons per pixel
BACKGROUND = 0.02  # of the brightest object: no pixel is quite dark
SMALLEST_PX = 256  # of the image, below which it holds too few patches for a map
OPTICS = "--na 0.45 --wavelength-um 0.5 --pixel-size-um 0.278 --refractive-index 1.33".split()


@dataclass(frozen=True)
class Config:
    """Settings of the benchmark."""

    out: Path = Path("results/benchmark_deconvolution_large.csv")  # table to write
    scratch: Path = Path("data/deconvolution_large")  # folder for the image and its restorations
    size: int = 2048  # edge of the image, px
    objects: str = "dead_leaves"  # kind of procedural objects, a name in simulation.objects
    iterations: tuple[str, ...] = ("auto", "20")  # a run of deconvolve.py for each, its flag
    seed: int = 0  # of objects and noise


def make_image(config: Config) -> tuple[torch.Tensor, torch.Tensor]:
    """Sharp and recorded image, both (H, W) photons; focus rises from 0 to 2.5 waves along x."""
    model, size = psf_model("zernike1d"), config.size
    focus = torch.linspace(0, HIGHEST_FOCUS_WAVES, LEVELS).expand(1, 2, LEVELS)
    psfs = psf_grid_from_map(model, focus, Microscope(), PSF_SIZE)
    rows, columns = torch.tensor([0.0, size - 1.0]), torch.linspace(0, size - 1, LEVELS)
    blur = VariantBlur.from_psfs(psfs, rows, columns, (size, size))
    rng = np.random.default_rng(config.seed)
    sharp = OBJECTS[config.objects](rng, size + PSF_SIZE - 1).astype(np.float32) + BACKGROUND
    sharp = torch.from_numpy(sharp) * PHOTONS / sharp.mean()
    clean = blur.forward(sharp[None])[0].clamp(min=0)
    noisy = torch.poisson(clean, torch.Generator().manual_seed(config.seed))
    return sharp[blur.image_part], noisy


def psnr(found: torch.Tensor, truth: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB: peak of the truth over the rms difference."""
    rms = (found - truth).double().square().mean().sqrt()
    return float(20 * torch.log10(truth.max() / rms))


def restore(path: Path, iterations: str, out: Path) -> tuple[torch.Tensor, float]:
    """Image that deconvolve.py makes of a file, and its seconds."""
    command = [sys.executable, str(ROOT / "deconvolve.py"), str(path), *OPTICS]
    command += ["--offset-counts", "0", "--gain-counts-per-e", "1"]
    command += ["--iterations", iterations, "--out", str(out)]
    started = time.perf_counter()
    subprocess.run(command, check=True)
    seconds = time.perf_counter() - started
    return torch.from_numpy(tifffile.imread(out / "restored.tif")), seconds


def main(config: Config) -> None:
    """Make the image, restore it, then print and write the table."""
    if config.size < SMALLEST_PX:
        raise InputError(f"--size is {config.size}; give at least {SMALLEST_PX}.")
    if config.objects not in OBJECTS:
        raise InputError(f"--objects is '{config.objects}'; give one of {', '.join(OBJECTS)}.")
    truth, noisy = make_image(config)
    path = config.scratch / "image.tif"
    with whole_file(path) as partial:
        tifffile.imwrite(partial, noisy.numpy().astype(np.uint16))
    rows = []
    for iterations in config.iterations:
        found, seconds = restore(path, iterations, config.scratch / f"restored_{iterations}")
        rows.append(
            {
                "image_px": config.size,
                "iterations": iterations,
                "seconds": seconds,
                # the largest of all runs so far, so that only the first row is exact
                "peak_memory_gb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6,
                "psnr_blurred_db": psnr(noisy, truth),
                "psnr_restored_db": psnr(found, truth),
            }
        )
    table = pd.DataFrame(rows)
    write_csv(config.out, table)
    print(table.to_string(index=False, float_format=lambda v: f"{v:.4g}"))
    print(f"wrote {config.out}")


if __name__ == "__main__":
    run(Config, main, __doc__)
