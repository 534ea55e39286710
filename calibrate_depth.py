r"""Calibrate depth with a focal stack of a thin, flat object: STACK + checkpoint -> DIR/.

    python calibrate_depth.py stack.tif --checkpoint zernike1d --z-step-um 0.5 --na 0.45 \
        --wavelength-um 0.5 --pixel-size-um 0.278 --refractive-index 1.33 --out depth/stack

Writes depth_calibration.json (the curve from the estimated parameter to z, for --depth-calibration
of estimate_psf_map.py), calibration.csv (each plane) and calibration.png.

Optics that are not given are read from the file. Planes count from the first of the file upwards
in z, away from the objective; where the stage ran the other way give a negative step. Any stack
will do whose object lies at one depth all over the image: what is tilted or thick ends up in the
error. Depth without its sign (all PSF models but those with a cylindrical lens) is the distance
from the focal plane, which is found in the stack.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import tyro

from common.command import keep_freed_memory, pick_device, run
from common.files import run_record, whole_file
from common.overviews import draw_depth_calibration
from micrographs.metadata import OpticsFacts
from micrographs.micrograph import Micrograph, open_micrograph
from models.checkpoint import Estimator, load_estimator, outside_limits
from models.depth import DepthCalibration, is_signed
from models.depth_fit import FEWEST_PLANES, fit_depth, leave_one_plane_out, plane_means
from models.mapping import predict_stack, reliable_estimates
from psf.errors import InputError
from psf.microscope import Microscope


@dataclass(frozen=True)
class Config:
    """Settings of a calibration."""

    stack: tyro.conf.Positional[Path]  # TIFF z-stack
    checkpoint: Path  # folder of train.py, or the name of shipped weights, e.g. zernike1d
    out: Path  # folder to write
    z_step_um: float | None = None  # um between planes; negative: towards the objective
    z_csv: Path | None = None  # instead: a table with the columns plane (from 0) and z_um
    na: float | None = None  # numerical aperture of the objective; default: the file's
    wavelength_um: float | None = None  # emission wavelength in vacuum, um; default: the file's
    pixel_size_um: float | None = None  # camera pixel / magnification, um; default: the file's
    refractive_index: float | None = None  # of the medium around the object; default: the file's
    channel: int | None = None  # of the file, from 0
    t: int | None = None  # time point of the file, from 0
    stride: int = 64  # pixels between neighbouring patches
    parameter: str | None = None  # of the PSF model; default: its first
    largest_deviation: float = 0.15  # of patches that are used, part of the label's range
    limit_um: float | None = None  # error up to which depth is usable; default: depth of field
    allow_other_optics: bool = False  # go on with optics that the checkpoint was not trained for
    device: str = "auto"  # auto, cpu, cuda, mps


def find_microscope(config: Config, facts: OpticsFacts) -> Microscope:
    """Optics of the command line, and of the file where nothing is given."""
    found = {}
    for name in ("na", "wavelength_um", "pixel_size_um", "refractive_index"):
        given, in_file = getattr(config, name), getattr(facts, name)
        if given is None and in_file is None:
            flag = "--" + name.replace("_", "-")
            raise InputError(f"{config.stack} does not say its {name}; give it as {flag}.")
        found[name] = in_file if given is None else given
        if given is None:
            print(f"{name} {in_file:.4g} from the file ({facts.sources.get(name, 'metadata')})")
    return Microscope(**found)


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


def pick_parameter(config: Config, names: tuple[str, ...]) -> str:
    """The parameter to calibrate."""
    if config.parameter is None:
        return names[0]
    if config.parameter not in names:
        raise InputError(
            f"{config.checkpoint} has no parameter '{config.parameter}'; it has {', '.join(names)}."
        )
    return config.parameter


def check(config: Config, estimator: Estimator, micrograph: Micrograph) -> None:
    """Refuse stacks that are none and numbers that make no sense, before the work starts."""
    standing = next(p for p in (config.out, *config.out.absolute().parents) if p.exists())
    if not standing.is_dir():
        raise InputError(f"--out {config.out}: {standing} is a file; give a folder.")
    count = micrograph.sizes["Z"]
    if count < FEWEST_PLANES:
        times = micrograph.sizes["T"]
        other = f" and {times} time points; save it as a z-stack" if times > 1 else ""
        planes = "one plane" if count == 1 else f"{count} planes"
        raise InputError(
            f"{config.stack} has {planes} in z{other}: a calibration takes {FEWEST_PLANES} or more."
        )
    for name in ("largest_deviation", "limit_um"):
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise InputError(f"--{name.replace('_', '-')} is {value:g}; it must be above 0.")
    pick_parameter(config, tuple(estimator.config["label_names"]))


def check_optics(config: Config, estimator: Estimator, microscope: Microscope) -> None:
    """Refuse optics that the network was not trained for, unless they are asked for."""
    if config.allow_other_optics or estimator.psf_model.is_gaussian:
        return
    outside = outside_limits(microscope, estimator.config["optics_limits"])
    if outside:
        raise InputError(
            f"{config.checkpoint} was trained for other optics: {'; '.join(outside)}. Train one "
            "for yours, or add --allow-other-optics."
        )


def estimates(
    config: Config, estimator: Estimator, micrograph: Micrograph, microscope: Microscope
) -> tuple[np.ndarray, np.ndarray]:
    """Values and standard deviations (K, N) of the patches; NaN where they do not count."""
    planes = [micrograph.select(z=z) for z in range(micrograph.sizes["Z"])]
    maps = predict_stack(estimator, planes, microscope, config.stride)
    name = pick_parameter(config, maps[0].names)
    low, high = estimator.config["label_ranges"][maps[0].names.index(name)]
    largest = config.largest_deviation * (high - low)
    values, deviations = reliable_estimates(maps, name, largest)
    count = int(np.isfinite(values).sum())
    print(f"{count} of {values.size} patches have content and a small standard deviation")
    if not count:
        raise InputError(
            f"no plane of {config.stack} holds patches with content and a standard deviation of "
            f"{name} up to {largest:.3g} {maps[0].unit}; take another object, more light, or a "
            "larger --largest-deviation."
        )
    return values.reshape(len(planes), -1), deviations.reshape(len(planes), -1)


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
            "the focal plane lies at the end of the stack, or beyond it: depth may count from a "
            "wrong plane; record the stack through the focus."
        )


def main(config: Config) -> None:
    """Read, predict, fit, write."""
    keep_freed_memory()
    estimator = load_estimator(config.checkpoint, pick_device(config.device))
    with open_micrograph(config.stack, channel=config.channel, z=0, t=config.t) as micrograph:
        for note in micrograph.notes:
            print(note)
        check(config, estimator, micrograph)
        facts = micrograph.facts
        z_um = find_z_um(config, micrograph.sizes["Z"], facts.z_step_um)
        microscope = find_microscope(config, facts)
        check_optics(config, estimator, microscope)
        values, deviations = estimates(config, estimator, micrograph, microscope)
    parameter = pick_parameter(config, tuple(estimator.config["label_names"]))
    calibration = fit_depth(
        values,
        deviations,
        z_um,
        signed=is_signed(estimator.psf_model, parameter),
        microscope=microscope,
        parameter=parameter,
        unit=estimator.config["label_unit"],
        checkpoint=config.checkpoint.resolve().name,
        limit_um=config.limit_um,
    )
    table = as_table(values, deviations, z_um, calibration)
    with whole_file(config.out / "calibration.csv") as partial:
        table.to_csv(partial, index=False, float_format="%.5g")
    draw_depth_calibration(
        config.out / "calibration.png", table, calibration, f"{config.stack.name}: {parameter}"
    )
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(config).items()}
    target = config.out / "depth_calibration.json"
    calibration.to_json(target, settings=settings, run=run_record())
    report(calibration, z_um)
    print(f"wrote {config.out} (look at {config.out / 'calibration.png'})")
    print(
        f"next: python estimate_psf_map.py IMAGE --checkpoint {config.checkpoint} --out DIR "
        f"--depth-calibration {target}"
    )


if __name__ == "__main__":
    run(Config, main, __doc__)
