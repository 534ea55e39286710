"""Batches of patches from a data set, with rotations, illumination and noise.

Patches are stored without noise. Training draws new illumination and noise for each batch on the
device. Each validation and test patch has a noise seed of its own, so that its recorded pixels do
not depend on the batch size.
"""

import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.files import naming_damage, read_json
from models.ahead import made_ahead
from psf.errors import InputError
from psf.microscope import OPTICS_NAMES, cutoff_cycles_per_pixel
from psf.model import PsfModel, from_config, turn_labels
from psf.noise import (
    axial_illumination,
    camera_counts,
    fast_poisson_noise,
    gaussian_noise,
    pixel_noise,
    quantise,
    to_photons,
)
from simulation.shards import StoredPatches, read_column, shard_path

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Batch:
    """Patches with their labels and optics, all on one device."""

    patches: torch.Tensor  # (N, H, W)
    labels: torch.Tensor  # (N, P)
    has_content: torch.Tensor  # (N,) bool
    optics: torch.Tensor  # (N, 4): NA, wavelength_um, pixel_size_um, refractive_index

    @property
    def cutoff(self) -> torch.Tensor:
        """Cut-off frequencies (N,), cycles per px."""
        na, wavelength_um, pixel_size_um, _ = self.optics.unbind(1)
        return cutoff_cycles_per_pixel(na, wavelength_um, pixel_size_um)

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device; from pinned memory, the copy to a GPU runs in the background."""
        background = device.type == "cuda"
        columns = (self.patches, self.labels, self.has_content, self.optics)
        return Batch(*(c.to(device, non_blocking=background) for c in columns))

    def pinned(self) -> "Batch":
        """The batch in pinned memory, from which a GPU copies without the processor."""
        columns = (self.patches, self.labels, self.has_content, self.optics)
        return Batch(*(c.pin_memory() for c in columns))


@dataclass(frozen=True)
class Condition:
    """How a validation or test patch is recorded: with noise, rounded, or as it is stored."""

    name: str
    photons: float = math.inf  # mean per pixel; infinite: no noise
    bits: int = 0  # depth to which pixels are rounded, without noise; 0: no rounding

    def record(self, patch: torch.Tensor, seed: int) -> torch.Tensor:
        """Recorded patch (H, W) of a noise-free one; `seed` decides its noise."""
        if self.bits:
            return quantise(patch[None], self.bits)[0]
        if math.isinf(self.photons):
            return patch
        generator = torch.Generator().manual_seed((seed + int(self.photons)) % 2**63)
        return camera_counts(to_photons(patch[None], self.photons), generator)[0]


# Of the tables: the paper's ideal case, a common camera depth, and a factor of 10 in light each.
CONDITIONS = (
    Condition("noise-free"),
    Condition("8-bit", bits=8),
    Condition("1000 photons", 1000),
    Condition("100 photons", 100),
    Condition("10 photons", 10),
)


# What to do about a data folder without patches of a split.
MAKE_THEM = "make them with generate_training_set.py --{}-patches 2000 and another --out"
REMEDIES = {split: MAKE_THEM.format(split) for split in ("validation", "test")}
REMEDIES["train"] = "give --fresh to simulate them during the training"


class PatchSet:
    """One split of a data folder, or its first `limit` patches; pixels are read on request.

    Raises
    ------
    InputError
        If the folder is no data set, has no patches of the split, or shards are missing.
    """

    def __init__(self, folder: Path, split: str, limit: int | None = None) -> None:
        self.config = read_data_config(folder)
        with naming_damage(folder / "config.json", "configuration of a training set"):
            self.model: PsfModel = from_config(self.config["psf_model"])
            self.count: int = int(self.config["patches"].get(split, 0))
        if self.count < 1:
            name = "training" if split == "train" else split
            raise InputError(f"{folder} has no {name} patches; {REMEDIES[split]}.")
        self._shards = _stored_patches(folder, split, self.count)
        self._first = np.cumsum([0] + [shard.shape[0] for shard in self._shards])
        self.count = min(self.count, limit or self.count)
        columns = [_columns(shard, split, self.model) for shard in self._shards]

        def joined(name: str) -> np.ndarray:
            return np.concatenate([one[name] for one in columns])[: self.count]

        self.labels = torch.from_numpy(joined("labels"))
        self.has_content = torch.from_numpy(joined("has_content").astype(bool))
        self.optics = torch.from_numpy(joined("optics"))
        self.noise_seeds = joined("noise_seed")
        self.source_names, self.source_kinds = joined("source_names"), joined("source_kinds")

    def read(self, indices: np.ndarray) -> torch.Tensor:
        """Stored patches (N, H, W), uint16, in the order asked for."""
        shard = np.searchsorted(self._first, indices, side="right") - 1
        out = np.empty((len(indices), *self._shards[0].shape[1:]), np.uint16)
        for i in np.unique(shard):
            rows = np.flatnonzero(shard == i)
            out[rows] = self._shards[i].read(indices[rows] - self._first[i])
        return torch.from_numpy(out)

    def batch(self, indices: np.ndarray, device: torch.device = CPU) -> Batch:
        """Noise-free batch on the device, patches as float32."""
        # converted here, because MPS has no uint16 before torch 2.9
        patches = self.read(indices).float()
        columns = (self.labels[indices], self.has_content[indices], self.optics[indices])
        return Batch(patches, *columns).to(device)

    def recorded(
        self,
        condition: Condition,
        batch_size: int,
        device: torch.device,
        rank: int = 0,
        world: int = 1,
    ) -> Iterator[Batch]:
        """Batches of all patches, in order, recorded under a condition.

        Process `rank` of `world` gets every world-th batch.
        """
        starts = range(rank * batch_size, self.count, world * batch_size)

        def record(index: int) -> Batch:
            stop = min(starts[index] + batch_size, self.count)
            return self._record(condition, np.arange(starts[index], stop))

        with closing(made_ahead(record, len(starts))) as batches:
            yield from (batch.to(device) for batch in batches)

    def _record(self, condition: Condition, indices: np.ndarray) -> Batch:
        """Batch on the CPU, recorded under a condition."""
        batch, seeds = self.batch(indices), self.noise_seeds[indices].tolist()
        noisy = [condition.record(p, s) for p, s in zip(batch.patches, seeds, strict=True)]
        return replace(batch, patches=torch.stack(noisy))


def read_data_config(folder: Path) -> dict[str, Any]:
    """Content of a data folder's config.json."""
    config = read_json(folder / "config.json", "training set")
    if config.get("kind") != "training set":
        raise InputError(f"{folder} is no training set; make one with generate_training_set.py.")
    return config


def _stored_patches(folder: Path, split: str, count: int) -> list[StoredPatches]:
    """Shards of a split, in order, up to `count` patches."""
    shards, found = [], 0
    while found < count:
        path = shard_path(folder, split, len(shards))
        if not path.is_file():
            raise InputError(
                f"{path} is missing; run generate_training_set.py again to complete {folder}."
            )
        shards.append(StoredPatches.of(path))
        if shards[-1].shape[0] == 0:
            raise InputError(f"{path} is damaged: it holds no patch; make the data set again.")
        found += shards[-1].shape[0]
    return shards


def _columns(shard: StoredPatches, split: str, model: PsfModel) -> dict[str, np.ndarray]:
    """Columns of a shard with one entry per patch; training patches have noise seeds of 0."""
    path, count = shard.path, shard.shape[0]
    with naming_damage(path, "shard"):
        names = ("labels", "has_content", "optics", "source_index")
        columns = {name: read_column(path, name) for name in names}
        columns["noise_seed"] = np.zeros(count, np.int64)
        if split != "train":
            columns["noise_seed"] = read_column(path, "noise_seed")
        for name in ("source_names", "source_kinds"):  # "" for blank patches, whose index is -1
            columns[name] = np.append(read_column(path, name), "")[columns["source_index"]]
        shapes = {"labels": (count, len(model.label_names)), "optics": (count, len(OPTICS_NAMES))}
        for name, column in columns.items():
            if column.shape != shapes.get(name, (count,)):
                raise ValueError(f"{name} of shape {column.shape} for {count} patches")
    return columns


def normalise(patches: torch.Tensor) -> torch.Tensor:
    """Patches (N, H, W) of mean 0 and standard deviation 1 each; a constant patch becomes 0."""
    centred = patches - patches.mean((1, 2), keepdim=True)
    deviation = centred.square().mean((1, 2), keepdim=True).sqrt()
    smallest = 1e-6 * patches.abs().amax((1, 2), keepdim=True) + torch.finfo(patches.dtype).tiny
    return torch.where(deviation > smallest, centred / deviation.clamp(min=1e-30), 0)


def turn(batch: Batch, model: PsfModel, generator: torch.Generator) -> Batch:
    """Batch with each patch rotated and mirrored at random, and its label with it.

    Every patch is computed in the same way, so that a GPU need not report what was drawn.
    """
    count, device = len(batch.labels), batch.patches.device
    turns = torch.randint(4, (count,), generator=generator, device=device)
    if not model.allows_quarter_turns:
        turns = turns // 2 * 2
    mirrored = torch.randint(2, (count,), generator=generator, device=device).bool()
    # rot90 by 1 is a transposition, then a flip of the rows; by 3, then one of the columns
    flip_rows = (turns == 1) | (turns == 2)
    flip_columns = (turns >= 2) ^ mirrored
    patches = batch.patches
    for chosen, changed in (
        (turns % 2 == 1, lambda p: p.transpose(1, 2)),
        (flip_rows, lambda p: p.flip(1)),
        (flip_columns, lambda p: p.flip(2)),
    ):
        patches = torch.where(chosen[:, None, None], changed(patches), patches)
    matrices = label_turns(model).to(device, non_blocking=True)[2 * turns + mirrored]
    labels = (batch.labels[:, :, None] * matrices).sum(1)
    return Batch(patches, labels, batch.has_content, batch.optics)


def label_turns(model: PsfModel) -> torch.Tensor:
    """Matrices (8, P, P) that labels (N, P) are multiplied with; see `turn_labels`.

    Matrix 2 k + m belongs to k quarter turns, then a mirror if m is 1. It is 0 if the model does
    not allow k quarter turns.
    """
    unit = torch.eye(len(model.label_names))
    allowed = range(0, 4, 1 if model.allows_quarter_turns else 2)
    return torch.stack(
        [
            turn_labels(model, unit, k, mirror) if k in allowed else torch.zeros_like(unit)
            for k in range(4)
            for mirror in (False, True)
        ]
    )


@dataclass(frozen=True)
class Exposure:
    """Illumination and noise of training patches; each value is drawn anew for every patch."""

    # Range of mean photons per pixel, logarithmic. Half of the patches have less than 300.
    photons: tuple[float, float] = (3.0, 30000.0)
    noise_free: float = 0.12  # share of patches without noise
    eight_bit: float = 0.12  # share of patches that are rounded to 8 bit, half of them with noise
    read_noise_e: tuple[float, float] = (0.5, 3.0)  # range of the read noise, electrons
    scmos: float = 0.25  # share of patches whose pixels differ in gain and read noise
    vignetted: float = 0.3  # share of patches with uneven illumination
    corner_loss: float = 0.5  # largest share of light lost at a corner


def expose(patches: torch.Tensor, exposure: Exposure, generator: torch.Generator) -> torch.Tensor:
    """Recorded training patches (N, H, W): noise-free ones with random illumination and noise."""
    count, device = len(patches), patches.device

    def draw(low: float, high: float, *shape: int) -> torch.Tensor:
        return torch.rand(count, *shape, generator=generator, device=device) * (high - low) + low

    loss = draw(0, exposure.corner_loss) * (draw(0, 1) < exposure.vignetted)
    patches = axial_illumination(patches, loss, draw(-0.5, 0.5, 2))
    log_low, log_high = (math.log(p) for p in exposure.photons)
    expected = to_photons(patches, draw(log_low, log_high).exp())
    noisy = fast_poisson_noise(expected, generator)
    noisy = gaussian_noise(noisy, draw(*exposure.read_noise_e), generator)
    # The order of a batch is random, so its first patches are as good as any.
    some = round(exposure.scmos * count)
    noisy[:some] = pixel_noise(noisy[:some], generator)
    kind = draw(0, 1)
    rounded = kind < exposure.eight_bit
    patches = torch.where(
        (kind < exposure.eight_bit / 2)[:, None, None], noisy.clamp(min=0), patches
    )
    clean = (kind >= exposure.eight_bit) & (kind < exposure.eight_bit + exposure.noise_free)
    # chosen by `where`: an index by a mask makes a GPU report how many patches it selects
    noisy = torch.where(rounded[:, None, None], quantise(patches, 8), noisy)
    return torch.where(clean[:, None, None], patches, noisy)
