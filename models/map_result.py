"""The result of mapping one plane: all that a map folder holds, made from an opened image.

with open_recording(path, options, estimator, options.z) as recording:
    result = make_result(recording, options)
    write_result(folder, options, recording, result)
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import tifffile
import torch

from common.command import settings_of
from common.files import run_record, write_csv, write_imagej
from common.ome_zarr import write_ome_zarr
from common.output import write_record
from common.overviews import draw_map
from micrographs.camera import Camera
from models.depth import Depth, DepthCalibration, depth_of_map
from models.map_files import full_rows, map_table, pixels_hash, write_full_resolution
from models.map_image import MANY_OUTLIERS, ImageMap, cleaned_plane, describe_map, map_image
from models.mapping import Image, PsfMap
from models.recording import (
    BAND_ROWS,
    MapOptions,
    Recording,
    check_negative,
    cluster_of,
    outside_training,
)
from psf.errors import InputError

RECORD = "config.json"  # of a map folder; deconvolve.py reads it
ZARR_MAPS = ("psf_map.zarr", "psf_map_full.zarr", "depth.zarr")
MADE = ("overview.png", "psf_map.tif", "psf_map_full.tif", "depth.tif", "map.csv", *ZARR_MAPS)
SHOWN_PX = 1200  # longest side of the image in the overview, which is 400 px wide there


@dataclass(frozen=True, kw_only=True)
class MapResultOptions(MapOptions):
    """Options of a map and its files."""

    depth_calibration: Path | None = None  # depth_calibration.json of calibrate_depth.py
    full_resolution: bool = True  # write psf_map_full and depth, at every pixel of the image
    maps_as: Literal["tiff", "zarr"] = "tiff"  # zarr: OME-Zarr 0.4 with a pyramid
    truth: Path | None = None  # TIFF with the true first parameter at each pixel, to compare


@dataclass(frozen=True)
class MapResult:
    """A map of one plane with what its files show, R rows and C columns of patches."""

    found: ImageMap
    photons: np.ndarray  # (R, C) mean photons per pixel; NaN where the gain is unknown
    depth: Depth | None  # None: no parameter of the map gives depth
    truth: torch.Tensor | None  # (R, C) true first parameter
    shape: tuple[int, int]  # of the image, px
    shown: torch.Tensor  # the image on at most SHOWN_PX pixels a side
    left_out: np.ndarray | None  # of the same shape; pixels that are not usable. None: all are
    pixels_sha256: str  # of the image, see `pixels_hash`
    seconds: float  # that the map took


def make_result(
    recording: Recording, options: MapResultOptions, keep_in: Path | None = None
) -> MapResult:
    """Map the opened plane.

    `keep_in` is a folder for the finished rows of a large map, see `map_image`.

    Raises
    ------
    InputError
        As `map_image`, and if the image has negative pixels, or the calibration of the depth or
        the truth belongs to other optics, networks or images.
    """
    shape = recording.micrograph.shape
    calibration = read_calibration(options.depth_calibration, recording)
    truth = read_truth(options.truth, shape) if options.truth else None
    check_negative(recording.micrograph, options.offset_counts)
    pixels = pixels_hash(recording.micrograph)
    started = time.perf_counter()
    found = map_image(recording, options.smooth, keep_in, cluster_of(options))
    seconds = time.perf_counter() - started
    return MapResult(
        found,
        photons_of(found.patches, recording.camera),
        depth_of_map(found.smooth, calibration),
        None if truth is None else at_centres(truth, found.patches),
        shape,
        *shown_plane(recording),
        pixels,
        seconds,
    )


def shown_plane(recording: Recording) -> tuple[torch.Tensor, np.ndarray | None]:
    """The opened plane as the overview shows it, and its pixels that are not usable, if any."""
    shown, left_out = shrink(recording.micrograph), None
    if any(recording.outliers.values()):
        left_out = (shrink(cleaned_plane(recording, recording.micrograph).usable) < 0.5).numpy()
    return shown, left_out


def read_calibration(path: Path | None, recording: Recording) -> DepthCalibration | None:
    """Calibration of the depth; it must be of the optics and the network of the recording."""
    if path is None:
        return None
    calibration = DepthCalibration.from_json(path)
    names = recording.estimator.psf_model.label_names
    parameter = calibration.parameter if calibration.parameter in names else names[0]
    calibration.check_matches(recording.microscope, parameter, recording.estimator.name)
    return calibration


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


def write_result(
    folder: Path, options: MapResultOptions, recording: Recording, result: MapResult
) -> None:
    """Write all files of a map to `folder`, the record last."""
    write_maps(folder, options, result)
    draw_overview(folder / "overview.png", options.image.name, recording, result)
    write_record(folder / RECORD, record(options, recording, result))


def draw_overview(path: Path, name: str, recording: Recording, result: MapResult) -> None:
    """Draw the picture of a map, with the `name` of its image in the title."""
    found = result.found
    draw_map(
        path,
        result.shown,
        found.smooth,
        f"{name}: {describe_optics(found.patches)}; {light_of(result, recording)}",
        result.truth,
        result.depth and (result.depth.values, result.depth.name),
        result.shape[1] / result.shown.shape[1],
        result.left_out,
        "; ".join(warnings_of(found, recording)),
    )


def describe_result(result: MapResult, recording: Recording) -> list[str]:
    """What was found, in lines for the user."""
    rows, columns = result.found.patches.content.shape
    light = light_of(result, recording)
    return [
        f"{rows} x {columns} patches in {result.seconds:.1f} s; {light}",
        *describe_map(result.found),
    ]


def light_of(result: MapResult, recording: Recording) -> str:
    """The light of the patches with content, in words."""
    seen = result.photons[result.found.patches.has_content.numpy()]
    return describe_light(seen, recording.camera)


def write_maps(folder: Path, options: MapResultOptions, result: MapResult) -> None:
    """Write all maps and the table to `folder`."""
    found, depth, patches = result.found, result.depth, result.found.patches
    layers, names = map_layers(found, result.photons)
    write_grid(folder, options, layers, names, patches)
    write_csv(folder / "map.csv", result_table(found, result.photons, depth), "%.5g")
    if not options.full_resolution:
        return
    # A smooth map knows its blank patches from their neighbours.
    blank = ~patches.has_content.numpy()
    count = 2 * len(patches.names)
    channels = (*found.smooth.values.numpy(), *found.smooth.standard_deviations.numpy())
    full = [("psf_map_full", channels if found.smoothing else layers[:count], names[:count])]
    if depth is not None:
        maps = [d if found.smoothing else np.where(blank, np.nan, d) for d in depth[:2]]
        full.append(("depth", maps, [depth.name, f"standard deviation of {depth.name}"]))
    pixel_um = patches.microscope.pixel_size_um
    for name, maps, named in full:
        if options.maps_as == "zarr":
            size, rows = (len(maps), *result.shape), full_rows(maps, patches, result.shape[1])
            write_ome_zarr(folder / f"{name}.zarr", size, rows, named, pixel_um)
        else:
            path = folder / f"{name}.tif"
            write_full_resolution(path, maps, named, patches, result.shape, pixel_um)


def write_grid(
    folder: Path,
    options: MapResultOptions,
    layers: np.ndarray,
    names: Sequence[str],
    patches: PsfMap,
) -> None:
    """Write channels (N, R, C) with a pixel for each patch."""
    step_um, pixel_um = grid_step_um(patches, options.stride), patches.microscope.pixel_size_um
    if options.maps_as == "zarr":
        first_um = (float(patches.rows[0]) * pixel_um, float(patches.columns[0]) * pixel_um)
        path = folder / "psf_map.zarr"
        write_ome_zarr(path, layers.shape, lambda a, b: layers[:, a:b], names, step_um, first_um)
    else:
        write_imagej(folder / "psf_map.tif", layers, "CYX", step_um, names)


def map_layers(found: ImageMap, photons: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Channels of psf_map.tif, (N, R, C) float32, and their names; NaN in blank patches."""
    patches, smooth = found.patches, found.smooth
    values = np.concatenate([smooth.values.numpy(), smooth.standard_deviations.numpy()])
    masked = np.where(patches.has_content.numpy(), values, np.nan)
    names = [f"{name} ({smooth.unit})" for name in smooth.names]
    names += [f"{name} standard deviation ({smooth.unit})" for name in smooth.names]
    layers = np.stack([*masked, patches.content.numpy(), photons]).astype(np.float32)
    return layers, [*names, "content probability", "photons per pixel"]


def grid_step_um(patches: PsfMap, stride: int) -> float:
    """Distance of neighbouring patches in um; by the `stride` in px where there is one row."""
    rows = patches.rows
    step_px = float(rows[1] - rows[0]) if len(rows) > 1 else stride
    return step_px * patches.microscope.pixel_size_um


def result_table(found: ImageMap, photons: np.ndarray, depth: Depth | None) -> pd.DataFrame:
    """Table of map.csv: a row per patch, before and after smoothing."""
    more = [("photons_per_pixel", photons)]
    if found.smoothing:
        values = zip(found.smooth.names, found.smooth.values.numpy(), strict=True)
        more += [(f"{name}_smooth_{found.smooth.unit}", channel) for name, channel in values]
    if depth is not None:
        more += [("depth_um", depth.values)]
        more += [("depth_standard_deviation_um", depth.standard_deviations)]
    return map_table(found.patches, found.patches.microscope.pixel_size_um, more)


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


def record(options: MapResultOptions, recording: Recording, result: MapResult) -> dict[str, Any]:
    """Content of config.json, which deconvolve.py reads."""
    patches = result.found.patches
    return {
        **settings_of(options),
        "optics": asdict(recording.microscope),
        "optics_from": dict(recording.optics.sources),
        "sampling": asdict(recording.resampling),
        "camera": asdict(recording.camera),
        "outliers": recording.outliers,
        "plane": {
            name: getattr(recording.micrograph, name) for name in ("series", "channel", "z", "t")
        },
        "smoothing_strength": [one.strength for one in result.found.smoothing],
        "psf_model": recording.estimator.config["psf_model"],
        "label_names": list(patches.names),
        "label_unit": patches.unit,
        "image_shape": list(recording.micrograph.shape),
        "pixels_sha256": result.pixels_sha256,
        "map_shape": list(patches.content.shape),
        "patch_size_px": recording.patch_px,
        **run_record(seconds=round(result.seconds, 2)),
    }
