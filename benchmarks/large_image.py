"""Time and memory of the map of a very large image, here and on a local Dask cluster.

    python benchmarks/large_image.py --edges-px 8192 32768

The image is an OME-Zarr of --edges-px, whose chunks are links to those of a few textures. So it
takes less than 100 MB on the disk, and the reader decodes every chunk. The defocus rises from left
to right. estimate_psf_map.py maps it here, then on one and on two Dask workers, and the tables are
compared byte by byte. Memory is the largest of each process. Writes
results/benchmark_large_image.csv, in which other runs stay.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from common.command import run
from common.extras import needed
from common.files import write_csv
from psf.blur import blur_valid
from psf.errors import InputError
from psf.microscope import Microscope
from psf.noise import camera_counts, to_photons
from psf.synthesis import synthesize
from simulation.sources import builtin_sources, read_plane

ROOT = Path(__file__).parents[1]
CHUNK = 512  # px, a usual edge of the chunks of an OME-Zarr
TEXTURE = 1024  # px, edge of a texture; the image repeats it
LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75)  # waves of defocus, from left to right
PHOTONS = 1000.0  # mean photons per pixel
PSF_PX = 95  # edge of the PSF: holds 99 % of its light
OPTICS = "--na 0.45 --wavelength-um 0.5 --pixel-size-um 0.278 --refractive-index 1.33".split()
RUN = ["edge_px", "stride_px", "dask_workers"]  # columns that tell a run
PATIENCE_S = 30  # longest wait for the scheduler and for a worker


@dataclass(frozen=True)
class Config:
    """Settings of the benchmark."""

    edges_px: tuple[int, ...] = (32768,)  # of the images, multiples of 4096
    stride: int = 128  # pixels between patches
    checkpoint: Path = Path("zernike1d_tilted")  # network: a folder, or the name of a shipped one
    workers: tuple[int, ...] = (0, 1, 2)  # Dask workers of each run; 0: no cluster
    threads: int = 1  # of PyTorch in each process
    scratch: Path = Path("data/large_image")  # folder for the images and their maps
    out: Path = Path("results")  # folder for benchmark_large_image.csv


def textures() -> np.ndarray:
    """Counts (levels, 1024, 1024) of one texture at every defocus."""
    (source,) = (s for s in builtin_sources() if s.name == "gravel")
    edge = TEXTURE // 2 + PSF_PX - 1
    sharp = torch.from_numpy(read_plane(source)[:edge, :edge])
    psfs = synthesize("zernike1d", torch.tensor(LEVELS)[:, None], Microscope(), PSF_PX)
    blurred = blur_valid(sharp.expand(len(LEVELS), -1, -1), psfs).numpy()
    missing = [(0, TEXTURE - n) for n in blurred.shape[1:]]
    whole = torch.from_numpy(np.pad(blurred, [(0, 0), *missing], mode="symmetric"))
    counts = camera_counts(to_photons(whole, PHOTONS), torch.Generator().manual_seed(0))
    return counts.clamp(0, 65535).numpy().astype(np.uint16)


def write_image(path: Path, edge: int) -> None:
    """Write an OME-Zarr of this edge, px, whose chunks are links to those of the textures."""
    zarr = needed("zarr", "benchmarks/large_image.py", "requirements-formats.txt")
    shutil.rmtree(path, ignore_errors=True)
    source = zarr.create_array(
        path / "textures", shape=(TEXTURE, TEXTURE * len(LEVELS)), chunks=(CHUNK, CHUNK), dtype="u2"
    )
    source[:] = np.concatenate(list(textures()), 1)
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "yx"]
    scale = {"type": "scale", "scale": [0.278, 0.278]}
    levels = [{"path": "0", "coordinateTransformations": [scale]}]
    group = zarr.open_group(path / "image.zarr", mode="w")
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": levels}]}
    group.create_array("0", shape=(edge, edge), chunks=(CHUNK, CHUNK), dtype="u2")
    count, inner = edge // CHUNK, TEXTURE // CHUNK
    for row in range(count):
        line = path / "image.zarr" / "0" / "c" / str(row)
        line.mkdir(parents=True)
        for column in range(count):
            level = column * len(LEVELS) // count
            its = path / "textures" / "c" / str(row % inner) / str(inner * level + column % inner)
            os.link(its, line / str(column))


@contextmanager
def cluster(workers: int, folder: Path) -> Iterator[tuple[str, list[subprocess.Popen]]]:
    """Address of a Dask scheduler and the processes of its workers, one thread each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address, quiet = f"tcp://127.0.0.1:{port}", {"stderr": subprocess.DEVNULL}
    dask = [sys.executable, "-m", "dask"]
    options = ["--host", "127.0.0.1", "--port", str(port), "--no-dashboard"]
    made = [subprocess.Popen([*dask, "scheduler", *options], **quiet)]
    try:
        wait_for_port(port)
        options = ["--no-nanny", "--nthreads", "1", "--no-dashboard"]
        options += ["--local-directory", str(folder)]
        command = [*dask, "worker", address, *options]
        made += [subprocess.Popen(command, **quiet) for _ in range(workers)]
        wait_for_workers(address, workers)
        yield address, made[1:]
    finally:
        for process in reversed(made):
            process.kill()
            process.wait()


def wait_for_port(port: int) -> None:
    """Return once a program listens at this port of this computer."""
    ends = time.monotonic() + PATIENCE_S
    while time.monotonic() < ends:
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise InputError(f"the Dask scheduler did not start within {PATIENCE_S} s.")


def wait_for_workers(address: str, count: int) -> None:
    """Return once the scheduler has that many workers."""
    distributed = needed("distributed", "benchmarks/large_image.py", "requirements-cluster.txt")
    with distributed.Client(address, set_as_default=False) as client:
        client.wait_for_workers(count, timeout=PATIENCE_S)


def peak_gb(pid: int) -> float:
    """Largest memory that a running process has used, GB."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 2**20


def run_map(command: Sequence[str], threads: int) -> tuple[float, float]:
    """Seconds and largest memory in GB of a command that maps an image."""
    started = time.perf_counter()
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": str(threads)})
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise InputError(f"{' '.join(command)} ended with exit code {process.returncode}.")
    return time.perf_counter() - started, usage.ru_maxrss / 2**20


def measure(config: Config, edge: int, workers: int) -> dict[str, str | float]:
    """Time and memory of one map."""
    folder = config.scratch.absolute() / str(edge)
    out = folder / f"map_{workers}"
    command = [sys.executable, str(ROOT / "estimate_psf_map.py"), str(folder / "image.zarr")]
    command += [*OPTICS, "--checkpoint", str(config.checkpoint), "--stride", str(config.stride)]
    command += ["--no-full-resolution", "--device", "cpu", "--out", str(out)]
    if workers:
        with cluster(workers, folder) as (address, processes):
            seconds, memory = run_map([*command, "--dask", address], config.threads)
            peaks = [peak_gb(process.pid) for process in processes]
    else:
        (seconds, memory), peaks = run_map(command, config.threads), []
    table = (out / "map.csv").read_bytes()
    first = folder / f"map_{config.workers[0]}" / "map.csv"
    return {
        "edge_px": edge,
        "stride_px": config.stride,
        "dask_workers": workers,
        "patches": table.count(b"\n") - 1,
        "seconds": seconds,
        "memory_gb": memory,
        "largest_worker_gb": max(peaks, default=np.nan),
        "same_table": table == first.read_bytes(),
    }


def main(config: Config) -> None:
    """Make the images, map them, and write the table after each run."""
    if wrong := [edge for edge in config.edges_px if edge < 4096 or edge % 4096]:
        raise InputError(f"--edges-px is {wrong[0]}; give multiples of 4096.")
    path = config.out / "benchmark_large_image.csv"
    for edge in config.edges_px:
        write_image(config.scratch.absolute() / str(edge), edge)
        for workers in config.workers:
            table = pd.DataFrame([measure(config, edge, workers)])
            if path.is_file():
                table = pd.concat([pd.read_csv(path), table])
            table = table.drop_duplicates(RUN, keep="last").sort_values(RUN)
            print(table.to_string(index=False))
            write_csv(path, table)


if __name__ == "__main__":
    run(Config, main, __doc__)
