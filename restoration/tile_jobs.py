"""Tiles of a restoration, restored one after the other here or on a Dask cluster.

Each tile travels in a file of its own in the output folder, so that a worker reads its tile alone.
"""

import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from common.cluster import Cluster
from common.files import process_number, writing
from common.jobs import run_jobs
from restoration.iteration import Restored, Settings
from restoration.variant_blur import VariantBlur

Work = Callable[[torch.Tensor, VariantBlur, Settings], Restored]  # restores photons (H, W)
Part = tuple[slice, slice]


@dataclass(frozen=True)
class ClusterWork:
    """Work that a Dask cluster does for tiles, and this process for whole images."""

    work: Work
    cluster: Cluster

    def __call__(self, photons: torch.Tensor, blur: VariantBlur, settings: Settings) -> Restored:
        """The restoration, made in this process."""
        return self.work(photons, blur, settings)


@dataclass(frozen=True)
class TileWork:
    """How a worker restores a tile from its file."""

    work: Work
    threads: int  # of PyTorch, as here: with another number sums may round differently

    def __call__(self, job: tuple[int, Path, Part]) -> tuple[int, Restored]:
        """The number of the tile and its restoration, without the margin."""
        torch.set_num_threads(self.threads)
        number, path, inside = job
        with torch.no_grad():
            return number, cut(self.work(*pickle.loads(path.read_bytes())), inside)


def restored_parts(
    photons: torch.Tensor,
    blur: VariantBlur,
    settings: Settings,
    work: Work,
    parts: Sequence[tuple[Part, Part]],
) -> Iterator[tuple[int, Restored]]:
    """Numbers of tiles and their restorations, in any order.

    Each of `parts` is a tile with its margin in the image, and the tile without it in that part.
    """

    def content(part: Part) -> tuple[torch.Tensor, VariantBlur, Settings]:
        # The same layout in memory as in a file, since sums over a view may round differently.
        return photons[part].clone(), blur.part(part), settings.of_part(part).cloned()

    if not isinstance(work, ClusterWork):
        for number, (part, inside) in enumerate(parts):
            yield number, cut(work(*content(part)), inside)
        return
    name = f"tile-%d.{process_number()}.partial.pickle"
    folder = work.cluster.folder.absolute()
    with ExitStack() as stack:
        jobs = []
        for number, (part, inside) in enumerate(parts):
            path = folder / (name % number)
            stack.callback(path.unlink, missing_ok=True)
            with writing(path):
                path.write_bytes(pickle.dumps(content(part)))
            jobs.append((number, path, inside))
        do = TileWork(work.work, torch.get_num_threads())
        yield from stack.enter_context(closing(run_jobs(do, jobs, 1, work.cluster)))


def cut(restored: Restored, inside: Part) -> Restored:
    """A part of a restoration."""
    image, expected = restored.image[inside].clone(), restored.expected[inside].clone()
    return replace(restored, image=image, expected=expected)
