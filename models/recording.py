"""An image or a stack, opened for a network: its plane, optics, sampling and camera.

with open_recording(path, options, estimator) as recording:
found = map_image(recording, options.smooth)  # models.map_image
"""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
import tyro

from common.cluster import Cluster, check_cluster
from common.command import pick_device
from common.files import check_out_folder
from micrographs.camera import Camera
from micrographs.metadata import AUTO_NA, KnownOptics, resolve_optics
from micrographs.micrograph import Micrograph, open_micrograph
from micrographs.na_source import check_na, na_of_spectrum
from models.camera_of_image import look_at_camera
from models.checkpoint import ADVISED, AUTO
from models.estimator import Estimator, outside_limits
from models.mapping import Context
from models.resampling import Resampling, fit_resampling
from psf.errors import InputError
from psf.microscope import NYQUIST_TOLERANCE, OPTICS_NAMES, Microscope, SamplingWarning
from psf.model import PsfModel

BAND_ROWS = 256  # read at a time: 16 MB of an image of 16,000 pixels a line


@dataclass(frozen=True, kw_only=True)
class RecordingOptions:
    """Options of every script that estimates the PSF of an image or a stack."""

    # network: a shipped name, a folder of train.py, or auto: the one advised for widefield images
    checkpoint: Path = Path(AUTO)
    # Numerical aperture of the objective; default: the file's; auto: estimated from the spectrum.
    na: Literal["auto"] | float | None = None
    wavelength_um: float | None = None  # emission wavelength in vacuum, um; default: the file's
    pixel_size_um: float | None = None  # camera pixel / magnification, um; default: the file's
    refractive_index: float | None = None  # of the medium around the object; default: the file's
    series: int | None = None  # image in a file of several, from 0; default: the largest
    channel: int | None = None  # of the file, from 0; default: the first
    t: int | None = None  # time point, from 0; default: the first
    stride: int = 32  # pixels between neighbouring patches
    # patches that are seen together: of all planes of a focal stack, of an image, or none
    context: Context = "stack"
    allow_other_optics: bool = False  # go on with optics that the checkpoint was not trained for
    device: str = "auto"  # auto, cpu, cuda, mps


Options = TypeVar("Options", bound=RecordingOptions)


@dataclass(frozen=True, kw_only=True)
class MapOptions(RecordingOptions):
    """Options of the scripts that map one plane of an image."""

    image: tyro.conf.Positional[Path]  # TIFF, PNG, JPEG, OME-Zarr, ND2, CZI or LIF
    out: Path  # folder to write
    z: int | None = None  # plane of a stack, from 0; default: the middle one
    smooth: Literal["auto", "off"] | float = "auto"  # strength; auto: by cross-validation
    offset_counts: float | None = None  # counts of the camera without light; default: estimated
    gain_counts_per_e: float | None = None  # counts per detected photon; default: estimated
    # Dask cluster that does the work, e.g. tcp://HOST:8786, with the same result
    dask: str | None = None


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
    context: Context  # patches that are seen together
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


def choose_checkpoint(options: Options) -> Options:
    """The options with the name of the advised network in place of auto; it is printed."""
    if str(options.checkpoint) != AUTO:
        return options
    print(f"note: --checkpoint is {ADVISED}, the network advised for widefield images")
    return replace(options, checkpoint=Path(ADVISED))


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
    if options.dask is not None:
        if options.device not in ("auto", "cpu"):
            raise InputError(
                f"--dask computes on the processors of its workers, not on {options.device}; leave "
                "--device out."
            )
        check_cluster(options.dask)


def device_of(options: MapOptions) -> torch.device:
    """The device that computes; with --dask the CPU, as on the workers."""
    return pick_device("cpu" if options.dask is not None else options.device)


def cluster_of(options: MapOptions) -> Cluster | None:
    """The Dask cluster of --dask, whose workers must also see the image."""
    if options.dask is None:
        return None
    image = Path(options.image)
    return Cluster(options.dask, options.out, (image,) if image.exists() else ())


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
        optics = known_optics(options, micrograph, estimator.psf_model)
        resampling = choose_resampling(
            estimator, optics.microscope, options.allow_other_optics, micrograph.shape
        )
        offset = getattr(options, "offset_counts", None)
        gain = getattr(options, "gain_counts_per_e", None)
        cutoff = file_cutoff(optics.microscope, estimator.psf_model)
        camera, surveyed, outliers = look_at_camera(micrograph, offset, gain, cutoff)
        sampling = describe_sampling(estimator, optics.microscope, resampling)
        notes = [*found, *optics.notes, *outliers, *sampling]
        if cutoff and options.na != AUTO_NA and camera.white_noise:
            notes += check_na(planes[len(planes) // 2], cutoff)
        stride = options.stride
        if stride > 0:
            stride = max(1, round(stride / resampling.factor))
        yield Recording(
            *(micrograph, tuple(planes), estimator, optics, resampling, camera, stride),
            *(options.context, surveyed.shares, tuple(notes)),
        )


def known_optics(options: RecordingOptions, micrograph: Micrograph, model: PsfModel) -> KnownOptics:
    """Optics by flags, or else by the file's metadata; a blur in pixels needs the pixel size alone.

    With --na auto all planes of a focal stack are looked at, since the sharpest one tells most.

    Raises
    ------
    InputError
        If neither flags nor the file tell a number that is needed.
    """
    flags = {name: getattr(options, name) for name in OPTICS_NAMES}
    facts, not_needed, estimate = micrograph.facts, None, None
    if model.is_gaussian:
        not_needed = asdict(Microscope())
        not_needed.pop("pixel_size_um")
    else:
        estimate = partial(na_of_spectrum, micrograph)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SamplingWarning)  # `describe_sampling` tells the user
        try:
            return resolve_optics(flags, facts, not_needed, estimate)
        except InputError as error:
            if model.is_gaussian or flags["na"] or facts.na:
                raise
            raise InputError(
                f"{error} If nobody knows the objective, estimate_psf_map.py --checkpoint "
                "gaussian1d maps the width of the blur in pixels."
            ) from error


def describe_sampling(
    estimator: Estimator, microscope: Microscope, resampling: Resampling
) -> list[str]:
    """A note for the user if the pixels are finer than the network's, or above Nyquist."""
    if resampling.factor > 1:
        return [f"the pixels are finer than the network's: the image is {resampling.describe()}"]
    share = microscope.pixel_size_um / microscope.nyquist_pixel_um
    if estimator.psf_model.is_gaussian or share <= NYQUIST_TOLERANCE:
        return []
    note = f"the pixel is {share:.2g} times the Nyquist pixel, so fine detail is aliased"
    if not outside_training(estimator, microscope, resampling):
        note += f"; {estimator.name} was trained for that"
    return [note]


def choose_resampling(
    estimator: Estimator,
    microscope: Microscope,
    allow_other_optics: bool,
    shape: tuple[int, int] | None = None,
) -> Resampling:
    """How fine pixels become the network's, in an image of this shape, px, or of any shape.

    Raises
    ------
    InputError
        If the network was trained for other optics, unless they are allowed.
    """
    if estimator.psf_model.is_gaussian:
        return Resampling()
    limits = estimator.config["optics_limits"]
    # One pixel more than a patch, since binning leaves out the rest of a division.
    largest_factor = min(shape) / (estimator.patch_size + 1) if shape else math.inf
    resampling = fit_resampling(microscope, limits["cutoff_cycles_per_pixel"], largest_factor)
    outside = outside_training(estimator, microscope, resampling)
    if outside and not allow_other_optics:
        raise InputError(
            f"{estimator.name} was trained for other optics: {'; '.join(outside)}. Train one "
            "for yours (train.py --start-from), or add --allow-other-optics."
        )
    return resampling


def outside_training(
    estimator: Estimator, microscope: Microscope, resampling: Resampling
) -> list[str]:
    """The optics that a network was not trained for, in words."""
    if estimator.psf_model.is_gaussian:
        return []
    limits = estimator.config["optics_limits"]
    if resampling.factor > 1:
        # The pixel is fitted to the cut-off frequency; limits of the pixel follow from the others.
        limits = {name: limit for name, limit in limits.items() if name != "pixel_size_um"}
    return outside_limits(resampling.microscope(microscope), limits)


def file_cutoff(microscope: Microscope, model: PsfModel) -> float | None:
    """Cut-off frequency in cycles per pixel of the file; None where the optics are not known."""
    return None if model.is_gaussian else microscope.cutoff_cycles_per_pixel
