"""Draw R^2 against the number of training patches, and estimate how many a target needs.

    python benchmark_models.py --checkpoints runs/curve/5_minutes runs/curve/10_minutes \
        runs/zernike1d --data data/zernike1d --out results/learning_curve
    python figure_learning_curve.py --results results/learning_curve

Each checkpoint in benchmark.csv was trained separately, with its full schedule. The script fits
1 - R^2 as a power of the patches seen, for each parameter and condition. It writes the fit to
learning_curve.png, and to learning_curve.csv the patches that R^2 of 0.90 to 0.995 would need.
These numbers are extrapolations. Where the line is flat, more training does not help.
"""

from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from common.command import run
from common.files import write_csv
from common.pictures import COLOURS, new_figure, save_figure
from psf.errors import InputError

TARGETS = (0.90, 0.93, 0.95, 0.98, 0.995)  # R^2 whose cost the table shows, a choice of display
FLATTEST = 0.02  # exponent of a flat line: ten times the patches take less than 5 % off 1 - R^2


@dataclass(frozen=True)
class Config:
    """Settings of the figure."""

    results: Path = Path("results/learning_curve")  # folder that holds benchmark.csv
    images: str = "all"  # test images that count: all, builtin or procedural


def power_law(patches_seen: np.ndarray, r2: np.ndarray) -> tuple[float, float]:
    """(log a, b) of the least-squares fit 1 - R^2 = a patches_seen^-b to logarithms."""
    slope, intercept = np.polyfit(np.log(patches_seen), np.log1p(-r2), 1)
    return float(intercept), float(-slope)


def patches_needed(log_a: float, exponent: float, r2: float) -> float:
    """Number of patches at which the power law reaches R^2; infinite if the line is flat."""
    if exponent < FLATTEST:
        return float("inf")
    return float(np.exp((log_a - np.log1p(-r2)) / exponent))


def draw_panel(axes: Axes, rows: pd.DataFrame, title: str) -> None:
    """Draw one parameter: points with 95 % intervals and the fitted power law per condition."""
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


def budgets(rows: pd.DataFrame) -> list[dict[str, str | float]]:
    """What one parameter needs to reach each target, a row per condition."""
    found = []
    for condition, group in rows.groupby("condition", sort=False):
        fit = power_law(group["patches_seen"].to_numpy(), group["r2"].to_numpy())
        found.append(
            {
                "psf_model": group["psf_model"].iloc[0],
                "parameter": group["parameter"].iloc[0],
                "condition": condition,
                "most_patches_seen": group["patches_seen"].max(),
                "r2_there": group["r2"].iloc[-1],
                "exponent": fit[1],
                **{f"patches_for_{target}": patches_needed(*fit, target) for target in TARGETS},
            }
        )
    return found


def read_curves(config: Config) -> list[pd.DataFrame]:
    """Rows of benchmark.csv by PSF model and parameter, from few patches seen to many.

    Raises
    ------
    InputError
        If there is no table, or no PSF model in it was trained twice.
    """
    path = config.results / "benchmark.csv"
    if not path.is_file():
        raise InputError(f"there is no {path}; make it with benchmark_models.py.")
    table = pd.read_csv(path)
    # A test set of one kind of images has rows of this kind only, and none named "all".
    table = table[(table["images"] == config.images) | (table["images"].nunique() == 1)]
    table = table.sort_values("patches_seen", kind="stable")
    groups = (rows for _, rows in table.groupby(["psf_model", "parameter"], sort=False))
    curves = [rows for rows in groups if rows["patches_seen"].nunique() > 1]
    if not curves:
        raise InputError(
            f"{path} holds fewer than two trainings of each PSF model for images "
            f"'{config.images}'; benchmark more checkpoints or give other --images."
        )
    return curves


def main(config: Config) -> None:
    """Fit and draw each parameter, and write figure and table."""
    curves = read_curves(config)
    figure, axes = new_figure(1, len(curves), 4.6, 3.8)
    for one, rows in zip(axes.ravel(), curves, strict=True):
        draw_panel(one, rows, f"{rows['psf_model'].iloc[0]}, {rows['parameter'].iloc[0]}")
    axes.ravel()[0].legend(fontsize=7, loc="lower right")
    save_figure(config.results / "learning_curve.png", figure)
    needed = pd.DataFrame([row for rows in curves for row in budgets(rows)])
    write_csv(config.results / "learning_curve.csv", needed)
    print(needed.to_string(index=False, float_format=lambda v: f"{v:.3g}"))
    print(f"wrote {config.results / 'learning_curve.png'} and learning_curve.csv")


if __name__ == "__main__":
    run(Config, main, __doc__)
