"""The map of a PSF as a file gives it, ready for `psf.restoration`."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from models.mapping import PsfMap
from psf.errors import InputError
from psf.files import read_json
from psf.microscope import Microscope
from psf.model import PsfModel, from_config
from psf.restoration import LabelMap


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


def read_map(folder: Path) -> tuple[LabelMap, dict[str, Any]]:
    """Map and config.json that estimate_psf_map.py wrote; smoothed values where it smoothed.

    Raises
    ------
    InputError
        If the folder holds no map, or its table is not the one of its configuration.
    """
    config = read_json(folder / "config.json", "map")
    if not {"psf_model", "optics", "label_names", "image_shape"} <= set(config):
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

    smoothed = f"{names[0]}_smooth_{unit}" in table.columns
    content = torch.from_numpy(table["content_probability"].to_numpy(np.float32, copy=True))
    found = LabelMap(
        model,
        Microscope(**config["optics"]),
        grid("_smooth" if smoothed else ""),
        grid("_standard_deviation"),
        content.reshape(len(rows), len(columns)),
        torch.from_numpy(rows).float(),
        torch.from_numpy(columns).float(),
    )
    return found, config


def for_image(label_map: LabelMap, config: Mapping[str, Any], shape: tuple[int, int]) -> LabelMap:
    """Check that a map belongs to an image (H, W).

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
    if not torch.isfinite(label_map.values).all():
        raise InputError("the map holds values that are no numbers; make it anew.")
    return replace(label_map, standard_deviations=label_map.standard_deviations.nan_to_num(0.0))
