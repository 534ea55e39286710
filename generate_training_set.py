"""Simulate a training set: source images + microscope + PSF model -> data/NAME/.

    python generate_training_set.py --psf-model zernike1d --images builtin \
        --train-patches 20000 --test-patches 2000 --out data/zernike1d

Writes HDF5 shards (noise-free patches with their labels), config.json, run.json and preview.png.
Train, validation and test patches come from different source images. After an interrupted run the
same command continues. The files have the same bytes for any number of workers.
"""

import os
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from tqdm import tqdm

from common.cluster import Cluster, check_cluster
from common.command import keep_freed_memory, next_command, run
from common.files import check_free_space, claim_folder, run_record, write_json
from common.jobs import run_jobs
from common.output import holds_out_folder
from common.pictures import add_scale_bar, new_figure, save_figure, show_image
from psf.errors import InputError
from psf.gibson_lanni import Layers
from psf.light import warn_if_scalar_is_off
from psf.microscope import Microscope, Optics
from psf.model import PsfModel, psf_model
from psf.noise import camera_counts, to_photons
from psf.zernike import noll_to_nm
from simulation.bank import Bank
from simulation.patches import Patches, simulate
from simulation.settings import (
    OpticsRanges,
    Simulation,
    check_energy,
    fit_support,
    optics_limits,
    steepest_optics,
)
from simulation.shards import shard_columns, shard_path, write_shard
from simulation.sources import SPLITS, Source, load_sources, source_hash, split_sources
from simulation.specimens import SpecimenRanges

# Settings that must be at least 1.
COUNTS = ("validation_patches", "test_patches", "patch_size", "workers", "patches_per_crop")
# Version of the random draws. Sets of lower versions, and of version 1, which is not written, have
# other patches from the same settings; all versions are read.
GENERATOR_VERSION = 3
CHUNK = 64  # patches simulated together from one seed: the unit of reproducibility
SHARD = 1024  # patches of 128 x 128 px in a file of 32 MiB
PREVIEW_ROWS = 8  # patches in preview.png
PREVIEW_PHOTONS = (1000, 100)  # mean per pixel of its noisy patches


@dataclass(frozen=True)
class Config:
    """Settings of a training set."""

    out: Path  # folder to write, e.g. data/zernike1d
    # PSF model, whose parameters the network learns; figure_psf.py draws them
    psf_model: Literal[
        "gaussian1d",
        "gaussian2d",
        "zernike1d",
        "zernike2d",
        "astigmatic",
        "gibson_lanni",
        "zernike",
    ] = "zernike1d"
    images: str = "builtin"  # builtin, procedural, mixed (both), or a folder of images
    train_patches: int = 20000  # number of patches for training; 0: only fresh ones (train.py)
    validation_patches: int = 1000  # number of patches that choose the best epoch
    test_patches: int = 2000  # number of patches for the benchmark
    patch_size: int = 128  # edge of a patch, px
    psf_size: int = 0  # support of the PSF, px; 0: the smallest with 99 % of the energy
    blank_fraction: float = 0.05  # share of patches without content
    patches_per_crop: int = 2  # patches of one training crop, each with its own PSF
    focus_change_waves: float = 0.0  # largest change of focus across a patch, in a quarter of them
    beyond_fraction: float = 0.0  # share of patches out of the range of focus, without a label
    microscope: Annotated[Microscope, tyro.conf.arg(name="")] = field(default_factory=Microscope)
    # thick, soft, hazy and sparse specimens; by default none
    specimens: SpecimenRanges = field(default_factory=SpecimenRanges)
    vary_optics: bool = False  # draw the optics of each patch from the --optics ranges
    optics: OpticsRanges = field(default_factory=OpticsRanges)
    fwhm_px: tuple[float, float] | None = None  # FWHM of the Gaussian models; default 0 20
    focus_waves: tuple[float, float] | None = None  # default 0 4; zernike2d 0 2, astigmatic -3 3
    ast_waves: tuple[float, float] | None = None  # astigmatism of zernike2d; default 0 2
    known_ast_waves: float | None = None  # cylindrical lens of `astigmatic`; default 1
    modes_noll: tuple[int, ...] = ()  # Noll indices of the modes of `zernike`, e.g. 4 5 6 7 8
    coefficient_waves: tuple[float, float] | None = None  # each mode, rms; default -0.25 0.25
    z_um: tuple[float, float] | None = None  # stage defocus of `gibson_lanni`; default 0 20
    depth_um: float | None = None  # known particle depth of `gibson_lanni`; default 0
    depth_range_um: tuple[float, float] | None = None  # makes the particle depth a second label
    layers: Layers = field(default_factory=Layers)  # of `gibson_lanni`; default: no mismatch
    light: Literal["scalar", "aplanatic", "vectorial"] = "scalar"  # vectorial for NA / n > 0.38
    # shape of the focus over the pupil: rho^2, or that of steep rays (for NA / n above 0.7)
    defocus: Literal["seidel", "exact"] = "seidel"
    seed: int = 0  # of all random numbers
    workers: int = os.cpu_count() or 1  # processes; the files do not depend on their number
    dask: str | None = None  # Dask cluster that simulates instead, e.g. tcp://HOST:8786


def build_model(config: Config) -> PsfModel:
    """PSF model with the ranges of the command line."""
    modes = tuple(noll_to_nm(j) for j in config.modes_noll)
    if modes and config.psf_model == "gibson_lanni":
        raise InputError(
            "gibson_lanni has labels in um only; leave out --modes-noll or choose 'zernike'."
        )
    plain = psf_model(config.psf_model, modes=modes)
    asked = {"fwhm": config.fwhm_px, "focus": config.focus_waves, "ast": config.ast_waves}
    asked |= {"noll": config.coefficient_waves, "z_um": config.z_um}
    unused = {k for k, v in asked.items() if v and not any(q.startswith(k) for q in plain.ranges)}
    if unused:
        raise InputError(
            f"{config.psf_model} has no {' or '.join(sorted(unused))} range; leave the option out."
        )
    ranges = {q: r for q in plain.ranges for k, r in asked.items() if r and q.startswith(k)}
    if config.depth_range_um:
        ranges["depth_um"] = config.depth_range_um
    return psf_model(
        config.psf_model,
        ranges,
        config.known_ast_waves,
        modes,
        layers=config.layers if plain.layers or config.layers != Layers() else None,
        depth_um=config.depth_um,
        light=config.light,
        defocus=config.defocus,
    )


def build_simulation(config: Config) -> Simulation:
    """Simulation with the settings of the command line, which are checked."""
    for name in COUNTS:
        if getattr(config, name) < 1:
            flag = f"--{name.replace('_', '-')}"
            raise InputError(f"{flag} is {getattr(config, name)}; give at least 1.")
    if config.train_patches < 0:
        raise InputError(f"--train-patches is {config.train_patches}; give at least 0.")
    if config.patch_size < 32:
        raise InputError(f"--patch-size is {config.patch_size}; give at least 32 px.")
    if config.psf_size < 0 or config.seed < 0:
        raise InputError(
            f"--psf-size is {config.psf_size} and --seed {config.seed}; give at least 0."
        )
    if not 0 <= config.blank_fraction < 1:
        raise InputError(f"--blank-fraction is {config.blank_fraction}; give 0 to below 1.")
    model = build_model(config)
    if config.vary_optics and model.is_gaussian:
        raise InputError(f"{model.name} does not depend on the optics; leave out --vary-optics.")
    simulation = Simulation(
        model=model,
        microscope=config.microscope,
        optics_ranges=config.optics if config.vary_optics else None,
        patch_size=config.patch_size,
        psf_size=config.psf_size,
        blank_fraction=config.blank_fraction,
        patches_per_crop=config.patches_per_crop,
        focus_change_waves=config.focus_change_waves,
        beyond_fraction=config.beyond_fraction,
        specimens=config.specimens,
    )
    return simulation if config.psf_size else fit_support(simulation)


def describe(
    config: Config, simulation: Simulation, splits: dict[str, list[Source]], skipped: list[str]
) -> dict[str, Any]:
    """Content of config.json: everything that determines the bytes of the shards."""
    return {
        "kind": "training set",
        "generator_version": GENERATOR_VERSION,
        "psf_model": simulation.model.as_config(),
        "label_names": list(simulation.model.label_names),
        "label_unit": simulation.model.unit,
        "label_ranges": [list(r) for r in simulation.model.label_ranges],
        "images": config.images,
        "patches": {s: getattr(config, f"{s}_patches") for s in SPLITS},
        "patch_size": simulation.patch_size,
        "psf_size": simulation.psf_size,
        "blank_fraction": simulation.blank_fraction,
        "patches_per_crop": simulation.patches_per_crop,
        "focus_change_waves": simulation.focus_change_waves,
        "beyond_fraction": simulation.beyond_fraction,
        "specimens": asdict(simulation.specimens),
        "microscope": asdict(simulation.microscope),
        "optics_ranges": asdict(simulation.optics_ranges) if simulation.optics_ranges else None,
        "optics_limits": optics_limits(simulation),
        "seed": config.seed,
        "source_images": {s: [source.name for source in splits[s]] for s in SPLITS},
        "source_hashes": {s.name: source_hash(s) for s in splits["train"] if source_hash(s)},
        "skipped_images": skipped,
    }


def chunk_rng(seed: int, split: str, chunk: int) -> np.random.Generator:
    """Random generator of one chunk, independent of shards, workers and earlier runs."""
    return np.random.default_rng([seed, SPLITS.index(split), chunk])


@lru_cache(maxsize=len(SPLITS))
def bank_of(sources: tuple[Source, ...], crop_size: int, patch_size: int) -> Bank:
    """Bank of the images of a split, which every shard of this process uses."""
    return Bank(sources, crop_size, patch_size)


def make_shard(
    job: tuple[str, int, int],
    simulation: Simulation,
    splits: dict[str, list[Source]],
    description: dict[str, Any],
    folder: Path,
) -> int:
    """Number of patches of a shard (split, index, patch count), which is simulated and written."""
    split, index, count = job
    keep_freed_memory()
    torch.set_num_threads(1)  # sums must not depend on the number of threads
    bank = bank_of(tuple(splits[split]), simulation.crop_size, simulation.patch_size)
    seed, patches = description["seed"], []
    for start in range(0, count, CHUNK):
        rng = chunk_rng(seed, split, (index * SHARD + start) // CHUNK)
        size = min(CHUNK, count - start)
        patches.append(simulate(simulation, bank, size, rng, augment=split == "train"))
    noise_rng = None if split == "train" else np.random.default_rng([seed, 9, index])
    kinds = {source.name: source.kind for source in splits[split]}
    columns = shard_columns(patches, kinds, noise_rng)
    write_shard(shard_path(folder, split, index), columns, description)
    return count


def missing_shards(folder: Path, description: dict[str, Any]) -> list[tuple[str, int, int]]:
    """Shards (split, index, patch count) that are not on disk."""
    jobs = [
        (split, index, min(SHARD, total - index * SHARD))
        for split, total in description["patches"].items()
        for index in range(-(-total // SHARD))
    ]
    return [job for job in jobs if not shard_path(folder, job[0], job[1]).exists()]


def cluster_of(config: Config) -> Cluster | None:
    """The Dask cluster of --dask, whose workers must also see a folder of images."""
    if config.dask is None:
        return None
    is_folder = config.images not in ("builtin", "procedural", "mixed")
    return Cluster(config.dask, config.out, (Path(config.images).resolve(),) if is_folder else ())


def draw_preview(path: Path, patches: Patches, simulation: Simulation) -> None:
    """Write a picture of some patches: object, PSF, blurred and noisy patch, label."""
    rows = min(PREVIEW_ROWS, len(patches.labels))
    figure, axes = new_figure(rows, 3 + len(PREVIEW_PHOTONS), 1.7, 1.85)
    generator = torch.Generator().manual_seed(0)
    for row in range(rows):
        microscope = Microscope(*patches.optics[row].tolist())
        blurred = patches.blurred[row : row + 1]
        show_image(axes[row, 0], patches.sharp[row].numpy(), patches.names[row] or "blank")
        peak = patches.psfs[row] / patches.psfs[row].max()
        axes[row, 1].imshow(peak.sqrt().numpy(), cmap="magma", vmin=0, vmax=1)
        axes[row, 1].set(xticks=[], yticks=[])
        axes[row, 1].set_title(label_text(simulation, patches, row), fontsize=8)
        show_image(axes[row, 2], blurred[0].numpy(), "blurred")
        for column, photons in enumerate(PREVIEW_PHOTONS, start=3):
            noisy = camera_counts(to_photons(blurred, photons), generator)[0].numpy()
            show_image(axes[row, column], noisy, f"{photons} photons/px")
        for column in range(axes.shape[1]):
            size = patches.psfs.shape[-1] if column == 1 else simulation.patch_size
            add_scale_bar(axes[row, column], microscope.pixel_size_um, size)
    figure.suptitle(
        f"{simulation.model.name}: object, PSF (square root of intensity), image", fontsize=9
    )
    save_figure(path, figure)


def label_text(simulation: Simulation, patches: Patches, row: int) -> str:
    """Label of a patch as text, for example `focus 2.31 waves`."""
    if not patches.has_content[row]:
        return "no content"
    names, unit = simulation.model.label_names, simulation.model.unit
    values = patches.labels[row].tolist()
    if len(values) == 1:
        return f"{names[0]} {values[0]:.2f} {unit}"
    return "\n".join(f"{n} {v:.2f}" for n, v in zip(names, values, strict=True))


@holds_out_folder
def main(config: Config) -> None:
    """Write the shards that are missing, config.json, run.json and preview.png."""
    simulation = build_simulation(config)
    if config.dask is not None:
        check_cluster(config.dask)
    if not simulation.model.is_gaussian:
        warn_if_scalar_is_off(simulation.model.light, Optics.of(steepest_optics(simulation)))
    lost = check_energy(simulation)
    sources, skipped = load_sources(config.images, simulation.crop_size, config.seed)
    for line in skipped:
        print(f"skipped {line}")
    if skipped:
        print(f"{len(skipped)} images skipped, {len(sources)} used")
    splits = split_sources(sources, config.seed)
    description = describe(config, simulation, splits, skipped)
    total = sum(description["patches"].values())
    jobs = missing_shards(config.out, description)
    check_free_space(config.out, 2 * sum(j[2] for j in jobs) * config.patch_size**2)
    for split in SPLITS if jobs else ():  # refuses images without sharp content before it writes
        bank = bank_of(tuple(splits[split]), simulation.crop_size, simulation.patch_size)
        simulate(simulation, bank, 8, chunk_rng(config.seed, split, 0), augment=False)
    claim_folder(config.out, description, "training set")
    print(
        f"{total} patches of {simulation.model.name} from {len(sources)} images "
        f"({', '.join(f'{len(splits[s])} {s}' for s in SPLITS)}); PSF support "
        f"{simulation.psf_size} px, at most {lost:.2%} of the energy outside"
    )
    work = partial(
        make_shard,
        simulation=simulation,
        splits=splits,
        description=description,
        folder=config.out.absolute(),  # the workers of a cluster start elsewhere
    )
    with (
        closing(run_jobs(work, jobs, config.workers, cluster_of(config))) as counts,
        tqdm(total=total, unit="patch", desc="simulate", mininterval=1) as progress,
    ):
        progress.update(total - sum(job[2] for job in jobs))
        for count in counts:
            progress.update(count)
    if jobs or not (config.out / "preview.png").exists():
        rng = chunk_rng(config.seed, "train", 0)
        bank = bank_of(tuple(splits["train"]), simulation.crop_size, simulation.patch_size)
        sample = simulate(simulation, bank, CHUNK, rng, augment=True)
        draw_preview(config.out / "preview.png", sample, simulation)
        write_json(config.out / "run.json", run_record(skipped_images=skipped))
    print(f"wrote {config.out} (look at {config.out / 'preview.png'})")
    run_folder = Path("runs") / config.out.name
    fresh = None if config.train_patches else "--fresh"
    print(next_command("train.py", ("--data", config.out), ("--out", run_folder), fresh))


if __name__ == "__main__":
    run(Config, main, __doc__)
