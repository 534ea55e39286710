"""R^2 of focus for ten common objectives with three camera pixels each.

    python benchmarks/objectives.py --checkpoint zernike1d_tilted

Held-out objects are blurred by the exact phase of defocus, with vectorial light where rays are
steep (NA / n > 0.7), and recorded with the aliasing of the camera. The patches then go the way of a
user's image: binned or resampled, and checked against the optics of the network. True focus is the
Seidel focus that fits the exact phase best. Writes objectives.csv, with one row per objective and
camera, and objectives.md. Given again, the command goes on with the missing rows.
"""

import math
import sys
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.camera_patches import (
    CameraPatches,
    nyquist_share,
    seidel_waves_per_um,
    simulate_camera,
    with_pixel,
)
from common.command import keep_freed_memory, pick_device, run
from common.files import whole_file, write_csv
from models.checkpoint import load_estimator
from models.data import Condition
from models.estimator import Estimator, Prediction
from models.mapping import TensorImage
from models.recording import choose_resampling, outside_training
from models.resampling import ResampledImage, Resampling
from models.scoring import score_parameter
from psf.errors import InputError
from psf.microscope import Microscope
from psf.model import PsfModel, psf_model
from simulation.sources import limit_cache

WAVELENGTH_UM = 0.52  # emission of GFP and of most green dyes
CAMERA_PIXELS_UM = (3.45, 6.5, 11.0)  # small CMOS pixels, sCMOS, and sCMOS with large pixels
STEEP = 0.7  # NA / n above which the patches get vectorial light
SOURCE_CACHE_BYTES = 2**28  # for all held-out objects, so that none is drawn twice
CONDITIONS = (
    Condition("noise_free"),
    Condition("1000_photons", 1000),
    Condition("100_photons", 100),
)


@dataclass(frozen=True)
class Config:
    """Settings of the table."""

    checkpoint: Path = Path("zernike1d_tilted")  # network: a folder, or a shipped name
    patches: int = 150  # per objective and camera
    objectives: tuple[str, ...] = ()  # only these, e.g. 20x/0.75; default: all
    cameras_um: tuple[float, ...] = CAMERA_PIXELS_UM  # camera pixels, um
    light: Literal["auto", "scalar", "vectorial"] = "auto"  # auto: vectorial where rays are steep
    # focus of the simulated patches: quadratic in the pupil as in training, or the exact phase
    defocus: Literal["quadratic", "exact"] = "exact"
    seed: int = 0  # of labels, crops and noise
    device: str = "auto"  # auto, cpu, cuda, mps
    out: Path = Path("results")  # folder to write


@dataclass(frozen=True)
class Objective:
    """An objective, by what is engraved on it."""

    magnification: int
    na: float
    refractive_index: float = 1.0  # of the immersion

    @property
    def name(self) -> str:
        """For example "20x/0.75"."""
        return f"{self.magnification}x/{self.na:g}"

    def microscope(self, camera_um: float) -> Microscope:
        """Optics with a camera whose pixels have this size."""
        optics = Microscope(self.na, WAVELENGTH_UM, 1e-3, self.refractive_index)
        return with_pixel(optics, camera_um / self.magnification)


OBJECTIVES = (
    Objective(4, 0.1),
    Objective(10, 0.3),
    Objective(20, 0.5),
    Objective(20, 0.75),
    Objective(40, 0.6),
    Objective(40, 0.95),
    Objective(40, 1.3, 1.515),
    Objective(60, 1.2, 1.33),
    Objective(63, 1.4, 1.515),
    Objective(100, 1.45, 1.515),
)


@dataclass(frozen=True)
class Setup:
    """An objective with a camera, and what the network does with its images."""

    objective: Objective
    microscope: Microscope  # with the pixel of the camera
    resampling: Resampling
    model: PsfModel  # of the simulated patches
    patch_px: int  # camera pixels whose image fills a patch of the network


def setup(estimator: Estimator, objective: Objective, camera_um: float, config: Config) -> Setup:
    """The way of an image from this objective and camera to the network."""
    microscope = objective.microscope(camera_um)
    resampling = choose_resampling(estimator, microscope, allow_other_optics=True)
    # one more pixel where the patch is interpolated, whose size is rounded down
    binned = math.ceil(estimator.patch_size / resampling.scale) + (resampling.scale < 1)
    steep = objective.na / objective.refractive_index > STEEP
    light = config.light if config.light != "auto" else "vectorial" if steep else "scalar"
    model = replace(estimator.psf_model, light=light)
    if config.defocus == "exact":
        if model.name != "zernike1d":
            raise InputError(f"--defocus exact needs a network of zernike1d, not of {model.name}.")
        ends = [waves / seidel_waves_per_um(microscope) for waves in model.ranges["focus"]]
        model = psf_model("gibson_lanni", {"z_um": tuple(ends)}, light=light)
    return Setup(objective, microscope, resampling, model, binned * resampling.binning)


def estimate(
    one: Setup, estimator: Estimator, patches: CameraPatches, condition: Condition
) -> Prediction:
    """What the network says of recorded patches, resampled as the images of a user are."""
    recorded = [condition.record(pixels, seed) for seed, pixels in enumerate(patches.pixels)]
    if one.resampling.factor > 1:
        images = (ResampledImage(TensorImage(pixels), one.resampling) for pixels in recorded)
        size = estimator.patch_size
        recorded = [image.rows(0, size)[:, :size] for image in images]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the table has a column for other optics
        seen = one.resampling.microscope(one.microscope)
        return estimator.predict(torch.stack(recorded), seen)


def row_of(one: Setup, estimator: Estimator, config: Config) -> dict[str, Any]:
    """One row of objectives.csv."""
    patches = simulate_camera(
        *(one.model, one.microscope, one.patch_px, estimator.patch_size),
        *(config.patches, config.seed),
    )
    um_per_wave = one.microscope.um_per_wave
    truth = patches.labels[:, 0].numpy()
    if config.defocus == "exact":
        um_per_wave = 1 / seidel_waves_per_um(one.microscope)
        truth = truth / um_per_wave
    outside = outside_training(estimator, one.microscope, one.resampling)
    row = {
        "pixel_um": one.microscope.pixel_size_um,
        "nyquist_share": nyquist_share(one.microscope),
        "image": one.resampling.describe(),
        "patch_px": one.patch_px,
        "light": one.model.light,
        "refused": "; ".join(outside),
        "source_images": len(np.unique(patches.sources)),
    }
    for condition in CONDITIONS:
        found = estimate(one, estimator, patches, condition)
        um = np.full(len(truth), um_per_wave)
        scores = score_parameter(truth, found.values[:, 0].numpy(), um, patches.sources)
        scores["content"] = float((found.content_probability > 0.5).float().mean())
        names = ("r2", "r2_low", "r2_high", "rmse", "rmse_um", "pearson2", "content")
        row |= {f"{name}_{condition.name}": scores[name] for name in names}
    return row


def run_key(config: Config, estimator: Estimator) -> str:
    """What a row depends on besides its objective and camera; other rows are made again."""
    settings = (config.patches, config.light, config.defocus, config.seed)
    return " ".join(map(str, (estimator.name, estimator.fingerprint[:12], *settings)))


def missing_rows(config: Config, done: pd.DataFrame) -> list[tuple[Objective, float]]:
    """Objectives and cameras that the table lacks."""
    names = [one.name for one in OBJECTIVES]
    if unknown := set(config.objectives) - set(names):
        raise InputError(
            f"no objective {', '.join(sorted(unknown))} in the table; give some of "
            f"{', '.join(names)}."
        )
    have = set(zip(done["objective"], done["camera_um"], strict=True)) if len(done) else set()
    return [
        (one, camera)
        for one in OBJECTIVES
        for camera in config.cameras_um
        if one.name in (config.objectives or names) and (one.name, camera) not in have
    ]


def finished_rows(path: Path, key: str) -> pd.DataFrame:
    """Rows of an earlier run with the same network and settings."""
    if not path.is_file():
        return pd.DataFrame()
    table = pd.read_csv(path, keep_default_na=False, na_values=["nan"])
    return table[table["key"] == key] if "key" in table else pd.DataFrame()


def ordered(table: pd.DataFrame) -> pd.DataFrame:
    """The rows in the order of the objectives and of the camera pixels."""
    place = {one.name: index for index, one in enumerate(OBJECTIVES)}
    order = table.assign(place=table["objective"].map(place)).sort_values(["place", "camera_um"])
    return order.drop(columns="place").reset_index(drop=True)


def markdown(table: pd.DataFrame) -> str:
    """Text of objectives.md: a row per objective and camera."""
    lines = [
        "R² of focus (95 % interval over source images) on held-out images. rmse at 1000 photons.",
        "",
        "| objective | camera, µm | pixel, µm | pixel / Nyquist | image | optics | noise-free | "
        "1000 photons | 100 photons | rmse, waves | rmse, µm |",
        "|---" * 11 + "|",
    ]
    for row in table.itertuples():
        cells = [row.objective, f"{row.camera_um:g}", f"{row.pixel_um:.3g}"]
        cells += [f"{row.nyquist_share:.2f}", row.image, row.refused or "accepted"]
        cells += [f"{row.r2_noise_free:.3f}"]
        cells += [f"{row.r2_1000_photons:.3f} ({row.r2_low_1000_photons:.3f} to "]
        cells[-1] += f"{row.r2_high_1000_photons:.3f})"
        cells += [f"{row.r2_100_photons:.3f}", f"{row.rmse_1000_photons:.2f}"]
        cells += [f"{row.rmse_um_1000_photons:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(config: Config) -> None:
    """Simulate, estimate, score; each finished row is written."""
    keep_freed_memory()
    limit_cache(SOURCE_CACHE_BYTES)
    estimator = load_estimator(config.checkpoint, pick_device(config.device))
    if estimator.psf_model.label_names[0] != "focus":
        raise InputError(f"{estimator.name} reads no focus; give a network that does.")
    path, key = config.out / "objectives.csv", run_key(config, estimator)
    table = finished_rows(path, key)
    for objective, camera_um in tqdm(missing_rows(config, table), desc="table", unit="row"):
        one = setup(estimator, objective, camera_um, config)
        row = {"objective": objective.name, "camera_um": camera_um}
        row |= row_of(one, estimator, config) | {"key": key}
        table = ordered(pd.concat([table, pd.DataFrame([row])]))
        write_csv(path, table, "%.5g")
    with whole_file(config.out / "objectives.md") as partial:
        partial.write_text(markdown(table), encoding="utf-8")
    print(markdown(table))
    print(f"wrote {path} and objectives.md")


if __name__ == "__main__":
    run(Config, main, __doc__)
