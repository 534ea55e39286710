"""Speed and memory of maps: dense against one window at a time, and a large image on disk.

    python benchmarks/mapping.py
    python benchmarks/mapping.py --large-px 16384

Maps a blurred texture of 2048 x 2048 px at strides 32 and 16, and predicts some of the same windows
one by one, in the same run; says how far the two differ. With --large-px a tiled TIFF of that side
is written to --scratch and mapped by estimate_psf_map.py: once killed on the way and taken up
again, and once in one go; the tables must be the same. Writes results/benchmark_mapping.csv.
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
from common.files import whole_file
from models.checkpoint import load_estimator
from models.mapping import predict_map
from psf.blur import blur_valid
from psf.errors import InputError
from psf.microscope import Microscope
from psf.noise import camera_counts, to_photons
from psf.synthesis import synthesize
from simulation.sources import builtin_sources, read_plane

ROOT = Path(__file__).parents[1]
SIZE = 2048
STRIDES = (32, 16)
SINGLE = 200  # windows predicted one by one
TILE = 256  # px, of the large TIFF
PATIENCE_S = 600


@dataclass(frozen=True)
class Config:
    """Settings of the benchmark."""

    checkpoint: Path = Path("zernike1d")
    large_px: int | None = None  # side of an image on disk; default: none
    large_stride: int = 64
    scratch: Path = Path("data/large_map")  # of the large image
    out: Path = Path("results")


def scene() -> torch.Tensor:
    """Photons (2048, 2048) of a texture out of focus by one wave."""
    (source,) = (s for s in builtin_sources() if s.name == "gravel")
    sharp = torch.from_numpy(read_plane(source))
    psfs = synthesize("zernike1d", torch.tensor([[1.0]]), Microscope(), 63)
    blurred = blur_valid(sharp[None], psfs)[0]
    missing = [(0, SIZE - n) for n in blurred.shape]
    whole = torch.from_numpy(np.pad(blurred.numpy(), missing, mode="symmetric"))
    return camera_counts(to_photons(whole[None], 1000.0), torch.Generator().manual_seed(0))[0]


def dense_rows(config: Config, image: torch.Tensor) -> Iterator[dict]:
    """Time of dense maps, and of their windows one by one."""
    estimator, optics = load_estimator(config.checkpoint), Microscope()
    size = estimator.patch_size
    predict_map(estimator, image[:512, :512], optics, 32)  # warm up
    for stride in STRIDES:
        started = time.perf_counter()
        found = predict_map(estimator, image, optics, stride)
        dense_s = time.perf_counter() - started
        count = found.content.numel()
        chosen = np.random.default_rng(0).choice(count, SINGLE, replace=False)
        rows, columns = np.divmod(chosen, found.content.shape[1])
        started = time.perf_counter()
        single = torch.cat(
            [
                estimator.predict(
                    image[r * stride :, c * stride :][None, :size, :size], optics
                ).values
                for r, c in zip(rows.tolist(), columns.tolist(), strict=True)
            ]
        )
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


def write_large(path: Path, side: int, image: torch.Tensor) -> None:
    """Tiled uint16 TIFF, the scene side by side."""
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


def large_row(config: Config, image: torch.Tensor) -> dict:
    """Map an image on disk, killed once and resumed, and in one go."""
    side = config.large_px
    if side % TILE or side < SIZE:
        raise InputError(f"--large-px must be a multiple of {TILE} and at least {SIZE}.")
    path = config.scratch / f"large_{side}.tif"
    if not path.is_file():
        write_large(path, side, image)
    optics = "--na 0.45 --wavelength-um 0.5 --pixel-size-um 0.278 --refractive-index 1.33".split()
    command = [sys.executable, str(ROOT / "estimate_psf_map.py"), str(path), *optics]
    command += ["--checkpoint", str(config.checkpoint), "--stride", str(config.large_stride)]
    resumed, whole = config.scratch / "resumed", config.scratch / "whole"
    unfinished = resumed / "unfinished_map.f32"
    child = subprocess.Popen([*command, "--out", str(resumed)])
    waiting = time.perf_counter()
    while child.poll() is None and not unfinished.is_file():
        time.sleep(0.05)
        if time.perf_counter() - waiting > PATIENCE_S:
            break
    time.sleep(2)
    child.kill()
    child.wait()
    kept = unfinished.stat().st_size if unfinished.is_file() else 0
    subprocess.run([*command, "--out", str(resumed)], check=True)
    started = time.perf_counter()
    subprocess.run([*command, "--out", str(whole)], check=True)
    seconds = time.perf_counter() - started
    tables = [pd.read_csv(folder / "map.csv") for folder in (resumed, whole)]
    peak_gb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    return {
        "what": f"{side} x {side} px on disk, stride {config.large_stride}, all files written",
        "patches": len(tables[0]),
        "seconds": seconds,
        "patches_per_second": len(tables[0]) / seconds,
        "peak_memory_gb": peak_gb,
        "kept_after_kill_mb": kept / 2**20,
        "largest_difference": float(tables[0].sub(tables[1]).abs().max().max()),
    }


def main(config: Config) -> None:
    """Measure, print, write."""
    keep_freed_memory()
    image = scene()
    rows = list(dense_rows(config, image))
    if config.large_px is not None:
        rows.append(large_row(config, image))
    table = pd.DataFrame(rows)
    with whole_file(config.out / "benchmark_mapping.csv") as partial:
        table.to_csv(partial, index=False, float_format="%.4g")
    print(table.to_string(index=False, float_format="%.4g"))
    print(f"wrote {config.out / 'benchmark_mapping.csv'}")


if __name__ == "__main__":
    run(Config, main, __doc__)
