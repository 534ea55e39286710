"""The result of restoring planes of an image: pixels, what was chosen, and the files of a folder.

outcome = restore_plane(options, micrograph, psf_map, camera)
write_outcomes(folder, options, [outcome], micrograph, psf_map, camera, seconds)
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from common.command import settings_of
from common.files import run_record
from common.output import write_record
from common.overviews import draw_restoration
from common.stacks import write_stack
from micrographs.camera import Camera, estimate_camera
from micrographs.micrograph import Micrograph
from micrographs.neighbours import large_regions
from micrographs.outliers import Outliers, find_outliers
from models.mapping import PsfMap
from models.recording import MapOptions, cluster_of, device_of, file_cutoff
from psf.errors import InputError
from restoration.iteration import Restored
from restoration.learned import load_prior
from restoration.richardson_lucy import check_restoration
from restoration.with_map import PriorName, prior_to_try, restore_with_map

RECORD = "restoration.json"  # of the folder of a restoration
MADE = ("side_by_side.png", "restored.tif")
WHITE_16 = 2**16 - 1
FEWEST_LEVELS = 64  # of an image that whole numbers can show


@dataclass(frozen=True, kw_only=True)
class RestorationOptions(MapOptions):
    """Options of a restoration, whose map is estimated or read from a folder."""

    iterations: Literal["auto"] | int = "auto"  # auto: until held-out photons are predicted best
    tv: Literal["auto"] | float = "auto"  # weight of total variation, 0 to 0.1; auto: by the light
    # What is assumed of objects: total variation, or what a network learned of microscope objects;
    # auto: what predicts held-out photons better, and tv if --iterations or --tv is given.
    prior: PriorName = "auto"
    prior_folder: Path | None = None  # of train_restoration.py; default: that of the project
    background_counts: float = 0.0  # out-of-focus light, above the camera's offset
    # Shrink PSFs that do not fit the image; where the map found no content, only denoise.
    cautious: bool = True
    # Correct the map by what predicts held-out photons; auto: of raw images up to 1024 x 1024 px.
    refine: Literal["auto", "yes", "no"] = "auto"
    all_planes: bool = False  # every channel, plane and time point
    bits: Literal[16, 32] = 32  # of restored.tif; 16: whole counts


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
    options: RestorationOptions, micrograph: Micrograph, psf_map: PsfMap, camera: Camera
) -> Outcome:
    """Restore one plane with the map of the chosen one."""
    plane = micrograph.plane()
    cutoff = file_cutoff(psf_map.microscope, psf_map.model)
    outliers = find_outliers(plane, micrograph.full_scale, cutoff)
    if options.all_planes and camera.gain_source == "assumed":
        # An assumed gain is that of one plane; others may be brighter or processed otherwise.
        given = options.gain_counts_per_e
        camera = estimate_camera(plane, outliers.usable, camera.offset_counts, given)
    light = (plane - camera.offset_counts).clamp(min=0)
    seen = light[outliers.usable]
    light = light.to(device_of(options))
    if options.all_planes and (not len(seen) or seen.min() == seen.max()):
        what = "constant" if len(seen) else "without a usable pixel"
        return unchanged_plane(
            micrograph, camera, f"the plane is {what} and stays as it is", cutoff
        )
    restored, blur = restore_with_map(
        light,
        psf_map,
        options.iterations,
        options.background_counts,
        options.tv,
        camera.gain_counts_per_e or 1.0,
        options.cautious,
        {"auto": None, "yes": True, "no": False}[options.refine],
        None if outliers.usable.all() else outliers.usable,
        camera.white_noise,
        options.prior,
        load_prior(options.prior_folder) if options.prior_folder else None,
        cluster_of(options),
    )
    after = restored.image.cpu().numpy()
    return Outcome(
        light.cpu().numpy(), after, restored, blur.rank, place_of(micrograph), outliers, camera
    )


def unchanged_plane(
    micrograph: Micrograph, camera: Camera, note: str, cutoff: float | None = None
) -> Outcome:
    """A plane that is not restored; the note says why. `cutoff` is in cycles per px."""
    plane = micrograph.plane()
    outliers = find_outliers(plane, micrograph.full_scale, cutoff)
    light = (plane - camera.offset_counts).clamp(min=0)
    same = Restored(light, 0, 0.0, 0.0, light, note)
    pixels = light.numpy()
    return Outcome(pixels, pixels.copy(), same, 0, place_of(micrograph), outliers, camera)


def write_outcomes(
    folder: Path,
    options: RestorationOptions,
    outcomes: Sequence[Outcome],
    micrograph: Micrograph,
    psf_map: PsfMap,
    camera: Camera,
    seconds: float,
) -> None:
    """Write all files of a restoration to `folder`, the record last.

    The picture shows the plane of the micrograph, or else the first one.
    """
    first, pixel_um = shown_outcome(outcomes, micrograph), psf_map.microscope.pixel_size_um
    afters = [outcome.after for outcome in outcomes]
    write_restored(folder / "restored.tif", afters, micrograph, pixel_um, options.bits)
    draw_restoration(
        folder / "side_by_side.png",
        first.before,
        first.after,
        pixel_um,
        f"{options.image.name}, {first.name}: {first.restored.iterations} iterations, "
        f"{first.eigen_psfs} eigen-PSFs",
        left_out=~first.outliers.usable.numpy(),
        warning=first.note,
        not_restored=large_regions(first.outliers.usable).numpy(),
        bad_fit=None if first.restored.fit is None else first.restored.fit.bad.cpu().numpy(),
    )
    facts = describe(options, outcomes, psf_map, camera)
    write_record(folder / RECORD, {**facts, **run_record(seconds=seconds)})


def shown_outcome(outcomes: Sequence[Outcome], micrograph: Micrograph) -> Outcome:
    """The outcome of the plane of the micrograph, or else the first one."""
    mapped = place_of(micrograph)
    return next((one for one in outcomes if one.plane == mapped), outcomes[0])


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


def check_restoration_options(options: RestorationOptions) -> None:
    """Refuse options of a restoration that make no sense, before the work starts."""
    check_restoration(options.iterations, options.tv, "momentum")
    learned = load_prior(options.prior_folder) if options.prior_folder else None
    prior_to_try(options.prior, learned, (options.iterations, options.tv))
    if not 0 <= options.background_counts < float("inf"):
        raise InputError(f"--background-counts is {options.background_counts:g}; give 0 or more.")


def check_bits(options: RestorationOptions, micrograph: Micrograph) -> None:
    """Refuse whole numbers for an image of few grey levels."""
    brightest = float(micrograph.plane().nan_to_num(0.0).max())
    if options.bits == 16 and brightest < FEWEST_LEVELS:
        raise InputError(
            f"--bits 16 keeps whole counts, but the brightest pixel is {brightest:g}; take --bits "
            "32, or multiply the image."
        )


def describe(
    options: RestorationOptions, outcomes: Sequence[Outcome], psf_map: PsfMap, camera: Camera
) -> dict:
    """Content of restoration.json, without the record of the run."""
    return {
        **settings_of(options),
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


def report(
    outcomes: Sequence[Outcome], first: Outcome, camera: Camera, seconds: float
) -> list[str]:
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
