"""Map the PSF parameters over one image: IMAGE + checkpoint -> DIR/.

    python estimate_psf_map.py image.tif --checkpoint runs/zernike1d --na 0.45 \
        --wavelength-um 0.5 --pixel-size-um 0.278 --refractive-index 1.33 --out maps/image

Writes psf_map.tif (float32, one channel per parameter, then the standard deviations and the
content probability, one pixel per patch, calibrated in um), map.csv, config.json and overview.png.
With --truth, a TIFF of the image's size that holds the true first parameter, the overview shows
the truth beside the map.
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import tifffile
import torch
import tyro

from models.checkpoint import Estimator, load_estimator, outside_limits
from models.mapping import PsfMap, predict_map
from psf.command import pick_device, run
from psf.errors import InputError
from psf.files import run_record, whole_file, write_json
from psf.image_files import DECODE_ERRORS, decode_planes
from psf.microscope import Microscope
from psf.pictures import draw_map


@dataclass(frozen=True)
class Config:
    """Settings of a map."""

    image: tyro.conf.Positional[Path]  # TIFF, PNG or JPEG; of several pages the first is used
    checkpoint: Path  # folder of train.py, or the name of shipped weights, e.g. zernike1d
    na: float  # numerical aperture of the objective
    wavelength_um: float  # emission wavelength in vacuum, um
    pixel_size_um: float  # camera pixel / magnification, um
    refractive_index: float  # of the medium around the object (air 1.0, water 1.33)
    out: Path  # folder to write
    stride: int = 32  # pixels between neighbouring patches
    truth: Path | None = None  # TIFF with the true first parameter at each pixel, to compare
    allow_other_optics: bool = False  # go on with optics that the checkpoint was not trained for
    device: str = "auto"  # auto, cpu, cuda, mps


def read_first_plane(path: Path) -> torch.Tensor:
    """Luminance (H, W) of the first plane of an image file."""
    if not path.is_file():
        raise InputError(f"there is no image {path}.")
    try:
        plane = torch.from_numpy(next(decode_planes(path, page=0)))
    except DECODE_ERRORS as error:
        raise InputError(f"{path} cannot be read as an image: {error}") from error
    if path.suffix.lower() in (".tif", ".tiff"):
        with tifffile.TiffFile(path) as tiff:
            if len(tiff.pages) > 1:
                print(f"{path} has {len(tiff.pages)} pages; the first is used")
    return plane


def check_optics(config: Config, estimator: Estimator, microscope: Microscope) -> None:
    """Refuse optics that the network was not trained for, unless they are asked for."""
    if config.allow_other_optics or estimator.psf_model.is_gaussian:
        return
    outside = outside_limits(microscope, estimator.config["optics_limits"])
    if outside:
        raise InputError(
            f"{config.checkpoint} was trained for other optics: {'; '.join(outside)}. Train one "
            "for yours, or add --allow-other-optics."
        )


def read_truth(path: Path, psf_map: PsfMap, shape: torch.Size) -> torch.Tensor:
    """True first parameter at the patch centres, (R, C)."""
    try:
        truth = tifffile.imread(path)
    except (OSError, tifffile.TiffFileError) as error:
        raise InputError(f"{path} cannot be read as a TIFF: {error}") from error
    if truth.shape != tuple(shape):
        raise InputError(f"{path} has shape {truth.shape}, the image {tuple(shape)}.")
    rows, columns = psf_map.rows.round().long(), psf_map.columns.round().long()
    return torch.from_numpy(truth.astype(np.float32))[rows[:, None], columns]


def write_tiff(path: Path, psf_map: PsfMap, step_um: float) -> None:
    """Write all channels as an ImageJ hyperstack that Fiji and napari open calibrated."""
    with whole_file(path) as partial:
        tifffile.imwrite(
            partial,
            psf_map.channels.numpy().astype(np.float32),
            imagej=True,
            resolution=(1 / step_um, 1 / step_um),
            metadata={"axes": "CYX", "unit": "um", "Labels": list(psf_map.channel_names)},
        )


def as_table(psf_map: PsfMap, pixel_size_um: float) -> pd.DataFrame:
    """One row per patch: where it is, values, standard deviations and content."""
    y, x = torch.meshgrid(psf_map.rows, psf_map.columns, indexing="ij")
    table = {"y_px": y, "x_px": x, "y_um": y * pixel_size_um, "x_um": x * pixel_size_um}
    for name, channel in zip(psf_map.channel_names, psf_map.channels, strict=True):
        has_unit = name == "content probability" or f"_{psf_map.unit}" in name
        unit = "" if has_unit else f"_{psf_map.unit}"
        table[name.replace(" ", "_") + unit] = channel
    return pd.DataFrame({name: column.flatten().numpy() for name, column in table.items()})


def report(psf_map: PsfMap) -> None:
    """Print what was found, and how sure the network is of it."""
    has_content = psf_map.content >= 0.5
    without = int((~has_content).sum())
    if without:
        print(
            f"{without} of {has_content.numel()} patches hold nothing to estimate from "
            "(content probability below 0.5; grey in the overview)"
        )
    if not has_content.any():
        return
    parameters = zip(psf_map.names, psf_map.values, psf_map.standard_deviations, strict=True)
    for name, values, deviations in parameters:
        low, middle, high = np.percentile(values[has_content], (5, 50, 95))
        spread = float(deviations[has_content].median())
        print(
            f"{name}: median {middle:.2f} {psf_map.unit}, 5 to 95 % {low:.2f} to {high:.2f}; "
            f"standard deviation of one patch {spread:.2f} {psf_map.unit}"
        )


def main(config: Config) -> None:
    """Read, predict, write."""
    microscope = Microscope(
        config.na, config.wavelength_um, config.pixel_size_um, config.refractive_index
    )
    estimator = load_estimator(config.checkpoint, pick_device(config.device))
    check_optics(config, estimator, microscope)
    image = read_first_plane(config.image)
    started = time.perf_counter()
    psf_map = predict_map(estimator, image, microscope, config.stride)
    seconds = time.perf_counter() - started
    truth = read_truth(config.truth, psf_map, image.shape) if config.truth else None
    write_tiff(config.out / "psf_map.tif", psf_map, config.stride * config.pixel_size_um)
    with whole_file(config.out / "map.csv") as partial:
        as_table(psf_map, config.pixel_size_um).to_csv(partial, index=False, float_format="%.5g")
    title = (
        f"{config.image.name}: NA {config.na:g}, {config.wavelength_um:g} µm, "
        f"{config.pixel_size_um:g} µm per pixel, n {config.refractive_index:g}"
    )
    draw_map(config.out / "overview.png", image, psf_map, config.pixel_size_um, title, truth)
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(config).items()}
    write_json(
        config.out / "config.json",
        {**settings, "channels": psf_map.channel_names, **run_record(seconds=round(seconds, 2))},
    )
    rows, columns = psf_map.content.shape
    print(f"{rows} x {columns} patches in {seconds:.1f} s")
    report(psf_map)
    print(f"wrote {config.out} (look at {config.out / 'overview.png'})")


if __name__ == "__main__":
    run(Config, main, __doc__)
