"""The one way from an opened image to the map of its PSF, for every script that takes one.

    with open_recording(path, options, estimator) as recording:  # models.recording
        found = map_image(recording, options.smooth)

`map_image` predicts and smooths the map of the chosen plane, `map_stack` predicts the maps of all
planes.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from common.addresses import stamp_of
from common.cluster import Cluster
from micrographs.cleaned import CleanedImage
from micrographs.micrograph import Micrograph
from models.mapping import Context, Image, PsfMap, predict_map, predict_stack
from models.recording import Recording, file_cutoff
from models.resampling import ResampledImage
from models.smoothing import SmoothMap, smooth_map
from psf.errors import InputError

RESUMED = 5000  # patches; it takes longer to resume a smaller map than to make it again
UNFINISHED = ("unfinished_map.f32", "unfinished_map.json")
# Share of the patches. Where the error bars hold, 0.3 % lie outside three standard deviations.
MANY_OUTLIERS = 0.1


NO_CONTENT = (
    "no patch of the image holds anything to estimate from: it is blank, far too dark, or blurred "
    "more than the network can read."
)


@dataclass(frozen=True)
class ImageMap:
    """The map of one plane, with its places in pixels of the file."""

    patches: PsfMap  # every patch by itself
    smooth: PsfMap  # smoothed, blank patches filled; `patches` where smoothing is off
    smoothing: tuple[SmoothMap, ...]  # one for each parameter; empty where smoothing is off


def map_image(
    recording: Recording,
    smooth: str | float = "auto",
    keep_in: Path | None = None,
    cluster: Cluster | None = None,
) -> ImageMap:
    """Predict and smooth the map of the opened plane.

    Parameters
    ----------
    smooth : "auto", "off" or a strength, see `models.smoothing`
    keep_in : folder for the finished rows of a large map; the same call goes on from them
    cluster : predicts the patches, see `models.mapping.predict_map`

    Raises
    ------
    InputError
        If the image is smaller than a patch, constant, not finite, or blank all over.
    """
    micrograph = recording.micrograph
    image = network_image(recording, micrograph)
    stride = recording.stride_px
    key = stamp_of(micrograph.path)
    key |= {name: getattr(micrograph, name) for name in ("series", "channel", "z", "t")}
    is_large = stride > 0 and image.shape[0] * image.shape[1] > RESUMED * stride**2
    partial = keep_in / UNFINISHED[0] if keep_in is not None and is_large else None
    seen_by = recording.resampling.microscope(recording.microscope)
    together = recording.context != "none"
    found = predict_map(
        recording.estimator, image, seen_by, stride, partial, key, together, cluster
    )
    if not found.has_content.any():
        if keep_in is not None:
            forget_unfinished(keep_in)
        raise InputError(NO_CONTENT)
    return smoothed(recording, in_file_pixels(recording, found), smooth)


def smoothed(recording: Recording, patches: PsfMap, smooth: str | float) -> ImageMap:
    """A map with its smoothed values beside those of single patches."""
    overlap = max(1.0, recording.estimator.patch_size / recording.stride_px)
    return ImageMap(patches, *smooth_parameters(patches, overlap, smooth))


def map_stack(
    recording: Recording, context: Context | None = None, show: bool = True
) -> list[PsfMap]:
    """Maps of all planes of the opened focal stack, not smoothed.

    `context` says which patches are seen together; by default the choice of the user, see
    `RecordingOptions`. `show` a progress bar.

    Raises
    ------
    InputError
        If a plane is constant, holds NaN or is smaller than a patch; it says which one.
    """
    images = [network_image(recording, plane) for plane in recording.planes]
    seen_by = recording.resampling.microscope(recording.microscope)
    context = recording.context if context is None else context
    maps = predict_stack(recording.estimator, images, seen_by, recording.stride_px, context, show)
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
