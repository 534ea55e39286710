"""The files of a series of maps: one table, one TIFF with all axes, the drift, and the record."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tifffile

from common.drift_figure import draw_drift
from common.files import whole_file, write_csv
from common.output import write_record
from common.stacks import write_stack
from models.depth import depth_of_map
from models.kept_maps import KeptMaps, Place
from models.map_image import ImageMap
from models.map_result import (
    RECORD,
    MapResult,
    MapResultOptions,
    at_centres,
    draw_overview,
    grid_step_um,
    map_layers,
    photons_of,
    read_calibration,
    record,
    result_table,
    shown_plane,
)
from models.map_series import Channels
from models.recording import Recording
from models.series_drift import DriftCurves, SeriesAxes, drift_curves
from models.series_table import blank_map, channel_facts, facts_of, plane_row, series_axes
from psf.errors import InputError

MADE_SERIES = ("planes.csv", "drift.png")  # beside the files of one map
NAMED = 3  # planes without a map that a note names; a night may have hundreds
FORMAT = "%.6g"  # of the tables: times of a week in seconds have six digits


@dataclass(frozen=True)
class SeriesResult:
    """What the user should read of a series."""

    planes: pd.DataFrame  # rows of planes.csv
    axes: SeriesAxes
    drift: DriftCurves | None  # None: one plane per channel
    map_shape: tuple[int, int]  # rows and columns of patches
    seconds: float  # that the maps took


def check_truth(path: Path | None, channels: Channels) -> None:
    """Refuse a --truth that does not hold every plane, before the work starts."""
    if path is None:
        return
    try:
        with tifffile.TiffFile(path) as tiff:
            found = tiff.series[0].shape
    except (OSError, tifffile.TiffFileError) as error:
        raise InputError(f"{path} cannot be read as a TIFF: {error}") from error
    count, (height, width) = len(channels.places), channels.any.micrograph.shape
    if found[-2:] != (height, width) or np.prod(found) != count * height * width:
        raise InputError(
            f"--truth {path} has shape {found}; give {count} planes of {height} x {width} px, one "
            "for each plane of the image."
        )


def read_truths(path: Path | None, channels: Channels) -> np.ndarray | None:
    """True first parameter (N, H, W) of all planes in the order T, Z, C; None without a file."""
    if path is None:
        return None
    shape = (len(channels.places), *channels.any.micrograph.shape)
    return tifffile.imread(path).reshape(shape).astype(np.float32)


def write_series(
    folder: Path, options: MapResultOptions, channels: Channels, kept: KeptMaps, seconds: float
) -> SeriesResult:
    """Write all files of a series to `folder`, the record last."""
    truths, axes = read_truths(options.truth, channels), series_axes(channels)
    blank = blank_map(channels, kept)
    rows, layers, notes = write_table(folder / "map.csv", options, channels, kept, truths)
    planes = pd.DataFrame(rows)
    write_csv(folder / "planes.csv", planes, FORMAT)
    write_layers(folder / "psf_map.tif", np.stack(layers), axes, blank, options.stride)
    drift = drift_curves(planes, axes)
    if drift is not None:
        labels = (drift.x_label, drift.y_label, options.image.name)
        draw_drift(folder / "drift.png", drift.curves, *labels)
    chosen = chosen_place(channels, kept, options)
    recording, result = one_result(chosen, channels, kept, options, truths, seconds)
    named = f"{options.image.name}, {named_place(chosen)}"
    # The maps of a series have a pixel per patch only.
    draw_overview(folder / "overview.png", named, recording, result)
    facts = record(options, recording, result)
    more = {"full_resolution": False, "planes": notes, "channels": channel_facts(channels)}
    write_record(folder / RECORD, facts | more)
    return SeriesResult(planes, axes, drift, tuple(blank.patches.content.shape), seconds)


def write_table(
    path: Path,
    options: MapResultOptions,
    channels: Channels,
    kept: KeptMaps,
    truths: np.ndarray | None,
) -> tuple[list[dict[str, Any]], list[np.ndarray], list[dict[str, Any]]]:
    """Write map.csv plane by plane; returns rows of planes.csv, layers and facts of the planes."""
    axes, blank = series_axes(channels), blank_map(channels, kept)
    calibrations = {
        name: read_calibration(options.depth_calibration, one)
        for name, one in channels.recordings.items()
    }
    rows, layers, facts = [], [], []

    def tables() -> Iterator[pd.DataFrame]:
        for number, place in enumerate(channels.places):
            recording = channels.recordings.get(place["channel"])
            one, calibration = kept.load(place, recording), calibrations.get(place["channel"])
            found = one.found or blank
            photons = np.full(found.patches.content.shape, np.nan, np.float32)
            if one.found:
                photons = photons_of(found.patches, recording.camera)
            depth = depth_of_map(found.smooth, calibration)
            truth = None if truths is None else at_centres(truths[number], found.patches)
            layers.append(map_layers(found, photons)[0])
            rows.append(axes.of(place) | plane_row(one, found, photons, depth, calibration, truth))
            facts.append(facts_of(one))
            table = result_table(found, photons, depth)
            yield pd.concat([pd.DataFrame(axes.of(place), table.index), table], axis=1)

    write_csv_parts(path, tables())
    return rows, layers, facts


def write_csv_parts(path: Path, tables: Iterator[pd.DataFrame]) -> None:
    """Write tables with the same columns as one, whole or not at all."""
    with whole_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        for number, table in enumerate(tables):
            table.to_csv(file, index=False, header=number == 0, float_format=FORMAT)


def write_layers(
    path: Path, layers: np.ndarray, axes: SeriesAxes, found: ImageMap, stride: int
) -> None:
    """Write psf_map.tif: the layers (N, L, R, C) of all planes as (T, Z, channels L, R, C)."""
    names = map_layers(found, np.zeros(found.patches.content.shape))[1]
    if len(axes.channels) > 1:
        names = [f"{title} {name}" for title in axes.channels.values() for name in names]
    write_stack(
        path,
        layers.reshape(axes.times, axes.depths, -1, *layers.shape[2:]),
        grid_step_um(found.patches, stride),
        z_step_um=axes.z_step_um,
        frame_interval_s=axes.frame_interval_s,
        channel_names=names,
    )


# --- the plane of the overview


def chosen_place(channels: Channels, kept: KeptMaps, options: MapResultOptions) -> Place:
    """The plane of overview.png: --channel, --z and --t, or else the nearest that has a map."""
    chosen = channels.any.micrograph
    sizes = chosen.sizes
    t, z = options.t or 0, sizes["Z"] // 2 if options.z is None else options.z
    channel = options.channel or 0
    mapped = [place for place in channels.places if not kept.note(place)]
    return min(
        mapped,
        key=lambda place: (
            abs((place["channel"] or 0) - channel),
            abs(place["t"] - t),
            abs(place["z"] - z),
        ),
    )


def one_result(
    place: Place,
    channels: Channels,
    kept: KeptMaps,
    options: MapResultOptions,
    truths: np.ndarray | None,
    seconds: float,
) -> tuple[Recording, MapResult]:
    """Recording and result of one plane of the series, as those of a single map."""
    recording = channels.recordings[place["channel"]]
    one = kept.load(place, recording)
    plane = recording.micrograph.select(**place)
    recording = replace(recording, micrograph=plane, planes=(plane,), outliers=one.outliers)
    patches = one.found.patches
    truth = None
    if truths is not None:
        truth = at_centres(truths[channels.places.index(place)], patches)
    calibration = read_calibration(options.depth_calibration, recording)
    result = MapResult(
        one.found,
        photons_of(patches, recording.camera),
        depth_of_map(one.found.smooth, calibration),
        truth,
        plane.shape,
        *shown_plane(recording),
        one.pixels_sha256,
        seconds,
    )
    return recording, result


def named_place(place: Place) -> str:
    """Channel, z and t in words."""
    known = {name: place[name] for name in ("channel", "z", "t") if place[name] is not None}
    return ", ".join(f"{name} {index}" for name, index in known.items())


def describe_series(result: SeriesResult) -> list[str]:
    """What was found, in lines for the user."""
    planes, (rows, columns) = result.planes, result.map_shape
    planes_of = "1 plane of" if len(planes) == 1 else f"{len(planes)} planes of"
    lines = [f"{planes_of} {rows} x {columns} patches in {result.seconds:.1f} s"]
    lines += [f"note: {said}" for said in filter(None, [describe_failures(planes)])]
    if result.drift is not None:
        for curve in result.drift.curves:
            lines.append(f"{curve.name}: {curve.sentence}" if curve.name else curve.sentence)
        lines += [f"note: {note}" for note in result.drift.notes]
    return lines


def describe_failures(planes: pd.DataFrame) -> str:
    """How many planes have no map, and why the first ones have none; empty if all have one."""
    failed = planes[planes["note"] != ""]
    if not len(failed):
        return ""
    named = failed.head(NAMED)[["channel", "z", "t", "note"]].to_dict("records")
    listed = "; ".join(f"{named_place(row)}: {row['note'].rstrip('.')}" for row in named)
    more = f"; and {len(failed) - NAMED} more" if len(failed) > NAMED else ""
    return f"{len(failed)} of {len(planes)} planes have no map ({listed}{more})"
