"""Depth of tilted planes from single images, calibrated on another plane, beside the truth.

    python figure_depth.py --out results

Planes of several textures, 3, 6 and 10 degrees steep, are rendered with a PSF of its own for every
column of object points, photographed at 1000 and 100 photons per pixel with a cylindrical lens
(network `astigmatic_tilted`, signed depth) and without (`zernike1d_tilted`, distance from focus),
and mapped.
Depth comes from a curve fitted on a plane of another texture and another tilt, that which spans
just what the network was trained for. Writes depth.csv
(profiles: the mean across the tilt, as Shajkofci & Liebling 2020, section V), depth_summary.csv and
figure_depth.png and .pdf; figure_dome.png shows a curved surface. The bound of
benchmarks/depth_bound.py is drawn if it is there. Rendered planes are kept in --scratch, and an
interrupted run goes on from them; --draw-only draws the tables again.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import tifffile
import torch
from matplotlib.axes import Axes
from tqdm import tqdm

from common.command import keep_freed_memory, pick_device, run
from common.files import run_record, whole_file, write_json
from common.pictures import COLOURS, add_scale_bar, colour_map, new_figure, save_figure, show_image
from models.checkpoint import Estimator, load_estimator
from models.depth import DepthCalibration
from models.depth_fit import fit_depth, plane_means
from models.mapping import PsfMap, predict_map
from models.smoothing import smooth_map
from psf.blur import (
    blur_by_column,
    blur_varying,
    dome_depth_um,
    interpolation_weights,
    tilted_depth_um,
)
from psf.errors import InputError
from psf.microscope import Microscope
from psf.model import PsfModel
from psf.noise import camera_counts, to_photons
from psf.synthesis import synthesize
from simulation.objects import OBJECTS
from simulation.sources import HELD_OUT, builtin_sources, read_plane

PAPER_UM = 2.0  # precision that the paper states
LENSES = {"astigmatic": "cylindrical lens", "zernike1d": "no lens"}
PROCEDURAL_SEED = 90_001  # far from the seeds of training sets
SIGN_UM_DOF = 1.0  # depths of field beyond which a sign can be wrong
UNSIGNED_UM = (2.0, 20.0)  # range of the distance without the lens that is scored
DOME_PX, DOME_RIM_UM, DOME_TOP_UM, DOME_LEVELS = 1024, -9.0, 9.0, 73


@dataclass(frozen=True)
class Config:
    """Settings of the experiment."""

    checkpoints: Sequence[Path] = (Path("astigmatic_tilted"), Path("zernike1d_tilted"))
    degrees: Sequence[float] = (3.0, 6.0, 10.0)
    textures: Sequence[str] = ("immunohistochemistry", "gravel", "dead_leaves", "membranes")
    calibration_texture: str = "collage"
    photons: Sequence[float] = (1000.0, 100.0)  # mean per pixel
    read_noise_e: float = 1.6
    size_px: int = 2048
    psf_px: int = 255
    pixel_size_um: float = 0.32
    stride: int = 64  # pixels between patches
    seed: int = 0
    scratch: Path = Path("data/depth")  # rendered planes
    out: Path = Path("results")
    draw_only: bool = False  # draw the tables of an earlier run
    device: str = "auto"


def texture(name: str, size: int) -> torch.Tensor:
    """Sharp object (size, size): procedural, or a held-out image mirrored until it fills it."""
    if name in OBJECTS:
        rng = np.random.default_rng([PROCEDURAL_SEED, list(OBJECTS).index(name)])
        return torch.from_numpy(np.asarray(OBJECTS[name](rng, size), np.float32))
    if name not in HELD_OUT:
        raise InputError(f"texture '{name}': choose of {', '.join((*HELD_OUT, *OBJECTS))}.")
    (source,) = (s for s in builtin_sources() if s.name == name)
    plane = read_plane(source)
    missing = [(0, size - n) for n in plane.shape]
    return torch.from_numpy(np.pad(plane, missing, mode="symmetric").astype(np.float32))


def render(
    config: Config, name: str, degrees: float, model: PsfModel, optics: Microscope
) -> torch.Tensor:
    """Noise-free image (size, size) of a tilted plane; kept as a file."""
    path = config.scratch / f"{model.name}_{name}_{degrees:g}deg_{config.size_px}px.tif"
    if path.is_file():
        return torch.from_numpy(tifffile.imread(path))
    size = config.size_px + config.psf_px - 1
    focus = tilted_depth_um(size, degrees, config.pixel_size_um) / optics.um_per_wave
    focus = focus if is_signed_model(model) else focus.abs()

    def psfs_of(columns: torch.Tensor) -> torch.Tensor:
        return synthesize(model, focus[columns, None], optics, config.psf_px)

    image = blur_by_column(texture(name, size), psfs_of).clamp(min=0)
    with whole_file(path) as partial:
        tifffile.imwrite(partial, image.numpy())
    return image


def is_signed_model(model: PsfModel) -> bool:
    """Whether focus below zero looks different from focus above zero."""
    return model.known_ast_waves != 0


def expose(image: torch.Tensor, photons: float, config: Config, key: int) -> torch.Tensor:
    """Photograph with shot and read noise."""
    generator = torch.Generator().manual_seed(1000 * config.seed + key)
    return camera_counts(to_photons(image[None], photons), generator, config.read_noise_e)[0]


def columns_of(found: PsfMap) -> tuple[np.ndarray, np.ndarray]:
    """Values and standard deviations (C, R) of patches of equal depth; NaN without content."""
    blank = ~found.has_content.numpy()
    pair = (found.values[0].numpy(), found.standard_deviations[0].numpy())
    return tuple(np.where(blank, np.nan, one).T for one in pair)


def depth_of_columns(found: PsfMap, config: Config, degrees: float) -> np.ndarray:
    """True depth (C,) at the centres of the patches."""
    return tilted_depth_um(config.size_px, degrees, config.pixel_size_um).numpy()[
        found.columns.round().long()
    ]


def calibration_degrees(config: Config, estimator: Estimator, optics: Microscope) -> float:
    """Tilt at which a plane spans just what the network was trained for; 2 decimals."""
    reach_um = estimator.psf_model.label_ranges[0][1] * optics.um_per_wave
    half_um = (config.size_px - estimator.patch_size) / 2 * config.pixel_size_um
    return round(math.degrees(math.atan(reach_um / half_um)), 2)


def calibrate(
    config: Config, estimator: Estimator, optics: Microscope, photons: float
) -> DepthCalibration:
    """Curve from focus to depth by the calibration plane."""
    model, degrees = estimator.psf_model, calibration_degrees(config, estimator, optics)
    image = render(config, config.calibration_texture, degrees, model, optics)
    found = predict_map(estimator, expose(image, photons, config, 999), optics, config.stride)
    return fit_depth(
        *columns_of(found),
        depth_of_columns(found, config, degrees),
        is_signed_model(model),
        optics,
        limit_um=PAPER_UM,
    )


def profile(
    config: Config, found: PsfMap, calibration: DepthCalibration, degrees: float
) -> pd.DataFrame:
    """One row per column of patches: true depth, depth of the mean, single patches."""
    values, deviations = columns_of(found)
    z_um = depth_of_columns(found, config, degrees)
    truth = z_um if calibration.signed else np.abs(z_um)
    means = plane_means(values, deviations).means
    patches = calibration.depth_um(values)
    errors = patches - truth[:, None]
    counted = np.isfinite(errors)
    with np.errstate(invalid="ignore"):
        wrong = (np.sign(patches) != np.sign(truth[:, None])) & counted
    return pd.DataFrame(
        {
            "z_um": z_um,
            "truth_um": truth,
            "depth_um": calibration.depth_um(means),
            "spread_um": pd.DataFrame(patches).std(axis=1, ddof=0),
            "patches": counted.sum(1),
            "patch_square_error_um2": np.where(counted, errors**2, 0).sum(1),
            "wrong_signs": wrong.sum(1),
            "usable": calibration.is_usable(truth),
            "taken_as_usable": (calibration.is_usable(patches) & counted).sum(1),
        }
    )


def experiment(config: Config) -> pd.DataFrame:
    """All planes with all networks."""
    optics = Microscope(pixel_size_um=config.pixel_size_um)
    jobs = [(c, t, d) for c in config.checkpoints for t in config.textures for d in config.degrees]
    tables, facts, current = [], {}, None
    for checkpoint, name, degrees in tqdm(jobs, desc="planes", unit="plane"):
        if checkpoint != current:
            current, estimator = checkpoint, load_estimator(checkpoint, pick_device(config.device))
            model = estimator.psf_model
            curves = {p: calibrate(config, estimator, optics, p) for p in config.photons}
            facts[model.name] = {f"{p:g}": asdict(curve) for p, curve in curves.items()}
        image = render(config, name, degrees, model, optics)
        for key, (photons, curve) in enumerate(curves.items()):
            counts = expose(image, photons, config, key)
            found = predict_map(estimator, counts, optics, config.stride)
            table = profile(config, found, curve, degrees)
            table.insert(0, "photons", photons)
            table.insert(0, "texture", name)
            table.insert(0, "degrees", degrees)
            tables.append(table.assign(model=model.name))
    write_json(config.out / "depth.json", run_record(calibrations=facts))
    return pd.concat(tables)


def root_mean(values: pd.Series) -> float:
    """Root of the mean of squares; NaN of nothing."""
    return math.sqrt(values.mean()) if len(values) else math.nan


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Errors by lens, tilt and photons over all textures, where depth is usable."""
    dof_um = Microscope().depth_of_field_um
    rows = []
    for (model, photons, degrees), group in table.groupby(["model", "photons", "degrees"]):
        used = group[group["usable"]]
        if model != "astigmatic":
            used = used[used["truth_um"].between(*UNSIGNED_UM)]
        beyond = used[used["truth_um"].abs() > SIGN_UM_DOF * dof_um]
        outside = group[~group["usable"]]
        errors = (used["depth_um"] - used["truth_um"]) ** 2
        by_texture = errors.groupby(used["texture"]).mean().pow(0.5)
        rows.append(
            {
                "model": model,
                "photons": photons,
                "degrees": degrees,
                "profile_rms_um": root_mean(errors.dropna()),
                "best_texture_um": by_texture.min(),
                "worst_texture_um": by_texture.max(),
                "patch_rms_um": math.sqrt(
                    used["patch_square_error_um2"].sum() / max(used["patches"].sum(), 1)
                ),
                "usable_from_um": used["truth_um"].min(),
                "usable_to_um": used["truth_um"].max(),
                "wrong_signs_share": beyond["wrong_signs"].sum() / max(beyond["patches"].sum(), 1),
                "outside_taken_as_usable_share": outside["taken_as_usable"].sum()
                / max(outside["patches"].sum(), 1),
            }
        )
    return pd.DataFrame(rows)


def dome(config: Config) -> tuple[torch.Tensor, np.ndarray, np.ndarray, Microscope]:
    """Image, estimated and true depth of a curved surface under the lens, and the optics."""
    optics = Microscope(pixel_size_um=config.pixel_size_um)
    estimator = load_estimator(config.checkpoints[0], pick_device(config.device))
    photons = max(config.photons)
    size = DOME_PX + config.psf_px - 1
    depth = dome_depth_um(size, DOME_RIM_UM, DOME_TOP_UM)
    focus = depth / optics.um_per_wave
    levels = torch.linspace(float(focus.min()), float(focus.max()), DOME_LEVELS)
    psfs = synthesize(estimator.psf_model, levels[:, None], optics, config.psf_px)
    weights = interpolation_weights(focus, levels)
    image = blur_varying(texture(config.textures[0], size), psfs, weights, chunk=4).clamp(min=0)
    counts = expose(image, photons, config, 77)
    found = predict_map(estimator, counts, optics, 16)
    curve = calibrate(config, estimator, optics, photons)
    values, deviations = found.values[0].numpy(), found.standard_deviations[0].numpy()
    smooth = smooth_map(values, deviations, found.has_content.numpy(), estimator.patch_size / 16)
    inner = depth[config.psf_px // 2 :, config.psf_px // 2 :].numpy()
    rows, columns = (at.round().long().numpy() for at in (found.rows, found.columns))
    return counts, curve.depth_um(smooth.values), inner[rows[:, None], columns], optics


def draw_dome(config: Config) -> None:
    """Image, truth, estimate and error of the curved surface."""
    counts, depth, truth, optics = dome(config)
    figure, axes = new_figure(1, 4, 3.2, 3.0)
    show_image(axes[0, 0], counts.numpy(), f"image, {max(config.photons):g} photons per pixel")
    add_scale_bar(axes[0, 0], optics.pixel_size_um, counts.shape[1])
    error = depth - truth
    rms = math.sqrt(np.nanmean(error**2))
    step_um = 16 * optics.pixel_size_um
    limits = (truth.min() - 1, truth.max() + 1)
    panels = (
        (truth, "true depth", "viridis", limits),
        (depth, f"estimated depth: rms error {rms:.2f} µm", "viridis", limits),
        (error, "error", "PuOr", (-4, 4)),
    )
    for at, (values, title, name, (low, high)) in zip(axes[0, 1:], panels, strict=True):
        drawn = at.imshow(values, cmap=colour_map(name), vmin=low, vmax=high)
        figure.colorbar(drawn, ax=at, shrink=0.8, label="µm")
        at.set(xticks=[], yticks=[])
        at.set_title(title, fontsize=8)
        add_scale_bar(at, step_um, values.shape[1])
    figure.suptitle(f"A dome of {config.textures[0]} under a cylindrical lens", fontsize=9)
    save_figure(config.out / "figure_dome.png", figure)
    print(f"dome: rms error {rms:.2f} um")


def draw_profiles(axes: Axes, table: pd.DataFrame, model: str, photons: float) -> None:
    """Depth against truth, a line per tilt, with the spread of single patches."""
    rows = table[(table["model"] == model) & (table["photons"] == photons)]
    for i, (degrees, group) in enumerate(rows.groupby("degrees")):
        mean = group.groupby("z_um")[["truth_um", "depth_um", "spread_um"]].mean()
        style = {"color": COLOURS[i], "lw": 1, "ms": 3, "fmt": "o-", "alpha": 0.8}
        axes.errorbar(
            mean.index, mean["depth_um"], mean["spread_um"], label=f"{degrees:g}°", **style
        )
    z = np.array([-30.0, 0.0, 30.0])
    axes.plot(z, z if model == "astigmatic" else np.abs(z), "k--", lw=1, label="truth")
    axes.set(xlim=(-30, 30), ylim=(-30, 30) if model == "astigmatic" else (-3, 30))
    axes.set_title(f"{LENSES[model]}, {photons:g} photons per pixel", fontsize=9)
    axes.set(xlabel="true depth (µm)", ylabel="estimated depth (µm)")
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)


def draw_residuals(axes: Axes, table: pd.DataFrame, photons: float) -> None:
    """Error of the profile against depth, a line per texture, all tilts."""
    rows = table[(table["model"] == "astigmatic") & (table["photons"] == photons)]
    rows = rows[rows["usable"]]
    for i, (name, group) in enumerate(rows.groupby("texture")):
        axes.plot(
            group["z_um"],
            group["depth_um"] - group["truth_um"],
            ".",
            ms=3,
            color=COLOURS[i],
            label=name.replace("_", " "),
        )
    for level in (-PAPER_UM, PAPER_UM):
        axes.axhline(level, color="k", ls=":", lw=1, label="paper: 2 µm" if level > 0 else None)
    axes.set_title(f"residuals, cylindrical lens, {photons:g} photons per pixel", fontsize=9)
    axes.set(xlabel="true depth (µm)", ylabel="error of the profile (µm)", ylim=(-5, 5))
    axes.legend(fontsize=6)
    axes.grid(alpha=0.3)


def draw_precision(axes: Axes, summary: pd.DataFrame) -> None:
    """Rms error of profiles and of patches against tilt."""
    for i, ((model, photons), group) in enumerate(summary.groupby(["model", "photons"])):
        label = f"{LENSES[model]}, {photons:g} photons"
        axes.plot(group["degrees"], group["profile_rms_um"], "o-", color=COLOURS[i], label=label)
        axes.plot(group["degrees"], group["patch_rms_um"], "s:", color=COLOURS[i], lw=1, ms=4)
    axes.axhline(PAPER_UM, color="k", ls=":", lw=1)
    axes.set_title("precision: profiles (solid), single patches (dotted)", fontsize=9)
    axes.set(xlabel="tilt (degrees)", ylabel="rms error (µm); dotted black: paper", yscale="log")
    axes.set_yticks((0.2, 0.5, 1, 2, 5), ("0.2", "0.5", "1", "2", "5"), minor=False)
    axes.yaxis.set_minor_formatter("")
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3, which="both")


def draw_bound(axes: Axes, table: pd.DataFrame, bound: pd.DataFrame | None) -> None:
    """Error of single patches against depth beside the Cramer-Rao bound."""
    for i, (model, photons) in enumerate((m, p) for m in LENSES for p in (1000.0, 100.0)):
        rows = table[(table["model"] == model) & (table["photons"] == photons) & table["usable"]]
        rows = rows[rows["degrees"] == rows["degrees"].min()]  # depth hardly changes in a patch
        bins = (rows["truth_um"] / 2).round() * 2
        sums = rows.groupby(bins)[["patch_square_error_um2", "patches"]].sum()
        rms = (sums["patch_square_error_um2"] / sums["patches"]).pow(0.5)
        label = f"{LENSES[model]}, {photons:g} photons"
        axes.plot(rms.index, rms, "-", color=COLOURS[i], lw=1.2, label=label)
        if bound is not None:
            line = bound[(bound["model"] == model) & (bound["photons"] == photons)]
            axes.plot(line["z_um"], line["sd_um"], "--", color=COLOURS[i], lw=1)
    axes.axhline(PAPER_UM, color="k", ls=":", lw=1)
    axes.set_title("single patches, least tilt (solid), Cramér-Rao bound (dashed)", fontsize=9)
    axes.set(xlabel="true depth (µm)", ylabel="rms error (µm)", yscale="log", ylim=(0.03, 30))
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3, which="both")


def draw(config: Config, table: pd.DataFrame, summary: pd.DataFrame) -> None:
    """The figure."""
    figure, axes = new_figure(2, 3, 4.6, 3.6)
    most, least = max(config.photons), min(config.photons)
    draw_profiles(axes[0, 0], table, "astigmatic", most)
    draw_profiles(axes[0, 1], table, "astigmatic", least)
    draw_profiles(axes[0, 2], table, "zernike1d", most)
    draw_residuals(axes[1, 0], table, most)
    draw_precision(axes[1, 1], summary)
    path = config.out / "depth_bound.csv"
    draw_bound(axes[1, 2], table, pd.read_csv(path) if path.is_file() else None)
    figure.suptitle("Depth of tilted planes, calibrated on another plane and texture", fontsize=10)
    for suffix in ("png", "pdf"):
        save_figure(config.out / f"figure_depth.{suffix}", figure)


def main(config: Config) -> None:
    """Render, estimate, score, draw."""
    keep_freed_memory()
    if config.stride < 1 or config.psf_px % 2 == 0 or config.psf_px < 3:
        raise InputError("--stride must be at least 1, --psf-px odd and at least 3.")
    if config.draw_only:
        path = config.out / "depth.csv"
        if not path.is_file():
            raise InputError(f"there is no {path}; run without --draw-only first.")
        table = pd.read_csv(path)
    else:
        table = experiment(config)
        with whole_file(config.out / "depth.csv") as partial:
            table.to_csv(partial, index=False, float_format="%.4g")
    summary = summarise(table)
    with whole_file(config.out / "depth_summary.csv") as partial:
        summary.to_csv(partial, index=False, float_format="%.3g")
    print(summary.to_string(index=False, float_format="%.3g"))
    draw(config, table, summary)
    if not config.draw_only:
        draw_dome(config)
    print(f"wrote {config.out / 'depth.csv'}, depth_summary.csv (look at figure_depth.png)")


if __name__ == "__main__":
    run(Config, main, __doc__)
