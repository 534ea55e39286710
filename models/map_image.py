"""The one way from a file to the map of its PSF, for every script that takes an image or a stack.

    with open_recording(path, options, estimator) as recording:
        found = map_image(recording, options.smooth)

`open_recording` opens the file, chooses the plane, and finds the optics with their sources, the
camera and the resampling. `map_image` predicts and smooths the map of the chosen plane, `map_stack`
predicts the maps of all planes.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro

from common.files import check_out_folder
from micrographs.camera import Camera, describe_camera, estimate_camera
from micrographs.cleaned import CleanedImage, Survey, survey
from micrographs.metadata import KnownOptics, OpticsFacts, resolve_optics
from micrographs.micrograph import Micrograph, open_micrograph
from micrographs.outliers import describe_outliers
from models.checkpoint import Estimator, outside_limits
from models.mapping import Image, PsfMap, predict_map, predict_stack
from models.resampling import ResampledImage, Resampling, fit_resampling
from models.smoothing import SmoothMap, smooth_map
from psf.errors import InputError
from psf.microscope import OPTICS_NAMES, Microscope, SamplingWarning
from psf.model import PsfModel

BAND_ROWS = 256  # read at a time: 16 MB of an image of 16,000 pixels a line
RESUMED = 5000  # patches; it takes longer to resume a smaller map than to make it again
UNFINISHED = ("unfinished_map.f32", "unfinished_map.json")
SATURATED_REFUSE = 0.25  # share of the pixels: with more, most patches hold some
GAIN_FACTOR = 2.0  # between the gain given and that of the noise, from which the user is told
# Share of the patches. Where the error bars hold, 0.3 % lie outside three standard deviations.
MANY_OUTLIERS = 0.1


@dataclass(frozen=True, kw_only=True)
class RecordingOptions:
    """Options of every script that estimates the PSF of an image or a stack."""

    na: float | None = None  # numerical aperture of the objective; default: the file's
    wavelength_um: float | None = None  # emission wavelength in vacuum, um; default: the file's
    pixel_size_um: float | None = None  # camera pixel / magnification, um; default: the file's
    refractive_index: float | None = None  # of the medium around the object; default: the file's
    series: int | None = None  # image in a file of several, from 0; default: the largest
    channel: int | None = None  # of the file, from 0; default: the first
    t: int | None = None  # time point, from 0; default: the first
    stride: int = 32  # pixels between neighbouring patches
    allow_other_optics: bool = False  # go on with optics that the checkpoint was not trained for
    device: str = "auto"  # auto, cpu, cuda, mps


@dataclass(frozen=True, kw_only=True)
class MapOptions(RecordingOptions):
    """Options of the scripts that map one plane of an image."""

    image: tyro.conf.Positional[Path]  # TIFF, PNG, JPEG, OME-Zarr, ND2, CZI or LIF
    out: Path  # folder to write
    z: int | None = None  # plane of a stack, from 0; default: the middle one
    smooth: Literal["auto", "off"] | float = "auto"  # strength; auto: by cross-validation
    offset_counts: float | None = None  # counts of the camera without light; default: estimated
    gain_counts_per_e: float | None = None  # counts per detected photon; default: estimated


@dataclass(frozen=True)
class Recording:
    """An open image or stack, and all that a network has to know of it."""

    micrograph: Micrograph  # the chosen plane, or the first one of a focal stack
    planes: tuple[Micrograph, ...]  # the chosen plane, or all planes of the focal stack
    estimator: Estimator
    optics: KnownOptics
    resampling: Resampling
    camera: Camera
    stride_px: int  # between neighbouring patches, pixels of the network
    outliers: dict[str, float]  # shares of the pixels, by kind
    notes: tuple[str, ...] = field(repr=False)  # what was found or chosen, for the user

    @property
    def microscope(self) -> Microscope:
        """The optics, with the pixel of the file."""
        return self.optics.microscope

    @property
    def patch_px(self) -> float:
        """Edge of a patch in pixels of the file."""
        return self.estimator.patch_size * self.resampling.factor


@dataclass(frozen=True)
class ImageMap:
    """The map of one plane, with its places in pixels of the file."""

    patches: PsfMap  # every patch by itself
    smooth: PsfMap  # smoothed, blank patches filled; `patches` where smoothing is off
    smoothing: tuple[SmoothMap, ...]  # one for each parameter; empty where smoothing is off


def check_map_options(options: MapOptions) -> None:
    """Refuse options that make no sense, before the work starts."""
    if isinstance(options.smooth, float) and not 0 < options.smooth < float("inf"):
        raise InputError(f"--smooth is {options.smooth:g}; give auto, off or a number above 0.")
    gain, offset = options.gain_counts_per_e, options.offset_counts
    if gain is not None and not 0 < gain < float("inf"):
        raise InputError(f"--gain-counts-per-e is {gain:g}; it must be above 0.")
    if offset is not None and not np.isfinite(offset):
        raise InputError(f"--offset-counts is {offset:g}; give a number of counts.")
    check_out_folder(options.out)


def check_negative(micrograph: Micrograph, offset_counts: float | None) -> None:
    """Refuse negative pixels without --offset-counts: the offset is then below 0, but not known.

    Raises
    ------
    InputError
        That names the darkest pixel.
    """
    if offset_counts is not None:
        return
    height = micrograph.shape[0]
    starts = range(0, height, BAND_ROWS)
    bands = (micrograph.rows(start, min(start + BAND_ROWS, height)) for start in starts)
    darkest = min(float(band.nan_to_num(0.0).min()) for band in bands)
    if darkest < 0:
        raise InputError(
            f"the darkest pixel is {darkest:g}; give the camera's --offset-counts, so that counts "
            "above it are light."
        )


@contextmanager
def open_recording(
    path: Path,
    options: RecordingOptions,
    estimator: Estimator,
    z: int | None = None,
    is_stack: bool = False,
) -> Iterator[Recording]:
    """Open plane `z` of a file (default: the middle one), or a focal stack, for a network.

    The file is closed at the end.

    Raises
    ------
    InputError
        If the file cannot be read, its optics are unknown or not those of the network, or most of
        it is saturated.
    """
    z = 0 if is_stack else z
    with open_micrograph(path, options.channel, z, options.t, options.series) as micrograph:
        planes, found = [micrograph], micrograph.notes
        if is_stack:
            planes, found = micrograph.focal_planes()
        optics = known_optics(options, micrograph.facts, estimator.psf_model)
        resampling = choose_resampling(estimator, optics.microscope, options.allow_other_optics)
        offset = getattr(options, "offset_counts", None)
        gain = getattr(options, "gain_counts_per_e", None)
        cutoff = file_cutoff(optics.microscope, estimator.psf_model)
        camera, surveyed, outliers = look_at_camera(micrograph, offset, gain, cutoff)
        notes = [*found, *optics.notes, *outliers]
        if resampling.factor > 1:
            notes.append(
                f"the pixels are finer than the network's: the image is {resampling.describe()}"
            )
        stride = options.stride
        if stride > 0:
            stride = max(1, round(stride / resampling.factor))
        yield Recording(
            *(micrograph, tuple(planes), estimator, optics, resampling, camera, stride),
            *(surveyed.shares, tuple(notes)),
        )


def known_optics(options: RecordingOptions, facts: OpticsFacts, model: PsfModel) -> KnownOptics:
    """Optics by flags, or else by the file's metadata; a blur in pixels needs the pixel size alone.

    Raises
    ------
    InputError
        If neither flags nor the file tell a number that is needed.
    """
    flags = {name: getattr(options, name) for name in OPTICS_NAMES}
    if not model.is_gaussian:
        return resolve_optics(flags, facts)
    not_needed = asdict(Microscope())
    not_needed.pop("pixel_size_um")
    with warnings.catch_warnings():
        # Whether a pixel is too coarse depends on optics that nobody gave.
        warnings.simplefilter("ignore", SamplingWarning)
        return resolve_optics(flags, facts, not_needed)


def choose_resampling(
    estimator: Estimator, microscope: Microscope, allow_other_optics: bool
) -> Resampling:
    """How fine pixels become the network's.

    Raises
    ------
    InputError
        If the network was trained for other optics, unless they are allowed.
    """
    if estimator.psf_model.is_gaussian:
        return Resampling()
    limits = estimator.config["optics_limits"]
    resampling = fit_resampling(microscope, limits["cutoff_cycles_per_pixel"])
    if resampling.factor > 1:
        # The pixel is fitted to the cut-off frequency; limits of the pixel follow from the others.
        limits = {name: limit for name, limit in limits.items() if name != "pixel_size_um"}
    outside = outside_limits(resampling.microscope(microscope), limits)
    if outside and not allow_other_optics:
        raise InputError(
            f"{estimator.name} was trained for other optics: {'; '.join(outside)}. Train one "
            "for yours (train.py --start-from), or add --allow-other-optics."
        )
    return resampling


def file_cutoff(microscope: Microscope, model: PsfModel) -> float | None:
    """Cut-off frequency in cycles per pixel of the file; None where the optics are not known."""
    return None if model.is_gaussian else microscope.cutoff_cycles_per_pixel


def look_at_camera(
    micrograph: Micrograph,
    offset_counts: float | None = None,
    gain_counts_per_e: float | None = None,
    cutoff: float | None = None,
) -> tuple[Camera, Survey, list[str]]:
    """The camera, as given or else as the image shows it, the outliers, and notes on them.

    Raises
    ------
    InputError
        If more than a quarter of the pixels are saturated, or none is usable.
    """
    found = survey(micrograph, cutoff)
    saturated = found.shares["saturated"]
    if saturated > SATURATED_REFUSE:
        raise InputError(
            f"{saturated:.0%} of the pixels are saturated; record the image again with less light."
        )
    if not found.usable.any():
        raise InputError("no pixel of the image shows an object; choose another plane or image.")
    camera = estimate_camera(found.sample, found.usable, offset_counts, gain_counts_per_e)
    notes = describe_outliers(found.shares) + describe_camera(camera)
    if gain_counts_per_e is not None:
        free = estimate_camera(found.sample, found.usable, offset_counts).gain_counts_per_e
        if free and not 1 / GAIN_FACTOR < gain_counts_per_e / free < GAIN_FACTOR:
            notes.append(
                f"the noise of the image suggests a gain of {free:.3g} counts per photon, not "
                f"{gain_counts_per_e:g} (--gain-counts-per-e)"
            )
    return camera, found, notes


def map_image(
    recording: Recording, smooth: str | float = "auto", keep_in: Path | None = None
) -> ImageMap:
    """Predict and smooth the map of the opened plane.

    Parameters
    ----------
    smooth : "auto", "off" or a strength, see `models.smoothing`
    keep_in : folder for the finished rows of a large map; the same call goes on from them

    Raises
    ------
    InputError
        If the image is smaller than a patch, constant, not finite, or blank all over.
    """
    micrograph = recording.micrograph
    image = network_image(recording, micrograph)
    stride = recording.stride_px
    stat = micrograph.path.stat()
    key = {"image": str(micrograph.path.resolve()), "bytes": stat.st_size, "t": micrograph.t}
    key["series"] = micrograph.series
    key |= {"changed": stat.st_mtime, "channel": micrograph.channel, "z": micrograph.z}
    is_large = stride > 0 and image.shape[0] * image.shape[1] > RESUMED * stride**2
    partial = keep_in / UNFINISHED[0] if keep_in is not None and is_large else None
    seen_by = recording.resampling.microscope(recording.microscope)
    found = predict_map(recording.estimator, image, seen_by, stride, partial, key)
    if not found.has_content.any():
        if keep_in is not None:
            forget_unfinished(keep_in)
        raise InputError(
            "no patch of the image holds anything to estimate from: it is blank, far too dark, or "
            "blurred more than the network can read."
        )
    patches = in_file_pixels(recording, found)
    overlap = max(1.0, recording.estimator.patch_size / stride)
    return ImageMap(patches, *smooth_parameters(patches, overlap, smooth))


def map_stack(recording: Recording) -> list[PsfMap]:
    """Maps of all planes of the opened focal stack, every patch by itself.

    Raises
    ------
    InputError
        If a plane is constant, holds NaN or is smaller than a patch; it says which one.
    """
    images = [network_image(recording, plane) for plane in recording.planes]
    seen_by = recording.resampling.microscope(recording.microscope)
    maps = predict_stack(recording.estimator, images, seen_by, recording.stride_px)
    return [in_file_pixels(recording, one) for one in maps]


def network_image(recording: Recording, plane: Micrograph) -> Image:
    """A plane of the file on the pixels that the network sees."""
    resampling = recording.resampling
    cleaned = cleaned_plane(recording, plane)
    return ResampledImage(cleaned, resampling) if resampling.factor > 1 else cleaned


def cleaned_plane(recording: Recording, plane: Micrograph) -> CleanedImage:
    """A plane of the file without its outliers."""
    cutoff = file_cutoff(recording.microscope, recording.estimator.psf_model)
    return CleanedImage(plane, cutoff)


def in_file_pixels(recording: Recording, psf_map: PsfMap) -> PsfMap:
    """A map that was predicted on the network's pixels, its places in pixels of the file."""
    factor = recording.resampling.factor
    rows, columns = ((at + 0.5) * factor - 0.5 for at in (psf_map.rows, psf_map.columns))
    return replace(psf_map, microscope=recording.microscope, rows=rows, columns=columns)


def smooth_parameters(
    psf_map: PsfMap, overlap: float, smooth: str | float
) -> tuple[PsfMap, tuple[SmoothMap, ...]]:
    """The map with smoothed values and their standard deviations; blank patches are filled."""
    if smooth == "off":
        return psf_map, ()
    strength = None if smooth == "auto" else float(smooth)
    content = psf_map.has_content.numpy()
    found = tuple(
        smooth_map(values.numpy(), deviations.numpy(), content, overlap, strength)
        for values, deviations in zip(psf_map.values, psf_map.standard_deviations, strict=True)
    )
    values, deviations = (
        torch.from_numpy(np.stack([getattr(one, name) for one in found])).float()
        for name in ("values", "standard_deviations")
    )
    return replace(psf_map, values=values, standard_deviations=deviations), found


def describe_map(found: ImageMap) -> list[str]:
    """What was found, and how sure the network is of it, in lines for the user."""
    psf_map, content = found.smooth, found.smooth.has_content
    lines = []
    without = int((~content).sum())
    if without:
        lines.append(
            f"{without} of {content.numel()} patches hold nothing to estimate from "
            "(content probability below 0.5; grey in the overview)"
        )
    parameters = zip(psf_map.names, psf_map.values, psf_map.standard_deviations, strict=True)
    for name, values, deviations in parameters:
        low, middle, high = np.percentile(values[content], (5, 50, 95))
        lines.append(
            f"{name}: median {middle:.2f} {psf_map.unit}, 5 to 95 % {low:.2f} to {high:.2f}; "
            f"median standard deviation {float(deviations[content].median()):.2f} {psf_map.unit}"
        )
    for name, one in zip(psf_map.names, found.smoothing, strict=False):
        lines.append(
            f"{name}: smoothed with strength {one.strength:.3g}; {one.outliers:.1%} of the patches "
            "lie more than three standard deviations from the smooth map"
        )
        if one.outliers > MANY_OUTLIERS:
            lines.append(
                f"note: the smooth {name} does not describe these patches, and its standard "
                "deviations are too small; compare the map of --smooth off"
            )
    return lines


def forget_unfinished(folder: Path) -> None:
    """Delete the rows from which an interrupted map would have gone on."""
    for name in UNFINISHED:
        (folder / name).unlink(missing_ok=True)
