"""Score trained networks on the held-out test patches of a data set.

    python benchmark_models.py --checkpoints runs/zernike1d runs/resnet18 \
        --data data/zernike1d --out results/zernike1d

Writes benchmark.csv (per network, parameter and condition: R^2 with bootstrap 95 % interval,
squared Pearson, rmse and median absolute error in label units and um), benchmark.md (the R^2 of
it as a table) and scatter.png (predicted against true). Test patches keep their noise between
runs and batch sizes.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

from models.checkpoint import Estimator, load_estimator
from models.data import CONDITIONS, Condition, PatchSet
from models.metrics import SCORES, r2_interval
from psf.command import pick_device, run
from psf.errors import InputError
from psf.files import run_record, whole_file, write_json
from psf.microscope import Microscope
from psf.model import PsfModel
from psf.pictures import Panel, draw_scatter

BOOTSTRAP_SEED = 0


@dataclass(frozen=True)
class Config:
    """Settings of a benchmark."""

    checkpoints: tuple[Path, ...]  # folders of train.py
    data: Path  # folder of generate_training_set.py; its test split is used
    out: Path = Path("results")  # folder to write
    batch_size: int = 64
    device: str = "auto"  # auto, cpu, cuda, mps


@dataclass(frozen=True)
class Scored:
    """Predictions of one network for all test patches under one condition."""

    network: str
    condition: str
    truth: np.ndarray  # (N, P) of patches with content
    predicted: np.ndarray  # (N, P)
    um_per_unit: np.ndarray  # (N,)
    kinds: np.ndarray  # (N,) of the source images: builtin, procedural or file
    content_auc: float  # area under ROC of the content flag; NaN without blank patches


def check_labels(estimator: Estimator, test_set: PatchSet, checkpoint: Path) -> None:
    """Refuse a network that predicts other labels, or other patches, than the data holds."""
    names = tuple(estimator.config["label_names"])
    if (estimator.psf_model.name, names) != (test_set.model.name, test_set.model.label_names):
        raise InputError(
            f"{checkpoint} predicts {estimator.psf_model.name} ({', '.join(names)}), the data hold "
            f"{test_set.model.name} ({', '.join(test_set.model.label_names)})."
        )
    if estimator.patch_size != test_set.config["patch_size"]:
        raise InputError(
            f"{checkpoint} takes patches of {estimator.patch_size} px, the data hold "
            f"{test_set.config['patch_size']} px."
        )


def warn_of_seen_images(estimator: Estimator, test_set: PatchSet, checkpoint: Path) -> None:
    """Say so if test images were trained on: the scores then promise too much."""
    trained = set(estimator.config["data"]["source_images"]["train"])
    seen = sorted(trained & set(test_set.config["source_images"]["test"]))
    if seen:
        warnings.warn(
            f"{checkpoint} was trained on {len(seen)} of the test images ({', '.join(seen[:3])}); "
            "its scores are too good.",
            stacklevel=2,
        )


def score_condition(
    name: str, estimator: Estimator, test_set: PatchSet, condition: Condition, batch_size: int
) -> Scored:
    """Predict all test patches under one condition."""
    truth, predicted, content, flags, um = [], [], [], [], []
    for batch in test_set.recorded(condition, batch_size, torch.device("cpu")):
        optics = [Microscope(*numbers) for numbers in batch.optics.tolist()]
        same = bool((batch.optics == batch.optics[0]).all())
        prediction = estimator.predict(batch.patches, optics[0] if same else optics, batch_size)
        truth.append(batch.labels)
        predicted.append(prediction.values)
        content.append(batch.has_content)
        flags.append(prediction.content_probability)
        um += [estimator.um_per_unit(microscope) for microscope in optics]
    rows = torch.cat(content).numpy()
    auc = roc_auc_score(rows, torch.cat(flags).numpy()) if 0 < rows.sum() < len(rows) else np.nan
    return Scored(
        name,
        condition.name,
        torch.cat(truth).numpy()[rows],
        torch.cat(predicted).numpy()[rows],
        np.array(um)[rows],
        test_set.source_kinds[rows],
        float(auc),
    )


def table_rows(scored: Scored, estimator: Estimator) -> Iterator[dict]:
    """Rows of benchmark.csv: per parameter, for all images and for each kind of them."""
    kinds = np.unique(scored.kinds).tolist()
    groups = kinds if len(kinds) == 1 else ["all", *kinds]
    for column, parameter in enumerate(estimator.config["label_names"]):
        for images in groups:
            rows = np.isin(scored.kinds, kinds if images == "all" else [images])
            yield {
                "network": scored.network,
                "architecture": estimator.config["architecture"],
                "psf_model": estimator.psf_model.name,
                "parameter": parameter,
                "unit": estimator.config["label_unit"],
                "images": images,
                "condition": scored.condition,
                "patches": int(rows.sum()),
                **score_parameter(
                    scored.truth[rows, column],
                    scored.predicted[rows, column],
                    scored.um_per_unit[rows],
                ),
                "content_auc": scored.content_auc,
            }


def score_parameter(
    truth: np.ndarray, predicted: np.ndarray, um_per_unit: np.ndarray
) -> dict[str, float]:
    """All scores of one parameter (N,), in its unit and in um."""
    scores = {name: float(score(truth, predicted)) for name, score in SCORES.items()}
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    low, high = r2_interval(truth, predicted, rng)
    error_um = np.abs(predicted - truth) * um_per_unit
    return {
        "r2": scores["r2"],
        "r2_low": low,
        "r2_high": high,
        "pearson2": scores["pearson2"],
        "rmse": scores["rmse"],
        "rmse_um": float(np.sqrt(np.mean(error_um**2))),
        "median_abs_error": scores["median_abs_error"],
        "median_abs_error_um": float(np.median(error_um)),
    }


def markdown(table: pd.DataFrame) -> str:
    """R^2 with intervals: a row per network, parameter and kind of images."""
    conditions = list(dict.fromkeys(table["condition"]))
    lines = [
        "R² (95 % interval over patches) on the test images; rmse at 1000 photons per pixel.",
        "",
        f"| network | parameter | test images (patches) | {' | '.join(conditions)} | rmse | µm |",
        "|---|---|---|" + "---|" * (len(conditions) + 2),
    ]
    groups = table.groupby(["network", "parameter", "images"], sort=False)
    for (network, parameter, images), rows in groups:
        rows = rows.set_index("condition")
        cells = [f"{r.r2:.3f} ({r.r2_low:.3f} to {r.r2_high:.3f})" for r in rows.itertuples()]
        at_1000 = rows.loc["1000 photons"]
        cells += [f"{at_1000.rmse:.3f} {at_1000.unit}", f"{at_1000.rmse_um:.2f}"]
        name = f"{images} ({at_1000.patches})"
        lines.append(f"| {network} | {parameter} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def scatter_panels(scored: list[Scored], model: PsfModel) -> list[list[Panel]]:
    """A row per network and parameter, a column per condition."""
    rows: dict[tuple[str, int], list[Panel]] = {}
    for s in scored:
        for column, name in enumerate(model.label_names):
            truth, predicted = s.truth[:, column], s.predicted[:, column]
            title = f"{s.network}, {s.condition}\nR² {SCORES['r2'](truth, predicted):.3f}"
            panel = Panel(title, f"{name} ({model.unit})", truth, predicted)
            rows.setdefault((s.network, column), []).append(panel)
    return list(rows.values())


def main(config: Config) -> None:
    """Score every checkpoint under every condition."""
    if not config.checkpoints or config.batch_size < 1:
        raise InputError("give at least one folder as --checkpoints and a --batch-size above 0.")
    device = pick_device(config.device)
    test_set = PatchSet(config.data, "test")
    estimators = {}
    for checkpoint in config.checkpoints:
        if checkpoint.name in estimators:
            raise InputError(f"two checkpoints are called {checkpoint.name}; rename one folder.")
        estimators[checkpoint.name] = load_estimator(checkpoint, device)
        check_labels(estimators[checkpoint.name], test_set, checkpoint)
        warn_of_seen_images(estimators[checkpoint.name], test_set, checkpoint)
    jobs = [(name, condition) for name in estimators for condition in CONDITIONS]
    scored = [
        score_condition(name, estimators[name], test_set, condition, config.batch_size)
        for name, condition in tqdm(jobs, unit="condition", desc="benchmark")
    ]
    table = pd.DataFrame(row for s in scored for row in table_rows(s, estimators[s.network]))
    with whole_file(config.out / "benchmark.csv") as partial:
        table.to_csv(partial, index=False, float_format="%.5g")
    text = markdown(table)
    with whole_file(config.out / "benchmark.md") as partial:
        partial.write_text(text, encoding="utf-8")
    draw_scatter(config.out / "scatter.png", scatter_panels(scored, test_set.model))
    write_json(config.out / "benchmark.json", run_record(data=test_set.config))
    print(text)
    print(f"wrote {config.out / 'benchmark.csv'}, benchmark.md and scatter.png beside it")


if __name__ == "__main__":
    run(Config, main, __doc__)
