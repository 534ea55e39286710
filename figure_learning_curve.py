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
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from common.command import run
from common.files import write_csv
from common.pictures import condition_style, new_figure, save_figure
from psf.errors import InputError

TARGETS = (0.90, 0.93, 0.95, 0.98, 0.995)  # R^2 whose cost the table shows, a choice of display
TICKS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995)  # of R^2
LEAST_SHOWN = 3e-4  # lower end of the axis of 1 - R^2; better scores do not differ in practice
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


def unexplained(r2: pd.Series) -> np.ndarray:
    """1 - R^2, at most 1: a lower R^2 says no more than that the network has learned nothing."""
    return np.minimum(1 - r2.to_numpy(float), 1.0)


def draw_panel(axes: Axes, rows: pd.DataFrame, title: str) -> None:
    """Draw one parameter: points with 95 % intervals and the fitted power law per condition.

    The axis shows 1 - R^2 on a logarithmic scale, on which a power law is a straight line.
    """
    seen = rows["patches_seen"]
    grid = np.geomspace(seen.min() / 1.5, seen.max() * 20, 60)
    for condition, group in rows.groupby("condition", sort=False):
        style = dict(condition_style(condition))
        middle, low, high = (unexplained(group[c]) for c in ("r2", "r2_low", "r2_high"))
        ends = np.nan_to_num([middle - high, low - middle]).clip(min=0)
        style |= {
            "ls": "",
            "ms": 5,
            "capsize": 2,
            "label": condition.replace("photons", "photons/px"),
        }
        axes.errorbar(group["patches_seen"], middle, ends, **style)
        log_a, exponent = power_law(group["patches_seen"].to_numpy(), group["r2"].to_numpy())
        axes.plot(grid, np.exp(log_a) * grid**-exponent, color=style["color"], lw=1, ls=":")
    lowest = max(0.7 * float(1 - rows["r2_high"].max()), LEAST_SHOWN)
    ticks = [tick for tick in TICKS if 1 - tick >= lowest]
    axes.set(xscale="log", yscale="log", title=title, ylabel="R² (1 - R² on a log scale)")
    axes.set_ylim(1.08, lowest)
    axes.set_yticks([1 - tick for tick in ticks], [f"{tick:g}" for tick in ticks])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("patches seen (dotted: fitted power law of 1 - R²)")
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
    axes.ravel()[-1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    save_figure(config.results / "learning_curve.png", figure)
    needed = pd.DataFrame([row for rows in curves for row in budgets(rows)])
    write_csv(config.results / "learning_curve.csv", needed)
    print(needed.to_string(index=False, float_format=lambda v: f"{v:.3g}"))
    print(f"wrote {config.results / 'learning_curve.png'} and learning_curve.csv")


if __name__ == "__main__":
    run(Config, main, __doc__)
