"""Honest error bars: what factor turns a predicted standard deviation into an interval.

A network's standard deviations are right on average at best. On held-out validation patches the
error divided by the predicted standard deviation has some distribution; its quantiles, as a
function of the predicted value itself and of the noise in the patch, are the factors of the 68 %
and 95 % intervals. They are measured, not assumed Gaussian (conformal prediction by bins: Vovk et
al. 2005, chapter 4).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch

LEVELS = (0.6827, 0.95)  # of the intervals: that of one standard deviation, and the usual one
BINS = 8  # of the predicted deviation, within a group of like noise
GROUPS = 8  # of the noise
SMALLEST_NOISE = 1e-8  # share of the variance; below it there is none
SMALLEST_BIN = 40  # patches; below, quantiles of 95 % are luck
GAUSSIAN_FACTORS = (1.0, 1.96)


@dataclass(frozen=True)
class Calibration:
    """Factors of intervals at one noise level, tabulated over the predicted deviation."""

    log_deviation: tuple[float, ...]  # (K,) rising, of the raw prediction in standard units
    factor_68: tuple[float, ...]  # (K,) half width of the 68 % interval / raw prediction
    factor_95: tuple[float, ...]  # (K,)

    def factors(self, deviation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Factors for raw standard deviations (N,); constant beyond the ends of the table."""
        x = np.log(deviation)
        return (
            np.interp(x, self.log_deviation, self.factor_68),
            np.interp(x, self.log_deviation, self.factor_95),
        )


@dataclass(frozen=True)
class NoiseCalibration:
    """Factors of one parameter's intervals, tabulated over the noise and the deviation."""

    log_noise: tuple[float, ...]  # (G,) rising, of `noise_share`
    tables: tuple[Calibration, ...]  # (G,)

    def factors(self, deviation: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Factors for raw standard deviations (N,) and shares of noise (N,)."""
        place = np.interp(np.log(noise), self.log_noise, np.arange(len(self.log_noise)))
        below = np.minimum(place.astype(int), max(len(self.tables) - 2, 0))
        above = np.minimum(below + 1, len(self.tables) - 1)
        found = np.stack([table.factors(deviation) for table in self.tables])  # (G, 2, N)
        each, share = np.arange(len(deviation)), place - below
        low, high = found[below, :, each].T, found[above, :, each].T
        first, second = low + share * (high - low)
        return first, second


UNCALIBRATED = Calibration((0.0,), GAUSSIAN_FACTORS[:1], GAUSSIAN_FACTORS[1:])
UNCALIBRATED_NOISE = NoiseCalibration((0.0,), (UNCALIBRATED,))


def noise_share(patches: torch.Tensor) -> torch.Tensor:
    """White noise as a share of the variance, of normalised patches (N, H, W); (N,).

    From the differences that cancel whatever is smooth over three pixels (Immerkaer 1996); fine
    detail counts as noise, which does not matter where like is compared with like.
    """
    across = patches[:, :, 2:] - 2 * patches[:, :, 1:-1] + patches[:, :, :-2]
    both = across[:, 2:] - 2 * across[:, 1:-1] + across[:, :-2]
    return (both.square().mean((1, 2)) / 36).clamp(min=SMALLEST_NOISE)


def calibrate(errors: np.ndarray, deviations: np.ndarray) -> Calibration:
    """Measure the factors on validation patches.

    Parameters
    ----------
    errors : (N,) predicted minus true, any unit
    deviations : (N,) predicted standard deviations in that unit

    Returns
    -------
    Calibration
        Uncalibrated, if there are fewer than 40 patches.
    """
    count = min(BINS, len(errors) // SMALLEST_BIN)
    if not count:
        return UNCALIBRATED
    order = np.argsort(deviations, kind="stable")
    ratio, log_deviation = np.abs(errors) / deviations, np.log(deviations)
    bins, levels = np.array_split(order, count), np.array(LEVELS)
    # the quantile that a further patch stays below with the probability asked for
    quantiles = np.array(
        [np.quantile(ratio[rows], np.minimum(1, levels * (1 + 1 / len(rows)))) for rows in bins]
    )
    return Calibration(
        tuple(float(np.mean(log_deviation[rows])) for rows in bins),
        tuple(quantiles[:, 0].tolist()),
        tuple(quantiles[:, 1].tolist()),
    )


def calibrate_by_noise(
    errors: np.ndarray, deviations: np.ndarray, noise: np.ndarray
) -> NoiseCalibration:
    """Measure the factors on validation patches (N,) in groups of like `noise_share` (N,)."""
    count = min(GROUPS, len(errors) // (BINS * SMALLEST_BIN))
    if count < 2:
        return NoiseCalibration((0.0,), (calibrate(errors, deviations),))
    groups = np.array_split(np.argsort(noise, kind="stable"), count)
    return NoiseCalibration(
        tuple(float(np.mean(np.log(noise[rows]))) for rows in groups),
        tuple(calibrate(errors[rows], deviations[rows]) for rows in groups),
    )


def to_config(calibrations: Sequence[NoiseCalibration]) -> list[dict]:
    """Plain values for a checkpoint's config.json, one entry per parameter."""
    return [
        {
            "log_noise": [round(v, 6) for v in one.log_noise],
            "tables": [
                {k: [round(v, 6) for v in column] for k, column in asdict(table).items()}
                for table in one.tables
            ],
        }
        for one in calibrations
    ]


def from_config(config: Mapping, parameters: int) -> list[NoiseCalibration]:
    """Calibrations of a checkpoint's config; uncalibrated where it has none."""
    entries = config.get("calibration")
    if not entries:
        return [UNCALIBRATED_NOISE] * parameters
    return [
        NoiseCalibration(
            tuple(entry["log_noise"]),
            tuple(
                Calibration(**{k: tuple(v) for k, v in table.items()}) for table in entry["tables"]
            ),
        )
        for entry in entries
    ]


def coverage(errors: np.ndarray, half_widths: np.ndarray) -> float:
    """Share of errors (N,) within their intervals of half width (N,)."""
    return float(np.mean(np.abs(errors) <= half_widths))
