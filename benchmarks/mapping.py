"""Speed and memory of maps, and a map of a large image on disk that is interrupted.

    python benchmarks/mapping.py
    python benchmarks/mapping.py --large-px 16384

Maps a blurred texture of 2048 x 2048 px at strides 32 and 16. In the same run it predicts some of
the patches one by one, and compares time and values. With --large-px it also writes a tiled TIFF of
that edge to --scratch and maps it with estimate_psf_map.py twice: the first run is killed and
resumed, the second is not. Both tables should be equal. Writes results/benchmark_mapping.csv.
"""

import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import tifffile
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from common.command import keep_freed_memory, run
from common.files import whole_file, write_csv
from models.checkpoint import load_estimator
from models.estimator import Estimator
from models.mapping import predict_map
from psf.blur import blur_valid
from psf.errors import InputError
from psf.microscope import Microscope
from psf.noise import camera_counts, to_photons
from psf.synthesis import synthesize
from simulation.sources import builtin_sources, read_plane

ROOT = Path(__file__).parents[1]
SIZE = 2048  # px, edge of the image in memory: a frame of a common sCMOS camera
STRIDES = (32, 16)  # px between patches: the default of estimate_psf_map.py, and half of it
SINGLE = 200  # patches predicted one by one: a few seconds, enough for a mean time
PHOTONS = 1000.0  # mean photons per pixel
PSF_PX = 79  # edge of the PSF: holds 99 % of its light
TILE = 256  # px, edge of the tiles of the large TIFF, a usual size in microscopy files
PATIENCE_S = 600  # longest wait for the first finished rows before the run is killed
KILL_AFTER_S = 2  # from the first finished rows to the kill, so that more rows are on their way


@dataclass(frozen=True)
class Config:
    """Settings of the benchmark."""

    checkpoint: Path = Path("zernike1d")  # network: a folder, or the name of a shipped one
    large_px: int | None = None  # edge of an image on disk, a multiple of 256; default: no image
    large_stride: int = 64  # pixels between patches of the image on disk
    scratch: Path = Path("data/large_map")  # folder for the image on disk and its maps
    out: Path = Path("results")  # folder for benchmark_mapping.csv


def scene() -> torch.Tensor:
    """Photon counts (2048, 2048) of a texture, one wave out of focus."""
    (source,) = (s for s in builtin_sources() if s.name == "gravel")
    sharp = torch.from_numpy(read_plane(source))
    psfs = synthesize("zernike1d", torch.tensor([[1.0]]), Microscope(), PSF_PX)
    blurred = blur_valid(sharp[None], psfs)[0]
    missing = [(0, SIZE - n) for n in blurred.shape]
    whole = torch.from_numpy(np.pad(blurred.numpy(), missing, mode="symmetric"))
    return camera_counts(to_photons(whole[None], PHOTONS), torch.Generator().manual_seed(0))[0]


def dense_rows(config: Config, image: torch.Tensor) -> Iterator[dict[str, str | float]]:
    """One row per stride: the time of a map, and how it compares with single patches."""
    estimator, optics = load_estimator(config.checkpoint), Microscope()
    predict_map(estimator, image[:512, :512], optics, 32)  # warm up
    for stride in STRIDES:
        started = time.perf_counter()
        found = predict_map(estimator, image, optics, stride)
        dense_s = time.perf_counter() - started
        count = found.content.numel()
        chosen = np.random.default_rng(0).choice(count, SINGLE, replace=False)
        rows, columns = np.divmod(chosen, found.content.shape[1])
        started = time.perf_counter()
        single = predict_single(estimator, image, rows * stride, columns * stride)
        single_s = (time.perf_counter() - started) / SINGLE * count
        difference = (found.values[:, rows, columns].T - single).abs().max()
        yield {
            "what": f"{SIZE} x {SIZE} px, stride {stride}",
            "patches": count,
            "seconds": dense_s,
            "patches_per_second": count / dense_s,
            "times_single_windows": single_s / dense_s,
            "largest_difference": float(difference),
        }


def predict_single(
    estimator: Estimator, image: torch.Tensor, tops: np.ndarray, lefts: np.ndarray
) -> torch.Tensor:
    """Values (N, P) of patches predicted one at a time, by their upper left corners, pixels."""
    size = estimator.patch_size
    corners = zip(tops.tolist(), lefts.tolist(), strict=True)
    patches = (image[None, top : top + size, left : left + size] for top, left in corners)
    return torch.cat([estimator.predict(patch, Microscope()).values for patch in patches])


def write_large(path: Path, side: int, image: torch.Tensor) -> None:
    """Write a tiled uint16 TIFF of copies of the image, side by side."""
    counts = image.clamp(0, 65535).numpy().astype(np.uint16)
    per_side = side // TILE
    inner = SIZE // TILE

    def tiles() -> Iterator[np.ndarray]:
        for r in range(per_side):
            for c in range(per_side):
                y, x = (r % inner) * TILE, (c % inner) * TILE
                yield counts[y : y + TILE, x : x + TILE]

    with whole_file(path) as partial:
        tifffile.imwrite(
            partial, tiles(), shape=(side, side), dtype=np.uint16, tile=(TILE, TILE), bigtiff=True
        )


def run_and_kill(command: list[str], unfinished: Path) -> float:
    """Size in MB of the file of finished rows, after a run that was killed once it had some."""
    child = subprocess.Popen(command)
    started = time.perf_counter()
    while child.poll() is None and not unfinished.is_file():
        time.sleep(0.05)
        if time.perf_counter() - started > PATIENCE_S:
            break
    time.sleep(KILL_AFTER_S)
    child.kill()
    child.wait()
    return unfinished.stat().st_size / 2**20 if unfinished.is_file() else 0.0


def large_row(config: Config, image: torch.Tensor) -> dict[str, str | float]:
    """Time and memory of the map of an image on disk, and its distance from the resumed map."""
    side = config.large_px
    if side % TILE or side < SIZE:
        raise InputError(
            f"--large-px is {side}; give a multiple of {TILE} that is at least {SIZE}."
        )
    path = config.scratch / f"large_{side}.tif"
    if not path.is_file():
        write_large(path, side, image)
    optics = "--na 0.45 --wavelength-um 0.5 --pixel-size-um 0.278 --refractive-index 1.33".split()
    command = [sys.executable, str(ROOT / "estimate_psf_map.py"), str(path), *optics]
    command += ["--checkpoint", str(config.checkpoint), "--stride", str(config.large_stride)]
    resumed, whole = config.scratch / "resumed", config.scratch / "whole"
    first_run = [*command, "--out", str(resumed)]
    kept_mb = run_and_kill(first_run, resumed / "unfinished_map.f32")
    subprocess.run(first_run, check=True)
    started = time.perf_counter()
    subprocess.run([*command, "--out", str(whole)], check=True)
    seconds = time.perf_counter() - started
    tables = [pd.read_csv(folder / "map.csv") for folder in (resumed, whole)]
    return {
        "what": f"{side} x {side} px on disk, stride {config.large_stride}, all files written",
        "patches": len(tables[0]),
        "seconds": seconds,
        "patches_per_second": len(tables[0]) / seconds,
        "peak_memory_gb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20,
        "kept_after_kill_mb": kept_mb,
        "largest_difference": float(tables[0].sub(tables[1]).abs().max().max()),
    }


def main(config: Config) -> None:
    """Measure maps, then print and write the table."""
    keep_freed_memory()
    image = scene()
    rows = list(dense_rows(config, image))
    if config.large_px is not None:
        rows.append(large_row(config, image))
    table = pd.DataFrame(rows)
    write_csv(config.out / "benchmark_mapping.csv", table)
    print(table.to_string(index=False, float_format="%.4g"))
    print(f"wrote {config.out / 'benchmark_mapping.csv'}")


if __name__ == "__main__":
    run(Config, main, __doc__)
