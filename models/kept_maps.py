"""Maps of the finished planes of a series, kept in files until the run is complete."""

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.files import read_json, whole_file, write_json
from models.map_image import ImageMap
from models.mapping import PsfMap
from models.recording import Recording
from models.smoothing import SmoothMap
from psf.errors import InputError

KEPT = ".unfinished_planes"  # folder inside --out for the maps of a run that is not complete
ARRAYS = ("values", "standard_deviations", "content", "half_widths_95", "brightness")
ARRAYS += ("rows", "columns")  # of a PsfMap, as they are kept

Place = dict[str, int | None]  # channel, z and t of a plane


@dataclass(frozen=True)
class PlaneMap:
    """The map of one plane of a series, or why there is none."""

    place: Place
    found: ImageMap | None
    outliers: dict[str, float]  # shares of the pixels, by kind
    pixels_sha256: str  # see `pixels_hash`; empty if the plane cannot be read
    note: str  # why there is no map; empty if there is one


class KeptMaps:
    """Maps of finished planes in a folder, from which an interrupted run goes on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def of(cls, out: Path, key: Mapping[str, Any]) -> "KeptMaps":
        """The finished maps in --out of the series with this key; other ones are deleted."""
        folder, key = out / KEPT, json.loads(json.dumps(key))
        held = None
        with suppress(InputError):
            held = read_json(folder / "key.json", "unfinished series")
        if held != key:
            forget_planes(out)
            write_json(folder / "key.json", key)
        return cls(folder)

    def forget(self) -> None:
        """Delete all maps."""
        forget_planes(self.folder.parent)

    def path(self, place: Place) -> Path:
        """File of a plane."""
        return self.folder / ("_".join(f"{k}{v}" for k, v in place.items()) + ".npz")

    def holds(self, place: Place) -> bool:
        """Whether the plane is done, with a map or a note."""
        return self.path(place).is_file()

    def keep(self, one: PlaneMap) -> None:
        """Write the map of a plane, whole or not at all."""
        facts = {"outliers": one.outliers, "sha256": one.pixels_sha256, "note": one.note}
        arrays: dict[str, np.ndarray] = {}
        if one.found is not None:
            arrays = {name: getattr(one.found.patches, name).numpy() for name in ARRAYS}
            for k, smooth in enumerate(one.found.smoothing):
                names = ("values", "deviations", "numbers")
                numbers = np.array([smooth.strength, smooth.outliers])
                parts = (smooth.values, smooth.standard_deviations, numbers)
                arrays |= {f"smooth{k}_{n}": a for n, a in zip(names, parts, strict=True)}
        with whole_file(self.path(one.place)) as partial:
            np.savez(partial, facts=np.array(json.dumps(facts)), **arrays)

    def note(self, place: Place) -> str:
        """Why the plane has no map; empty if it has one."""
        with np.load(self.path(place)) as held:
            return json.loads(str(held["facts"]))["note"]

    def load(self, place: Place, recording: Recording | None) -> PlaneMap:
        """The map of a plane; `recording` is that of its channel, None if there is none."""
        with np.load(self.path(place)) as held:
            facts = json.loads(str(held["facts"]))
            found = None
            if "values" in held:
                found = _image_map(held, recording)
        return PlaneMap(place, found, facts["outliers"], facts["sha256"], facts["note"])


def _image_map(held: Any, recording: Recording) -> ImageMap:
    """The map of a plane from its kept arrays."""
    model = recording.estimator.psf_model
    tensors = {name: torch.from_numpy(held[name]) for name in ARRAYS}
    patches = PsfMap(model, recording.microscope, **tensors)
    smoothing = []
    for k in range(len(patches.names)):
        if f"smooth{k}_values" in held:
            parts = (held[f"smooth{k}_{name}"] for name in ("values", "deviations"))
            smoothing.append(SmoothMap(*parts, *map(float, held[f"smooth{k}_numbers"])))
    if not smoothing:
        return ImageMap(patches, patches, ())
    values, deviations = (
        torch.from_numpy(np.stack([getattr(one, name) for one in smoothing])).float()
        for name in ("values", "standard_deviations")
    )
    smooth = replace(patches, values=values, standard_deviations=deviations)
    return ImageMap(patches, smooth, tuple(smoothing))


def forget_planes(out: Path) -> None:
    """Delete the maps from which an interrupted run would have gone on."""
    shutil.rmtree(out / KEPT, ignore_errors=True)
