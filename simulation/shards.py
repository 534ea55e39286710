"""Training sets on disk: uncompressed, contiguous HDF5 shards that can be memory-mapped.

A data folder holds `config.json` and, per split, `SPLIT_00000.h5`, `SPLIT_00001.h5`, ... with
    patches       (n, H, W) uint16   noise-free, the brightest pixel of each patch at 65535
    labels        (n, P)    float32  names and units in the attributes
    has_content   (n,)      uint8    0: a blank patch, its label means nothing
    optics        (n, 4)    float32  NA, wavelength_um, pixel_size_um, refractive_index
    source_index  (n,)      int32    into source_names; -1: blank
    source_names  (m,)      strings
    source_kinds  (m,)      strings  builtin, procedural or file
    noise_seed    (n,)      int64    of validation and test patches
"""

import json
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from common.files import whole_file
from psf.errors import InputError
from psf.microscope import OPTICS_NAMES
from simulation.patches import (
    Patches,
)

WHITE = 65535  # stored value of the brightest pixel


def shard_path(folder: Path, split: str, index: int) -> Path:
    """Name of shard `index` of a split."""
    return folder / f"{split}_{index:05d}.h5"


def to_uint16(patches: torch.Tensor) -> torch.Tensor:
    """Scale non-negative patches (N, H, W) to 0 .. 65535 by their brightest pixel, as uint16."""
    top = patches.amax((1, 2), keepdim=True).clamp(min=torch.finfo(patches.dtype).tiny)
    return (patches / top * WHITE).round().to(torch.uint16)


def write_shard(path: Path, columns: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> None:
    """Write one shard, whole or not at all; equal content gives equal bytes."""
    with whole_file(path) as partial, h5py.File(partial, "w") as file:
        file.attrs["config"] = json.dumps(config, sort_keys=True)
        for name, values in columns.items():
            if values.dtype.kind == "U":
                values = values.astype(h5py.string_dtype("utf-8"))
            file.create_dataset(name, data=values)
        file["labels"].attrs["names"] = config["label_names"]
        file["labels"].attrs["unit"] = config["label_unit"]
        file["optics"].attrs["names"] = OPTICS_NAMES


def open_shard(path: Path) -> h5py.File:
    """Open a shard for reading.

    Raises
    ------
    InputError
        If the file is damaged.
    """
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise InputError(f"{path} is damaged ({error}); delete it and generate again.") from error


def map_dataset(path: Path, name: str) -> np.memmap:
    """Memory-map a contiguous dataset of a shard, read-only."""
    with open_shard(path) as file:
        dataset = file[name]
        offset, dtype, shape = dataset.id.get_offset(), dataset.dtype, dataset.shape
    return np.memmap(path, dtype, "r", offset, shape)


def release(mapped: np.memmap) -> None:
    """Let go of the pages a map has touched, or a process grows to the size of its data.

    They stay in the system's cache, as far as there is room, and reading on is as fast.
    """
    if hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
        mapped._mmap.madvise(mmap.MADV_DONTNEED)


def read_column(path: Path, name: str) -> np.ndarray:
    """Read a dataset of a shard into memory; strings become an array of str."""
    with open_shard(path) as file:
        dataset = file[name]
        if h5py.check_string_dtype(dataset.dtype):
            return dataset.asstr()[()].astype(str)
        return dataset[()]


def shard_columns(
    patches: list[Patches], kinds: dict[str, str], rng: np.random.Generator | None
) -> dict[str, Any]:
    """Datasets of a shard, by name; `kinds` of the sources, by their name.

    `rng` draws the noise seeds of held-out patches.
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
