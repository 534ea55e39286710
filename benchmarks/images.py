"""R^2 and error bars of focus for images and focal stacks, with and without their context.

    python benchmarks/images.py --checkpoint runs/images --data data/zernike1d --out results

Simulates images of held-out objects with the settings of the data folder: 25 patches in one plane,
and stacks of 9 planes and 12 places. The network reads each patch alone, in its image, and in its
stack. Patches without a readable focus follow: only haze, blank, and out of the range of focus.
Writes images.csv and images.md. Given again, the command goes on with the missing cells.
"""

import hashlib
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.image_scores import (
    Pooled,
    Readings,
    Scene,
    content_rows,
    focus_rows,
    markdown,
    pooled,
)
from common.command import keep_freed_memory, pick_device, run
from common.files import whole_file, write_csv
from models.checkpoint import load_estimator
from models.context_training import image_sources, record_images
from models.data import read_data_config
from models.estimator import Estimator, Prediction
from psf.errors import InputError
from psf.microscope import Microscope, simulated_microscopes
from simulation.bank import Bank
from simulation.images import Images, draw_images
from simulation.patches import OUT_OF_RANGE, simulate
from simulation.settings import Simulation, draw_microscopes, from_config
from simulation.sources import limit_cache
from simulation.specimens import SpecimenRanges

PHOTONS = (math.inf, 1000.0, 100.0, 10.0)  # mean per pixel; infinite: no noise
READ_NOISE_E = 1.6  # electrons, of a common sCMOS camera
GRID = 5  # rows and columns of the 25 patches of a blank image
IMAGE, STACK = (1, GRID**2), (9, 12)  # planes and places
SOFT_SHARE = 0.6  # of soft and hazy specimens: of each property by itself, so few have none
SOURCE_CACHE_BYTES = 2**28  # for all held-out objects, so that none is drawn twice


@dataclass(frozen=True)
class Config:
    """Settings of the table."""

    checkpoint: Path  # folder of train_context.py, or another network, which has no context
    data: Path  # folder of generate_training_set.py, whose settings the images have
    images: int = 40  # of 25 patches, in each cell
    stacks: int = 12  # of 9 planes and 12 places, in each cell
    seed: int = 0  # of images and noise
    device: str = "auto"  # auto, cpu, cuda, mps
    out: Path = Path("results")  # folder to write


@dataclass(frozen=True)
class Cell:
    """Images of one kind: their optics, specimens and size."""

    optics: str  # reference: those of the paper; varied: those of the data folder
    specimens: str  # sharp, soft and hazy, only haze, out of range, blank
    planes: int = IMAGE[0]
    places: int = IMAGE[1]


CELLS = tuple(
    cell
    for optics in ("reference", "varied")
    for cell in (
        *(Cell(optics, name, *IMAGE) for name in ("sharp", "soft and hazy")),
        *(Cell(optics, name, *STACK) for name in ("sharp", "soft and hazy")),
        *(Cell(optics, name) for name in ("only haze", "out of range", "blank")),
    )
)


class NamingBank(Bank):
    """A bank that keeps the names of the source images that were drawn from it."""

    drawn = ""  # the last one

    def draw_source(self, rng: np.random.Generator, most: int) -> np.ndarray:
        """Rows of one random source image, see `Bank.draw_source`."""
        rows = super().draw_source(rng, most)
        self.drawn = self.occupants[rows[0]].source.name
        return rows


def scene(cell: Cell, simulation: Simulation, bank: NamingBank, seed: list[int]) -> Scene:
    """One image of a cell, without noise."""
    rng, for_specimen = np.random.default_rng(seed), np.random.default_rng([*seed, 1])
    if cell.optics == "reference":
        simulation = replace(simulation, microscope=Microscope(), optics_ranges=None)
    specimens, softness_px = specimens_of(cell, simulation.specimens, for_specimen)
    # an image has one focus at each place
    simulation = replace(
        simulation,
        focus_change_waves=0.0,
        beyond_fraction=0.0,
        blank_fraction=0.0,
        specimens=specimens,
    )
    if cell.specimens == "blank":
        return Scene(blank_image(simulation, bank, for_specimen), "blank", softness_px)
    focus = None
    if cell.specimens == "out of range":
        focus = half_out_of_range(simulation.model.ranges["focus"], cell, for_specimen)
    images = draw_images(simulation, bank, 1, cell.places, cell.planes, rng, focus)
    return Scene(images, bank.drawn, softness_px)


def specimens_of(
    cell: Cell, ranges: SpecimenRanges, rng: np.random.Generator
) -> tuple[SpecimenRanges, float]:
    """Specimens of one image of a cell, and their softness in px, which is drawn here."""
    if cell.specimens in ("sharp", "blank"):
        return SpecimenRanges(), 0.0
    softness = rng.uniform(*ranges.softness_px) * (rng.random() < SOFT_SHARE)
    found = replace(
        ranges,
        plain=0.0,
        thick=SOFT_SHARE,
        soft=float(softness > 0),
        softness_px=(softness, softness),
        hazy=1.0 if cell.specimens == "only haze" else SOFT_SHARE,
    )
    return found, softness


def half_out_of_range(
    limits: tuple[float, float], cell: Cell, rng: np.random.Generator
) -> np.ndarray:
    """Focus (1, K, M) in waves, in the range at half of the places and out of it at the others."""
    shape = (1, cell.planes, cell.places)
    end = limits[1] * rng.uniform(*OUT_OF_RANGE, shape)
    return np.where(rng.random(shape) < 0.5, rng.uniform(*limits, shape), end)


def blank_image(simulation: Simulation, bank: Bank, rng: np.random.Generator) -> Images:
    """One image of 25 blank patches, of one microscope."""
    drawn = draw_microscopes(simulation, 1, rng)
    microscope = drawn if isinstance(drawn, Microscope) else drawn[0]
    simulation = replace(simulation, blank_fraction=1.0, optics_ranges=None, microscope=microscope)
    patches = simulate(simulation, bank, GRID**2, rng, augment=False)
    axis = torch.arange(GRID, dtype=torch.float32, device=bank.device)
    return Images(
        blurred=patches.blurred[None, None],
        labels=patches.labels[None, None],
        has_content=patches.has_content[None, None],
        optics=patches.optics[:1],
        places=torch.cartesian_prod(axis, axis)[None],
    )


def read_image(estimator: Estimator, images: Images, recorded: torch.Tensor) -> Readings:
    """What the network says of patches (1, K, M, H, W): alone, in the image, in the stack."""
    planes, places = recorded.shape[1:3]
    (microscope,) = simulated_microscopes(images.optics.tolist())
    features, facts = estimator.features(recorded.flatten(0, 2), microscope)
    features, facts = (t.unflatten(0, (planes, places)) for t in (features, facts))
    where = images.places[0].cpu()
    each = [estimator.predict_together(features[[k]], facts[[k]], where) for k in range(planes)]
    without = replace(estimator, context=None)
    found = {
        "alone": numbers(without.predict_together(features, facts, where)),
        "image": np.concatenate([numbers(one) for one in each], 1),
    }
    if planes > 1:
        found["stack"] = numbers(estimator.predict_together(features, facts, where))
    return found


def numbers(prediction: Prediction) -> np.ndarray:
    """Focus, half widths of its 68 % and 95 % intervals, and content probability (4, N)."""
    columns = (
        prediction.values[:, 0],
        prediction.standard_deviations[:, 0],
        prediction.half_widths_95[:, 0],
        prediction.content_probability,
    )
    return torch.stack(columns).double().numpy()


def cell_rows(
    cell: Cell,
    estimator: Estimator,
    simulation: Simulation,
    bank: NamingBank,
    config: Config,
    bar: tqdm,
) -> Iterator[dict[str, Any]]:
    """Rows of images.csv for one cell: each light and way of reading."""
    scenes: list[Scene] = []
    readings: dict[float, list[Readings]] = {photons: [] for photons in PHOTONS}
    for number in range(count_of(cell, config)):
        one = scene(cell, simulation, bank, [config.seed, number])
        scenes.append(one)
        for step, photons in enumerate(PHOTONS):
            generator = torch.Generator(bank.device).manual_seed(config.seed + 10 * number + step)
            light, read_noise = np.array([photons]), np.array([READ_NOISE_E])
            clean = np.array([math.isinf(photons)])
            recorded = record_images(one.images.blurred, light, read_noise, clean, generator)
            readings[photons].append(read_image(estimator, one.images, recorded))
        bar.update()
    facts = {"optics": cell.optics, "specimens": cell.specimens}
    facts |= {"planes": cell.planes, "places": cell.places}
    for photons, found in readings.items():
        patches = pooled(scenes, found)
        if cell.specimens in ("sharp", "soft and hazy"):
            rows = focus_rows(patches, simulation.specimens.softness_px)
        else:
            rows = content_rows(patches.take(to_refuse(cell, patches, simulation)))
        for row in rows:
            yield facts | {"photons_per_px": photons} | row


def to_refuse(cell: Cell, patches: Pooled, simulation: Simulation) -> np.ndarray:
    """Mask (N,) of the patches for whose refusal a cell is made."""
    low, high = simulation.model.ranges["focus"]
    in_range = (patches.truth >= low) & (patches.truth <= high)
    if cell.specimens == "out of range":
        return ~in_range
    return in_range & ~patches.has_content  # an empty place of a hazy image shows haze, too


def count_of(cell: Cell, config: Config) -> int:
    """Images, or stacks, of a cell."""
    return config.stacks if cell.planes > 1 else config.images


def finished(path: Path, key: str) -> pd.DataFrame:
    """Rows of an earlier run with the same network and settings."""
    if not path.is_file():
        return pd.DataFrame()
    table = pd.read_csv(path)
    return table[table["key"] == key] if "key" in table else pd.DataFrame()


def missing_cells(table: pd.DataFrame) -> list[Cell]:
    """Cells that the table lacks."""
    if table.empty:
        return list(CELLS)
    columns = table[["optics", "specimens", "planes", "places"]]
    have = {Cell(*row) for row in columns.itertuples(index=False)}
    return [cell for cell in CELLS if cell not in have]


def main(config: Config) -> None:
    """Simulate, read, score; each finished cell is written."""
    keep_freed_memory()
    limit_cache(SOURCE_CACHE_BYTES)
    estimator = load_estimator(config.checkpoint, pick_device(config.device))
    data = read_data_config(config.data)
    simulation = from_config(data)
    if estimator.psf_model != simulation.model or simulation.model.label_names != ("focus",):
        raise InputError(
            f"{config.checkpoint} and {config.data} have different PSF models, or read more than "
            "focus; give a network of zernike1d and the data folder of its training."
        )
    if estimator.context is None:
        print(f"note: {config.checkpoint} has no context network; every patch is read alone.")
    path = config.out / "images.csv"
    sizes = (config.images, config.stacks, config.seed)
    settings = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
    key = " ".join(map(str, (estimator.fingerprint[:12], settings[:12], *sizes)))
    table = finished(path, key)
    cells = missing_cells(table)
    if cells:
        sources = image_sources(config.data, data, simulation.crop_size, "test")
        bank = NamingBank(sources, simulation.crop_size, simulation.patch_size, estimator.device)
    total = sum(count_of(cell, config) for cell in cells)
    with tqdm(total=total, desc="images", unit="image") as bar:
        for cell in cells:
            rows = pd.DataFrame(cell_rows(cell, estimator, simulation, bank, config, bar))
            table = pd.concat([table, rows.assign(key=key)], ignore_index=True)
            write_csv(path, table, "%.5g")
    with whole_file(config.out / "images.md") as partial:
        partial.write_text(markdown(table), encoding="utf-8")
    print(markdown(table))
    print(f"wrote {path} and images.md")


if __name__ == "__main__":
    run(Config, main, __doc__)
