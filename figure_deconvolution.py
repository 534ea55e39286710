"""Restorations with estimated maps beside other methods -> results/.

    python figure_deconvolution.py --out results

Forty objects (photographs, real micrographs, procedural ones) are blurred by smooth random maps and
tilted planes of three PSF models and recorded at 1000 and 100 photons per pixel, each twice. Every
method restores every image.

Writes to --out:
    deconvolution.csv                one row per image and method: gains in SNR over the blurred
                                     input, PSNR and SSIM of the field and of its centre, resolution
                                     by Fourier ring correlation, seconds
    deconvolution_summary.csv        means with 95 % intervals, for all objects and for each kind
    deconvolution_frc.csv            mean Fourier ring correlations
    figure_deconvolution.npz         images of the best, median and worst case, to draw from
    figure_deconvolution.png, .pdf   these images, with insets at full resolution
    figure_deconvolution_errors.png, .pdf   their errors, and Fourier ring correlations
    figure_deconvolution_gains.png, .pdf   gains by object, and mean Fourier ring correlations

The settings of the other methods come from --settings, which --tune chooses on other images. An
interrupted run resumes where it stopped. A method restores an image again if the image, the map,
the setting or the code of the method has changed. --draw-only draws the figures from the tables
and the .npz file in --out.

Optional: `pip install deepinv` adds two methods, and `pip install --no-deps mahotas stardist` three
of the micrographs.
"""

import multiprocessing
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from common.command import keep_freed_memory, run
from common.deconvolution_figure import draw_cases, draw_errors, draw_gains
from common.files import code_fingerprint, read_json, whole_file, write_csv, write_json
from common.output import holds_out_folder
from common.shown_cases import TRUTH, ShownCase, describe, read_shown, write_shown
from psf.errors import InputError
from psf.microscope import Microscope
from psf.synthesis import EnergyWarning
from restoration.compared import (
    BLIND,
    DEEPINV,
    INPUT,
    METHODS,
    ORACLE,
    OURS,
    installed_methods,
    method_key,
    trial_key,
    trial_of,
)
from restoration.frc import ring_frequencies
from restoration.real_objects import MICROGRAPHS, installed_micrographs
from restoration.rival_settings import (
    choose_settings,
    chosen_at_an_edge,
    gains_of_settings,
    read_settings,
    setting_of,
    write_settings,
)
from restoration.scenes import SUPPORTS_PX, Case, largest_size, make_scene
from restoration.scores import agreement, score
from restoration.summary import report, summarise
from simulation.objects import OBJECTS
from simulation.sources import TEST_IMAGES, VALIDATION_IMAGES

HERE = Path(__file__).parent
SCORES = [HERE / "restoration" / name for name in ("scores.py", "frc.py")]  # code of the scores
TABLE, CURVES, FIGURE = "deconvolution", "deconvolution_frc", "figure_deconvolution"  # in --out
TUNED_IMAGES, TUNED_SIZE = 12, 256  # at most; the largest for --tune, which tries 32 settings each


@dataclass(frozen=True)
class Config:
    """Settings of the experiment."""

    out: Path = Path("results")  # folder of the tables and the figures
    images: int = 40  # objects: photographs, real micrographs (test split), then procedural ones
    split: Literal["test", "validation"] = "test"  # of the images; validation: to choose settings
    photons: tuple[float, ...] = (1000.0, 100.0)  # mean photons per pixel
    size: int = 320  # px, edge of an image; less for real objects that are smaller
    workers: int = 2  # processes of one thread each
    scratch: Path = Path("data/deconvolution")  # folder of finished cases, to resume from
    seed: int = 0  # of the maps, the procedural objects and the noise
    settings: Path = Path("results/deconvolution_settings.csv")  # of the other methods
    tune: bool = False  # choose these settings on the validation split, and do nothing else
    slow: bool = False  # also plug-and-play, and the best setting of blind methods for each image
    draw_only: bool = False  # draw the tables of an earlier run


def cases(config: Config) -> list[Case]:
    """All cases; the PSF models and kinds of maps take turns over the objects."""
    real = [*TEST_IMAGES, *installed_micrographs()]
    real = real if config.split == "test" else list(VALIDATION_IMAGES)
    kinds, found = list(OBJECTS), []
    for index in range(config.images):
        later = index - len(real)
        name = real[index] if later < 0 else kinds[later % len(kinds)]
        size = min(config.size, largest_size(name) or config.size)
        model = list(SUPPORTS_PX)[index % len(SUPPORTS_PX)]
        kind = ("tilted plane", "random map")[(index // len(SUPPORTS_PX)) % 2]
        for photons in config.photons:
            place = (index, name, model, kind, photons, size, config.seed)
            found.append(Case(*place, config.split))
    return found


def run_case(case: Case, keys: dict[str, dict[str, Any]], folder: Path) -> None:
    """Restore one case by every method whose result is missing or was found under another key."""
    _prepare_process()
    trial = trial_of(make_scene(case))
    for name, key in keys.items():
        method = METHODS[name]
        path = result_path(folder, case, name)
        full_key = key | trial_key(method, trial)
        if path.exists() and read_json(path, "case").get("key") == full_key:
            continue
        started = time.perf_counter()
        found = method.restore(trial, key["setting"])
        seconds = time.perf_counter() - started
        again = trial.of_second_exposure()
        second = method.restore(again, key["setting"]) if method.twice else None
        resolutions, curves = agreement(found, second, trial.scene)
        row = {**asdict(case), "objects": case.objects, "method": name, "setting": key["setting"]}
        row |= {**score(found, trial.scene), **resolutions, "seconds": seconds}
        if method.shown:
            save_image(path.with_suffix(".npy"), found)
        write_json(path, {"key": full_key, "row": row, "curves": curves})
    save_image(folder / case.key / "truth.npy", trial.scene.truth)


def _prepare_process() -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    warnings.simplefilter("ignore", EnergyWarning)  # a little light falls outside the supports


def result_path(folder: Path, case: Case, name: str) -> Path:
    """File of one method's result for a case; its image lies beside it."""
    plain = "".join(letter if letter.isalnum() else "_" for letter in name)
    return folder / case.key / f"{plain}.json"


def save_image(path: Path, image: torch.Tensor) -> None:
    """Store an image (H, W) in single precision."""
    with whole_file(path) as partial_path, partial_path.open("wb") as file:
        np.save(file, image.numpy().astype(np.float32))


def method_keys(config: Config, all_cases: Iterable[Case]) -> dict[Case, dict[str, dict[str, Any]]]:
    """What decides the results of each case and method, other than images and maps."""
    methods = installed_methods(config.slow)
    table = read_settings(config.settings, methods)
    scores = code_fingerprint(*SCORES)
    found = {}
    for case in all_cases:
        settings = {n: setting_of(table, n, m, case.photons) for n, m in methods.items()}
        found[case] = {
            name: method_key(method, settings[name]) | {"scores": scores}
            for name, method in methods.items()
        }
    return found


def in_processes(work: Callable, tasks: list, workers: int) -> list:
    """Results of `work(*task)` for every task, in any order."""
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        waiting = [pool.apply_async(work, task) for task in tasks]
        found = [one.get() for one in tqdm(waiting, unit="case")]
        pool.close()
        pool.join()
    return found


def tune(config: Config) -> None:
    """Choose the settings of the other methods on the validation split, and write them."""
    images, size = min(config.images, TUNED_IMAGES), min(config.size, TUNED_SIZE)
    chosen = cases(replace(config, split="validation", images=images, size=size))
    rows = in_processes(tune_case, [(case,) for case in chosen], config.workers)
    table = choose_settings(pd.concat(rows))
    write_settings(config.settings, table)
    print(table[table["chosen"]].to_string(index=False, float_format=lambda v: f"{v:.3g}"))
    for edge in chosen_at_an_edge(table):
        print(f"note: the best setting lies at the edge of those tried ({edge})")
    print(f"wrote {config.settings}")


def tune_case(case: Case) -> pd.DataFrame:
    """Gains of one case by every setting of every method."""
    _prepare_process()
    rows = pd.DataFrame(gains_of_settings(trial_of(make_scene(case)), installed_methods()))
    return rows.assign(photons=case.photons)


def missing_programs() -> list[str]:
    """Notes on what is left out because a package is not installed."""
    notes = []
    if len(installed_methods()) < len(METHODS):
        notes.append("deepinv is not installed and is left out (pip install deepinv)")
    if lacking := [name for name in MICROGRAPHS if name not in installed_micrographs()]:
        notes.append(
            f"procedural objects take the place of the micrographs {', '.join(lacking)} "
            "(pip install --no-deps mahotas stardist)"
        )
    return notes


def results(config: Config) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of all cases, and their Fourier ring correlations, one row per frequency."""
    rows, curves = [], []
    for case, keys in method_keys(config, cases(config)).items():
        for name in keys:
            stored = read_json(result_path(config.scratch, case, name), "case")
            rows.append(stored["row"])
            curves += [
                {"photons": case.photons, "method": name, "with": other.removeprefix("frc_")}
                | {"cycles_per_px": frequency, "correlation": value}
                for other, curve in stored["curves"].items()
                for frequency, value in zip(ring_frequencies(), curve, strict=False)
            ]
    return pd.DataFrame(rows), pd.DataFrame(curves)


def mean_curves(curves: pd.DataFrame) -> pd.DataFrame:
    """Mean Fourier ring correlations over the images."""
    keys = ["photons", "method", "with", "cycles_per_px"]
    return curves.groupby(keys, sort=False)["correlation"].mean().reset_index()


def best_rival(table: pd.DataFrame) -> str:
    """The method with the highest mean gain, of those of others whose images are kept."""
    kept = [name for name in (*BLIND, DEEPINV) if name in set(table["method"])]
    means = table.groupby("method")["snr_gain_db"].mean()
    return max(kept, key=lambda name: means[name])


def shown_cases(config: Config, table: pd.DataFrame) -> list[ShownCase]:
    """The objects that ours restores best, worst and between them, at the first brightness."""
    photons = config.photons[0]
    first = table[table["photons"] == photons]
    order = first[first["method"] == OURS].sort_values("snr_gain_db")["index"].tolist()
    chosen = {"best": order[-1], "median": order[len(order) // 2], "worst": order[0]}
    lookup = {case.index: case for case in cases(config) if case.photons == photons}
    found = []
    for rank, index in chosen.items():
        images = {TRUTH: np.load(config.scratch / lookup[index].key / "truth.npy")}
        correlations = {}
        for name in (INPUT, best_rival(first), OURS, ORACLE):
            path = result_path(config.scratch, lookup[index], name)
            images[name] = np.load(path.with_suffix(".npy"))
            correlations[name] = np.array(read_json(path, "case")["curves"]["frc_truth"])
        found.append(ShownCase(rank, index, *describe(table, index, photons), images, correlations))
    return found


def read_table(path: Path) -> pd.DataFrame:
    """Rows of a table of an earlier run."""
    if not path.exists():
        raise InputError(f"{path} does not exist; run figure_deconvolution.py without --draw-only.")
    return pd.read_csv(path)


def draw(out: Path) -> None:
    """Draw the figures from the tables and images in a folder."""
    table, curves = (read_table(out / f"{name}.csv") for name in (TABLE, CURVES))
    shown, photons = read_shown(out / f"{FIGURE}.npz", table)
    pixel_um = Microscope().pixel_size_um
    draw_cases(out / FIGURE, shown, OURS, pixel_um, photons)
    draw_errors(out / f"{FIGURE}_errors", shown, pixel_um, photons)
    compared = [n for n in (BLIND[1], DEEPINV, ORACLE, OURS) if n in set(table["method"])]
    draw_gains(out / f"{FIGURE}_gains", table, curves, compared, pixel_um)
    print(f"drew {out / FIGURE}.png, {FIGURE}_errors.png and {FIGURE}_gains.png")


def write_results(config: Config) -> None:
    """Write the tables and the images to draw from, and print the means."""
    table, curves = results(config)
    summary = summarise(table)
    tables = {TABLE: table, f"{TABLE}_summary": summary, CURVES: mean_curves(curves)}
    for name, content in tables.items():
        write_csv(config.out / f"{name}.csv", content)
    write_shown(config.out / f"{FIGURE}.npz", shown_cases(config, table), config.photons[0])
    columns = ["photons", "method", "snr_gain_db", "interval_95_db", "worst_gain_db", "seconds"]
    means = summary.loc[summary["objects"] == "all", columns]
    print(means.to_string(index=False, float_format=lambda v: f"{v:.2f}"))
    report(table)
    print(f"wrote {config.out / TABLE}.csv")


@holds_out_folder
def main(config: Config) -> None:
    """Run what is missing, write the tables, draw."""
    if config.images < 1 or config.workers < 1 or config.size < 256:
        raise InputError(
            f"--images {config.images}, --workers {config.workers}, --size {config.size}; give at "
            "least 1 image, 1 worker and 256 px."
        )
    if not config.photons or min(config.photons) <= 0:
        raise InputError(f"--photons is {config.photons}; give numbers above 0.")
    if config.draw_only:
        draw(config.out)
        return
    for note in missing_programs():
        print(f"note: {note}")
    if config.tune:
        tune(config)
        return
    keys = method_keys(config, cases(config))
    work = partial(run_case, folder=config.scratch)
    in_processes(work, list(keys.items()), config.workers)
    write_results(config)
    draw(config.out)


if __name__ == "__main__":
    run(Config, main, __doc__)
