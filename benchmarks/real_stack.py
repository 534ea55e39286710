r"""Focus estimates on a real focal stack whose depth is known in bands along y.

    python benchmarks/real_stack.py --stack stack.tif --truth truth.json --checkpoint zernike1d \
        --na 0.8 --wavelength-um 0.52 --refractive-index 1.33

The truth is a JSON object: z_um of the planes, bands_y, the edges of the bands in pixels,
band_focus_z_um_measured, z of the plane where each band is in focus, and pixel_um. Writes
results/real_stack.csv and .md, per band: Spearman's rank correlation of the estimate with the
distance from the band's focus, the error of planes left out after calibration, that of the optics
alone, and the step between the bands against the true one. Nothing here is fitted to the truth.
"""

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))

from common.command import pick_device, run
from common.files import read_json, run_record, whole_file, write_csv
from micrographs.micrograph import open_micrograph
from models.checkpoint import load_estimator
from models.depth import depth_from_optics, is_signed
from models.depth_fit import fit_depth, follows, leave_one_plane_out, plane_means
from models.estimator import Estimator, outside_limits
from models.map_image import map_stack
from models.mapping import reliable_estimates
from models.recording import Recording, RecordingOptions, open_recording
from psf.errors import InputError

NEEDED = ("z_um", "bands_y", "band_focus_z_um_measured", "pixel_um")


@dataclass(frozen=True)
class Config:
    """Settings of the benchmark."""

    stack: Path  # TIFF z-stack
    truth: Path  # JSON, see above
    checkpoint: Path  # folder of train.py, or the name of shipped weights
    na: float  # numerical aperture of the objective
    wavelength_um: float  # emission wavelength in vacuum, um
    refractive_index: float  # of the medium around the object
    bands: tuple[int, ...] | None = None  # px, edges of the bands along y; default: the truth's
    stride: int = 32  # pixels between neighbouring patches
    largest_deviation: float = 0.15  # of patches that are used, part of the label's range
    device: str = "auto"  # auto, cpu, cuda, mps
    out: Path = Path("results")  # folder to write


@dataclass(frozen=True)
class Truth:
    """Where the planes and the bands are."""

    z_um: np.ndarray  # (K,)
    edges_px: tuple[int, ...]  # (B + 1,)
    focus_z_um: tuple[float, ...]  # (B,)
    pixel_size_um: float


def read_truth(config: Config, planes: int) -> Truth:
    """Read and check the truth."""
    content = read_json(config.truth, "folder of a truth")
    missing = [name for name in NEEDED if name not in content]
    if missing:
        raise InputError(f"{config.truth} lacks {', '.join(missing)}.")
    z_um, edges = np.array(content["z_um"], float), config.bands or tuple(content["bands_y"])
    focus = tuple(content["band_focus_z_um_measured"])
    if len(z_um) != planes:
        raise InputError(f"{config.truth} has z of {len(z_um)} planes, the stack {planes} planes.")
    if len(edges) != len(focus) + 1 or list(edges) != sorted(set(edges)):
        raise InputError(f"edges of bands {edges} do not fit {len(focus)} bands; give them rising.")
    return Truth(z_um, edges, focus, float(content["pixel_um"]))


def score(
    values: np.ndarray, deviations: np.ndarray, z_um: np.ndarray, focus_z_um: float, context: dict
) -> dict[str, float]:
    """Numbers of one band; values (K, N)."""
    signed, microscope = context["signed"], context["microscope"]
    used = np.isfinite(values)
    true = z_um - focus_z_um if signed else np.abs(z_um - focus_z_um)
    means = plane_means(values, deviations).means
    seen = np.isfinite(means)
    row = {"planes": int(seen.sum()), "patches": int(used.sum()), "focus_true_um": focus_z_um}
    if seen.sum() < 3:
        return row
    per_patch = np.broadcast_to(true[:, None], values.shape)
    by_optics = depth_from_optics(means[seen], context["um_per_unit"], signed)
    row |= {
        "spearman_planes": follows(means[seen], true[seen]),
        "spearman_patches": follows(values[used], per_patch[used]),
        "optics_rms_um": math.sqrt(np.mean((by_optics - true[seen]) ** 2)),
    }
    limit = float(np.ptp(z_um))  # all planes count, not only those that are found well
    try:
        calibration = fit_depth(values, deviations, z_um, signed, microscope, limit_um=limit)
    except InputError as error:
        print(f"no calibration: {error}")
        return row
    errors = leave_one_plane_out(values, deviations, z_um, signed).means_um
    return row | {
        "focus_found_um": calibration.focus_z_um,
        "left_out_rms_um": math.sqrt(np.nanmean(errors**2)),
        "left_out_usable_rms_um": calibration.rms_um,
        "usable_from_um": calibration.usable_um[0],
        "usable_to_um": calibration.usable_um[1],
    }


def markdown(table: pd.DataFrame, config: Config, notes: list[str]) -> str:
    """The table for people."""
    shown = {
        "band": "band (px along y)",
        "patches": "patches",
        "spearman_planes": "rank correlation, planes",
        "spearman_patches": "rank correlation, patches",
        "left_out_rms_um": "planes left out, all (µm rms)",
        "left_out_usable_rms_um": "planes left out, usable (µm rms)",
        "optics_rms_um": "optics alone (µm rms)",
        "step_found_um": "step from the first band (µm)",
        "step_true_um": "true step (µm)",
    }
    lines = [
        f"{config.stack.name}, {config.checkpoint.resolve().name}: NA {config.na:g}, "
        f"{config.wavelength_um:g} µm, n {config.refractive_index:g}.",
        *notes,
        "",
        "| " + " | ".join(shown.values()) + " |",
        "|---" * len(shown) + "|",
    ]
    for _, row in table.iterrows():
        cells = [v if isinstance(v, str) else f"{v:.3g}" for v in (row[c] for c in shown)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def map_bands(
    config: Config, estimator: Estimator, truth: Truth, recording: Recording
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, values and standard deviations (K, N) of the patches of each band.

    Only patches that lie in the band as a whole count.
    """
    maps = map_stack(recording)
    low, high = estimator.psf_model.label_ranges[0]
    largest = config.largest_deviation * (high - low)
    estimates = reliable_estimates(maps, maps[0].names[0], largest)  # (K, R, C) each
    centres, half = maps[0].rows.numpy(), recording.patch_px / 2
    for top, bottom in pairwise(truth.edges_px):
        inside = (centres - half >= top - 0.5) & (centres + half <= bottom - 0.5)
        if not inside.any():
            raise InputError(
                f"band {top} to {bottom} px holds no whole patch of {2 * half:g} px; take a "
                "smaller --stride."
            )
        values, deviations = (array[:, inside].reshape(len(maps), -1) for array in estimates)
        yield f"{top} to {bottom}", values, deviations


def as_table(rows: list[dict], config: Config) -> pd.DataFrame:
    """One row per band, with the step from the first band to it."""
    names = ("spearman_planes", "spearman_patches", "optics_rms_um", "focus_found_um")
    names += ("left_out_rms_um", "left_out_usable_rms_um", "usable_from_um", "usable_to_um")
    table = pd.DataFrame(rows)
    table = table.reindex(columns=[*table.columns, *(n for n in names if n not in table)])
    for kind in ("found", "true"):
        focus = table[f"focus_{kind}_um"]
        table[f"step_{kind}_um"] = focus - focus.iloc[0]
    optics = ("na", "wavelength_um", "refractive_index")
    return table.assign(**{name: getattr(config, name) for name in optics})


def main(config: Config) -> None:
    """Predict, score each band, write."""
    estimator = load_estimator(config.checkpoint, pick_device(config.device))
    with open_micrograph(config.stack, z=0) as micrograph:
        truth = read_truth(config, len(micrograph.focal_planes()[0]))
    options = RecordingOptions(
        na=config.na,
        wavelength_um=config.wavelength_um,
        pixel_size_um=truth.pixel_size_um,
        refractive_index=config.refractive_index,
        stride=config.stride,
        allow_other_optics=True,
    )
    with open_recording(config.stack, options, estimator, is_stack=True) as recording:
        name = estimator.psf_model.label_names[0]
        context = {
            "signed": is_signed(estimator.psf_model, name),
            "microscope": recording.microscope,
            "um_per_unit": estimator.um_per_unit(recording.microscope)[name],
        }
        bands = map_bands(config, estimator, truth, recording)
        rows = [
            {"band": band, **score(values, deviations, truth.z_um, focus_z_um, context)}
            for (band, values, deviations), focus_z_um in zip(bands, truth.focus_z_um, strict=True)
        ]
    table = as_table(rows, config)
    write_csv(config.out / "real_stack.csv", table)
    resampling = recording.resampling
    seen_by = resampling.microscope(recording.microscope)
    outside = outside_limits(seen_by, estimator.config["optics_limits"])
    notes = [f"The images are {resampling.describe()}."] if resampling.factor > 1 else []
    if outside:
        notes.append(f"Outside of what the network was trained for: {'; '.join(outside)}.")
    notes.append(f"Commit {run_record()['commit']}.")
    text = markdown(table, config, notes)
    with whole_file(config.out / "real_stack.md") as partial:
        partial.write_text(text, encoding="utf-8")
    print(text)
    print(f"wrote {config.out / 'real_stack.csv'} and real_stack.md")


if __name__ == "__main__":
    run(Config, main, __doc__)
