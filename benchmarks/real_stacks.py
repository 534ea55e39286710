r"""Focus estimates on real focal stacks, judged tile by tile against the sharpest plane.

    python benchmarks/real_stacks.py --folder STACKS --optics optics.json --out results

A stack is NAME_stack.tif with NAME_truth.json, or NAME.tif with NAME.json. The JSON file holds z of
the planes: z_um, or z_plane if only their order is known. It may hold na, wavelength_um,
refractive_index and pixel_size_um (or pixel_um). Those of --optics, {"NAME": {"na": 0.8, ...}},
replace them.

The true focus of a tile comes from the stack alone, see `stack_truth.py`. Only the calibrated error
and the direction of z for a signed parameter are fitted to it. Writes:

    real_stacks_patches.csv   every estimate in the tiles whose focus is known, and its truth
    real_stacks.csv           scores per network, context, stack and group of patches
    real_stacks.md            the main ones, and the coverage of the error bars by group
    real_stacks.png           estimates against the true distance from focus

The intervals are bootstraps over the tiles of a stack. A signed parameter is compared with z - z of
the focus, any other one with the distance |z - z of the focus|.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.stack_scores import mean_rows, score_stack
from benchmarks.stack_tables import draw, markdown
from benchmarks.stack_truth import Stack, TileFocus, find_stacks, sharpness, tile_focus
from common.command import pick_device, run
from common.files import run_record, whole_file, write_csv
from common.pictures import save_figure
from models.checkpoint import load_estimator
from models.depth import DEPTH_LABELS, is_signed
from models.depth_fit import follows
from models.estimator import Estimator
from models.map_image import map_stack, network_image
from models.mapping import Context, PsfMap
from models.recording import Recording, RecordingOptions, open_recording, outside_training
from psf.errors import InputError
from psf.model import PsfModel


@dataclass(frozen=True)
class Config:
    """Settings of the benchmark."""

    folder: Path  # focal stacks with their truth files
    checkpoint: tuple[Path, ...] = (Path("zernike1d_tilted"),)  # networks: folders or shipped names
    optics: Path | None = None  # JSON file with the optics of the stacks, by name; see above
    # patches that are seen together: of all planes, of an image, or none; several are compared
    context: tuple[Context, ...] = ("stack",)
    stride: int = 32  # pixels between neighbouring patches
    device: str = "auto"  # auto, cpu, cuda, mps
    out: Path = Path("results")  # folder to write


@dataclass(frozen=True)
class Tiles:
    """The tiles of a stack in all K planes, on a grid of R rows and C columns."""

    focus: TileFocus  # (R * C,)
    contrast: np.ndarray  # (K, R, C) standard deviation over the mean light
    brightness: np.ndarray  # (K, R, C) mean light, in photons per pixel if the gain was found


def measure_tiles(stack: Stack, recording: Recording) -> Tiles:
    """True focus, contrast and brightness of the tiles of an open stack."""
    size, stride = recording.estimator.patch_size, recording.stride_px
    camera = recording.camera
    gain = camera.gain_counts_per_e if camera.gain_source == "found" else None
    sharp, contrast, brightness = [], [], []
    for plane in recording.planes:
        image = network_image(recording, plane)
        pixels = image.rows(0, image.shape[0])
        sharp.append(sharpness(pixels, size, stride).numpy())
        light = pixels.double()[None] - camera.offset_counts
        mean, square = (
            torch.nn.functional.avg_pool2d(part, size, stride)[0].numpy()
            for part in (light, light.square())
        )
        deviation = np.sqrt(np.maximum(square - mean**2, 0))
        contrast.append(deviation / np.where(mean > 0, mean, np.nan))
        brightness.append(mean / (gain or 1.0))
    focus = tile_focus(np.stack(sharp, 1).reshape(2, len(sharp), -1), stack.z)
    return Tiles(focus, np.stack(contrast), np.stack(brightness))


def estimates(stack: Stack, recording: Recording, maps: list[PsfMap], tiles: Tiles) -> pd.DataFrame:
    """Every estimate in the tiles, one row per tile and plane.

    `focus_z` and `truth` are NaN in tiles whose focus is unknown. If z counts planes or the label
    gives no depth, estimates are in the unit of the network and error bars are NaN.
    """
    model, name = recording.estimator.psf_model, label_of(maps[0])
    p = model.label_names.index(name)
    in_um = stack.in_um and name in DEPTH_LABELS
    um = recording.estimator.um_per_unit(recording.microscope)[name] if in_um else 1.0
    plane, row, column = (index.ravel() for index in np.indices(tiles.contrast.shape))
    width = tiles.contrast.shape[2]
    tile = row * width + column
    spacing = -(-recording.estimator.patch_size // recording.stride_px)  # tiles that overlap
    z, focus_z = stack.z[plane], tiles.focus.z[tile]

    def of_maps(attribute: str) -> np.ndarray:
        return um * np.stack([getattr(one, attribute)[p].double().numpy() for one in maps]).ravel()

    found = {
        "tile": tile,
        "block": row // spacing * width + column // spacing,
        "plane": plane,
        "z": z,
        "focus_z": focus_z,
        "peak": tiles.focus.contrast[tile],
        **with_direction(z - focus_z, of_maps("values"), model, name),
        "half_68": of_maps("standard_deviations") if in_um else np.nan,
        "half_95": of_maps("half_widths_95") if in_um else np.nan,
        "content": np.stack([one.content.numpy() for one in maps]).ravel(),
        "centred": tiles.focus.centred[tile],
        "contrast": tiles.contrast.ravel(),
        "brightness": tiles.brightness.ravel(),
    }
    furthest_um = um * np.abs(model.label_ranges[p]).max() if in_um else np.inf
    found["out_of_range"] = np.abs(found["truth"]) > furthest_um
    return pd.DataFrame(found)


def with_direction(
    distance: np.ndarray, values: np.ndarray, model: PsfModel, name: str
) -> dict[str, np.ndarray]:
    """Truth and estimate (N,): with their signs if the network tells them, else without.

    The direction in which a stack counts z is not known: it is the one that fits the estimates.
    """
    known = np.isfinite(distance)
    if is_signed(model, name):
        falls = known.any() and follows(values[known], distance[known]) < 0
        return {"truth": -distance if falls else distance, "estimate": values}
    is_folded = model.label_ranges[model.label_names.index(name)][0] < 0
    return {"truth": np.abs(distance), "estimate": np.abs(values) if is_folded else values}


def label_of(psf_map: PsfMap) -> str:
    """The parameter that gives depth; the first one if none does."""
    return next((name for name in DEPTH_LABELS if name in psf_map.names), psf_map.names[0])


def judge(stack: Stack, estimator: Estimator, config: Config) -> Iterator[pd.DataFrame]:
    """Estimates of a network in a stack, a table per context.

    A network of single patches has the context "none" alone.
    """
    options = RecordingOptions(**stack.optics, stride=config.stride, allow_other_optics=True)
    with open_recording(stack.path, options, estimator, is_stack=True) as recording:
        if len(recording.planes) != len(stack.z):
            raise InputError(
                f"{stack.path} has {len(recording.planes)} planes, its truth z of {len(stack.z)}."
            )
        outside = outside_training(estimator, recording.microscope, recording.resampling)
        if outside:
            print(f"note: {estimator.name} was not trained for {stack.name}: {'; '.join(outside)}")
        tiles = measure_tiles(stack, recording)
        for context in config.context if estimator.context is not None else ("none",):
            found = estimates(stack, recording, map_stack(recording, context), tiles)
            keys = {"network": estimator.name, "context": context, "stack": stack.name}
            yield found.assign(**keys, unit="um" if stack.in_um else "planes")


def main(config: Config) -> None:
    """Map, judge, write, draw."""
    if config.stride < 1:
        raise InputError(f"--stride is {config.stride}; give at least 1 pixel.")
    stacks, parts = find_stacks(config.folder, config.optics), []
    for path in config.checkpoint:
        estimator = load_estimator(path, pick_device(config.device))
        for stack in stacks:
            parts += judge(stack, estimator, config)
    scores = pd.concat([score_stack(part) for part in parts])
    scores = pd.concat([scores, mean_rows(scores)], ignore_index=True)
    patches = pd.concat(parts, ignore_index=True)
    patches = patches[patches["focus_z"].notna()]
    write_csv(config.out / "real_stacks_patches.csv", patches, "%.6g")
    write_csv(config.out / "real_stacks.csv", scores)
    text = markdown(scores) + f"\nCommit {run_record()['commit']}.\n"
    with whole_file(config.out / "real_stacks.md") as partial:
        partial.write_text(text, encoding="utf-8")
    save_figure(
        config.out / "real_stacks.png", draw(pd.read_csv(config.out / "real_stacks_patches.csv"))
    )
    print(text)
    print(f"wrote real_stacks.csv, .md, .png and real_stacks_patches.csv to {config.out}")


if __name__ == "__main__":
    run(Config, main, __doc__)
