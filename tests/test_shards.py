"""Training sets on disk: what is in them, and that nothing but the configuration decides it."""

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import generate_training_set
from psf import InputError
from psf.microscope import OPTICS_NAMES
from simulation.bank import Bank
from simulation.patches import simulate
from simulation.shards import StoredPatches, read_column, shard_path, to_uint16, write_shard
from simulation.sources import SPLITS, TEST_IMAGES, load_sources, split_sources

ROOT = Path(__file__).parents[1]
LARGER_THAN_A_SHARD = 1030  # patches: a full shard and the beginning of a second one


@pytest.fixture(scope="module")
def two_shard_config(gaussian_config):
    return replace(
        gaussian_config,
        train_patches=LARGER_THAN_A_SHARD,
        validation_patches=10,
        test_patches=70,
        patch_size=32,
        psf_size=17,
        fwhm_px=(0.0, 4.0),
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, two_shard_config):
    folder = tmp_path_factory.mktemp("data") / "uninterrupted"
    generate_training_set.main(replace(two_shard_config, out=folder))
    return folder


def shards(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*_?????.h5"))}


# --- the same bytes


def test_number_of_workers_does_not_change_a_byte(tmp_path, uninterrupted):
    """The command line in a process of its own, whose workers import the script anew."""
    counts = "--train-patches 1030 --validation-patches 10 --test-patches 70".split()
    settings = "--patch-size 32 --psf-size 17 --fwhm-px 0 4 --blank-fraction 0.1".split()
    command = [sys.executable, "generate_training_set.py", "--psf-model", "gaussian1d"]
    command += [*counts, *settings, "--workers", "2", "--out", str(tmp_path / "two")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found, expected = shards(tmp_path / "two"), shards(uninterrupted)
    assert list(expected) == [
        "test_00000.h5",
        "train_00000.h5",
        "train_00001.h5",
        "validation_00000.h5",
    ]
    assert found == expected
    config, same = ((p / "config.json").read_text() for p in (tmp_path / "two", uninterrupted))
    assert config == same


def test_killed_run_goes_on_to_the_same_bytes(tmp_path, two_shard_config, uninterrupted):
    folder = tmp_path / "killed"
    shutil.copytree(uninterrupted, folder)
    for name in ("train_00001.h5", "test_00000.h5", "run.json", "preview.png"):
        (folder / name).unlink()
    (folder / "train_00001.4242.partial.h5").write_bytes(b"cut off")
    kept = (folder / "train_00000.h5").stat().st_mtime_ns
    generate_training_set.main(replace(two_shard_config, out=folder))
    assert shards(folder) == shards(uninterrupted)
    assert (folder / "train_00000.h5").stat().st_mtime_ns == kept
    assert (folder / "run.json").exists()
    assert (folder / "preview.png").exists()


def test_another_seed_is_another_data_set(tmp_path, gaussian_config, gaussian_data):
    small = replace(gaussian_config, train_patches=20, seed=1, out=tmp_path / "seed")
    generate_training_set.main(small)
    first = read_column(shard_path(gaussian_data, "train", 0), "patches")[:20]
    other = read_column(shard_path(small.out, "train", 0), "patches")
    assert not any(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_another_configuration_is_refused_and_nothing_is_touched(gaussian_config, gaussian_data):
    before = {path.name: path.read_bytes() for path in gaussian_data.iterdir()}
    changed = replace(gaussian_config, out=gaussian_data, seed=5, blank_fraction=0.2)
    with pytest.raises(InputError, match=r"different configuration \(blank_fraction, seed\)"):
        generate_training_set.main(changed)
    assert {path.name: path.read_bytes() for path in gaussian_data.iterdir()} == before


# --- the bytes of earlier versions

# SHA-256 of the columns that are drawn exactly; they must never change.
DRAWN = {
    "train": "5a4714b1cd792156daebab217e926829cdc08929330788ecaa988c74ed61d2f4",
    "test": "ff03324b0caa342055d9a592cdc56449bfb18f0e5bde0ac74ee569271698dc95",
}
# Mean of each quarter of patches 1 and 2, row by row. Sums of floats differ in the last bit between
# processors, so that a hash of the pixels would fail on some of them.
QUARTERS = {
    "train": [[42101.7, 41882.2, 43683.0, 48488.6], [47702.1, 59071.6, 29064.8, 39843.8]],
    "test": [[44262.6, 39176.4, 45047.8, 45993.2], [64050.4, 65088.0, 64932.2, 64341.6]],
}


@pytest.fixture(scope="module")
def mixed_shards(tmp_path_factory, gaussian_config):
    """Folder of a training and a test shard of photographs and procedural objects."""
    folder = tmp_path_factory.mktemp("data") / "mixed"
    settings = {"images": "mixed", "patch_size": 32, "psf_size": 17, "fwhm_px": (0.0, 4.0)}
    config = replace(gaussian_config, out=folder, **settings)
    simulation = generate_training_set.build_simulation(config)
    sources, skipped = load_sources("mixed", simulation.crop_size, 0)
    splits = split_sources(sources, 0)
    description = generate_training_set.describe(config, simulation, splits, skipped)
    threads = torch.get_num_threads()  # make_shard sets them to 1
    for split, count in (("train", 64), ("test", 8)):
        job = (split, 0, count)
        generate_training_set.make_shard(job, simulation, splits, description, folder)
    torch.set_num_threads(threads)
    return folder


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_configuration_keeps_its_shards(mixed_shards, split):
    """Order of objects and splits, sizes of chunks and groups, and all draws."""
    path = shard_path(mixed_shards, split, 0)
    columns = ["labels", "has_content", "optics", "source_index", "source_names", "source_kinds"]
    drawn = [read_column(path, name) for name in columns]
    drawn += [read_column(path, "noise_seed")] if split == "test" else []
    text = repr([(values.dtype.str, values.tolist()) for values in drawn])
    quarters = read_column(path, "patches")[1:3].reshape(2, 2, 16, 2, 16).mean((2, 4))
    np.testing.assert_allclose(quarters.reshape(2, 4), QUARTERS[split], atol=0.5)
    assert hashlib.sha256(text.encode()).hexdigest() == DRAWN[split]


# --- what is in them


def test_no_source_image_is_in_two_splits(gaussian_data):
    config = json.loads((gaussian_data / "config.json").read_text())
    listed = {split: set(config["source_images"][split]) for split in SPLITS}
    assert listed["test"] == set(TEST_IMAGES)
    assert not listed["train"] & listed["validation"]
    assert not (listed["train"] | listed["validation"]) & listed["test"]
    for split in SPLITS:
        path = shard_path(gaussian_data, split, 0)
        names, index = read_column(path, "source_names"), read_column(path, "source_index")
        assert set(names) <= listed[split]
        assert set(np.unique(index[index >= 0])) == set(range(len(names)))
        assert ((index == -1) == (read_column(path, "has_content") == 0)).all()


@pytest.mark.parametrize("split", SPLITS)
def test_patches_use_all_of_uint16(gaussian_data, split):
    patches = read_column(shard_path(gaussian_data, split, 0), "patches")
    assert patches.dtype == np.uint16
    assert (patches.max((1, 2)) == 65535).all()


@pytest.mark.parametrize("split", ["train", "test"])
def test_stored_patches_are_the_noise_free_simulation(gaussian_config, gaussian_data, split):
    simulation = generate_training_set.build_simulation(gaussian_config)
    sources, _ = load_sources("builtin", simulation.crop_size, 0)
    rng = generate_training_set.chunk_rng(0, split, 0)
    chosen = split_sources(sources, 0)[split]
    count = 64 if split == "train" else gaussian_config.test_patches
    bank = Bank(chosen, simulation.crop_size, simulation.patch_size)
    drawn = simulate(simulation, bank, count, rng, augment=split == "train")
    path = shard_path(gaussian_data, split, 0)
    stored = read_column(path, "patches")[:count].astype(int)
    exact = drawn.blurred / drawn.blurred.amax((1, 2), keepdim=True) * 65535
    assert np.abs(stored - exact.numpy()).max() < 0.51  # rounding to whole counts
    assert np.array_equal(read_column(path, "labels")[:count], drawn.labels.numpy())
    assert np.array_equal(read_column(path, "has_content")[:count] == 1, drawn.has_content.numpy())


def test_shard_says_what_it_holds(focus_data):
    path = shard_path(focus_data, "test", 0)
    config = json.loads((focus_data / "config.json").read_text())
    with h5py.File(path) as file:
        assert json.loads(file.attrs["config"]) == config
        assert list(file["labels"].attrs["names"]) == ["focus"]
        assert file["labels"].attrs["unit"] == "waves"
        assert tuple(file["optics"].attrs["names"]) == OPTICS_NAMES
        assert np.allclose(file["optics"], [0.45, 0.5, 0.278, 1.33])
        assert 0 <= np.min(file["labels"]) < np.max(file["labels"]) <= 1
    assert config["label_ranges"] == [[0.0, 1.0]]
    assert config["microscope"]["na"] == 0.45


def test_held_out_patches_alone_carry_noise_seeds(gaussian_data):
    seeds = read_column(shard_path(gaussian_data, "test", 0), "noise_seed")
    assert len(np.unique(seeds)) == 48
    with h5py.File(shard_path(gaussian_data, "train", 0)) as file:
        assert "noise_seed" not in file


def test_single_patches_are_those_that_hdf5_reads(gaussian_data):
    path, indices = shard_path(gaussian_data, "train", 0), np.array([7, 199, 0, 7])
    with h5py.File(path) as file:
        assert file["patches"].chunks is None  # contiguous, hence uncompressed
        stored = file["patches"][()]
    assert len(np.unique(stored[indices], axis=0)) == 3
    assert np.array_equal(StoredPatches.of(path).read(indices), stored[indices])


# --- writing


def test_to_uint16_scales_by_the_brightest_pixel():
    patches = torch.tensor([[[0.0, 0.25], [0.5, 0.125]], [[0.0, 0.0], [0.0, 0.0]]])
    stored = to_uint16(patches).to(torch.int64)
    assert stored.tolist() == [[[0, 32768], [65535, 16384]], [[0, 0], [0, 0]]]


def test_a_shard_that_fails_midway_leaves_no_file(tmp_path):
    with pytest.raises(KeyError):
        write_shard(tmp_path / "train_00000.h5", {"patches": np.zeros(3)}, {"label_names": []})
    assert list(tmp_path.iterdir()) == []


def test_strings_survive_a_shard(tmp_path):
    columns = {
        "labels": np.zeros((2, 1), np.float32),
        "optics": np.zeros((2, 4), np.float32),
        "source_names": np.array(["a/ä.tif", "b"]),
    }
    path = tmp_path / "train_00000.h5"
    write_shard(path, columns, {"label_names": ["focus"], "label_unit": "waves"})
    assert read_column(path, "source_names").tolist() == ["a/ä.tif", "b"]
