"""Restore an image that is blurred differently everywhere: IMAGE + map of its PSF -> DIR/.

    python deconvolve.py image.tif --map maps/image --out restored/image
    python deconvolve.py image.tif --checkpoint zernike1d_tilted --na 0.45 --wavelength-um 0.5 \
        --pixel-size-um 0.278 --refractive-index 1.33 --out restored/image

The map comes from estimate_psf_map.py, or is estimated on the way by a --checkpoint (default
zernike1d_tilted). Writes restored.tif (float32, in the counts and with the calibration of the
input, the camera's offset taken off), side_by_side.png (input and result, with insets) and
restoration.json. The restoration is Richardson-Lucy with total variation under the spatially
variant PSF, after the map was scaled, place by place, to what predicts held-out photons best
(--refine), and narrowed where it is unsure; where it found no content, only noise is taken off.
With --all-planes, channels and planes of a stack are restored one by one, each with the map of the
chosen one.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tifffile
import torch
from tqdm import tqdm

from common.command import keep_freed_memory, pick_device, run
from common.files import run_record, whole_file, write_json
from common.overviews import draw_restoration
from micrographs.camera import Camera
from micrographs.micrograph import Micrograph, open_micrograph
from models.checkpoint import load_estimator
from models.map_image import (
    MapSettings,
    check_settings,
    choose_sampling,
    forget_unfinished,
    known_optics,
    look_at_camera,
    predict,
    report,
    settings_of,
    smooth_parameters,
)
from models.mapping import PsfMap
from psf.errors import InputError
from restoration.blur_map import (
    check_belongs,
    continue_to_borders,
    read_map,
)
from restoration.iteration import Restored
from restoration.richardson_lucy import check_settings as check_iterations
from restoration.with_map import restore_with_map

WHITE_16 = 2**16 - 1


@dataclass(frozen=True, kw_only=True)
class Config(MapSettings):
    """Settings of a restoration."""

    map: Path | None = None  # folder of estimate_psf_map.py; default: the map is estimated here
    checkpoint: Path | None = None  # network that estimates the map; default zernike1d_tilted
    iterations: Literal["auto"] | int = "auto"  # auto: until held-out photons are predicted best
    tv: Literal["auto"] | float = "auto"  # weight of total variation, 0 to 0.1; auto: by the light
    background_counts: float = 0.0  # out-of-focus light, above the camera's offset
    cautious: bool = (
        True  # narrow PSFs that are too wide; take off noise only where they are unsure
    )
    refine: Literal["auto", "yes", "no"] = (
        "auto"  # the map by the image; auto: up to 1024 x 1024 px
    )
    all_planes: bool = False  # every channel, plane and time point, with the map of the chosen one
    bits: Literal[16, 32] = 32  # of restored.tif; 16: whole counts


def find_map(config: Config, micrograph: Micrograph) -> tuple[PsfMap, dict[str, Any]]:
    """The map of the PSF and what is known of the camera, from --map or a network."""
    if config.map is not None:
        psf_map, facts = read_map(config.map)
        check_belongs(facts, micrograph.shape)
        changed = [
            name
            for name, value in facts["optics"].items()
            if getattr(config, name) not in (None, value)
        ]
        if changed:
            print(f"note: {', '.join(changed)} of the flags holds, not that of {config.map}")
            given = {name: getattr(config, name) for name in changed}
            optics = replace(psf_map.microscope, **given)
            psf_map = replace(psf_map, microscope=optics)
        return psf_map, facts.get("camera", {})
    checkpoint = config.checkpoint or Path("zernike1d_tilted")
    estimator = load_estimator(checkpoint, pick_device(config.device))
    microscope = known_optics(config, micrograph, estimator.psf_model).microscope
    sampling = choose_sampling(config, checkpoint, estimator, microscope)
    raw, stride = predict(config, estimator, micrograph, sampling, microscope)
    forget_unfinished(config.out)
    if not raw.has_content.any():
        raise InputError(
            "no patch of the image holds anything to estimate from; it is blank, far too dark, or "
            "blurred beyond the range of the network."
        )
    overlap = max(1.0, estimator.patch_size / stride)
    final, smooth = smooth_parameters(raw, overlap, config.smooth)
    report(final, smooth)
    psf_map = raw
    if smooth:
        strengths, patch_px = (
            [one.strength for one in smooth],
            estimator.patch_size * sampling.factor,
        )
        psf_map = continue_to_borders(psf_map, strengths, patch_px, micrograph.shape)
    return psf_map, {}


def known_camera(config: Config, micrograph: Micrograph, found: dict[str, Any]) -> Camera:
    """Offset and gain: flags, else those of the map, else estimated from the image."""
    camera = Camera(**found) if found else look_at_camera(config, micrograph)
    for name in ("offset_counts", "gain_counts_per_e"):
        if getattr(config, name) is not None:
            camera = replace(camera, **{name: getattr(config, name)})
    if camera.gain_counts_per_e is None:
        print("note: the gain is unknown; counts are taken for photons (--gain-counts-per-e)")
    return camera


def planes(config: Config, micrograph: Micrograph) -> Iterator[Micrograph]:
    """The chosen plane, or all of the file in the order T, Z, C."""
    if not config.all_planes or micrograph.plane_count == 1:
        yield micrograph
        return
    sizes = micrograph.sizes
    channels = [micrograph.channel] if micrograph.channel is None else range(sizes["C"])
    for t in range(sizes["T"]):
        for z in range(sizes["Z"]):
            for channel in channels:
                yield micrograph.select(channel=channel, z=z, t=t)


def restore_plane(
    config: Config, micrograph: Micrograph, psf_map: PsfMap, camera: Camera
) -> tuple[np.ndarray, np.ndarray, Restored, int]:
    """Input and result (H, W) in counts above the offset, how it went, and the eigen-PSFs."""
    plane = micrograph.plane()
    if not torch.isfinite(plane).all():
        raise InputError("the image contains NaN or infinite pixels; repair or crop it first.")
    if (plane < 0).any() and config.offset_counts is None:
        raise InputError(
            f"the darkest pixel is {float(plane.min()):g}; give the camera's --offset-counts, so "
            "that counts above it are light."
        )
    light = (plane - camera.offset_counts).clamp(min=0).to(pick_device(config.device))
    gain = camera.gain_counts_per_e or 1.0
    restored, blur = restore_with_map(
        light,
        psf_map,
        config.iterations,
        config.background_counts,
        config.tv,
        gain,
        config.cautious,
        {"auto": None, "yes": True, "no": False}[config.refine],
    )
    return light.cpu().numpy(), restored.image.cpu().numpy(), restored, blur.rank


def write_restored(path: Path, stack: np.ndarray, axes: str, pixel_um: float, bits: int) -> None:
    """Write planes (..., H, W) as an ImageJ hyperstack with the pixel size of the input."""
    if bits == 16:
        clipped = float((stack > WHITE_16).mean())
        if clipped:
            print(f"note: {clipped:.2%} of the pixels are above {WHITE_16} and were cut off")
        stack = stack.round().clip(0, WHITE_16).astype(np.uint16)
    with whole_file(path) as partial:
        tifffile.imwrite(
            partial,
            stack,
            imagej=True,
            resolution=(1 / pixel_um, 1 / pixel_um),
            metadata={"axes": axes, "unit": "um"},
        )


def check(config: Config) -> None:
    """Refuse what makes no sense before the work starts."""
    check_settings(config)
    if config.map is not None and config.checkpoint is not None:
        raise InputError("give --map or --checkpoint, not both.")
    check_iterations(config.iterations, config.tv, "momentum")
    if not 0 <= config.background_counts < float("inf"):
        raise InputError(f"--background-counts is {config.background_counts:g}; give 0 or more.")


def main(config: Config) -> None:
    """Find the map, restore, write."""
    keep_freed_memory()
    check(config)
    started = time.perf_counter()
    with open_micrograph(config.image, config.channel, config.z, config.t) as micrograph:
        for note in micrograph.notes:
            print(f"note: {note}")
        psf_map, found = find_map(config, micrograph)
        camera = known_camera(config, micrograph, found)
        chosen = list(planes(config, micrograph))
        sizes = micrograph.sizes
        results, shown, facts = [], None, []
        for one in tqdm(chosen, desc="restore", unit="plane", disable=len(chosen) == 1):
            before, after, restored, rank = restore_plane(config, one, psf_map, camera)
            results.append(after)
            shown = shown or (before, after, restored)
            facts.append({"channel": one.channel, "z": one.z, "t": one.t} | outcome(restored))
    stack, axes = np.stack(results), "YX"
    if len(results) > 1:
        counts = sizes["T"], sizes["Z"], len(results) // (sizes["T"] * sizes["Z"])
        stack, axes = stack.reshape(*counts, *stack.shape[1:]), "TZCYX"
    else:
        stack = stack[0]
    microscope = psf_map.microscope
    write_restored(config.out / "restored.tif", stack, axes, microscope.pixel_size_um, config.bits)
    draw_restoration(
        config.out / "side_by_side.png",
        shown[0],
        shown[1],
        microscope.pixel_size_um,
        f"{config.image.name}: {shown[2].iterations} iterations, {rank} eigen-PSFs",
    )
    seconds = round(time.perf_counter() - started, 2)
    write_json(
        config.out / "restoration.json",
        {
            **settings_of(config),
            "optics": asdict(microscope),
            "camera": asdict(camera),
            "psf_model": psf_map.model.as_config(),
            "eigen_psfs": rank,
            "planes": facts,
            **run_record(seconds=seconds),
        },
    )
    first = shown[2]
    print(
        f"{len(results)} plane{'s' if len(results) > 1 else ''} in {seconds:.1f} s; "
        f"{first.iterations} iterations, total variation {first.tv:.3g}, {rank} eigen-PSFs; "
        f"deviance {first.deviance:.2f} per pixel (about 1 if PSF, gain and offset are right)"
    )
    print(f"wrote {config.out} (look at {config.out / 'side_by_side.png'})")


def outcome(restored: Restored) -> dict[str, float]:
    """Numbers of one restoration."""
    return {
        "iterations": restored.iterations,
        "tv": restored.tv,
        "deviance_per_pixel": round(restored.deviance, 4),
    }


if __name__ == "__main__":
    run(Config, main, __doc__)
