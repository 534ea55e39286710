"""Planes of real files, restored by every method; finished results are kept and not made again.

A file is read as `deconvolve.py` reads it, and the map is that of the network for this plane alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.restoration_methods import Estimate, Method, View, file_name
from common.files import read_json, whole_file, write_json
from micrographs.micrograph import open_micrograph
from micrographs.outliers import find_outliers
from models.estimator import Estimator
from models.map_image import map_image
from models.recording import MapOptions, file_cutoff, open_recording
from psf.errors import InputError
from psf.microscope import OPTICS_NAMES
from restoration.blur_map import continue_to_borders

Scored = tuple[dict[str, Any], np.ndarray]  # facts of a result, and its picture (H, W)


@dataclass(frozen=True, kw_only=True)
class PlaneOptions:
    """Options of the benchmarks that restore planes of a real file."""

    na: float  # numerical aperture of the objective
    wavelength_um: float  # wavelength in vacuum, um
    pixel_size_um: float  # camera pixel / magnification, um
    refractive_index: float  # of the medium around the object
    out: Path  # folder of the tables and the figure
    checkpoint: Path = Path("focus")  # network that estimates the maps
    channel: int | None = None  # of the file, from 0; default: the first
    offset_counts: float | None = None  # counts of the camera without light; default: estimated
    gain_counts_per_e: float | None = None  # counts per detected photon; default: estimated
    allow_other_optics: bool = False  # go on with optics that the network was not trained for
    device: str = "auto"  # of the network: auto, cpu, cuda, mps
    scratch: Path = Path("data/real_restoration")  # folder of finished results, to resume from

    def of_file(self, path: Path, plane: int = 0, **changed: Any) -> MapOptions:
        """Options with which a plane of the focal stack in a file is mapped."""
        names = (*OPTICS_NAMES, "checkpoint", "channel", "offset_counts", "gain_counts_per_e")
        names += ("allow_other_optics", "device")
        given = {name: getattr(self, name) for name in names} | changed
        with open_micrograph(path, given["channel"], z=0) as micrograph:
            chosen = micrograph.focal_planes()[0][plane]  # of some files the time points
        return MapOptions(image=path, out=self.out, z=chosen.z, t=chosen.t, **given)


def settings_for_key(options: MapOptions, **more: Any) -> dict[str, str]:
    """The options that decide a result, as plain values; the place of files is none of them."""
    given = vars(options) | more
    return {name: str(value) for name, value in given.items() if name not in ("image", "out")}


def open_view(options: MapOptions, estimator: Estimator) -> View:
    """Light, camera and map of one plane of a file.

    Raises
    ------
    InputError
        If the file cannot be read, or the network finds nothing in the plane.
    """
    with open_recording(options.image, options, estimator, options.z) as recording:
        try:
            found, camera = map_image(recording), recording.camera
        except InputError as error:
            raise InputError(
                f"plane z {options.z}, t {options.t}: {error} Leave it out with --planes."
            ) from error
        plane = recording.micrograph.plane()
        strengths = [one.strength for one in found.smoothing]
        psf_map = continue_to_borders(found.patches, strengths, recording.patch_px, plane.shape)
        cutoff = file_cutoff(recording.microscope, estimator.psf_model)
        usable = find_outliers(plane, recording.micrograph.full_scale, cutoff).usable
    light = (plane - camera.offset_counts).clamp(min=0)
    return View(light, camera.gain_counts_per_e or 1.0, usable, camera.white_noise, psf_map)


def kept_results(
    folder: Path,
    key: Mapping[str, Any],
    methods: Mapping[str, Method],
    network: str,
    view: Callable[[], View],
    score: Callable[[Estimate, str], Scored],
) -> dict[str, Scored]:
    """Results of every method for one plane; those in `folder` that are up to date are read.

    Parameters
    ----------
    key : what decides all results: image, optics, scores. Each method adds its own key.
    network : fingerprint of the network, for the methods that use its map
    view : makes the image and its map, if any method has to run
    score : facts and picture of an estimate, given the name of its method
    """
    found: dict[str, Scored] = {}
    seen: View | None = None
    for name, method in methods.items():
        own = {**key, **method.key, "network": network if method.uses_map else None}
        path = folder / f"{file_name(name)}.json"
        if path.exists():
            stored = read_json(path, "folder of finished results")
            if stored.get("key") == own:
                found[name] = stored["facts"], np.load(path.with_suffix(".npy"))
                continue
        seen = seen or view()  # the map takes seconds
        facts, picture = score(method(seen), name)
        with whole_file(path.with_suffix(".npy")) as partial, partial.open("wb") as file:
            np.save(file, picture)
        write_json(path, {"key": own, "facts": facts})
        found[name] = facts, picture
    return found


def chosen_planes(asked: Sequence[int] | None, default: Sequence[int], count: int) -> list[int]:
    """The planes to restore of a file with `count` planes.

    Raises
    ------
    InputError
        If the file has no such plane.
    """
    planes = list(default if asked is None else asked)
    if lost := [plane for plane in planes if not 0 <= plane < count]:
        raise InputError(
            f"--planes asks for {', '.join(map(str, lost))}; the file has planes 0 to {count - 1}."
        )
    return planes
