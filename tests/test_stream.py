"""Fresh patches: the same at every start, other ones in every step, from images that change."""

import itertools
import json
import multiprocessing
from dataclasses import replace

import numpy as np
import pytest
import tifffile
import torch

import generate_training_set
import simulation.stream as stream_module
from psf import InputError
from simulation.bank import Bank, Tile, load_tile, tiles_of
from simulation.sources import Source, builtin_sources, procedural_sources
from simulation.stream import ObjectStream, PatchStream, Rotation, training_sources

CPU = torch.device("cpu")
CROP_PX = 80


@pytest.fixture(scope="module")
def config(gaussian_data):
    return json.loads((gaussian_data / "config.json").read_text())


@pytest.fixture
def stream(gaussian_data, config):
    found = PatchStream(gaussian_data, config, CPU, seed=3)
    yield found
    found.close()


def whole(parts):
    """Columns of all parts of a batch."""
    names = ("blurred", "labels", "has_content", "optics")
    return {name: torch.cat([getattr(part, name) for part in parts]) for name in names}


def test_a_stream_that_starts_late_draws_what_it_would_have_drawn(stream, gaussian_data, config):
    early = [whole(stream.draw(step, 40)) for step in range(3)]
    late = PatchStream(gaussian_data, config, CPU, seed=3)
    again = whole(late.draw(2, 40))
    late.close()
    assert len(again["labels"]) == 40
    assert all(torch.equal(early[2][name], again[name]) for name in again)
    assert not torch.equal(early[1]["labels"], early[2]["labels"])


def test_processes_and_seeds_have_other_patches(stream, gaussian_data, config):
    (first,) = stream.draw(0, 8)
    for changes in ({"seed": 4}, {"seed": 3, "rank": 1, "world": 2}):
        other = PatchStream(gaussian_data, config, CPU, **changes)
        assert not torch.equal(other.draw(0, 8)[0].labels, first.labels)
        other.close()


def test_fresh_patches_come_from_the_training_images_only(stream, config):
    names = {name for part in stream.draw(0, 256) for name in part.names}
    assert names - {""} <= set(config["source_images"]["train"])
    assert len(names) > 6


# --- images that are replaced


def small_rotation(monkeypatch, rows, count, **options):
    monkeypatch.setattr(stream_module, "ROTATING_ROWS", rows)
    sources = procedural_sources(1, size=100)[:count]
    return Rotation([*builtin_sources()[:1], *sources], 0, CROP_PX, **options)


def test_new_procedural_images_follow_without_end(monkeypatch):
    rotation = small_rotation(monkeypatch, rows=13, count=11)
    assert rotation.turns and rotation.start == 11 and rotation.rows == 13
    names = [rotation.tile(number).source.name for number in range(11, 35)]
    assert len(set(names)) == 24
    assert names[0] == "beads_032" and names[11] == "beads_033" and names[1] == "filaments_032"
    assert all(rotation.tile(number).source.size == 100 for number in (5, 50))


def test_processes_render_different_new_images(monkeypatch):
    ranks = [small_rotation(monkeypatch, 13, 11, rank=rank, world=2) for rank in (0, 1)]
    drawn = [{r.tile(number).source for number in range(r.start, r.start + 30)} for r in ranks]
    assert not drawn[0] & drawn[1]


def test_a_large_folder_is_passed_through_and_a_small_one_is_kept(monkeypatch):
    monkeypatch.setattr(stream_module, "ROTATING_ROWS", 4)
    files = [Source(f"{n}.tif", "file", path=f"{n}.tif", shapes=((90, 90),)) for n in range(6)]
    large, small = (Rotation(files[:count], 0, CROP_PX) for count in (6, 3))
    assert large.turns and not small.turns
    assert {large.tile(number).source for number in range(6)} == set(files)
    assert large.tile(8) == large.tile(2)


def test_new_images_replace_the_oldest_and_a_late_start_has_the_same(
    monkeypatch, gaussian_data, config
):
    """Rows for 12 images: after 7 renewals those of numbers 6 to 17 are in the bank.

    One of the new images has no sharp content, so its row stays empty.
    """

    def load(tile, **sizes):
        found = load_tile(tile, **sizes)
        return replace(found, places=found.places[:0]) if tile.source.index == 35 else found

    monkeypatch.setattr(stream_module, "load_tile", load)
    monkeypatch.setattr(stream_module, "PROCEDURAL_COUNT_PER_KIND", 35)
    sources = [*builtin_sources()[:1], *procedural_sources(1, size=100)]
    monkeypatch.setattr(stream_module, "ROTATING_ROWS", 12)
    monkeypatch.setattr(stream_module, "RENEWAL", 10)
    monkeypatch.setattr(stream_module, "training_sources", lambda *_: sources)
    monkeypatch.setattr(ObjectStream, "_render_ahead", lambda *_: None)
    gradual, late = (PatchStream(gaussian_data, config, CPU, seed=0) for _ in range(2))
    for step in range(8):
        (kept,) = gradual.draw(step, 10)
    (again,) = late.draw(7, 10)
    assert torch.equal(kept.blurred, again.blurred)
    inside = {tile for tile in gradual.bank.occupants if tile is not None}
    rotating = [gradual.objects.rotation.tile(number) for number in range(6, 18)]
    wanted = {*rotating, *gradual.objects.rotation.fixed}
    assert inside <= {tile for tile in wanted if tile.source.index != 35}
    assert len(inside) > 0.7 * (len(wanted) - 7)
    assert [t for t in gradual.bank.occupants if t] == [t for t in late.bank.occupants if t]
    for each in (gradual, late):
        each.close()


def test_images_of_a_lost_process_are_rendered_here(stream):
    class Lost:
        def get(self, seconds):
            raise multiprocessing.TimeoutError

    tile = tiles_of(builtin_sources()[0], CROP_PX)[0]
    found = stream.objects._result(tile, Lost())
    assert np.array_equal(found.values, load_tile(tile, 512, stream.bank.patch_size).values)


# --- sources that are gone or changed


@pytest.fixture
def folder_of_images(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(5):
        pixels = (rng.random((120, 120)) > 0.5).astype(np.uint8) * 200
        tifffile.imwrite(tmp_path / f"image_{number}.tif", pixels)
    return tmp_path


def config_of(folder, config):
    changes = {"images": str(folder), "patch_size": 64, "psf_size": 17, "fwhm_px": (0.0, 3.0)}
    settings = generate_training_set.Config(out=folder, psf_model="gaussian1d")
    settings = replace(settings, **changes)
    simulation = generate_training_set.build_simulation(settings)
    sources, skipped = generate_training_set.load_sources(str(folder), simulation.crop_size, 0)
    splits = generate_training_set.split_sources(sources, 0)
    return generate_training_set.describe(settings, simulation, splits, skipped), simulation


def test_changed_and_missing_images_are_named(folder_of_images, config):
    made, simulation = config_of(folder_of_images, config)
    names = made["source_images"]["train"]
    found = training_sources(folder_of_images, made, simulation.crop_size)
    assert [source.name for source in found] == names
    path = folder_of_images / names[0]
    tifffile.imwrite(path, 255 - tifffile.imread(path))
    with pytest.raises(InputError, match=rf"1 source images .* were changed .*{names[0]}"):
        training_sources(folder_of_images, made, simulation.crop_size)
    path.unlink()
    with pytest.raises(InputError, match=rf"1 source images .* are gone .*{names[0]}"):
        training_sources(folder_of_images, made, simulation.crop_size)


def test_a_relative_folder_of_images_is_missed_elsewhere(folder_of_images, config, monkeypatch):
    monkeypatch.chdir(folder_of_images.parent)
    relative = folder_of_images.relative_to(folder_of_images.parent)
    made, simulation = config_of(relative, config)
    assert training_sources(folder_of_images, made, simulation.crop_size)
    monkeypatch.chdir("/")
    with pytest.raises(InputError, match=rf"images .* in {relative}, .*; .* is relative"):
        training_sources(folder_of_images, made, simulation.crop_size)


def test_the_tiles_of_an_image_are_loaded_together(folder_of_images, config, monkeypatch):
    made, _ = config_of(folder_of_images, config)
    monkeypatch.setattr("simulation.bank.LEAST_SIDE_PX", 64)  # several tiles in each image
    loaded, load = [], stream_module.load_tile
    monkeypatch.setattr(
        stream_module, "load_tile", lambda tile, **sizes: loaded.append(tile) or load(tile, **sizes)
    )
    stream = PatchStream(folder_of_images, made, CPU, seed=0)
    stream.draw(0, 4)
    stream.close()
    images = [tile.source.name for tile in loaded]
    changes = sum(a != b for a, b in itertools.pairwise(images))
    assert len(images) > len(set(images)) > 1
    assert changes == len(set(images)) - 1
    # the rows are in the shuffled order, as if the tiles had been loaded in it
    assert stream.bank.occupants == stream.objects.rotation.files != loaded


def test_a_folder_of_an_older_version_is_refused(gaussian_data, config):
    old = {key: value for key, value in config.items() if key != "source_hashes"}
    with pytest.raises(InputError, match=r"was made before .*without --fresh"):
        PatchStream(gaussian_data, old, CPU, seed=0)


# --- the bank


def test_tiles_cover_a_large_image_and_overlap(tmp_path):
    source = Source("wide", "file", path="wide.tif", shapes=((512, 1300),))
    tiles = tiles_of(source, CROP_PX)
    columns = [tile.column for tile in tiles]
    assert {tile.row for tile in tiles} == {0}
    assert columns[0] == 0 and columns[-1] == 1300 - 512
    assert max(np.diff(columns)) <= 256


def test_a_full_bank_keeps_the_tiles_that_were_drawn_last(monkeypatch):
    sources = [s for s in builtin_sources() if s.name in ("grass", "brick", "astronaut")]
    bank = Bank(sources, CROP_PX, 64, rows=2)
    tiles = [tiles_of(source, CROP_PX)[0] for source in bank_sources(bank)]
    first, second, third = tiles[:3]
    rows = [bank._loaded(tile, []) for tile in (first, second, first, third)]
    assert rows[0] == rows[2] and rows[3] == rows[1]
    pixels = load_tile(third, bank.side, 64).values
    stored = bank.pixels[rows[3], : pixels.shape[0], : pixels.shape[1]]
    assert np.array_equal(stored.numpy(), pixels)
    assert tuple(bank.shapes[rows[3]]) == pixels.shape


def bank_sources(bank):
    return [tiles[0].source for group in bank.tiles.values() for tiles in group]


def test_places_are_the_middles_of_sharp_windows():
    tile = Tile(next(s for s in builtin_sources() if s.name == "grass"), 0, 0, 0)
    found = load_tile(tile, 512, 64)
    assert len(found.places) > 100
    assert found.places.min() == 31.5 and found.places.max() <= 512 - 32.5
