r"""Restorations of real images without a truth, judged by photons that they have not seen.

    python benchmarks/held_out_photons.py image.tif --na 0.92 --wavelength-um 0.52 \
        --pixel-size-um 0.105 --refractive-index 1.33 --allow-other-optics --out restored/halves

The photons of an image are split at random into two halves, which are two exposures of the same
object. The first half is mapped and restored by every method. The restored object is blurred by the
PSFs of its method, and the Poisson log likelihood of the second half judges the result. With
--second, a second exposure of the same plane takes the place of the second half.

The likelihood is given per pixel and above that of the first half smoothed by a Gaussian. The width
of the Gaussian is chosen on the first half alone, which is split once more. Methods without a
forward model cannot be judged so. A map of the first half, not of the whole, makes sure that no
method has seen the held-out photons.

Writes held_out_photons.csv, one row per plane and method, held_out_photons_summary.csv and .md, and
held_out_photons.png. Finished results are not made again. Photons are counts above the camera's
offset over its gain: where the gain is only assumed, the halves are less alike than two exposures.
The score sees the image that a method expects, not the object: it finds noise, artefacts and wrong
PSFs, but cannot tell how sharp the object should be.
"""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import tifffile
import torch
import tyro
from scipy.ndimage import gaussian_filter
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.held_out_report import draw, markdown
from benchmarks.held_out_scores import (
    SMOOTHED,
    Halves,
    best_width,
    per_pixel,
    score,
    split_in_half,
)
from benchmarks.restoration_methods import INPUT, View, available_methods
from benchmarks.restored_planes import (
    PlaneOptions,
    Scored,
    chosen_planes,
    kept_results,
    open_view,
    settings_for_key,
)
from benchmarks.tiles import bootstrap
from common.command import keep_freed_memory, pick_device, print_notes, run
from common.files import code_fingerprint, run_record, whole_file, write_csv
from common.pictures import save_figure
from micrographs.micrograph import open_micrograph
from micrographs.neighbours import fill_outliers
from micrographs.outliers import find_outliers
from models.checkpoint import load_estimator
from models.estimator import Estimator
from models.map_files import pixels_hash
from models.recording import file_cutoff, open_recording
from psf.errors import InputError

SCORES = [Path(__file__).with_name(name) for name in ("held_out_scores.py", "tiles.py")]


@dataclass(frozen=True, kw_only=True)
class Config(PlaneOptions):
    """Settings of the benchmark."""

    image: tyro.conf.Positional[Path]  # image or focal stack
    planes: tuple[int, ...] | None = None  # planes to restore, from 0; default: all
    second: Path | None = None  # second exposure of the same planes, with the same camera settings
    seed: int = 0  # of the split of the photons


@dataclass(frozen=True)
class Photons:
    """One plane of a file, in photons."""

    counts: torch.Tensor  # (H, W), not negative
    usable: torch.Tensor  # (H, W) bool
    is_found: bool  # whether the image shows the gain of its camera


def read_photons(path: Path, config: Config, estimator: Estimator, plane: int) -> Photons:
    """Photons of a plane: counts above the camera's offset over its gain.

    Raises
    ------
    InputError
        If the image shows no noise, and no gain is given.
    """
    options = config.of_file(path, plane)
    with open_recording(path, options, estimator, options.z) as recording:
        camera, pixels = recording.camera, recording.micrograph.plane()
        cutoff = file_cutoff(recording.microscope, estimator.psf_model)
        usable = find_outliers(pixels, recording.micrograph.full_scale, cutoff).usable
    if not camera.gain_counts_per_e:
        raise InputError(
            f"{path} shows no noise in plane {plane}, so its photons cannot be counted; give "
            "--gain-counts-per-e."
        )
    light = (fill_outliers(pixels, usable) - camera.offset_counts).clamp(min=0)
    is_known = camera.gain_source != "assumed" and camera.white_noise
    return Photons(light / camera.gain_counts_per_e, usable, is_known)


def make_halves(config: Config, estimator: Estimator, plane: int) -> Halves:
    """The exposure to restore and the one that judges it."""
    first = read_photons(config.image, config, estimator, plane)
    if config.second is None:
        halves = split_in_half(first.counts, config.seed + plane)
        if not first.is_found:
            print_notes([f"plane {plane}: the gain of the camera is not sure, nor are the photons"])
        return Halves(*halves, first.usable)
    second = read_photons(config.second, config, estimator, plane)
    if first.counts.shape != second.counts.shape:
        raise InputError(f"{config.second} has another size than {config.image}.")
    return Halves(first.counts, second.counts, first.usable & second.usable)


def view_of(halves: Halves, config: Config, estimator: Estimator) -> View:
    """The first exposure, written to a file and read again as the image of a user."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "first.tif"
        tifffile.imwrite(path, halves.first.float().numpy())
        camera = {"offset_counts": 0.0, "gain_counts_per_e": 1.0}
        options = config.of_file(path, channel=None, **camera)
        return open_view(options, estimator)


def restore_all(config: Config, chosen: list[int]) -> Iterator[tuple[int, dict[str, Scored]]]:
    """Each plane with its results by method."""
    estimator = load_estimator(config.checkpoint, pick_device(config.device))
    methods, code = available_methods(), code_fingerprint(*SCORES)
    name = config.image.stem + ("" if config.second is None else f"_{config.second.stem}")
    for plane in tqdm(chosen, desc="restore", unit="plane"):
        halves = make_halves(config, estimator, plane)
        key: dict[str, Any] = {"scores": code, "pixels": hash_of(config.image, config, plane)}
        key["second"] = None if config.second is None else hash_of(config.second, config, plane)
        options = config.of_file(config.image, plane)
        key["settings"] = settings_for_key(options, seed=config.seed)
        width = best_width(halves.first, halves.usable, config.seed + plane)
        smooth = gaussian_filter(halves.first.numpy(), width)
        yield (
            plane,
            kept_results(
                config.scratch / f"{name}_halves" / f"plane_{plane:03d}",
                key,
                methods,
                estimator.fingerprint,
                partial(view_of, halves, config, estimator),
                partial(score, halves=halves, smooth=smooth, width=width),
            ),
        )


def hash_of(path: Path, config: Config, plane: int) -> str:
    """Hash of the pixels of a plane."""
    with open_micrograph(path, config.channel, z=0) as micrograph:
        return pixels_hash(micrograph.focal_planes()[0][plane])


def tabulate(results: Mapping[int, Mapping[str, Scored]]) -> pd.DataFrame:
    """One row per plane and method, with what the likelihood is above that of the smoothed half."""
    rows = []
    for plane, methods in results.items():
        for name, (facts, _) in methods.items():
            tiles, pixels = np.array(facts["advantage"]), np.array(facts["pixels"])
            row = {"plane": plane, "method": "first half as it is" if name == INPUT else name}
            numbers = bootstrap(per_pixel, tiles[None], pixels[None])
            row |= dict(zip(("advantage", "advantage_low", "advantage_high"), numbers, strict=True))
            rows.append(row | {k: v for k, v in facts.items() if k not in ("advantage", "pixels")})
    return pd.DataFrame(rows)


def summarise(results: Mapping[int, Mapping[str, Scored]]) -> pd.DataFrame:
    """Mean over the planes, and the number of planes behind the smoothed half, by method."""
    rows, pixels = [], np.array([one[INPUT][0]["pixels"] for one in results.values()])
    for name in next(iter(results.values())):
        tiles = np.array([one[name][0]["advantage"] for one in results.values()])
        numbers = bootstrap(per_pixel, tiles, pixels)
        row: dict[str, Any] = {"method": "first half as it is" if name == INPUT else name}
        row |= dict(zip(("advantage", "advantage_low", "advantage_high"), numbers, strict=True))
        by_plane = tiles.sum(1) / pixels.sum(1)
        row |= {"least": by_plane.min(), "planes_behind": int((by_plane < 0).sum())}
        rows.append(row | {"planes": len(results)})
    rows.append({"method": SMOOTHED, "advantage": 0.0, "planes": len(results)})
    return pd.DataFrame(rows).sort_values("advantage", ascending=False, ignore_index=True)


def main(config: Config) -> None:
    """Split, restore, score, write, draw."""
    torch.set_num_threads(1)  # so that seconds of different methods compare
    keep_freed_memory()
    with open_micrograph(config.image, config.channel) as micrograph:
        count = len(micrograph.focal_planes()[0])
    chosen = chosen_planes(config.planes, range(count), count)
    results = dict(restore_all(config, chosen))
    table, summary = tabulate(results), summarise(results)
    write_csv(config.out / "held_out_photons.csv", table)
    write_csv(config.out / "held_out_photons_summary.csv", summary)
    text = markdown(config.image.name, table, summary)
    with whole_file(config.out / "held_out_photons.md") as path:
        path.write_text(f"{text}\nCommit {run_record()['commit']}.\n", encoding="utf-8")
    middle = chosen[len(chosen) // 2]
    pictures = {name: picture for name, (_, picture) in results[middle].items()}
    figure = draw(table, pictures, middle, config.pixel_size_um)
    save_figure(config.out / "held_out_photons.png", figure)
    print(text)
    print(f"wrote held_out_photons.csv, .md, .png and _summary.csv to {config.out}")


if __name__ == "__main__":
    run(Config, main, __doc__)
