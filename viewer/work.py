"""The work behind the window: each function calls what the scripts call, and draws nothing."""

import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from common.command import pick_device
from common.output import new_result
from models import map_result
from models.checkpoint import load_estimator
from models.map_image import forget_unfinished
from models.map_result import MapResult, MapResultOptions, make_result, write_result
from models.mapping import PsfMap
from models.recording import Recording, check_map_options, open_recording
from models.series_result import MADE_SERIES
from restoration import outcome as restored_files
from restoration.blur_map import continue_to_borders
from restoration.outcome import Outcome, RestorationOptions, restore_plane, write_outcomes
from viewer.rectangle import Part, restore_rectangle


@dataclass(frozen=True)
class Estimate:
    """A map, and the open image that it was made of."""

    options: MapResultOptions
    recording: Recording
    result: MapResult
    opened: ExitStack

    def close(self) -> None:
        """Close the image."""
        self.opened.close()


@dataclass(frozen=True)
class MapLayer:
    """An image over the image: R x C patches, with their place in um."""

    name: str
    pixels: np.ndarray  # (R, C) float32; NaN where nothing is known
    scale_um: tuple[float, float]  # between patches
    translate_um: tuple[float, float]  # of the centre of the first patch
    limits: tuple[float, float]
    colour_map: str


@dataclass(frozen=True)
class Restoration:
    """A restored field or rectangle, and what its files need."""

    options: RestorationOptions
    outcome: Outcome
    psf_map: PsfMap
    seconds: float
    part: Part


def estimate(options: MapResultOptions) -> Estimate:
    """Map one plane of an image; the image stays open.

    Raises
    ------
    InputError
        As the script estimate_psf_map.py.
    Cancelled
        If the listener of the progress raises it.
    """
    check_map_options(options)
    estimator = load_estimator(options.checkpoint, pick_device(options.device))
    with ExitStack() as opened:
        recording = opened.enter_context(
            open_recording(options.image, options, estimator, options.z)
        )
        result = make_result(recording, options)
        return Estimate(options, recording, result, opened.pop_all())


def layers_over_image(found: Estimate) -> list[MapLayer]:
    """The maps of an estimate, to be drawn over its image; patches without content are NaN."""
    result, patches = found.result, found.result.found.patches
    pixels, names = map_result.map_layers(result.found, result.photons)
    count = len(patches.names)
    colours = [*["viridis"] * count, *["magma"] * count, "gray", "cividis"]
    drawn = list(zip(names, pixels, colours, strict=True))
    if result.depth is not None:
        blank = ~patches.has_content.numpy()
        depth = np.where(blank, np.nan, result.depth.values)
        drawn.insert(2 * count, (result.depth.name, depth, "plasma"))
    return [_layer(patches, *one) for one in drawn]


def _layer(psf_map: PsfMap, name: str, pixels: np.ndarray, colours: str) -> MapLayer:
    pixel_um, places = psf_map.microscope.pixel_size_um, (psf_map.rows, psf_map.columns)
    steps = [float(at[1] - at[0]) if len(at) > 1 else 1.0 for at in places]
    low, high = np.nanpercentile(pixels, (1, 99)) if np.isfinite(pixels).any() else (0.0, 1.0)
    return MapLayer(
        name,
        pixels.astype(np.float32),
        (steps[0] * pixel_um, steps[1] * pixel_um),
        (float(places[0][0]) * pixel_um, float(places[1][0]) * pixel_um),
        (float(low), max(float(high), float(low) + 1e-3)),
        colours,
    )


def restore(found: Estimate, options: RestorationOptions, part: Part | None = None) -> Restoration:
    """Restore the mapped plane, or a rectangle of it, with its map.

    Raises
    ------
    InputError
        As the script deconvolve.py.
    Cancelled
        If the listener of the progress raises it.
    """
    restored_files.check_restoration_options(options)
    started = time.perf_counter()
    recording, maps = found.recording, found.result.found
    psf_map, shape = maps.patches, recording.micrograph.shape
    if maps.smoothing:
        strengths = [one.strength for one in maps.smoothing]
        psf_map = continue_to_borders(psf_map, strengths, recording.patch_px, shape)
    if part is None:
        part = (slice(0, shape[0]), slice(0, shape[1]))
        outcome = restore_plane(options, recording.micrograph, psf_map, recording.camera)
    else:
        outcome = restore_rectangle(options, recording.micrograph, psf_map, recording.camera, part)
    return Restoration(options, outcome, psf_map, round(time.perf_counter() - started, 2), part)


def save_map(folder: Path, found: Estimate) -> None:
    """Write the files of estimate_psf_map.py to a folder."""
    names = (*map_result.MADE, *MADE_SERIES)  # of a series that the folder may hold
    with new_result(folder, map_result.RECORD, names) as new:
        write_result(new, replace(found.options, out=folder), found.recording, found.result)
        forget_unfinished(folder)


def save_restoration(folder: Path, found: Estimate, restoration: Restoration) -> None:
    """Write the files of deconvolve.py to a folder."""
    with new_result(folder, restored_files.RECORD, restored_files.MADE) as new:
        write_outcomes(
            new,
            replace(restoration.options, out=folder),
            [restoration.outcome],
            found.recording.micrograph,
            restoration.psf_map,
            found.recording.camera,
            restoration.seconds,
        )


def rectangle_px(corners_um: np.ndarray, pixel_um: float, shape: tuple[int, int]) -> Part:
    """Rows and columns of the image (H, W) inside a box of corners (N, 2), um, y before x."""
    low = np.floor(corners_um.min(0) / pixel_um + 0.5).astype(int)
    high = np.ceil(corners_um.max(0) / pixel_um + 0.5).astype(int)
    return tuple(
        slice(int(np.clip(a, 0, n)), int(np.clip(b, 0, n)))
        for a, b, n in zip(low, high, shape, strict=True)
    )
