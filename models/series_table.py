"""Rows of the tables of a series of maps, and the scale and names of its axes."""

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from models.depth import DEPTH_LABELS, Depth, DepthCalibration, is_signed
from models.drift import plane_mean
from models.kept_maps import KeptMaps, PlaneMap
from models.map_image import ImageMap
from models.map_series import Channels
from models.series_drift import SeriesAxes
from psf.model import um_per_label


def series_axes(channels: Channels) -> SeriesAxes:
    """Sizes, scale and names of the axes of a series."""
    recording = channels.any
    micrograph, model = recording.micrograph, recording.estimator.psf_model
    known = micrograph.calibration
    z_step_um = recording.micrograph.facts.z_step_um or known.z_step_um
    label = next((name for name in DEPTH_LABELS if name in model.label_names), None)
    names = dict.fromkeys(place["channel"] for place in channels.places)
    titles = {
        name: known.channel_names[name]
        if name is not None and name < len(known.channel_names)
        else f"ch{name or 0}"
        for name in names
    }
    return SeriesAxes(
        micrograph.sizes["T"],
        micrograph.sizes["Z"],
        titles,
        known.frame_interval_s,
        z_step_um,
        "depth_um" if label else f"{model.label_names[0]}_{model.unit}",
        is_signed(model, label) if label else False,
        has_depth=label is not None,
    )


def blank_map(channels: Channels, kept: KeptMaps) -> ImageMap:
    """A map without values on the grid of the series, for planes that have none."""
    place = next(place for place in channels.places if not kept.note(place))
    found = kept.load(place, channels.recordings[place["channel"]]).found
    empty = ("values", "standard_deviations", "half_widths_95", "brightness")
    tensors = {n: torch.full_like(getattr(found.patches, n), torch.nan) for n in empty}
    patches = replace(found.patches, content=torch.zeros_like(found.patches.content), **tensors)
    return ImageMap(patches, patches, found.smoothing)


def plane_row(
    one: PlaneMap,
    found: ImageMap,
    photons: np.ndarray,
    depth: Depth | None,
    calibration: DepthCalibration | None,
    truth: torch.Tensor | None,
) -> dict[str, Any]:
    """Means over the patches with content, as columns of planes.csv."""
    patches = found.patches
    seen = patches.has_content
    step = float(patches.rows[1] - patches.rows[0]) if len(patches.rows) > 1 else None
    # The first patch begins at the border, so its centre tells the size.
    overlap = max(1.0, (2 * float(patches.rows[0]) + 1) / step) if step else 1.0
    row: dict[str, Any] = {}
    for p, name in enumerate(patches.names):
        deviations = patches.standard_deviations[p][seen].numpy()
        mean = plane_mean(patches.values[p][seen].numpy(), deviations, overlap)
        row[f"{name}_{patches.unit}"], row[f"{name}_standard_error_{patches.unit}"] = mean
        if name in DEPTH_LABELS and "depth_um" not in row and calibration is None:
            um = um_per_label(patches.model, patches.microscope)[name]
            value = mean.value if is_signed(patches.model, name) else abs(mean.value)
            row |= {"depth_um": um * value, "depth_standard_error_um": um * mean.error}
        if p == 0 and truth is not None:
            true = plane_mean(truth[seen].numpy(), deviations, overlap)
            row[f"true_{name}_{patches.unit}"] = true.value
            if um := um_per_label(patches.model, patches.microscope).get(name):
                row["true_depth_um"] = true.value * um
    if calibration is not None and depth is not None:
        good = seen.numpy() & np.isfinite(depth.values)
        mean = plane_mean(depth.values[good], depth.standard_deviations[good], overlap)
        row |= {"depth_um": mean.value, "depth_standard_error_um": mean.error}
    row["content_share"] = float(seen.float().mean())
    row["outlier_share"] = sum(one.outliers.values()) if one.outliers else np.nan
    light = photons[seen.numpy()]
    row["photons_per_pixel"] = float(np.median(light)) if light.size else np.nan
    row["note"] = one.note
    return row


def facts_of(one: PlaneMap) -> dict[str, Any]:
    """What config.json says of a plane."""
    strengths = [smooth.strength for smooth in one.found.smoothing] if one.found else []
    return {
        **one.place,
        "pixels_sha256": one.pixels_sha256,
        "outliers": one.outliers,
        "smoothing_strength": strengths,
        "note": one.note,
    }


def channel_facts(channels: Channels) -> list[dict[str, Any]]:
    """What config.json says of each channel."""
    return [
        {
            "channel": name,
            "optics": asdict(one.microscope),
            "optics_from": dict(one.optics.sources),
            "camera": asdict(one.camera),
        }
        for name, one in channels.recordings.items()
    ]
