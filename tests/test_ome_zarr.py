"""OME-Zarr at addresses, and maps written as OME-Zarr."""

import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from skimage import data as skimage_data

import estimate_psf_map
from common.addresses import address_of, as_typed
from common.ome_zarr import write_ome_zarr
from micrographs.micrograph import open_micrograph
from psf import InputError

OPTICS = {"na": 0.45, "wavelength_um": 0.5, "pixel_size_um": 0.278, "refractive_index": 1.33}
FAST = {"checkpoint": Path("zernike1d"), "device": "cpu", "stride": 64}


@pytest.mark.parametrize(
    ("typed", "address"),
    [
        ("s3://bucket/a/image.zarr", "s3://bucket/a/image.zarr"),
        ("https://host:80/image.zarr", "https://host:80/image.zarr"),
        ("simplecache::s3://bucket/image.zarr", "simplecache::s3://bucket/image.zarr"),
        ("file:///data/image.zarr", "file:///data/image.zarr"),
        ("memory://image.zarr", "memory://image.zarr"),
        ("C:/data/image.tif", None),
        ("/data/image.tif", None),
        ("a:b.tif", None),
        ("image.tif", None),
    ],
)
def test_a_path_keeps_an_address(typed, address):
    assert address_of(Path(typed)) == address
    assert as_typed(Path(typed)) == typed


def image() -> np.ndarray:
    return skimage_data.gravel()[:200, :260].astype(np.uint16) * 10


def write(zarr, store) -> None:
    group = zarr.open_group(store, mode="w", zarr_format=2)
    level = group.create_array("0", shape=(200, 260), chunks=(64, 64), dtype="uint16")
    level[:] = image()
    axes = [{"name": a, "type": "space", "unit": "micrometer"} for a in "yx"]
    place = [{"type": "scale", "scale": [0.278, 0.278]}]
    datasets = [{"path": "0", "coordinateTransformations": place}]
    group.attrs.put({"multiscales": [{"version": "0.4", "axes": axes, "datasets": datasets}]})


def run(path: Path, out: Path, **more) -> None:
    given = {**OPTICS, **FAST, **more}
    estimate_psf_map.main(estimate_psf_map.Config(image=path, out=out, **given))


def test_an_address_gives_the_same_map_as_a_folder(tmp_path, capsys):
    zarr = pytest.importorskip("zarr")
    pytest.importorskip("fsspec")
    write(zarr, str(tmp_path / "local.zarr"))
    write(zarr, "memory://remote.zarr")
    run(tmp_path / "local.zarr", tmp_path / "local")
    run(Path("memory://remote.zarr"), tmp_path / "remote")
    assert "memory://remote.zarr --map" in capsys.readouterr().out  # the next command
    one, other = ((tmp_path / f / "map.csv").read_bytes() for f in ("local", "remote"))
    assert one == other
    assert '"image": "memory://remote.zarr"' in (tmp_path / "remote" / "config.json").read_text()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("memory://nothing.zarr", "memory://nothing.zarr cannot be opened"),
        ("nosuch://image.zarr", "nosuch://image.zarr cannot be opened: Protocol not known"),
        ("file:///nowhere/image.zarr", "file:///nowhere/image.zarr cannot be opened"),
    ],
)
def test_an_address_without_an_image_is_named(address, message):
    pytest.importorskip("zarr")
    pytest.importorskip("fsspec")
    with pytest.raises(InputError, match=message):
        open_micrograph(Path(address))


def test_an_address_without_zarr_gives_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "zarr", None)
    line = r"s3://b/image\.zarr needs the package zarr: pip install -r requirements-formats\.txt"
    with pytest.raises(InputError, match=line):
        open_micrograph(Path("s3://b/image.zarr"))
    with pytest.raises(InputError, match="--maps-as zarr needs the package zarr: pip install"):
        run(Path("image.tif"), Path("none"), maps_as="zarr")


def test_chunks_are_read_once_in_a_pass(tmp_path, monkeypatch):
    zarr = pytest.importorskip("zarr")
    write(zarr, str(tmp_path / "image.zarr"))
    source = open_micrograph(tmp_path / "image.zarr").source
    rows = []
    monkeypatch.setattr(source, "_read", lambda index, a, b: rows.append((a, b)) or image()[a:b])
    bands = [source.rows((0, 0, 0), start, start + 20) for start in range(0, 200, 20)]
    assert rows == [(0, 64), (64, 128), (128, 192), (192, 200)]
    np.testing.assert_array_equal(np.concatenate(bands), image())


def test_maps_as_zarr_hold_what_the_tiffs_hold(tmp_path):
    zarr = pytest.importorskip("zarr")
    tifffile.imwrite(tmp_path / "image.tif", image())
    run(tmp_path / "image.tif", tmp_path / "map")
    tiffs = {
        n: tifffile.imread(tmp_path / "map" / f"{n}.tif")
        for n in ("psf_map", "psf_map_full", "depth")
    }
    for _ in range(2):  # the second run replaces folders
        run(tmp_path / "image.tif", tmp_path / "map", maps_as="zarr")
    assert not list((tmp_path / "map").glob("*.tif"))
    for name, pixels in tiffs.items():
        group = zarr.open_group(str(tmp_path / "map" / f"{name}.zarr"), mode="r")
        np.testing.assert_array_equal(group["0"][:], pixels)
    with open_micrograph(tmp_path / "map" / "psf_map_full.zarr", channel=1) as found:
        np.testing.assert_array_equal(found.plane().numpy(), tiffs["psf_map_full"][1])
        assert found.facts.pixel_size_um == pytest.approx(0.278)
        assert found.source.names[0] == "focus (waves)"
    place = group_place(zarr, tmp_path / "map" / "psf_map.zarr")
    assert place["scale"] == pytest.approx([1, 64 * 0.278, 64 * 0.278])
    assert place["translation"] == pytest.approx([0, 63.5 * 0.278, 63.5 * 0.278])
    run(tmp_path / "image.tif", tmp_path / "map")  # and files replace folders
    assert not list((tmp_path / "map").glob("*.zarr"))


def group_place(zarr, path: Path, level: int = 0) -> dict[str, list[float]]:
    described = zarr.open_group(str(path), mode="r").attrs["multiscales"][0]["datasets"][level]
    return {one["type"]: one[one["type"]] for one in described["coordinateTransformations"]}


def test_the_pyramid_lies_over_its_image(tmp_path):
    """A ramp along x is the x of each pixel, in every image of the pyramid."""
    zarr = pytest.importorskip("zarr")
    shape, pixel_um = (1, 700, 2051), 0.5

    def rows(start: int, stop: int) -> np.ndarray:
        x = np.arange(shape[2], dtype=np.float32) * pixel_um
        return np.broadcast_to(x, (1, stop - start, shape[2]))

    write_ome_zarr(tmp_path / "ramp.zarr", shape, rows, ["x"], pixel_um)
    group = zarr.open_group(str(tmp_path / "ramp.zarr"), mode="r")
    assert [group[n].shape for n in "012"] == [shape, (1, 350, 1025), (1, 175, 512)]
    for level in range(3):
        place = group_place(zarr, tmp_path / "ramp.zarr", level)
        x = np.arange(group[str(level)].shape[2]) * place["scale"][2] + place["translation"][2]
        np.testing.assert_allclose(group[str(level)][0, -1], x, rtol=1e-6)


def test_a_series_is_not_written_as_zarr(tmp_path):
    with pytest.raises(InputError, match="leave out --all-planes"):
        run(Path("image.tif"), tmp_path / "map", maps_as="zarr", all_planes=True)
