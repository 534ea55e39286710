"""Batches: read in order, recorded alike every time, turned with their labels."""

import json
import math
import os
import resource
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from common.files import write_json
from models.data import CONDITIONS, Batch, Condition, Exposure, PatchSet, expose, normalise, turn
from psf import InputError, Microscope, draw_labels, psf_model, synthesize_with_loss, turn_labels
from simulation.shards import read_column, shard_path, write_shard

CPU = torch.device("cpu")
TURNED = 2e-5  # share of the peak: PSFs in single precision
SIGMAS = 5  # statistical tolerance


def plain_batch(patches, labels=None):
    count = len(patches)
    labels = torch.zeros(count, 1) if labels is None else labels
    return Batch(patches, labels, torch.ones(count, dtype=torch.bool), torch.ones(count, 4))


# --- reading


@pytest.fixture(scope="module")
def three_shards(tmp_path_factory):
    """16 patches in shards of 5, 7 and 4; patch i has the value i, the label i / 10."""
    folder = tmp_path_factory.mktemp("three")
    config = {
        "kind": "training set",
        "psf_model": psf_model("gaussian1d").as_config(),
        "label_names": ["fwhm"],
        "label_unit": "px",
        "patches": {"train": 16, "validation": 16},
    }
    write_json(folder / "config.json", config)
    bounds = [(0, 5), (5, 12), (12, 16)]
    for index, (start, stop) in enumerate(bounds):
        values = np.arange(start, stop)
        columns = {
            "patches": np.ones((1, 32, 32), np.uint16) * values[:, None, None].astype(np.uint16),
            "labels": (values[:, None] / 10).astype(np.float32),
            "has_content": (values % 2).astype(np.uint8),
            "optics": np.outer(values + 1, [0.1, 0.2, 0.3, 0.4]).astype(np.float32),
            "source_index": np.where(values % 2, 0, -1).astype(np.int32),
            "source_names": np.array([f"image {index}"]),
            "source_kinds": np.array(["file"]),
        }
        write_shard(shard_path(folder, "train", index), columns, config)
    return folder


def test_batch_follows_the_order_asked_for_across_shards(three_shards):
    patch_set = PatchSet(three_shards, "train")
    indices = np.array([15, 0, 4, 5, 12, 11, 5])
    batch = patch_set.batch(indices, CPU)
    assert patch_set.read(indices).dtype == torch.uint16
    assert batch.patches[:, 3, 7].tolist() == indices.tolist()
    assert torch.equal(batch.patches.amax((1, 2)), batch.patches.amin((1, 2)))
    assert torch.allclose(batch.labels[:, 0], torch.tensor(indices / 10, dtype=torch.float32))
    assert batch.has_content.tolist() == (indices % 2 == 1).tolist()
    # 2 NA pixel / wavelength = 2 * 0.1 * 0.3 / 0.2 * (i + 1)
    assert batch.cutoff.tolist() == pytest.approx((0.3 * (indices + 1)).tolist())


def test_a_set_of_more_shards_than_open_files_can_be_read(three_shards, tmp_path):
    """A paper-sized set has 489 shards; macOS allows 256 open files."""
    shards = 40
    config = json.loads((three_shards / "config.json").read_text())
    write_json(tmp_path / "config.json", {**config, "patches": {"train": 5 * shards}})
    for index in range(shards):
        shutil.copy(shard_path(three_shards, "train", 0), shard_path(tmp_path, "train", index))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(os.devnull, os.O_RDONLY)  # the lowest free number: all below it are in use
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 20, limits[1]))
    try:
        patch_set = PatchSet(tmp_path, "train")
        pixels = patch_set.read(np.arange(5 * shards))[:, 0, 0]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert pixels.tolist() == list(range(5)) * shards


def test_a_shard_that_ends_too_early_is_named(three_shards, tmp_path):
    shutil.copytree(three_shards, tmp_path / "set")
    path = shard_path(tmp_path / "set", "train", 1)
    patch_set = PatchSet(tmp_path / "set", "train")
    place = patch_set._shards[1]
    os.truncate(path, place.offset + 3 * 32 * 32 * 2 + 100)
    assert patch_set.read(np.array([7]))[0, 31, 31] == 7
    with pytest.raises(InputError, match=r"train_00001\.h5 is damaged .*before patch 3"):
        patch_set.read(np.array([8]))


def test_source_names_follow_the_patches(three_shards):
    patch_set, chosen = PatchSet(three_shards, "train"), [0, 1, 5, 6, 13]
    assert patch_set.source_names[chosen].tolist() == ["", "image 0", "image 1", "", "image 2"]
    assert patch_set.source_kinds[chosen].tolist() == ["", "file", "file", "", "file"]


def test_missing_shard_and_foreign_folder_are_named(three_shards, tmp_path):
    with pytest.raises(
        InputError, match=r"validation_00000\.h5 is missing; run generate_training_set"
    ):
        PatchSet(three_shards, "validation")
    with pytest.raises(InputError, match=r"config\.json is missing: .* is no training set"):
        PatchSet(tmp_path, "train")
    write_json(tmp_path / "config.json", {"kind": "checkpoint"})
    with pytest.raises(InputError, match="is no training set"):
        PatchSet(tmp_path, "train")


# --- recording


@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda condition: condition.name)
def test_recorded_pixels_do_not_depend_on_the_batch_size(gaussian_data, condition):
    patch_set = PatchSet(gaussian_data, "test")
    small = torch.cat([b.patches for b in patch_set.recorded(condition, 7, CPU)])
    large = torch.cat([b.patches for b in patch_set.recorded(condition, 48, CPU)])
    again = torch.cat([b.patches for b in patch_set.recorded(condition, 48, CPU)])
    assert len(small) == 48
    assert torch.equal(small, large)
    assert torch.equal(again, large)


def test_noise_free_and_8_bit_recordings_round_the_stored_patch(gaussian_data):
    patch_set = PatchSet(gaussian_data, "test")
    stored = read_column(shard_path(gaussian_data, "test", 0), "patches").astype(np.float32)
    exact, rounded = (next(patch_set.recorded(c, 48, CPU)).patches for c in CONDITIONS[:2])
    assert np.array_equal(exact, stored)
    assert np.array_equal(rounded, np.round(stored * np.float32(255 / 65535)))


def test_recordings_of_the_test_set_have_their_photons(gaussian_data):
    patch_set = PatchSet(gaussian_data, "test")
    for photons in (1000, 10):
        noisy = next(patch_set.recorded(Condition("", photons), 48, CPU)).patches
        deviation = math.sqrt((photons + 1.6**2) / noisy[0].numel())
        assert float((noisy.mean((1, 2)) - photons).abs().max()) < SIGMAS * deviation


def test_recorded_flat_patch_has_poisson_and_read_noise():
    recorded = Condition("", 100).record(torch.full((400, 400), 7.0), seed=3)
    variance = 100 + 1.6**2
    assert float(recorded.mean()) == pytest.approx(100, abs=SIGMAS * math.sqrt(variance / 160000))
    assert float(recorded.var()) == pytest.approx(
        variance, rel=SIGMAS * math.sqrt(2 / 160000) + 1e-3
    )


def test_noise_of_two_seeds_and_two_light_levels_is_not_the_same():
    flat = torch.ones(64, 64)
    a, b = (Condition("", 100).record(flat, seed) for seed in (1, 2))
    c = Condition("", 1000).record(flat, 1)
    for first, second in ((a, b), (a, c)):
        correlation = np.corrcoef(first.ravel(), second.ravel())[0, 1]
        assert abs(correlation) < SIGMAS / 64


# --- normalising


def test_normalised_patches_have_mean_0_and_deviation_1():
    patches = torch.rand(5, 40, 50) * torch.tensor([1e-3, 1, 10, 1e4, 6e4])[:, None, None]
    normal = normalise(patches)
    assert float(normal.mean((1, 2)).abs().max()) < 1e-5
    assert torch.allclose(normal.square().mean((1, 2)), torch.ones(5), atol=1e-5)
    shifted = normalise(3 * patches + 2 * patches.amax((1, 2), keepdim=True))
    assert torch.allclose(shifted, normal, atol=1e-4)
    assert torch.allclose(normalise(-patches), -normal, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e-20, 65535.0])
def test_constant_patch_becomes_zero(value):
    assert torch.equal(normalise(torch.full((1, 48, 48), value)), torch.zeros(1, 48, 48))


# --- turning

MODELS = {
    "zernike1d": psf_model("zernike1d"),
    "zernike2d": psf_model("zernike2d"),
    "gaussian2d": psf_model("gaussian2d"),
    "astigmatic": psf_model("astigmatic"),
    "zernike": psf_model("zernike", modes=((2, 2), (2, -2), (3, 1), (3, -1), (4, 0))),
}


@pytest.mark.parametrize("name", MODELS)
def test_labels_turn_with_the_patches(name):
    model = MODELS[name]
    labels = draw_labels(model, 64, np.random.default_rng(0))
    psfs, _ = synthesize_with_loss(model, labels, Microscope(), 41)
    turned = turn(plain_batch(psfs, labels), model, torch.Generator().manual_seed(0))
    expected, _ = synthesize_with_loss(model, turned.labels, Microscope(), 41)
    error = (turned.patches - expected).abs().amax((1, 2)) / psfs.amax((1, 2))
    assert float(error.max()) < TURNED
    if model.allows_quarter_turns and not model.is_axisymmetric:
        moved = (turned.patches - psfs).abs().amax((1, 2)) / psfs.amax((1, 2))
        assert float((moved > 100 * TURNED).float().mean()) > 0.4


@pytest.mark.parametrize(("name", "ways"), [("zernike2d", 8), ("astigmatic", 4)])
def test_all_turns_that_a_model_allows_occur_alike_often(name, ways):
    patch = torch.zeros(1, 9, 9)
    patch[0, 1, 3] = 1  # off all axes of symmetry
    model = MODELS[name]
    labels = torch.zeros(800, len(model.label_names))
    batch = plain_batch(patch.expand(800, -1, -1), labels)
    turned = turn(batch, model, torch.Generator().manual_seed(1))
    places, counts = np.unique(turned.patches.flatten(1).argmax(1), return_counts=True)
    assert len(places) == ways
    # binomial: 800 / ways +- SIGMAS deviations
    assert np.abs(counts - 800 / ways).max() < SIGMAS * math.sqrt(800 / ways)


@pytest.mark.parametrize("name", MODELS)
def test_turned_patches_are_those_of_rot90_and_flip(name):
    model = MODELS[name]
    generator = torch.Generator().manual_seed(3)
    labels = torch.randn(64, len(model.label_names), generator=generator)
    batch = plain_batch(torch.rand(64, 7, 7, generator=generator), labels)
    found = turn(batch, model, torch.Generator().manual_seed(4))
    generator.manual_seed(4)
    turns = torch.randint(4, (64,), generator=generator).tolist()
    mirrored = torch.randint(2, (64,), generator=generator).bool().tolist()
    for i, (k, mirror) in enumerate(zip(turns, mirrored, strict=True)):
        quarters = k if model.allows_quarter_turns else k // 2 * 2
        patch = torch.rot90(batch.patches[i], quarters)
        assert torch.equal(found.patches[i], patch.flip(1) if mirror else patch)
        label = turn_labels(model, labels[i : i + 1], quarters, mirror)
        assert torch.equal(found.labels[i : i + 1], label)


def test_turn_leaves_content_and_optics_and_follows_its_generator():
    model = MODELS["zernike2d"]
    patches, labels = torch.rand(16, 8, 8), torch.rand(16, 3)
    batch = replace(plain_batch(patches, labels), has_content=torch.arange(16) % 3 == 0)
    first, again = (turn(batch, model, torch.Generator().manual_seed(5)) for _ in range(2))
    other = turn(batch, model, torch.Generator().manual_seed(6))
    assert torch.equal(first.patches, again.patches)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.patches, other.patches)
    assert torch.equal(first.has_content, batch.has_content)
    assert torch.equal(first.optics, batch.optics)


def test_four_quarter_turns_and_two_mirrors_give_the_label_back():
    model = MODELS["zernike2d"]
    labels = torch.rand(4, 3)
    around = labels
    for _ in range(4):
        around = turn_labels(model, around, 1)
    assert torch.equal(around, labels)
    assert torch.equal(turn_labels(model, turn_labels(model, labels, 0, True), 0, True), labels)


# --- exposing

STEADY = Exposure(vignetted=0.0)


def test_shares_of_clean_8_bit_and_noisy_patches():
    pattern = torch.rand(1, 16, 16, generator=torch.Generator().manual_seed(0)) * 1000
    patches = pattern.expand(2000, -1, -1)
    exposed = expose(patches, STEADY, torch.Generator().manual_seed(0))
    clean = (exposed == patches).all((1, 2))
    integers = (exposed == exposed.round()).all((1, 2))
    eight_bit = integers & (exposed.amax((1, 2)) == 255)
    spread = SIGMAS * math.sqrt(0.12 * 0.88 / 2000)
    assert float(clean.float().mean()) == pytest.approx(STEADY.noise_free, abs=spread)
    assert float(eight_bit.float().mean()) == pytest.approx(STEADY.eight_bit, abs=spread)
    assert not (clean & eight_bit).any()
    # half of the patches of 8 bit have noise
    rounded = (pattern / pattern.max() * 255).round()
    noise_free = (exposed == rounded).all((1, 2))
    assert (noise_free <= eight_bit).all()
    spread = SIGMAS * math.sqrt(0.06 * 0.94 / 2000)
    assert float(noise_free.float().mean()) == pytest.approx(STEADY.eight_bit / 2, abs=spread)


def test_share_of_patches_has_the_noise_of_scmos_pixels():
    light = {"photons": (5000.0, 5000.0), "read_noise_e": (1.0, 1.0)}
    exposure = replace(STEADY, scmos=0.25, noise_free=0, eight_bit=0, **light)
    noisy = expose(torch.ones(40, 64, 64), exposure, torch.Generator().manual_seed(6))
    variance = noisy.var((1, 2))
    plain = 5001  # Poisson and read noise
    scmos = plain + 3 + (0.01 * 5000) ** 2  # pixels differ in read noise, and by 1 % in gain
    error = SIGMAS * math.sqrt(2 / 4096)
    assert variance[:10] == pytest.approx(torch.full((10,), float(scmos)), rel=error)
    assert variance[10:] == pytest.approx(torch.full((30,), float(plain)), rel=error)


def test_noise_of_training_patches_is_that_of_photons_and_camera():
    exposure = replace(
        STEADY, photons=(200.0, 200.0), read_noise_e=(3.0, 3.0), noise_free=0, eight_bit=0
    )
    noisy = expose(torch.full((20, 64, 64), 5.0), exposure, torch.Generator().manual_seed(2))
    assert float(noisy.mean()) == pytest.approx(200, abs=SIGMAS * math.sqrt(209 / 81920))
    # Poisson 200, read noise 9, rounding 1/12
    assert float(noisy.var()) == pytest.approx(209, rel=SIGMAS * math.sqrt(2 / 81920) + 1e-3)


def test_light_levels_fill_their_range_evenly_in_the_logarithm():
    exposure = replace(STEADY, noise_free=0, eight_bit=0, read_noise_e=(0.0, 0.0))
    noisy = expose(torch.ones(2000, 32, 32), exposure, torch.Generator().manual_seed(3))
    share = torch.log(noisy.mean((1, 2)) / 3) / math.log(30000 / 3)
    assert -0.03 < float(share.min()) < 0.03
    assert 0.97 < float(share.max()) < 1.03
    assert float(share.mean()) == pytest.approx(0.5, abs=SIGMAS * math.sqrt(1 / 12 / 2000))


def test_vignetting_darkens_the_rim_of_its_share_of_patches():
    exposure = Exposure(noise_free=1.0, eight_bit=0.0)
    lit = expose(torch.ones(1000, 32, 32), exposure, torch.Generator().manual_seed(4))
    uneven = lit.amin((1, 2)) < lit.amax((1, 2))
    spread = SIGMAS * math.sqrt(0.3 * 0.7 / 1000)
    assert float(uneven.float().mean()) == pytest.approx(0.3, abs=spread)
    assert float(lit.max()) <= 1
    # the axis lies up to half a patch off the middle: 0.5 of loss at most times 1.5^2
    assert float(lit.min()) >= 1 - 0.5 * 1.5**2


def test_exposure_follows_its_generator():
    patches = torch.rand(8, 32, 32)
    first, again = (expose(patches, Exposure(), torch.Generator().manual_seed(1)) for _ in "ab")
    other = expose(patches, Exposure(), torch.Generator().manual_seed(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert float(patches.min()) >= 0  # the input is not written into
    assert float(patches.max()) <= 1


def test_a_limit_leaves_the_first_patches(focus_data):
    whole, few = PatchSet(focus_data, "test"), PatchSet(focus_data, "test", 5)
    assert few.count == len(few.labels) == len(few.source_names) == 5
    assert torch.equal(few.labels, whole.labels[:5])
    first = next(few.recorded(Condition("100 photons", 100), 64, torch.device("cpu")))
    same = next(whole.recorded(Condition("100 photons", 100), 5, torch.device("cpu")))
    assert torch.equal(first.patches, same.patches)
    assert PatchSet(focus_data, "test", 10**6).count == whole.count
