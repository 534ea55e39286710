"""Depth of tilted planes from single images, calibrated on another plane, beside the truth.

    python figure_depth.py --out results

The planes have several textures and are 3, 6 and 10 degrees steep. Each column of the object is
blurred with its own PSF, and the image is recorded at 1000 and 100 photons per pixel. With a
cylindrical lens (network `astigmatic_tilted`) depth has a sign; without one (`zernike1d_tilted`)
it is the distance from focus.

Depth comes from a curve that is fitted to a calibration plane of another texture. That plane spans
the focus range of the network. Deeper patches should be refused, by the network or by the curve.

Writes depth.csv (a row per column of patches, with the mean across the tilt, as Shajkofci &
Liebling 2020, section V), depth_summary.csv, depth.json (the curves), depth_dome.csv (the error on
a curved surface), figure_depth.png and .pdf, and figure_dome.png. The figure includes the bound of
benchmarks/depth_bound.py if --out holds its table. Rendered planes are kept in --scratch, so an
interrupted run continues from them. --draw-only draws the figure again from the tables.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import tifffile
import torch
from tqdm import tqdm

from common.code import imported_files
from common.command import keep_freed_memory, pick_device, run
from common.depth_figure import draw_depth_figure
from common.depth_scores import PAPER_UM, summarise
from common.dome_figure import Dome, draw_dome
from common.files import (
    code_fingerprint,
    run_record,
    whole_file,
    write_csv,
    write_json,
)
from common.output import holds_out_folder
from common.pictures import save_figure
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
        "code": code_fingerprint(*imported_files(root, "simulation.surfaces")),
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
    """Table of one row per column of patches: true depth, depth of the mean, errors of patches.

    A patch is refused if it has no content, no depth, or a depth out of the usable range. Spread,
    errors and wrong signs are those of the other patches.
    """
    values, deviations = columns_of(found)
    z_um = depth_of_columns(found, config, degrees)
    truth = z_um if calibration.signed else np.abs(z_um)
    depths = calibration.depth_um(values)
    accepted = calibration.is_usable(depths)
    wrong = accepted & (np.sign(depths) != np.sign(truth[:, None]))
    errors = np.where(accepted, depths - truth[:, None], 0)
    return pd.DataFrame(
        {
            "z_um": z_um,
            "truth_um": truth,
            "depth_um": calibration.depth_um(plane_means(values, deviations).means),
            "spread_um": pd.DataFrame(np.where(accepted, depths, np.nan)).std(axis=1, ddof=0),
            "patches": values.shape[1],
            "refused": (~accepted).sum(1),
            "patch_square_error_um2": (errors**2).sum(1),
            "wrong_signs": wrong.sum(1),
            "usable": calibration.is_usable(truth),
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
    return Dome(
        texture,
        photons,
        counts.numpy(),
        depth_um[rows[:, None], columns].numpy(),
        curve.depth_um(smooth.values),
        optics.pixel_size_um,
        DOME_STRIDE * optics.pixel_size_um,
    )


def write_dome(config: Config) -> None:
    """Measure the dome; write its error to depth_dome.csv, and figure_dome.png."""
    dome = measure_dome(config)
    row = {"texture": dome.texture, "photons": dome.photons, "rms_um": dome.rms_um}
    write_csv(config.out / "depth_dome.csv", pd.DataFrame([row]))
    save_figure(config.out / "figure_dome.png", draw_dome(dome))
    print(f"dome: rms error {dome.rms_um:.2f} um")


def load_or_measure(config: Config) -> pd.DataFrame:
    """Table of profiles: that of an earlier run with --draw-only, else a new one, written."""
    path = config.out / "depth.csv"
    if not config.draw_only:
        table = experiment(config)
        write_csv(path, table)
        return table
    if not path.is_file():
        raise InputError(f"there is no {path}; run without --draw-only first.")
    table = pd.read_csv(path)
    if "refused" not in table:
        raise InputError(
            f"{path} has no column 'refused': an earlier version wrote it. Run without --draw-only."
        )
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
    if not config.draw_only:  # depth.csv is rounded, so its summary would differ in the last digit
        write_csv(config.out / "depth_summary.csv", summary, "%.3g")
    print(summary.to_string(index=False, float_format="%.3g"))
    bound = config.out / "depth_bound.csv"
    figure = draw_depth_figure(table, summary, pd.read_csv(bound) if bound.is_file() else None)
    for suffix in ("png", "pdf"):
        save_figure(config.out / f"figure_depth.{suffix}", figure)
    if not config.draw_only:
        write_dome(config)
        print(f"wrote {config.out / 'depth.csv'}, depth_summary.csv")
    print(f"drew {config.out / 'figure_depth.png'} and .pdf")


if __name__ == "__main__":
    run(Config, main, __doc__)
