"""Smallest possible error of depth from one patch: the Cramér-Rao bound for random textures.

    python benchmarks/depth_bound.py

Writes results/depth_bound.csv: the least standard deviation of an unbiased estimate of z against z,
with and without a cylindrical lens, for each number of photons. figure_depth.py draws it.

The objects are Gaussian textures of unknown contrast and slope; their amplitude falls as f^-slope.
The Fourier coefficients of a patch are then independent. Their power P(f) depends on depth,
contrast and slope, so the Fisher information is 1/2 sum_f d log P d log P over the frequencies
(Whittle 1953; Kay, Fundamentals of Statistical Signal Processing I, eq. 3.31). Real images have
edges, so a network may be better than this bound. In focus it is better without a lens: it knows
that a distance is not negative, so that its estimate is biased there.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from common.command import run
from common.files import write_csv
from psf.blur import transfer_functions
from psf.microscope import Microscope

# Steps of the central differences. They are small against the scale on which log P changes, and
# large against the rounding errors of the float32 transfer functions.
STEP_WAVES = 1e-3  # of focus
STEP_TEXTURE = 1e-4  # of slope and of relative contrast, which are computed in float64


@dataclass(frozen=True)
class Config:
    """Settings of the bound."""

    contrast: float = 0.2  # standard deviation / mean of the sharp texture
    slope: float = 1.0  # exponent of its amplitude spectrum; natural images have about 1
    photons: Sequence[float] = (1000, 100)  # mean photons per pixel
    read_noise_e: float = 1.6  # read noise of the camera, electrons
    patch_px: int = 128  # edge of the patch
    focus_waves: float = 3.9  # largest defocus either way
    steps: int = 157  # values of focus; odd, so that one is in focus
    pixel_size_um: float = 0.32  # camera pixel / magnification, um
    out: Path = Path("results")  # folder to write


def log_power(
    focus: torch.Tensor,
    model: str,
    microscope: Microscope,
    config: Config,
    slope: float,
    mean: float,
) -> torch.Tensor:
    """Log power spectrum (N, F) of noisy patches with mean 1, blurred by focus (N,)."""
    size = config.patch_px
    frequency = torch.hypot(torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)).double()
    texture = frequency.clamp(min=1 / size) ** (-2 * slope)
    texture[0, 0] = 0
    texture *= config.contrast**2 * size**2 / full_plane(texture).sum()
    floor = (mean + config.read_noise_e**2) / mean**2
    otf = transfer_functions(model, focus[:, None], microscope, (size, size)).abs().square()
    return (texture * otf.double() + floor).log().flatten(1)


def full_plane(values: torch.Tensor) -> torch.Tensor:
    """Values (.., H, W // 2 + 1) of half a spectrum, weighted by their count in the whole one."""
    weight = torch.full(values.shape[-2:], 2.0, dtype=torch.float64)
    weight[:, [0, -1]] = 1.0
    weight[0, 0] = 0.0  # the mean of a patch says nothing about its texture
    return values * weight


def least_deviation(
    focus: torch.Tensor, model: str, microscope: Microscope, config: Config, mean: float
) -> torch.Tensor:
    """Least standard deviation (N,) of focus, waves; infinite where the PSF does not change."""

    def power(offset: float = 0.0, slope: float = 0.0, contrast: float = 1.0) -> torch.Tensor:
        changed = replace(config, contrast=config.contrast * contrast)
        return log_power(focus + offset, model, microscope, changed, config.slope + slope, mean)

    gradients = torch.stack(
        [
            (power(offset=STEP_WAVES) - power(offset=-STEP_WAVES)) / (2 * STEP_WAVES),
            (power(slope=STEP_TEXTURE) - power(slope=-STEP_TEXTURE)) / (2 * STEP_TEXTURE),
            (power(contrast=1 + STEP_TEXTURE) - power(contrast=1 - STEP_TEXTURE))
            / (2 * STEP_TEXTURE),
        ]
    )  # (3, N, F)
    size = config.patch_px
    weight = full_plane(torch.ones(size, size // 2 + 1, dtype=torch.float64)).flatten()
    information = torch.einsum("inf,jnf,f->nij", gradients, gradients, weight / 2)
    nuisance = information[:, 1:, 1:]  # of slope and contrast, which are unknown too
    across = information[:, 0, 1:, None]
    left = information[:, 0, 0] - (across.mT @ torch.linalg.solve(nuisance, across))[:, 0, 0]
    return left.clamp(min=0).rsqrt()


def main(config: Config) -> None:
    """Compute the bound for each PSF model, number of photons and depth."""
    microscope = Microscope(pixel_size_um=config.pixel_size_um)
    rows = []
    for model, lowest in (("astigmatic", -config.focus_waves), ("zernike1d", 0.0)):
        focus = torch.linspace(lowest, config.focus_waves, config.steps)
        for mean in config.photons:
            deviations = least_deviation(focus, model, microscope, config, float(mean))
            z_um = focus * microscope.um_per_wave
            um = deviations * microscope.um_per_wave
            rows.append(pd.DataFrame({"model": model, "photons": mean, "z_um": z_um, "sd_um": um}))
    table = pd.concat(rows).replace(np.inf, np.nan)
    write_csv(config.out / "depth_bound.csv", table)
    print(table.groupby(["model", "photons"])["sd_um"].describe().to_string())
    print(f"wrote {config.out / 'depth_bound.csv'}")


if __name__ == "__main__":
    run(Config, main, __doc__)
