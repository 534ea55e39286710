"""Restorations with estimated maps beside other methods -> results/.

    python figure_deconvolution.py --out results

Test photographs and procedural objects are blurred by smooth random maps and tilted planes of three
PSF models and recorded at 1000 and 100 photons per pixel. Every method restores every image.

Writes to --out:
    deconvolution.csv                gains in SNR over the blurred input, PSNR and SSIM of the field
                                     and of its centre, seconds: one row per image and method
    deconvolution_summary.csv        means with 95 % intervals
    figure_deconvolution.png, .pdf   the best, median and worst case

An interrupted run resumes where it stopped. A case is restored again if its settings, its network
or the code have changed. --draw-only draws the finished cases again. If deepinv is installed, its
Richardson-Lucy with the estimated map is measured too.
"""

import math
import multiprocessing
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from common.command import keep_freed_memory, run
from common.files import (
    code_fingerprint,
    read_json,
    whole_file,
    write_csv,
    write_json,
)
from common.output import holds_out_folder
from common.pictures import add_scale_bar, new_figure, save_figure, show_image
from models.checkpoint import load_estimator
from models.map_image import smooth_parameters
from models.mapping import PsfMap, predict_map
from psf.errors import InputError
from psf.microscope import Microscope
from psf.synthesis import EnergyWarning
from restoration.blur_map import blur_of_map, continue_to_borders
from restoration.peers import deepinv_richardson_lucy, is_installed, skimage_wiener
from restoration.richardson_lucy import richardson_lucy
from restoration.rivals import blind_richardson_lucy, blind_total_variation, weights_after_blur
from restoration.scenes import SUPPORTS_PX, Case, Scene, make_scene, mean_psf, score, snr_db
from restoration.variant_blur import VariantBlur
from restoration.with_map import restore_with_map
from simulation.objects import OBJECTS
from simulation.sources import TEST_IMAGES, VALIDATION_IMAGES

# networks for maps of these PSF models; for others, the network of the model's own name
NETWORKS = {"zernike1d": "zernike1d_tilted", "zernike2d": "zernike2d_tilted"}
STRIDE = 32  # px between the patches of an estimated map, as estimate_psf_map.py has by default
HERE = Path(__file__).parent
CODE = (*(HERE / name for name in ("psf", "simulation", "models", "restoration")), Path(__file__))
PHOTOGRAPHS = {"test": TEST_IMAGES, "validation": VALIDATION_IMAGES}
INPUT, OURS, ORACLE = "blurred input", "ours, estimated map", "ours, true map"
BLIND = ("blind Richardson-Lucy", "blind total variation")
BLIND_BEST = tuple(f"{name}, best setting (oracle)" for name in BLIND)
SINGLE = "Richardson-Lucy, mean of the true PSFs"
BEST_SINGLE = "Richardson-Lucy, best single PSF (oracle)"
WIENER = "unsupervised Wiener, mean of the true PSFs"
DEEPINV = "deepinv, 20 iterations of Richardson-Lucy, estimated map"
SCHEME_2018 = "weights on the blurred image (2018), estimated map"
# Settings that the blind methods are tried with: rounds, and weights times sqrt(photons). Each
# includes its default.
ROUNDS, WEIGHTS_AT_ONE_PHOTON = (1, 3, 10), (0.1, 0.3, 0.8)


@dataclass(frozen=True)
class Config:
    """Settings of the experiment."""

    out: Path = Path("results")  # folder of the tables and the figure
    images: int = 20  # objects: the photographs of the split, then procedural ones
    split: Literal["test", "validation"] = "test"  # of the images; validation: to choose settings
    photons: tuple[float, ...] = (1000.0, 100.0)  # mean photons per pixel, one exposure each
    size: int = 448  # px, edge of an image
    workers: int = 2  # processes of one thread each
    scratch: Path = Path("data/deconvolution")  # folder of finished cases, to resume from
    seed: int = 0  # of the maps, the procedural objects and the noise
    draw_only: bool = False  # make tables and figure of the finished cases, restore nothing


def cases(config: Config) -> list[Case]:
    """All cases; the PSF models and kinds of maps take turns over the objects."""
    photographs, kinds = PHOTOGRAPHS[config.split], list(OBJECTS)
    found = []
    for index in range(config.images):
        later = index - len(photographs)
        name = photographs[index] if later < 0 else kinds[later % len(kinds)]
        model = list(SUPPORTS_PX)[index % len(SUPPORTS_PX)]
        kind = ("tilted plane", "random map")[(index // len(SUPPORTS_PX)) % 2]
        for photons in config.photons:
            place = (index, name, model, kind, photons, config.size, config.seed)
            found.append(Case(*place, config.split))
    return found


def network_of(model: str) -> str:
    """Name of the shipped network that maps a PSF model."""
    return NETWORKS.get(model, model)


def case_keys(all_cases: list[Case]) -> dict[Case, dict[str, Any]]:
    """What decides the result of each case: settings, network, code, and deepinv's version."""
    networks = {model: load_estimator(network_of(model)) for model in {c.model for c in all_cases}}
    code = code_fingerprint(*CODE)
    deepinv = version("deepinv") if is_installed("deepinv") else None
    return {
        case: {
            **asdict(case),
            "network": networks[case.model].fingerprint,
            "code": code,
            "deepinv": deepinv,
        }
        for case in all_cases
    }


def is_current(path: Path, key: Mapping[str, Any]) -> bool:
    """Whether a finished case was computed under this key."""
    return path.exists() and read_json(path, "case").get("key") == key


def estimated(case: Case, scene: Scene) -> PsfMap:
    """Map that the shipped network of this PSF model estimates from the image."""
    estimator = load_estimator(network_of(case.model))
    raw = predict_map(estimator, scene.image, Microscope(), STRIDE)
    _, smooth = smooth_parameters(raw, estimator.patch_size / STRIDE, "auto")
    strengths = [one.strength for one in smooth]
    return continue_to_borders(raw, strengths, estimator.patch_size, scene.blur.shape)


def with_one_psf(scene: Scene, psf: torch.Tensor, iterations: int | str = "auto") -> torch.Tensor:
    """Our restoration with one PSF everywhere."""
    blur = VariantBlur.from_psf(psf, scene.blur.shape)
    return richardson_lucy(scene.image, blur, iterations).image


def with_best_psf(scene: Scene) -> torch.Tensor:
    """Best restoration, judged by the truth, with the mean PSF or one of nine true ones."""
    places = [int(share * (scene.image.shape[0] - 1)) for share in (0.1, 0.5, 0.9)]
    psfs = [scene.blur.psf_at(row, column).clamp(min=0) for row in places for column in places]
    found = [with_one_psf(scene, psf / psf.sum(), 15) for psf in psfs]
    found.append(with_one_psf(scene, mean_psf(scene)))
    return max(found, key=lambda image: snr_db(image, scene.truth))


def with_best_setting(scene: Scene, method: Callable, settings: tuple[float, ...]) -> torch.Tensor:
    """Best restoration of a blind method, judged by the truth, over its settings."""
    found = [method(scene.image, setting)[0] for setting in settings]
    return max(found, key=lambda image: snr_db(image, scene.truth))


def methods(case: Case, scene: Scene, psf_map: PsfMap) -> dict[str, Callable[[], torch.Tensor]]:
    """Every restoration, to be called without arguments."""
    image, shape, mean = scene.image, scene.blur.shape, mean_psf(scene)
    weights = tuple(share / math.sqrt(case.photons) for share in WEIGHTS_AT_ONE_PHOTON)

    def with_deepinv() -> torch.Tensor:
        blur = blur_of_map(psf_map, shape)
        return deepinv_richardson_lucy(image, blur.eigen_psfs, blur.weights, 20)

    found = {
        INPUT: lambda: image,
        SINGLE: partial(with_one_psf, scene, mean),
        BEST_SINGLE: partial(with_best_psf, scene),
        WIENER: partial(skimage_wiener, image, mean),
        BLIND[0]: lambda: blind_richardson_lucy(image)[0],
        BLIND[1]: lambda: blind_total_variation(image)[0],
        BLIND_BEST[0]: partial(with_best_setting, scene, blind_richardson_lucy, ROUNDS),
        BLIND_BEST[1]: partial(with_best_setting, scene, blind_total_variation, weights),
        SCHEME_2018: lambda: weights_after_blur(image, blur_of_map(psf_map, shape)),
    }
    if is_installed("deepinv"):
        found[DEEPINV] = with_deepinv
    return found | {
        OURS: lambda: restore_with_map(image, psf_map)[0].image,
        ORACLE: lambda: restore_with_map(image, scene.labels, refined=False)[0].image,
    }


def run_case(case_and_key: tuple[Case, dict[str, Any]], folder: Path) -> None:
    """Restore one case by every method; its rows go to a file of its own."""
    case, key = case_and_key
    torch.set_num_threads(1)
    keep_freed_memory()
    warnings.simplefilter("ignore", EnergyWarning)  # a little light falls outside the supports
    scene = make_scene(case)
    started = time.perf_counter()
    psf_map = estimated(case, scene)
    map_seconds = time.perf_counter() - started
    rows, shown = [], {"truth": scene.truth}
    for name, work in methods(case, scene, psf_map).items():
        started = time.perf_counter()
        found = work()
        seconds = time.perf_counter() - started
        rows.append({**asdict(case), "method": name, **score(found, scene), "seconds": seconds})
        if name in (INPUT, OURS, ORACLE, *BLIND_BEST):
            shown[name] = found
    pictures = np.stack([np.asarray(image, np.float32) for image in shown.values()])
    with whole_file(folder / f"{case.key}.npy") as partial_path, partial_path.open("wb") as file:
        np.save(file, pictures)
    facts = {"key": key, "rows": rows, "shown": list(shown), "map_seconds": map_seconds}
    write_json(folder / f"{case.key}.json", facts)


def run_missing(config: Config) -> None:
    """Restore the cases that are not finished, or were finished under another key."""
    keys = case_keys(cases(config))
    todo = [
        (case, key)
        for case, key in keys.items()
        if not is_current(config.scratch / f"{case.key}.json", key)
    ]
    if not is_installed("deepinv"):
        print("note: deepinv is not installed and is left out (pip install deepinv)")
    work = partial(run_case, folder=config.scratch)
    with multiprocessing.get_context("spawn").Pool(config.workers) as pool:
        for _ in tqdm(pool.imap_unordered(work, todo), total=len(todo), unit="case"):
            pass
        pool.close()
        pool.join()


def report_outdated(config: Config) -> None:
    """Print how many finished cases are older than their settings, networks or code."""
    keys = case_keys(cases(config))
    paths = {case: config.scratch / f"{case.key}.json" for case in keys}
    outdated = sum(path.exists() and not is_current(path, keys[c]) for c, path in paths.items())
    if outdated:
        print(
            f"note: {outdated} cases were restored by other networks or other code; run without "
            "--draw-only to restore them again"
        )


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Means over images with their 95 % intervals, by photons and method."""
    lines = []
    for (photons, method), part in table.groupby(["photons", "method"], sort=False):
        gains = part["snr_gain_db"]
        interval = 1.96 * gains.std(ddof=1) / math.sqrt(len(part)) if len(part) > 1 else math.nan
        line = {"photons": photons, "method": method, "images": len(part)}
        line |= {"snr_gain_db": gains.mean(), "interval_95_db": interval}
        line |= {"worst_gain_db": gains.min(), "worse_than_input": int((gains < 0).sum())}
        line |= {"worst_sharp_gain_db": part["snr_gain_sharp_db"].min()}
        for name in ("snr_gain_centre_db", "psnr_db", "psnr_centre_db", "ssim", "ssim_centre"):
            line[name] = part[name].mean()
        lines.append(line | {"seconds": part["seconds"].median()})
    return pd.DataFrame(lines)


def report(table: pd.DataFrame) -> None:
    """Print what ours gains over the best blind method and loses to the true map."""
    for photons, part in table.groupby("photons", sort=False):
        gains = part.pivot(index="index", columns="method", values="snr_gain_db")
        means = gains.mean()
        best = max((INPUT, *BLIND), key=lambda name: means[name])
        lead, loss = means[OURS] - means[best], gains[ORACLE] - gains[OURS]
        oracle = gains[OURS] - gains[[INPUT, *BLIND_BEST]].max(axis=1)
        sharp = part[part["method"] == OURS]["snr_gain_sharp_db"].dropna()
        print(
            f"{photons:g} photons: ours is {lead:.2f} dB above {best}, {oracle.mean():.2f} dB "
            "above the better blind method with the best setting of each image, "
            f"{loss.mean():.2f} dB (median {loss.median():.2f}) below the true map; "
            f"{(gains[OURS] < 0).sum()} images are worse than the input, in "
            f"{(sharp < -0.2).sum()} of {len(sharp)} sharp places lose more than 0.2 dB"
        )


def draw(config: Config, table: pd.DataFrame) -> None:
    """Draw the best, median and worst case of ours."""
    ours = table[(table["method"] == OURS) & (table["photons"] == config.photons[0])]
    order = ours.sort_values("snr_gain_db")["index"].tolist()
    chosen = {"best": order[-1], "median": order[len(order) // 2], "worst": order[0]}
    columns = ("truth", INPUT, *BLIND_BEST, OURS, ORACLE)
    figure, axes = new_figure(len(chosen), len(columns), 2.2, 2.35)
    lookup = {case.index: case for case in cases(config) if case.photons == config.photons[0]}
    for line, (rank, index) in zip(axes, chosen.items(), strict=True):
        case = lookup[index]
        stored = read_json(config.scratch / f"{case.key}.json", "case")
        pictures = np.load(config.scratch / f"{case.key}.npy")
        gains = {row["method"]: row["snr_gain_db"] for row in stored["rows"]}
        low, high = np.percentile(pictures[0], (0.5, 99.5))
        for at, name in zip(line, columns, strict=True):
            image = pictures[stored["shown"].index(name)].clip(low, high)
            gain = f"{gains[name]:+.1f} dB" if gains.get(name) else ""
            title = f"{rank}: {case.name}" if name == "truth" else f"{name}\n{gain}"
            show_image(at, image, title)
            at.title.set_fontsize(6.5)
        add_scale_bar(line[0], Microscope().pixel_size_um, config.size)
    figure.suptitle(
        f"SNR gain over the blurred input, {config.photons[0]:g} photons per pixel", fontsize=9
    )
    save_figure(config.out / "figure_deconvolution.png", figure)
    save_figure(config.out / "figure_deconvolution.pdf", figure)


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
        report_outdated(config)
    else:
        run_missing(config)
    files = [config.scratch / f"{case.key}.json" for case in cases(config)]
    if missing := [path for path in files if not path.exists()]:
        raise InputError(f"{len(missing)} cases are missing; run without --draw-only first.")
    rows = [row for path in files for row in read_json(path, "case")["rows"]]
    table = pd.DataFrame(rows)
    summary = summarise(table)
    for name, content in (("deconvolution", table), ("deconvolution_summary", summary)):
        write_csv(config.out / f"{name}.csv", content)
    draw(config, table)
    columns = ["photons", "method", "snr_gain_db", "interval_95_db", "worst_gain_db", "seconds"]
    print(summary[columns].to_string(index=False, float_format=lambda v: f"{v:.2f}"))
    report(table)
    print(f"wrote {config.out / 'deconvolution.csv'} (look at figure_deconvolution.png beside it)")


if __name__ == "__main__":
    run(Config, main, __doc__)
