"""Fresh training patches of a data folder without end, simulated where the network is trained.

The patches have the settings and the source images of the folder's config.json. New procedural
images are rendered by other processes, one after every RENEWAL patches. When the bank is full, a
new image takes the place of the oldest one. A folder with more tiles than the bank has rows is
passed through in the same way. The images of a step depend on the number of the step only, so a
resumed run continues with the same patches.
"""

import multiprocessing
import os
import signal
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing.pool import ApplyResult, Pool
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from psf.errors import InputError
from simulation.bank import Bank, Pixels, Tile, load_tile, tiles_of
from simulation.objects import OBJECTS
from simulation.patches import Patches, simulate
from simulation.settings import from_config
from simulation.sources import (
    PROCEDURAL_COUNT_PER_KIND,
    Source,
    limit_cache,
    load_sources,
    source_hash,
)

# Patches of one process from one new image to the next. A CPU core renders 14 images per second and
# trains on 250 patches, so rendering takes 2 % of its time; the MOST_PROCESSES keep up with 50,000
# patches per second.
RENEWAL = 1024
ROTATING_ROWS = 1408  # of the bank, for tiles that are replaced: 128 of each kind, 0.7 GiB in all
AHEAD = 16  # images that are rendered before they are needed
MOST_PROCESSES = 4  # that render, about 50 images per second; each needs 0.2 GiB of its own
PATIENCE_S = 60.0  # for an image; the slowest takes 0.2 s
FEW_TILES = 64  # are loaded in this process, since the start of others takes longer
CPU_PART = 64  # patches that a thread simulates together on a CPU
BATCHES = 3  # part of the seed of each batch


class ObjectStream:
    """A bank of source images whose procedural ones are replaced by fresh ones without end.

    Parameters
    ----------
    sources : the images to begin with
    seed : of the source images
    sizes : of a crop and of the patch in its middle, px
    device : of the bank
    rank, world : number of this process among those that train together; each has other images
    """

    def __init__(
        self,
        sources: list[Source],
        seed: int,
        sizes: tuple[int, int],
        device: torch.device,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.rank = rank
        self.rotation = Rotation(sources, seed, sizes[0], rank, world)
        rows = len(self.rotation.fixed) + self.rotation.rows
        self.bank = Bank(sources, *sizes, device, rows)
        self._load = partial(load_tile, side=self.bank.side, patch_size=sizes[1])
        self._pool: Pool | None = None
        self._pending: dict[int, ApplyResult] = {}
        self._arrived = -1  # tiles of the rotation that are or were in the bank; -1: none is loaded

    def close(self) -> None:
        """End the processes that render images."""
        if self._pool is not None:
            self._pool.terminate()
            self._pool = None

    def renew(self, renewals: int) -> None:
        """Bring the bank to its state after this number of new images."""
        rotation = self.rotation
        arrived = rotation.start + (renewals if rotation.turns else 0)
        if arrived == self._arrived:
            return
        if self._arrived < 0:
            first = max(0, arrived - rotation.rows)
            numbers = list(range(first, arrived))
            rows = [*range(len(rotation.fixed)), *(self._row(number) for number in numbers)]
            tiles = [*rotation.fixed, *(rotation.tile(number) for number in numbers)]
            # The tiles of an image one after the other, so that a process decodes it only once.
            pairs = zip(rows, tiles, strict=True)
            pairs = sorted(pairs, key=lambda pair: (pair[1].source.name, pair[1].page))
            loaded = self._loaded([tile for _, tile in pairs])
            for (row, tile), pixels in zip(pairs, loaded, strict=True):
                self._put(row, tile, pixels)
        else:
            for number in range(self._arrived, arrived):
                self._put(self._row(number), rotation.tile(number), self._rendered(number))
        self._arrived = arrived
        self.bank.choose_from(tile for tile in self.bank.occupants if tile is not None)
        if rotation.turns:
            self._render_ahead(arrived)

    def _row(self, number: int) -> int:
        return len(self.rotation.fixed) + number % self.rotation.rows

    def _put(self, row: int, tile: Tile, pixels: Pixels) -> None:
        if len(pixels.places):
            self.bank.put(row, tile, pixels)
        else:
            self.bank.clear(row)

    def _loaded(self, tiles: list[Tile]) -> Iterator[Pixels]:
        if len(tiles) <= FEW_TILES:
            yield from map(self._load, tiles)
            return
        jobs = [self._begun(tile) for tile in tiles]
        pairs = zip(tiles, jobs, strict=True)
        for tile, job in tqdm(
            pairs, "source images", len(tiles), leave=False, disable=self.rank > 0
        ):
            yield self._result(tile, job)

    def _render_ahead(self, arrived: int) -> None:
        for number in range(arrived, arrived + AHEAD):
            if number not in self._pending:
                self._pending[number] = self._begun(self.rotation.tile(number))

    def _rendered(self, number: int) -> Pixels:
        tile, job = self.rotation.tile(number), self._pending.pop(number, None)
        return self._load(tile) if job is None else self._result(tile, job)

    def _begun(self, tile: Tile) -> ApplyResult:
        return self._processes().apply_async(self._load, (tile,))

    def _result(self, tile: Tile, job: ApplyResult) -> Pixels:
        try:
            return job.get(PATIENCE_S)
        except multiprocessing.TimeoutError:  # the system ended the process, e.g. to free memory
            return self._load(tile)

    def _processes(self) -> Pool:
        if self._pool is None:
            count = min(MOST_PROCESSES, os.cpu_count() or 1)
            self._pool = multiprocessing.get_context("spawn").Pool(count, _begin)
        return self._pool


class PatchStream:
    """Endless fresh training patches of a data folder, simulated on a device.

    Parameters
    ----------
    folder, config : the data folder, and the content of its config.json
    device : where the patches are simulated
    seed : of all random numbers besides the source images
    rank, world : number of this process among those that train together; each has other patches

    Raises
    ------
    InputError
        If source images are gone or were changed after the folder was made.
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        device: torch.device,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.simulation = from_config(config)
        self.seed, self.rank = seed, rank
        sizes = self.simulation.crop_size, self.simulation.patch_size
        sources = training_sources(folder, config, sizes[0])
        self.objects = ObjectStream(sources, config["seed"], sizes, device, rank, world)
        # On a CPU each thread simulates parts by itself, since its operations are small.
        self._threads = ThreadPoolExecutor(
            torch.get_num_threads(), initializer=torch.set_num_threads, initargs=(1,)
        )

    @property
    def bank(self) -> Bank:
        """The source images."""
        return self.objects.bank

    def draw(self, step: int, count: int) -> list[Patches]:
        """`count` patches of one step, on the device, in parts; the steps must not fall."""
        self.objects.renew(step * count // RENEWAL)
        size = CPU_PART if self.bank.device.type == "cpu" else count
        sizes = [min(size, count - start) for start in range(0, count, size)]
        work = partial(self._simulated, step)
        if len(sizes) == 1:
            return [work(0, count)]
        return list(self._threads.map(work, range(len(sizes)), sizes))

    def close(self) -> None:
        """End the threads that simulate and the processes that render images."""
        self._threads.shutdown()
        self.objects.close()

    def _simulated(self, step: int, part: int, count: int) -> Patches:
        rng = np.random.default_rng([self.seed, self.rank, BATCHES, step, part])
        return simulate(self.simulation, self.bank, count, rng, augment=True)


class Rotation:
    """Which tiles are in the bank of a stream: fixed ones, and ones that are replaced in turn.

    The rotating tiles are numbered in the order in which they arrive. Procedural images follow each
    other without end, the tiles of a folder repeat.
    """

    def __init__(
        self, sources: list[Source], seed: int, crop_size: int, rank: int = 0, world: int = 1
    ) -> None:
        self.seed, self.rank, self.world = seed, rank, world
        tiles = [tile for source in sources for tile in tiles_of(source, crop_size)]
        self.fixed = [tile for tile in tiles if tile.source.kind == "builtin"]
        self.objects = [tile for tile in tiles if tile.source.kind == "procedural"]
        files = [tile for tile in tiles if tile.source.kind == "file"]
        order = np.random.default_rng([seed, rank]).permutation(len(files))
        self.files = [files[number] for number in order]
        count = len(self.files) or len(self.objects)
        self.rows = ROTATING_ROWS if self.objects else min(ROTATING_ROWS, count)
        self.start = min(self.rows, count)
        self.turns = bool(self.objects) or count > self.rows

    def tile(self, number: int) -> Tile:
        """Tile that arrives as this number."""
        if self.files:
            return self.files[number % len(self.files)]
        if number < self.start:
            return self.objects[number]
        # the processes of a training take the new images in turn
        new = (number - self.start) * self.world + self.rank
        kind, index = list(OBJECTS)[new % len(OBJECTS)], new // len(OBJECTS)
        index += PROCEDURAL_COUNT_PER_KIND  # those before belong to the data folder
        size = self.objects[0].source.size
        name = f"{kind}_{index:03d}"
        source = Source(
            name, "procedural", object_kind=kind, seed=self.seed, index=index, size=size
        )
        return Tile(source, 0, 0, 0)


def training_sources(folder: Path, config: Mapping[str, Any], crop_size: int) -> list[Source]:
    """Source images of the training patches of a data folder, checked by their hashes.

    Raises
    ------
    InputError
        If the folder is of an older version, or images are gone or were changed.
    """
    if "source_hashes" not in config:
        raise InputError(
            f"{folder} was made before fresh patches were possible; make another one with "
            "generate_training_set.py, or train on its stored patches without --fresh."
        )
    images = config["images"]
    if images not in ("builtin", "procedural", "mixed") and not Path(images).exists():
        remedy = "put them back, or make another data folder"
        if not Path(images).is_absolute():
            remedy = f"{images} is relative: start in the folder where the data folder was made"
        raise InputError(
            f"the source images of {folder} were in {images}, which is not there; {remedy}."
        )
    sources, _ = load_sources(images, crop_size, config["seed"])
    by_name = {source.name: source for source in sources}
    names = config["source_images"]["train"]
    gone = [name for name in names if name not in by_name]
    if gone:
        raise InputError(
            f"{len(gone)} source images of {folder} are gone from {images} "
            f"({_some(gone)}); put them back, or make another data folder."
        )
    found = [by_name[name] for name in names]
    changed = [s.name for s in found if source_hash(s) != config["source_hashes"].get(s.name, "")]
    if changed:
        raise InputError(
            f"{len(changed)} source images of {folder} were changed after it was made "
            f"({_some(changed)}); put the old ones back, or make another data folder."
        )
    return found


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _begin() -> None:
    """Prepare a process that renders images."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the training ends it
    torch.set_num_threads(1)
    limit_cache(0)  # only the newest image, of which more tiles may follow
