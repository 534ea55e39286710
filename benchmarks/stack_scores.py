"""Scores of the estimates in a real focal stack: ranks, errors, coverage and content.

`real_stacks.py` makes the tables of estimates, one row per tile and plane.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from sklearn.isotonic import IsotonicRegression

from benchmarks.stack_truth import LEAST_PEAK
from models.depth_fit import follows

FEWEST_PLANES = 4  # of a tile, for its rank correlation; that of three planes has few values
FEWEST_BLOCKS = 3  # of tiles, for an interval
DRAWS = 300  # of the bootstrap: the ends of a 95 % interval rest on seven draws each
SEED = 0  # of the bootstrap, so that equal estimates give equal tables
FOLDS = 5  # groups of tiles, each judged by the calibration of the others; not tuned
GROUPED_BY = ("contrast", "brightness", "centred")  # quantities whose terciles are scored, too
TERCILES = ("low", "middle", "high")
KEYS = ["network", "context", "stack", "unit"]


def score_stack(estimates: pd.DataFrame) -> pd.DataFrame:
    """Scores of one network in one stack: a row per group of patches.

    The groups are all patches in tiles whose focus is known, those called content, and the terciles
    of the latter by contrast, by brightness and by how much of the detail lies in the middle.
    """
    judged = estimates[estimates["focus_z"].notna()]
    empty = estimates[estimates["focus_z"].isna() & (estimates["peak"] < LEAST_PEAK)]
    facts = dict(zip(KEYS, estimates[KEYS].iloc[0], strict=True))
    rows = []
    for name, group in groups(judged):
        row = {**facts, "patches": name, **score(group)}
        if name in ("all", "content"):
            row |= intervals(group)
        if name == "all":
            row["content_in_empty_tiles"] = called_content(empty)
            row["content_out_of_range"] = called_content(judged[judged["out_of_range"]])
        rows.append(row)
    return pd.DataFrame(rows)


def groups(judged: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Named groups of patches."""
    yield "all", judged
    content = judged[judged["content"] >= 0.5]
    yield "content", content
    for quantity in GROUPED_BY:
        rank = content[quantity].rank(method="first", pct=True)
        tercile = np.ceil(3 * rank)
        for i, name in enumerate(TERCILES, start=1):
            yield f"{quantity} {name}", content[tercile == i]


def score(group: pd.DataFrame) -> dict[str, float]:
    """Scores of a group of patches; NaN where there are too few, or no unit."""
    errors = (group["estimate"] - group["truth"]).abs()
    has_bars = group["half_68"].notna()
    errors = errors.where(has_bars)
    return {
        "tiles": group["tile"].nunique(),
        "estimates": len(group),
        "rank_within": tile_ranks(group).median(),
        "rank": rank(group),
        "rms_um": root_mean_square(errors),
        "calibrated_rms": root_mean_square(calibrated_errors(group)),
        "within_68": share(errors <= group["half_68"], has_bars),
        "within_95": share(errors <= group["half_95"], has_bars),
        "called_content": called_content(group),
    }


def rank(group: pd.DataFrame) -> float:
    """Rank correlation of the estimates with the truth; NaN for fewer than three."""
    if len(group) < 3:
        return np.nan
    return follows(group["estimate"].to_numpy(), group["truth"].to_numpy())


def tile_ranks(group: pd.DataFrame) -> pd.Series:
    """Rank correlation through z within each tile that has enough planes, (T,) by tile.

    It is 0 where all estimates of a tile are equal.
    """
    tile = group["tile"]
    ranks = group.groupby("tile")[["estimate", "truth"]].rank()
    ranks -= ranks.groupby(tile).transform("mean")
    x, y = ranks["estimate"], ranks["truth"]
    products = pd.DataFrame({"xy": x * y, "xx": x**2, "yy": y**2}).groupby(tile).sum()
    norm = np.sqrt(products["xx"] * products["yy"])
    found = (products["xy"] / norm.where(norm > 0)).fillna(0.0)
    return found[tile.value_counts().reindex(found.index) >= FEWEST_PLANES]


def root_mean_square(errors: pd.Series | np.ndarray) -> float:
    """Root of the mean square of the finite errors."""
    errors = np.asarray(errors, float)
    errors = errors[np.isfinite(errors)]
    return float(np.sqrt(np.mean(errors**2))) if len(errors) else np.nan


def share(inside: pd.Series, counted: pd.Series) -> float:
    """Share of the counted patches that are inside."""
    return float(inside[counted].mean()) if counted.any() else np.nan


def called_content(group: pd.DataFrame) -> float:
    """Share of the patches in which the network finds content."""
    return float((group["content"] >= 0.5).mean()) if len(group) else np.nan


def calibrated_errors(group: pd.DataFrame) -> np.ndarray:
    """Errors (N,) after a calibration, in the unit of z.

    The calibration is the best rising curve of truth against estimate, fitted to other tiles. It
    shows what `calibrate_depth.py` can gain.
    """
    errors = np.full(len(group), np.nan)
    estimate, truth = (group[name].to_numpy() for name in ("estimate", "truth"))
    fold = group["block"].rank(method="dense").to_numpy().astype(int) % FOLDS
    for k in np.unique(fold):
        left_out = fold == k
        if (~left_out).any():
            curve = IsotonicRegression(out_of_bounds="clip")
            curve.fit(estimate[~left_out], truth[~left_out])
            errors[left_out] = curve.predict(estimate[left_out]) - truth[left_out]
    return errors


def intervals(group: pd.DataFrame) -> dict[str, float]:
    """Ends of the 95 % intervals of the main scores, by a bootstrap over tiles.

    Tiles that overlap are drawn together.
    """
    columns, ranks = ["estimate", "truth", "half_68", "half_95"], tile_ranks(group)
    blocks = [
        (ranks[ranks.index.isin(block["tile"])].to_numpy(), block[columns].to_numpy())
        for _, block in group.groupby("block")
    ]
    if len(blocks) < FEWEST_BLOCKS:
        return {}
    generator, draws = np.random.default_rng(SEED), []
    for _ in range(DRAWS):
        drawn = [blocks[i] for i in generator.integers(0, len(blocks), len(blocks))]
        within = np.concatenate([one for one, _ in drawn])
        estimate, truth, half_68, half_95 = np.concatenate([rows for _, rows in drawn]).T
        errors = np.abs(estimate - truth)
        draws.append(
            {
                "rank_within": np.median(within) if len(within) else np.nan,
                "rank": follows(estimate, truth),
                "rms_um": root_mean_square(np.where(np.isnan(half_68), np.nan, errors)),
                "within_68": np.where(np.isnan(half_68), np.nan, errors <= half_68).mean(),
                "within_95": np.where(np.isnan(half_95), np.nan, errors <= half_95).mean(),
            }
        )
    table = pd.DataFrame(draws)
    ends = (("low", 0.025), ("high", 0.975))
    return {f"{name}_{end}": table[name].quantile(q) for name in table for end, q in ends}


def mean_rows(scores: pd.DataFrame) -> pd.DataFrame:
    """Means over stacks, a row per network, context and group, with summed counts.

    Stacks without error bars have no part in the coverage. Errors in um have no mean, since stacks
    differ in depth of field.
    """
    means = scores.groupby(["network", "context", "patches"], sort=False).mean(numeric_only=True)
    counts = ["tiles", "estimates"]
    sums = scores.groupby(["network", "context", "patches"], sort=False)[counts].sum()
    ends = [name for name in means if name.endswith(("_low", "_high"))]
    means = means.drop(columns=[*ends, *counts, "rms_um", "calibrated_rms"])
    return means.join(sums).reset_index().assign(stack="mean")
