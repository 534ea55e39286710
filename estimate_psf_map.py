"""Map the PSF parameters over one image: IMAGE + checkpoint -> DIR/.

    python estimate_psf_map.py image.tif --checkpoint zernike1d --na 0.45 --wavelength-um 0.5 \
        --pixel-size-um 0.278 --refractive-index 1.33 --out maps/image

Optics that the file tells (OME-TIFF, ImageJ) need no flag. Writes psf_map.tif (float32, one pixel
per patch: values, standard deviations, content, photons per pixel; NaN without content),
psf_map_full.tif (values and standard deviations at every pixel), depth.tif (um, from a
--depth-calibration or from the optics), map.csv, config.json and, for people, overview.png. The
maps are smoothed as much as cross-validation advises (--smooth off leaves them alone); map.csv
keeps the single patches. With --truth, a TIFF of the image's size that holds the true first
parameter, the overview shows the truth beside it. The same command takes up an interrupted map of
a large image where it stopped.
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tifffile
import torch

from common.command import keep_freed_memory, pick_device, run
from common.files import run_record, whole_file, write_imagej, write_json
from common.overviews import draw_map
from micrographs.micrograph import open_micrograph
from models.checkpoint import Estimator, load_estimator
from models.depth import DepthCalibration, depth_from_optics, is_signed
from models.map_files import map_table, write_full_resolution
from models.map_image import (
    MapSettings,
    check_settings,
    choose_sampling,
    describe_light,
    forget_unfinished,
    known_optics,
    look_at_camera,
    photons_of,
    predict,
    report,
    settings_of,
    shrink,
    smooth_parameters,
)
from models.mapping import PsfMap
from psf.errors import InputError
from psf.microscope import Microscope


@dataclass(frozen=True, kw_only=True)
class Config(MapSettings):
    """Settings of a map."""

    checkpoint: Path  # name of shipped weights, e.g. zernike1d, or a folder of train.py
    depth_calibration: Path | None = None  # depth_calibration.json of calibrate_depth.py
    full_resolution: bool = True  # write psf_map_full.tif and depth.tif
    truth: Path | None = None  # TIFF with the true first parameter at each pixel, to compare


class Depth(NamedTuple):
    """Depth on the map's grid, um."""

    values: np.ndarray  # (R, C)
    standard_deviations: np.ndarray  # (R, C)
    name: str


def find_depth(
    calibration: DepthCalibration | None, estimator: Estimator, psf_map: PsfMap, optics: Microscope
) -> Depth | None:
    """Depth from the calibration, else from the optics; None where neither gives one."""
    values, deviations = psf_map.values[0].numpy(), psf_map.standard_deviations[0].numpy()
    if calibration is not None:
        name = "depth (um)" if calibration.signed else "distance from focus (um)"
        depth = calibration.depth_um(values)
        return Depth(depth, calibration.deviation_um(values, deviations), name)
    if psf_map.unit != "waves" or psf_map.names[0] != "focus":
        return None
    signed = is_signed(estimator.psf_model, "focus")
    name = "depth (um)" if signed else "distance from focus (um)"
    depth = depth_from_optics(values, optics.um_per_wave, signed)
    return Depth(depth, deviations * optics.um_per_wave, name)


def read_truth(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """True first parameter (H, W)."""
    try:
        truth = tifffile.imread(path)
    except (OSError, tifffile.TiffFileError) as error:
        raise InputError(f"{path} cannot be read as a TIFF: {error}") from error
    if truth.shape != tuple(shape):
        raise InputError(f"{path} has shape {truth.shape}, the image {tuple(shape)}.")
    return truth.astype(np.float32)


def at_centres(truth: np.ndarray, psf_map: PsfMap) -> torch.Tensor:
    """Values of (H, W) at the centres of the patches, (R, C)."""
    rows, columns = psf_map.rows.round().long(), psf_map.columns.round().long()
    return torch.from_numpy(truth)[rows[:, None], columns]


def write_maps(
    config: Config,
    raw: PsfMap,
    final: PsfMap,
    photons: np.ndarray,
    depth: Depth | None,
    shape: tuple[int, int],
    pixel_um: float,
) -> None:
    """All TIFFs and the table."""
    blank = ~raw.has_content.numpy()
    channels = [channel.numpy() for channel in (*final.values, *final.standard_deviations)]
    names = [f"{name} ({final.unit})" for name in final.names]
    names += [f"{name} standard deviation ({final.unit})" for name in final.names]
    masked = [np.where(blank, np.nan, channel) for channel in channels]
    step_px = float(raw.rows[1] - raw.rows[0]) if len(raw.rows) > 1 else config.stride
    write_imagej(
        config.out / "psf_map.tif",
        np.stack([*masked, raw.content.numpy(), photons]).astype(np.float32),
        "CYX",
        step_px * pixel_um,
        [*names, "content probability", "photons per pixel"],
    )
    more = [("photons_per_pixel", photons)]
    if config.smooth != "off":
        values = zip(final.names, final.values.numpy(), strict=True)
        more += [(f"{name}_smooth_{final.unit}", channel) for name, channel in values]
    if depth is not None:
        more += [("depth_um", depth.values)]
        more += [("depth_standard_deviation_um", depth.standard_deviations)]
    with whole_file(config.out / "map.csv") as partial:
        map_table(raw, pixel_um, more).to_csv(partial, index=False, float_format="%.5g")
    if not config.full_resolution:
        return
    # a smooth map knows about its blank patches from their neighbours
    is_filled = config.smooth != "off"
    full = channels if is_filled else masked
    write_full_resolution(config.out / "psf_map_full.tif", full, names, raw, shape, pixel_um)
    if depth is not None:
        maps = [d if is_filled else np.where(blank, np.nan, d) for d in depth[:2]]
        named = [depth.name, f"standard deviation of {depth.name}"]
        write_full_resolution(config.out / "depth.tif", maps, named, raw, shape, pixel_um)


def main(config: Config) -> None:
    """Read, predict, smooth, write."""
    keep_freed_memory()
    check_settings(config)
    estimator = load_estimator(config.checkpoint, pick_device(config.device))
    calibration = None
    if config.depth_calibration is not None:
        calibration = DepthCalibration.from_json(config.depth_calibration)
    with open_micrograph(config.image, config.channel, config.z, config.t) as micrograph:
        for note in micrograph.notes:
            print(f"note: {note}")
        known = known_optics(config, micrograph, estimator.psf_model)
        microscope = known.microscope
        if calibration is not None:
            calibration.check(
                microscope, estimator.config["label_names"][0], config.checkpoint.resolve().name
            )
        sampling = choose_sampling(config, config.checkpoint, estimator, microscope)
        shape = micrograph.shape
        truth = read_truth(config.truth, shape) if config.truth else None
        camera = look_at_camera(config, micrograph)
        started = time.perf_counter()
        raw, stride = predict(config, estimator, micrograph, sampling, microscope)
        seconds = time.perf_counter() - started
        shown = shrink(micrograph)
    if not raw.has_content.any():
        forget_unfinished(config.out)
        raise InputError(
            "no patch of the image holds anything to estimate from; it is blank, far too dark, or "
            "blurred beyond the range of the network."
        )
    final, smooth = smooth_parameters(raw, max(1.0, estimator.patch_size / stride), config.smooth)
    photons = photons_of(raw, camera)
    light = describe_light(camera, photons[raw.has_content.numpy()])
    depth = find_depth(calibration, estimator, final, microscope)
    write_maps(config, raw, final, photons, depth, shape, microscope.pixel_size_um)
    optics = (
        f"NA {microscope.na:g}, {microscope.wavelength_um:g} µm, "
        f"{microscope.pixel_size_um:.4g} µm per pixel, n {microscope.refractive_index:g}"
    )
    if estimator.psf_model.is_gaussian:
        optics = f"{microscope.pixel_size_um:.4g} µm per pixel"
    draw_map(
        config.out / "overview.png",
        shown,
        final,
        microscope.pixel_size_um,
        f"{config.image.name}: {optics}; {light}",
        None if truth is None else at_centres(truth, raw),
        depth and (depth.values, depth.name),
        shape[1] / shown.shape[1],
    )
    facts = {
        "optics": asdict(microscope),
        "optics_from": dict(known.sources),
        "sampling": asdict(sampling),
        "camera": asdict(camera),
        "smoothing_strength": [one.strength for one in smooth],
        "psf_model": estimator.config["psf_model"],
        "label_names": list(final.names),
        "label_unit": final.unit,
        "image_shape": list(shape),
        "map_shape": list(raw.content.shape),
        "patch_size_px": estimator.patch_size * sampling.factor,
    }
    run_facts = run_record(seconds=round(seconds, 2))
    write_json(config.out / "config.json", {**settings_of(config), **facts, **run_facts})
    forget_unfinished(config.out)
    rows, columns = raw.content.shape
    print(f"{rows} x {columns} patches in {seconds:.1f} s; {light}")
    report(final, smooth)
    print(f"wrote {config.out} (look at {config.out / 'overview.png'})")
    restored = f"restored/{config.out.name}"
    print(f"next: python deconvolve.py {config.image} --map {config.out} --out {restored}")


if __name__ == "__main__":
    run(Config, main, __doc__)
