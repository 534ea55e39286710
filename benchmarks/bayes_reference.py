"""Best possible accuracy of focus on Gaussian textures: a Bayes-optimal estimate.

    python benchmarks/bayes_reference.py --checkpoints checkpoints/zernike1d --data data/zernike1d

The objects are periodic Gaussian random fields whose amplitude falls as f^-slope. The estimator
does not know the contrast and slope of a texture, but their distribution. The Fourier coefficients
are independent, so the likelihood of focus, contrast and slope given the periodogram is exact
(Whittle 1953). The estimate is the posterior mean over a grid.

Writes results/bayes_table.csv and bayes_table.md: R^2 at 10, 100 and 1000 photons and contrasts
0.1, 0.2 and 0.4, beside that of networks on the same patches. Here the estimator takes all
contrasts from 0.03 to 1.2 as equally likely in the logarithm, and slopes from 0.7 to 1.3. These
patches have Poisson noise, which the estimator takes as Gaussian.

With --data, writes results/bayes_reference.csv too: R^2 at each noise level of benchmark_models.py
--noise. Contrast and slope of these textures have the joint distribution of the sharp objects of
the data set's test images, in cells 0.1 wide in slope and 12 % in contrast, and the estimator has
this distribution as its prior. The noise is Gaussian, with the variance of the photons at the mean
light. A texture of high contrast is negative in places, since it is Gaussian. Writes
bayes_objects.csv with the quantiles of the distribution.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.object_textures import (
    Textures,
    contrasts_of,
    draw_test_objects,
    measured_textures,
    spectral_slopes,
    uniform_textures,
)
from common.command import run
from common.files import whole_file, write_csv
from models.checkpoint import load_estimator
from models.degradations import DEGRADATIONS, MEAN_ELECTRONS, READ_NOISE_E
from models.scoring import SCORES, r2_interval
from psf.blur import transfer_functions
from psf.microscope import Microscope
from psf.model import psf_model
from psf.noise import camera_counts, to_photons

SIZE = 128  # edge of the patches, px, as in the shipped networks
CAMERA_READ_NOISE_E = 1.6  # as in `psf.noise.camera_counts`
SLOPES = (0.7, 1.3)  # of the amplitude spectra; natural images have about 1
CONTRASTS = np.geomspace(0.03, 1.2, 24)  # the estimator's prior, uniform in the logarithm
ANY_TEXTURE = uniform_textures(np.linspace(*SLOPES, 13), CONTRASTS)
# Cells of the distribution of test objects. Of 1024 objects of `--images mixed`, all slopes are
# between 0 and 2, and 98 % of the contrasts between 0.1 and 1.6.
SLOPE_EDGES = np.linspace(0, 2, 21)
CONTRAST_EDGES = np.geomspace(0.1, 1.6, 25)
SMALLEST_FLOOR = 1e-12  # of the noise power of an image of unit mean; avoids a division by 0
CHUNK = 100  # patches estimated together
NOISY = ("gaussian", "poisson", "both")  # degradations that the curves show
RING_PX = 0.25  # width of the rings of the periodogram, Fourier pixels


@dataclass(frozen=True)
class Config:
    """Settings of the reference."""

    checkpoints: Sequence[Path] = ()  # networks for focus in waves that are scored too
    data: Path | None = None  # data set whose test objects decide the textures of the curves
    objects: int = 1024  # test objects whose contrast and slope are measured
    patches: int = 1000  # per level of the table
    curve_patches: int = 400  # per level of the curves
    contrasts: Sequence[float] = (0.1, 0.2, 0.4)  # standard deviation / mean of the objects
    photons: Sequence[float] = (10, 100, 1000)  # mean per pixel
    focus_waves: tuple[float, float] = (0.0, 4.0)  # range of focus
    seed: int = 0  # of textures and noise
    out: Path = Path("results")  # folder to write


class Reference:
    """Posterior mean of focus from the rings of a periodogram."""

    def __init__(
        self,
        focus_waves: tuple[float, float],
        microscope: Microscope,
        prior: Textures = ANY_TEXTURE,
    ) -> None:
        self.microscope, self.prior = microscope, prior
        frequency = torch.hypot(torch.fft.fftfreq(SIZE)[:, None], torch.fft.rfftfreq(SIZE))
        self.frequency = frequency.double()
        ring = (self.frequency * SIZE / RING_PX).round().long()
        _, self.ring = ring.unique(return_inverse=True)
        weight = torch.full(
            frequency.shape, 2.0
        ).double()  # each coefficient also stands for that of the other half plane
        weight[:, [0, -1]] = 1.0
        weight[0, 0] = 0.0  # the mean holds no information about the texture
        self.weight = weight
        self.count = self._sum(weight)
        self.focus = torch.linspace(*focus_waves, 161)
        otf = self.transfer(self.focus[:, None]).abs().square().double()
        rings = [self._mean(spectrum) for spectrum in otf]
        texture = torch.stack([self._mean(self.texture_power(float(s))) for s in prior.slopes])
        # (F, S, rings): power of a blurred texture of unit contrast and unit mean
        self.power = torch.stack(rings)[:, None] * texture[None]

    def _sum(self, values: torch.Tensor) -> torch.Tensor:
        size = int(self.ring.max()) + 1
        return torch.zeros(size).double().index_add_(0, self.ring.flatten(), values.flatten())

    def _mean(self, values: torch.Tensor) -> torch.Tensor:
        return self._sum(values * self.weight) / self.count.clamp(min=1)

    def texture_power(self, slope: float) -> torch.Tensor:
        """Power spectrum of unit mean power per pixel, without zero frequency."""
        power = self.frequency.clamp(min=1 / SIZE) ** (-2 * slope)
        power[0, 0] = 0
        return power * SIZE**2 / (power * self.weight).sum()

    def transfer(self, focus: torch.Tensor) -> torch.Tensor:
        """OTFs of focus (N, 1)."""
        return transfer_functions("zernike1d", focus, self.microscope, (SIZE, SIZE))

    def textures(self, contrast: float, focus: torch.Tensor, seed: int) -> torch.Tensor:
        """Blurred textures (N, 128, 128) of mean 1, slopes drawn at random; nowhere negative."""
        rng = np.random.default_rng(seed)
        slopes = torch.from_numpy(rng.uniform(*SLOPES, len(focus)))
        contrasts = torch.full_like(slopes, contrast)
        sharp = 1 + torch.fft.irfft2(self._spectra(contrasts, slopes, rng), s=(SIZE, SIZE))
        sharp = sharp.clamp(min=0)
        blurred = torch.fft.irfft2(torch.fft.rfft2(sharp) * self.transfer(focus), s=(SIZE, SIZE))
        return blurred.clamp(min=0).float()

    def gaussian_textures(self, focus: torch.Tensor, seed: int) -> torch.Tensor:
        """Blurred textures (N, 128, 128) of mean 1 from the prior; Gaussian, so partly negative."""
        rng = np.random.default_rng(seed)
        spectra = self._spectra(*self.prior.draw(len(focus), rng), rng)
        return 1 + torch.fft.irfft2(spectra * self.transfer(focus), s=(SIZE, SIZE)).float()

    def _spectra(
        self, contrasts: torch.Tensor, slopes: torch.Tensor, rng: np.random.Generator
    ) -> torch.Tensor:
        """Fourier transforms (N, 128, 65) of random textures of mean 0."""
        white = torch.from_numpy(rng.standard_normal((len(slopes), SIZE, SIZE)))
        amplitude = torch.stack([self.texture_power(float(s)).sqrt() for s in slopes])
        return torch.fft.rfft2(white) * amplitude * contrasts[:, None, None]

    def estimate(self, images: torch.Tensor, noise_variance: float) -> torch.Tensor:
        """Posterior mean of focus of images (N, 128, 128), electrons, with white noise. (N,)."""
        images = images.double()
        mean = images.mean((1, 2), keepdim=True)
        periodograms = torch.fft.rfft2(images / mean - 1).abs().square() / SIZE**2
        rings = torch.stack([self._mean(one) for one in periodograms])  # (N, rings)
        floor = max(noise_variance / float(mean.mean()) ** 2, SMALLEST_FLOOR)
        log_posterior = self._log_likelihood(rings, floor)  # (N, F, S, contrasts)
        log_posterior += self.prior.weights.log()
        log_posterior -= log_posterior.amax((1, 2, 3), keepdim=True)
        weights = log_posterior.exp_().sum((2, 3))
        return ((weights @ self.focus.double()) / weights.sum(1)).float()

    def _log_likelihood(self, rings: torch.Tensor, floor: float) -> torch.Tensor:
        """Whittle log-likelihood (N, F, S, contrasts) of ring means of periodograms."""
        half = self.count / 2  # each complex coefficient counts once
        parts = []
        for contrast in self.prior.contrasts:
            power = self.power * contrast**2 + floor
            fit = torch.einsum("nr,fsr->nfs", rings, half / power)
            parts.append(-fit - (half * power.log()).sum(-1))
        return torch.stack(parts, -1)


def score(truth: torch.Tensor, found: torch.Tensor) -> dict[str, float]:
    """R^2 and its confidence interval; each texture is an image of its own."""
    pair = truth.numpy(), found.numpy()
    low, high = r2_interval(*pair, np.arange(len(truth)), np.random.default_rng(0))
    return {"r2": float(SCORES["r2"](*pair)), "r2_low": low, "r2_high": high}


def draw_focus(config: Config, count: int) -> torch.Tensor:
    """Focus (N, 1) uniform in the range."""
    low, high = config.focus_waves
    rng = np.random.default_rng([config.seed, 1])
    return torch.from_numpy(rng.uniform(low, high, (count, 1)).astype(np.float32))


def table(config: Config, reference: Reference) -> pd.DataFrame:
    """R^2 of the reference and the networks by contrast and photons."""
    networks = {path.name: load_estimator(path) for path in config.checkpoints}
    focus, rows = draw_focus(config, config.patches), []
    jobs = [(c, p) for c in config.contrasts for p in config.photons]
    for index, (contrast, photons) in enumerate(tqdm(jobs, desc="table", unit="level")):
        textures = reference.textures(contrast, focus, config.seed + index)
        generator = torch.Generator().manual_seed(config.seed + index)
        images = camera_counts(to_photons(textures, photons), generator, CAMERA_READ_NOISE_E)
        variance = photons + CAMERA_READ_NOISE_E**2
        parts = images.split(CHUNK)
        found = {"Bayes": torch.cat([reference.estimate(part, variance) for part in parts])}
        for name, network in networks.items():
            found[name] = network.predict(images, reference.microscope).values[:, 0]
        rows += [
            {"estimator": n, "contrast": contrast, "photons": photons, **score(focus[:, 0], v)}
            for n, v in found.items()
        ]
    return pd.DataFrame(rows)


def noise_power(degradation: str, level: float) -> float:
    """Variance of the noise of an image of mean 1, at one level of a degradation."""
    if degradation == "gaussian":
        return (level / MEAN_ELECTRONS) ** 2
    read_noise_e = {"poisson": 0.0, "both": READ_NOISE_E}[degradation]
    return (level + read_noise_e**2) / level**2


def curves(config: Config, prior: Textures) -> pd.DataFrame:
    """R^2 of the reference at each level of the noise figure; all share textures and noise."""
    reference = Reference(config.focus_waves, Microscope(), prior)
    focus = draw_focus(config, config.curve_patches)
    textures = reference.gaussian_textures(focus, config.seed + 100)
    generator = torch.Generator().manual_seed(config.seed)
    noise = torch.randn(textures.shape, generator=generator)
    jobs = [(d.name, level) for d in DEGRADATIONS if d.name in NOISY for level in d.levels]
    rows = []
    for name, level in tqdm(jobs, desc="curves", unit="level"):
        power = noise_power(name, level)
        parts = (textures + noise * power**0.5).split(CHUNK)
        found = torch.cat([reference.estimate(part, power) for part in parts])
        rows.append({"degradation": name, "level": level, **score(focus[:, 0], found)})
    return pd.DataFrame(rows)


def object_quantiles(objects: torch.Tensor) -> pd.DataFrame:
    """Quantiles of contrast and slope of test objects (N, H, W)."""
    shares = (0.05, 0.25, 0.5, 0.75, 0.95)
    return pd.DataFrame(
        {
            "quantile": shares,
            "contrast": np.quantile(contrasts_of(objects), shares),
            "slope": np.quantile(spectral_slopes(objects), shares),
            "objects": len(objects),
        }
    )


def markdown(found: pd.DataFrame) -> str:
    """A row per estimator and contrast, a column per photon level."""
    wide = found.pivot_table("r2", ["estimator", "contrast"], "photons", sort=False)
    lines = [
        "R² of focus (0 to 4 waves) on periodic Gaussian textures by photons per pixel.",
        "",
        "| estimator | contrast | " + " | ".join(f"{p:g}" for p in wide.columns) + " |",
        "|---" * (2 + len(wide.columns)) + "|",
    ]
    for (name, contrast), row in wide.iterrows():
        lines.append(f"| {name} | {contrast:g} | " + " | ".join(f"{v:.3f}" for v in row) + " |")
    return "\n".join(lines) + "\n"


def main(config: Config) -> None:
    """Compute table and curves, write both and print the table."""
    psf_model("zernike1d", {"focus": config.focus_waves})  # refuses an empty range
    reference = Reference(config.focus_waves, Microscope())
    found = table(config, reference)
    write_csv(config.out / "bayes_table.csv", found, "%.5g")
    text = markdown(found)
    with whole_file(config.out / "bayes_table.md") as partial:
        partial.write_text(text, encoding="utf-8")
    print(text)
    print(f"wrote {config.out / 'bayes_table.csv'} and bayes_table.md")
    if config.data is None:
        return
    objects = draw_test_objects(config.data, config.objects, config.seed)
    write_csv(config.out / "bayes_objects.csv", object_quantiles(objects))
    prior = measured_textures(objects, SLOPE_EDGES, CONTRAST_EDGES)
    write_csv(config.out / "bayes_reference.csv", curves(config, prior), "%.5g")
    print(f"wrote {config.out / 'bayes_reference.csv'} and bayes_objects.csv")


if __name__ == "__main__":
    run(Config, main, __doc__)
