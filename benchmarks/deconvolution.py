"""Quality and time of restorations beside other open-source programs.

    python benchmarks/deconvolution.py

Prints and writes results/benchmark_deconvolution.csv. A photograph of 512 x 512 pixels, with 1000
photons per pixel on average, is blurred by one PSF of 63 x 63 pixels (4 um of defocus), and by
8 x 8 of them (1 to 8 um from corner to corner). Every installed program restores it in one process
and one thread, timed in turn. PSNR is the peak of the truth over the rms difference, of the whole
image and of its centre, which leaves out half a PSF at each border. Outside the image the
photograph is mirrored.

Prints and writes results/benchmark_deconvolution_rank.csv: the seconds of 20 iterations and the
number of eigen-PSFs for growing numbers of PSFs on the map.

Times include all that a program does per image. Our operator keeps the transforms and weights of
the PSFs from image to image; `prepare_seconds` is the time to make them.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # NumPy and torch read all three when they are imported
os.environ["MKL_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from skimage import data
from skimage.restoration import richardson_lucy as skimage_richardson_lucy

sys.path.insert(0, str(Path(__file__).parents[1]))

from common.command import keep_freed_memory, run
from common.files import write_csv
from psf import Microscope, psf_model
from psf.synthesis import EnergyWarning
from restoration.learned import load_prior
from restoration.peers import deepinv_richardson_lucy, is_installed, sdeconv_richardson_lucy
from restoration.richardson_lucy import richardson_lucy, settle
from restoration.unrolled import START_STEPS
from restoration.variant_blur import VariantBlur, psf_grid_from_map

SIZE, PSF_SIZE, PHOTONS = 512, 63, 1000.0  # px, px, mean per pixel
PIXELS = torch.linspace(0, SIZE - 1, 8)  # places of the 8 x 8 PSFs along each axis
OPTIONAL = ("deepinv", "sdeconv")  # programs that are measured if they are installed
SKIMAGE, SKIMAGE_PADDED = "scikit-image", "scikit-image, mirrored by half a PSF"
EVERY = "scikit-image, one run per PSF, blended"
Work = dict[str, Callable[[], torch.Tensor]]


@dataclass(frozen=True)
class Config:
    """Settings of the benchmark."""

    out: Path = Path("results/benchmark_deconvolution.csv")  # table of quality and time
    ranks: Path = Path("results/benchmark_deconvolution_rank.csv")  # table of eigen-PSFs
    rounds: int = 5  # measurements of each program, taken in turn
    iterations: int = 20  # of Richardson-Lucy in the other programs
    seed: int = 0  # of the Poisson noise
    every_mask: bool = False  # also deepinv with a mask for each of 64 PSFs, which takes minutes


@dataclass(frozen=True)
class Task:
    """A truth, its noisy image, and the PSFs that blurred it: one, or a grid at `PIXELS`."""

    name: str
    psfs: torch.Tensor  # (R, C, K, K)
    weights: torch.Tensor  # (R C, H + K - 1, W + K - 1) of the PSFs, linear between grid points
    truth: torch.Tensor  # (H, W)
    image: torch.Tensor  # (H, W)


def defocused(z_um: torch.Tensor) -> torch.Tensor:
    """PSFs (R, C, K, K) of the reference optics at a defocus of (R, C) um."""
    return psf_grid_from_map(psf_model("gibson_lanni"), z_um[None], Microscope(), PSF_SIZE)


def tilted(rows: int) -> torch.Tensor:
    """Defocus (rows, rows) in um, from 1 to 8 um between two corners."""
    line = torch.linspace(1, 8, rows)
    return (line[:, None] + line) / 2


def linear_weights(places: torch.Tensor, length: int, margin: int) -> torch.Tensor:
    """Hat functions (R, length) around places in the image, constant outside them."""
    if len(places) == 1:
        return torch.ones(1, length)
    pixels = np.arange(length) - margin
    rows = [np.interp(pixels, places.numpy(), row) for row in np.eye(len(places))]
    return torch.from_numpy(np.stack(rows)).float()


def make_task(name: str, psfs: torch.Tensor, seed: int) -> Task:
    """Task whose photograph is blurred with every PSF of the grid, not with eigen-PSFs."""
    margin = PSF_SIZE // 2
    photograph = np.pad(data.camera().astype(np.float32), margin, mode="reflect")
    objects = torch.from_numpy(photograph)
    truth = objects[margin:-margin, margin:-margin]
    objects, truth = (x * PHOTONS / truth.mean() for x in (objects, truth))
    places = PIXELS if len(psfs) > 1 else PIXELS[:1]
    line = linear_weights(places, len(objects), margin)
    weights = (line[:, None, :, None] * line[None, :, None, :]).flatten(0, 1)
    clean = torch.zeros(SIZE, SIZE)
    for psf, weight in zip(psfs.flatten(0, 1), weights, strict=True):
        one = VariantBlur.from_psf(psf, (SIZE, SIZE))
        clean += one.forward((objects * weight)[None])[0]
    noisy = torch.poisson(clean.clamp(min=0), torch.Generator().manual_seed(seed))
    return Task(name, psfs, weights, truth, noisy)


def operator(task: Task, **compression: float) -> VariantBlur:
    """Our operator, with its transforms and weights already made."""
    places = PIXELS if len(task.psfs) > 1 else PIXELS[:1]
    blur = VariantBlur.from_psfs(task.psfs, places, places, (SIZE, SIZE), **compression)
    blur.adjoint(blur.forward(blur.seen[None]))
    return blur


def with_skimage(task: Task, iterations: int, margin: int = 0) -> torch.Tensor:
    """scikit-image's restoration with the PSF in the middle of the grid."""
    middle = len(task.psfs) // 2
    image = np.pad(task.image.numpy(), margin, mode="reflect")
    found = skimage_richardson_lucy(image, task.psfs[middle, middle].numpy(), iterations, False)
    return torch.from_numpy(found[margin : margin + SIZE, margin : margin + SIZE])


def ours(task: Task, blur: VariantBlur, **settings: object) -> torch.Tensor:
    """Our restoration, with settings of `richardson_lucy`."""
    return richardson_lucy(task.image, blur, **settings).image


def with_learned_prior(task: Task, blur: VariantBlur) -> torch.Tensor:
    """Our restoration with the learned prior."""
    rules = (START_STEPS, "auto", "momentum")
    settings, _ = settle(task.image, blur, torch.zeros(()), *rules)
    return load_prior().restore(task.image, blur, settings).image


def with_every_psf(task: Task, iterations: int) -> torch.Tensor:
    """One restoration of scikit-image for each PSF, blended by the weights of the PSFs."""
    margin = PSF_SIZE // 2
    image = np.pad(task.image.numpy(), margin, mode="reflect")
    total = torch.zeros(SIZE, SIZE)
    inside = slice(margin, margin + SIZE)
    for psf, weight in zip(task.psfs.flatten(0, 1), task.weights, strict=True):
        found = skimage_richardson_lucy(image, psf.numpy(), iterations, False)
        total += (torch.from_numpy(found) * weight)[inside, inside]
    return total


def deepinv_work(task: Task, iterations: int, every_mask: bool) -> Work:
    """Restorations of deepinv: with a mask for every PSF, and with our four eigen-PSFs."""
    if not is_installed("deepinv"):
        return {}
    every = task.psfs.flatten(0, 1)
    work: Work = {}
    for valid, where in ((False, "zeros outside"), (True, "valid domain")):
        few = operator(task, rank=4)
        ways = {}
        if len(every) == 1 or every_mask:
            ways["every PSF"] = (every, task.weights)
        if len(every) > 1:
            ways["eigen-PSFs, rank 4"] = (few.eigen_psfs, few.weights)
        for way, (filters, weights) in ways.items():
            work[f"deepinv MLEM, {way}, {where}"] = partial(
                deepinv_richardson_lucy, task.image, filters, weights, iterations, valid
            )
    return work


def sdeconv_work(task: Task, iterations: int) -> Work:
    """Restoration of SDeconv, if it is installed."""
    if not is_installed("sdeconv"):
        return {}
    return {"SDeconv": partial(sdeconv_richardson_lucy, task.image, task.psfs[0, 0], iterations)}


def our_work(task: Task, blur: VariantBlur) -> Work:
    """Our restorations, from the plain iteration of the other programs to our default."""
    return {
        "ours, plain, 20 iterations": partial(
            ours, task, blur, iterations=20, tv=0.0, acceleration=None
        ),
        "ours, momentum, 10 iterations": partial(ours, task, blur, iterations=10, tv=0.0),
        "ours, momentum + tv, 20 iterations": partial(ours, task, blur, iterations=20),
        "ours, momentum + tv, 50 iterations": partial(ours, task, blur, iterations=50),
        "ours, automatic": partial(ours, task, blur),
        "ours, learned prior": partial(with_learned_prior, task, blur),
    }


def psnr(found: torch.Tensor, truth: torch.Tensor, border: int = 0) -> float:
    """Peak of the whole truth over the rms difference inside a border, dB."""
    inside = slice(border, len(truth) - border)
    rms = (found - truth)[inside, inside].double().square().mean().sqrt()
    return float(20 * torch.log10(truth.max() / rms))


def seconds_in_turn(
    work: Work, rounds: int
) -> tuple[dict[str, list[float]], dict[str, torch.Tensor]]:
    """Seconds of each call, and the images; rounds make a busy machine slow all alike."""
    results = {name: call() for name, call in work.items()}
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, call in work.items():
            started = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - started)
    return seconds, results


def quality_table(config: Config) -> pd.DataFrame:
    """PSNR, seconds, and time relative to scikit-image with one PSF, for both tasks."""
    rows = []
    for name, psfs in (
        ("one PSF", defocused(torch.full((1, 1), 4.0))),
        ("8 x 8 PSFs", defocused(tilted(8))),
    ):
        task = make_task(name, psfs, config.seed)
        started = time.perf_counter()
        blur = operator(task)
        prepared = time.perf_counter() - started
        work = {SKIMAGE: partial(with_skimage, task, config.iterations)}
        if len(psfs) == 1:
            work[SKIMAGE_PADDED] = partial(
                with_skimage, task, config.iterations, margin=PSF_SIZE // 2
            )
            work |= sdeconv_work(task, config.iterations)
        else:
            work[EVERY] = partial(with_every_psf, task, config.iterations)
        work |= deepinv_work(task, config.iterations, config.every_mask) | our_work(task, blur)
        seconds, results = seconds_in_turn(work, config.rounds)
        for program, found in ({"blurred image": task.image} | results).items():
            timed = program in seconds
            ratios = np.divide(seconds[program], seconds[SKIMAGE]) if timed else [np.nan]
            rows.append(
                {
                    "task": name,
                    "program": program,
                    "psnr_db": psnr(found, task.truth),
                    "psnr_centre_db": psnr(found, task.truth, PSF_SIZE // 2),
                    "seconds": np.median(seconds[program]) if timed else np.nan,
                    "time_over_scikit_image": np.median(ratios),
                    "rank": blur.rank if program.startswith("ours") else np.nan,
                    "prepare_seconds": prepared if program.startswith("ours") else np.nan,
                }
            )
    return pd.DataFrame(rows)


def rank_table(config: Config) -> pd.DataFrame:
    """Seconds of 20 iterations and number of eigen-PSFs for 4 to 256 PSFs, by tolerance."""
    image = make_task("one PSF", defocused(torch.full((1, 1), 4.0)), config.seed).image
    work: Work = {}
    blurs = {}
    for tolerance in (1e-2, 1e-3, 1e-4):
        for rows in (2, 4, 8, 16):
            places = torch.linspace(0, SIZE - 1, rows)
            psfs = defocused(tilted(rows))
            shape = (SIZE, SIZE)
            key = f"{rows * rows}, {tolerance:g}"
            blur = VariantBlur.from_psfs(psfs, places, places, shape, tolerance)
            blur.adjoint(blur.forward(blur.seen[None]))
            blurs[key] = (rows * rows, tolerance, blur)
            work[key] = partial(lambda b: richardson_lucy(image, b, 20).image, blur)
    seconds, _ = seconds_in_turn(work, config.rounds)
    table = []
    for key, (count, tolerance, blur) in blurs.items():
        median = float(np.median(seconds[key]))
        table.append(
            {
                "psfs": count,
                "tolerance": tolerance,
                "rank": blur.rank,
                "error": blur.error,
                "seconds": median,
                "seconds_per_transform_pair": median / 20 / (blur.rank + 1),
            }
        )
    return pd.DataFrame(table)


def main(config: Config) -> None:
    """Measure, print, write."""
    torch.set_num_threads(1)
    keep_freed_memory()
    warnings.simplefilter("ignore", EnergyWarning)  # PSFs at 8 um are wider than 63 px
    for name in OPTIONAL:
        if not is_installed(name):
            print(f"note: {name} is not installed and is left out (pip install {name})")
    tables = ((quality_table(config), config.out), (rank_table(config), config.ranks))
    for table, path in tables:
        write_csv(path, table)
        print(table.to_string(index=False, na_rep="", float_format=lambda v: f"{v:.4g}"))
        print(f"wrote {path}")


if __name__ == "__main__":
    run(Config, main, __doc__)
