"""Speed of exported networks in ONNX Runtime, beside PyTorch, and how far they are from it.

    python benchmarks/export_speed.py

Exports every shipped network to a temporary folder and predicts the same batches with both, on one
thread. Needs `pip install -r requirements-export.txt`. Writes results/benchmark_export.csv.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))

from common.command import keep_freed_memory, run
from common.files import write_csv
from export.card import facts
from export.comparison import compare_patches, largest_of_range, open_session, run_session
from export.examples import simulated_case
from export.onnx_file import OPSET, write_patch_network
from models.checkpoint import load_estimator, shipped_names
from models.networks import CPU_BATCH

ROUNDS = 5  # of each program in turn; the fastest counts, since other work only slows down
BATCHES = 4  # in a round: about half a second


@dataclass(frozen=True)
class Config:
    """Settings of the benchmark."""

    checkpoints: tuple[str, ...] = ()  # networks: folders or shipped names (default: all shipped)
    out: Path = Path("results")  # folder for benchmark_export.csv


def seconds_of(work: Callable[[], object]) -> float:
    """Seconds of BATCHES batches."""
    started = time.perf_counter()
    for _ in range(BATCHES):
        work()
    return time.perf_counter() - started


def row(name: str, folder: Path) -> dict[str, str | float]:
    """Speed of a network in both programs, and the largest difference."""
    estimator = load_estimator(name)
    path = folder / f"{estimator.name}.onnx"
    write_patch_network(path, estimator, facts(estimator, OPSET))
    session = open_session(path, threads=1)
    case = simulated_case(estimator, CPU_BATCH)
    programs = {
        "pytorch": lambda: estimator.predict(case.patches, case.microscopes),
        "onnxruntime": lambda: run_session(session, case.patches, case.cutoffs),
    }
    best = {program: seconds_of(work) for program, work in programs.items()}  # warms up
    for _ in range(ROUNDS):
        for program, work in programs.items():
            best[program] = min(best[program], seconds_of(work))
    rates = {
        f"{program}_patches_per_second": BATCHES * CPU_BATCH / s for program, s in best.items()
    }
    differences = compare_patches(path, estimator)
    return {
        "network": estimator.name,
        "batch": CPU_BATCH,
        "threads": 1,
        **rates,
        "times_pytorch": best["pytorch"] / best["onnxruntime"],
        "difference_of_range": largest_of_range(differences),
        "difference_of_probability": max(d["content_probability"] for d in differences.values()),
        "megabytes": path.stat().st_size / 1e6,
    }


def main(config: Config) -> None:
    """Export and time every network, then print and write the table."""
    keep_freed_memory()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        names = tqdm(config.checkpoints or shipped_names(), unit="network")
        table = pd.DataFrame([row(name, Path(folder)) for name in names])
    write_csv(config.out / "benchmark_export.csv", table)
    print(table.to_string(index=False, float_format="%.3g"))
    print(f"wrote {config.out / 'benchmark_export.csv'}")


if __name__ == "__main__":
    run(Config, main, __doc__)
