"""Restoration of images that other programs have processed, from the file to the result.

    python benchmarks/processed_images.py

Held-out objects are blurred by defocus, recorded by a simulated camera (gain 2, offset 100, read
noise 1.6 e-), and processed as other programs do: shifted by part of a pixel, rotated, smoothed,
denoised, compressed. The files are mapped and restored as by `deconvolve.py` without options for
the camera. Writes results/processed_images.csv, one row per image, and
results/processed_images_summary.csv, per kind: gain found, SNR before and after, and the least
gain. SNR is that of the sharp object over the difference to it, in dB, after grey values were
fitted by a straight line; a border of 24 pixels is left out.
"""

import io
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import tifffile
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter, median_filter, rotate, shift
from skimage.restoration import denoise_nl_means
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))

from common.command import pick_device, run
from common.files import write_csv
from micrographs.outliers import find_outliers
from models.checkpoint import load_estimator
from models.estimator import Estimator
from models.map_image import map_image
from models.recording import MapOptions, file_cutoff, open_recording
from psf.blur import blur_valid
from psf.microscope import Microscope
from psf.noise import camera_counts, to_photons
from psf.synthesis import synthesize
from restoration.blur_map import continue_to_borders
from restoration.scenes import Case, load_object
from restoration.with_map import restore_with_map

SIZE_PX = 256
SUPPORT_PX = 95
BORDER_PX = 24
GAIN, OFFSET, READ_NOISE_E = 2.0, 100.0, 1.6
ANGLE = 7.0  # degrees


@dataclass(frozen=True)
class Config:
    """Settings of the benchmark."""

    # test photographs, or kinds of procedural objects
    objects: tuple[str, ...] = ("camera", "gravel", "nuclei", "filaments")
    focus_waves: tuple[float, ...] = (0.2, 1.2)  # of the PSF
    photons: tuple[float, ...] = (100.0, 1000.0)  # mean per pixel
    checkpoint: Path = Path("zernike1d_tilted")  # network that estimates the map
    device: str = "auto"  # auto, cpu, cuda, mps
    out: Path = Path("results")  # folder to write


def jpeg(counts: np.ndarray, quality: int) -> np.ndarray:
    """Counts as 8-bit levels of a JPEG file."""
    levels = (counts * 230 / np.quantile(counts, 0.999)).round().clip(0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(levels).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream)).astype(np.float32)


def turned(image: np.ndarray, order: int) -> np.ndarray:
    """The image, rotated within its frame, with zero corners."""
    return rotate(image, ANGLE, order=order, reshape=False)


PROCESSES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "raw": lambda counts: counts.round(),
    "shifted by half a pixel, linear": lambda counts: shift(counts, (0.5, 0.5), order=1),
    "shifted by 0.3 pixels, cubic": lambda counts: shift(counts, (0.3, 0.3), order=3),
    "rotated, linear, zero corners": lambda counts: turned(counts, 1),
    "Gaussian of 1 pixel": lambda counts: gaussian_filter(counts, 1.0),
    "median of 3 x 3": lambda counts: median_filter(counts, 3),
    "non-local means": lambda counts: denoise_nl_means(counts / counts.max(), h=0.05),
    "JPEG, quality 95": lambda counts: jpeg(counts, 95),
    "JPEG, quality 85": lambda counts: jpeg(counts, 85),
    "JPEG, quality 60": lambda counts: jpeg(counts, 60),
    "floats from 0 to 1": lambda counts: counts / counts.max(),
}


def record(name: str, focus: float, photons: float) -> tuple[np.ndarray, np.ndarray]:
    """Counts of the camera and the sharp object, both (SIZE_PX, SIZE_PX)."""
    case = Case(0, name, "zernike1d", "tilted plane", photons, SIZE_PX, 0)
    sharp = load_object(case, SIZE_PX + SUPPORT_PX - 1)
    psf = synthesize("zernike1d", torch.tensor([[focus]]), Microscope(), SUPPORT_PX)
    expected = to_photons(blur_valid(sharp[None], psf).clamp(min=0), photons)
    generator = torch.Generator().manual_seed(int(1000 * focus + photons))
    counts = camera_counts(expected, generator, READ_NOISE_E, GAIN, OFFSET)[0].clamp(min=0)
    inner = slice(SUPPORT_PX // 2, SUPPORT_PX // 2 + SIZE_PX)
    return counts.double().numpy(), sharp[inner, inner].double().numpy()


def snr_db(found: np.ndarray, truth: np.ndarray) -> float:
    """SNR of an image whose grey values are fitted to the truth, dB."""
    inner = (slice(BORDER_PX, -BORDER_PX), slice(BORDER_PX, -BORDER_PX))
    x, y = found[inner].ravel(), truth[inner].ravel()
    slope, intercept = np.polyfit(x, y, 1)
    return float(10 * np.log10(y.var() / np.square(slope * x + intercept - y).mean()))


def restore(path: Path, estimator: Estimator) -> tuple[np.ndarray, dict[str, object]]:
    """The restored image of a file, as `deconvolve.py` makes it, and what was found."""
    optics = Microscope()
    options = MapOptions(
        image=path,
        out=path.parent / "none",
        na=optics.na,
        wavelength_um=optics.wavelength_um,
        pixel_size_um=optics.pixel_size_um,
        refractive_index=optics.refractive_index,
    )
    with open_recording(path, options, estimator) as recording:
        found, camera = map_image(recording), recording.camera
        plane = recording.micrograph.plane()
        strengths = [one.strength for one in found.smoothing]
        psf_map = continue_to_borders(found.patches, strengths, recording.patch_px, plane.shape)
    cutoff = file_cutoff(psf_map.microscope, psf_map.model)
    usable = find_outliers(plane, recording.micrograph.full_scale, cutoff).usable
    restored, _ = restore_with_map(
        (plane - camera.offset_counts).clamp(min=0),
        psf_map,
        gain=camera.gain_counts_per_e or 1.0,
        usable=usable,
        white_noise=camera.white_noise,
    )
    facts = {"gain_found": camera.gain_counts_per_e, "white_noise": camera.white_noise}
    facts |= {"focus_waves_found": float(psf_map.values.median())}
    return restored.image.numpy(), facts


def run_case(
    kind: str, place: tuple[str, float, float], estimator: Estimator, folder: Path
) -> dict[str, object]:
    """One row of the table."""
    counts, truth = record(*place)
    image = PROCESSES[kind](counts).astype(np.float32)
    if kind.startswith("rotated"):
        truth = turned(truth, 3)
    if kind.startswith("shifted"):
        truth = shift(truth, (0.5, 0.5) if "half" in kind else (0.3, 0.3), order=3)
    path = folder / "image.tif"
    tifffile.imwrite(path, image)
    restored, facts = restore(path, estimator)
    before, after = snr_db(image, truth), snr_db(restored, truth)
    named = dict(zip(("object", "focus_waves", "photons"), place, strict=True))
    scores = {"snr_before_db": before, "snr_after_db": after, "gain_db": after - before}
    return {"kind": kind, **named, **facts, **scores}


def main(config: Config) -> None:
    """Record, process, restore, score, write."""
    estimator = load_estimator(config.checkpoint, pick_device(config.device))
    places = [(o, f, p) for o in config.objects for f in config.focus_waves for p in config.photons]
    todo = [(kind, place) for place in places for kind in PROCESSES]
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            run_case(kind, place, estimator, Path(folder))
            for kind, place in tqdm(todo, desc="restore", unit="image")
        ]
    table = pd.DataFrame(rows)
    groups = table.groupby("kind", sort=False)
    summary = groups[["snr_before_db", "snr_after_db", "gain_db"]].mean()
    summary["least_gain_db"] = groups["gain_db"].min()
    summary["worse_by_0.1_db"] = groups["gain_db"].agg(lambda gains: int((gains < -0.1).sum()))
    summary["images"] = groups.size()
    write_csv(config.out / "processed_images.csv", table)
    write_csv(config.out / "processed_images_summary.csv", summary.reset_index())
    print(summary.to_string(float_format="%.2f"))
    print(f"wrote {config.out / 'processed_images.csv'} and processed_images_summary.csv")


if __name__ == "__main__":
    run(Config, main, __doc__)
