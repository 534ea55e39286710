r"""Calibrate depth with a focal stack of a thin, flat object: STACK + checkpoint -> DIR/.

    python calibrate_depth.py stack.tif --checkpoint zernike1d --z-step-um 0.5 --na 0.45 \
        --wavelength-um 0.5 --pixel-size-um 0.278 --refractive-index 1.33 --out depth/stack

Writes calibration.png, calibration.csv (a row per plane) and depth_calibration.json, the curve from
the estimated parameter to z for --depth-calibration of estimate_psf_map.py.

Optics that the file tells need no flag. The first plane of the file has the lowest z, nearest to
the objective; give a negative step if the stage ran the other way. The object must lie at one
depth all over the image; tilt and thickness add to the error. Without a cylindrical lens the depth
has no sign: it is the distance from the focal plane, which is found in the stack.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import tyro

from common.command import keep_freed_memory, pick_device, print_notes, run, settings_of
from common.files import check_out_folder, run_record, write_csv
from common.overviews import draw_depth_calibration
from micrographs.metadata import NOT_NEEDED, flag_of
from models.checkpoint import Estimator, load_estimator
from models.depth import DepthCalibration, is_signed
from models.depth_fit import FEWEST_PLANES, fit_depth, leave_one_plane_out, plane_means
from models.map_image import Recording, RecordingOptions, map_stack, open_recording
from models.mapping import reliable_estimates
from psf.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Config(RecordingOptions):
    """Settings of a calibration."""

    stack: tyro.conf.Positional[Path]  # TIFF z-stack
    checkpoint: Path  # folder of train.py, or the name of shipped weights, e.g. zernike1d
    out: Path  # folder to write
    z_step_um: float | None = None  # um between planes; negative: towards the objective
    z_csv: Path | None = None  # instead: a table with the columns plane (from 0) and z_um
    stride: int = 64  # pixels between neighbouring patches
    parameter: str | None = None  # of the PSF model; default: its first
    largest_deviation: float = 0.15  # of patches that are used, part of the label's range
    limit_um: float | None = None  # error up to which depth is usable; default: depth of field


def find_z_um(config: Config, count: int, in_file: float | None) -> np.ndarray:
    """Position of each of `count` planes, (K,), um."""
    if (config.z_step_um is None) == (config.z_csv is None):
        known = f" (the file says {in_file:.4g} um)" if in_file else ""
        raise InputError(f"give either --z-step-um{known} or --z-csv.")
    if config.z_csv is not None:
        return read_z_csv(config.z_csv, count)
    if not (np.isfinite(config.z_step_um) and config.z_step_um != 0):
        raise InputError(f"--z-step-um is {config.z_step_um:g}; give the um between two planes.")
    return np.arange(count) * config.z_step_um


def read_z_csv(path: Path, count: int) -> np.ndarray:
    """Positions (K,), um, of a table with the columns plane and z_um."""
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:  # of parsing and of decoding are ValueErrors
        raise InputError(f"{path} cannot be read as a table: {error}") from error
    if not {"plane", "z_um"} <= set(table.columns):
        raise InputError(f"{path} has the columns {list(table.columns)}; give plane and z_um.")
    if len(table) != count:
        raise InputError(f"{path} has {len(table)} rows, the stack {count} planes.")
    z_um = pd.to_numeric(table.sort_values("plane")["z_um"], errors="coerce").to_numpy(float)
    if sorted(table["plane"]) != list(range(count)) or not np.isfinite(z_um).all():
        raise InputError(f"{path} must give z_um as a number for each plane 0 to {count - 1}.")
    steps = np.diff(z_um)
    if (steps == 0).any():
        raise InputError(f"{path}: two neighbouring planes have the same z_um.")
    if (steps > 0).any() and (steps < 0).any():
        turn = int(np.argmax(np.sign(steps) != np.sign(steps[0])))
        raise InputError(f"{path}: z_um turns around at plane {turn}; it must rise or fall.")
    return z_um


def pick_parameter(config: Config, estimator: Estimator) -> str:
    """The parameter to calibrate."""
    names = estimator.psf_model.label_names
    if config.parameter is None:
        return names[0]
    if config.parameter not in names:
        raise InputError(
            f"{config.checkpoint} has no parameter '{config.parameter}'; it has {', '.join(names)}."
        )
    return config.parameter


def check_config(config: Config) -> None:
    """Refuse numbers that make no sense, before the work starts."""
    check_out_folder(config.out)
    for name in ("largest_deviation", "limit_um"):
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise InputError(f"--{name.replace('_', '-')} is {value:g}; it must be above 0.")


def check_recording(config: Config, recording: Recording) -> None:
    """Refuse a stack with few planes, and optics on which the depth depends but nobody gave."""
    count = len(recording.planes)
    if count < FEWEST_PLANES:
        raise InputError(
            f"{config.stack} has {count} plane{'s' if count > 1 else ''} in z; a calibration takes "
            f"{FEWEST_PLANES} or more."
        )
    sources = recording.optics.sources
    missing = [flag_of(name) for name, source in sources.items() if source == NOT_NEEDED]
    if missing:
        raise InputError(
            f"a depth calibration holds for one microscope; give {', '.join(missing)}."
        )


def estimates(
    config: Config, recording: Recording, parameter: str
) -> tuple[np.ndarray, np.ndarray]:
    """Values and standard deviations (K, N) of the patches; NaN where they do not count."""
    estimator = recording.estimator
    maps = map_stack(recording)
    low, high = estimator.psf_model.label_ranges[maps[0].names.index(parameter)]
    largest = config.largest_deviation * (high - low)
    values, deviations = reliable_estimates(maps, parameter, largest)
    count = int(np.isfinite(values).sum())
    print(f"{count} of {values.size} patches have content and a small standard deviation")
    if not count:
        raise InputError(
            f"no plane of {config.stack} holds patches with content and a standard deviation of "
            f"{parameter} up to {largest:.3g} {maps[0].unit}; take another object, more light, or "
            "a larger --largest-deviation."
        )
    return values.reshape(len(maps), -1), deviations.reshape(len(maps), -1)


def as_table(
    values: np.ndarray, deviations: np.ndarray, z_um: np.ndarray, calibration: DepthCalibration
) -> pd.DataFrame:
    """One row per plane: where it is, what was estimated, and its error when left out."""
    means, spreads = plane_means(values, deviations)
    left_out = leave_one_plane_out(values, deviations, z_um, calibration.signed)
    return pd.DataFrame(
        {
            "plane": np.arange(len(z_um)),
            "z_um": z_um,
            "patches": np.isfinite(values).sum(1),
            f"mean_{calibration.unit}": means,
            f"spread_{calibration.unit}": spreads,
            "error_left_out_um": left_out.means_um,
        }
    )


def report(calibration: DepthCalibration, z_um: np.ndarray) -> None:
    """Print what was found, and what to be careful about."""
    low, high = calibration.usable_um
    what = "z" if calibration.signed else "distance from focus"
    print(f"focal plane at z = {calibration.focus_z_um:.3g} um of the stack")
    print(
        f"usable {what} {low:.3g} to {high:.3g} um: planes left out are found to "
        f"{calibration.rms_um:.3g} um rms, single patches to {calibration.patch_rms_um:.3g} um"
    )
    if calibration.signed and calibration.z_um[-1] < calibration.z_um[0]:
        print(
            f"{calibration.parameter} falls with z: if the stage ran towards the objective, give "
            "a negative z step; else the cylindrical lens is turned by 90 degrees."
        )
    ends = float(z_um.min()), float(z_um.max())
    step = (ends[1] - ends[0]) / (len(z_um) - 1)
    if min(abs(calibration.focus_z_um - end) for end in ends) < step:
        print(
            "note: the focal plane is an end of the stack, or outside it, so that depth "
            "may count from a wrong plane; record the stack through the focus."
        )


def main(config: Config) -> None:
    """Read, predict, fit, write."""
    keep_freed_memory()
    check_config(config)
    estimator = load_estimator(config.checkpoint, pick_device(config.device))
    parameter = pick_parameter(config, estimator)
    with open_recording(config.stack, config, estimator, is_stack=True) as recording:
        print_notes(recording.notes)
        check_recording(config, recording)
        z_um = find_z_um(config, len(recording.planes), recording.micrograph.facts.z_step_um)
        values, deviations = estimates(config, recording, parameter)
    calibration = fit_depth(
        values,
        deviations,
        z_um,
        signed=is_signed(estimator.psf_model, parameter),
        microscope=recording.microscope,
        parameter=parameter,
        unit=estimator.psf_model.unit,
        checkpoint=estimator.name,
        limit_um=config.limit_um,
    )
    table = as_table(values, deviations, z_um, calibration)
    write_csv(config.out / "calibration.csv", table, "%.5g")
    draw_depth_calibration(
        config.out / "calibration.png", table, calibration, f"{config.stack.name}: {parameter}"
    )
    target = config.out / "depth_calibration.json"
    calibration.to_json(target, settings=settings_of(config), run=run_record())
    report(calibration, z_um)
    print(f"wrote {config.out} (look at {config.out / 'calibration.png'})")
    print(
        f"next: python estimate_psf_map.py IMAGE --checkpoint {config.checkpoint} --out DIR "
        f"--depth-calibration {target}"
    )


if __name__ == "__main__":
    run(Config, main, __doc__)
