"""What a GPU makes of this project, in a few minutes: correctness, speed, and trained networks.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --parts d

Each part ends within 9 minutes, part d within 9 minutes per network. A row is written to
results/gpu/ as soon as it is measured, with the name of the card. Repeat the command to continue:
finished rows are kept, and a training that ran out of time goes on.

    a  tests.csv     the tests marked gpu: results equal to those of the CPU
    b  rates.csv     patches per second of simulation, training and prediction, by batch size, and
                     the share of the time in which the GPU is busy
    c  trained.csv   the default network, trained for --minutes and scored on the test patches
    d  networks.csv  the default network and its rivals, each trained on --patches patches
    e  speed.csv     a map and restorations, in seconds, beside the CPU's
"""

import multiprocessing
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args
from xml.etree import ElementTree

import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.gpu_speed import comparisons, rates
from benchmarks.gpu_table import Row, Table, made_by
from common.command import keep_freed_memory, next_command, pick_device, run

ROOT = Path(__file__).parents[1]
PART_S = 540.0  # longest time of a part, seconds; part d: of a network
SCORING_S = 60.0  # of that time, kept for the start of a training and for its scores
STOP_S = 60.0  # time that a training gets to end after Ctrl-C
Network = Literal["spectral_resnet", "resnet18", "resnet34", "resnet50", "resnext50"]
DEFAULT: Network = "spectral_resnet"
FILES = {"a": "tests", "b": "rates", "c": "trained", "d": "networks", "e": "speed"}
# Columns that tell one row from another, beside the card and PyTorch.
KEYS = {
    "a": [],
    "b": ["what", "batch_size"],
    "c": ["network", "minutes_asked"],
    "d": ["network", "patches_asked"],
    "e": ["what", "image_px"],
}


@dataclass(frozen=True)
class Scale:
    """Sizes of the measurements."""

    data: tuple[str, ...]  # options of generate_training_set.py
    batch_sizes: tuple[int, ...]  # patches
    shortest_s: float  # of a measurement, seconds
    epoch_patches: int  # patches between two validations of a training
    batch_size: int  # of the trainings
    patches: int  # that each network of part d is trained on
    minutes: float  # of part c
    networks: tuple[str, ...]  # of part d
    image_px: int  # edge of the image that is mapped and restored


SCALES = {
    "full": Scale(
        data=("--images", "mixed", "--validation-patches", "512", "--test-patches", "1024"),
        batch_sizes=(64, 128, 256, 512, 1024, 2048),
        shortest_s=3.0,
        epoch_patches=102_400,
        batch_size=256,
        patches=2_048_000,
        minutes=6.0,
        networks=get_args(Network),
        image_px=1024,
    ),
    # runs through all parts on a CPU in a minute or two; its numbers mean nothing
    "smoke": Scale(
        data=(
            *("--images", "builtin", "--validation-patches", "40", "--test-patches", "48"),
            *("--patch-size", "64", "--psf-size", "79", "--focus-waves", "0", "1"),
        ),
        batch_sizes=(8,),
        shortest_s=0.1,
        epoch_patches=32,
        batch_size=16,
        patches=64,
        minutes=0.02,
        networks=(DEFAULT, "resnet18"),
        image_px=192,
    ),
}


@dataclass(frozen=True)
class Config:
    """Settings of the benchmark."""

    parts: tuple[Literal["a", "b", "c", "d", "e"], ...] = ("a", "b", "c", "d", "e")  # to measure
    minutes: float | None = None  # training time of part c (default 6)
    patches: int | None = None  # patches that each network of part d sees (default 2,048,000)
    networks: tuple[Network, ...] | None = None  # of part d (default: all), as --model of train.py
    batch_size: int | None = None  # of the trainings (default 256)
    learning_rate: float = 2e-3  # of the trainings; not tuned for large batches
    device: str = "auto"  # auto, cpu, cuda or mps
    scale: Literal["full", "smoke"] = "full"  # smoke: tiny, to try the command without a GPU
    data: Path = Path("data/gpu")  # folder for validation and test patches, made if it is missing
    runs: Path = Path("runs/gpu")  # folder for the trained networks
    out: Path = Path("results/gpu")  # folder for the tables


class Unfinished(Exception):
    """A training that needs the command once more."""


def part_a(config: Config, table: Table) -> None:
    """Run the tests of a GPU."""
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-m", "gpu", "-p", "no:cacheprovider"]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "tests.xml"
        subprocess.run([*command, f"--junitxml={report}"], cwd=ROOT, timeout=PART_S)
        if not report.is_file():
            raise RuntimeError("pytest did not start; pip install -r requirements-dev.txt")
        suite = ElementTree.parse(report).getroot().find("testsuite")
    counts = {name: int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped")}
    failed = [c.get("name") for c in suite.iter("testcase") if c.find("failure") is not None]
    table.add({**counts, "seconds": float(suite.get("time")), "failed": "; ".join(failed)})
    if counts["failures"] or counts["errors"]:
        raise RuntimeError(f"{counts['failures']} tests fail, {counts['errors']} do not start")


def part_b(config: Config, table: Table) -> None:
    """Measure patches per second."""
    scale = SCALES[config.scale]
    make_data(config)
    sizes = (scale.batch_sizes, scale.shortest_s)
    for row in rates(config.data, config.device, *sizes, table.done()):
        table.add(row)


def part_c(config: Config, table: Table) -> None:
    """Train the default network for a time, and score it."""
    minutes = config.minutes or SCALES[config.scale].minutes
    if (DEFAULT, minutes) in table.done():
        return
    budget = ("--max-minutes", str(minutes))
    scores = train_and_score(config, DEFAULT, config.runs / f"{DEFAULT}_{minutes:g}_min", budget)
    table.add({"network": DEFAULT, "minutes_asked": minutes, **scores})


def part_d(config: Config, table: Table) -> None:
    """Train each network on the same number of patches, and score it."""
    scale = SCALES[config.scale]
    patches = config.patches or scale.patches
    budget = ("--epochs", str(-(-patches // scale.epoch_patches)))
    failed, unfinished = [], []
    for network in config.networks or scale.networks:
        if (network, patches) in table.done():
            continue
        try:
            scores = train_and_score(config, network, config.runs / network, budget)
            table.add({"network": network, "patches_asked": patches, **scores})
        except Unfinished as reason:
            unfinished.append(str(reason))
        except RuntimeError as error:
            failed.append(str(error))
    if failed:
        raise RuntimeError("; ".join(failed + unfinished))
    if unfinished:
        raise Unfinished("; ".join(unfinished))


def part_e(config: Config, table: Table) -> None:
    """Compare the time of a map and of restorations with the CPU's."""
    device = pick_device(config.device)
    for row in comparisons(device, SCALES[config.scale].image_px, table.done()):
        table.add(row)


PARTS: dict[str, Callable[[Config, Table], None]] = {
    "a": part_a,
    "b": part_b,
    "c": part_c,
    "d": part_d,
    "e": part_e,
}


def make_data(config: Config) -> None:
    """Make the validation and test patches, unless they are there."""
    if (config.data / "run.json").is_file():
        return
    options = ("--train-patches", "0", "--patches-per-crop", "1", "--out", str(config.data))
    call("generate_training_set.py", *SCALES[config.scale].data, *options, seconds=PART_S)


def train_and_score(config: Config, network: str, folder: Path, budget: tuple[str, str]) -> Row:
    """Scores of a network on the test patches after a training, which goes on where it stopped.

    Raises
    ------
    Unfinished
        If the training needs more time than a part has.
    """
    make_data(config)
    scale = SCALES[config.scale]
    options = ("--data", str(config.data), "--device", config.device)
    if not (folder / "run.json").is_file():
        fixed = ("--fresh", "--epoch-patches", str(scale.epoch_patches), "--model", network)
        fixed += ("--batch-size", str(config.batch_size or scale.batch_size))
        fixed += ("--learning-rate", str(config.learning_rate), "--out", str(folder))
        call("train.py", *options, *fixed, *budget, seconds=PART_S - SCORING_S)
    scores = config.out / "scores" / folder.name
    call(
        *("benchmark_models.py", *options, "--checkpoints", str(folder), "--out", str(scores)),
        seconds=PART_S,
    )
    return summary(folder / "metrics.csv", scores / "benchmark.csv")


def call(script: str, *arguments: str, seconds: float) -> None:
    """Run a script of the project.

    Raises
    ------
    Unfinished
        If it does not end in time; it is then stopped as by Ctrl-C and keeps its finished work.
    RuntimeError
        If it fails.
    """
    print("+", " ".join((script, *arguments)), flush=True)
    child = subprocess.Popen([sys.executable, str(ROOT / script), *arguments])
    try:
        code = child.wait(seconds)
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGINT)
        try:
            child.wait(STOP_S)
        except subprocess.TimeoutExpired:
            child.kill()
        raise Unfinished(
            f"{script} {' '.join(arguments)} was stopped after {seconds:.0f} s"
        ) from None
    if code:
        raise RuntimeError(f"{script} {' '.join(arguments)} ended with exit code {code}")


def summary(metrics: Path, benchmark: Path) -> Row:
    """Length of a training, and R^2 at each condition over all test images of its best weights."""
    last = pd.read_csv(metrics).iloc[-1]
    table = pd.read_csv(benchmark)
    kinds = set(table["images"])  # "all" stands beside several kinds of images only
    table = table[table["images"] == ("all" if len(kinds) > 1 else kinds.pop())]
    names = (f"r2_{r.parameter}_{r.condition}" for r in table.itertuples())
    return {
        "weights": table["weights"].iloc[0],
        "patches_seen": int(last["patches_seen"]),
        "minutes": last["minutes"],
        "patches_per_second": last["patches_seen"] / (60 * last["minutes"]),
        "patches_of_best": table["patches_seen"].iloc[0],
        **dict(zip(names, table["r2"], strict=True)),
    }


def run_part(config: Config, part: str) -> None:
    """Run a part in this process, which ends with 0, with 1 after an error, or 3 if unfinished."""
    keep_freed_memory()
    path = config.out / f"{FILES[part]}.csv"
    try:
        table = Table(path, KEYS[part], made_by(pick_device(config.device)))
        PARTS[part](config, table)
    except Unfinished as reason:
        print(f"part {part} goes on when the command is repeated: {reason}")
        sys.exit(3)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        log = config.runs / f"failed_{part}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(traceback.format_exc(), encoding="utf-8")
        text = " ".join(str(error).split()) or "no message"
        print(f"part {part} failed: {type(error).__name__}: {text} (see {log})")
        sys.exit(1)


def in_own_process(config: Config, part: str) -> str:
    """Outcome of a part in a process of its own: "done", "unfinished" or "failed".

    An error on the GPU spoils all later work of its process.
    """
    networks = len(config.networks or SCALES[config.scale].networks) if part == "d" else 1
    process = multiprocessing.get_context("spawn").Process(target=run_part, args=(config, part))
    process.start()
    process.join((PART_S + STOP_S) * networks)
    if process.is_alive():
        process.kill()
        process.join()
        print(f"part {part} failed: it did not end in time")
    elif process.exitcode not in (0, 1, 3):
        print(f"part {part} failed: its process ended with exit code {process.exitcode}")
    return {0: "done", 3: "unfinished"}.get(process.exitcode, "failed")


def main(config: Config) -> None:
    """Run the parts in order; print what they wrote and what to run next."""
    pick_device(config.device)  # refuses one that is missing, before any work
    config.out.mkdir(parents=True, exist_ok=True)
    outcomes = {part: in_own_process(config, part) for part in config.parts}
    for part, outcome in outcomes.items():
        print(f"part {part} {outcome}: {config.out / FILES[part]}.csv")
    again = [part for part, outcome in outcomes.items() if outcome != "done"]
    if again:
        print(f"next: repeat the command; to skip the rest, with --parts {' '.join(again)}")
    elif "d" in config.parts:
        networks = config.networks or SCALES[config.scale].networks
        runs = [config.runs / network for network in networks]
        print(next_command("benchmarks/architectures.py", "--collect-only", *runs))
    sys.exit(1 if "failed" in outcomes.values() else 0)


if __name__ == "__main__":
    run(Config, main, __doc__)
