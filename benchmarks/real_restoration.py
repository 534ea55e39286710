r"""Restoration of the blurred planes of a real focal stack, judged by its sharpest plane.

    python benchmarks/real_restoration.py --stack section.tif --na 0.14 --wavelength-um 0.55 \
        --pixel-size-um 1.05 --refractive-index 1 --allow-other-optics --out restored/section

The sharpest plane of a flat object is a truth that needs no simulation. Planes at given distances
from it are restored by `deconvolve.py` with its default options, as a user would. SNR is that of
the sharpest plane over the difference to it, in dB, after grey values were fitted by a straight
line and a shift of the plane was removed. Writes real_restoration.csv, one row per plane, and
real_restoration.png, a detail of each plane before and after. Finished planes are not restored
again.

The interval of the gain is over tiles of the field. Noise of the sharpest plane limits all SNRs,
and a plane of it restored to perfection would be judged by it.
"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter, shift
from skimage.registration import phase_cross_correlation
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))

from common.command import run
from common.files import read_json, write_csv
from common.overviews import busiest
from common.pictures import add_scale_bar, new_figure, save_figure, show_image
from micrographs.micrograph import open_micrograph
from psf.errors import InputError

BORDER_PX = 32  # of the field that no score counts: shifts and PSFs reach into it
DETAIL_PX = (1.2, 2.4)  # widths of the Gaussians whose difference holds the finest detail
LARGEST_SHIFT_PX = 16.0  # a larger one is no drift between planes but a failed registration
TILE_PX = 128
FEWEST_TILES = 5  # for an interval
SHOWN_PX = 200


@dataclass(frozen=True)
class Config:
    """Settings of the benchmark."""

    stack: Path  # TIFF z-stack of a flat object
    na: float  # numerical aperture of the objective
    wavelength_um: float  # wavelength in vacuum, um
    pixel_size_um: float  # camera pixel / magnification, um
    refractive_index: float  # of the medium around the object
    out: Path  # folder to write
    steps: tuple[int, ...] = (-5, -3, -2, 2, 3, 5)  # planes to restore, from the sharpest one
    checkpoint: Path = Path("zernike1d_tilted")  # network that estimates the map
    sharpest: int | None = None  # index of the sharpest plane, from 0; default: found
    channel: int | None = None  # of the stack, from 0; default: the first
    allow_other_optics: bool = False  # go on with optics that the network was not trained for


def read_planes(config: Config) -> np.ndarray:
    """All planes of the stack (K, H, W), float64."""
    with open_micrograph(config.stack, config.channel, z=0) as micrograph:
        return np.stack([one.plane().double().numpy() for one in micrograph.focal_planes()[0]])


def find_sharpest(planes: np.ndarray) -> int:
    """Index of the plane with most fine detail."""
    fine, coarse = DETAIL_PX
    detail = [gaussian_filter(one, fine) - gaussian_filter(one, coarse) for one in planes]
    return int(np.argmax([one.var() for one in detail]))


def fitted(image: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The image (H, W), shifted and its grey values fitted to the truth."""
    offset = phase_cross_correlation(truth, image, upsample_factor=20)[0]
    if np.abs(offset).max() <= LARGEST_SHIFT_PX:
        image = shift(image, offset, order=3, mode="nearest")
    inner = (slice(BORDER_PX, -BORDER_PX), slice(BORDER_PX, -BORDER_PX))
    slope, intercept = np.polyfit(image[inner].ravel(), truth[inner].ravel(), 1)
    return slope * image + intercept


def snr_db(found: np.ndarray, truth: np.ndarray) -> float:
    """Variance of the truth over the mean square difference, dB."""
    return float(10 * np.log10(truth.var() / np.square(found - truth).mean()))


def score(before: np.ndarray, after: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """SNR before and after, gain, and the 95 % interval of the mean gain of tiles."""
    before, after = fitted(before, truth), fitted(after, truth)
    inner = (slice(BORDER_PX, -BORDER_PX), slice(BORDER_PX, -BORDER_PX))
    snrs = [snr_db(one[inner], truth[inner]) for one in (before, after)]
    gains = []
    for top in range(BORDER_PX, truth.shape[0] - BORDER_PX - TILE_PX + 1, TILE_PX):
        for left in range(BORDER_PX, truth.shape[1] - BORDER_PX - TILE_PX + 1, TILE_PX):
            tile = (slice(top, top + TILE_PX), slice(left, left + TILE_PX))
            gains.append(snr_db(after[tile], truth[tile]) - snr_db(before[tile], truth[tile]))
    row = {"snr_before_db": snrs[0], "snr_after_db": snrs[1], "gain_db": snrs[1] - snrs[0]}
    if len(gains) >= FEWEST_TILES:
        half = 1.96 * np.std(gains, ddof=1) / np.sqrt(len(gains))
        row |= {"tile_gain_db": float(np.mean(gains)), "tile_gain_half_interval_db": float(half)}
    return row


def restore(config: Config, plane: int) -> Path:
    """Folder of the plane, restored by deconvolve.py; a finished one is kept."""
    folder = config.out / f"plane_{plane:03d}"
    if (folder / "restoration.json").exists():
        return folder
    options = {name: getattr(config, name) for name in ("na", "wavelength_um", "pixel_size_um")}
    options |= {"refractive_index": config.refractive_index, "checkpoint": config.checkpoint}
    options |= {"z": plane, "out": folder, "channel": config.channel}
    command = [sys.executable, str(Path(__file__).parents[1] / "deconvolve.py"), str(config.stack)]
    for name, value in options.items():
        if value is not None:
            command += [f"--{name.replace('_', '-')}", str(value)]
    command += ["--allow-other-optics"] if config.allow_other_optics else []
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    if done.returncode:
        raise InputError(f"plane {plane} was not restored: {done.stderr.strip().splitlines()[-1]}")
    return folder


def draw(config: Config, shown: list[tuple[str, np.ndarray, np.ndarray]], truth: np.ndarray):
    """A detail of each plane before and after, beside the sharpest one."""
    edge = min(SHOWN_PX, *truth.shape)
    top, left = busiest(truth - gaussian_filter(truth, 8), edge, 1)[0]
    part = (slice(top, top + edge), slice(left, left + edge))
    figure, axes = new_figure(len(shown), 3, 2.6, 2.7)
    for row, (title, before, after) in zip(axes, shown, strict=True):
        show_image(row[0], before[part], title)
        show_image(row[1], after[part], "restored")
        show_image(row[2], truth[part], "sharpest plane")
        add_scale_bar(row[0], config.pixel_size_um, edge)
    save_figure(config.out / "real_restoration.png", figure)


def main(config: Config) -> None:
    """Restore, score, write."""
    planes = read_planes(config)
    sharpest = find_sharpest(planes) if config.sharpest is None else config.sharpest
    if not 0 <= sharpest < len(planes):
        raise InputError(f"--sharpest is {sharpest}; the stack has planes 0 to {len(planes) - 1}.")
    chosen = [sharpest + step for step in config.steps if 0 <= sharpest + step < len(planes)]
    if not chosen:
        raise InputError(f"no plane lies {config.steps} steps from plane {sharpest}; give --steps.")
    rows, shown, truth = [], [], planes[sharpest]
    for plane in tqdm(chosen, desc="restore", unit="plane"):
        folder = restore(config, plane)
        with open_micrograph(folder / "restored.tif") as restored:
            after = restored.plane().double().numpy()
        facts = read_json(folder / "restoration.json", "folder of deconvolve.py")["planes"][0]
        scores = score(planes[plane], after, truth)
        kept = {name: facts[name] for name in ("iterations", "tv", "deviance_per_pixel", "note")}
        rows.append({"plane": plane, "steps": plane - sharpest, **scores, **kept})
        shown.append((f"plane {plane}, {plane - sharpest:+d}", planes[plane], after))
    table = pd.DataFrame(rows)
    write_csv(config.out / "real_restoration.csv", table)
    draw(config, shown, truth)
    print(f"sharpest plane: {sharpest}")
    print(table.to_string(index=False, float_format="%.2f"))
    print(f"mean gain {table['gain_db'].mean():+.2f} dB, least {table['gain_db'].min():+.2f} dB")
    print(f"wrote {config.out / 'real_restoration.csv'} and real_restoration.png")


if __name__ == "__main__":
    run(Config, main, __doc__)
