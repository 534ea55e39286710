r"""Fit the microscope's PSF to a z-stack of one bead: focus, brightness and aberrations.

    python fit_psf.py bead.tif --na 0.85 --wavelength-um 0.52 --refractive-index 1.0 \
        --out fits/bead

Writes fit.png (data, model and residual in xy and xz), fit.json (the parameters with standard
errors, and how well the model fits), model.tif (electrons) and residual.tif (standard deviations
of the noise). Optics and z step that the file tells (ImageJ, OME) need no flag. Aberrations are
orthonormal Zernike modes in waves rms, by their Noll index: 5, 6 astigmatism, 7, 8 coma, 9, 10
trefoil, 11, 22 spherical.

The brightest bead that is not saturated nor cut off is fitted. Hot and dead pixels and cosmic rays
get weight 0. The first plane of the file has the lowest z, nearest to the objective. Give a
negative step if the stage ran the other way: with the wrong sign the fit is as good, but focus,
drift and the even aberrations have the wrong sign.
"""

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from tqdm import tqdm

from common.command import keep_freed_memory, print_notes, run
from common.files import check_out_folder, run_record, write_imagej, write_json
from common.output import holds_out_folder
from common.stack_pictures import draw_bead_fit
from micrographs.bead_quality import Quality, explain_dispersion, judge_fit
from micrographs.bead_search import BeadView, find_bead
from micrographs.metadata import OpticsFacts, flag_or_file, resolve_optics
from micrographs.micrograph import open_micrograph
from psf.bead import FEWEST_PLANES, BeadFit, fit_bead
from psf.bead_stack import Scene
from psf.errors import InputError
from psf.gibson_lanni import Layers, layered_wavefront
from psf.light import warn_if_scalar_is_off
from psf.microscope import OPTICS_NAMES, Microscope, Optics
from psf.model import psf_model
from psf.zernike import noll_to_nm

LARGEST_STEP_UM = 50.0  # um between planes; a larger number was given in nm
MANY_BELOW_ZERO = 0.001  # share of pixels below the offset that hot pixels do not explain
MOST_VOXELS = 16_000_000  # of the file; the search for outliers takes about 75 bytes for each
LEAST_RANGE = 0.1  # depths of field; with less defocus, all planes look the same
# Noll modes that are no aberrations to fit: other parameters stand for them.
NOT_ABERRATIONS = {1: "piston", 2: "the centre", 3: "the centre", 4: "the focus"}
FULL_SCALES = (255, 1023, 4095, 16383, 65535)  # of 8 to 16 bit cameras


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of a fit."""

    stack: tyro.conf.Positional[Path]  # TIFF z-stack of one bead
    out: Path  # folder to write
    na: float | None = None  # numerical aperture of the objective; default: the file's
    wavelength_um: float | None = None  # emission wavelength in vacuum, um; default: the file's
    refractive_index: float | None = None  # of the medium around the bead; default: the file's
    pixel_size_um: float | None = None  # camera pixel / magnification, um; default: the file's
    z_step_um: float | None = None  # between planes; negative: to the objective; default: file's
    modes_noll: tuple[int, ...] = (5, 6, 7, 8, 9, 10, 11, 22)  # aberrations to fit
    fit_na: bool = False  # fit the effective NA too
    light: Literal["scalar", "aplanatic", "vectorial"] = "vectorial"  # model of the light
    layers: Layers = field(default_factory=Layers)  # indices and thicknesses; default: all matched
    depth_um: float = 0.0  # of the bead below the coverslip
    bead_um: float = 0.0  # diameter of the bead; 0: a point
    offset_counts: float = 0.0  # camera counts without light
    electrons_per_count: float = 1.0  # camera gain; sets the standard errors
    read_noise_e: float = 0.0  # electrons rms
    size: int = 0  # px, edge of the square that is fitted; 0: as large as the bead's light
    series: int | None = None  # image in a file of several, from 0; default: the largest
    channel: int | None = None  # of the file, from 0; default: the first
    t: int | None = None  # time point of the file, from 0; default: the first


@dataclass(frozen=True)
class Stack:
    """A focal stack as recorded, and what its file says of its scale."""

    counts: np.ndarray  # (Z, H, W) camera counts
    facts: OpticsFacts


def read_stack(config: Config) -> Stack:
    """Read the stack of one channel.

    Raises
    ------
    InputError
        If it cannot be read, is no stack, or is a colour image.
    """
    with open_micrograph(config.stack, config.channel, 0, config.t, config.series) as micrograph:
        if micrograph.channel is None:
            raise InputError(
                f"{config.stack} is a colour image; choose one of its colours with --channel."
            )
        check_axes(config, micrograph.sizes)
        planes, notes = micrograph.focal_planes()
        print_notes(notes)
        voxels = len(planes) * micrograph.shape[0] * micrograph.shape[1]
        if voxels > MOST_VOXELS:
            raise InputError(
                f"{config.stack} has {len(planes)} planes of {micrograph.shape[0]} x "
                f"{micrograph.shape[1]} px; crop it around one bead (at most "
                f"{MOST_VOXELS / 1e6:.0f} million pixels in all)."
            )
        counts = np.stack([plane.plane().numpy() for plane in planes])
        facts = micrograph.facts
    return Stack(counts, facts)


def check_axes(config: Config, sizes: dict[str, int]) -> None:
    """Refuse a file without a stack in z; time points are planes only if their z step is given."""
    if sizes["Z"] >= FEWEST_PLANES:
        return
    holds = f"{config.stack} has {sizes['Z']} plane{'s' if sizes['Z'] > 1 else ''} in z"
    if sizes["Z"] > 1 or sizes["T"] < FEWEST_PLANES:
        if sizes["C"] > 1:
            holds += f" and {sizes['C']} channels"
        raise InputError(f"{holds}; a fit takes {FEWEST_PLANES} or more planes along the axis Z.")
    if config.t is not None or config.z_step_um is None:
        raise InputError(
            f"{holds} and {sizes['T']} time points; if these are the planes of a focal stack, give "
            "--z-step-um and no --t."
        )


@dataclass(frozen=True)
class Known:
    """What is known before the fit, and where each number came from."""

    scene: Scene
    sources: dict[str, str]  # by name: the flag, or the field of the metadata


def find_numbers(config: Config, stack: Stack) -> Known:
    """Optics and z step, by their flags or else by the file; both are checked and printed."""
    known = resolve_optics({n: getattr(config, n) for n in OPTICS_NAMES}, stack.facts)
    notes = list(known.notes)
    step = flag_or_file("z_step_um", config.z_step_um, stack.facts, notes)
    if step is None:
        raise InputError("the file does not tell its z step; give --z-step-um.")
    # The line below names the file as a source, so only contradictions are notes.
    print_notes(note for note in notes if ", from the file (" not in note)
    sources = {**known.sources, "z_step_um": step[1]}
    values = {**asdict(known.microscope), "z_step_um": step[0]}
    print("used: " + ", ".join(f"{n} {values[n]:.5g} ({s})" for n, s in sources.items()))
    print(
        f"each plane is {abs(step[0]):g} um {'farther from' if step[0] > 0 else 'nearer to'} the "
        "objective than the one before; if not, give --z-step-um with the other sign"
    )
    return Known(build_scene(config, known.microscope, step[0], len(stack.counts)), sources)


def build_scene(config: Config, microscope: Microscope, z_step_um: float, planes: int) -> Scene:
    """Check the numbers of the command line and put them together."""
    for number in config.modes_noll:
        if number in NOT_ABERRATIONS:
            raise InputError(
                f"Noll mode {number} is {NOT_ABERRATIONS[number]}, which is always fitted; "
                "leave it out of --modes-noll."
            )
    if len(set(config.modes_noll)) < len(config.modes_noll):
        raise InputError(f"--modes-noll {config.modes_noll}: one of them is given twice.")
    if not 0 < abs(z_step_um) < LARGEST_STEP_UM:
        raise InputError(f"--z-step-um is {z_step_um:g}; it is in um between two planes.")
    range_um = (planes - 1) * abs(z_step_um)
    if range_um < LEAST_RANGE * microscope.depth_of_field_um:
        raise InputError(
            f"{planes} planes with a z step of {z_step_um:g} um span {range_um:.3g} um, far less "
            f"than the depth of field ({microscope.depth_of_field_um:.3g} um), so that no plane is "
            "out of focus; check --z-step-um, which is in um."
        )
    if not 0 <= config.bead_um < LARGEST_STEP_UM:
        raise InputError(f"--bead-um is {config.bead_um:g}; give the bead's diameter in um.")
    if not (config.electrons_per_count > 0 and config.read_noise_e >= 0):
        raise InputError("--electrons-per-count must be above 0 and --read-noise-e at least 0.")
    psf_model("gibson_lanni", layers=config.layers, depth_um=config.depth_um)
    edge, depth = torch.ones(1), torch.tensor([config.depth_um])
    layered_wavefront(config.layers, Optics.of(microscope), 0 * edge, depth, edge)  # may refuse
    return Scene(
        microscope,
        z_step_um,
        tuple(noll_to_nm(number) for number in config.modes_noll),
        config.layers,
        config.depth_um,
        config.light,
        config.read_noise_e,
        config.fit_na,
        config.bead_um,
    )


def to_electrons(config: Config, counts: np.ndarray) -> np.ndarray:
    """Electrons (Z, H, W) of camera counts.

    Raises
    ------
    InputError
        If the offset is no number, or above most of the pixels.
    """
    offset = config.offset_counts
    if not np.isfinite(offset):
        raise InputError(f"--offset-counts is {offset:g}; give a number of counts.")
    known = counts[np.isfinite(counts)]
    middle = float(np.median(known)) if known.size else offset
    if middle < offset:
        raise InputError(
            f"most pixels are below --offset-counts {offset:g} (median {middle:.4g} counts); "
            "light cannot be negative: give the counts of the camera without light, or a negative "
            "offset if a background was subtracted."
        )
    electrons = (counts.astype(float) - offset) * config.electrons_per_count
    below = float((electrons < -3 * config.read_noise_e).sum() / max(known.size, 1))
    if below > MANY_BELOW_ZERO:
        print_notes(
            [
                f"{below:.1%} of the pixels are below --offset-counts {offset:g} (lowest "
                f"{float(known.min()):.4g}) and count as 0; lower the offset, or give "
                "--read-noise-e"
            ]
        )
    return electrons


def describe(config: Config, known: Known, view: BeadView, fit: BeadFit, quality: Quality) -> dict:
    """Content of fit.json."""
    scene, middle = known.scene, (fit.model.shape[-1] - 1) / 2
    origin = {"x_px": view.left + middle, "y_px": view.top + middle}
    parameters = {
        name: {"value": float(v) + origin.get(name, 0.0), "standard_error": float(e)}
        for name, v, e in zip(fit.names, fit.values, fit.standard_errors, strict=True)
    }
    microscope = asdict(scene.microscope)
    if config.fit_na:
        microscope["na"] = fit["na"]
    return {
        "kind": "PSF fit",
        "stack": config.stack.name,
        "microscope": microscope,
        "layers": asdict(config.layers),
        "depth_um": config.depth_um,
        "bead_um": config.bead_um,
        "light": config.light,
        "z_step_um": scene.z_step_um,
        "sources": known.sources,
        "channel": config.channel or 0,
        "time_point": config.t or 0,
        "planes": len(fit.model),
        "square_px": {"top": view.top, "left": view.left, "size": fit.model.shape[-1]},
        "pixels_of_weight_0": int((~view.usable).sum()),
        "notes": list(view.notes),
        "modes_nm": [list(mode) for mode in scene.modes],
        "camera": {
            "offset_counts": config.offset_counts,
            "electrons_per_count": config.electrons_per_count,
            "read_noise_e": config.read_noise_e,
        },
        "parameters": parameters,
        "wavefront_rms_waves": fit.wavefront_rms_waves,
        "dispersion": fit.dispersion,
        "quality": asdict(quality),
    }


def report(description: dict, residual_of_peak: float, electrons_per_count: float) -> None:
    """Print what was found, and how well it fits."""
    for name, found in description["parameters"].items():
        print(f"  {name:18} {found['value']:12.5g} +- {found['standard_error']:.2g}")
    dispersion, quality = description["dispersion"], description["quality"]
    print(f"wavefront {description['wavefront_rms_waves']:.3f} waves rms without defocus")
    print(
        f"residual {residual_of_peak:.2%} of the peak rms; {dispersion:.3g} times the variance of "
        "photon noise"
    )
    for line in explain_dispersion(quality["correlation"], dispersion, electrons_per_count):
        print(line)
    print(f"{'' if quality['verdict'] == 'good' else 'WARNING: '}{quality['sentence']}")


def fit_with_progress(scene: Scene, view: BeadView) -> BeadFit:
    """The fit of a view, with a bar that counts its steps."""
    with tqdm(unit="step", desc="fit") as bar:

        def progress(deviance: float) -> None:
            bar.set_postfix_str(f"deviance {deviance:.5g}")
            bar.update()

        return fit_bead(scene, view.electrons, progress, view.usable)


def write_results(
    config: Config, known: Known, view: BeadView, fit: BeadFit, quality: Quality, seconds: float
) -> None:
    """Write model, residual, picture and record, and print the report."""
    scene, residual = known.scene, view.electrons - fit.model
    deviations = residual / np.sqrt(np.maximum(fit.model + config.read_noise_e**2, 1e-9))
    deviations = np.where(view.usable, deviations, np.nan)
    height = fit.model.max() - fit["background"]
    residual_of_peak = float(residual[view.usable].std() / height)
    scale = (scene.microscope.pixel_size_um, (), abs(scene.z_step_um))
    for name, values in (("model", fit.model), ("residual", deviations)):
        write_imagej(config.out / f"{name}.tif", values.astype(np.float32), "ZYX", *scale)
    usable = np.where(view.usable, view.electrons, np.nan)
    is_good = quality.verdict == "good"
    title = config.stack.name
    draw_bead_fit(config.out / "fit.png", usable, fit, scene, title, quality.sentence, is_good)
    description = describe(config, known, view, fit, quality)
    extra = {"residual_rms_of_peak": residual_of_peak, "seconds": round(seconds, 2)}
    write_json(config.out / "fit.json", {**description, **extra, "run": run_record()})
    report(description, residual_of_peak, config.electrons_per_count)
    print(f"wrote {config.out} (look at {config.out / 'fit.png'})")


@holds_out_folder
def main(config: Config) -> None:
    """Read, find the bead, fit, judge, write."""
    keep_freed_memory()
    check_out_folder(config.out)
    stack = read_stack(config)
    known = find_numbers(config, stack)
    electrons = to_electrons(config, stack.counts)
    full = tuple((f - config.offset_counts) * config.electrons_per_count for f in FULL_SCALES)
    view = find_bead(known.scene, electrons, config.size, full)
    print_notes(view.notes)
    warn_if_scalar_is_off(known.scene.light, Optics.of(known.scene.microscope))
    started = time.perf_counter()
    fit = fit_with_progress(known.scene, view)
    seconds = time.perf_counter() - started
    quality = judge_fit(known.scene, view.electrons, view.usable, fit)
    write_results(config, known, view, fit, quality, seconds)


if __name__ == "__main__":
    run(Config, main, __doc__)
