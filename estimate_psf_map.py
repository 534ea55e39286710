"""Map the PSF parameters over one image: IMAGE + checkpoint -> DIR/.

    python estimate_psf_map.py image.tif --na 0.45 --wavelength-um 0.5 --pixel-size-um 0.278 \
        --refractive-index 1.33 --out maps/image

Optics that the file tells (OME-TIFF, ImageJ) need no flag. The folder DIR then holds

    overview.png       PSFs over the image, the maps with their standard deviations, depth, content
    psf_map.tif        a pixel per patch: values, standard deviations, content, photons per pixel
    psf_map_full.tif   values and standard deviations at every pixel of the image
    depth.tif          depth in um, from a --depth-calibration or else from the optics
    map.csv            every patch, before and after smoothing
    config.json        optics, camera and settings, which deconvolve.py reads

The files replace those of the last map in DIR. Cross-validation chooses how much the maps are
smoothed; --smooth off leaves them as they are. With --truth, a TIFF that holds the true first
parameter at every pixel, the overview shows the truth too. Given again, the same command goes on
with the interrupted map of a large image.

    python estimate_psf_map.py series.tif --all-planes --out maps/series

maps every channel, plane in z and time point of the file. psf_map.tif then has all these axes,
map.csv all planes, and overview.png shows the plane --channel, --z, --t. Instead of the maps at
full resolution there are

    planes.csv         a row per plane: mean focus with its standard error, content, photons
    drift.png          mean focus, or the plane of best focus, against time or z

A plane that cannot be mapped, e.g. a dark one, is named and has empty values. Given again, the
same command goes on after the last finished plane.

With --dask the workers of a Dask cluster predict the patches of one plane. They must see IMAGE and
DIR under the same paths as this computer.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.command import keep_freed_memory, next_command, print_notes, run
from common.extras import needed
from common.output import new_result
from micrographs.micrograph import Micrograph
from models.checkpoint import load_estimator
from models.kept_maps import forget_planes
from models.map_image import forget_unfinished
from models.map_result import (
    MADE,
    RECORD,
    MapResultOptions,
    describe_result,
    make_result,
    write_result,
)
from models.map_series import kept_maps, map_planes, open_channels, series_notes
from models.recording import check_map_options, choose_checkpoint, device_of, open_recording
from models.series_result import MADE_SERIES, check_truth, describe_series, write_series
from psf.errors import InputError
from restoration.blur_map import AXIS_OF


@dataclass(frozen=True, kw_only=True)
class Config(MapResultOptions):
    """Settings of a map."""

    all_planes: bool = False  # map every channel, plane in z and time point of the file


def next_step(config: Config, micrograph: Micrograph) -> str:
    """Command that restores the mapped plane, or all planes."""
    plane: list[Any] = [
        (f"--{name}", getattr(micrograph, name))
        for name, axis in AXIS_OF.items()
        if micrograph.sizes[axis] > 1
    ]
    if config.all_planes:
        plane = ["--all-planes"]
    # Without the flag the largest image of the file is taken, here and there.
    plane = [("--series", config.series), *plane]
    device = None if config.device == "auto" else config.device
    return next_command(
        "deconvolve.py",
        config.image,
        *plane,
        ("--map", config.out),
        ("--device", device),
        ("--out", Path("restored") / config.out.name),
    )


def make_map(config: Config, folder: Path) -> list[str]:
    """Map the image and write all files to `folder`; returns what the user should read."""
    estimator = load_estimator(config.checkpoint, device_of(config))
    with open_recording(config.image, config, estimator, config.z) as recording:
        print_notes(recording.notes)
        result = make_result(recording, config, config.out)
        following = next_step(config, recording.micrograph)
    write_result(folder, config, recording, result)
    return [
        *describe_result(result, recording),
        f"wrote {config.out} (look at {config.out / 'overview.png'})",
        following,
    ]


def make_series(config: Config, folder: Path) -> list[str]:
    """Map all planes and write all files to `folder`; returns what the user should read."""
    estimator = load_estimator(config.checkpoint, device_of(config))
    started = time.perf_counter()
    with open_channels(config, estimator) as channels:
        print_notes(series_notes(channels, config))
        check_truth(config.truth, channels)
        kept = kept_maps(config.out, channels, config)
        map_planes(channels, config, kept)
        seconds = time.perf_counter() - started
        result = write_series(folder, config, channels, kept, seconds)
        following = next_step(config, channels.any.micrograph)
    look_at = "drift.png" if (folder / "drift.png").is_file() else "overview.png"
    return [
        *describe_series(result),
        f"wrote {config.out} (look at {config.out / look_at})",
        following,
    ]


def check_maps_as(config: Config) -> None:
    """Refuse OME-Zarr for a series, or without its package, before the work starts."""
    if config.maps_as != "zarr":
        return
    if config.all_planes:
        raise InputError("--maps-as zarr holds the maps of one plane; leave out --all-planes.")
    needed("zarr", "--maps-as zarr", "requirements-formats.txt")


def main(config: Config) -> None:
    """Read, predict, smooth, write."""
    keep_freed_memory()
    check_map_options(config)
    check_maps_as(config)
    if config.all_planes and config.dask is not None:
        raise InputError("--dask maps one plane; leave out --all-planes, or --dask.")
    config = choose_checkpoint(config)
    make = make_series if config.all_planes else make_map
    with new_result(config.out, RECORD, (*MADE, *MADE_SERIES)) as folder:
        lines = make(config, folder)
        forget_unfinished(config.out)
        forget_planes(config.out)
    print("\n".join(lines))


if __name__ == "__main__":
    run(Config, main, __doc__)
