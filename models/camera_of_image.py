"""The camera of an opened image, as given or as the image shows it, and images that are refused."""

import torch

from micrographs.camera import Camera, describe_camera, estimate_camera
from micrographs.cleaned import Survey, survey
from micrographs.micrograph import Micrograph
from micrographs.outliers import describe_outliers
from psf.errors import InputError

SATURATED_REFUSE = 0.25  # share of the pixels: with more, most patches hold some
LARGEST_VALUE = 1e12  # squares of larger values, or of the inverse, leave the range of float32
GAIN_FACTOR = 2.0  # between the gain given and that of the noise, from which the user is told


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
    check_survey(found, offset_counts)
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


def check_survey(found: Survey, offset_counts: float | None) -> None:
    """Refuse a plane that is mostly saturated or without a usable pixel.

    Raises
    ------
    InputError
        As `look_at_camera`.
    """
    check_values(found.sample, offset_counts)
    saturated = found.shares["saturated"]
    if saturated > SATURATED_REFUSE:
        raise InputError(
            f"{saturated:.0%} of the pixels are saturated; record the image again with less light."
        )
    if not found.usable.any():
        raise InputError("no pixel of the image shows an object; choose another plane or image.")


def check_values(sample: torch.Tensor, offset_counts: float | None) -> None:
    """Refuse pixels out of the range of the arithmetic, and an offset above all of them.

    Raises
    ------
    InputError
        That names the largest value.
    """
    known = sample[sample.isfinite()]
    if not len(known) or known.min() == known.max():
        return
    largest = float(known.abs().max())
    if not 1 / LARGEST_VALUE < largest < LARGEST_VALUE:
        raise InputError(
            f"the largest pixel value is {largest:g}; multiply the image by a number, so that its "
            "values are nearer to 1."
        )
    if offset_counts is not None and known.max() <= offset_counts:
        raise InputError(
            f"--offset-counts is {offset_counts:g}, but the brightest pixel is "
            f"{float(known.max()):g}; give the counts without light."
        )
