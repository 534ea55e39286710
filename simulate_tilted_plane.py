"""Blur a source image as a tilted plane would be: every object point has the PSF of its depth.

    python simulate_tilted_plane.py --source immunohistochemistry --out data/tilted_plane

Writes image.tif (photon counts, float32) and truth.tif (the true focus at each pixel, waves),
both calibrated in um, to try estimate_psf_map.py on an image whose map is known.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import tyro

from common.command import run
from common.files import run_record, write_imagej, write_json
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
    source: str = "immunohistochemistry"  # a built-in image
    focus_waves: tuple[float, float] = (0.0, 2.0)  # at the left and right; 7 degrees in 107 um
    photons: float = 1000.0  # mean per pixel
    read_noise_e: float = 1.6
    psf_size: int = 127  # px
    levels: int = 65  # PSFs along the tilt; points between two get a blend of both
    microscope: Annotated[Microscope, tyro.conf.arg(name="")] = field(default_factory=Microscope)
    seed: int = 0


def load_object(name: str) -> torch.Tensor:
    """Sharp image (H, W)."""
    sources = {source.name: source for source in builtin_sources()}
    if name not in sources:
        raise InputError(f"there is no built-in image '{name}'; choose of {', '.join(sources)}.")
    return torch.from_numpy(read_plane(sources[name]).copy())


def tilted_plane(config: Config) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise-free blurred image and true focus in waves, both (H, W) of the valid region."""
    sharp = load_object(config.source)
    height, width = sharp.shape
    if config.psf_size >= min(height, width):
        raise InputError(f"a PSF of {config.psf_size} px does not fit {height} x {width} px.")
    margin = config.psf_size // 2
    low, high = config.focus_waves
    # the range is reached at the borders of the valid region, and runs on outside of it
    share = (torch.arange(width) - margin) / (width - 1 - 2 * margin)
    focus = (low + (high - low) * share).clamp(min=0).expand(height, width)
    levels = torch.linspace(float(focus.min()), float(focus.max()), config.levels)
    psfs = synthesize(psf_model("zernike1d"), levels[:, None], config.microscope, config.psf_size)
    blurred = blur_varying(sharp, psfs, interpolation_weights(focus, levels))
    inner = slice(margin, -margin)
    return blurred, focus[inner, inner]


def main(config: Config) -> None:
    """Blur, expose, write."""
    if config.focus_waves[0] == config.focus_waves[1] or min(config.focus_waves) < 0:
        raise InputError("--focus-waves needs two different values of at least 0.")
    if config.psf_size < 3 or config.psf_size % 2 == 0 or config.levels < 2:
        raise InputError("--psf-size must be odd and at least 3, --levels at least 2.")
    if not config.photons > 0 or config.seed < 0:
        raise InputError("--photons must be positive, --seed not negative.")
    blurred, focus = tilted_plane(config)
    generator = torch.Generator().manual_seed(config.seed)
    photons = to_photons(blurred.clamp(min=0)[None], config.photons)
    counts = camera_counts(photons, generator, config.read_noise_e)[0]
    for name, pixels in (("image", counts), ("truth", focus)):
        pixel_um = config.microscope.pixel_size_um
        write_imagej(config.out / f"{name}.tif", pixels.float().numpy(), "YX", pixel_um)
    write_json(config.out / "run.json", run_record())
    print(f"wrote {config.out / 'image.tif'} and truth.tif beside it")


if __name__ == "__main__":
    run(Config, main, __doc__)
