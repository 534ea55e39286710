"""Map the PSF parameters over one image: IMAGE + checkpoint -> DIR/.

    python estimate_psf_map.py image.tif --na 0.45 --wavelength-um 0.5 --pixel-size-um 0.278 \
        --refractive-index 1.33 --out maps/image

Optics that the file tells (OME-TIFF, ImageJ) need no flag. The folder DIR then holds

    overview.png       PSFs over the image, the maps with their standard deviations, depth, content
    psf_map.tif        a pixel per patch: values, standard deviations, content, photons per pixel
    psf_map_full.tif   values and standard deviations at every pixel of the image
    depth.tif          depth in um, from a --depth-calibration or else from the optics
    map.csv            every patch, before and after smoothing
    config.json        optics, camera and settings, which deconvolve.py reads

The files replace those of the last map in DIR. Cross-validation chooses how much the maps are
smoothed; --smooth off leaves them as they are. With --truth, a TIFF that holds the true first
parameter at every pixel, the overview shows the truth too. Given again, the same command goes on
with the interrupted map of a large image.
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch

from common.command import (
    keep_freed_memory,
    next_command,
    pick_device,
    print_notes,
    run,
    settings_of,
)
from common.files import run_record, write_csv, write_imagej
from common.output import new_result, write_record
from common.overviews import draw_map
from micrographs.camera import Camera
from micrographs.micrograph import Micrograph
from models.checkpoint import load_estimator
from models.depth import Depth, DepthCalibration, depth_of_map
from models.map_files import map_table, pixels_hash, write_full_resolution
from models.map_image import (
    MANY_OUTLIERS,
    ImageMap,
    cleaned_plane,
    describe_map,
    forget_unfinished,
    map_image,
)
from models.mapping import Image, PsfMap
from models.recording import (
    BAND_ROWS,
    MapOptions,
    Recording,
    check_map_options,
    check_negative,
    choose_checkpoint,
    open_recording,
    outside_training,
)
from psf.errors import InputError
from restoration.blur_map import AXIS_OF

MADE = ("overview.png", "psf_map.tif", "psf_map_full.tif", "depth.tif", "map.csv")
SHOWN_PX = 1200  # longest side of the image in the overview, which is 400 px wide there


@dataclass(frozen=True, kw_only=True)
class Config(MapOptions):
    """Settings of a map."""

    depth_calibration: Path | None = None  # depth_calibration.json of calibrate_depth.py
    full_resolution: bool = True  # write psf_map_full.tif and depth.tif
    truth: Path | None = None  # TIFF with the true first parameter at each pixel, to compare


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


def shrink(micrograph: Image) -> torch.Tensor:
    """The whole field on at most SHOWN_PX pixels a side, each the mean of a square."""
    step = -(-max(micrograph.shape) // SHOWN_PX)
    height, rows = micrograph.shape[0], step * max(1, BAND_ROWS // step)
    bands = (micrograph.rows(y, min(y + rows, height)) for y in range(0, height - step + 1, rows))
    return torch.cat([torch.nn.functional.avg_pool2d(band[None], step)[0] for band in bands])


def photons_of(psf_map: PsfMap, camera: Camera) -> np.ndarray:
    """Mean photons per pixel of each patch (R, C); NaN where the gain is unknown."""
    if camera.gain_counts_per_e is None:
        return np.full(psf_map.brightness.shape, np.nan, np.float32)
    signal = (psf_map.brightness.numpy() - camera.offset_counts).clip(0)
    return (signal / camera.gain_counts_per_e).astype(np.float32)


def describe_light(photons: np.ndarray, camera: Camera) -> str:
    """The light of the patches with content, in words."""
    median = float(np.median(photons))
    if np.isnan(median):
        return "photons per pixel unknown (--gain-counts-per-e)"
    number = f"{median:,.0f}" if median >= 100 else f"{median:.2g}"
    assumed = " (gain assumed)" if camera.gain_source == "assumed" else ""
    return f"{number} photons per pixel{assumed}"


def warnings_of(found: ImageMap, recording: Recording) -> list[str]:
    """What a person must know who looks at the map."""
    outliers = max((one.outliers for one in found.smoothing), default=0.0)
    said = []
    if outliers > MANY_OUTLIERS:
        said.append(f"the smooth map does not describe {outliers:.0%} of the patches")
    if not recording.camera.white_noise:
        said.append("the image was processed, or simulated without noise")
    optics = (recording.estimator, recording.microscope, recording.resampling)
    if outside := outside_training(*optics):
        said.append(f"the network was trained for other optics: {'; '.join(outside)}")
    return said


def write_maps(
    folder: Path,
    config: Config,
    found: ImageMap,
    photons: np.ndarray,
    depth: Depth | None,
    shape: tuple[int, int],
) -> None:
    """Write all TIFFs and the table to `folder`."""
    patches, smooth, pixel_um = found.patches, found.smooth, found.patches.microscope.pixel_size_um
    blank = ~patches.has_content.numpy()
    channels = [channel.numpy() for channel in (*smooth.values, *smooth.standard_deviations)]
    names = [f"{name} ({smooth.unit})" for name in smooth.names]
    names += [f"{name} standard deviation ({smooth.unit})" for name in smooth.names]
    masked = [np.where(blank, np.nan, channel) for channel in channels]
    step_px = float(patches.rows[1] - patches.rows[0]) if len(patches.rows) > 1 else config.stride
    write_imagej(
        folder / "psf_map.tif",
        np.stack([*masked, patches.content.numpy(), photons]).astype(np.float32),
        "CYX",
        step_px * pixel_um,
        [*names, "content probability", "photons per pixel"],
    )
    more = [("photons_per_pixel", photons)]
    if found.smoothing:
        values = zip(smooth.names, smooth.values.numpy(), strict=True)
        more += [(f"{name}_smooth_{smooth.unit}", channel) for name, channel in values]
    if depth is not None:
        more += [("depth_um", depth.values)]
        more += [("depth_standard_deviation_um", depth.standard_deviations)]
    write_csv(folder / "map.csv", map_table(patches, pixel_um, more), "%.5g")
    if not config.full_resolution:
        return
    # A smooth map knows its blank patches from their neighbours.
    full = channels if found.smoothing else masked
    write_full_resolution(folder / "psf_map_full.tif", full, names, patches, shape, pixel_um)
    if depth is not None:
        maps = [d if found.smoothing else np.where(blank, np.nan, d) for d in depth[:2]]
        named = [depth.name, f"standard deviation of {depth.name}"]
        write_full_resolution(folder / "depth.tif", maps, named, patches, shape, pixel_um)


def describe_optics(psf_map: PsfMap) -> str:
    """The optics on which the map depends, in words."""
    microscope = psf_map.microscope
    pixel = f"{microscope.pixel_size_um:.4g} µm per pixel"
    if psf_map.model.is_gaussian:
        return pixel
    return (
        f"NA {microscope.na:g}, {microscope.wavelength_um:g} µm, {pixel}, "
        f"n {microscope.refractive_index:g}"
    )


def record(
    config: Config, recording: Recording, found: ImageMap, pixels: str, seconds: float
) -> dict[str, Any]:
    """Content of config.json, which deconvolve.py reads."""
    patches = found.patches
    return {
        **settings_of(config),
        "optics": asdict(recording.microscope),
        "optics_from": dict(recording.optics.sources),
        "sampling": asdict(recording.resampling),
        "camera": asdict(recording.camera),
        "outliers": recording.outliers,
        "plane": {
            name: getattr(recording.micrograph, name) for name in ("series", "channel", "z", "t")
        },
        "smoothing_strength": [one.strength for one in found.smoothing],
        "psf_model": recording.estimator.config["psf_model"],
        "label_names": list(patches.names),
        "label_unit": patches.unit,
        "image_shape": list(recording.micrograph.shape),
        "pixels_sha256": pixels,
        "map_shape": list(patches.content.shape),
        "patch_size_px": recording.patch_px,
        **run_record(seconds=round(seconds, 2)),
    }


def next_step(config: Config, micrograph: Micrograph) -> str:
    """Command that restores the plane of the map."""
    plane = [
        (f"--{name}", getattr(micrograph, name))
        for name, axis in AXIS_OF.items()
        if micrograph.sizes[axis] > 1
    ]
    # Without the flag the largest image of the file is taken, here and there.
    plane = [("--series", config.series), *plane]
    device = None if config.device == "auto" else config.device
    return next_command(
        "deconvolve.py",
        config.image,
        *plane,
        ("--map", config.out),
        ("--device", device),
        ("--out", Path("restored") / config.out.name),
    )


def make_map(config: Config, folder: Path) -> list[str]:
    """Map the image and write all files to `folder`; returns what the user should read."""
    estimator = load_estimator(config.checkpoint, pick_device(config.device))
    calibration = None
    if config.depth_calibration is not None:
        calibration = DepthCalibration.from_json(config.depth_calibration)
    with open_recording(config.image, config, estimator, config.z) as recording:
        print_notes(recording.notes)
        if calibration is not None:
            names = estimator.psf_model.label_names
            parameter = calibration.parameter if calibration.parameter in names else names[0]
            calibration.check_matches(recording.microscope, parameter, estimator.name)
        shape = recording.micrograph.shape
        truth = read_truth(config.truth, shape) if config.truth else None
        check_negative(recording.micrograph, config.offset_counts)
        pixels = pixels_hash(recording.micrograph)
        started = time.perf_counter()
        found = map_image(recording, config.smooth, config.out)
        seconds = time.perf_counter() - started
        shown, left_out = shrink(recording.micrograph), None
        if any(recording.outliers.values()):
            left_out = (shrink(cleaned_plane(recording, recording.micrograph).usable) < 0.5).numpy()
        following = next_step(config, recording.micrograph)
    photons = photons_of(found.patches, recording.camera)
    light = describe_light(photons[found.patches.has_content.numpy()], recording.camera)
    depth = depth_of_map(found.smooth, calibration)
    write_maps(folder, config, found, photons, depth, shape)
    draw_map(
        folder / "overview.png",
        shown,
        found.smooth,
        f"{config.image.name}: {describe_optics(found.patches)}; {light}",
        None if truth is None else at_centres(truth, found.patches),
        depth and (depth.values, depth.name),
        shape[1] / shown.shape[1],
        left_out,
        "; ".join(warnings_of(found, recording)),
    )
    write_record(folder / "config.json", record(config, recording, found, pixels, seconds))
    rows, columns = found.patches.content.shape
    return [
        f"{rows} x {columns} patches in {seconds:.1f} s; {light}",
        *describe_map(found),
        f"wrote {config.out} (look at {config.out / 'overview.png'})",
        following,
    ]


def main(config: Config) -> None:
    """Read, predict, smooth, write."""
    keep_freed_memory()
    check_map_options(config)
    config = choose_checkpoint(config)
    with new_result(config.out, "config.json", MADE) as folder:
        lines = make_map(config, folder)
        forget_unfinished(config.out)
    print("\n".join(lines))


if __name__ == "__main__":
    run(Config, main, __doc__)
