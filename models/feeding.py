"""Batches of a training, on its device: stored patches read ahead, or fresh ones simulated."""

from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from models.ahead import made_ahead
from models.data import Batch, PatchSet
from psf.errors import InputError
from psf.noise import quantise
from simulation.stream import PatchStream

STORED_BITS = 16  # of the pixels of a data set; the spectra show the rounding to so many levels


class Feed(Protocol):
    """Source of training batches."""

    epoch_patches: int  # patches of an epoch, of all processes together
    steps: int  # of an epoch

    def begin(self, step: int) -> None:
        """Do what takes long before the first batch, that of a step of the training."""

    def batches(self, epoch: int, step: int, count: int) -> Iterator[Batch]:
        """The `count` first batches of an epoch, whose first step of the training is `step`."""

    def close(self) -> None:
        """End what runs in the background."""


class StoredFeed:
    """Patches of a data folder, in a new order in each epoch; see `epoch_order`.

    Raises
    ------
    InputError
        If there are fewer patches than in a batch for each process.
    """

    def __init__(
        self,
        patch_set: PatchSet,
        batch_size: int,
        device: torch.device,
        seed: int,
        rank: int,
        world: int,
    ) -> None:
        self.patch_set, self.batch_size, self.device = patch_set, batch_size, device
        self.seed, self.rank, self.world = seed, rank, world
        self.epoch_patches = patch_set.count
        self.steps = patch_set.count // (batch_size * world)
        if not self.steps:
            raise InputError(
                f"{patch_set.count} training patches are fewer than a batch of {batch_size} for "
                f"each of {world} processes; give a smaller --batch-size."
            )

    def begin(self, step: int) -> None:
        """Do nothing: the shards are open."""

    def batches(self, epoch: int, step: int, count: int) -> Iterator[Batch]:
        """The `count` first batches of an epoch; a thread reads them ahead."""
        order = epoch_order(self.epoch_patches, self.seed, epoch, self.rank, self.world)

        def read(index: int) -> Batch:
            start = index * self.batch_size
            batch = self.patch_set.batch(order[start : start + self.batch_size])
            return batch.pinned() if self.device.type == "cuda" else batch

        with closing(made_ahead(read, count)) as batches:
            yield from (batch.to(self.device) for batch in batches)

    def close(self) -> None:
        """Do nothing: the threads end with each epoch."""


class FreshFeed:
    """Patches that are simulated for each step, and never seen again."""

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        epoch_patches: int,
        batch_size: int,
        device: torch.device,
        seed: int,
        rank: int,
        world: int,
    ) -> None:
        self.batch_size = batch_size
        self.steps = max(1, round(epoch_patches / (batch_size * world)))
        self.epoch_patches = self.steps * batch_size * world
        self.stream = PatchStream(folder, config, device, seed, rank, world)

    def begin(self, step: int) -> None:
        """Load the source images, which takes up to a minute."""
        self._draw(step)

    def batches(self, epoch: int, step: int, count: int) -> Iterator[Batch]:
        """The `count` batches from a step of the training on.

        Each is simulated in its turn. A thread that simulates ahead competes with the training step
        for the cores of a CPU: on two, 338 patches per second in place of 348 to 418.
        """
        yield from map(self._draw, range(step, step + count))

    def _draw(self, step: int) -> Batch:
        parts = self.stream.draw(step, self.batch_size)
        names = ("blurred", "labels", "has_content", "optics")
        columns = [torch.cat([getattr(part, name) for part in parts]) for name in names]
        # rounded as the patches of a data set are, which select and test the weights
        return Batch(quantise(columns[0], STORED_BITS), *columns[1:])

    def close(self) -> None:
        """End the process that renders new images."""
        self.stream.close()


def epoch_order(count: int, seed: int, epoch: int, rank: int = 0, world: int = 1) -> np.ndarray:
    """Shuffled patch indices of one epoch; process `rank` of `world` takes every world-th."""
    order = np.random.default_rng([seed, epoch]).permutation(count)
    return order[: count // world * world][rank::world]
