"""Honest error bars: what factor turns a predicted standard deviation into an interval.

A network's standard deviations are right on average at best. On held-out validation patches the
error divided by the predicted standard deviation has some distribution; its quantiles, as a
function of the predicted value itself, are the factors of the 68 % and 95 % intervals. They are
measured, not assumed Gaussian (conformal prediction by bins: Vovk et al. 2005, chapter 4).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

LEVELS = (0.6827, 0.95)  # of the intervals: that of one standard deviation, and the usual one
BINS = 12
SMALLEST_BIN = 40  # patches; below, quantiles of 95 % are luck
GAUSSIAN_FACTORS = (1.0, 1.96)


@dataclass(frozen=True)
class Calibration:
    """Factors of one parameter's intervals, tabulated over the predicted standard deviation."""

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


UNCALIBRATED = Calibration((0.0,), GAUSSIAN_FACTORS[:1], GAUSSIAN_FACTORS[1:])


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


def to_config(calibrations: Sequence[Calibration]) -> list[dict[str, list[float]]]:
    """Plain values for a checkpoint's config.json, one entry per parameter."""
    return [{k: [round(v, 6) for v in c] for k, c in asdict(one).items()} for one in calibrations]


def from_config(config: Mapping, parameters: int) -> list[Calibration]:
    """Calibrations of a checkpoint's config; uncalibrated where it has none."""
    entries = config.get("calibration")
    if not entries:
        return [UNCALIBRATED] * parameters
    return [Calibration(**{k: tuple(v) for k, v in entry.items()}) for entry in entries]


def coverage(errors: np.ndarray, half_widths: np.ndarray) -> float:
    """Share of errors (N,) within their intervals of half width (N,)."""
    return float(np.mean(np.abs(errors) <= half_widths))
