"""NA from the spectrum of simulated images: how often it is told, its error, and what it costs.

    python benchmarks/na_estimate.py

Held-out objects are imaged by objectives of NA 0.1 to 1.4, with three pixel sizes, in focus and
defocused, at three light levels. Writes results/na_estimate.csv, a row per image, and
results/na_estimate.md: how many NAs are told, their error, and how many lie within one and two
standard errors. results/na_focus.csv holds the depth that a network finds with the right NA, an NA
that is wrong by 10 %, and the estimated one.
"""

import itertools
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))

from common.command import pick_device, run
from common.files import write_csv
from micrographs.na_estimate import estimate_cutoff
from micrographs.radial_spectrum import radial_spectrum
from models.checkpoint import load_estimator
from models.estimator import Estimator
from psf.blur import blur_valid
from psf.microscope import Microscope, SamplingWarning
from psf.model import psf_model
from psf.noise import camera_counts, to_photons
from psf.synthesis import synthesize
from simulation.surfaces import held_out_object

SIZE_PX, PSF_PX = 384, 127
GAIN, OFFSET, READ_NOISE_E = 2.0, 100.0, 1.6
OBJECTIVES = (
    (0.1, 1.0),
    (0.3, 1.0),
    (0.5, 1.0),
    (0.75, 1.0),
    (0.95, 1.0),
    (1.2, 1.33),
    (1.4, 1.515),
)
PATCH_PX = 128


@dataclass(frozen=True)
class Config:
    """Settings of the benchmark."""

    # held-out photographs, or kinds of procedural objects
    objects: tuple[str, ...] = ("camera", "coins", "gravel", "immunohistochemistry", "filaments")
    pixels: tuple[float, ...] = (0.5, 0.8, 1.1)  # pixel size, times that of Nyquist
    focus_waves: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0)  # of the whole image
    photons: tuple[float, ...] = (100.0, 1000.0, 10_000.0)  # mean per pixel
    checkpoint: Path = Path("zernike1d_tilted")  # network that finds the depth
    every: int = 1  # take each so many of the images, for a shorter run
    device: str = "auto"  # auto, cpu, cuda, mps
    out: Path = Path("results")  # folder to write


@dataclass(frozen=True)
class Image:
    """An image in memory, read by rows."""

    pixels: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width, px."""
        return tuple(self.pixels.shape)

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Rows start to stop."""
        return self.pixels[start:stop]


def record(
    name: str, microscope: Microscope, focus: float, photons: float, seed: int
) -> torch.Tensor:
    """Counts (SIZE_PX, SIZE_PX) of a held-out object, everywhere at the same focus."""
    sharp = held_out_object(name, SIZE_PX + PSF_PX - 1)[None]
    model = psf_model("zernike1d", light="vectorial")
    psf = synthesize(model, torch.tensor([[focus]]), microscope, PSF_PX)
    expected = to_photons(blur_valid(sharp, psf).clamp(min=0), photons)
    generator = torch.Generator().manual_seed(seed)
    return camera_counts(expected, generator, READ_NOISE_E, GAIN, OFFSET)[0].round().clamp(min=0)


def estimate(counts: torch.Tensor, microscope: Microscope) -> tuple[dict[str, object], float]:
    """What the spectrum tells, and the NA that it gives."""
    per_cutoff = microscope.wavelength_um / (2 * microscope.pixel_size_um)
    spectrum = radial_spectrum(Image(counts))
    found = estimate_cutoff(spectrum, microscope.refractive_index / per_cutoff)
    na, error = per_cutoff * found.cutoff, per_cutoff * found.error
    row = {"told": found.is_told, "na_found": na, "error": error}
    row |= {"pull": (na - microscope.na) / error, "na_at_least": per_cutoff * found.lowest}
    return row | {"focus_found_waves": found.focus_waves}, na


def score_estimates(config: Config) -> pd.DataFrame:
    """A row per image; the objects take turns."""
    cases = list(itertools.product(OBJECTIVES, config.pixels, config.focus_waves, config.photons))
    rows = []
    for k in tqdm(range(0, len(cases), config.every), desc="estimate", unit="image"):
        (na, index), pixel, focus, photons = cases[k]
        microscope = Microscope(na, 0.5, pixel * 0.5 / (4 * na), index)
        name = config.objects[(k // config.every) % len(config.objects)]
        row = {"object": name, "na": na, "refractive_index": index, "pixel_per_nyquist": pixel}
        row |= {"focus_waves": focus, "photons": photons}
        rows.append(row | estimate(record(name, microscope, focus, photons, k), microscope)[0])
    return pd.DataFrame(rows)


def summarize(table: pd.DataFrame) -> pd.DataFrame:
    """Images told, their error and coverage, by one setting at a time."""
    table = table.assign(relative=(table["na_found"] / table["na"] - 1).abs())
    table["above_limit"] = table["na"] >= table["na_at_least"]
    rows = []
    for by in (None, "focus_waves", "photons", "pixel_per_nyquist", "na"):
        for value, part in [("all", table)] if by is None else table.groupby(by):
            told = part[part["told"]]
            rows.append(
                {
                    "images": "all" if by is None else f"{by} {value:g}",
                    "count": len(part),
                    "told": len(told),
                    "median_error": told["relative"].median(),
                    "90_percent_error": told["relative"].quantile(0.9),
                    "within_1_se": (told["pull"].abs() < 1).mean(),
                    "within_2_se": (told["pull"].abs() < 2).mean(),
                    "limit_holds": part["above_limit"].mean(),
                }
            )
    return pd.DataFrame(rows)


def score_depths(config: Config, estimator: Estimator) -> pd.DataFrame:
    """Error of the depth, um, that a network finds with several NAs."""
    truth = Microscope(pixel_size_um=0.22)
    rows = []
    for k, (name, focus) in enumerate(itertools.product(config.objects, (0.3, 0.8, 1.5, 2.5))):
        counts = record(name, truth, focus, 1000.0, k)
        row, found = estimate(counts, truth)
        nas = {"right": truth.na, "10 % too low": 0.9 * truth.na, "10 % too high": 1.1 * truth.na}
        nas |= {"right, where told": truth.na, "estimated": found} if row["told"] else {}
        patches = counts.unfold(0, PATCH_PX, PATCH_PX).unfold(1, PATCH_PX, PATCH_PX)
        patches = patches.reshape(-1, PATCH_PX, PATCH_PX)
        for kind, na in nas.items():
            microscope = Microscope(na, truth.wavelength_um, truth.pixel_size_um)
            values = estimator.predict(patches, microscope).values.flatten()
            depth = values.double() * microscope.um_per_wave - focus * truth.um_per_wave
            row = {"object": name, "focus_waves": focus, "na_is": kind, "na": na}
            rms = float(depth.square().mean().sqrt())
            rows.append(row | {"rms_um": rms, "bias_um": float(depth.mean())})
    return pd.DataFrame(rows)


def as_markdown(table: pd.DataFrame) -> str:
    """A table in Markdown."""
    cells = [[f"{v:.3f}" if isinstance(v, float) else str(v) for v in row] for row in table.values]
    lines = [list(table.columns), ["---"] * len(table.columns), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(config: Config) -> None:
    """Record, estimate, score, write."""
    warnings.simplefilter("ignore", SamplingWarning)  # pixels above Nyquist are meant
    table = score_estimates(config)
    write_csv(config.out / "na_estimate.csv", table, "%.5g")
    summary = summarize(table)
    depths = score_depths(config, load_estimator(config.checkpoint, pick_device(config.device)))
    write_csv(config.out / "na_focus.csv", depths, "%.5g")
    groups = depths.groupby("na_is", sort=False)
    by_na = groups[["rms_um", "bias_um"]].mean().assign(images=groups.size()).reset_index()
    text = f"{as_markdown(summary)}\n\n{as_markdown(by_na)}\n"
    (config.out / "na_estimate.md").write_text(text, "utf-8")
    print(text)


if __name__ == "__main__":
    run(Config, main, __doc__)
