"""How precisely depth can be known at all from one patch: the Cramer-Rao bound.

    python benchmarks/depth_bound.py

Objects are Gaussian textures whose amplitude falls as f^-slope, of unknown contrast and slope.
The Fourier coefficients of a patch are then independent with a power P(f) that depends on depth,
contrast and slope, and the Fisher information is 1/2 sum_f d log P d log P over the frequencies
(Whittle 1953; Kay, Fundamentals of Statistical Signal Processing I, eq. 3.31). Writes
results/depth_bound.csv: the least standard deviation of an unbiased estimate of z against z, with
and without the cylindrical lens, at each number of photons. Real images have edges, so this is a
yardstick for the network, not a strict bound.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from common.command import run
from common.files import whole_file
from psf.blur import transfer_functions
from psf.microscope import Microscope

STEP_WAVES = 1e-3  # of the derivative with respect to focus


@dataclass(frozen=True)
class Config:
    """Settings of the bound."""

    contrast: float = 0.2  # standard deviation / mean of the sharp texture
    slope: float = 1.0  # of its amplitude spectrum; natural images have about 1
    photons: Sequence[float] = (1000, 100)  # mean per pixel
    read_noise_e: float = 1.6
    patch_px: int = 128
    focus_waves: float = 3.9  # largest defocus either way
    steps: int = 157  # of focus
    pixel_size_um: float = 0.32
    out: Path = Path("results")


def log_power(
    focus: torch.Tensor,
    model: str,
    microscope: Microscope,
    config: Config,
    slope: float,
    mean: float,
) -> torch.Tensor:
    """Log power spectrum (N, F) of patches of unit mean, blurred by focus (N,) and noisy."""
    size = config.patch_px
    frequency = torch.hypot(torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)).double()
    texture = frequency.clamp(min=1 / size) ** (-2 * slope)
    texture[0, 0] = 0
    texture *= config.contrast**2 * size**2 / full_plane(texture).sum()
    floor = (mean + config.read_noise_e**2) / mean**2
    otf = transfer_functions(model, focus[:, None], microscope, (size, size)).abs().square()
    return (texture * otf.double() + floor).log().flatten(1)


def full_plane(values: torch.Tensor) -> torch.Tensor:
    """Values of a half plane times how often they occur in the whole one."""
    weight = torch.full(values.shape[-2:], 2.0, dtype=torch.float64)
    weight[:, [0, -1]] = 1.0
    weight[0, 0] = 0.0  # the mean says nothing of the texture
    return values * weight


def least_deviation(
    focus: torch.Tensor, model: str, microscope: Microscope, config: Config, mean: float
) -> torch.Tensor:
    """Bound (N,) on the standard deviation of focus, waves; infinite where nothing is known."""

    def power(offset: float = 0.0, slope: float = 0.0, contrast: float = 1.0) -> torch.Tensor:
        changed = Config(**{**vars(config), "contrast": config.contrast * contrast})
        return log_power(focus + offset, model, microscope, changed, config.slope + slope, mean)

    gradients = torch.stack(
        [
            (power(offset=STEP_WAVES) - power(offset=-STEP_WAVES)) / (2 * STEP_WAVES),
            (power(slope=1e-4) - power(slope=-1e-4)) / 2e-4,
            (power(contrast=1 + 1e-4) - power(contrast=1 - 1e-4)) / 2e-4,
        ]
    )  # (3, N, F)
    size = config.patch_px
    weight = full_plane(torch.ones(size, size // 2 + 1, dtype=torch.float64)).flatten()
    information = torch.einsum("inf,jnf,f->nij", gradients, gradients, weight / 2)
    nuisance = information[:, 1:, 1:]
    across = information[:, 0, 1:, None]
    left = information[:, 0, 0] - (across.mT @ torch.linalg.solve(nuisance, across))[:, 0, 0]
    return left.clamp(min=0).rsqrt()


def main(config: Config) -> None:
    """Bound for each depth, model and number of photons."""
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
    with whole_file(config.out / "depth_bound.csv") as partial:
        table.to_csv(partial, index=False, float_format="%.4g")
    print(table.groupby(["model", "photons"])["sd_um"].describe().to_string())
    print(f"wrote {config.out / 'depth_bound.csv'}")


if __name__ == "__main__":
    run(Config, main, __doc__)
