"""The map of one plane in a folder that holds the maps of all planes of a file."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from psf.errors import InputError

AXES = ("channel", "z", "t")
OF_PLANE = ("pixels_sha256", "outliers", "smoothing_strength")  # in config.json, for each plane
OF_CHANNEL = ("optics", "optics_from", "camera")


class NoMapError(InputError):
    """The plane could not be mapped."""


def is_series(config: Mapping[str, Any]) -> bool:
    """Whether a config.json belongs to the maps of all planes of a file."""
    return "planes" in config


def facts_of_plane(
    folder: Path,
    config: Mapping[str, Any],
    place: Mapping[str, int | None],
    pixels_sha256: str = "",
) -> dict[str, Any]:
    """The config.json of a series, as it would be for the map of one of its planes.

    Parameters
    ----------
    folder : of the maps, for messages
    config : its config.json
    place : channel, z and t; those that are missing or None are those of the overview
    pixels_sha256 : of the image; a copy of one plane is found by its pixels, wherever it lies

    Raises
    ------
    NoMapError
        If the plane could not be mapped.
    InputError
        If the series has no such plane.
    """
    planes, shown = config["planes"], config["plane"]
    wanted = {name: shown[name] if place.get(name) is None else place[name] for name in AXES}
    named = ", ".join(f"{k} {v}" for k, v in wanted.items() if v is not None)
    same = [one for one in planes if pixels_sha256 and one["pixels_sha256"] == pixels_sha256]
    there = [one for one in planes if all(one[name] == wanted[name] for name in AXES)]
    found = next((one for one in there if one in same), None) or next(iter(same + there), None)
    if found is None:
        raise InputError(
            f"{folder} holds the maps of {len(planes)} planes; none is of {named}. Map this image "
            "with estimate_psf_map.py --all-planes."
        )
    if found["note"]:
        raise NoMapError(f"{folder} has no map of {named}: {found['note']}")
    channel = next(one for one in config["channels"] if one["channel"] == found["channel"])
    facts = {name: found[name] for name in OF_PLANE}
    facts |= {name: channel[name] for name in OF_CHANNEL}
    return {**config, **facts, "plane": {**shown, **{name: found[name] for name in AXES}}}


def rows_of_plane(path: Path, config: Mapping[str, Any]) -> pd.DataFrame:
    """Rows of map.csv for the plane of config.json; all rows if the map is of one plane."""
    if not is_series(config):
        return pd.read_csv(path)
    stat, plane = path.stat(), config["plane"]
    table = _whole_table(path, stat.st_mtime_ns, stat.st_size)
    return table.loc[(plane["t"], plane["z"], plane["channel"] or 0)].reset_index(drop=True)


@lru_cache(maxsize=1)  # deconvolve.py --all-planes reads plane after plane
def _whole_table(path: Path, changed: int, size: int) -> pd.DataFrame:
    """The table of a series by t, z and channel; `changed` and `size` tell files apart."""
    return pd.read_csv(path, index_col=["t", "z", "channel"]).sort_index()
