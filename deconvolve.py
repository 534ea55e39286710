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
the map). With --all-planes, all channels, planes and time points of a file are restored with the
map of the chosen plane. A map of another image is refused without --other-image. The files replace
those of the last restoration in DIR.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from common.command import keep_freed_memory, pick_device, print_notes, run, settings_of
from common.files import run_record
from common.output import new_result, write_record
from common.overviews import draw_restoration
from common.stacks import write_stack
from micrographs.camera import Camera, estimate_camera
from micrographs.metadata import AUTO_NA, flag_of
from micrographs.micrograph import Micrograph, open_micrograph
from micrographs.neighbours import large_regions
from micrographs.outliers import Outliers, find_outliers
from models.checkpoint import ADVISED, load_estimator
from models.map_image import describe_map, forget_unfinished, map_image
from models.mapping import PsfMap
from models.recording import (
    MapOptions,
    Recording,
    check_map_options,
    check_negative,
    file_cutoff,
    look_at_camera,
    open_recording,
)
from psf.errors import InputError
from psf.microscope import OPTICS_NAMES
from restoration.blur_map import PLACE, check_belongs, choose_plane, continue_to_borders, read_map
from restoration.iteration import Restored
from restoration.learned import load_prior
from restoration.richardson_lucy import check_restoration
from restoration.with_map import PriorName, prior_to_try, restore_with_map

MADE = ("side_by_side.png", "restored.tif")
WHITE_16 = 2**16 - 1
FEWEST_LEVELS = 64  # of an image that whole numbers can show


@dataclass(frozen=True, kw_only=True)
class Config(MapOptions):
    """Settings of a restoration."""

    map: Path | None = None  # folder of estimate_psf_map.py; default: the map is estimated here
    checkpoint: Path | None = None  # network that estimates the map; default focus
    iterations: Literal["auto"] | int = "auto"  # auto: until held-out photons are predicted best
    tv: Literal["auto"] | float = "auto"  # weight of total variation, 0 to 0.1; auto: by the light
    # What is assumed of objects: total variation, or what a network learned of microscope objects;
    # auto: what predicts held-out photons better, and tv if --iterations or --tv is given.
    prior: PriorName = "auto"
    prior_folder: Path | None = None  # of train_restoration.py; default: that of the project
    background_counts: float = 0.0  # out-of-focus light, above the camera's offset
    # Shrink PSFs that do not fit the image; where the map found no content, only denoise.
    cautious: bool = True
    # Correct the map by what predicts held-out photons; auto: for images up to 1024 x 1024 px.
    refine: Literal["auto", "yes", "no"] = "auto"
    other_image: bool = False  # use the --map of another image of the same size
    all_planes: bool = False  # every channel, plane and time point, with the map of the chosen one
    bits: Literal[16, 32] = 32  # of restored.tif; 16: whole counts


def check_planes(config: Config, micrograph: Micrograph, offset_counts: float | None) -> None:
    """Refuse before the work what cannot be restored or written, in all planes."""
    check_bits(config, micrograph)
    for plane in planes(config, micrograph):
        check_negative(plane, offset_counts)


def read_map_and_camera(
    config: Config, micrograph: Micrograph, psf_map: PsfMap, facts: dict[str, Any]
) -> tuple[PsfMap, Camera]:
    """The map in the folder --map and the camera that it found; flags come before both."""
    print_notes(filter(None, [check_belongs(facts, micrograph, config.other_image)]))
    given = {name: getattr(config, name) for name in OPTICS_NAMES}
    changed = {n: v for n, v in given.items() if v not in (None, AUTO_NA, facts["optics"][n])}
    if changed:
        print(
            f"note: the optics of {config.map} are overruled by {', '.join(map(flag_of, changed))}"
        )
        psf_map = replace(psf_map, microscope=replace(psf_map.microscope, **changed))
    flags = {name: getattr(config, name) for name in ("offset_counts", "gain_counts_per_e")}
    known = facts.get("camera") or {}
    if "white_noise" in known and set(flags.values()) == {None}:
        return psf_map, Camera(**known)
    # The map is older or the camera is given now: look again, with what was given for the map.
    given = {n: facts.get(n) if value is None else value for n, value in flags.items()}
    cutoff = file_cutoff(psf_map.microscope, psf_map.model)
    camera, _, notes = look_at_camera(micrograph, **given, cutoff=cutoff)
    print_notes(notes)
    return psf_map, camera


def estimate_map_and_camera(config: Config, recording: Recording) -> tuple[PsfMap, Camera]:
    """The map that a network makes of the image, continued to its borders, and the camera."""
    print_notes(recording.notes)
    found = map_image(recording, config.smooth, config.out)
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
            yield micrograph, *read_map_and_camera(config, micrograph, psf_map, facts)
        return
    estimator = load_estimator(config.checkpoint or ADVISED, pick_device(config.device))
    with open_recording(config.image, config, estimator, config.z) as recording:
        check_planes(config, recording.micrograph, config.offset_counts)
        yield recording.micrograph, *estimate_map_and_camera(config, recording)


def planes(config: Config, micrograph: Micrograph) -> Iterator[Micrograph]:
    """The chosen plane, or all of the file in the order T, Z, C."""
    if not config.all_planes or micrograph.plane_count == 1:
        yield micrograph
        return
    sizes = micrograph.sizes
    channels = [micrograph.channel] if micrograph.channel is None else range(sizes["C"])
    for t in range(sizes["T"]):
        for z in range(sizes["Z"]):
            for channel in channels:
                yield micrograph.select(channel=channel, z=z, t=t)


@dataclass(frozen=True)
class Outcome:
    """One restored plane, in counts above the camera's offset."""

    before: np.ndarray  # (H, W)
    after: np.ndarray  # (H, W)
    restored: Restored
    eigen_psfs: int
    plane: dict[str, int | None]  # channel, z and t
    outliers: Outliers
    camera: Camera

    @property
    def note(self) -> str:
        """What the user should know of this plane."""
        fit = self.restored.fit
        found = [self.restored.note] if self.restored.note else []
        camera = self.camera
        found += fit.sentences(camera.gain_counts_per_e or 1.0, camera.white_noise) if fit else []
        return f"{self.name}: {'; '.join(found)}" if found else ""

    @property
    def name(self) -> str:
        """Channel, z and t in words."""
        return ", ".join(f"{k} {v}" for k, v in self.plane.items() if v is not None)

    @property
    def facts(self) -> dict[str, Any]:
        """Numbers for restoration.json."""
        fit = self.restored.fit
        return {
            **self.plane,
            "prior": self.restored.prior,
            "iterations": self.restored.iterations,
            "tv": self.restored.tv,
            "deviance_per_pixel": round(self.restored.deviance, 4),
            "outliers": self.outliers.shares,
            "fit": fit.facts if fit else None,
            "note": self.note,
        }


def place_of(micrograph: Micrograph) -> dict[str, int | None]:
    """Channel, z and t of a plane."""
    return {name: getattr(micrograph, name) for name in ("channel", "z", "t")}


def restore_plane(
    config: Config, micrograph: Micrograph, psf_map: PsfMap, camera: Camera
) -> Outcome:
    """Restore one plane with the map of the chosen one."""
    plane = micrograph.plane()
    cutoff = file_cutoff(psf_map.microscope, psf_map.model)
    outliers = find_outliers(plane, micrograph.full_scale, cutoff)
    if config.all_planes and camera.gain_source == "assumed":
        # An assumed gain is that of one plane; others may be brighter or processed otherwise.
        given = config.gain_counts_per_e
        camera = estimate_camera(plane, outliers.usable, camera.offset_counts, given)
    light = (plane - camera.offset_counts).clamp(min=0)
    seen = light[outliers.usable]
    light = light.to(pick_device(config.device))
    place = place_of(micrograph)
    if config.all_planes and (not len(seen) or seen.min() == seen.max()):
        what = "constant" if len(seen) else "without a usable pixel"
        same = Restored(light, 0, 0.0, 0.0, light, f"the plane is {what} and stays as it is")
        return Outcome(light.cpu().numpy(), light.cpu().numpy(), same, 0, place, outliers, camera)
    restored, blur = restore_with_map(
        light,
        psf_map,
        config.iterations,
        config.background_counts,
        config.tv,
        camera.gain_counts_per_e or 1.0,
        config.cautious,
        {"auto": None, "yes": True, "no": False}[config.refine],
        None if outliers.usable.all() else outliers.usable,
        camera.white_noise,
        config.prior,
        load_prior(config.prior_folder) if config.prior_folder else None,
    )
    after = restored.image.cpu().numpy()
    return Outcome(light.cpu().numpy(), after, restored, blur.rank, place, outliers, camera)


def write_restored(
    path: Path, planes: list[np.ndarray], micrograph: Micrograph, pixel_um: float, bits: int
) -> None:
    """Write planes (H, W) as the kind of TIFF that the image was, with its scale and names."""
    sizes, known = micrograph.sizes, micrograph.calibration
    names = known.channel_names
    if len(planes) == 1:
        stack = planes[0][None, None, None]
        names = names[micrograph.channel or 0 :][:1]
    else:
        stack = np.stack(planes).reshape(sizes["T"], sizes["Z"], -1, *micrograph.shape)
    if bits == 16:
        clipped = float((stack > WHITE_16).mean())
        if clipped:
            print(f"note: {clipped:.2%} of the pixels are above {WHITE_16} and were cut off")
        stack = stack.round().clip(0, WHITE_16).astype(np.uint16)
    write_stack(
        path,
        stack,
        pixel_um,
        as_ome=known.kind == "ome",
        z_step_um=known.z_step_um,
        frame_interval_s=known.frame_interval_s,
        channel_names=names if len(names) == stack.shape[2] else (),
    )


def check_config(config: Config) -> None:
    """Refuse options that make no sense, before the work starts."""
    check_map_options(config)
    if config.map is not None and config.checkpoint is not None:
        raise InputError("give --map or --checkpoint, not both.")
    check_restoration(config.iterations, config.tv, "momentum")
    learned = load_prior(config.prior_folder) if config.prior_folder else None
    prior_to_try(config.prior, learned, (config.iterations, config.tv))
    if not 0 <= config.background_counts < float("inf"):
        raise InputError(f"--background-counts is {config.background_counts:g}; give 0 or more.")


def check_bits(config: Config, micrograph: Micrograph) -> None:
    """Refuse whole numbers for an image of few grey levels."""
    brightest = float(micrograph.plane().nan_to_num(0.0).max())
    if config.bits == 16 and brightest < FEWEST_LEVELS:
        raise InputError(
            f"--bits 16 keeps whole counts, but the brightest pixel is {brightest:g}; take --bits "
            "32, or multiply the image."
        )


def describe(config: Config, outcomes: list[Outcome], psf_map: PsfMap, camera: Camera) -> dict:
    """Content of restoration.json, without the record of the run."""
    return {
        **settings_of(config),
        "optics": asdict(psf_map.microscope),
        "camera": asdict(camera),
        "psf_model": psf_map.model.as_config(),
        "eigen_psfs": outcomes[0].eigen_psfs,
        "planes": [outcome.facts for outcome in outcomes],
    }


def described(restored: Restored) -> str:
    """Prior and iterations in words."""
    if restored.prior == "learned":
        return f"learned prior, {restored.iterations} iterations"
    return f"total variation {restored.tv:.3g}, {restored.iterations} iterations"


def report(outcomes: list[Outcome], first: Outcome, camera: Camera, seconds: float) -> list[str]:
    """What was done, in lines for the user; the numbers are those of the plane `first`."""
    count = len(outcomes)
    known = camera.gain_source != "assumed" and camera.white_noise
    meaning = (
        "about 1 if PSF, gain and offset are right" if known else "no measure: the gain is assumed"
    )
    return [
        f"{count} plane{'s' if count > 1 else ''} in {seconds:.1f} s; "
        f"{first.name}: {described(first.restored)}, {first.eigen_psfs} eigen-PSFs; deviance "
        f"{first.restored.deviance:.2f} per pixel ({meaning})",
        *(f"note: {outcome.note}" for outcome in outcomes if outcome.note),
    ]


def restore(config: Config, folder: Path) -> list[str]:
    """Restore the image and write all files to `folder`; returns what the user should read."""
    started = time.perf_counter()
    with open_with_map(config) as (micrograph, psf_map, camera):
        chosen = list(planes(config, micrograph))
        outcomes = [
            restore_plane(config, one, psf_map, camera)
            for one in tqdm(chosen, desc="restore", unit="plane", disable=len(chosen) == 1)
        ]
        mapped = place_of(micrograph)
        first = next((one for one in outcomes if one.plane == mapped), outcomes[0])
        pixel_um = psf_map.microscope.pixel_size_um
        afters = [outcome.after for outcome in outcomes]
        write_restored(folder / "restored.tif", afters, micrograph, pixel_um, config.bits)
    draw_restoration(
        folder / "side_by_side.png",
        first.before,
        first.after,
        pixel_um,
        f"{config.image.name}, {first.name}: {first.restored.iterations} iterations, "
        f"{first.eigen_psfs} eigen-PSFs",
        left_out=~first.outliers.usable.numpy(),
        warning=first.note,
        not_restored=large_regions(first.outliers.usable).numpy(),
        bad_fit=None if first.restored.fit is None else first.restored.fit.bad.cpu().numpy(),
    )
    seconds = round(time.perf_counter() - started, 2)
    facts = describe(config, outcomes, psf_map, camera)
    write_record(folder / "restoration.json", {**facts, **run_record(seconds=seconds)})
    return report(outcomes, first, camera, seconds)


def main(config: Config) -> None:
    """Find the map, restore, write."""
    keep_freed_memory()
    check_config(config)
    with new_result(config.out, "restoration.json", MADE) as folder:
        lines = restore(config, folder)
    print("\n".join(lines))
    print(f"wrote {config.out} (look at {config.out / 'side_by_side.png'})")


if __name__ == "__main__":
    run(Config, main, __doc__)
