"""Blur a source image like a tilted plane: every object point has the PSF of its depth.

    python simulate_tilted_plane.py --source immunohistochemistry --out data/tilted_plane

Writes image.tif (photon counts, float32) and truth.tif (the true focus at each pixel, waves), both
calibrated in um. With them estimate_psf_map.py can be tried on an image whose map is known.

    python simulate_tilted_plane.py --frames 12 --drift-um 6 --out data/drift

writes a time series instead, in which the microscope drifts out of focus. Both files then hold a
frame for each time point.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro

from common.command import run
from common.files import run_record, write_imagej
from common.output import new_result, write_record
from common.stacks import write_stack
from psf.blur import blur_varying, interpolation_weights
from psf.errors import InputError
from psf.microscope import Microscope
from psf.model import psf_model
from psf.noise import camera_counts, to_photons
from psf.synthesis import synthesize
from simulation.sources import builtin_sources, read_plane


@dataclass(frozen=True)
class Config:
    """Settings of a tilted plane."""

    out: Path  # folder to write
    source: str = "immunohistochemistry"  # name of a built-in image
    focus_waves: tuple[float, float] = (0.0, 2.0)  # at the left and right edge
    photons: float = 1000.0  # mean per pixel
    read_noise_e: float = 1.6  # read noise, electrons rms
    psf_size: int = 127  # edge of the PSFs, px; odd
    levels: int = 65  # PSFs along the tilt; the blur is interpolated between them
    frames: int = 1  # time points
    drift_um: float = 0.0  # of all points in z from the first frame to the last
    frame_interval_s: float = 1800.0  # time between frames, s
    microscope: Annotated[Microscope, tyro.conf.arg(name="")] = field(default_factory=Microscope)
    seed: int = 0  # of the noise


def load_object(name: str) -> torch.Tensor:
    """Sharp built-in image (H, W)."""
    sources = {source.name: source for source in builtin_sources()}
    if name not in sources:
        raise InputError(f"--source is '{name}'; choose from {', '.join(sources)}.")
    return torch.from_numpy(read_plane(sources[name]).copy())


def tilted_plane(config: Config, drift_waves: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise-free blurred image and true focus in waves, both (H, W) of the valid region.

    With a drift every point has that much more focus. Focus below 0 has the PSF of its opposite,
    so the truth is the distance from focus.
    """
    sharp = load_object(config.source)
    height, width = sharp.shape
    if config.psf_size >= min(height, width):
        raise InputError(
            f"--psf-size is {config.psf_size}; give less than {min(height, width)} px, the image's "
            "shorter side."
        )
    margin = config.psf_size // 2
    low, high = config.focus_waves
    # the ends of the range lie at the borders of the valid region; focus goes on outside it
    share = (torch.arange(width) - margin) / (width - 1 - 2 * margin)
    focus = (low + (high - low) * share).clamp(min=0).expand(height, width)
    focus = (focus + drift_waves).abs()
    levels = torch.linspace(float(focus.min()), float(focus.max()), config.levels)
    psfs = synthesize(psf_model("zernike1d"), levels[:, None], config.microscope, config.psf_size)
    blurred = blur_varying(sharp, psfs, interpolation_weights(focus, levels))
    inner = slice(margin, -margin)
    return blurred, focus[inner, inner]


def check_config(config: Config) -> None:
    """Refuse options that make no sense, before the work starts."""
    if config.focus_waves[0] == config.focus_waves[1] or min(config.focus_waves) < 0:
        raise InputError(
            f"--focus-waves is {config.focus_waves[0]:g} {config.focus_waves[1]:g}; give two "
            "different values of at least 0."
        )
    if config.psf_size < 3 or config.psf_size % 2 == 0 or config.levels < 2:
        raise InputError(
            f"--psf-size is {config.psf_size} and --levels {config.levels}; give an odd size of at "
            "least 3 px and at least 2 levels."
        )
    if not config.photons > 0 or config.seed < 0:
        raise InputError(
            f"--photons is {config.photons:g} and --seed {config.seed}; give more than 0 photons "
            "and a seed of at least 0."
        )
    if config.frames < 1 or not 0 < config.frame_interval_s < float("inf"):
        raise InputError(
            f"--frames is {config.frames} and --frame-interval-s {config.frame_interval_s:g}; give "
            "at least 1 frame and more than 0 s."
        )
    if not np.isfinite(config.drift_um) or (config.drift_um and config.frames == 1):
        raise InputError(
            f"--drift-um is {config.drift_um:g} and --frames {config.frames}; give a number of um "
            "and at least 2 frames."
        )


def simulate(config: Config, folder: Path) -> None:
    """Blur the image, add noise, write both files to `folder`."""
    check_config(config)
    generator = torch.Generator().manual_seed(config.seed)
    drift_waves = config.drift_um / config.microscope.um_per_wave
    images, truths = [], []
    for frame in range(config.frames):
        blurred, focus = tilted_plane(config, drift_waves * frame / max(1, config.frames - 1))
        photons = to_photons(blurred.clamp(min=0)[None], config.photons)
        images.append(camera_counts(photons, generator, config.read_noise_e)[0].float().numpy())
        truths.append(focus.float().numpy())
    pixel_um = config.microscope.pixel_size_um
    for name, frames in (("image", images), ("truth", truths)):
        path = folder / f"{name}.tif"
        if config.frames == 1:
            write_imagej(path, frames[0], "YX", pixel_um)
        else:
            series = np.stack(frames)[:, None, None]
            write_stack(path, series, pixel_um, frame_interval_s=config.frame_interval_s)
    write_record(folder / "run.json", run_record())


def main(config: Config) -> None:
    """Simulate, write both files."""
    with new_result(config.out, "run.json", ("image.tif", "truth.tif")) as folder:
        simulate(config, folder)
    print(f"wrote {config.out / 'image.tif'} and truth.tif beside it")


if __name__ == "__main__":
    run(Config, main, __doc__)
