"""The map of a PSF from a network or a file, ready for `psf.restoration`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from models.mapping import PsfMap
from models.smoothing import smooth_map
from psf.errors import InputError
from psf.files import read_json
from psf.label_map import LabelMap
from psf.microscope import Microscope
from psf.model import PsfModel, from_config

NEEDED = {
    *("psf_model", "optics", "label_names", "label_unit", "image_shape"),
    *("smoothing_strength", "patch_size_px"),
}


def label_map_of(psf_map: PsfMap, model: PsfModel, microscope: Microscope) -> LabelMap:
    """Turn the map of a network into labels for the restoration.

    `microscope` has the pixels in which the map's centres are counted.
    """
    return LabelMap(
        model,
        microscope,
        psf_map.values.float(),
        psf_map.standard_deviations.float(),
        psf_map.content.float(),
        psf_map.rows.float(),
        psf_map.columns.float(),
    )


def continue_to_borders(
    raw: LabelMap, strengths: Sequence[float], patch_px: float, shape: tuple[int, int]
) -> LabelMap:
    """Smooth a map (P, R, C) of single patches and continue it to the borders of the image (H, W).

    Patches end half their size inside the borders, where the PSF goes on changing. The smoothing,
    which bends as little as the patches allow, is solved on a grid that reaches the borders, with
    nothing known of its outer places; standard deviations grow there accordingly.

    Parameters
    ----------
    strengths : of the smoothing, one for each of the P parameters
    patch_px : edge of a patch, pixels of the image
    """
    (rows, above, below), (columns, left, right) = (
        _continued(places, length)
        for places, length in zip((raw.rows, raw.columns), shape, strict=True)
    )
    margins = (above, below), (left, right)
    steps = [float(places.diff().min()) for places in (raw.rows, raw.columns) if len(places) > 1]
    overlap = max(1.0, patch_px / min(steps)) if steps else 1.0

    def padded(array: torch.Tensor, **how: Any) -> np.ndarray:
        return np.pad(array.numpy(), margins, **how)

    known = padded(raw.content >= 0.5, mode="constant")
    found = [
        smooth_map(padded(v, mode="edge"), padded(s, mode="edge"), known, overlap, strength)
        for v, s, strength in zip(raw.values, raw.standard_deviations, strengths, strict=True)
    ]
    values, deviations = (
        torch.from_numpy(np.stack([getattr(one, name) for one in found])).float()
        for name in ("values", "standard_deviations")
    )
    content = torch.from_numpy(padded(raw.content, mode="edge"))
    return LabelMap(raw.model, raw.microscope, values, deviations, content, rows, columns)


def _continued(places: torch.Tensor, length: int) -> tuple[torch.Tensor, int, int]:
    """Places (R,) continued at their distance to 0 and length - 1; how many came before, after."""
    if len(places) == 1:
        return places, 0, 0
    step = float(places[1] - places[0])
    before = max(0, math.ceil(float(places[0]) / step))
    after = max(0, math.ceil((length - 1 - float(places[-1])) / step))
    first = places[0] - step * torch.arange(before, 0, -1)
    last = places[-1] + step * torch.arange(1, after + 1)
    # the outermost ones lie beyond the border by less than a step
    return torch.cat([first, places, last]).clamp(0, length - 1), before, after


def read_map(folder: Path) -> tuple[LabelMap, dict[str, Any]]:
    """Map and config.json that estimate_psf_map.py wrote.

    Where it smoothed, the map is smooth and reaches the borders, see `continue_to_borders`.

    Raises
    ------
    InputError
        If the folder holds no map, or its table is not the one of its configuration.
    """
    config = read_json(folder / "config.json", "map")
    if not NEEDED <= set(config):
        raise InputError(f"{folder} is no map; make one with estimate_psf_map.py.")
    model, unit = from_config(config["psf_model"]), config["label_unit"]
    try:
        table = pd.read_csv(folder / "map.csv").sort_values(["y_px", "x_px"])
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / 'map.csv'} cannot be read: {error}") from error
    names = config["label_names"]
    wanted = [f"{name}{suffix}_{unit}" for name in names for suffix in ("", "_standard_deviation")]
    if missing := {*wanted, "content_probability", "y_px", "x_px"} - set(table.columns):
        raise InputError(f"{folder / 'map.csv'} has no column {', '.join(sorted(missing))}.")
    rows, columns = (np.unique(table[axis]) for axis in ("y_px", "x_px"))
    if len(rows) * len(columns) != len(table):
        raise InputError(f"{folder / 'map.csv'} is incomplete; make the map anew.")

    def grid(kind: str) -> torch.Tensor:
        plain = [f"{name}{kind}_{unit}" for name in names]
        chosen = [table[name].to_numpy() for name in plain]
        return torch.from_numpy(np.stack(chosen)).float().reshape(-1, len(rows), len(columns))

    content = torch.from_numpy(table["content_probability"].to_numpy(np.float32, copy=True))
    found = LabelMap(
        model,
        Microscope(**config["optics"]),
        grid(""),
        grid("_standard_deviation"),
        content.reshape(len(rows), len(columns)),
        torch.from_numpy(rows).float(),
        torch.from_numpy(columns).float(),
    )
    if not torch.isfinite(found.values).all():
        raise InputError("the map holds values that are no numbers; make it anew.")
    found = replace(found, standard_deviations=found.standard_deviations.nan_to_num(0.0))
    if strengths := config["smoothing_strength"]:
        shape = tuple(config["image_shape"])
        found = continue_to_borders(found, strengths, config["patch_size_px"], shape)
    return found, config


def check_belongs(config: Mapping[str, Any], shape: tuple[int, int]) -> None:
    """Refuse the map (its config.json) of an image of another extent than (H, W).

    Raises
    ------
    InputError
        If the map was made from an image of another extent.
    """
    if tuple(config["image_shape"]) != tuple(shape):
        height, width = config["image_shape"]
        raise InputError(
            f"the map is of an image of {height} x {width} px, this one has {shape[0]} x "
            f"{shape[1]} px; give the map of this image."
        )
