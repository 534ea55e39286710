"""Source images: exact scaling of each file type, named flaws, splits, bounded cache."""

import pickle

import numpy as np
import pytest
import tifffile
from imagecodecs import png_encode
from PIL import Image

from psf.errors import InputError
from simulation import sources as sources_module
from simulation.sources import (
    TEST_IMAGES,
    Source,
    builtin_sources,
    folder_sources,
    load_sources,
    procedural_sources,
    read_plane,
    split_sources,
)

SIDE_PX = 40


@pytest.fixture
def grey16():
    rng = np.random.default_rng(0)
    return rng.integers(0, 2**16, (SIDE_PX, SIDE_PX + 8), dtype=np.uint16)


def only_plane(folder, page=0):
    (source,), skipped = folder_sources(folder, SIDE_PX)
    assert skipped == []
    return read_plane(source, page)


def test_sixteen_bit_files_are_divided_by_their_range(tmp_path, grey16):
    for number, (suffix, write) in enumerate(
        {
            "png": lambda path: Image.fromarray(grey16).save(path),
            "tif": lambda path: tifffile.imwrite(path, grey16),
            "TIFF": lambda path: tifffile.imwrite(path, grey16, compression="lzw"),
        }.items()
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        write(folder / f"image.{suffix}")
        plane = only_plane(folder)
        assert plane.dtype == np.float32
        assert np.array_equal(plane, (grey16 / 65535).astype(np.float32))


def test_eight_bit_is_not_stretched(tmp_path):
    grey = np.full((SIDE_PX, SIDE_PX), 51, np.uint8)
    grey[0, 0] = 102
    Image.fromarray(grey).save(tmp_path / "a.png")
    plane = only_plane(tmp_path)
    assert plane[0, 0] == np.float32(0.4) and plane[1, 1] == np.float32(0.2)


@pytest.mark.parametrize("values, expected", [((0.25, 0.75), (0.25, 0.75)), ((-5, 15), (0, 1))])
def test_float_is_scaled_only_outside_of_unit_range(tmp_path, values, expected):
    pixels = np.full((SIDE_PX, SIDE_PX), values[0], np.float32)
    pixels[3, 4] = values[1]
    tifffile.imwrite(tmp_path / "a.tif", pixels)
    plane = only_plane(tmp_path)
    assert (plane[0, 0], plane[3, 4]) == expected


@pytest.mark.parametrize("name", ["a.png", "sixteen.png", "a.tif", "planar.tif", "alpha.png"])
def test_colour_becomes_rec_709_luminance(tmp_path, name):
    rgb = np.zeros((SIDE_PX, SIDE_PX, 3), np.uint8)
    for channel in range(3):
        rgb[:, channel, channel] = 255
    alpha = np.full((SIDE_PX, SIDE_PX, 1), 7, np.uint8)
    write = {
        "a.png": lambda path: Image.fromarray(rgb).save(path),
        "sixteen.png": lambda path: path.write_bytes(png_encode(rgb.astype(np.uint16) * 257)),
        "a.tif": lambda path: tifffile.imwrite(path, rgb, photometric="rgb"),
        "planar.tif": lambda path: tifffile.imwrite(
            path, np.moveaxis(rgb, -1, 0), photometric="rgb", planarconfig="separate"
        ),
        "alpha.png": lambda path: Image.fromarray(np.dstack([rgb, alpha])).save(path),
    }
    write[name](tmp_path / name)
    assert only_plane(tmp_path)[0, :4] == pytest.approx([0.2125, 0.7154, 0.0721, 0], abs=1e-6)


def test_palette_and_white_is_zero_files_show_what_a_viewer_shows(tmp_path, grey16):
    pixels = (grey16 >> 8).astype(np.uint8)
    image = Image.fromarray(pixels).convert("P")
    image.putpalette([255 - value for value in range(256) for _ in range(3)])
    image.save(tmp_path / "palette.png")
    tifffile.imwrite(tmp_path / "white.tif", pixels, photometric="miniswhite")
    for source in folder_sources(tmp_path, SIDE_PX)[0]:
        assert read_plane(source) == pytest.approx(1 - pixels / 255, abs=1e-6)


def test_pages_are_planes_of_one_source_and_empty_ones_are_left_out(tmp_path, grey16):
    stack = np.stack([grey16, np.zeros_like(grey16), grey16[::-1]])
    tifffile.imwrite(tmp_path / "stack.tif", stack, photometric="minisblack")
    (source,), skipped = folder_sources(tmp_path, SIDE_PX)
    assert source.pages == (0, 2) and skipped == ["stack.tif page 1: constant"]
    assert np.array_equal(read_plane(source, 2), (stack[2] / 65535).astype(np.float32))


def write_good(folder, count, pixels):
    for number in range(count):
        (folder / "sub").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / "sub" / f"good_{number}.png")


@pytest.mark.parametrize(
    "name, damage",
    [
        ("cut.png", lambda data: data[: len(data) // 2]),
        ("cut16.png", lambda data: data[: len(data) // 2]),
        ("flipped.png", lambda data: data[:-40] + bytes([data[-40] ^ 1]) + data[-39:]),
        ("cut.tif", lambda data: data[: len(data) // 2]),
        ("lzw.tif", lambda data: data[: len(data) // 2]),
        ("stack.tif", lambda data: data[: len(data) // 2]),
        ("cut.jpg", lambda data: data[: len(data) // 2]),
        ("text.png", lambda data: b"not an image\n" * 20),
        ("text.tif", lambda data: b"not an image\n" * 20),
        ("empty.jpeg", lambda data: b""),
    ],
)
def test_corrupt_file_is_skipped_and_named(tmp_path, grey16, name, damage):
    write_good(tmp_path, 4, grey16)
    path = tmp_path / name
    if name.endswith("tif"):
        pixels = np.stack([grey16] * 4) if name == "stack.tif" else grey16
        tifffile.imwrite(
            path, pixels, photometric="minisblack", compression="lzw" if name == "lzw.tif" else None
        )
    elif name == "cut16.png":
        path.write_bytes(png_encode(np.dstack([grey16] * 3)))
    else:
        Image.fromarray((grey16 >> 8).astype(np.uint8)).save(path)
    path.write_bytes(damage(path.read_bytes()))
    sources, skipped = folder_sources(tmp_path, SIDE_PX)
    assert [source.name for source in sources] == [f"sub/good_{n}.png" for n in range(4)]
    assert len(skipped) == 1 and skipped[0].startswith(f"{name}: cannot be decoded (")


def test_nan_constant_and_small_images_are_named_with_the_reason(tmp_path, grey16):
    write_good(tmp_path, 1, grey16)
    ramp = np.linspace(0, 1, SIDE_PX**2, dtype=np.float32).reshape(SIDE_PX, SIDE_PX)
    broken = ramp.copy()
    broken[5, 5] = np.nan
    tifffile.imwrite(tmp_path / "nan.tif", broken)
    tifffile.imwrite(tmp_path / "even.tif", ramp * 0 + 1)
    tifffile.imwrite(tmp_path / "tiny.tif", ramp[:10])
    sources, skipped = folder_sources(tmp_path, SIDE_PX)
    assert len(sources) == 1
    assert skipped == [
        "even.tif: constant",
        "nan.tif: holds NaN or infinite values",
        f"tiny.tif: too small (40 x 10 px, {SIDE_PX} px needed)",
    ]


def test_unusable_folders_are_refused_in_words(tmp_path, grey16):
    with pytest.raises(InputError, match="no folder"):
        folder_sources(tmp_path / "missing", SIDE_PX)
    with pytest.raises(InputError, match="builtin, procedural, mixed"):
        load_sources(str(tmp_path / "missing"), SIDE_PX, 0)
    with pytest.raises(InputError, match="no image in"):
        folder_sources(tmp_path, SIDE_PX)
    (tmp_path / "note.png").write_text("hello")
    with pytest.raises(InputError, match="not a folder"):
        folder_sources(tmp_path / "note.png", SIDE_PX)
    with pytest.raises(InputError, match=r"None of the 1 images.*note\.png"):
        folder_sources(tmp_path, SIDE_PX)
    write_good(tmp_path, 3, grey16)
    with pytest.raises(InputError, match=r"1 of 4 images .* cannot be decoded \(note\.png\)"):
        folder_sources(tmp_path, SIDE_PX)
    (tmp_path / "note.png").unlink()
    with pytest.raises(InputError, match="at least 500 px"):
        folder_sources(tmp_path, 500)


def test_file_that_vanishes_later_is_an_input_error(tmp_path, grey16):
    write_good(tmp_path, 1, grey16)
    (source,), _ = folder_sources(tmp_path, SIDE_PX)
    (tmp_path / source.name).unlink()
    with pytest.raises(InputError, match="no longer"):
        read_plane(source)


def test_sources_are_picklable_and_planes_reproducible():
    source = procedural_sources(2, size=64, seed=5)[3]
    assert source.name == "filaments_001" and pickle.loads(pickle.dumps(source)) == source
    plane = read_plane(source).copy()
    sources_module._cache.clear()
    assert np.array_equal(read_plane(source), plane)
    assert not np.array_equal(read_plane(procedural_sources(2, size=64, seed=6)[3]), plane)


def test_builtin_images_load_and_small_ones_are_named():
    sources, skipped = load_sources("builtin", 254, seed=0)
    assert len(sources) + len(skipped) == len(builtin_sources()) == 19
    assert [line.split(":")[0] for line in skipped] == ["page", "text"]
    planes = {source.name: read_plane(source) for source in sources}
    assert all(plane.ndim == 2 and 0 <= plane.min() < plane.max() <= 1 for plane in planes.values())
    assert planes["brick"].shape == (256, 256) and planes["retina"].shape == (705, 705)
    with pytest.raises(InputError, match="smaller patches"):
        load_sources("builtin", 5000, seed=0)


def test_cache_stays_within_its_limit(monkeypatch):
    sources_module._cache.clear()
    monkeypatch.setattr(sources_module, "_CACHE_LIMIT_BYTES", 3 * 64 * 64 * 4)
    sources = procedural_sources(2, size=64)
    for source in sources:
        read_plane(source)
    assert [source for source, _ in sources_module._cache] == sources[-3:]
    read_plane(sources[-3])
    read_plane(sources[0])
    assert [source for source, _ in sources_module._cache] == [sources[-1], sources[-3], sources[0]]


def names_of(split):
    return {key: {source.name for source in sources} for key, sources in split.items()}


def test_split_is_disjoint_complete_and_keeps_the_test_images_for_the_test():
    for seed in range(5):
        sources = builtin_sources() + procedural_sources(10)
        names = names_of(split_sources(sources, seed))
        assert set(TEST_IMAGES) <= names["test"]
        assert sum(len(part) for part in names.values()) == len(sources)
        assert set.union(*names.values()) == {source.name for source in sources}
        assert {"beads_000", "nuclei_006"} <= names["train"]
        assert "beads_007" in names["validation"] and "beads_009" in names["test"]
    only_builtin = names_of(split_sources(builtin_sources(), 0))
    assert only_builtin["test"] == set(TEST_IMAGES) and len(only_builtin["validation"]) == 2


def test_split_depends_on_names_and_seed_alone():
    files = [Source(f"{n:02d}.png", "file", path=f"/here/{n:02d}.png") for n in range(20)]
    moved = [Source(f.name, "file", path="/there/" + f.name) for f in reversed(files)]
    assert names_of(split_sources(files, 1)) == names_of(split_sources(moved, 1))
    assert names_of(split_sources(files, 1)) != names_of(split_sources(files, 2))
    assert [len(part) for part in split_sources(files, 1).values()] == [14, 3, 3]
    assert [len(part) for part in split_sources(files[:3], 1).values()] == [1, 1, 1]
    with pytest.raises(InputError, match="at least 3"):
        split_sources(files[:2], 1)
