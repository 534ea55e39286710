"""Scores of predicted against true labels, with bootstrap intervals.

R^2 = 1 - SS_res / SS_tot of (truth, prediction) in that order, on unrounded predictions; squared
Pearson correlation, rmse and median absolute error beside it, since R^2 depends on the range.
"""

from collections.abc import Callable

import numpy as np
from sklearn.metrics import median_absolute_error, r2_score, root_mean_squared_error

Score = Callable[[np.ndarray, np.ndarray], float]


def squared_pearson(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Squared Pearson correlation; blind to a wrong scale or offset. 0 if either is constant."""
    if np.ptp(truth) == 0 or np.ptp(prediction) == 0:
        return 0.0
    return float(np.corrcoef(truth, prediction)[0, 1] ** 2)


SCORES: dict[str, Score] = {
    "r2": r2_score,
    "pearson2": squared_pearson,
    "rmse": root_mean_squared_error,
    "median_abs_error": median_absolute_error,
}


def r2_interval(
    truth: np.ndarray, prediction: np.ndarray, rng: np.random.Generator, repetitions: int = 500
) -> tuple[float, float]:
    """95 % percentile interval of R^2 over patches (N,) drawn with replacement."""
    draws = rng.integers(len(truth), size=(repetitions, len(truth)))
    drawn = truth[draws].astype(np.float64)
    residual = ((drawn - prediction[draws]) ** 2).sum(1)
    total = ((drawn - drawn.mean(1, keepdims=True)) ** 2).sum(1)
    values = 1 - residual[total > 0] / total[total > 0]  # of few patches, all may be the same one
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)
