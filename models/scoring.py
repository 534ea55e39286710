"""Scores of a network on test patches: parameters, PSFs, error bars and the content flag.

The 95 % intervals of R^2 are over source images. Patches of one image share its content, and with
it their errors; an interval over patches would be too narrow.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.metrics import median_absolute_error, r2_score, roc_auc_score, root_mean_squared_error

from models.data import Batch, Condition, PatchSet
from models.error_bars import coverage
from models.estimator import Estimator
from psf.microscope import Microscope, simulated_microscopes
from psf.model import PsfModel
from psf.synthesis import synthesize_with_loss

BOOTSTRAP_SEED = 0  # of the intervals: equal tables from equal predictions
SPEED_PATCHES = 1024  # per measurement of the speed: 16 batches, so that single pauses hardly count
LEAST_ERROR = 1e-12  # of a PSF of norm below 1; keeps the logarithm finite


def squared_pearson(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Squared Pearson correlation, 0 if either is constant; it ignores a wrong scale or offset."""
    if np.ptp(truth) == 0 or np.ptp(prediction) == 0:
        return 0.0
    return float(np.corrcoef(truth, prediction)[0, 1] ** 2)


Score = Callable[[np.ndarray, np.ndarray], float]
SCORES: dict[str, Score] = {
    "r2": r2_score,
    "pearson2": squared_pearson,
    "rmse": root_mean_squared_error,
    "median_abs_error": median_absolute_error,
}


@dataclass(frozen=True)
class Scored:
    """Predictions of one network for the test patches with content under one condition."""

    network: str
    condition: str
    truth: np.ndarray  # (N, P)
    predicted: np.ndarray  # (N, P)
    half_widths: np.ndarray  # (2, N, P) of the 68 % and 95 % intervals
    um_per_unit: np.ndarray  # (N, P); NaN for a label that is no length
    psf_snr_db: np.ndarray  # (N,)
    kinds: np.ndarray  # (N,) of the source images: builtin, procedural or file
    sources: np.ndarray  # (N,) names of the source images
    content_auc: float  # area under the ROC curve of the content flag; NaN without blank patches


def score_condition(
    name: str, estimator: Estimator, test_set: PatchSet, condition: Condition, batch_size: int
) -> Scored:
    """Predictions for all test patches under one condition."""
    columns: dict[str, list[torch.Tensor]] = {}
    for batch in test_set.recorded(condition, batch_size, torch.device("cpu")):
        for key, value in _predict_batch(estimator, test_set, batch, batch_size).items():
            columns.setdefault(key, []).append(value)
    found = {key: torch.cat(parts).numpy() for key, parts in columns.items()}
    rows = found["content"]
    mixed = 0 < rows.sum() < len(rows)
    return Scored(
        name,
        condition.name,
        found["truth"][rows],
        found["predicted"][rows],
        np.stack([found["half_68"][rows], found["half_95"][rows]]),
        found["um"][rows],
        found["psf_snr_db"][rows],
        test_set.source_kinds[rows],
        test_set.source_names[rows],
        float(roc_auc_score(rows, found["flags"])) if mixed else float("nan"),
    )


def _predict_batch(
    estimator: Estimator, test_set: PatchSet, batch: Batch, batch_size: int
) -> dict[str, torch.Tensor]:
    optics = simulated_microscopes(batch.optics.tolist())
    if bool((batch.optics == batch.optics[0]).all()):
        optics = optics[:1]
    microscopes = optics[0] if len(optics) == 1 else optics
    prediction = estimator.predict(batch.patches, microscopes, batch_size)
    names = test_set.model.label_names
    um = [[estimator.um_per_unit(m).get(name, math.nan) for name in names] for m in optics]
    return {
        "truth": batch.labels,
        "predicted": prediction.values,
        "half_68": prediction.standard_deviations,
        "half_95": prediction.half_widths_95,
        "content": batch.has_content,
        "flags": prediction.content_probability,
        "um": torch.tensor(um).expand(len(batch.labels), len(names)),
        "psf_snr_db": psf_snr_db(
            test_set.model,
            batch.labels,
            prediction.values,
            microscopes,
            test_set.config["psf_size"],
        ),
    }


def psf_snr_db(
    model: PsfModel,
    truth: torch.Tensor,
    predicted: torch.Tensor,
    microscopes: Microscope | list[Microscope],
    psf_size: int,
) -> torch.Tensor:
    """SNR in dB (N,) of the PSFs of labels (N, P), 20 log10 |h| / |h - h_estimated|.

    The figure of merit of Deep-blur (Biol. Imaging 4, 2024). Estimates outside the label range are
    moved to its end, since no PSF has, for example, a negative width.
    """
    low, high = torch.tensor(model.label_ranges).T
    # The simulation of the patches has already warned of lost light and scalar light.
    true_psfs, found = (
        synthesize_with_loss(model, labels, microscopes, psf_size)[0].flatten(1)
        for labels in (truth, predicted.clamp(low, high))
    )
    error = (true_psfs - found).norm(dim=1).clamp(min=LEAST_ERROR)
    return 20 * (true_psfs.norm(dim=1) / error).log10()


def table_rows(scored: Scored, facts: dict[str, Any], model: PsfModel) -> Iterator[dict[str, Any]]:
    """Rows of benchmark.csv: each parameter, for all images and for each kind of images."""
    kinds = np.unique(scored.kinds).tolist()
    groups = kinds if len(kinds) == 1 else ["all", *kinds]
    for column, parameter in enumerate(model.label_names):
        for images in groups:
            rows = np.isin(scored.kinds, kinds if images == "all" else [images])
            errors = (scored.predicted - scored.truth)[rows, column]
            half_68, half_95 = scored.half_widths[:, rows, column]
            yield {
                **facts,
                "parameter": parameter,
                "unit": model.unit,
                "images": images,
                "condition": scored.condition,
                "source_images": len(np.unique(scored.sources[rows])),
                "patches": int(rows.sum()),
                **score_parameter(
                    scored.truth[rows, column],
                    scored.predicted[rows, column],
                    scored.um_per_unit[rows, column],
                    scored.sources[rows],
                ),
                "coverage_68": coverage(errors, half_68),
                "coverage_95": coverage(errors, half_95),
                "psf_snr_db": float(np.median(scored.psf_snr_db[rows])),
                "content_auc": scored.content_auc,
            }


def score_parameter(
    truth: np.ndarray, predicted: np.ndarray, um_per_unit: np.ndarray, sources: np.ndarray
) -> dict[str, float]:
    """All scores of one parameter (N,), in its unit and in um; `sources` (N,) names the images."""
    scores = {name: float(score(truth, predicted)) for name, score in SCORES.items()}
    low, high = r2_interval(truth, predicted, sources, np.random.default_rng(BOOTSTRAP_SEED))
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


def prediction_rate(estimator: Estimator, test_set: PatchSet, batch_size: int) -> float:
    """Patches per second of `Estimator.predict`, the best of three passes over 1024 patches."""
    patches = test_set.read(np.arange(SPEED_PATCHES) % test_set.count).float()
    (microscope,) = simulated_microscopes(test_set.optics[:1].tolist())
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        estimator.predict(patches, microscope, batch_size)
        seconds.append(time.perf_counter() - started)
    return SPEED_PATCHES / min(seconds)


def checkpoint_facts(name: str, estimator: Estimator) -> dict[str, Any]:
    """Columns of the table that describe a network, besides its scores."""
    run = estimator.config.get("run", {})
    return {
        "network": name,
        "architecture": estimator.config["architecture"],
        "psf_model": estimator.psf_model.name,
        "trained_on": estimator.config.get("data", {}).get("images", ""),
        "weights": sum(p.numel() for p in estimator.network.parameters()),
        "minutes": run.get("minutes", float("nan")),
        "patches_seen": run.get("patches_seen", 0),
    }


def r2_interval(
    truth: np.ndarray,
    prediction: np.ndarray,
    sources: np.ndarray,
    rng: np.random.Generator,
    repetitions: int = 500,
) -> tuple[float, float]:
    """95 % percentile interval of R^2, from source images drawn with replacement.

    Parameters
    ----------
    truth, prediction : (N,) of the patches
    sources : (N,) source image of each patch; all patches of a drawn image count (cluster
        bootstrap: Davison & Hinkley 1997, section 3.8). Fewer than about ten images give a rough
        interval; the tables hold their number.
    rng : draws the images
    repetitions : number of draws; 500 give each end to about 3 % of the width

    Returns
    -------
    low, high
        NaN if there is only one source image, which does not tell how images differ, or if the
        truth is constant.
    """
    names, index = np.unique(sources, return_inverse=True)
    if len(names) < 2:
        return math.nan, math.nan
    centred = truth.astype(np.float64) - truth.mean(dtype=np.float64)
    squared_error = (truth.astype(np.float64) - prediction) ** 2
    columns = (np.ones(len(truth)), centred, centred**2, squared_error)
    sums = np.stack([np.bincount(index, column) for column in columns], 1)  # (S, 4)
    draws = rng.integers(len(names), size=(repetitions, len(names)))
    count, first, second, residual = sums[draws].sum(1).T
    total = second - first**2 / count
    usable = total > 1e-12 * second  # of few patches, all drawn ones may be the same one
    if not usable.any():
        return math.nan, math.nan
    low, high = np.percentile(1 - residual[usable] / total[usable], (2.5, 97.5))
    return float(low), float(high)
