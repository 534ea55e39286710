"""Map the PSF parameters over one image: IMAGE + checkpoint -> DIR/.

    python estimate_psf_map.py image.tif --checkpoint zernike1d --na 0.45 --wavelength-um 0.5 \
        --pixel-size-um 0.278 --refractive-index 1.33 --out maps/image

Optics that the file tells (OME-TIFF, ImageJ) need no flag. Writes psf_map.tif (float32, one pixel
per patch: values, standard deviations, content, photons per pixel; NaN without content),
psf_map_full.tif (values and standard deviations at every pixel), depth.tif (um, from a
--depth-calibration or from the optics), map.csv, config.json and, for people, overview.png. The
maps are smoothed as much as cross-validation advises (--smooth off leaves them alone); map.csv
keeps the single patches. With --truth, a TIFF of the image's size that holds the true first
parameter, the overview shows the truth beside it. The same command takes up an interrupted map of
a large image where it stopped.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tifffile
import torch
import tyro

from models.checkpoint import Estimator, load_estimator, outside_limits
from models.depth import DepthCalibration, depth_from_optics, is_signed
from models.map_files import map_table, write_channels, write_full_resolution
from models.mapping import PsfMap, predict_map
from models.sampling import ResampledImage, Sampling, fit_sampling
from models.smoothing import SmoothMap, smooth_map
from psf.camera import Camera, estimate_camera, saturated_share
from psf.command import keep_freed_memory, pick_device, run
from psf.errors import InputError
from psf.files import run_record, whole_file, write_json
from psf.micrographs import Micrograph, open_micrograph
from psf.microscope import Microscope
from psf.optics import NAMES, KnownOptics, resolve_optics
from psf.pictures import draw_map

SAMPLE_PX = 2**22  # pixels of an image, about, that the camera is read off
BAND_ROWS = 256  # read at a time
RESUMED = 5000  # patches; a smaller map is made again faster than it is resumed
SHOWN_PX = 1200  # longest side of the image in the overview
UNFINISHED = ("unfinished_map.f32", "unfinished_map.json")
SATURATED_WARN, SATURATED_REFUSE = 0.001, 0.25  # shares of the pixels


@dataclass(frozen=True)
class Config:
    """Settings of a map."""

    image: tyro.conf.Positional[Path]  # TIFF (also OME, ImageJ), PNG or JPEG
    checkpoint: Path  # name of shipped weights, e.g. zernike1d, or a folder of train.py
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
    depth_calibration: Path | None = None  # depth_calibration.json of calibrate_depth.py
    offset_counts: float | None = None  # counts of the camera without light; default: estimated
    gain_counts_per_e: float | None = None  # counts per detected photon; default: estimated
    full_resolution: bool = True  # write psf_map_full.tif and depth.tif
    truth: Path | None = None  # TIFF with the true first parameter at each pixel, to compare
    allow_other_optics: bool = False  # go on with optics that the checkpoint was not trained for
    device: str = "auto"  # auto, cpu, cuda, mps


class Depth(NamedTuple):
    """Depth on the map's grid, um."""

    values: np.ndarray  # (R, C)
    standard_deviations: np.ndarray  # (R, C)
    name: str


def known_optics(config: Config, micrograph: Micrograph, estimator: Estimator) -> KnownOptics:
    """Flags, else the file's metadata; a blur in pixels needs the pixel size alone."""
    facts = asdict(micrograph.facts)
    reference = asdict(Microscope())
    reference.pop("pixel_size_um")
    known = resolve_optics(
        {name: getattr(config, name) for name in NAMES},
        {name: facts[name] for name in NAMES},
        micrograph.facts.sources,
        reference if estimator.psf_model.is_gaussian else None,
    )
    for name in NAMES:
        source = known.sources[name]
        if not source.startswith("--") and source != "not needed":
            print(f"{name} {getattr(known.microscope, name):.4g} from the file ({source})")
    for note in known.notes:
        print(f"note: {note}")
    return known


def choose_sampling(config: Config, estimator: Estimator, microscope: Microscope) -> Sampling:
    """Bring fine pixels to the network's; refuse other optics, unless they are asked for."""
    if estimator.psf_model.is_gaussian:
        return Sampling()
    limits = estimator.config["optics_limits"]
    sampling = fit_sampling(microscope, limits["cutoff_cycles_per_pixel"])
    if sampling.factor > 1:
        print(f"pixels are finer than the network's: the image is {sampling.describe()}")
        # the pixel is fitted to the cut-off frequency; its own limits are those of the others
        limits = {name: limit for name, limit in limits.items() if name != "pixel_size_um"}
    outside = outside_limits(sampling.microscope(microscope), limits)
    if outside and not config.allow_other_optics:
        raise InputError(
            f"{config.checkpoint} was trained for other optics: {'; '.join(outside)}. Train one "
            "for yours (train.py --start-from), or add --allow-other-optics."
        )
    return sampling


def bands(micrograph: Micrograph, rows: int) -> Iterator[torch.Tensor]:
    """The image from top to bottom, `rows` rows at a time."""
    height = micrograph.shape[0]
    for start in range(0, height, rows):
        yield micrograph.rows(start, min(start + rows, height))


def look_at_camera(config: Config, micrograph: Micrograph) -> Camera:
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
    config: Config,
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
    return replace(found, rows=rows, columns=columns), stride


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


def find_depth(
    calibration: DepthCalibration | None, estimator: Estimator, psf_map: PsfMap, optics: Microscope
) -> Depth | None:
    """Depth from the calibration, else from the optics; None where neither gives one."""
    values, deviations = psf_map.values[0].numpy(), psf_map.standard_deviations[0].numpy()
    if calibration is not None:
        name = "depth (um)" if calibration.signed else "distance from focus (um)"
        depth = calibration.depth_um(values)
        return Depth(depth, calibration.deviation_um(values, deviations), name)
    if psf_map.unit != "waves" or psf_map.names[0] != "focus":
        return None
    signed = is_signed(estimator.psf_model, "focus")
    name = "depth (um)" if signed else "distance from focus (um)"
    depth = depth_from_optics(values, optics.um_per_wave, signed)
    return Depth(depth, deviations * optics.um_per_wave, name)


def read_truth(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """True first parameter (H, W)."""
    try:
        truth = tifffile.imread(path)
    except (OSError, tifffile.TiffFileError) as error:
        raise InputError(f"{path} cannot be read as a TIFF: {error}") from error
    if truth.shape != tuple(shape):
        raise InputError(f"{path} has shape {truth.shape}, the image {tuple(shape)}.")
    return truth.astype(np.float32)


def at_centres(truth: np.ndarray, psf_map: PsfMap) -> torch.Tensor:
    """Values of (H, W) at the centres of the patches, (R, C)."""
    rows, columns = psf_map.rows.round().long(), psf_map.columns.round().long()
    return torch.from_numpy(truth)[rows[:, None], columns]


def write_maps(
    config: Config,
    raw: PsfMap,
    final: PsfMap,
    photons: np.ndarray,
    depth: Depth | None,
    shape: tuple[int, int],
    pixel_um: float,
) -> None:
    """All TIFFs and the table."""
    blank = ~raw.has_content.numpy()
    channels = [channel.numpy() for channel in (*final.values, *final.standard_deviations)]
    names = [f"{name} ({final.unit})" for name in final.names]
    names += [f"{name} standard deviation ({final.unit})" for name in final.names]
    masked = [np.where(blank, np.nan, channel) for channel in channels]
    step_px = float(raw.rows[1] - raw.rows[0]) if len(raw.rows) > 1 else config.stride
    write_channels(
        config.out / "psf_map.tif",
        [*masked, raw.content.numpy(), photons],
        [*names, "content probability", "photons per pixel"],
        step_px * pixel_um,
    )
    more = [("photons_per_pixel", photons)]
    if config.smooth != "off":
        values = zip(final.names, final.values.numpy(), strict=True)
        more += [(f"{name}_smooth_{final.unit}", channel) for name, channel in values]
    if depth is not None:
        more += [("depth_um", depth.values)]
        more += [("depth_standard_deviation_um", depth.standard_deviations)]
    with whole_file(config.out / "map.csv") as partial:
        map_table(raw, pixel_um, more).to_csv(partial, index=False, float_format="%.5g")
    if not config.full_resolution:
        return
    # a smooth map knows about its blank patches from their neighbours
    is_filled = config.smooth != "off"
    full = channels if is_filled else masked
    write_full_resolution(config.out / "psf_map_full.tif", full, names, raw, shape, pixel_um)
    if depth is not None:
        maps = [d if is_filled else np.where(blank, np.nan, d) for d in depth[:2]]
        named = [depth.name, f"standard deviation of {depth.name}"]
        write_full_resolution(config.out / "depth.tif", maps, named, raw, shape, pixel_um)


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


def settings_of(config: Config) -> dict[str, Any]:
    """Plain values of the configuration."""
    return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(config).items()}


def check(config: Config) -> None:
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


def forget_unfinished(folder: Path) -> None:
    """Delete what an interrupted map would have gone on from."""
    for name in UNFINISHED:
        (folder / name).unlink(missing_ok=True)


def main(config: Config) -> None:
    """Read, predict, smooth, write."""
    keep_freed_memory()
    check(config)
    estimator = load_estimator(config.checkpoint, pick_device(config.device))
    calibration = None
    if config.depth_calibration is not None:
        calibration = DepthCalibration.from_json(config.depth_calibration)
    with open_micrograph(config.image, config.channel, config.z, config.t) as micrograph:
        for note in micrograph.notes:
            print(f"note: {note}")
        known = known_optics(config, micrograph, estimator)
        microscope = known.microscope
        if calibration is not None:
            calibration.check(
                microscope, estimator.config["label_names"][0], config.checkpoint.resolve().name
            )
        sampling = choose_sampling(config, estimator, microscope)
        shape = micrograph.shape
        truth = read_truth(config.truth, shape) if config.truth else None
        camera = look_at_camera(config, micrograph)
        started = time.perf_counter()
        raw, stride = predict(config, estimator, micrograph, sampling, microscope)
        seconds = time.perf_counter() - started
        shown = shrink(micrograph)
    if not raw.has_content.any():
        forget_unfinished(config.out)
        raise InputError(
            "no patch of the image holds anything to estimate from; it is blank, far too dark, or "
            "blurred beyond the range of the network."
        )
    final, smooth = smooth_parameters(raw, max(1.0, estimator.patch_size / stride), config.smooth)
    photons = photons_of(raw, camera)
    light = describe_light(camera, photons[raw.has_content.numpy()])
    depth = find_depth(calibration, estimator, final, microscope)
    write_maps(config, raw, final, photons, depth, shape, microscope.pixel_size_um)
    optics = (
        f"NA {microscope.na:g}, {microscope.wavelength_um:g} µm, "
        f"{microscope.pixel_size_um:.4g} µm per pixel, n {microscope.refractive_index:g}"
    )
    if estimator.psf_model.is_gaussian:
        optics = f"{microscope.pixel_size_um:.4g} µm per pixel"
    draw_map(
        config.out / "overview.png",
        shown,
        final,
        microscope.pixel_size_um,
        f"{config.image.name}: {optics}; {light}",
        None if truth is None else at_centres(truth, raw),
        depth and (depth.values, depth.name),
        shape[1] / shown.shape[1],
    )
    facts = {
        "optics": asdict(microscope),
        "optics_from": dict(known.sources),
        "sampling": asdict(sampling),
        "camera": asdict(camera),
        "smoothing_strength": [one.strength for one in smooth],
        "psf_model": estimator.config["psf_model"],
        "label_names": list(final.names),
        "label_unit": final.unit,
        "image_shape": list(shape),
        "map_shape": list(raw.content.shape),
        "patch_size_px": estimator.patch_size * sampling.factor,
    }
    run_facts = run_record(seconds=round(seconds, 2))
    write_json(config.out / "config.json", {**settings_of(config), **facts, **run_facts})
    forget_unfinished(config.out)
    rows, columns = raw.content.shape
    print(f"{rows} x {columns} patches in {seconds:.1f} s; {light}")
    report(final, smooth)
    print(f"wrote {config.out} (look at {config.out / 'overview.png'})")


if __name__ == "__main__":
    run(Config, main, __doc__)
