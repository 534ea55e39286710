"""OME-Zarr, ND2, CZI and LIF: right counts and facts, or a line on what is missing.

Where an optional package can write its format, the files are real. The LIF is put together by hand.
No package writes ND2, so its reader is replaced by one that answers as the package does.
"""

import json
import struct
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from micrographs.micrograph import open_micrograph
from psf import InputError

HEIGHT, WIDTH = 60, 70


@pytest.fixture
def counts():
    """A stack (T, C, Z, Y, X) in which all pixels differ, uint16."""
    return np.random.default_rng(0).integers(0, 4096, (2, 2, 3, HEIGHT, WIDTH), np.uint16)


def same(image, expected):
    return np.array_equal(image.plane().numpy(), expected)


# --- missing packages


@pytest.mark.parametrize(
    ("name", "start", "package"),
    [
        ("image.nd2", b"\xda\xce\xbe\x0a", "nd2"),
        ("image.czi", b"ZISRAWFILE", "pylibCZIrw"),
        ("image.lif", b"\x70\x00\x00\x00", "liffile"),
    ],
)
def test_missing_package_is_named(tmp_path, monkeypatch, name, start, package):
    (tmp_path / name).write_bytes(start + bytes(200))
    hide(monkeypatch, package)
    with pytest.raises(InputError, match=rf"{name} needs the package {package}: pip install -r"):
        open_micrograph(tmp_path / name)


def test_missing_zarr_is_named(tmp_path, monkeypatch):
    folder = tmp_path / "image.zarr"
    folder.mkdir()
    (folder / "zarr.json").write_text("{}")
    hide(monkeypatch, "zarr")
    with pytest.raises(InputError, match=r"image\.zarr needs the package zarr: pip install -r"):
        open_micrograph(folder)


def hide(monkeypatch, package):
    for name in [package, *[n for n in sys.modules if n.startswith(f"{package}.")]]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, f"{package}.czi", None)


def test_folder_that_is_no_zarr(tmp_path):
    with pytest.raises(InputError, match="is a folder and no OME-Zarr image"):
        open_micrograph(tmp_path)


# --- OME-Zarr


def write_zarr(folder, pixels, axes, scale, version="0.5", unit="micrometer", global_scale=None):
    """An OME-Zarr of two levels; `scale` is that of the full one."""
    zarr = pytest.importorskip("zarr", reason="zarr is not installed")
    group = zarr.open_group(str(folder), mode="w", zarr_format=3 if version == "0.5" else 2)
    chunks = (1,) * (pixels.ndim - 2) + (16, 32)
    for name, step in (("0", 1), ("1", 2)):
        level = pixels[..., ::step, ::step]
        array = group.create_array(name, shape=level.shape, chunks=chunks, dtype=level.dtype)
        array[...] = level
    kinds = {"t": ("time", "second"), "c": ("channel", None)}
    described = []
    for axis in axes:
        kind, its_unit = kinds.get(axis, ("space", unit))
        described.append({"name": axis, "type": kind} | ({"unit": its_unit} if its_unit else {}))
    datasets = []
    for name, step in (("0", 1), ("1", 2)):
        larger = [s * (step if a in "yx" else 1) for s, a in zip(scale, axes, strict=True)]
        transforms = [{"type": "scale", "scale": larger}]
        datasets.append({"path": name, "coordinateTransformations": transforms})
    multiscale = {"axes": described, "datasets": datasets}
    if global_scale:
        multiscale["coordinateTransformations"] = [{"type": "scale", "scale": global_scale}]
    held = {"multiscales": [multiscale], "omero": {"channels": [{"label": "A"}, {"label": "B"}]}}
    if version == "0.5":
        group.attrs["ome"] = {"version": version, **held}
    else:
        group.attrs.update(held)
    return group


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_zarr_planes_and_calibration(tmp_path, counts, version):
    folder = tmp_path / "a.ome.zarr"
    write_zarr(folder, counts, "tczyx", (2.0, 1, 400, 125, 125), version, "nanometer")
    with open_micrograph(folder) as image:
        assert image.shape == (HEIGHT, WIDTH)
        assert image.sizes == {"C": 2, "Z": 3, "T": 2}
        assert image.notes[0] == "2 channels; channel 0 (A) is used; choose with --channel"
        assert image.facts.pixel_size_um == pytest.approx(0.125)
        assert image.facts.sources["pixel_size_um"] == "OME-Zarr scale of x"
        assert image.calibration.z_step_um == pytest.approx(0.4)
        assert image.calibration.frame_interval_s == 2.0
        assert image.calibration.channel_names == ("A", "B")
        assert image.full_scale == 65535
        for t, c, z in np.ndindex(2, 2, 3):
            assert same(image.select(channel=c, z=z, t=t), counts[t, c, z])
        assert np.array_equal(image.rows(17, 50).numpy(), counts[0, 0, 1, 17:50])


def test_zarr_axes_in_another_order(tmp_path, counts):
    pixels = np.moveaxis(counts[0, 0], (0, 1, 2), (1, 2, 0))  # (X, Z, Y)
    write_zarr(tmp_path / "a.zarr", pixels, "xzy", (0.2, 1.5, 0.2))
    with open_micrograph(tmp_path / "a.zarr", z=2) as image:
        assert same(image, counts[0, 0, 2])
        assert image.facts.z_step_um == 1.5


def test_zarr_scales_multiply_and_a_scale_of_one_without_unit_is_none(tmp_path, counts):
    plane = counts[0, 0, 0]
    write_zarr(tmp_path / "a.zarr", plane, "yx", (0.5, 0.5), global_scale=[0.2, 0.2])
    with open_micrograph(tmp_path / "a.zarr") as image:
        assert image.facts.pixel_size_um == pytest.approx(0.1)
        assert image.notes == ()
    write_zarr(tmp_path / "b.zarr", plane, "yx", (1, 1), unit=None)
    with open_micrograph(tmp_path / "b.zarr") as image:
        assert image.facts.pixel_size_um is None


def test_zarr_reads_only_the_chunks_of_the_rows(tmp_path, counts, monkeypatch):
    write_zarr(tmp_path / "a.zarr", counts[0], "czyx", (1, 1, 1, 1))
    with open_micrograph(tmp_path / "a.zarr", channel=0, z=0) as image:
        read, asked = image.source._array.__class__.__getitem__, []
        monkeypatch.setattr(
            image.source._array.__class__,
            "__getitem__",
            lambda self, place: asked.append(place) or read(self, place),
        )
        for start in (18, 20, 25):
            expected = counts[0, 0, 0, start : start + 5]
            assert np.array_equal(image.rows(start, start + 5).numpy(), expected)
    assert asked == [(0, 0, slice(16, 32), slice(None))]


def test_zarr_of_several_images_and_of_none(tmp_path, counts):
    zarr = pytest.importorskip("zarr", reason="zarr is not installed")
    root = zarr.open_group(str(tmp_path / "a.zarr"), mode="w")
    root.attrs["ome"] = {"bioformats2raw.layout": 3}
    for name, pixels in (("0", counts[0, 0, 0, :20]), ("1", counts[0, 0, 0])):
        write_zarr(tmp_path / "a.zarr" / name, pixels, "yx", (1, 1))
    with open_micrograph(tmp_path / "a.zarr") as image:
        assert image.series == 1
        assert "choose with --series" in image.notes[0]
        assert same(image, counts[0, 0, 0])
    zarr.open_group(str(tmp_path / "plate.zarr"), mode="w").attrs["plate"] = {}
    with pytest.raises(InputError, match=r"plate\.zarr holds no multiscale image; give the folder"):
        open_micrograph(tmp_path / "plate.zarr")


@pytest.mark.parametrize("axes", ["yz", "qyx", "yxx"])
def test_zarr_axes_that_are_not_known(tmp_path, counts, axes):
    pixels = counts[0, 0, 0] if len(axes) == 2 else counts[0, 0]
    write_zarr(tmp_path / "a.zarr", pixels, axes, [1] * len(axes))
    with pytest.raises(InputError, match=rf"has the axes {axes.upper()}; only T, C, Z, Y and X"):
        open_micrograph(tmp_path / "a.zarr")


def test_damaged_zarr_is_named(tmp_path, counts):
    folder = tmp_path / "a.zarr"
    write_zarr(folder, counts[0, 0, 0], "yx", (1, 1))
    (folder / "0" / "c" / "0" / "0").write_bytes(b"nonsense")
    with open_micrograph(folder) as image, pytest.raises(InputError, match=r"a\.zarr is damaged"):
        image.plane()
    (folder / "0" / "zarr.json").write_text("{")
    with pytest.raises(InputError, match=r"a\.zarr is damaged"):
        open_micrograph(folder)


def test_zarr_that_claims_too_many_pixels(tmp_path, counts):
    folder = tmp_path / "a.zarr"
    write_zarr(folder, counts[0, 0, 0], "yx", (1, 1))
    described = json.loads((folder / "0" / "zarr.json").read_text())
    described["shape"] = [10**9, 10**9]
    (folder / "0" / "zarr.json").write_text(json.dumps(described))
    with pytest.raises(InputError, match=r"a\.zarr is damaged: it claims 1000000000 x 1000000000"):
        open_micrograph(folder)


# --- CZI


def test_czi_planes_scenes_and_facts(tmp_path, counts):
    czi = pytest.importorskip("pylibCZIrw.czi", reason="pylibCZIrw is not installed")
    path = tmp_path / "a.czi"
    with czi.create_czi(str(path)) as writer:
        for c, z in np.ndindex(2, 3):
            plane = {"C": c, "Z": z, "T": 0}
            small = np.ascontiguousarray(counts[1, c, z, :20, :30, None])
            writer.write(small, location=(-500, 7), plane=plane, scene=0)
            writer.write(counts[0, c, z, :, :, None], location=(100, -3), plane=plane, scene=1)
        writer.write_metadata(
            "a", channel_names={0: "A", 1: "B"}, scale_x=1e-7, scale_y=1e-7, scale_z=3e-7
        )
    with open_micrograph(path) as image:
        assert image.series == 1
        assert "0 of 30 x 20 px; choose with --series" in image.notes[2]
        assert image.sizes == {"C": 2, "Z": 3, "T": 1}
        for c, z in np.ndindex(2, 3):
            assert same(image.select(channel=c, z=z), counts[0, c, z])
        assert np.array_equal(image.rows(7, 31).numpy(), counts[0, 0, 1, 7:31])
        assert image.facts.pixel_size_um == pytest.approx(0.1)
        assert image.calibration.z_step_um == pytest.approx(0.3)
        assert image.calibration.channel_names == ("A", "B")
    with open_micrograph(path, series=0, z=2, channel=1) as image:
        assert same(image, counts[1, 1, 2, :20, :30])
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InputError, match=r"a\.czi is damaged"):
        open_micrograph(path)


def test_czi_colours(tmp_path, counts):
    """The format stores blue first."""
    czi = pytest.importorskip("pylibCZIrw.czi", reason="pylibCZIrw is not installed")
    blue_first = np.ascontiguousarray(np.moveaxis(counts[0, 0], 0, -1) % 256).astype(np.uint8)
    with czi.create_czi(str(tmp_path / "a.czi")) as writer:
        writer.write(blue_first, plane={"C": 0, "Z": 0, "T": 0})
        writer.write_metadata("a")
    with open_micrograph(tmp_path / "a.czi", channel=0) as image:
        assert same(image, blue_first[..., 2])
    with open_micrograph(tmp_path / "a.czi") as image:
        expected = blue_first @ np.array([0.0722, 0.7152, 0.2126])
        assert np.allclose(image.plane().numpy(), expected, atol=1e-3)


# --- LIF


def write_lif(path, images):
    """A LIF of version 2: XML in UTF-16, then a block of memory for each image (Z, Y, X)."""
    elements, blocks = [], []
    for number, (name, stack) in enumerate(images):
        depth, height, width = stack.shape
        strides = (2, 2 * width, 2 * width * height)
        lengths = (1e-7 * (width - 1), 1e-7 * (height - 1), 4e-7 * (depth - 1))
        dimensions = "".join(
            f'<DimensionDescription DimID="{axis}" NumberOfElements="{size}" Origin="0" '
            f'Length="{length}" Unit="m" BitInc="0" BytesInc="{stride}"/>'
            for axis, size, length, stride in zip(
                (1, 2, 3), (width, height, depth), lengths, strides, strict=True
            )
        )
        block = f"MemBlock_{number}"
        elements.append(
            f'<Element Name="{name}" UniqueID="{number}"><Data><Image><ImageDescription><Channels>'
            '<ChannelDescription DataType="0" ChannelTag="0" Resolution="12" NameOfMeasuredQuantity'
            '="" Min="0" Max="1" Unit="" LUTName="Gray" IsLUTInverted="0" BytesInc="0" BitInc="0"/>'
            f"</Channels><Dimensions>{dimensions}</Dimensions></ImageDescription>"
            '<Attachment Name="HardwareSetting"><ATLConfocalSettingDefinition '
            'NumericalAperture="1.2" RefractionIndex="1.33"/></Attachment></Image></Data>'
            f'<Memory Size="{stack.nbytes}" MemoryBlockID="{block}"/></Element>'
        )
        coded = block.encode("utf-16-le")
        head = struct.pack("<IIBQBI", 0x70, 0, 0x2A, stack.nbytes, 0x2A, len(block))
        blocks.append(head + coded + stack.tobytes())
    xml = (
        '<LMSDataContainerHeader Version="2"><Element Name="project"><Children>'
        f"{''.join(elements)}</Children></Element></LMSDataContainerHeader>"
    )
    head = struct.pack("<IIBI", 0x70, 2 * len(xml) + 5, 0x2A, len(xml))
    path.write_bytes(head + xml.encode("utf-16-le") + b"".join(blocks))


def test_lif_planes_images_and_facts(tmp_path, counts):
    pytest.importorskip("liffile", reason="liffile is not installed")
    path = tmp_path / "a.lif"
    small = np.ascontiguousarray(counts[1, 0, :, :20, :30])
    write_lif(path, [("overview", small), ("cells", counts[0, 0])])
    with open_micrograph(path) as image:
        assert image.series == 1
        assert image.sizes == {"C": 1, "Z": 3, "T": 1}
        for z in range(3):
            assert same(image.select(z=z), counts[0, 0, z])
        facts = image.facts
        assert facts.pixel_size_um == pytest.approx(0.1)
        assert facts.z_step_um == pytest.approx(0.4)
        assert (facts.na, facts.refractive_index) == (1.2, 1.33)
        assert image.full_scale == 4095
    with open_micrograph(path, series=0, z=1) as image:
        assert same(image, small[1])
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"a\.lif is damaged"):
        with open_micrograph(path, z=2) as image:
            image.plane()


# --- ND2


def fake_nd2(counts):
    """A module with an ND2File of 2 positions, 3 planes and 2 channels, as the package has it."""
    volume = SimpleNamespace(axesCalibrated=(True, True, True))
    objective = SimpleNamespace(objectiveNumericalAperture=1.4, immersionRefractiveIndex=1.515)
    channels = [
        SimpleNamespace(
            channel=SimpleNamespace(name=name, emissionLambdaNm=emission),
            microscope=objective,
            volume=volume,
        )
        for name, emission in (("DAPI", 461.0), ("GFP", 520.0))
    ]

    class ND2File:
        dtype = np.dtype("uint16")
        attributes = SimpleNamespace(bitsPerComponentSignificant=12)
        loop_indices = tuple({"P": p, "Z": z} for p in range(2) for z in range(3))
        metadata = SimpleNamespace(channels=channels)
        experiment = (
            SimpleNamespace(type="TimeLoop", parameters=SimpleNamespace(periodMs=500.0)),
            SimpleNamespace(type="ZStackLoop", parameters=SimpleNamespace(stepUm=0.3)),
        )

        def __init__(self, path):
            self.sizes = {"P": 2, "Z": 3, "C": 2, "Y": HEIGHT, "X": WIDTH}
            if b"damaged" in path.read_bytes():
                raise TypeError("a chunk is missing")

        def voxel_size(self):
            return (0.065, 0.065, 0.3)

        def read_frame(self, number):
            return counts[number // 3, :, number % 3]

        def close(self):
            pass

    module = ModuleType("nd2")
    module.ND2File = ND2File
    return module


def test_nd2_positions_planes_and_facts(tmp_path, counts, monkeypatch):
    monkeypatch.setitem(sys.modules, "nd2", fake_nd2(counts))
    path = tmp_path / "a.nd2"
    path.write_bytes(b"\xda\xce\xbe\x0a" + bytes(1000))
    with open_micrograph(path, series=1, channel=1) as image:
        assert image.sizes == {"C": 2, "Z": 3, "T": 1}
        for c, z in np.ndindex(2, 3):
            assert same(image.select(channel=c, z=z), counts[1, c, z])
        assert image.facts.pixel_size_um == 0.065
        assert (image.facts.na, image.facts.refractive_index) == (1.4, 1.515)
        assert image.facts.wavelength_um == pytest.approx(0.52)
        assert image.calibration.channel_names == ("DAPI", "GFP")
        assert image.calibration.z_step_um == 0.3
        assert image.calibration.frame_interval_s == 0.5
        assert image.full_scale == 4095
    with open_micrograph(path, z=0, channel=0) as image:
        assert same(image, counts[0, 0, 0])
        assert image.notes[0].startswith("2 images in the file; the largest, 0 of 70 x 60 px")
    path.write_bytes(b"\xda\xce\xbe\x0a damaged")
    with pytest.raises(InputError, match=r"a\.nd2 is damaged .*a chunk is missing"):
        open_micrograph(path)


def test_metadata_that_cannot_be_read_leave_the_pixels(tmp_path, counts, monkeypatch):
    module = fake_nd2(counts)
    monkeypatch.setattr(module.ND2File, "voxel_size", lambda self: json.loads("{"))
    monkeypatch.setitem(sys.modules, "nd2", module)
    (tmp_path / "a.nd2").write_bytes(b"\xda\xce\xbe\x0a" + bytes(1000))
    with open_micrograph(tmp_path / "a.nd2", series=0, channel=0, z=2) as image:
        assert same(image, counts[0, 0, 2])
        assert image.facts.sources == {}
