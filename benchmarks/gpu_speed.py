"""Measurements of `gpu.py`: patches per second, how busy the GPU is, and times beside the CPU's."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_table import Row
from models.checkpoint import load_estimator
from models.estimator import Estimator
from models.mapping import PsfMap, predict_map
from models.trainer import Settings, Trainer
from psf import Microscope, psf_model
from psf.noise import camera_counts, to_photons
from restoration.with_map import restore_with_map
from simulation.surfaces import image_of_tilted_plane

WARM_UP = 3  # calls that are not counted: they fill caches and choose algorithms
PROFILED = 5  # calls under the profiler, which slows them down; their kernels take the same time
RATE = 1e-4  # learning rate of the timed steps; their weights are not used
TILT_DEGREES, FOCUS_PSF_PX = 4.0, 95  # of the image that is mapped and restored
PHOTONS = 1000.0  # mean photons per pixel of that image
ITERATIONS = 20  # of the restoration with a given count


def synchronise(device: torch.device) -> None:
    """Wait until a GPU has done all its work; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def seconds_per_call(work: Callable[[], Any], device: torch.device, shortest_s: float) -> float:
    """Mean time of a call, over calls that take `shortest_s` together."""
    for _ in range(WARM_UP):
        work()
    synchronise(device)
    calls, started = 0, time.perf_counter()
    while True:
        work()
        calls += 1
        if time.perf_counter() - started >= shortest_s:
            synchronise(device)  # the calls so far may only be queued
            return (time.perf_counter() - started) / calls


def busy_seconds_per_call(work: Callable[[], Any], device: torch.device) -> float:
    """Time of a call during which a CUDA device computes or copies; NaN on other devices."""
    if device.type != "cuda":
        return math.nan
    synchronise(device)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for _ in range(PROFILED):
            work()
        synchronise(device)
    # annotations, e.g. of an optimiser's step, span the gaps between its kernels
    events = (e for e in profiler.events() if not getattr(e, "is_user_annotation", False))
    spans = [
        (event.time_range.start, event.time_range.end)
        for event in events
        if event.device_type == torch.autograd.DeviceType.CUDA
    ]
    return covered(spans) * 1e-6 / PROFILED  # the profiler counts microseconds


def covered(spans: Sequence[tuple[float, float]]) -> float:
    """Length of the union of time spans (start, end); kernels of two streams may overlap."""
    total, last = 0.0, -math.inf
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, last))
        last = max(last, end)
    return total


def measured(
    work: Callable[[], Any], batch_size: int, device: torch.device, shortest_s: float
) -> Row:
    """Patches per second of a call on a batch, share of the time the GPU is busy, and memory."""
    on_cuda = device.type == "cuda"
    if on_cuda:
        torch.cuda.reset_peak_memory_stats(device)
    try:
        seconds = seconds_per_call(work, device, shortest_s)
        busy = busy_seconds_per_call(work, device) / seconds
    except torch.OutOfMemoryError:
        return {"note": "out of memory"}
    finally:
        if on_cuda:
            torch.cuda.empty_cache()
    return {
        "patches_per_second": batch_size / seconds,
        "busy_share": busy,
        "memory_gb": torch.cuda.max_memory_allocated(device) / 1e9 if on_cuda else math.nan,
        "note": "",
    }


def rates(
    data: Path, device: str, batch_sizes: Sequence[int], shortest_s: float, done: set[tuple]
) -> Iterator[Row]:
    """Rows of simulation, training and prediction, for each batch size; leaves out those `done`.

    "training" is a step on patches that lie on the device. "training with simulation" also
    simulates them.
    """
    trainer = Trainer(Settings(data=data, fresh=True, device=device), 0, 1)
    with closing(trainer):
        estimator = Estimator(trainer.network, trainer.data_config, trainer.device)
        for batch_size in batch_sizes:
            for what, work in works(trainer, estimator, batch_size):
                if (what, batch_size) not in done:
                    found = measured(work, batch_size, trainer.device, shortest_s)
                    yield {"what": what, "batch_size": batch_size, **found}


def works(
    trainer: Trainer, estimator: Estimator, batch_size: int
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Calls to measure, by name."""
    feed = trainer.feed
    feed.batch_size = batch_size
    steps = iter(range(10**9))

    def simulate() -> Any:
        return next(iter(feed.batches(0, next(steps), 1)))

    batch = simulate()
    optics = Microscope(*batch.optics[0].tolist())

    def train(batch: Any) -> None:
        trainer.network.train()
        trainer.train_step(batch, RATE)

    yield "simulation", simulate
    yield "training", lambda: train(batch)
    yield "training with simulation", lambda: train(simulate())
    yield "prediction", lambda: estimator.predict(batch.patches, optics, batch_size)


def scene(side_px: int) -> torch.Tensor:
    """Counts (H, W) of a tilted plane, of which each column has its own focus."""
    clean = image_of_tilted_plane(
        "gravel", TILT_DEGREES, side_px, psf_model("zernike1d"), Microscope(), FOCUS_PSF_PX, False
    )
    photons = to_photons(clean[None], PHOTONS)
    return camera_counts(photons, torch.Generator().manual_seed(0), read_noise_e=0.0)[0]


def comparisons(device: torch.device, side_px: int, done: set[tuple]) -> Iterator[Row]:
    """Rows of map and restoration: seconds on the CPU and on a device, and their difference."""
    image, cpu = scene(side_px), torch.device("cpu")
    found = predict_map(load_estimator("zernike1d"), image, Microscope(), 32)

    def mapped(image: torch.Tensor) -> torch.Tensor:
        own = load_estimator("zernike1d", image.device)
        return predict_map(own, image, Microscope(), 32).values

    works = {
        "map at stride 32": mapped,
        f"restoration, {ITERATIONS} iterations": lambda x: restored(x, found, ITERATIONS),
        "restoration, automatic": lambda x: restored(x, found, "auto"),
    }
    for what, work in works.items():
        if (what, side_px) in done:
            continue
        (expected, cpu_s), (result, device_s) = (timed(work, image.to(d)) for d in (cpu, device))
        difference = (result.cpu() - expected).abs().max() / expected.abs().max()
        yield {
            "what": what,
            "image_px": side_px,
            "cpu_seconds": cpu_s,
            "seconds": device_s,
            "times_cpu": cpu_s / device_s,
            "largest_difference": float(difference),  # share of the largest value
        }


def restored(image: torch.Tensor, psf_map: PsfMap, iterations: int | str) -> torch.Tensor:
    """Restored image (H, W), without a scaled map if the iterations are given."""
    refined = None if iterations == "auto" else False
    return restore_with_map(image, psf_map, iterations, refined=refined)[0].image


def timed(
    work: Callable[[torch.Tensor], torch.Tensor], image: torch.Tensor
) -> tuple[torch.Tensor, float]:
    """Result and seconds of a call; a GPU makes it twice, since the first call is slower."""
    if image.device.type != "cpu":
        work(image)
    synchronise(image.device)
    started = time.perf_counter()
    result = work(image)
    synchronise(image.device)
    return result, time.perf_counter() - started
