"""Error bars: factors that turn predicted standard deviations into 68 % and 95 % intervals.

A network predicts a standard deviation, but the true errors are not Gaussian. On validation
patches, the error divided by the predicted deviation has a distribution, and its quantiles are the
factors of the intervals. They are tabulated over the predicted deviation and over the noise in the
patch (conformal prediction in bins: Vovk et al. 2005, chapter 4).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch

LEVELS = (0.6827, 0.95)  # coverage of the intervals: one Gaussian standard deviation, and 95 %
GAUSSIAN_FACTORS = (1.0, 1.96)  # of the two intervals if errors were Gaussian and deviations right
BINS = 8  # of the predicted deviation within a noise group; not tuned
# Groups of similar noise; not tuned. With one group, the 68 % intervals of noise-free patches
# covered 85 % of the true values.
GROUPS = 8
SMALLEST_BIN = 40  # patches; one or two errors alone decide the 95 % quantile of fewer
SMALLEST_NOISE = 1e-8  # share of the variance; its logarithm must be finite


@dataclass(frozen=True)
class IntervalFactors:
    """Factors of the intervals at one noise level, tabulated over the predicted deviation."""

    log_deviation: tuple[float, ...]  # (K,) rising, of the raw prediction in standard units
    factor_68: tuple[float, ...]  # (K,) half width of the 68 % interval / raw prediction
    factor_95: tuple[float, ...]  # (K,)

    def factors(self, deviation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Factors for raw standard deviations (N,); constant outside the table."""
        x = np.log(deviation)
        return (
            np.interp(x, self.log_deviation, self.factor_68),
            np.interp(x, self.log_deviation, self.factor_95),
        )


@dataclass(frozen=True)
class FactorsByNoise:
    """Factors of one parameter's intervals, tabulated over the noise and the deviation."""

    log_noise: tuple[float, ...]  # (G,) rising, of `noise_share`
    tables: tuple[IntervalFactors, ...]  # (G,)

    def factors(self, deviation: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Factors for raw standard deviations (N,) and noise shares (N,)."""
        place = np.interp(np.log(noise), self.log_noise, np.arange(len(self.log_noise)))
        below = np.minimum(place.astype(int), max(len(self.tables) - 2, 0))
        above = np.minimum(below + 1, len(self.tables) - 1)
        found = np.stack([table.factors(deviation) for table in self.tables])  # (G, 2, N)
        each, share = np.arange(len(deviation)), place - below
        low, high = found[below, :, each].T, found[above, :, each].T
        first, second = low + share * (high - low)
        return first, second


UNMEASURED = IntervalFactors((0.0,), GAUSSIAN_FACTORS[:1], GAUSSIAN_FACTORS[1:])
UNMEASURED_BY_NOISE = FactorsByNoise((0.0,), (UNMEASURED,))


def noise_share(patches: torch.Tensor) -> torch.Tensor:
    """White noise as a share of the variance (N,), of normalised patches (N, H, W).

    Second differences along both axes remove smooth content (Immerkaer 1996). Fine detail counts
    as noise; this does no harm, because the factors are measured with the same estimate.
    """
    across = patches[:, :, 2:] - 2 * patches[:, :, 1:-1] + patches[:, :, :-2]
    both = across[:, 2:] - 2 * across[:, 1:-1] + across[:, :-2]
    return (both.square().mean((1, 2)) / 36).clamp(min=SMALLEST_NOISE)  # (1 + 4 + 1)^2 = 36


def measure_factors(errors: np.ndarray, deviations: np.ndarray) -> IntervalFactors:
    """Factors of the intervals, measured on validation patches.

    Parameters
    ----------
    errors : (N,) predicted minus true, any unit
    deviations : (N,) predicted standard deviations in that unit

    Returns
    -------
    IntervalFactors
        The Gaussian factors if there are fewer than SMALLEST_BIN patches.
    """
    count = min(BINS, len(errors) // SMALLEST_BIN)
    if not count:
        return UNMEASURED
    order = np.argsort(deviations, kind="stable")
    ratio, log_deviation = np.abs(errors) / deviations, np.log(deviations)
    bins, levels = np.array_split(order, count), np.array(LEVELS)
    # a new patch stays below this quantile of n patches with the probability asked for
    quantiles = np.array(
        [np.quantile(ratio[rows], np.minimum(1, levels * (1 + 1 / len(rows)))) for rows in bins]
    )
    return IntervalFactors(
        tuple(float(np.mean(log_deviation[rows])) for rows in bins),
        tuple(quantiles[:, 0].tolist()),
        tuple(quantiles[:, 1].tolist()),
    )


def measure_factors_by_noise(
    errors: np.ndarray, deviations: np.ndarray, noise: np.ndarray
) -> FactorsByNoise:
    """Factors measured on validation patches (N,), in groups of similar `noise_share` (N,)."""
    count = min(GROUPS, len(errors) // (BINS * SMALLEST_BIN))
    if count < 2:
        return FactorsByNoise((0.0,), (measure_factors(errors, deviations),))
    groups = np.array_split(np.argsort(noise, kind="stable"), count)
    return FactorsByNoise(
        tuple(float(np.mean(np.log(noise[rows]))) for rows in groups),
        tuple(measure_factors(errors[rows], deviations[rows]) for rows in groups),
    )


def to_config(factors: Sequence[FactorsByNoise]) -> list[dict]:
    """Plain values for a checkpoint's config.json, one entry per parameter."""
    return [
        {
            "log_noise": [round(v, 6) for v in one.log_noise],
            "tables": [
                {k: [round(v, 6) for v in column] for k, column in asdict(table).items()}
                for table in one.tables
            ],
        }
        for one in factors
    ]


def from_config(config: Mapping, parameters: int) -> list[FactorsByNoise]:
    """Factors of each parameter from a checkpoint's config; Gaussian ones if it has none."""
    entries = config.get("calibration")
    if not entries:
        return [UNMEASURED_BY_NOISE] * parameters
    return [
        FactorsByNoise(
            tuple(entry["log_noise"]),
            tuple(
                IntervalFactors(**{k: tuple(v) for k, v in table.items()})
                for table in entry["tables"]
            ),
        )
        for entry in entries
    ]


def interval_factors(
    config: Mapping, deviations: torch.Tensor, noise: torch.Tensor
) -> torch.Tensor:
    """Factors (2, N, P) from raw standard deviations (N, P) to half widths of 68 % and 95 %.

    `noise` (N,) is the `noise_share` of the patches.
    """
    columns = [
        np.stack(one.factors(column.double().numpy(), noise.double().numpy()))
        for one, column in zip(from_config(config, deviations.shape[1]), deviations.T, strict=True)
    ]
    return torch.from_numpy(np.stack(columns, -1)).to(deviations)


def coverage(errors: np.ndarray, half_widths: np.ndarray) -> float:
    """Share of errors (N,) within their intervals of half width (N,)."""
    return float(np.mean(np.abs(errors) <= half_widths))
