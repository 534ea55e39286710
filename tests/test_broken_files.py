"""Damaged files of every kind end in one clear line or are read; none needs much memory or time.

    python -m tests.test_broken_files KIND COUNT     damage COUNT files of a kind in turn

The quick test damages a few files of each kind. The slow one damages 200 of each in a process of
its own, whose memory is limited, so that a crash or a greedy reader is found too.
"""

import io
import json
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from micrographs.micrograph import open_micrograph
from models import networks
from models.checkpoint import SHIPPED, load_estimator, save_checkpoint
from models.data import CONDITIONS, PatchSet
from models.loss import output_count
from psf import InputError, psf_model
from restoration.blur_map import blur_of_map, read_map
from simulation.sources import folder_sources

ROOT = Path(__file__).parents[1]
MOST_MEMORY = 2 * 10**9  # bytes
MOST_SECONDS = 60
HUGE = 10**9  # px along each side of an image that no file holds
NOTHING_LEFT = range(4)  # numbers of the files that hold zeros, random bytes or nothing
COUNTS = np.random.default_rng(0).integers(0, 4096, (3, 80, 90), np.uint16)


# --- files of each kind, and what reads them


def write_tiff(folder: Path) -> Path:
    tifffile.imwrite(folder / "a.tif", COUNTS, photometric="minisblack", resolution=(1e4, 1e4))
    return folder / "a.tif"


def write_packed_tiff(folder: Path) -> Path:
    options = {"tile": (32, 32), "compression": "zlib", "predictor": True}
    tifffile.imwrite(folder / "a.tif", COUNTS, photometric="minisblack", **options)
    return folder / "a.tif"


def write_ome_tiff(folder: Path) -> Path:
    metadata = {"axes": "ZYX", "PhysicalSizeX": 0.1, "PhysicalSizeZ": 0.3}
    options = {"compression": "lzw", "photometric": "minisblack"}
    tifffile.imwrite(folder / "a.ome.tif", COUNTS, ome=True, metadata=metadata, **options)
    return folder / "a.ome.tif"


def write_imagej_tiff(folder: Path) -> Path:
    metadata = {"axes": "ZYX", "unit": "um", "spacing": 0.3, "Labels": ["a", "b", "c"]}
    tifffile.imwrite(folder / "a.tif", COUNTS, imagej=True, metadata=metadata)
    return folder / "a.tif"


def write_png(folder: Path) -> Path:
    Image.fromarray(COUNTS[0]).save(folder / "a.png")
    return folder / "a.png"


def write_jpeg(folder: Path) -> Path:
    Image.fromarray((COUNTS[0] // 16).astype(np.uint8)).save(folder / "a.jpg")
    return folder / "a.jpg"


def read_image(path: Path) -> None:
    """As the scripts do: all facts, and all pixels of the first and of the last plane."""
    with open_micrograph(path) as image:
        assert len(image.calibration.channel_names) in (0, image.sizes["C"])
        last = image.select(z=image.sizes["Z"] - 1)
        for plane in (image, last):
            for start in range(0, image.shape[0], 256):
                rows = plane.rows(start, min(start + 256, image.shape[0]))
                assert rows.shape[1] == image.shape[1]


def read_source(path: Path) -> None:
    """As a source image of a training set."""
    folder_sources(path.parent, min_side=64)


def write_map(folder: Path) -> Path:
    model = psf_model("zernike1d", {"focus": (0.0, 4.0)})
    config = {
        "kind": "map",
        "psf_model": model.as_config(),
        "optics": {"na": 0.45, "wavelength_um": 0.5, "pixel_size_um": 0.278},
        "label_names": ["focus"],
        "label_unit": "waves",
        "image_shape": [256, 224],
        "smoothing_strength": [1.0],
        "patch_size_px": 128.0,
        "camera": {"offset_counts": 100.0, "gain_counts_per_e": 2.0},
    }
    config["optics"]["refractive_index"] = 1.33
    lines = ["y_px,x_px,focus_waves,focus_standard_deviation_waves,content_probability"]
    lines += [f"{y},{x},{1 + y / 256:.4f},0.1,0.99" for y in range(63, 200, 32) for x in (63, 95)]
    (folder / "map.csv").write_text("\n".join(lines) + "\n")
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    return folder / "config.json"


def write_map_table(folder: Path) -> Path:
    write_map(folder)
    return folder / "map.csv"


def read_a_map(path: Path) -> None:
    psf_map, config = read_map(path.parent)
    blur_of_map(psf_map, (256, 224), 31)
    assert config["patch_size_px"] > 0


def write_network(folder: Path) -> Path:
    """A network of random weights, with the configuration of one that is shipped."""
    config = json.loads((SHIPPED / "zernike1d" / "config.json").read_text(encoding="utf-8"))
    with torch.random.fork_rng():
        save_checkpoint(folder, networks.build("spectral_resnet", output_count(1)), config)
    return folder / "model.safetensors"


def write_network_config(folder: Path) -> Path:
    write_network(folder)
    return folder / "config.json"


def read_network(path: Path) -> None:
    from psf import Microscope

    estimator = load_estimator(path.parent)
    size = estimator.patch_size
    estimator.predict(torch.rand(1, size, size), Microscope(0.45, 0.5, 0.278, 1.33))


def write_shard(folder: Path) -> Path:
    from simulation.shards import write_shard as write

    columns = {
        "patches": np.random.default_rng(1).integers(0, 65535, (6, 32, 32)).astype(np.uint16),
        "labels": np.linspace(0, 4, 6, dtype=np.float32)[:, None],
        "has_content": np.ones(6, np.uint8),
        "optics": np.tile(np.float32([0.45, 0.5, 0.278, 1.33]), (6, 1)),
        "source_index": np.zeros(6, np.int32),
        "source_names": np.array(["camera"]),
        "source_kinds": np.array(["builtin"]),
        "noise_seed": np.arange(6, dtype=np.int64),
    }
    model = psf_model("zernike1d", {"focus": (0.0, 4.0)})
    config = {"kind": "training set", "psf_model": model.as_config(), "patches": {"test": 6}}
    config |= {"label_names": ["focus"], "label_unit": "waves"}
    (folder / "config.json").write_text(json.dumps(config))
    write(folder / "test_00000.h5", columns, config)
    return folder / "test_00000.h5"


def read_shard(path: Path) -> None:
    patches = PatchSet(path.parent, "test")
    for batch in patches.recorded(CONDITIONS[0], 4, torch.device("cpu")):
        assert len(batch.patches) == len(batch.labels)


KINDS = {
    "tiff": (write_tiff, read_image),
    "packed tiff": (write_packed_tiff, read_image),
    "ome-tiff": (write_ome_tiff, read_image),
    "imagej tiff": (write_imagej_tiff, read_image),
    "png": (write_png, read_image),
    "jpeg": (write_jpeg, read_image),
    "source tiff": (write_packed_tiff, read_source),
    "source png": (write_png, read_source),
    "map json": (write_map, read_a_map),
    "map table": (write_map_table, read_a_map),
    "network json": (write_network_config, read_network),
    "safetensors": (write_network, read_network),
    "hdf5": (write_shard, read_shard),
}


# --- damage


def damaged(data: bytes, number: int, rng: np.random.Generator) -> bytes:
    """One of the ways in which files break; `number` chooses it, so that each comes up."""
    ways = (cut_off, flipped, flipped_head, flipped_tail, random_start, with_huge_fields)
    special = {0: b"", 1: rng.bytes(300), 2: data[:8] + rng.bytes(len(data)), 3: bytes(len(data))}
    assert set(special) == set(NOTHING_LEFT)
    return special[number] if number in special else ways[number % len(ways)](data, rng)


def cut_off(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: int(rng.integers(1, len(data)))]


def flipped(data: bytes, rng: np.random.Generator, start: int = 0, stop: int = 0) -> bytes:
    """Some bytes of a part of the file replaced by random ones."""
    changed = bytearray(data)
    places = rng.integers(start, min(stop or len(data), len(data)), rng.integers(1, 9))
    for place in places:
        changed[place] = int(rng.integers(256))
    return bytes(changed)


def flipped_head(data: bytes, rng: np.random.Generator) -> bytes:
    return flipped(data, rng, 0, 400)


def flipped_tail(data: bytes, rng: np.random.Generator) -> bytes:
    return flipped(data, rng, max(0, len(data) - 400))


def random_start(data: bytes, rng: np.random.Generator) -> bytes:
    """Random bytes in place of some part of the file."""
    start, length = int(rng.integers(len(data))), int(rng.integers(1, 200))
    return data[:start] + rng.bytes(length) + data[start + length :]


def with_huge_fields(data: bytes, rng: np.random.Generator) -> bytes:
    """A header that promises far more than the file holds."""
    if data[:4] in (b"II*\0", b"MM\0*"):
        return huge_tiff(data, rng)
    if data[:4] == b"\x89PNG":
        width, height = rng.choice([90, 60_000, HUGE, 2**31 - 1], 2)
        header = data[12:16] + struct.pack(">II", int(width), int(height)) + data[24:29]
        return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
    if data[:3] == b"\xff\xd8\xff":
        place = data.index(b"\xff\xc0") + 5  # start of frame: height and width
        sides = struct.pack(">HH", *(int(n) for n in rng.choice([80, 9_000, 65_535], 2)))
        return data[:place] + sides + data[place + 4 :]
    if data[:4] == b"\x89HDF":
        place = int(rng.integers(8, len(data) - 8))
        return data[:place] + struct.pack("<Q", 2 ** int(rng.integers(20, 63))) + data[place + 8 :]
    if data[8:9] == b"{":  # safetensors: the length of the header, or a shape in it
        if rng.integers(2):
            return struct.pack("<Q", 2 ** int(rng.integers(20, 63))) + data[8:]
        return data.replace(b'"shape":[', b'"shape":[1000000000,', 1)
    return huge_text(data, rng)


def huge_tiff(data: bytes, rng: np.random.Generator) -> bytes:
    """Sides, strips or samples of the first page made huge."""
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        tags = {tag.code: tag for tag in tiff.pages[0].tags}
    codes = [code for code in (256, 257, 277, 278, 279, 322, 323, 325) if code in tags]
    changed = bytearray(data)
    for code in rng.choice(codes, rng.integers(1, 4)):
        place = tags[code].offset + 8
        value = int(rng.choice([HUGE, 2**31 - 1, 60_000]))
        struct.pack_into("<HI", changed, tags[code].offset + 2, 4, 1)  # one unsigned integer
        struct.pack_into("<I", changed, place, value)
    return bytes(changed)


def huge_text(data: bytes, rng: np.random.Generator) -> bytes:
    """A number, a bracket or a word of a text replaced by another."""
    text = data.decode()
    old = str(rng.choice([one for one in ("1", "2", "8", "0.", "[", "null", '"') if one in text]))
    new = str(rng.choice(["1000000000", "-1", "NaN", "[]", "{}", '"x"', "null", "1e400", "0"]))
    start = int(rng.integers(len(text)))
    place = text.find(old, start) if old in text[start:] else text.index(old)
    return (text[:place] + new + text[place + len(old) :]).encode()


def try_damaged(kind: str, folder: Path, numbers: range) -> list[str]:
    """Damage a file of a kind in ways of these numbers; one line for each that reads badly."""
    write, read = KINDS[kind]
    folder.mkdir()
    path = write(folder)
    whole, bad = path.read_bytes(), []
    read(path)  # as it is
    for number in numbers:
        rng = np.random.default_rng([number, sum(kind.encode())])
        path.write_bytes(damaged(whole, number, rng))
        try:
            with deadline():
                read(path)
            if number in NOTHING_LEFT:
                bad.append(f"{kind} {number}: read although nothing is left of it")
        except InputError as error:
            if folder.name not in str(error) and "image" not in str(error):
                bad.append(f"{kind} {number}: no file named in: {error}")
        except Exception as error:
            bad.append(f"{kind} {number}: {type(error).__name__}: {error}"[:300])
    return bad


class deadline:
    """Raise TimeoutError after a minute."""

    def __enter__(self) -> None:
        signal.signal(signal.SIGALRM, self._stop)
        signal.alarm(MOST_SECONDS)

    def __exit__(self, *exception: object) -> None:
        signal.alarm(0)

    @staticmethod
    def _stop(*_: object) -> None:
        raise TimeoutError(f"not done after {MOST_SECONDS} s")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_a_few_damaged_files(tmp_path, kind):
    assert try_damaged(kind, tmp_path / "damaged", range(6)) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_damaged_files(kind):
    command = [sys.executable, "-m", "tests.test_broken_files", kind, "200"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def limit_memory() -> None:
    """Allow 2 GB more than the process has mapped with its libraries loaded."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MOST_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    kind, count = sys.argv[1], int(sys.argv[2])
    import warnings

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        try_damaged(kind, Path(place) / "warm-up", range(0))  # imports, threads
        if sys.platform == "linux":
            limit_memory()
        bad = try_damaged(kind, Path(place) / "damaged", range(count))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print("\n".join(bad), f"\n{kind}: {len(bad)} of {count} read badly; {peak:.2f} GB at most")
    sys.exit(bool(bad))
