"""Depth of tilted planes from single images, calibrated on another plane, beside the truth.

    python figure_depth.py --out results

The planes have several textures and are 3, 6 and 10 degrees steep. Each column of the object is
blurred with its own PSF, and the image is recorded at 1000 and 100 photons per pixel. With a
cylindrical lens (network `astigmatic_tilted`) depth has a sign; without one (`zernike1d_tilted`)
it is the distance from focus.

Depth comes from a curve that is fitted to a calibration plane of another texture. That plane spans
the focus range of the network. Writes depth.csv (profiles: the mean across the tilt, as Shajkofci &
Liebling 2020, section V), depth_summary.csv, depth.json (the curves), figure_depth.png and .pdf,
and figure_dome.png (a curved surface). The figure includes the bound of benchmarks/depth_bound.py
if --out holds its table. Rendered planes are kept in --scratch, so an interrupted run continues
from them. --draw-only draws the figure again from the tables.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import tifffile
import torch
from tqdm import tqdm

from common.command import keep_freed_memory, pick_device, run
from common.depth_figure import PAPER_UM, draw_depth_figure
from common.files import (
    code_fingerprint,
    run_record,
    whole_file,
    write_csv,
    write_json,
)
from common.output import holds_out_folder
from common.pictures import add_scale_bar, colour_map, new_figure, save_figure, show_image
from models.checkpoint import load_estimator
from models.depth import DepthCalibration, is_signed
from models.depth_fit import fit_depth, plane_means
from models.estimator import Estimator
from models.mapping import PsfMap, predict_map
from models.smoothing import smooth_map
from psf.blur import tilted_depth_um
from psf.errors import InputError
from psf.microscope import Microscope
from psf.model import PsfModel
from psf.noise import camera_counts, to_photons
from simulation.surfaces import image_of_dome, image_of_tilted_plane

# Wrong signs are counted from this distance on, in depths of field. Nearer to focus a small error
# of depth changes the sign.
SIGN_DEPTHS_OF_FIELD = 1.0
# Distances that are scored without the lens, um. Nearer, the PSF hardly changes with depth; 20 um
# is about the end of the range with the lens, 3 waves.
UNSIGNED_UM = (2.0, 20.0)
DOME_PX = 1024  # edge of the image of the dome
DOME_UM = (-9.0, 9.0)  # depth at its rim and top, 1.4 of the 3 waves of the network's range
DOME_STRIDE = 16  # pixels between patches, an eighth of a patch of 128 px


@dataclass(frozen=True)
class Config:
    """Settings of the experiment."""

    # one network with and one without a cylindrical lens
    checkpoints: Sequence[Path] = (Path("astigmatic_tilted"), Path("zernike1d_tilted"))
    degrees: Sequence[float] = (3.0, 6.0, 10.0)  # tilts of the planes
    # held-out images or kinds of procedural objects
    textures: Sequence[str] = ("immunohistochemistry", "gravel", "dead_leaves", "membranes")
    calibration_texture: str = "collage"  # texture of the calibration plane
    photons: Sequence[float] = (1000.0, 100.0)  # mean photons per pixel
    read_noise_e: float = 1.6  # read noise of the camera, electrons
    size_px: int = 2048  # edge of the images
    psf_px: int = 255  # edge of the PSFs; odd
    pixel_size_um: float = 0.32  # camera pixel / magnification, um
    stride: int = 64  # pixels between neighbouring patches
    seed: int = 0  # seed of the noise
    scratch: Path = Path("data/depth")  # folder that keeps rendered planes
    out: Path = Path("results")  # folder to write
    draw_only: bool = False  # draw the tables of an earlier run
    device: str = "auto"  # auto, cpu, cuda, mps


def plane_path(
    config: Config, texture: str, degrees: float, model: PsfModel, optics: Microscope
) -> Path:
    """File of a rendered plane; its name has a hash of all that decides the pixels."""
    root = Path(__file__).parent
    decides = {
        "texture": texture,
        "degrees": degrees,
        "size_px": config.size_px,
        "psf_px": config.psf_px,
        "model": model.as_config(),
        "optics": asdict(optics),
        "code": code_fingerprint(root / "psf", root / "simulation"),
    }
    key = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]
    return config.scratch / f"{model.name}_{texture}_{degrees:g}deg_{key}.tif"


def render(
    config: Config, texture: str, degrees: float, model: PsfModel, optics: Microscope
) -> torch.Tensor:
    """Noise-free image (size, size) of a tilted plane, from its file if there is one."""
    path = plane_path(config, texture, degrees, model, optics)
    if path.is_file():
        return torch.from_numpy(tifffile.imread(path))
    signed = is_signed(model, "focus")
    size, psf_px = config.size_px, config.psf_px
    image = image_of_tilted_plane(texture, degrees, size, model, optics, psf_px, signed)
    with whole_file(path) as partial:
        tifffile.imwrite(partial, image.numpy())
    return image


def expose(image: torch.Tensor, photons: float, config: Config, key: int) -> torch.Tensor:
    """Image in electrons, with shot noise and read noise."""
    generator = torch.Generator().manual_seed(1000 * config.seed + key)
    return camera_counts(to_photons(image[None], photons), generator, config.read_noise_e)[0]


def columns_of(found: PsfMap) -> tuple[np.ndarray, np.ndarray]:
    """Values and standard deviations (C, R) of patches, one depth per row; NaN: no content."""
    blank = ~found.has_content.numpy()
    pair = (found.values[0].numpy(), found.standard_deviations[0].numpy())
    return tuple(np.where(blank, np.nan, one).T for one in pair)


def depth_of_columns(found: PsfMap, config: Config, degrees: float) -> np.ndarray:
    """True depth (C,) at the centres of the patches, um."""
    return tilted_depth_um(config.size_px, degrees, config.pixel_size_um).numpy()[
        found.columns.round().long()
    ]


def calibration_degrees(config: Config, estimator: Estimator, optics: Microscope) -> float:
    """Tilt of the plane that spans the focus range of the network, rounded to 0.01 degrees."""
    half_range_um = estimator.psf_model.label_ranges[0][1] * optics.um_per_wave
    half_width_um = (config.size_px - estimator.patch_size) / 2 * config.pixel_size_um
    return round(math.degrees(math.atan(half_range_um / half_width_um)), 2)


def calibrate(
    config: Config, estimator: Estimator, optics: Microscope, photons: float
) -> DepthCalibration:
    """Curve from focus to depth, fitted to the calibration plane."""
    model, degrees = estimator.psf_model, calibration_degrees(config, estimator, optics)
    image = render(config, config.calibration_texture, degrees, model, optics)
    found = predict_map(estimator, expose(image, photons, config, 999), optics, config.stride)
    return fit_depth(
        *columns_of(found),
        depth_of_columns(found, config, degrees),
        is_signed(model, "focus"),
        optics,
        limit_um=PAPER_UM,
    )


def profile(
    config: Config, found: PsfMap, calibration: DepthCalibration, degrees: float
) -> pd.DataFrame:
    """Table of one row per column of patches: true depth, depth of the mean, errors of patches."""
    values, deviations = columns_of(found)
    z_um = depth_of_columns(found, config, degrees)
    truth = z_um if calibration.signed else np.abs(z_um)
    means = plane_means(values, deviations).means
    patches = calibration.depth_um(values)
    errors = patches - truth[:, None]
    counted = np.isfinite(errors)
    with np.errstate(invalid="ignore"):
        wrong = (np.sign(patches) != np.sign(truth[:, None])) & counted
    return pd.DataFrame(
        {
            "z_um": z_um,
            "truth_um": truth,
            "depth_um": calibration.depth_um(means),
            "spread_um": pd.DataFrame(patches).std(axis=1, ddof=0),
            "patches": counted.sum(1),
            "patch_square_error_um2": np.where(counted, errors**2, 0).sum(1),
            "wrong_signs": wrong.sum(1),
            "usable": calibration.is_usable(truth),
            "taken_as_usable": (calibration.is_usable(patches) & counted).sum(1),
        }
    )


def experiment(config: Config) -> pd.DataFrame:
    """Profiles of all planes with all networks; also writes depth.json with the curves."""
    optics = Microscope(pixel_size_um=config.pixel_size_um)
    jobs = [(c, t, d) for c in config.checkpoints for t in config.textures for d in config.degrees]
    tables, facts, current = [], {}, None
    for checkpoint, name, degrees in tqdm(jobs, desc="planes", unit="plane"):
        if checkpoint != current:
            current, estimator = checkpoint, load_estimator(checkpoint, pick_device(config.device))
            model = estimator.psf_model
            curves = {p: calibrate(config, estimator, optics, p) for p in config.photons}
            facts[model.name] = {f"{p:g}": asdict(curve) for p, curve in curves.items()}
        image = render(config, name, degrees, model, optics)
        for key, (photons, curve) in enumerate(curves.items()):
            counts = expose(image, photons, config, key)
            found = predict_map(estimator, counts, optics, config.stride)
            table = profile(config, found, curve, degrees)
            table.insert(0, "photons", photons)
            table.insert(0, "texture", name)
            table.insert(0, "degrees", degrees)
            tables.append(table.assign(model=model.name))
    write_json(config.out / "depth.json", run_record(calibrations=facts))
    return pd.concat(tables)


def root_mean(squares: pd.Series) -> float:
    """Root of the mean of squared errors; NaN without any."""
    return math.sqrt(squares.mean()) if len(squares) else math.nan


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Errors in the usable range by PSF model, photons and tilt, over all textures."""
    dof_um = Microscope().depth_of_field_um
    rows = []
    for (model, photons, degrees), group in table.groupby(["model", "photons", "degrees"]):
        used = group[group["usable"]]
        if model != "astigmatic":
            used = used[used["truth_um"].between(*UNSIGNED_UM)]
        far = used[used["truth_um"].abs() > SIGN_DEPTHS_OF_FIELD * dof_um]
        outside = group[~group["usable"]]
        errors = (used["depth_um"] - used["truth_um"]) ** 2
        by_texture = errors.groupby(used["texture"]).mean().pow(0.5)
        rows.append(
            {
                "model": model,
                "photons": photons,
                "degrees": degrees,
                "profile_rms_um": root_mean(errors.dropna()),
                "best_texture_um": by_texture.min(),
                "worst_texture_um": by_texture.max(),
                "patch_rms_um": math.sqrt(
                    used["patch_square_error_um2"].sum() / max(used["patches"].sum(), 1)
                ),
                "usable_from_um": used["truth_um"].min(),
                "usable_to_um": used["truth_um"].max(),
                "wrong_signs_share": far["wrong_signs"].sum() / max(far["patches"].sum(), 1),
                "outside_taken_as_usable_share": outside["taken_as_usable"].sum()
                / max(outside["patches"].sum(), 1),
            }
        )
    return pd.DataFrame(rows)


class Dome(NamedTuple):
    """What was measured on a dome."""

    image: torch.Tensor  # (H, W) electrons
    truth_um: np.ndarray  # (R, C) depth at the centres of the patches
    depth_um: np.ndarray  # (R, C) estimate
    pixel_size_um: float  # of the image

    @property
    def rms_um(self) -> float:
        """Error of the estimate."""
        return math.sqrt(np.nanmean((self.depth_um - self.truth_um) ** 2))


def measure_dome(config: Config) -> Dome:
    """Depth of a dome with the first network, at the most photons, smoothed."""
    optics = Microscope(pixel_size_um=config.pixel_size_um)
    estimator = load_estimator(config.checkpoints[0], pick_device(config.device))
    model, photons = estimator.psf_model, max(config.photons)
    texture = config.textures[0]
    image, depth_um = image_of_dome(texture, *DOME_UM, DOME_PX, model, optics, config.psf_px)
    counts = expose(image, photons, config, 77)
    found = predict_map(estimator, counts, optics, DOME_STRIDE)
    curve = calibrate(config, estimator, optics, photons)
    values, deviations = found.values[0].numpy(), found.standard_deviations[0].numpy()
    overlap = estimator.patch_size / DOME_STRIDE
    smooth = smooth_map(values, deviations, found.has_content.numpy(), overlap)
    rows, columns = (at.round().long() for at in (found.rows, found.columns))
    truth_um = depth_um[rows[:, None], columns].numpy()
    return Dome(counts, truth_um, curve.depth_um(smooth.values), optics.pixel_size_um)


def draw_dome(config: Config, dome: Dome) -> None:
    """Draw image, truth, estimate and error of the dome."""
    figure, axes = new_figure(1, 4, 3.2, 3.0)
    title = f"image, {max(config.photons):g} photons per pixel"
    show_image(axes[0, 0], dome.image.numpy(), title)
    add_scale_bar(axes[0, 0], dome.pixel_size_um, dome.image.shape[1])
    limits = (dome.truth_um.min() - 1, dome.truth_um.max() + 1)
    estimate = f"estimated depth: rms error {dome.rms_um:.2f} µm"
    panels = (
        (dome.truth_um, "true depth", "viridis", limits),
        (dome.depth_um, estimate, "viridis", limits),
        (dome.depth_um - dome.truth_um, "error", "PuOr", (-4, 4)),
    )
    for at, (values, title, name, (low, high)) in zip(axes[0, 1:], panels, strict=True):
        drawn = at.imshow(values, cmap=colour_map(name), vmin=low, vmax=high)
        figure.colorbar(drawn, ax=at, shrink=0.8, label="µm")
        at.set(xticks=[], yticks=[])
        at.set_title(title, fontsize=8)
        add_scale_bar(at, DOME_STRIDE * dome.pixel_size_um, values.shape[1])
    figure.suptitle(f"A dome of {config.textures[0]} under a cylindrical lens", fontsize=9)
    save_figure(config.out / "figure_dome.png", figure)


def load_or_measure(config: Config) -> pd.DataFrame:
    """Table of profiles: that of an earlier run with --draw-only, else a new one, written."""
    path = config.out / "depth.csv"
    if config.draw_only:
        if not path.is_file():
            raise InputError(f"there is no {path}; run without --draw-only first.")
        return pd.read_csv(path)
    table = experiment(config)
    write_csv(path, table)
    return table


@holds_out_folder
def main(config: Config) -> None:
    """Render, estimate, score, draw."""
    keep_freed_memory()
    if config.stride < 1:
        raise InputError(f"--stride is {config.stride}; give at least 1 pixel.")
    if config.psf_px % 2 == 0 or config.psf_px < 3:
        raise InputError(f"--psf-px is {config.psf_px}; give an odd number of at least 3.")
    table = load_or_measure(config)
    summary = summarise(table)
    write_csv(config.out / "depth_summary.csv", summary, "%.3g")
    print(summary.to_string(index=False, float_format="%.3g"))
    bound = config.out / "depth_bound.csv"
    figure = draw_depth_figure(table, summary, pd.read_csv(bound) if bound.is_file() else None)
    for suffix in ("png", "pdf"):
        save_figure(config.out / f"figure_depth.{suffix}", figure)
    if not config.draw_only:
        dome = measure_dome(config)
        draw_dome(config, dome)
        print(f"dome: rms error {dome.rms_um:.2f} um")
    print(f"wrote {config.out / 'depth.csv'}, depth_summary.csv (look at figure_depth.png)")


if __name__ == "__main__":
    run(Config, main, __doc__)
