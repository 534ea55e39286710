"""Blur a source image like a tilted plane: every object point has the PSF of its depth.

    python simulate_tilted_plane.py --source immunohistochemistry --out data/tilted_plane

Writes image.tif (photon counts, float32) and truth.tif (the true focus at each pixel, waves), both
calibrated in um. With them estimate_psf_map.py can be tried on an image whose map is known.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import tyro

from common.command import run
from common.files import run_record, write_imagej
from common.output import new_result, write_record
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
    microscope: Annotated[Microscope, tyro.conf.arg(name="")] = field(default_factory=Microscope)
    seed: int = 0  # of the noise


def load_object(name: str) -> torch.Tensor:
    """Sharp built-in image (H, W)."""
    sources = {source.name: source for source in builtin_sources()}
    if name not in sources:
        raise InputError(f"--source is '{name}'; choose from {', '.join(sources)}.")
    return torch.from_numpy(read_plane(sources[name]).copy())


def tilted_plane(config: Config) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise-free blurred image and true focus in waves, both (H, W) of the valid region."""
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
    levels = torch.linspace(float(focus.min()), float(focus.max()), config.levels)
    psfs = synthesize(psf_model("zernike1d"), levels[:, None], config.microscope, config.psf_size)
    blurred = blur_varying(sharp, psfs, interpolation_weights(focus, levels))
    inner = slice(margin, -margin)
    return blurred, focus[inner, inner]


def simulate(config: Config, folder: Path) -> None:
    """Blur the image, add noise, write both files to `folder`."""
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
    blurred, focus = tilted_plane(config)
    generator = torch.Generator().manual_seed(config.seed)
    photons = to_photons(blurred.clamp(min=0)[None], config.photons)
    counts = camera_counts(photons, generator, config.read_noise_e)[0]
    pixel_um = config.microscope.pixel_size_um
    for name, pixels in (("image", counts), ("truth", focus)):
        write_imagej(folder / f"{name}.tif", pixels.float().numpy(), "YX", pixel_um)
    write_record(folder / "run.json", run_record())


def main(config: Config) -> None:
    """Simulate, write both files."""
    with new_result(config.out, "run.json", ("image.tif", "truth.tif")) as folder:
        simulate(config, folder)
    print(f"wrote {config.out / 'image.tif'} and truth.tif beside it")


if __name__ == "__main__":
    run(Config, main, __doc__)
