"""From a file to the map of its PSF: optics, sampling and camera, prediction, smoothing.

What the scripts that take an image share; `MapSettings` are their common options.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro

from micrographs.camera import Camera, estimate_camera, saturated_share
from micrographs.metadata import NAMES, KnownOptics, resolve_optics
from micrographs.micrograph import Micrograph
from models.checkpoint import Estimator, outside_limits
from models.mapping import PsfMap, predict_map
from models.resampling import ResampledImage, Sampling, fit_sampling
from models.smoothing import SmoothMap, smooth_map
from psf.errors import InputError
from psf.microscope import Microscope
from psf.model import PsfModel

SAMPLE_PX = 2**22  # pixels of an image, about, that the camera is read off
BAND_ROWS = 256  # read at a time
RESUMED = 5000  # patches; a smaller map is made again faster than it is resumed
SHOWN_PX = 1200  # longest side of the image in the overview
UNFINISHED = ("unfinished_map.f32", "unfinished_map.json")
SATURATED_WARN, SATURATED_REFUSE = 0.001, 0.25  # shares of the pixels


@dataclass(frozen=True, kw_only=True)
class MapSettings:
    """What decides the map of an image."""

    image: tyro.conf.Positional[Path]  # TIFF (also OME, ImageJ), PNG or JPEG
    out: Path  # folder to write
    na: float | None = None  # numerical aperture of the objective; default: the file's
    wavelength_um: float | None = None  # emission wavelength in vacuum, um; default: the file's
    pixel_size_um: float | None = None  # camera pixel / magnification, um; default: the file's
    refractive_index: float | None = None  # of the medium around the object; default: the file's
    channel: int | None = None  # of the file, from 0; default: the first
    z: int | None = None  # plane of a stack, from 0; default: the middle one
    t: int | None = None  # time point, from 0; default: the first
    stride: int = 32  # pixels between neighbouring patches
    smooth: Literal["auto", "off"] | float = "auto"  # strength; auto: by cross-validation
    offset_counts: float | None = None  # counts of the camera without light; default: estimated
    gain_counts_per_e: float | None = None  # counts per detected photon; default: estimated
    allow_other_optics: bool = False  # go on with optics that the checkpoint was not trained for
    device: str = "auto"  # auto, cpu, cuda, mps


def check_settings(config: MapSettings) -> None:
    """Refuse what makes no sense before the work starts."""
    if isinstance(config.smooth, float) and not 0 < config.smooth < float("inf"):
        raise InputError(f"--smooth is {config.smooth:g}; give auto, off or a number above 0.")
    gain, offset = config.gain_counts_per_e, config.offset_counts
    if gain is not None and not 0 < gain < float("inf"):
        raise InputError(f"--gain-counts-per-e is {gain:g}; it must be above 0.")
    if offset is not None and not np.isfinite(offset):
        raise InputError(f"--offset-counts is {offset:g}; give a number of counts.")
    standing = next(p for p in (config.out, *config.out.absolute().parents) if p.exists())
    if not standing.is_dir():
        raise InputError(f"--out {config.out} cannot be written: {standing} is a file.")


def known_optics(config: MapSettings, micrograph: Micrograph, model: PsfModel) -> KnownOptics:
    """Flags, else the file's metadata; a blur in pixels needs the pixel size alone."""
    facts = asdict(micrograph.facts)
    reference = asdict(Microscope())
    reference.pop("pixel_size_um")
    known = resolve_optics(
        {name: getattr(config, name) for name in NAMES},
        {name: facts[name] for name in NAMES},
        micrograph.facts.sources,
        reference if model.is_gaussian else None,
    )
    for name in NAMES:
        source = known.sources[name]
        if not source.startswith("--") and source != "not needed":
            print(f"{name} {getattr(known.microscope, name):.4g} from the file ({source})")
    for note in known.notes:
        print(f"note: {note}")
    return known


def choose_sampling(
    config: MapSettings, checkpoint: str | Path, estimator: Estimator, microscope: Microscope
) -> Sampling:
    """Bring fine pixels to the network's; refuse other optics, unless they are asked for."""
    if estimator.psf_model.is_gaussian:
        return Sampling()
    limits = estimator.config["optics_limits"]
    sampling = fit_sampling(microscope, limits["cutoff_cycles_per_pixel"])
    if sampling.factor > 1:
        print(f"pixels are finer than the network's: the image is {sampling.describe()}")
        # the pixel is fitted to the cut-off frequency; its own limits are those of the others
        limits = {
            quantity: limit for quantity, limit in limits.items() if quantity != "pixel_size_um"
        }
    outside = outside_limits(sampling.microscope(microscope), limits)
    if outside and not config.allow_other_optics:
        raise InputError(
            f"{checkpoint} was trained for other optics: {'; '.join(outside)}. Train one "
            "for yours (train.py --start-from), or add --allow-other-optics."
        )
    return sampling


def bands(micrograph: Micrograph, rows: int) -> Iterator[torch.Tensor]:
    """The image from top to bottom, `rows` rows at a time."""
    height = micrograph.shape[0]
    for start in range(0, height, rows):
        yield micrograph.rows(start, min(start + rows, height))


def look_at_camera(config: MapSettings, micrograph: Micrograph) -> Camera:
    """Offset and gain, from flags or the image; says what share of the pixels is saturated."""
    height, width = micrograph.shape
    count = -(-height // BAND_ROWS)
    taken = min(count, max(1, SAMPLE_PX // (BAND_ROWS * width)))
    starts = (np.linspace(0, count - 1, taken).round().astype(int) * BAND_ROWS).tolist()
    sample = [micrograph.rows(start, min(start + BAND_ROWS, height)) for start in starts]
    sample = torch.cat(sample)
    saturated = saturated_share(sample, micrograph.full_scale)
    if saturated > SATURATED_REFUSE:
        raise InputError(
            f"{saturated:.0%} of the pixels are saturated; record the image again with less light."
        )
    if saturated > SATURATED_WARN:
        print(f"note: {saturated:.1%} of the pixels are saturated; expect wrong values there")
    camera = estimate_camera(sample)
    for name in ("offset_counts", "gain_counts_per_e"):
        given = getattr(config, name)
        if given is not None:
            camera = replace(camera, **{name: given})
    return camera


def shrink(micrograph: Micrograph) -> torch.Tensor:
    """The whole field on at most SHOWN_PX pixels a side, each the mean of a square."""
    step = -(-max(micrograph.shape) // SHOWN_PX)
    rows = step * max(1, BAND_ROWS // step)
    parts = [
        torch.nn.functional.avg_pool2d(band[None], step)[0]
        for band in bands(micrograph, rows)
        if len(band) >= step
    ]
    return torch.cat(parts)


def predict(
    config: MapSettings,
    estimator: Estimator,
    micrograph: Micrograph,
    sampling: Sampling,
    microscope: Microscope,
) -> tuple[PsfMap, int]:
    """The map with its centres in camera pixels, and the stride in pixels of the network."""
    image = ResampledImage(micrograph, sampling) if sampling.factor > 1 else micrograph
    stride = max(1, round(config.stride / sampling.factor)) if config.stride > 0 else config.stride
    stat = config.image.stat()
    key = {**settings_of(config), "bytes": stat.st_size, "changed": stat.st_mtime}
    is_large = stride > 0 and image.shape[0] * image.shape[1] > RESUMED * stride**2
    partial = config.out / UNFINISHED[0] if is_large else None
    found = predict_map(estimator, image, sampling.microscope(microscope), stride, partial, key)
    rows, columns = ((at + 0.5) * sampling.factor - 0.5 for at in (found.rows, found.columns))
    return replace(found, microscope=microscope, rows=rows, columns=columns), stride


def smooth_parameters(
    psf_map: PsfMap, overlap: float, smooth: str | float
) -> tuple[PsfMap, list[SmoothMap]]:
    """The map with smoothed values and their standard deviations; blank patches are filled."""
    if smooth == "off":
        return psf_map, []
    strength = None if smooth == "auto" else float(smooth)
    content = psf_map.has_content.numpy()
    found = [
        smooth_map(values.numpy(), deviations.numpy(), content, overlap, strength)
        for values, deviations in zip(psf_map.values, psf_map.standard_deviations, strict=True)
    ]
    values, deviations = (
        torch.from_numpy(np.stack([getattr(one, name) for one in found])).float()
        for name in ("values", "standard_deviations")
    )
    return replace(psf_map, values=values, standard_deviations=deviations), found


def report(psf_map: PsfMap, smooth: list[SmoothMap]) -> None:
    """Print what was found, and how sure the network is of it."""
    content = psf_map.has_content
    without = int((~content).sum())
    if without:
        print(
            f"{without} of {content.numel()} patches hold nothing to estimate from "
            "(content probability below 0.5; grey in the overview)"
        )
    parameters = zip(psf_map.names, psf_map.values, psf_map.standard_deviations, strict=True)
    for name, values, deviations in parameters:
        low, middle, high = np.percentile(values[content], (5, 50, 95))
        spread = float(deviations[content].median())
        print(
            f"{name}: median {middle:.2f} {psf_map.unit}, 5 to 95 % {low:.2f} to {high:.2f}; "
            f"standard deviation at one place {spread:.2f} {psf_map.unit}"
        )
    for name, one in zip(psf_map.names, smooth, strict=False):
        print(
            f"{name}: smoothed with strength {one.strength:.3g}; {one.outliers:.1%} of the patches "
            "lie beyond three of their standard deviations (map.csv holds the single patches)"
        )


def describe_light(camera: Camera, photons: np.ndarray) -> str:
    """The light of the patches with content, in photons where the gain is known."""
    if camera.gain_counts_per_e is None:
        return "photons per pixel unknown"
    median = float(np.median(photons))
    return (
        f"{median:,.0f} photons per pixel" if median >= 100 else f"{median:.2g} photons per pixel"
    )


def photons_of(psf_map: PsfMap, camera: Camera) -> np.ndarray:
    """Mean photons per pixel of each patch (R, C); NaN where the gain is unknown."""
    if camera.gain_counts_per_e is None:
        return np.full(psf_map.brightness.shape, np.nan, np.float32)
    signal = (psf_map.brightness.numpy() - camera.offset_counts).clip(0)
    return (signal / camera.gain_counts_per_e).astype(np.float32)


def settings_of(config: MapSettings) -> dict[str, Any]:
    """Plain values of the configuration."""
    return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(config).items()}


def forget_unfinished(folder: Path) -> None:
    """Delete what an interrupted map would have gone on from."""
    for name in UNFINISHED:
        (folder / name).unlink(missing_ok=True)
