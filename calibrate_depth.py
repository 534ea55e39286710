r"""Calibrate depth with a focal stack of a thin, flat object: STACK + checkpoint -> DIR/.

    python calibrate_depth.py stack.tif --z-step-um 0.5 --na 0.45 --wavelength-um 0.5 \
        --pixel-size-um 0.278 --refractive-index 1.33 --out depth/stack

Writes calibration.png, calibration.csv (a row per plane) and depth_calibration.json, the curve from
the estimated parameter to z for --depth-calibration of estimate_psf_map.py. If the planes give no
curve, refused.png shows them.

Optics that the file tells need no flag. The first plane of the file has the lowest z, nearest to
the objective; give a negative step if the stage ran the other way. The object must lie at one
depth all over the image; tilt and thickness add to the error. Without a cylindrical lens the depth
has no sign: it is the distance from the focal plane, which is found in the stack.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import tyro

from common.command import (
    keep_freed_memory,
    next_command,
    pick_device,
    print_notes,
    run,
    settings_of,
)
from common.files import check_out_folder, run_record, write_csv
from common.output import holds_out_folder
from common.stack_pictures import draw_depth_calibration, draw_refused_calibration
from micrographs.metadata import AUTO_NA, NOT_NEEDED, OpticsFacts, flag_of, flag_or_file
from models.checkpoint import load_estimator
from models.depth import DEPTH_LABELS, DepthCalibration, is_signed
from models.depth_fit import FEWEST_PLANES, fit_depth, leave_one_plane_out, plane_means
from models.estimator import Estimator
from models.map_image import map_stack
from models.mapping import reliable_estimates
from models.recording import Recording, RecordingOptions, choose_checkpoint, open_recording
from psf.errors import InputError
from psf.microscope import OPTICS_NAMES, Microscope
from psf.model import um_per_label


@dataclass(frozen=True, kw_only=True)
class Config(RecordingOptions):
    """Settings of a calibration."""

    stack: tyro.conf.Positional[Path]  # TIFF z-stack
    out: Path  # folder to write
    z_step_um: float | None = None  # um between planes; negative: towards the objective
    z_csv: Path | None = None  # instead: a table with the columns plane (from 0) and z_um
    stride: int = 64  # pixels between neighbouring patches
    parameter: str | None = None  # of the PSF model; default: its first
    largest_deviation: float = 0.15  # of patches that are used, part of the label's range
    limit_um: float | None = None  # error up to which depth is usable; default: depth of field


def find_z_um(config: Config, count: int, facts: OpticsFacts) -> np.ndarray:
    """Position of each of `count` planes, (K,), um; a step that contradicts the file is noted."""
    if (config.z_step_um is None) == (config.z_csv is None):
        in_file = facts.z_step_um
        known = f" (the file says {in_file:.4g} um)" if in_file else ""
        raise InputError(f"give either --z-step-um{known} or --z-csv.")
    if config.z_csv is not None:
        return read_z_csv(config.z_csv, count)
    if not (np.isfinite(config.z_step_um) and config.z_step_um != 0):
        raise InputError(f"--z-step-um is {config.z_step_um:g}; give the um between two planes.")
    notes: list[str] = []
    flag_or_file("z_step_um", config.z_step_um, facts, notes)
    print_notes(notes)
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
    varied = varied_planes(config, recording)
    maps = map_stack(replace(recording, planes=tuple(recording.planes[k] for k in varied)))
    low, high = estimator.psf_model.label_ranges[maps[0].names.index(parameter)]
    largest = config.largest_deviation * (high - low)
    found = reliable_estimates(maps, parameter, largest)
    count, size = int(np.isfinite(found[0]).sum()), found[0].size
    print(f"{count} of {size} patches have content and a small standard deviation")
    if not count:
        raise InputError(
            f"no plane of {config.stack} holds patches with content and a standard deviation of "
            f"{parameter} up to {largest:.3g} {maps[0].unit}; take another object, more light, or "
            "a larger --largest-deviation."
        )
    values, deviations = (
        np.full((len(recording.planes), size // len(maps)), np.nan) for _ in range(2)
    )
    values[varied], deviations[varied] = (each.reshape(len(maps), -1) for each in found)
    return values, deviations


def varied_planes(config: Config, recording: Recording) -> list[int]:
    """Indices of the planes that are not constant; the others are noted and left out."""
    planes = [plane.plane() for plane in recording.planes]
    varied = [k for k, pixels in enumerate(planes) if not (pixels == pixels[0, 0]).all()]
    empty = sorted(set(range(len(planes))) - set(varied))
    if not varied:
        raise InputError(f"all planes of {config.stack} are constant; give a stack of an object.")
    if empty:
        which = ", ".join(map(str, empty))
        print_notes([f"all pixels are equal in plane {which} (from 0); it is left out"])
    return varied


def as_table(
    values: np.ndarray, deviations: np.ndarray, z_um: np.ndarray, unit: str
) -> pd.DataFrame:
    """One row per plane: where it is, and what was estimated."""
    means, spreads = plane_means(values, deviations)
    return pd.DataFrame(
        {
            "plane": np.arange(len(z_um)),
            "z_um": z_um,
            "patches": np.isfinite(values).sum(1),
            f"mean_{unit}": means,
            f"spread_{unit}": spreads,
        }
    )


def focus_outside(calibration: DepthCalibration, z_um: np.ndarray) -> str:
    """What is uncertain about the focal plane if no planes lie on both sides; else empty."""
    focus, low, high = calibration.focus_z_um, float(z_um.min()), float(z_um.max())
    step = (high - low) / (len(z_um) - 1)
    advice = "record the stack through the focus"
    if focus < low - step / 2 or focus > high + step / 2:
        away = max(low - focus, focus - high)
        return (
            f"the stack lies on one side of the focus; by the optics the focal plane is {away:.2g} "
            f"um outside, and depth counts from there; {advice}"
        )
    if min(focus - low, high - focus) < step:
        return (
            "the focal plane is an end of the stack, or outside it, so that depth may count from a "
            f"wrong plane; {advice}"
        )
    return ""


def report(calibration: DepthCalibration, warning: str) -> None:
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
    print_notes([warning] if warning else [])


def write_refusal(config: Config, table: pd.DataFrame, parameter: str, error: InputError) -> None:
    """Draw the planes that gave no calibration, and refuse.

    Raises
    ------
    InputError
        Always: the reason, and where the picture is.
    """
    target = config.out / "refused.png"
    unit = next(c for c in table if c.startswith("mean_")).removeprefix("mean_")
    draw_refused_calibration(target, table, parameter, unit, config.stack.name, str(error))
    raise InputError(f"{error} {target} shows the planes.") from error


def write_calibration(
    config: Config, calibration: DepthCalibration, table: pd.DataFrame, warning: str
) -> Path:
    """Write table, picture and curve; returns the file of the curve."""
    write_csv(config.out / "calibration.csv", table, "%.5g")
    title = f"{config.stack.name}: {calibration.parameter}"
    draw_depth_calibration(config.out / "calibration.png", table, calibration, title, warning)
    target = config.out / "depth_calibration.json"
    facts = {"warning": warning, "settings": settings_of(config), "run": run_record()}
    calibration.to_json(target, **facts)
    (config.out / "refused.png").unlink(missing_ok=True)  # of an earlier run
    return target


def next_step(config: Config, microscope: Microscope, target: Path) -> str:
    """Command that maps an image with this calibration, under the optics of the flags."""
    given = {name: getattr(config, name) for name in OPTICS_NAMES}
    if given["na"] == AUTO_NA:
        given["na"] = microscope.na
    optics = [(flag_of(name), value) for name, value in given.items()]
    return next_command(
        "estimate_psf_map.py",
        "IMAGE",
        ("--checkpoint", config.checkpoint),
        *optics,
        "--allow-other-optics" if config.allow_other_optics else None,
        ("--depth-calibration", target),
        ("--out", "DIR"),
    )


@holds_out_folder
def main(config: Config) -> None:
    """Read, predict, fit, write."""
    keep_freed_memory()
    check_config(config)
    config = choose_checkpoint(config)
    estimator = load_estimator(config.checkpoint, pick_device(config.device))
    parameter = pick_parameter(config, estimator)
    with open_recording(config.stack, config, estimator, is_stack=True) as recording:
        print_notes(recording.notes)
        check_recording(config, recording)
        z_um = find_z_um(config, len(recording.planes), recording.micrograph.facts)
        values, deviations = estimates(config, recording, parameter)
    model = estimator.psf_model
    table = as_table(values, deviations, z_um, model.unit)
    um_per_unit = None
    if parameter in DEPTH_LABELS:
        um_per_unit = um_per_label(model, recording.microscope)[parameter]
    try:
        calibration = fit_depth(
            values,
            deviations,
            z_um,
            signed=is_signed(model, parameter),
            microscope=recording.microscope,
            parameter=parameter,
            unit=model.unit,
            checkpoint=estimator.name,
            limit_um=config.limit_um,
            um_per_unit=um_per_unit,
        )
    except InputError as error:
        write_refusal(config, table, parameter, error)
    low, high = z_um.min(), z_um.max()
    outside = None if low <= calibration.focus_z_um <= high else calibration.focus_z_um
    left_out = leave_one_plane_out(values, deviations, z_um, calibration.signed, outside)
    table["error_left_out_um"] = left_out.means_um
    warning = focus_outside(calibration, z_um)
    target = write_calibration(config, calibration, table, warning)
    report(calibration, warning)
    print(f"wrote {config.out} (look at {config.out / 'calibration.png'})")
    print(next_step(config, recording.microscope, target))


if __name__ == "__main__":
    run(Config, main, __doc__)
