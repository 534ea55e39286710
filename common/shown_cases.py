"""Images of the restored objects that the figures show, kept in one small file to draw from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from common.files import whole_file
from psf.errors import InputError

# Images are rounded to this share of the mean photons. At 1000 photons per pixel, these are 8
# photons, where photon noise is 32. The file of three cases then has about 1.2 MB.
STEP = 1 / 128
TRUTH, INPUT = "truth", "blurred input"


@dataclass(frozen=True)
class ShownCase:
    """One object that the figures show, with its restorations."""

    rank: str  # best, median or worst
    index: int  # of the object, as in deconvolution.csv
    title: str
    gains: dict[str, float]  # gain in SNR of each method, dB
    images: dict[str, np.ndarray]  # (H, W) photons by name: truth, blurred input, methods
    correlations: dict[str, np.ndarray]  # Fourier ring correlation (RINGS,) with the truth


def describe(table: pd.DataFrame, index: int, photons: float) -> tuple[str, dict[str, float]]:
    """Name and PSF model of an object, and gains (dB) by method, from rows of deconvolution.csv."""
    rows = table[(table["index"] == index) & (table["photons"] == photons)]
    name, model = rows.iloc[0][["name", "model"]]
    return f"{name.replace('_', ' ')}, {model}", rows.set_index("method")["snr_gain_db"].to_dict()


def write_shown(path: Path, cases: Sequence[ShownCase], photons: float) -> None:
    """Write cases of the same methods, with images rounded to `STEP` of the mean photons."""
    step = photons * STEP
    names = list(cases[0].images)
    arrays = {"photons": np.array(photons), "step": np.array(step), "names": np.array(names)}
    arrays["ranks"] = np.array([case.rank for case in cases])
    arrays["indexes"] = np.array([case.index for case in cases])
    for case in cases:
        images = np.stack([case.images[name] for name in names])
        counts = np.rint(images / step).clip(0, np.iinfo(np.uint16).max)
        arrays[f"images_{case.rank}"] = counts.astype(np.uint16)
        curves = [case.correlations[name] for name in names if name != TRUTH]
        arrays[f"correlations_{case.rank}"] = np.array(curves, np.float32)
    with whole_file(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **arrays)


def read_shown(path: Path, table: pd.DataFrame) -> tuple[list[ShownCase], float]:
    """Cases of a file of `write_shown`, described by deconvolution.csv, and photons per pixel."""
    if not path.exists():
        raise InputError(f"{path} does not exist; run figure_deconvolution.py without --draw-only.")
    cases = []
    with np.load(path) as stored:
        photons, step, names = float(stored["photons"]), float(stored["step"]), stored["names"]
        restored = [name for name in names.tolist() if name != TRUTH]
        for rank, index in zip(stored["ranks"].tolist(), stored["indexes"].tolist(), strict=True):
            images = zip(names.tolist(), stored[f"images_{rank}"] * np.float32(step), strict=True)
            curves = zip(restored, stored[f"correlations_{rank}"], strict=True)
            facts = describe(table, index, photons)
            cases.append(ShownCase(rank, index, *facts, dict(images), dict(curves)))
    return cases, photons
