"""Scores of focus for simulated images that are read patch by patch and together, as a table.

R^2 is over the patches with content. Its intervals, and those of the gain over single patches, are
over source images.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from models.error_bars import coverage
from models.scoring import BOOTSTRAP_SEED, SCORES, r2_interval
from simulation.images import Images

ALL = "all"  # softness of a row with all images
REPETITIONS = 500  # of the bootstrap, as in `r2_interval`
# What a network says of the N patches of an image, by what it saw (alone, image, stack). Each is
# (4, N): focus, half widths of the 68 % and 95 % intervals, and content probability.
Readings = dict[str, np.ndarray]


@dataclass(frozen=True)
class Scene:
    """One simulated image without noise, and where it comes from."""

    images: Images  # of B = 1
    source: str  # name of the source image
    softness_px: float  # standard deviation of the Gaussian; 0: sharp


@dataclass(frozen=True)
class Pooled:
    """The patches of several images."""

    truth: np.ndarray  # (N,) focus
    has_content: np.ndarray  # (N,) bool
    sources: np.ndarray  # (N,) names of the source images
    softness_px: np.ndarray  # (N,)
    readings: Readings

    def take(self, rows: np.ndarray) -> "Pooled":
        """Some of the patches, by a mask (N,)."""
        readings = {name: values[:, rows] for name, values in self.readings.items()}
        columns = (self.truth, self.has_content, self.sources, self.softness_px)
        return Pooled(*(column[rows] for column in columns), readings)


def pooled(scenes: Sequence[Scene], readings: Sequence[Readings]) -> Pooled:
    """The patches of these images, recorded with one light."""
    sizes = [one.images.has_content.numel() for one in scenes]
    labels = [one.images.labels[..., 0].flatten().double().cpu().numpy() for one in scenes]
    content = [one.images.has_content.flatten().cpu().numpy() for one in scenes]
    return Pooled(
        truth=np.concatenate(labels),
        has_content=np.concatenate(content),
        sources=np.repeat([one.source for one in scenes], sizes),
        softness_px=np.repeat([one.softness_px for one in scenes], sizes),
        readings={n: np.concatenate([one[n] for one in readings], 1) for n in readings[0]},
    )


def focus_rows(patches: Pooled, softness_range_px: tuple[float, float]) -> Iterator[dict[str, Any]]:
    """Rows of the table for patches with content: all, and by softness if any are soft."""
    patches = patches.take(patches.has_content)
    softness, middle = patches.softness_px, float(np.mean(softness_range_px))
    groups = {ALL: np.ones(len(softness), bool)}
    if softness.any():
        groups["0"] = softness == 0
        groups[f"up to {middle:.2g}"] = (softness > 0) & (softness <= middle)
        groups[f"above {middle:.2g}"] = softness > middle
    for name, rows in groups.items():
        some = patches.take(rows)
        for estimate in some.readings:
            yield {"softness_px": name, "estimate": estimate, **score(some, estimate)}


def content_rows(patches: Pooled) -> Iterator[dict[str, Any]]:
    """Rows of the table for patches that should be refused."""
    for estimate, (*_, content) in patches.readings.items():
        yield {"softness_px": ALL, "estimate": estimate, **counts(patches), **called(content)}


def counts(patches: Pooled) -> dict[str, int]:
    """Numbers of patches and of their source images."""
    return {"source_images": len(np.unique(patches.sources)), "patches": len(patches.truth)}


def called(content_probability: np.ndarray) -> dict[str, float]:
    """Share of patches (N,) that a network calls content; NaN without patches."""
    share = np.mean(content_probability > 0.5) if len(content_probability) else math.nan
    return {"called_content": float(share)}


def score(patches: Pooled, estimate: str) -> dict[str, Any]:
    """Scores of one way of reading; the gain is over single patches."""
    focus, half_68, half_95, content = patches.readings[estimate]
    truth, alone = patches.truth, patches.readings["alone"][0]
    if len(truth) < 2:
        return counts(patches) | called(content)
    low, high = r2_interval(truth, focus, patches.sources, np.random.default_rng(BOOTSTRAP_SEED))
    gain_low, gain_high = gain_interval(truth, alone, focus, patches.sources)
    r2 = SCORES["r2"]
    return {
        **counts(patches),
        "r2": float(r2(truth, focus)),
        "r2_low": low,
        "r2_high": high,
        "gain": float(r2(truth, focus) - r2(truth, alone)),
        "gain_low": gain_low,
        "gain_high": gain_high,
        "rmse_waves": float(SCORES["rmse"](truth, focus)),
        "coverage_68": coverage(focus - truth, half_68),
        "coverage_95": coverage(focus - truth, half_95),
        **called(content),
    }


def gain_interval(
    truth: np.ndarray, first: np.ndarray, second: np.ndarray, sources: np.ndarray
) -> tuple[float, float]:
    """95 % percentile interval of R^2 of the second prediction (N,) minus that of the first.

    Source images are drawn with replacement, the same for both, as in `r2_interval`. NaN if there
    is only one.
    """
    names, index = np.unique(sources, return_inverse=True)
    if len(names) < 2:
        return math.nan, math.nan
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    centred = truth - truth.mean()
    fall = (first - truth) ** 2 - (second - truth) ** 2  # of the squared error
    columns = (np.ones(len(truth)), centred, centred**2, fall)
    sums = np.stack([np.bincount(index, column) for column in columns], 1)  # (S, 4)
    draws = rng.integers(len(names), size=(REPETITIONS, len(names)))
    count, mean, square, gained = sums[draws].sum(1).T
    total = square - mean**2 / count
    usable = total > 1e-12 * square
    if not usable.any():
        return math.nan, math.nan
    low, high = np.percentile(gained[usable] / total[usable], (2.5, 97.5))
    return float(low), float(high)


def markdown(table: pd.DataFrame) -> str:
    """Text of images.md."""
    focus = table[table["r2"].notna()]
    whole = focus[focus["softness_px"] == ALL]
    images, stacks = whole[whole["planes"] == 1], whole[whole["planes"] > 1]
    soft = focus[(focus["softness_px"] != ALL) & (focus["planes"] == 1)]
    refused = table[table["r2"].isna() & (table["softness_px"] == ALL)]
    parts = [
        "R² of focus, with 95 % intervals over source images, on held-out simulated images.",
        *_section("Images", images, _focus_lines),
        *_section("Focal stacks", stacks, _focus_lines),
        *_section("Images by softness", soft, _softness_lines),
        *_section("Patches called content", pd.concat([images, refused]), _content_lines),
    ]
    return "\n".join(parts) + "\n"


def _section(title: str, table: pd.DataFrame, lines: Any) -> list[str]:
    return ["", f"## {title}", "", *lines(table)] if len(table) else []


def _groups(table: pd.DataFrame, by: list[str]) -> Iterator[tuple[tuple, dict[str, Any]]]:
    """Keys of the groups of rows, in the order of the table, and their rows by estimate."""
    for key, rows in table.groupby(by, sort=False):
        yield key, {row.estimate: row for row in rows.itertuples()}


def _light(photons: float) -> str:
    return "none" if math.isinf(photons) else f"{photons:g}"


def _interval(value: float, low: float, high: float, form: str) -> str:
    """A value, with its interval if there is one."""
    return f"{value:{form}}" + (f" ({low:{form}} to {high:{form}})" if low <= high else "")


HEAD = ("optics", "specimens", "photons per px")  # of every table; no photons: no noise
KEY = ["optics", "specimens", "photons_per_px"]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [" | ".join(head), "|".join(["---"] * len(head)), *(" | ".join(row) for row in rows)]
    return [f"|{line}|" if line.startswith("---") else f"| {line} |" for line in lines]


def _focus_lines(table: pd.DataFrame) -> list[str]:
    names = list(table["estimate"].unique())
    head = [*HEAD, *(f"R², {name}" for name in names)]
    head += [f"gain, {name}" for name in names[1:]]
    head += [f"within {level} % bars, {name}" for level in (68, 95) for name in names]
    rows = []
    for (optics, specimens, photons), found in _groups(table, KEY):
        each = [found[name] for name in names]
        cells = [optics, specimens, _light(photons)]
        cells += [_interval(one.r2, one.r2_low, one.r2_high, ".3f") for one in each]
        cells += [_interval(one.gain, one.gain_low, one.gain_high, "+.3f") for one in each[1:]]
        cells += [f"{100 * one.coverage_68:.0f}" for one in each]
        cells += [f"{100 * one.coverage_95:.0f}" for one in each]
        rows.append(cells)
    return _table(head, rows)


def _softness_lines(table: pd.DataFrame) -> list[str]:
    # not R^2, which would depend on the spread of focus in the few images of a group
    rows = [
        [optics, specimens, _light(photons), softness, str(found["alone"].patches)]
        + [f"{one.rmse_waves:.2f}" for one in found.values()]
        for (optics, specimens, photons, softness), found in _groups(table, [*KEY, "softness_px"])
    ]
    return _table(
        [*HEAD, "softness, px", "patches", "rmse, alone, waves", "in the image, waves"], rows
    )


def _content_lines(table: pd.DataFrame) -> list[str]:
    rows = [
        [optics, specimens, _light(photons), str(found["alone"].patches)]
        + [f"{100 * one.called_content:.1f}" for one in found.values()]
        for (optics, specimens, photons), found in _groups(table, KEY)
    ]
    return _table([*HEAD, "patches", "called content, alone, %", "in the image, %"], rows)
