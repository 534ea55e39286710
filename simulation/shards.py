"""Training sets on disk: uncompressed, contiguous HDF5 shards, from which single patches are read.

A data folder holds `config.json` and, per split, `SPLIT_00000.h5`, `SPLIT_00001.h5`, ... with
    patches       (n, H, W) uint16   noise-free, the brightest pixel of each patch at 65535
    labels        (n, P)    float32  names and units in the attributes
    has_content   (n,)      uint8    0: a blank patch, whose label means nothing
    optics        (n, 4)    float32  NA, wavelength_um, pixel_size_um, refractive_index
    source_index  (n,)      int32    into source_names; -1: blank
    source_names  (m,)      strings
    source_kinds  (m,)      strings  builtin, procedural or file
    noise_seed    (n,)      int64    of validation and test patches
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from common.files import CONTENT_ERRORS, whole_file
from psf.errors import InputError
from psf.microscope import OPTICS_NAMES
from simulation.patches import Patches

WHITE = 65535  # stored value of the brightest pixel: the largest uint16


def shard_path(folder: Path, split: str, index: int) -> Path:
    """Path of shard `index` of a split."""
    return folder / f"{split}_{index:05d}.h5"


def to_uint16(patches: torch.Tensor) -> torch.Tensor:
    """Non-negative patches (N, H, W) as uint16, the brightest pixel of each at 65535."""
    top = patches.amax((1, 2), keepdim=True).clamp(min=torch.finfo(patches.dtype).tiny)
    return (patches / top * WHITE).round().to(torch.uint16)


def write_shard(path: Path, columns: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> None:
    """Write one shard, whole or not at all; the same content gives the same bytes."""
    with whole_file(path) as partial, h5py.File(partial, "w") as file:
        file.attrs["config"] = json.dumps(config, sort_keys=True)
        for name, values in columns.items():
            if values.dtype.kind == "U":
                values = values.astype(h5py.string_dtype("utf-8"))
            file.create_dataset(name, data=values)
        file["labels"].attrs["names"] = config["label_names"]
        file["labels"].attrs["unit"] = config["label_unit"]
        file["optics"].attrs["names"] = OPTICS_NAMES


@contextmanager
def open_shard(path: Path) -> Iterator[h5py.File]:
    """Open a shard for reading.

    Raises
    ------
    InputError
        If the file is damaged, also where it is read.
    """
    try:
        with h5py.File(path, "r") as file:
            yield file
    except CONTENT_ERRORS as error:
        raise _damaged(path, str(error)) from error


def _dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """Dataset of a shard; one that claims more bytes than the file has raises ValueError."""
    dataset = file[name]
    size = Path(file.filename).stat().st_size
    if dataset.nbytes > size:
        raise ValueError(f"{name} has {dataset.nbytes} bytes, the file {size}")
    return dataset


def _damaged(path: Path, reason: str) -> InputError:
    return InputError(
        f"{path} is damaged ({reason}); delete it and run generate_training_set.py again."
    )


@dataclass(frozen=True)
class StoredPatches:
    """Place of the patches of one shard; `read` opens the file and closes it again.

    A data set has hundreds of shards. A memory map keeps its file open, and systems allow a
    process as few as 256 open files (macOS). The pages that a map has read also count as memory
    of the process. Reading 64 random patches takes 3 ms this way, about as long as from maps.
    """

    path: Path
    offset: int  # bytes from the beginning of the file
    shape: tuple[int, int, int]  # (n, H, W)

    @classmethod
    def of(cls, path: Path) -> "StoredPatches":
        """Patches of the shard at `path`."""
        with open_shard(path) as file:
            patches = _dataset(file, "patches")
            offset, shape = patches.id.get_offset(), patches.shape
            if offset is None or len(shape) != 3 or patches.dtype != np.uint16:
                raise ValueError(f"patches of shape {shape} and type {patches.dtype}")
            return cls(path, offset, shape)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Stored patches (N, H, W), uint16, in the order of their indices (N,).

        Raises
        ------
        InputError
            If the file ends too early.
        """
        out = np.empty((len(indices), *self.shape[1:]), np.uint16)
        with self.path.open("rb") as file:
            for patch, index in zip(out, indices.tolist(), strict=True):
                file.seek(self.offset + index * patch.nbytes)
                if file.readinto(patch) < patch.nbytes:
                    raise _damaged(self.path, f"it ends before patch {index}")
        return out


def read_column(path: Path, name: str) -> np.ndarray:
    """Dataset of a shard, in memory; strings become an array of str."""
    with open_shard(path) as file:
        dataset = _dataset(file, name)
        if h5py.check_string_dtype(dataset.dtype):
            return dataset.asstr()[()].astype(str)
        return dataset[()]


def shard_columns(
    patches: list[Patches], kinds: dict[str, str], rng: np.random.Generator | None
) -> dict[str, Any]:
    """Datasets of a shard, by name.

    `kinds` are those of the sources, by source name. `rng` draws the noise seeds of validation and
    test patches; training patches have none.
    """
    names = np.array([name for p in patches for name in p.names])
    distinct = np.unique(names[names != ""])
    index = np.where(names == "", -1, np.searchsorted(distinct, names))
    columns = {
        "patches": torch.cat([to_uint16(p.blurred) for p in patches]).numpy(),
        "labels": torch.cat([p.labels for p in patches]).numpy(),
        "has_content": torch.cat([p.has_content for p in patches]).numpy().astype(np.uint8),
        "optics": torch.cat([p.optics for p in patches]).numpy(),
        "source_index": index.astype(np.int32),
        "source_names": distinct,
        "source_kinds": np.array([kinds[name] for name in distinct], dtype=str),
    }
    if rng is not None:
        columns["noise_seed"] = rng.integers(0, 2**62, len(names))
    return columns
