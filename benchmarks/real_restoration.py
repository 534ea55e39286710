r"""Restoration of the blurred planes of a real focal stack, judged by its sharpest plane.

    python benchmarks/real_restoration.py --stack section.tif --na 0.14 --wavelength-um 0.55 \
        --pixel-size-um 1.05 --refractive-index 1 --allow-other-optics --out restored/section

The sharpest plane of a flat object is a truth that needs no simulation. Each plane is mapped by
itself and restored by every method. By default these are the planes 1 to 5 steps from the sharpest
one; --planes chooses others. Gains in SNR over the blurred plane are given in two ways:

    in focus   the restoration is blurred again by the PSF of the optics in focus: the sharpest
               plane is an image of the object, while a restoration estimates the object itself
    as it is   the restoration itself; this hides no noise and needs no PSF

Writes real_restoration.csv, one row per plane and method, real_restoration_summary.csv and .md,
means of the planes 2 to 5 steps from focus, and real_restoration.png. Finished results are not
made again, unless their image, settings or code have changed.

Every image is shifted to the sharpest plane and its grey values are fitted by a straight line. The
intervals are bootstraps over tiles of 128 px.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.plane_scores import (
    KINDS,
    Truth,
    detail,
    gain_db,
    make_truth,
    offset_px,
    score,
)
from benchmarks.real_restoration_report import draw, markdown
from benchmarks.restoration_methods import INPUT, available_methods, rivals_of
from benchmarks.restored_planes import (
    PlaneOptions,
    Scored,
    chosen_planes,
    kept_results,
    open_view,
    settings_for_key,
)
from benchmarks.tiles import bootstrap, inner, shown_part
from common.command import keep_freed_memory, pick_device, run
from common.files import code_fingerprint, run_record, whole_file, write_csv
from common.pictures import save_figure
from micrographs.micrograph import Micrograph, open_micrograph
from micrographs.neighbours import fill_outliers
from micrographs.outliers import find_outliers
from models.checkpoint import load_estimator
from models.map_files import pixels_hash
from psf.errors import InputError
from psf.microscope import OPTICS_NAMES, Microscope

STEPS = 5  # planes on each side of the sharpest one that are restored by default
JUDGED = (2, 5)  # steps from the sharpest plane whose gains are averaged
WORSE_DB = 0.1  # loss from which a tile counts as worse
SCORES = [Path(__file__).with_name(name) for name in ("plane_scores.py", "tiles.py")]


@dataclass(frozen=True, kw_only=True)
class Config(PlaneOptions):
    """Settings of the benchmark."""

    stack: Path  # TIFF z-stack of a flat object
    # planes to restore, from 0; default: those up to 5 steps from the sharpest one
    planes: tuple[int, ...] | None = None
    sharpest: int | None = None  # index of the sharpest plane, from 0; default: found


@dataclass(frozen=True)
class Stack:
    """The planes of an open file, read one at a time, so that memory holds few of them."""

    planes: list[Micrograph]
    microscope: Microscope

    def __len__(self) -> int:
        return len(self.planes)

    def read(self, plane: int) -> np.ndarray:
        """A plane (H, W) with the median of neighbours in pixels that are not usable, float64."""
        micrograph = self.planes[plane]
        pixels = micrograph.plane()
        cutoff = self.microscope.cutoff_cycles_per_pixel
        usable = find_outliers(pixels, micrograph.full_scale, cutoff).usable
        return fill_outliers(pixels, usable).double().numpy()

    def sharpest(self) -> int:
        """Index of the plane with most fine detail."""
        return int(np.argmax([detail(self.read(plane)) for plane in range(len(self))]))

    def truth(self, sharpest: int) -> Truth:
        """The sharpest plane as a truth."""
        beside = [p for p in (sharpest - 1, sharpest + 1) if 0 <= p < len(self)]
        return make_truth(self.read(sharpest), [self.read(p) for p in beside], self.microscope)


def restore_all(
    config: Config, stack: Stack, chosen: list[int], sharpest: int, truth: Truth
) -> dict[int, dict[str, Scored]]:
    """Results by plane and method."""
    estimator = load_estimator(config.checkpoint, pick_device(config.device))
    methods, results = available_methods(), {}
    code, truth_hash = code_fingerprint(*SCORES), pixels_hash(stack.planes[sharpest])
    for plane in tqdm(chosen, desc="restore", unit="plane"):
        options = config.of_file(config.stack, plane)
        key = {"pixels": pixels_hash(stack.planes[plane]), "truth": truth_hash, "scores": code}
        key["settings"] = settings_for_key(options)
        offset = offset_px(stack.read(plane), truth.image)
        results[plane] = kept_results(
            config.scratch / config.stack.stem / f"plane_{plane:03d}",
            key,
            methods,
            estimator.fingerprint,
            partial(open_view, options, estimator),
            partial(score, truth=truth, plane_offset=offset),
        )
    return results


def tabulate(
    results: Mapping[int, Mapping[str, Scored]], sharpest: int, truth: Truth
) -> pd.DataFrame:
    """One row per plane and method."""
    rows = []
    for plane, methods in results.items():
        before = {k: np.array(methods[INPUT][0]["errors"][k]) for k in KINDS}
        for name, (facts, _) in methods.items():
            row: dict[str, Any] = {"plane": plane, "steps": plane - sharpest, "method": name}
            for kind in KINDS:
                after = np.array(facts["errors"][kind])
                gains = gain_db(before[kind], after)  # of single tiles
                gain, low, high = bootstrap(gain_db, before[kind][None], after[None])
                row[f"snr_{kind}_db"] = 10 * np.log10(truth.errors_of_mean / after.sum())
                row |= {f"gain_{kind}_db": gain, f"gain_{kind}_low": low, f"gain_{kind}_high": high}
                row[f"worse_tiles_{kind}"] = float((gains < -WORSE_DB).mean())
            row |= dict(zip(("shift_y_px", "shift_x_px"), facts["shift_px"], strict=True))
            left = ("errors", "shift_px")
            rows.append(row | {k: v for k, v in facts.items() if k not in left})
    return pd.DataFrame(rows)


def summarise(
    results: Mapping[int, Mapping[str, Scored]], table: pd.DataFrame, truth: Truth
) -> pd.DataFrame:
    """Mean gain, planes made worse, and lead over the best rival: a row per method."""
    noise = truth.noise_variance * inner(truth.image).size  # part of every squared error
    distance = table.drop_duplicates("plane").set_index("plane")["steps"].abs()
    judged = [plane for plane in results if JUDGED[0] <= distance[plane] <= JUDGED[1]]
    rows, names = [], list(table["method"].unique())
    for kind in KINDS if judged else ():
        errors = {
            name: np.array([results[plane][name][0]["errors"][kind] for plane in judged])
            for name in names
        }
        means = {name: bootstrap(gain_db, errors[INPUT], errors[name]) for name in names}
        order = sorted(names, key=lambda name: -means[name][0])
        best = next((name for name in order if name in rivals_of(names)), None)
        for name in names:
            gains = gain_db(errors[INPUT].sum(1), errors[name].sum(1))
            row = {"comparison": kind, "method": name, "planes": len(judged)}
            row |= dict(zip(("gain_db", "gain_low", "gain_high"), means[name], strict=True))
            row |= {"least_gain_db": float(gains.min()), "worse_planes": int((gains < 0).sum())}
            without = [errors[one].sum(1) - noise for one in (INPUT, name)]
            possible = (without[0] > 0).all() and (without[1] > 0).all()
            row["gain_without_noise_db"] = gain_db(*without).mean() if possible else np.nan
            row["rank"] = order.index(name) + 1
            if best is not None:
                lead = bootstrap(gain_db, errors[best], errors[name])
                row |= dict(zip(("lead_db", "lead_low", "lead_high"), lead, strict=True))
                ahead = errors[name].sum(1) < errors[best].sum(1)
                row |= {"best_rival": best, "planes_ahead": int(ahead.sum())}
            rows.append(row)
    return pd.DataFrame(rows)


def write_results(
    config: Config, results: Mapping[int, Mapping[str, Scored]], sharpest: int, truth: Truth
) -> None:
    """Write the tables and the figure."""
    table = tabulate(results, sharpest, truth)
    summary = summarise(results, table, truth)
    write_csv(config.out / "real_restoration.csv", table)
    write_csv(config.out / "real_restoration_summary.csv", summary)
    text = markdown(config.stack.name, sharpest, truth, table, summary)
    with whole_file(config.out / "real_restoration.md") as path:
        path.write_text(f"{text}\nCommit {run_record()['commit']}.\n", encoding="utf-8")
    pictures = {p: {name: shown for name, (_, shown) in one.items()} for p, one in results.items()}
    figure = draw(table, pictures, truth.image[shown_part(truth.image)], config.pixel_size_um)
    save_figure(config.out / "real_restoration.png", figure)
    print(text)
    print(f"wrote real_restoration.csv, .md, .png and _summary.csv to {config.out}")


def main(config: Config) -> None:
    """Restore, score, write, draw."""
    torch.set_num_threads(1)  # so that seconds of different methods compare
    keep_freed_memory()
    microscope = Microscope(**{name: getattr(config, name) for name in OPTICS_NAMES})
    with open_micrograph(config.stack, config.channel, z=0) as micrograph:
        stack = Stack(micrograph.focal_planes()[0], microscope)
        sharpest = stack.sharpest() if config.sharpest is None else config.sharpest
        if not 0 <= sharpest < len(stack):
            last = len(stack) - 1
            raise InputError(f"--sharpest is {sharpest}; the stack has planes 0 to {last}.")
        near = range(max(0, sharpest - STEPS), min(len(stack), sharpest + STEPS + 1))
        chosen = [p for p in chosen_planes(config.planes, near, len(stack)) if p != sharpest]
        if not chosen:
            raise InputError(
                f"no plane is left beside the sharpest one, {sharpest}; give --planes."
            )
        truth = stack.truth(sharpest)
        results = restore_all(config, stack, chosen, sharpest, truth)
    write_results(config, results, sharpest, truth)


if __name__ == "__main__":
    run(Config, main, __doc__)
