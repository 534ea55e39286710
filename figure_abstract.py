"""Draw the graphical abstract: image -> PSF map -> depth -> restoration.

    python figure_abstract.py --out results

A held-out image is blurred like an object on a curved surface and recorded with photon noise. From
that one image come the map of its PSF, the depth of the object and the restored image. It takes a
minute or two.

Writes to --out:
    figure_abstract.png, .pdf   the four steps in a row
    figure_abstract.csv         one row: settings, errors of focus and depth, gain in SNR
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import pandas as pd
import torch
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from common.command import keep_freed_memory, pick_device, run
from common.files import write_csv
from common.output import holds_out_folder
from common.overviews import busiest
from common.pictures import COLOURS, add_scale_bar, colour_map, save_figure
from common.psf_grid import draw_psfs
from models.checkpoint import load_estimator
from models.depth import depth_of_map
from models.estimator import Estimator
from models.map_image import smooth_parameters
from models.mapping import PsfMap, predict_map
from psf.blur import blur_varying, interpolate_grid, interpolation_weights
from psf.errors import InputError
from psf.microscope import Microscope
from psf.model import PsfModel, um_per_label
from psf.noise import camera_counts, to_photons
from psf.synthesis import synthesize
from restoration.blur_map import continue_to_borders
from restoration.scores import snr_db
from restoration.with_map import restore_with_map
from simulation.sources import TEST_IMAGES, builtin_sources, read_plane

LEVELS = 65  # PSFs along the depth; the blur is interpolated between them
BEND = 0.25  # share of the depth that comes from the bend of the surface, the rest from its tilt
PSF_PX = 127  # edge of the PSFs; holds 99 % of the light of the deepest one
DETAIL = 6  # edge of the details: this part of the image
SIZE = {"title": 13, "small": 10}  # font sizes in points: 12 and 9 px in a picture 800 px wide
CONTOUR_UM = 2.0  # of depth


@dataclass(frozen=True)
class Config:
    """Settings of the graphical abstract."""

    out: Path = Path("results")  # folder of the figure and its table
    source: str = "immunohistochemistry"  # held-out image: one of TEST_IMAGES
    checkpoint: str = "focus"  # network that estimates focus: a shipped name or a folder
    depth_um: tuple[float, float] = (0.0, 10.0)  # least and largest depth of the surface, um
    photons: float = 1000.0  # mean per pixel
    read_noise_e: float = 1.6  # read noise, electrons rms
    stride: int = 16  # pixels between neighbouring patches of the map
    microscope: Annotated[Microscope, tyro.conf.arg(name="")] = field(default_factory=Microscope)
    device: str = "auto"  # auto, cpu, cuda, mps
    seed: int = 0  # of the noise


class Scene(NamedTuple):
    """A simulated recording and its truth, all (H, W)."""

    counts: torch.Tensor
    truth: torch.Tensor  # the object, in counts without noise
    depth_um: torch.Tensor


class Found(NamedTuple):
    """What was estimated from the counts."""

    psf_map: PsfMap
    depth_um: np.ndarray  # (R, C)
    restored: torch.Tensor  # (H, W)


def curved_depth_um(size: int, least_um: float, largest_um: float) -> torch.Tensor:
    """Depth (size, size) of a sheet that rises along x and is bent upwards along y."""
    line = torch.linspace(0, 1, size)
    share = (1 - BEND) * line + BEND * (2 * line[:, None] - 1) ** 2
    return least_um + (largest_um - least_um) * share


def simulate(config: Config, sharp: torch.Tensor, model: PsfModel) -> Scene:
    """The recording of an object (H, W) on a curved surface; its borders are cut off."""
    size = min(sharp.shape)
    if size < 2 * PSF_PX:
        raise InputError(f"the object has {size} px; give one of at least {2 * PSF_PX} px.")
    sharp, margin = sharp[:size, :size], PSF_PX // 2
    depth_um = curved_depth_um(size, *config.depth_um)
    focus = depth_um / um_per_label(model, config.microscope)["focus"]
    levels = torch.linspace(float(focus.min()), float(focus.max()), LEVELS)
    psfs = synthesize(model, levels[:, None], config.microscope, PSF_PX)
    blurred = blur_varying(sharp, psfs, interpolation_weights(focus, levels)).clamp(min=0)
    generator = torch.Generator().manual_seed(config.seed)
    photons = to_photons(blurred[None], config.photons)
    counts = camera_counts(photons, generator, config.read_noise_e)[0].clamp(min=0)
    inner = slice(margin, -margin)
    truth = sharp[inner, inner] * float(photons.mean() / blurred.mean())
    return Scene(counts, truth, depth_um[inner, inner])


def estimate(config: Config, estimator: Estimator, counts: torch.Tensor) -> Found:
    """Map, depth and restoration of an image."""
    found = predict_map(estimator, counts, config.microscope, config.stride)
    overlap = max(1.0, estimator.patch_size / config.stride)
    _, smoothing = smooth_parameters(found, overlap, "auto")
    strengths = [one.strength for one in smoothing]
    shape = (counts.shape[0], counts.shape[1])
    psf_map = continue_to_borders(found, strengths, estimator.patch_size, shape)
    restored, _ = restore_with_map(counts.to(estimator.device), psf_map)
    return Found(psf_map, depth_of_map(psf_map).values, restored.image.cpu())


def row_of(config: Config, scene: Scene, found: Found) -> dict[str, float | str]:
    """Settings, rms errors over the patches with content, and the gain in SNR."""
    rows, columns = (at.round().long() for at in (found.psf_map.rows, found.psf_map.columns))
    error_um = found.depth_um - scene.depth_um[rows[:, None], columns].numpy()
    rms_um = float(np.sqrt(np.mean(error_um[found.psf_map.has_content.numpy()] ** 2)))
    um_per_wave = um_per_label(found.psf_map.model, found.psf_map.microscope)["focus"]
    before, after = (snr_db(image, scene.truth) for image in (scene.counts, found.restored))
    low, high = scene.depth_um.min(), scene.depth_um.max()
    return {
        "image": config.source,
        "checkpoint": config.checkpoint,
        "photons_per_pixel": config.photons,
        **asdict(config.microscope),
        "depth_from_um": float(low),
        "depth_to_um": float(high),
        "depth_rms_error_um": rms_um,
        "focus_rms_error_waves": rms_um / um_per_wave,
        "snr_blurred_db": before,
        "snr_restored_db": after,
        "snr_gain_db": after - before,
    }


def draw(scene: Scene, found: Found) -> Figure:
    """The four steps in a row, and enlarged details of the first and the last one."""
    figure = Figure(figsize=(12.4, 3.2), layout="constrained")
    grid = figure.add_gridspec(2, 5, width_ratios=(1, 1, 1, 1, 0.5))
    first, psfs, depth, last = (figure.add_subplot(grid[:, column]) for column in range(4))
    details = [figure.add_subplot(grid[row, 4]) for row in (0, 1)]
    pixel_um, width = found.psf_map.microscope.pixel_size_um, scene.counts.shape[1]
    limits = np.percentile(scene.truth, (0.5, 99.5))
    pictures = (scene.counts, found.restored)
    edge = width // DETAIL
    is_deep = scene.depth_um > scene.depth_um.median()  # where the blur can be seen
    (place,) = busiest((is_deep * (found.restored - scene.counts)).numpy(), edge, 1)
    for axes, detail, image in zip((first, last), details, pictures, strict=True):
        for one, pixels in ((axes, image), (detail, _part(image, place, edge))):
            one.imshow(pixels.numpy(), cmap="gray", vmin=limits[0], vmax=limits[1])
        corner = (place[1] - 0.5, place[0] - 0.5)
        axes.add_patch(Rectangle(corner, edge, edge, fill=False, color=COLOURS[1], lw=2))
        detail.spines[:].set(color=COLOURS[1], lw=3)
    add_scale_bar(first, pixel_um, width)
    drawn = draw_psfs(psfs, scene.counts, found.psf_map, bars=False)
    if drawn.enlarged > 1:
        psfs.set_xlabel(f"PSFs drawn {drawn.enlarged} times larger", fontsize=SIZE["small"])
    _draw_depth(depth, found, scene.counts.shape)
    titles = ("one blurred image", "map of its PSF", "depth", "restored image")
    for number, (axes, title) in enumerate(zip((first, psfs, depth, last), titles, strict=True), 1):
        axes.set_title(f"{number}  {title}", fontsize=SIZE["title"])
    for detail, title in zip(details, ("blurred", "restored"), strict=True):
        detail.set_title(title, fontsize=SIZE["small"])
    for axes in (first, psfs, depth, last, *details):
        axes.set(xticks=[], yticks=[])
    return figure


def _part(image: torch.Tensor, place: tuple[int, int], edge: int) -> torch.Tensor:
    top, left = place
    return image[top : top + edge, left : left + edge]


def _draw_depth(axes: Axes, found: Found, shape: tuple[int, int]) -> None:
    """Show depth at every pixel with contour lines."""
    y, x = (torch.arange(length) for length in shape)
    grid = found.psf_map.rows, found.psf_map.columns
    depth_um = interpolate_grid(torch.from_numpy(found.depth_um).float(), *grid, y, x).numpy()
    shown = axes.imshow(depth_um, cmap=colour_map(), vmin=0)
    levels = np.arange(CONTOUR_UM, depth_um.max(), CONTOUR_UM)
    axes.contour(depth_um, levels=levels, colors="white", linewidths=0.8)
    bar = axes.figure.colorbar(shown, ax=axes, shrink=0.8, pad=0.02)
    bar.set_label("µm from focus", fontsize=SIZE["small"])
    bar.ax.tick_params(labelsize=SIZE["small"])


def check(config: Config) -> None:
    """Refuse settings that make no scene."""
    if config.source not in TEST_IMAGES:
        raise InputError(f"--source is '{config.source}'; choose from {', '.join(TEST_IMAGES)}.")
    least, largest = config.depth_um
    if not 0 <= least < largest:
        raise InputError(f"--depth-um is {least:g} {largest:g}; give two rising depths from 0.")
    if config.photons <= 0 or config.stride < 1:
        raise InputError(
            f"--photons is {config.photons:g} and --stride {config.stride}; give more than 0 "
            "photons and at least 1 pixel."
        )


@holds_out_folder
def main(config: Config) -> None:
    """Simulate, estimate, write the table, draw."""
    keep_freed_memory()
    check(config)
    estimator = load_estimator(config.checkpoint, pick_device(config.device))
    source = next(one for one in builtin_sources() if one.name == config.source)
    scene = simulate(config, torch.from_numpy(read_plane(source).copy()), estimator.psf_model)
    found = estimate(config, estimator, scene.counts)
    row = row_of(config, scene, found)
    write_csv(config.out / "figure_abstract.csv", pd.DataFrame([row]))
    figure = draw(scene, found)
    for suffix in (".png", ".pdf"):
        save_figure(config.out / f"figure_abstract{suffix}", figure)
    print(
        f"{config.source}, {config.photons:g} photons per pixel: rms error of depth "
        f"{row['depth_rms_error_um']:.2f} um from {row['depth_from_um']:.0f} to "
        f"{row['depth_to_um']:.0f} um, restoration {row['snr_gain_db']:+.1f} dB SNR"
    )
    print(f"wrote {config.out / 'figure_abstract.png'}, .pdf and .csv")


if __name__ == "__main__":
    run(Config, main, __doc__)
