"""Seconds and memory from a large image to its restoration, the map included.

    python benchmarks/deconvolution_large.py

Blurs procedural objects as a tilted plane, 1000 photons per pixel, and calls deconvolve.py on the
file as a user would, with its start and all that it writes. Prints and writes
results/benchmark_deconvolution_large.csv.
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
from common.files import whole_file
from psf import Microscope, psf_model
from psf.errors import InputError
from restoration.variant_blur import VariantBlur, psf_grid_from_map
from simulation.objects import OBJECTS

ROOT = Path(__file__).parents[1]
PSF_SIZE, LEVELS = 95, 17
OPTICS = "--na 0.45 --wavelength-um 0.5 --pixel-size-um 0.278 --refractive-index 1.33".split()


@dataclass(frozen=True)
class Config:
    """Settings of the benchmark."""

    out: Path = Path("results/benchmark_deconvolution_large.csv")
    scratch: Path = Path("data/deconvolution_large")
    size: int = 2048  # px, edge of the image
    objects: str = "dead_leaves"  # kind of procedural objects
    iterations: tuple[str, ...] = ("auto", "20")
    seed: int = 0


def make_image(config: Config) -> tuple[torch.Tensor, torch.Tensor]:
    """Truth and noisy image, both (H, W) photons; focus rises from 0 to 2.5 waves along x."""
    model, size = psf_model("zernike1d"), config.size
    focus = torch.linspace(0, 2.5, LEVELS).expand(1, 2, LEVELS)
    psfs = psf_grid_from_map(model, focus, Microscope(), PSF_SIZE)
    rows, columns = torch.tensor([0.0, size - 1.0]), torch.linspace(0, size - 1, LEVELS)
    blur = VariantBlur.from_psfs(psfs, rows, columns, (size, size))
    rng = np.random.default_rng(config.seed)
    sharp = OBJECTS[config.objects](rng, size + PSF_SIZE - 1).astype(np.float32) + 0.02
    sharp = torch.from_numpy(sharp) * 1000 / sharp.mean()
    clean = blur.forward(sharp[None])[0].clamp(min=0)
    noisy = torch.poisson(clean, torch.Generator().manual_seed(config.seed))
    return sharp[blur.image_part], noisy


def psnr(found: torch.Tensor, truth: torch.Tensor) -> float:
    """Peak of the truth over the rms difference, dB."""
    rms = (found - truth).double().square().mean().sqrt()
    return float(20 * torch.log10(truth.max() / rms))


def main(config: Config) -> None:
    """Make the image, restore it, measure."""
    if config.size < 256 or config.objects not in OBJECTS:
        raise InputError(f"give --size of at least 256 and --objects of {', '.join(OBJECTS)}.")
    truth, noisy = make_image(config)
    path = config.scratch / "image.tif"
    with whole_file(path) as partial:
        tifffile.imwrite(partial, noisy.numpy().astype(np.uint16))
    rows = []
    for iterations in config.iterations:
        out = config.scratch / f"restored_{iterations}"
        command = [sys.executable, str(ROOT / "deconvolve.py"), str(path), *OPTICS]
        command += ["--offset-counts", "0", "--gain-counts-per-e", "1"]
        command += ["--iterations", iterations, "--out", str(out)]
        started = time.perf_counter()
        subprocess.run(command, check=True)
        seconds = time.perf_counter() - started
        found = torch.from_numpy(tifffile.imread(out / "restored.tif"))
        rows.append(
            {
                "image_px": config.size,
                "iterations": iterations,
                "seconds": seconds,
                # of the largest child so far: the first row is the one to trust
                "peak_memory_gb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6,
                "psnr_blurred_db": psnr(noisy, truth),
                "psnr_restored_db": psnr(found, truth),
            }
        )
    table = pd.DataFrame(rows)
    with whole_file(config.out) as unfinished:
        table.to_csv(unfinished, index=False, float_format="%.4g")
    print(table.to_string(index=False, float_format=lambda v: f"{v:.4g}"))
    print(f"wrote {config.out}")


if __name__ == "__main__":
    run(Config, main, __doc__)
