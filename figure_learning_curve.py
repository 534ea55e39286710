"""Draw R^2 against the number of patches a network has seen, and say what budget a target takes.

    python benchmark_models.py --checkpoints runs/curve/5_minutes runs/curve/10_minutes \
        runs/zernike1d --data data/zernike1d --out results/learning_curve
    python figure_learning_curve.py --results results/learning_curve

Each checkpoint of benchmark.csv is a training of its own, with its own full schedule. Writes
learning_curve.png and learning_curve.csv: per parameter and condition the patches that would be
needed for R^2 of 0.90 to 0.995, if 1 - R^2 goes on falling as a power of the patches seen. Such a
line is a guess beyond the points; where it is flat, more training is of no use.
"""

from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from common.command import run
from common.files import whole_file
from common.pictures import COLOURS, new_figure, save_figure
from psf.errors import InputError

TARGETS = (0.90, 0.93, 0.95, 0.98, 0.995)
FLATTEST = 0.02  # exponent below which the line is called flat


@dataclass(frozen=True)
class Config:
    """Settings of the figure."""

    results: Path = Path("results/learning_curve")  # folder with benchmark.csv
    images: str = "all"  # all, builtin or procedural


def power_law(patches_seen: np.ndarray, r2: np.ndarray) -> tuple[float, float]:
    """Least-squares (log a, b) of 1 - R^2 = a patches_seen^-b."""
    slope, intercept = np.polyfit(np.log(patches_seen), np.log1p(-r2), 1)
    return float(intercept), float(-slope)


def patches_needed(log_a: float, exponent: float, r2: float) -> float:
    """Patches at which the power law reaches R^2; infinite where it is flat."""
    if exponent < FLATTEST:
        return float("inf")
    return float(np.exp((log_a - np.log1p(-r2)) / exponent))


def draw_panel(axes: Axes, rows: pd.DataFrame, title: str) -> None:
    """One parameter: points with 95 % intervals and the fitted power law per condition."""
    seen = rows["patches_seen"]
    grid = np.geomspace(seen.min() / 1.5, seen.max() * 20, 60)
    for colour, (condition, group) in zip(
        cycle(COLOURS), rows.groupby("condition", sort=False), strict=False
    ):
        errors = np.abs(group[["r2_low", "r2_high"]].T - group["r2"]).to_numpy()
        axes.errorbar(
            group["patches_seen"], group["r2"], errors, color=colour, fmt="o", ms=4, label=condition
        )
        log_a, exponent = power_law(group["patches_seen"].to_numpy(), group["r2"].to_numpy())
        axes.plot(grid, 1 - np.exp(log_a) * grid**-exponent, color=colour, lw=1, ls=":")
    axes.set(xscale="log", title=title, ylabel="R²", ylim=(max(rows["r2_low"].min(), 0) - 0.05, 1))
    axes.set_xlabel("patches seen; dotted: power law of 1 - R²")
    axes.grid(alpha=0.3)


def main(config: Config) -> None:
    """Fit, draw, write."""
    path = config.results / "benchmark.csv"
    if not path.is_file():
        raise InputError(f"there is no {path}; make it with benchmark_models.py.")
    table = pd.read_csv(path)
    # a test set of one kind of images has no rows for all of them
    table = table[(table["images"] == config.images) | (table["images"].nunique() == 1)]
    table = table.sort_values("patches_seen", kind="stable")
    curves = [
        (key, rows)
        for key, rows in table.groupby(["psf_model", "parameter"], sort=False)
        if rows["patches_seen"].nunique() > 1
    ]
    if not curves:
        raise InputError(f"{path} needs two trainings or more of one PSF model.")
    figure, axes = new_figure(1, len(curves), 4.6, 3.8)
    needed = []
    for one, ((model, parameter), rows) in zip(axes.ravel(), curves, strict=True):
        draw_panel(one, rows, f"{model}, {parameter}")
        for condition, group in rows.groupby("condition", sort=False):
            fit = power_law(group["patches_seen"].to_numpy(), group["r2"].to_numpy())
            needed.append(
                {
                    "psf_model": model,
                    "parameter": parameter,
                    "condition": condition,
                    "most_patches_seen": group["patches_seen"].max(),
                    "r2_there": group["r2"].iloc[-1],
                    "exponent": fit[1],
                    **{f"patches_for_{target}": patches_needed(*fit, target) for target in TARGETS},
                }
            )
    axes.ravel()[0].legend(fontsize=7, loc="lower right")
    save_figure(config.results / "learning_curve.png", figure)
    with whole_file(config.results / "learning_curve.csv") as partial:
        pd.DataFrame(needed).to_csv(partial, index=False, float_format="%.4g")
    print(pd.DataFrame(needed).to_string(index=False, float_format=lambda v: f"{v:.3g}"))
    print(f"wrote {config.results / 'learning_curve.png'} and learning_curve.csv")


if __name__ == "__main__":
    run(Config, main, __doc__)
