"""Restore an image that is blurred differently everywhere: IMAGE + map of its PSF -> DIR/.

    python deconvolve.py image.tif --map maps/image --out restored/image
    python deconvolve.py image.tif --checkpoint focus --na 0.45 --wavelength-um 0.5 \
        --pixel-size-um 0.278 --refractive-index 1.33 --out restored/image

The map is that of estimate_psf_map.py, or the network --checkpoint (default focus)
estimates it first. The folder DIR then holds

    side_by_side.png    the image and its restoration, with enlarged details
    restored.tif        float32 counts above the camera's offset; an OME-TIFF if the image is one,
                        else for ImageJ, with the scale and the channel names of the image
    restoration.json    optics, camera, settings and what was chosen

The method is Richardson-Lucy under the PSF of every place. Its prior is what a network learned of
microscope objects, or total variation where that predicts held-out photons better (--prior). First
the map is corrected, place by place, to predict held-out photons best (--refine). PSFs are shrunk
where they do not fit the image, and places without content are only denoised (--no-cautious trusts
the map). With --all-planes, all channels, planes and time points of a file are restored: each with
its own map if --map holds the maps of all planes, else with the map of the chosen plane. A map of
another image is refused without --other-image. The files replace those of the last restoration in
DIR. With --dask the workers of a Dask cluster estimate the map and restore the tiles of a large
image.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.command import keep_freed_memory, print_notes, run
from common.output import new_result
from micrographs.camera import Camera
from micrographs.metadata import AUTO_NA, flag_of
from micrographs.micrograph import Micrograph, open_micrograph
from models.camera_of_image import look_at_camera
from models.checkpoint import ADVISED, load_estimator
from models.map_files import pixels_hash
from models.map_image import describe_map, forget_unfinished, map_image
from models.mapping import PsfMap
from models.recording import (
    Recording,
    check_map_options,
    check_negative,
    cluster_of,
    device_of,
    file_cutoff,
    open_recording,
)
from psf.errors import InputError
from psf.microscope import OPTICS_NAMES
from restoration.blur_map import PLACE, check_belongs, choose_plane, continue_to_borders, read_map
from restoration.outcome import (
    MADE,
    RECORD,
    Outcome,
    RestorationOptions,
    check_bits,
    check_restoration_options,
    place_of,
    report,
    restore_plane,
    shown_outcome,
    unchanged_plane,
    write_outcomes,
)
from restoration.series_maps import NoMapError, is_series


@dataclass(frozen=True, kw_only=True)
class Config(RestorationOptions):
    """Settings of a restoration."""

    map: Path | None = None  # folder of estimate_psf_map.py; default: the map is estimated here
    checkpoint: Path | None = None  # network that estimates the map; default focus
    other_image: bool = False  # use the --map of another image of the same size


def check_planes(config: Config, micrograph: Micrograph, offset_counts: float | None) -> None:
    """Refuse before the work what cannot be restored or written, in all planes."""
    check_bits(config, micrograph)
    for plane in planes(config, micrograph):
        check_negative(plane, offset_counts)


def map_and_camera(
    config: Config, micrograph: Micrograph, psf_map: PsfMap, facts: dict[str, Any]
) -> tuple[PsfMap, Camera, list[str]]:
    """The map in the folder --map, the camera that it found, and notes; flags come before both."""
    notes = [note for note in [check_belongs(facts, micrograph, config.other_image)] if note]
    given = {name: getattr(config, name) for name in OPTICS_NAMES}
    changed = {n: v for n, v in given.items() if v not in (None, AUTO_NA, facts["optics"][n])}
    if changed:
        named = ", ".join(map(flag_of, changed))
        notes.append(f"the optics of {config.map} are overruled by {named}")
        psf_map = replace(psf_map, microscope=replace(psf_map.microscope, **changed))
    flags = {name: getattr(config, name) for name in ("offset_counts", "gain_counts_per_e")}
    known = facts.get("camera") or {}
    if "white_noise" in known and set(flags.values()) == {None}:
        return psf_map, Camera(**known), notes
    # The map is older or the camera is given now: look again, with what was given for the map.
    given = {n: facts.get(n) if value is None else value for n, value in flags.items()}
    cutoff = file_cutoff(psf_map.microscope, psf_map.model)
    camera, _, found = look_at_camera(micrograph, **given, cutoff=cutoff)
    return psf_map, camera, [*notes, *found]


def estimate_map_and_camera(config: Config, recording: Recording) -> tuple[PsfMap, Camera]:
    """The map that a network makes of the image, continued to its borders, and the camera."""
    print_notes(recording.notes)
    found = map_image(recording, config.smooth, config.out, cluster_of(config))
    forget_unfinished(config.out)
    print("\n".join(describe_map(found)))
    psf_map = found.patches
    if found.smoothing:
        strengths = [one.strength for one in found.smoothing]
        shape = recording.micrograph.shape
        psf_map = continue_to_borders(psf_map, strengths, recording.patch_px, shape)
    return psf_map, recording.camera


@contextmanager
def open_with_map(config: Config) -> Iterator[tuple[Micrograph, PsfMap, Camera]]:
    """The opened image, its map, read from --map or estimated by --checkpoint, and its camera."""
    if config.map is not None:
        psf_map, facts = read_map(config.map)
        given = {name: getattr(config, name) for name in PLACE}
        place, note = choose_plane(config.image, given, facts)
        print_notes([note] if note and not config.all_planes else [])
        with open_micrograph(config.image, **place) as micrograph:
            print_notes(micrograph.notes)
            given = config.offset_counts
            check_planes(config, micrograph, facts.get("offset_counts") if given is None else given)
            if is_series(facts):
                psf_map, facts = read_map(config.map, place_of(micrograph), pixels_hash(micrograph))
            psf_map, camera, notes = map_and_camera(config, micrograph, psf_map, facts)
            print_notes(notes)
            yield micrograph, psf_map, camera
        return
    estimator = load_estimator(config.checkpoint or ADVISED, device_of(config))
    with open_recording(config.image, config, estimator, config.z) as recording:
        check_planes(config, recording.micrograph, config.offset_counts)
        yield recording.micrograph, *estimate_map_and_camera(config, recording)


def planes(config: Config, micrograph: Micrograph) -> Iterator[Micrograph]:
    """The chosen plane, or all of the file in the order T, Z, C."""
    if not config.all_planes:
        yield micrograph
        return
    for place in micrograph.places:
        yield micrograph.select(**place)


def restore_with_own_map(
    config: Config, plane: Micrograph, psf_map: PsfMap, camera: Camera
) -> Outcome:
    """Restore a plane with its own map if --map holds one, else with the map of the chosen plane.

    A plane that could not be mapped stays as it is.
    """
    if config.map is not None and config.all_planes:
        try:
            own, facts = read_map(config.map, place_of(plane))
        except NoMapError as error:
            return unchanged_plane(plane, camera, f"{str(error).rstrip('.')}; it stays as it is")
        if is_series(facts):
            psf_map, camera, _ = map_and_camera(config, plane, own, facts)
    return restore_plane(config, plane, psf_map, camera)


def check_config(config: Config) -> None:
    """Refuse options that make no sense, before the work starts."""
    check_map_options(config)
    if config.map is not None and config.checkpoint is not None:
        raise InputError("give --map or --checkpoint, not both.")
    check_restoration_options(config)


def restore(config: Config, folder: Path) -> list[str]:
    """Restore the image and write all files to `folder`; returns what the user should read."""
    started = time.perf_counter()
    with open_with_map(config) as (micrograph, psf_map, camera):
        chosen = list(planes(config, micrograph))
        outcomes = [
            restore_with_own_map(config, one, psf_map, camera)
            for one in tqdm(chosen, desc="restore", unit="plane", disable=len(chosen) == 1)
        ]
        seconds = round(time.perf_counter() - started, 2)
        write_outcomes(folder, config, outcomes, micrograph, psf_map, camera, seconds)
    return report(outcomes, shown_outcome(outcomes, micrograph), camera, seconds)


def main(config: Config) -> None:
    """Find the map, restore, write."""
    keep_freed_memory()
    check_config(config)
    with new_result(config.out, RECORD, MADE) as folder:
        lines = restore(config, folder)
    print("\n".join(lines))
    print(f"wrote {config.out} (look at {config.out / 'side_by_side.png'})")


if __name__ == "__main__":
    run(Config, main, __doc__)
