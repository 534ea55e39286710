"""Score trained networks on the test patches of data sets: the paper's table.

    python benchmark_models.py --checkpoints runs/zernike1d runs/resnet18 \
        --data data/zernike1d --out results/zernike1d
    python benchmark_models.py --noise --checkpoints runs/zernike1d --data data/zernike1d

Each network is scored on the data set of its PSF model. Writes benchmark.csv, benchmark.md,
scatter.png and reliability.png. A row of benchmark.csv holds the scores of one network, parameter,
kind of images and condition: R^2 with its 95 % interval over source images, squared Pearson
correlation, rmse and median absolute error in label units and um, SNR of the PSF, coverage of the
error bars, content flag, and size, training and speed of the network.
With --noise it writes noise.csv instead: R^2 at each level of the paper's degradations, for
figure_noise_resistance.py. All networks, levels and runs share the patches and their noise.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from common.command import keep_freed_memory, next_command, pick_device, run
from common.files import run_record, whole_file, write_csv, write_json
from common.output import holds_out_folder
from common.pictures import Panel, draw_reliability, draw_scatter, network_colours
from models.checkpoint import load_estimator
from models.data import CONDITIONS, PatchSet
from models.degradations import DEGRADATIONS, Degradation, recorded_levels, turned_levels
from models.estimator import Estimator
from models.scoring import (
    BOOTSTRAP_SEED,
    SCORES,
    Scored,
    checkpoint_facts,
    prediction_rate,
    r2_interval,
    score_condition,
    table_rows,
)
from psf.errors import InputError
from psf.microscope import simulated_microscopes
from psf.model import PsfModel
from simulation.settings import from_config
from simulation.sources import load_sources, split_sources


@dataclass(frozen=True)
class Config:
    """Settings of a benchmark."""

    checkpoints: tuple[Path, ...]  # folders of train.py, or names of shipped weights
    data: tuple[Path, ...]  # folders of generate_training_set.py; their test splits are used
    out: Path = Path("results")  # folder to write
    noise: bool = False  # R^2 against the strength of degradations instead of the table
    noise_patches: int = 400  # test patches per level of a degradation
    test_patches: int | None = None  # score only the first of each data set (default: all)
    batch_size: int = 64  # patches that are on the device at once
    device: str = "auto"  # auto, cpu, cuda or mps


@dataclass(frozen=True)
class Contest:
    """A network and the test set it is scored on."""

    name: str
    estimator: Estimator
    test_set: PatchSet


def check_labels(estimator: Estimator, test_set: PatchSet, checkpoint: Path) -> None:
    """Refuse a network that predicts other labels, or other patches, than the data holds."""
    names = tuple(estimator.config["label_names"])
    if (estimator.psf_model.name, names) != (test_set.model.name, test_set.model.label_names):
        raise InputError(
            f"{checkpoint} predicts {estimator.psf_model.name} ({', '.join(names)}), but the data "
            f"hold {test_set.model.name} ({', '.join(test_set.model.label_names)}); give --data of "
            "the same PSF model."
        )
    if estimator.patch_size != test_set.config["patch_size"]:
        raise InputError(
            f"{checkpoint} takes patches of {estimator.patch_size} px, but the data hold patches "
            f"of {test_set.config['patch_size']} px; give --data with --patch-size "
            f"{estimator.patch_size}."
        )


def warn_of_seen_images(estimator: Estimator, test_set: PatchSet, checkpoint: Path) -> None:
    """Warn if a network was trained on some of the test images.

    Procedural images of different seeds have the same names, but are different images.
    """
    data = estimator.config["data"]
    trained = set(data["source_images"]["train"])
    if data.get("seed") != test_set.config["seed"]:
        trained = {name for name in trained if not name.rpartition("_")[2].isdigit()}
    seen = sorted(trained & set(test_set.config["source_images"]["test"]))
    if seen:
        warnings.warn(
            f"{checkpoint} was trained on {len(seen)} of the test images ({', '.join(seen[:3])}); "
            "its scores will be too high.",
            stacklevel=2,
        )


def pair_up(config: Config) -> list[Contest]:
    """Every network, each with the test set of its PSF model.

    Raises
    ------
    InputError
        If two checkpoints have the same name, two data sets have the same PSF model, or a network
        does not fit its data.
    """
    device = pick_device(config.device)
    test_sets = [PatchSet(folder, "test", config.test_patches) for folder in config.data]
    by_model = {test_set.model.name: test_set for test_set in test_sets}
    if len(by_model) < len(test_sets):
        raise InputError("two --data folders hold the same PSF model; give one folder per model.")
    contests: list[Contest] = []
    for checkpoint in config.checkpoints:
        estimator = load_estimator(checkpoint, device)
        name = estimator.psf_model.name
        test_set = by_model.get(name, test_sets[0])
        check_labels(estimator, test_set, checkpoint)
        warn_of_seen_images(estimator, test_set, checkpoint)
        if any((c.name, c.test_set) == (checkpoint.name, test_set) for c in contests):
            raise InputError(f"two checkpoints are called {checkpoint.name}; rename one folder.")
        contests.append(Contest(checkpoint.name, estimator, test_set))
    return contests


def markdown(table: pd.DataFrame) -> str:
    """Text of benchmark.md: a row per network, parameter and kind of images."""
    conditions = list(dict.fromkeys(table["condition"]))
    lines = [
        "R² (95 % interval over source images, drawn with replacement) on the test images; rmse, "
        "median SNR of the PSF (dB) and coverage of the 68 % and 95 % intervals at 1000 photons "
        "per pixel.",
        "",
        "| PSF model | network | trained on | parameter | test images | "
        f"{' | '.join(conditions)} | rmse | µm | PSF SNR | covered |",
        "|---|---|---|---|---|" + "---|" * (len(conditions) + 4),
    ]
    keys = ["psf_model", "network", "trained_on", "parameter", "images"]
    for (model, network, trained_on, parameter, images), rows in table.groupby(keys, sort=False):
        rows = rows.set_index("condition")
        cells = [r2_cell(r.r2, r.r2_low, r.r2_high) for r in rows.itertuples()]
        at_1000 = rows.loc["1000 photons"]
        cells += [f"{at_1000.rmse:.3f} {at_1000.unit}"]
        cells += [f"{at_1000.rmse_um:.2f}" if np.isfinite(at_1000.rmse_um) else ""]
        cells += [f"{at_1000.psf_snr_db:.1f}"]
        cells += [f"{at_1000.coverage_68:.0%}, {at_1000.coverage_95:.0%}"]
        name = f"{images} ({at_1000.source_images} images, {at_1000.patches} patches)"
        lines.append(
            f"| {model} | {network} | {trained_on} | {parameter} | {name} | {' | '.join(cells)} |"
        )
    return "\n".join(lines) + "\n"


def r2_cell(r2: float, low: float, high: float) -> str:
    """R^2 with its interval, which a single source image does not have."""
    return f"{r2:.3f} ({low:.3f} to {high:.3f})" if np.isfinite(low) else f"{r2:.3f}"


def scatter_panels(scored: list[Scored], models: list[PsfModel]) -> list[list[Panel]]:
    """Panels of scatter.png: a row per network and parameter, a column per condition."""
    rows: dict[tuple[str, str, int], list[Panel]] = {}
    colours = network_colours(s.network for s in scored)
    for s, model in zip(scored, models, strict=True):
        for column, name in enumerate(model.label_names):
            truth, predicted = s.truth[:, column], s.predicted[:, column]
            title = f"{s.network}, {s.condition}\nR² {SCORES['r2'](truth, predicted):.3f}"
            panel = Panel(title, f"{name} ({model.unit})", truth, predicted, colours[s.network])
            rows.setdefault((model.name, s.network, column), []).append(panel)
    return list(rows.values())


def score_all(contests: list[Contest], config: Config) -> None:
    """Score all networks under all conditions; write the table and its two figures."""
    scored: list[Scored] = []
    rows: list[dict[str, Any]] = []
    jobs = [(contest, condition) for contest in contests for condition in CONDITIONS]
    rates = {
        id(contest): prediction_rate(contest.estimator, contest.test_set, config.batch_size)
        for contest in contests
    }
    for contest, condition in tqdm(jobs, unit="condition", desc="benchmark"):
        facts = checkpoint_facts(contest.name, contest.estimator)
        facts["patches_per_second"] = rates[id(contest)]
        found = score_condition(
            contest.name, contest.estimator, contest.test_set, condition, config.batch_size
        )
        scored.append(found)
        rows += table_rows(found, facts, contest.test_set.model)
    table = pd.DataFrame(rows)
    write_csv(config.out / "benchmark.csv", table, "%.5g")
    text = markdown(table)
    with whole_file(config.out / "benchmark.md") as partial:
        partial.write_text(text, encoding="utf-8")
    models = [contest.test_set.model for contest, _ in jobs]
    draw_scatter(config.out / "scatter.png", scatter_panels(scored, models))
    draw_reliability(config.out / "reliability.png", table)
    sets = {contest.test_set.model.name: contest.test_set.config for contest in contests}
    write_json(config.out / "benchmark.json", run_record(data=sets))
    print(text)
    print(f"wrote {config.out / 'benchmark.csv'}, benchmark.md, scatter.png, reliability.png")


def noise_rows(contest: Contest, degradation: Degradation, count: int) -> Iterator[dict]:
    """Rows of noise.csv: R^2 of each parameter at each level of one degradation."""
    test_set, estimator = contest.test_set, contest.estimator
    facts = checkpoint_facts(contest.name, estimator)
    if degradation.record is None:
        simulation = from_config(test_set.config)
        data = test_set.config
        sources, _ = load_sources(data["images"], simulation.crop_size, data["seed"])
        test = split_sources(sources, data["seed"])["test"]
        levels = turned_levels(simulation, test, degradation.levels, count, BOOTSTRAP_SEED)
    else:
        levels = recorded_levels(test_set, degradation, count, BOOTSTRAP_SEED)
    for level in levels:
        batch = level.batch
        optics = simulated_microscopes(batch.optics.tolist())
        same = bool((batch.optics == batch.optics[0]).all())
        predicted = estimator.predict(batch.patches, optics[0] if same else optics).values
        for column, parameter in enumerate(test_set.model.label_names):
            truth, values = batch.labels[:, column].numpy(), predicted[:, column].numpy()
            rng = np.random.default_rng(BOOTSTRAP_SEED)
            low, high = r2_interval(truth, values, level.source_names, rng)
            yield {
                "network": contest.name,
                "psf_model": test_set.model.name,
                "patches_seen": facts["patches_seen"],
                "parameter": parameter,
                "degradation": degradation.name,
                "axis": degradation.axis,
                "unit": degradation.unit,
                "level": level.value,
                "source_images": len(np.unique(level.source_names)),
                "patches": len(truth),
                "r2": float(SCORES["r2"](truth, values)),
                "r2_low": low,
                "r2_high": high,
            }


def score_noise(contests: list[Contest], config: Config) -> None:
    """Score all networks at all levels of all degradations; write noise.csv."""
    jobs = [(contest, degradation) for contest in contests for degradation in DEGRADATIONS]
    rows = []
    for contest, degradation in tqdm(jobs, unit="degradation", desc="noise"):
        rows += noise_rows(contest, degradation, config.noise_patches)
    write_csv(config.out / "noise.csv", pd.DataFrame(rows), "%.5g")
    write_json(config.out / "noise.json", run_record(patches=config.noise_patches))
    print(f"wrote {config.out / 'noise.csv'}")
    print(next_command("figure_noise_resistance.py", ("--results", config.out)))


@holds_out_folder
def main(config: Config) -> None:
    """Score every network under every condition, or at every level."""
    if not config.checkpoints or not config.data:
        raise InputError("give at least one folder each for --checkpoints and --data.")
    if config.batch_size < 1:
        raise InputError(f"--batch-size is {config.batch_size}; give 1 or more.")
    if config.test_patches is not None and config.test_patches < 2:
        raise InputError(f"--test-patches is {config.test_patches}; give 2 or more.")
    if config.noise_patches < 2:
        raise InputError(f"--noise-patches is {config.noise_patches}; give 2 or more.")
    keep_freed_memory()
    contests = pair_up(config)
    if config.noise:
        score_noise(contests, config)
    else:
        score_all(contests, config)


if __name__ == "__main__":
    run(Config, main, __doc__)
