"""Restoration with estimated maps beside what users would pick instead -> results/.

    python figure_deconvolution.py --out results

Held-out photographs and procedural objects are blurred by smooth random maps and tilted planes of
three PSF models and photographed at 1000 and 100 photons per pixel. Every method restores every
image; gains in SNR over the blurred input, PSNR and SSIM of the field and of its centre, and
seconds go to deconvolution.csv, means with 95 % intervals to deconvolution_summary.csv, and the
best, median and worst case to figure_deconvolution.png and .pdf. An interrupted run goes on where
it stopped; --draw-only draws the tables again. Where deepinv is
installed, its Richardson-Lucy under our map is measured too.
"""

import math
import multiprocessing
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from skimage.metrics import structural_similarity
from skimage.restoration import unsupervised_wiener
from tqdm import tqdm

from benchmarks.deconvolution_peers import deepinv_richardson_lucy, installed
from common.command import keep_freed_memory, run
from common.files import read_json, whole_file, write_json
from common.pictures import add_scale_bar, new_figure, save_figure, show_image
from models.checkpoint import load_estimator
from models.map_image import smooth_parameters
from models.mapping import PsfMap, predict_map
from psf.errors import InputError
from psf.microscope import Microscope
from psf.model import PsfModel, psf_model
from psf.synthesis import EnergyWarning
from restoration.blur_map import blur_of_map, continue_to_borders
from restoration.richardson_lucy import richardson_lucy
from restoration.rivals import blind_richardson_lucy, blind_total_variation, weights_after_blur
from restoration.variant_blur import VariantBlur, psf_grid_from_map
from restoration.with_map import restore_with_map
from simulation.objects import OBJECTS
from simulation.sources import HELD_OUT, VALIDATION, Source, read_plane

# of the models whose own network is not the best for maps
NETWORKS = {"zernike1d": "zernike1d_tilted", "zernike2d": "zernike2d_tilted"}
MODELS = {"zernike1d": 127, "zernike2d": 95, "gaussian2d": 47}  # supports, px
GRID = 33  # PSFs along an edge that render the truth
STRIDE = 32  # px of the estimated map
BORDER = 32  # px that the centre leaves out
SHARP = 0.15  # share of the largest label below which a place counts as sharp
FEWEST_SHARP = 0.02  # share of the field
PHOTOGRAPHS = {"test": HELD_OUT, "validation": VALIDATION}
PROCEDURAL_SEED = {"test": 70_001, "validation": 70_002}  # far from those of training sets
INPUT, OURS, ORACLE = "blurred input", "ours, estimated map", "ours, true map"
BLIND = ("blind Richardson-Lucy", "blind total variation")
BLIND_BEST = tuple(f"{name}, best setting (oracle)" for name in BLIND)
SINGLE = "Richardson-Lucy, mean of the true PSFs"
BEST_SINGLE = "Richardson-Lucy, best single PSF (oracle)"
WIENER = "unsupervised Wiener, mean of the true PSFs"
DEEPINV = "deepinv, 20 iterations of Richardson-Lucy, estimated map"
SCHEME_2018 = "weights on the blurred image (2018), estimated map"


@dataclass(frozen=True)
class Config:
    """Settings of the experiment."""

    out: Path = Path("results")
    images: int = 20  # objects: the photographs of the split, then procedural ones
    split: Literal["test", "validation"] = "test"  # validation: to choose settings by
    photons: tuple[float, ...] = (1000.0, 100.0)  # per pixel
    size: int = 448  # px, edge of an image
    workers: int = 2  # processes of one thread each
    scratch: Path = Path("data/deconvolution")  # finished cases, from which a run goes on
    seed: int = 0
    draw_only: bool = False


@dataclass(frozen=True)
class Case:
    """One object, one map, one exposure."""

    index: int
    name: str
    model: str
    map_kind: str  # "tilted plane" or "random map"
    photons: float
    size: int
    seed: int
    split: str = "test"

    @property
    def key(self) -> str:
        """Name of its file."""
        return f"{self.split}_{self.index:03d}_{self.photons:g}_{self.size}_{self.seed}"


@dataclass(frozen=True)
class Scene:
    """What is restored, and the truth."""

    image: torch.Tensor  # (H, W) photons
    truth: torch.Tensor  # (H, W)
    labels: PsfMap  # true
    blur: VariantBlur  # true
    sharp: torch.Tensor  # (H, W) bool


def cases(config: Config) -> list[Case]:
    """All cases; the PSF models and kinds of maps take turns over the objects."""
    photographs, kinds = PHOTOGRAPHS[config.split], list(OBJECTS)
    found = []
    for index in range(config.images):
        later = index - len(photographs)
        name = photographs[index] if later < 0 else kinds[later % len(kinds)]
        model = list(MODELS)[index % len(MODELS)]
        kind = ("tilted plane", "random map")[(index // len(MODELS)) % 2]
        for photons in config.photons:
            place = (index, name, model, kind, photons, config.size, config.seed)
            found.append(Case(*place, config.split))
    return found


def draw_map(case: Case, model: PsfModel, rng: np.random.Generator) -> torch.Tensor:
    """Labels (P, GRID, GRID) of a smooth map: a plane along x, or low-order polynomials."""
    line = np.linspace(-1, 1, GRID)
    y, x = np.meshgrid(line, line, indexing="ij")

    def smooth(low: float, high: float) -> np.ndarray:
        if case.map_kind == "tilted plane":
            field = x * rng.choice([-1, 1])
        else:
            a = rng.normal(size=5)
            field = a[0] * x + a[1] * y + a[2] * x * y + a[3] * (x**2) + a[4] * (y**2)
        field = (field - field.min()) / (field.max() - field.min())
        return low + (high - low) * field

    if model.name == "zernike1d":
        channels = [smooth(0.0, 2.5)]
    elif model.name == "zernike2d":
        channels = [smooth(0.0, 1.5), smooth(-0.7, 0.7), smooth(-0.7, 0.7)]
    else:
        channels = [smooth(0.5, 9.0), smooth(0.5, 9.0)]
    return torch.from_numpy(np.stack(channels)).float()


def load_object(case: Case, edge: int) -> torch.Tensor:
    """Sharp object (edge, edge), positive; a photograph is mirrored where it is too small."""
    if case.name not in OBJECTS:
        plane = np.asarray(read_plane(Source(case.name, "builtin")), np.float32)
        top, left = (max(0, (length - edge) // 2) for length in plane.shape)
        plane = plane[top : top + edge, left : left + edge]
        missing = [(0, edge - length) for length in plane.shape]
        plane = np.pad(plane, missing, mode="symmetric")
    else:
        rng = np.random.default_rng([PROCEDURAL_SEED[case.split], case.seed, case.index])
        plane = OBJECTS[case.name](rng, edge)
    return torch.from_numpy(plane.astype(np.float32)) + 0.02


def make_scene(case: Case) -> Scene:
    """Blur with PSFs on a fine grid, blended linearly on the object; Poisson noise."""
    model, size = psf_model(case.model), MODELS[case.model]
    rng = np.random.default_rng([case.seed, case.index])
    values = draw_map(case, model, rng)
    places = torch.linspace(0, case.size - 1, GRID)
    shape = (case.size, case.size)
    psfs = psf_grid_from_map(model, values, Microscope(), size)
    blur = VariantBlur.from_psfs(psfs, places, places, shape, 1e-3)
    objects = load_object(case, case.size + size - 1)
    objects = objects * case.photons / objects[blur.image_part].mean()
    clean = blur.forward(objects[None])[0].clamp(min=0)
    noise = torch.Generator().manual_seed(1000 * case.seed + case.index)
    image = torch.poisson(clean, generator=noise)
    ones = torch.ones(GRID, GRID)
    labels = PsfMap(model, Microscope(), values, torch.zeros_like(values), ones, places, places)
    blurredness = values.abs().amax(0) / max(abs(v) for r in model.label_ranges for v in r)
    nearest = (torch.arange(case.size) * (GRID - 1) / (case.size - 1)).round().long()
    sharp = (blurredness < SHARP)[nearest[:, None], nearest]
    return Scene(image, objects[blur.image_part], labels, blur, sharp)


def estimated(case: Case, scene: Scene) -> PsfMap:
    """The map that the shipped network of this model makes of the image."""
    estimator = load_estimator(NETWORKS.get(case.model, case.model))
    raw = predict_map(estimator, scene.image, Microscope(), STRIDE)
    _, smooth = smooth_parameters(raw, estimator.patch_size / STRIDE, "auto")
    psf_map, shape = raw, scene.blur.shape
    strengths = [one.strength for one in smooth]
    return continue_to_borders(psf_map, strengths, estimator.patch_size, shape)


def mean_psf(scene: Scene) -> torch.Tensor:
    """Mean (K, K) of the true PSFs."""
    mean = torch.einsum("krc,kyx->yx", scene.blur.coefficients, scene.blur.eigen_psfs)
    mean = mean.clamp(min=0)
    return mean / mean.sum()


def with_one_psf(scene: Scene, psf: torch.Tensor) -> torch.Tensor:
    """Our restoration with one PSF everywhere."""
    return richardson_lucy(scene.image, VariantBlur.from_psf(psf, tuple(scene.image.shape))).image


def with_best_psf(scene: Scene) -> torch.Tensor:
    """The best of the mean PSF and nine true ones, by the truth."""
    places = [int(share * (scene.image.shape[0] - 1)) for share in (0.1, 0.5, 0.9)]
    psfs = [scene.blur.psf_at(row, column).clamp(min=0) for row in places for column in places]
    found = [
        richardson_lucy(
            scene.image, VariantBlur.from_psf(psf / psf.sum(), tuple(scene.image.shape)), 15
        ).image
        for psf in psfs
    ]
    found.append(with_one_psf(scene, mean_psf(scene)))
    return max(found, key=lambda image: snr_db(image, scene.truth))


def with_best_setting(scene: Scene, method: Callable, settings: tuple[float, ...]) -> torch.Tensor:
    """The best of a blind method's settings, by the truth: no user would do better."""
    found = [method(scene.image, setting)[0] for setting in settings]
    return max(found, key=lambda image: snr_db(image, scene.truth))


def with_wiener(scene: Scene) -> torch.Tensor:
    """scikit-image's Wiener-Hunt estimate of an image mirrored at its borders."""
    psf = mean_psf(scene)
    margin = psf.shape[-1] // 2
    image = np.pad(scene.image.numpy().astype(float), margin, mode="reflect")
    scale = image.max()
    found, _ = unsupervised_wiener(image / scale, psf.double().numpy(), rng=0, clip=False)
    inner = slice(margin, -margin)
    return torch.from_numpy(found[inner, inner] * scale).float()


def with_deepinv(scene: Scene, psf_map: PsfMap) -> torch.Tensor:
    """Deepinv's operator with the eigen-PSFs of the estimated map."""
    blur = blur_of_map(psf_map, scene.blur.shape)
    return deepinv_richardson_lucy(scene.image, blur.eigen_psfs, blur.weights, 20)


def methods(case: Case, scene: Scene, psf_map: PsfMap) -> dict[str, Callable]:
    """Every restoration, to be called without arguments."""
    weights = tuple(share / math.sqrt(case.photons) for share in (0.1, 0.3, 0.8))
    found = {
        INPUT: lambda: scene.image,
        SINGLE: partial(with_one_psf, scene, mean_psf(scene)),
        BEST_SINGLE: partial(with_best_psf, scene),
        WIENER: partial(with_wiener, scene),
        BLIND[0]: lambda: blind_richardson_lucy(scene.image)[0],
        BLIND[1]: lambda: blind_total_variation(scene.image)[0],
        BLIND_BEST[0]: partial(with_best_setting, scene, blind_richardson_lucy, (1, 3, 10)),
        BLIND_BEST[1]: partial(with_best_setting, scene, blind_total_variation, weights),
        SCHEME_2018: lambda: weights_after_blur(
            scene.image, blur_of_map(psf_map, scene.blur.shape)
        ),
    }
    if installed("deepinv"):
        found[DEEPINV] = partial(with_deepinv, scene, psf_map)
    return found | {
        OURS: lambda: restore_with_map(scene.image, psf_map)[0].image,
        ORACLE: lambda: restore_with_map(scene.image, scene.labels, refined=False)[0].image,
    }


def snr_db(found: torch.Tensor, truth: torch.Tensor) -> float:
    """Power of the truth over that of the error, dB."""
    error = (found - truth).double().square().mean()
    return float(10 * torch.log10(truth.double().square().mean() / error))


def score(found: torch.Tensor, scene: Scene) -> dict[str, float]:
    """SNR gain, PSNR and SSIM of the field and the centre; SNR gain where the PSF is sharp."""
    inner = slice(BORDER, -BORDER)
    row = {}
    parts = (("", (slice(None), slice(None))), ("_centre", (inner, inner)))
    for name, part in parts:
        one, truth, image = found[part], scene.truth[part], scene.image[part]
        peak = float(truth.max())
        rms = float((one - truth).double().square().mean().sqrt())
        row[f"snr_gain{name}_db"] = snr_db(one, truth) - snr_db(image, truth)
        row[f"psnr{name}_db"] = 20 * math.log10(peak / rms)
        ssim = structural_similarity(one.numpy(), truth.numpy(), data_range=peak)
        row[f"ssim{name}"] = float(ssim)
    sharp = scene.sharp
    enough = float(sharp.float().mean()) > FEWEST_SHARP
    gain = snr_db(found[sharp], scene.truth[sharp]) - snr_db(scene.image[sharp], scene.truth[sharp])
    row["snr_gain_sharp_db"] = gain if enough else math.nan
    return row


def run_case(case: Case, folder: Path) -> None:
    """Restore one case by every method; its rows go to a file of its own."""
    torch.set_num_threads(1)
    keep_freed_memory()
    warnings.simplefilter("ignore", EnergyWarning)  # a little light lies outside of the supports
    scene = make_scene(case)
    started = time.perf_counter()
    psf_map = estimated(case, scene)
    map_seconds = time.perf_counter() - started
    rows, shown = [], {"truth": scene.truth}
    for name, work in methods(case, scene, psf_map).items():
        started = time.perf_counter()
        found = work()
        seconds = time.perf_counter() - started
        rows.append({**asdict(case), "method": name, **score(found, scene), "seconds": seconds})
        if name in (INPUT, OURS, ORACLE, *BLIND_BEST):
            shown[name] = found
    pictures = np.stack([np.asarray(image, np.float32) for image in shown.values()])
    with whole_file(folder / f"{case.key}.npy") as partial_path, partial_path.open("wb") as file:
        np.save(file, pictures)
    write_json(
        folder / f"{case.key}.json",
        {"rows": rows, "shown": list(shown), "map_seconds": map_seconds},
    )


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Means with 95 % intervals of the mean, by photons and method."""
    lines = []
    for (photons, method), part in table.groupby(["photons", "method"], sort=False):
        gains = part["snr_gain_db"]
        interval = 1.96 * gains.std(ddof=1) / math.sqrt(len(part)) if len(part) > 1 else math.nan
        line = {"photons": photons, "method": method, "images": len(part)}
        line |= {"snr_gain_db": gains.mean(), "interval_95_db": interval}
        line |= {"worst_gain_db": gains.min(), "worse_than_input": int((gains < 0).sum())}
        line |= {"worst_sharp_gain_db": part["snr_gain_sharp_db"].min()}
        for name in ("snr_gain_centre_db", "psnr_db", "psnr_centre_db", "ssim", "ssim_centre"):
            line[name] = part[name].mean()
        lines.append(line | {"seconds": part["seconds"].median()})
    return pd.DataFrame(lines)


def report(table: pd.DataFrame) -> None:
    """What ours gains over the best blind rival of each image, and loses to the true map."""
    for photons, part in table.groupby("photons", sort=False):
        gains = part.pivot(index="index", columns="method", values="snr_gain_db")
        means = gains.mean()
        best = max((INPUT, *BLIND), key=lambda name: means[name])
        lead, loss = means[OURS] - means[best], gains[ORACLE] - gains[OURS]
        oracle = gains[OURS] - gains[[INPUT, *BLIND_BEST]].max(axis=1)
        sharp = part[part["method"] == OURS]["snr_gain_sharp_db"].dropna()
        print(
            f"{photons:g} photons: ours is {lead:.2f} dB above {best}, {oracle.mean():.2f} dB "
            "above the better blind method with the best setting of each image, "
            f"{loss.mean():.2f} dB (median {loss.median():.2f}) below the true map; "
            f"{(gains[OURS] < 0).sum()} images are worse than the input, in "
            f"{(sharp < -0.2).sum()} of {len(sharp)} sharp places lose more than 0.2 dB"
        )


def draw(config: Config, table: pd.DataFrame) -> None:
    """Best, median and worst case of ours as pictures."""
    ours = table[(table["method"] == OURS) & (table["photons"] == config.photons[0])]
    order = ours.sort_values("snr_gain_db")["index"].tolist()
    chosen = {"best": order[-1], "median": order[len(order) // 2], "worst": order[0]}
    columns = ("truth", INPUT, *BLIND_BEST, OURS, ORACLE)
    figure, axes = new_figure(len(chosen), len(columns), 2.2, 2.35)
    lookup = {case.index: case for case in cases(config) if case.photons == config.photons[0]}
    for line, (rank, index) in zip(axes, chosen.items(), strict=True):
        case = lookup[index]
        stored = read_json(config.scratch / f"{case.key}.json", "case")
        pictures = np.load(config.scratch / f"{case.key}.npy")
        gains = {row["method"]: row["snr_gain_db"] for row in stored["rows"]}
        low, high = np.percentile(pictures[0], (0.5, 99.5))
        for at, name in zip(line, columns, strict=True):
            image = pictures[stored["shown"].index(name)].clip(low, high)
            gain = f"{gains[name]:+.1f} dB" if gains.get(name) else ""
            title = f"{rank}: {case.name}" if name == "truth" else f"{name}\n{gain}"
            show_image(at, image, title)
            at.title.set_fontsize(6.5)
        add_scale_bar(line[0], Microscope().pixel_size_um, config.size)
    figure.suptitle(
        f"SNR gain over the blurred input, {config.photons[0]:g} photons per pixel", fontsize=9
    )
    save_figure(config.out / "figure_deconvolution.png", figure)
    save_figure(config.out / "figure_deconvolution.pdf", figure)


def main(config: Config) -> None:
    """Run what is missing, write the tables, draw."""
    if config.images < 1 or config.workers < 1 or config.size < 256:
        raise InputError("give at least 1 image, 1 worker and images of 256 px.")
    if not config.photons or min(config.photons) <= 0:
        raise InputError("--photons must be above 0.")
    if not config.draw_only:
        todo = [c for c in cases(config) if not (config.scratch / f"{c.key}.json").exists()]
        work = partial(run_case, folder=config.scratch)
        with multiprocessing.get_context("spawn").Pool(config.workers) as pool:
            for _ in tqdm(pool.imap_unordered(work, todo), total=len(todo), unit="case"):
                pass
            pool.close()
            pool.join()
    files = [config.scratch / f"{case.key}.json" for case in cases(config)]
    if missing := [path for path in files if not path.exists()]:
        raise InputError(f"{len(missing)} cases are missing; run without --draw-only first.")
    rows = [row for path in files for row in read_json(path, "case")["rows"]]
    table = pd.DataFrame(rows)
    summary = summarise(table)
    for name, content in (("deconvolution", table), ("deconvolution_summary", summary)):
        with whole_file(config.out / f"{name}.csv") as unfinished:
            content.to_csv(unfinished, index=False, float_format="%.4g")
    draw(config, table)
    columns = ["photons", "method", "snr_gain_db", "interval_95_db", "worst_gain_db", "seconds"]
    print(summary[columns].to_string(index=False, float_format=lambda v: f"{v:.2f}"))
    report(table)
    print(f"wrote {config.out / 'deconvolution.csv'} (look at figure_deconvolution.png beside it)")


if __name__ == "__main__":
    run(Config, main, __doc__)
