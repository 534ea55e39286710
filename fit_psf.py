r"""Fit the microscope's PSF to a z-stack of one bead: focus, brightness and aberrations.

    python fit_psf.py bead.tif --na 0.85 --wavelength-um 0.52 --refractive-index 1.0 \
        --out fits/bead

Writes fit.png (data, model and residual in xy and xz), fit.json (the parameters with standard
errors), model.tif (electrons) and residual.tif (standard deviations of the noise). Pixel size and
z step that the file tells (ImageJ, OME) need no flag. Aberrations are orthonormal Zernike modes in
waves rms, by their Noll index: 5, 6 astigmatism, 7, 8 coma, 9, 10 trefoil, 11, 22 spherical.

The first plane of the file has the lowest z, nearest to the objective. Give a negative step if the
stage ran the other way: with the wrong sign the fit is as good, but focus, drift and the even
aberrations have the wrong sign.
"""

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from scipy.ndimage import gaussian_filter
from tqdm import tqdm

from common.command import keep_freed_memory, print_notes, run
from common.files import check_out_folder, run_record, write_imagej, write_json
from common.overviews import draw_bead_fit
from micrographs.metadata import OpticsFacts, flag_or_file, resolve_optics
from micrographs.micrograph import open_micrograph
from psf.bead import BeadFit, Scene, fit_bead
from psf.errors import InputError
from psf.gibson_lanni import Layers, layered_wavefront
from psf.light import warn_if_scalar_is_off
from psf.microscope import OPTICS_NAMES, Optics
from psf.model import psf_model
from psf.zernike import noll_to_nm

LARGEST_STEP_UM = 50.0  # um between planes; a larger number was given in nm
MUCH_MORE_THAN_NOISE = 1.5  # dispersion, above which the standard errors are too small
# Noll modes that are no aberrations to fit: other parameters stand for them.
NOT_ABERRATIONS = {1: "piston", 2: "the centre", 3: "the centre", 4: "the focus"}
FULL_SCALES = (255, 1023, 4095, 16383, 65535)  # of 8 to 16 bit cameras
SATURATED_PIXELS = 3  # at full scale: more than a lone hot pixel


@dataclass(frozen=True)
class Config:
    """Settings of a fit."""

    stack: tyro.conf.Positional[Path]  # TIFF z-stack of one bead
    na: float  # numerical aperture of the objective
    wavelength_um: float  # emission wavelength in vacuum, um
    refractive_index: float  # of the medium around the bead (air 1.0, water 1.33)
    out: Path  # folder to write
    pixel_size_um: float | None = None  # camera pixel / magnification, um; default: the file's
    z_step_um: float | None = None  # um between planes; negative: towards the objective
    modes_noll: tuple[int, ...] = (5, 6, 7, 8, 9, 10, 11, 22)  # aberrations to fit
    fit_na: bool = False  # fit the effective NA too
    light: Literal["scalar", "aplanatic", "vectorial"] = "vectorial"  # model of the light
    layers: Layers = field(default_factory=Layers)  # indices and thicknesses; default: all matched
    depth_um: float = 0.0  # of the bead below the coverslip
    bead_um: float = 0.0  # diameter of the bead; 0: a point
    offset_counts: float = 0.0  # camera counts without light
    electrons_per_count: float = 1.0  # camera gain; sets the standard errors
    read_noise_e: float = 0.0  # electrons rms
    size: int = 0  # px, edge of the square that is fitted; 0: as large as the planes
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
        If it cannot be read, is no stack, is a colour image or holds NaN.
    """
    with open_micrograph(config.stack, config.channel, 0, config.t) as micrograph:
        if micrograph.channel is None:
            raise InputError(
                f"{config.stack} is a colour image; choose one of its colours with --channel."
            )
        planes, notes = micrograph.focal_planes()
        print_notes(notes)
        counts = np.stack([plane.plane().numpy() for plane in planes])
        facts = micrograph.facts
    if not np.isfinite(counts).all():
        raise InputError(f"{config.stack} contains NaN or infinite values.")
    return Stack(counts, facts)


def build_scene(config: Config, stack: Stack) -> Scene:
    """Check the numbers of the command line and put them together."""
    for number in config.modes_noll:
        if number in NOT_ABERRATIONS:
            raise InputError(
                f"Noll mode {number} is {NOT_ABERRATIONS[number]}, which is always fitted; "
                "leave it out of --modes-noll."
            )
    if len(set(config.modes_noll)) < len(config.modes_noll):
        raise InputError(f"--modes-noll {config.modes_noll}: one of them is given twice.")
    optics = {name: getattr(config, name) for name in OPTICS_NAMES}
    known = resolve_optics(optics, stack.facts)
    notes = list(known.notes)
    step = flag_or_file("z_step_um", config.z_step_um, stack.facts, notes)
    if step is None:
        raise InputError("the file does not tell its z step; give --z-step-um.")
    print_notes(notes)
    z_step_um, microscope = step[0], known.microscope
    if not 0 < abs(z_step_um) < LARGEST_STEP_UM:
        raise InputError(f"--z-step-um is {z_step_um:g}; it is in um between two planes.")
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


def describe(config: Config, scene: Scene, fit: BeadFit, top: int, left: int) -> dict:
    """Content of fit.json."""
    middle = (fit.model.shape[-1] - 1) / 2
    origin = {"x_px": left + middle, "y_px": top + middle}
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
        "planes": len(fit.model),
        "modes_nm": [list(mode) for mode in scene.modes],
        "camera": {
            "offset_counts": config.offset_counts,
            "electrons_per_count": config.electrons_per_count,
            "read_noise_e": config.read_noise_e,
        },
        "parameters": parameters,
        "wavefront_rms_waves": fit.wavefront_rms_waves,
        "dispersion": fit.dispersion,
    }


def report(description: dict, residual_of_peak: float) -> None:
    """Print what was found."""
    for name, found in description["parameters"].items():
        print(f"  {name:18} {found['value']:12.5g} +- {found['standard_error']:.2g}")
    dispersion = description["dispersion"]
    print(f"wavefront {description['wavefront_rms_waves']:.3f} waves rms without defocus")
    print(
        f"residual {residual_of_peak:.2%} of the peak rms; {dispersion:.3g} times the variance of "
        "photon noise"
    )
    if dispersion > MUCH_MORE_THAN_NOISE:
        print(
            "The remaining error exceeds photon noise. If it is random, the standard errors are "
            f"{dispersion**0.5:.2g} times as large as printed. Check --electrons-per-count and "
            "--offset-counts, or fit more modes (--modes-noll)."
        )


def check_saturation(counts: np.ndarray) -> None:
    """Refuse a stack whose bead is cut off at the full scale of a camera."""
    highest = counts.max()
    at_top = int((counts == highest).sum())
    if float(highest) in FULL_SCALES and at_top >= SATURATED_PIXELS:
        raise InputError(
            f"{at_top} pixels are saturated (at {highest:g} counts): the shape of the peak is "
            "lost; record the bead with less light or exposure."
        )


def cut_out(counts: np.ndarray, size: int) -> tuple[np.ndarray, int, int]:
    """Square (Z, K, K) around the brightest spot, with its first row and column.

    Raises
    ------
    InputError
        If the images are smaller than K.
    """
    height, width = counts.shape[1:]
    if size > min(height, width):
        raise InputError(f"--size {size} does not fit planes of {height} x {width} px.")
    smooth = gaussian_filter(counts.astype(float), 1)
    _, row, column = np.unravel_index(smooth.argmax(), smooth.shape)
    top = int(np.clip(row - size // 2, 0, height - size))
    left = int(np.clip(column - size // 2, 0, width - size))
    return counts[:, top : top + size, left : left + size], top, left


def main(config: Config) -> None:
    """Read, fit, write."""
    keep_freed_memory()
    check_out_folder(config.out)
    stack = read_stack(config)
    scene = build_scene(config, stack)
    check_saturation(stack.counts)
    counts, top, left = cut_out(stack.counts, config.size or min(stack.counts.shape[1:]))
    electrons = (counts.astype(float) - config.offset_counts) * config.electrons_per_count
    warn_if_scalar_is_off(scene.light, Optics.of(scene.microscope))
    started = time.perf_counter()
    with tqdm(unit="step", desc="fit") as bar:

        def progress(deviance: float) -> None:
            bar.set_postfix_str(f"deviance {deviance:.5g}")
            bar.update()

        fit = fit_bead(scene, electrons, progress)
    seconds = time.perf_counter() - started
    residual = electrons - fit.model
    deviations = residual / np.sqrt(np.maximum(fit.model + config.read_noise_e**2, 1e-9))
    residual_of_peak = float(residual.std() / (fit.model.max() - fit["background"]))
    description = describe(config, scene, fit, top, left)
    scale = (scene.microscope.pixel_size_um, (), abs(scene.z_step_um))
    for name, values in (("model", fit.model), ("residual", deviations)):
        write_imagej(config.out / f"{name}.tif", values.astype(np.float32), "ZYX", *scale)
    draw_bead_fit(config.out / "fit.png", electrons, fit, scene, config.stack.name)
    extra = {"residual_rms_of_peak": residual_of_peak, "seconds": round(seconds, 2)}
    write_json(config.out / "fit.json", {**description, **extra, "run": run_record()})
    report(description, residual_of_peak)
    print(f"wrote {config.out} (look at {config.out / 'fit.png'})")


if __name__ == "__main__":
    run(Config, main, __doc__)
