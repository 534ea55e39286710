"""Files of several images, and the optics that microscope programs keep in private tags."""

import json
import struct

import numpy as np
import pytest
import tifffile
from PIL import Image

from micrographs.micrograph import open_micrograph
from psf import InputError

HEIGHT, WIDTH = 60, 70


@pytest.fixture
def plane():
    return np.random.default_rng(0).integers(0, 4096, (HEIGHT, WIDTH), np.uint16)


# --- several images


def write_images(path, *images, **options):
    """Images with the name and pixel size (um) of each, as OME-TIFF."""
    with tifffile.TiffWriter(path, ome=True) as writer:
        for name, pixels, size in images:
            metadata = {"Name": name, "PhysicalSizeX": size, "PhysicalSizeY": size}
            writer.write(pixels, photometric="minisblack", metadata=metadata, **options)


def test_largest_image_is_read_with_its_own_facts(tmp_path, plane):
    path = tmp_path / "a.ome.tif"
    write_images(path, ("small", plane[:20, :30], 2.0), ("cells", plane, 0.1), ("other", plane, 3))
    with open_micrograph(path) as image:
        assert np.array_equal(image.plane().numpy(), plane)
        assert (image.series, image.facts.pixel_size_um) == (1, 0.1)
        assert image.notes == (
            "3 images in the file; the largest, 1 (cells) of 70 x 60 px, is used; the others are "
            "0 (small) of 30 x 20 px, 2 (other) of 70 x 60 px; choose with --series",
        )
    with open_micrograph(path, series=0) as image:
        assert np.array_equal(image.plane().numpy(), plane[:20, :30])
        assert (image.series, image.notes, image.facts.pixel_size_um) == (0, (), 2.0)
    for number in (-1, 3):
        with pytest.raises(InputError, match=rf"--series {number} is not in .*; it has 0 to 2\."):
            open_micrograph(path, series=number)


def test_images_of_equal_names_and_sizes_keep_their_own_facts(tmp_path, plane):
    path = tmp_path / "a.ome.tif"
    write_images(path, ("a", plane, 0.1), ("a", plane + 1, 0.2))
    for number in (0, 1):
        with open_micrograph(path, series=number) as image:
            assert image.facts.pixel_size_um == 0.1 * (number + 1)
            assert np.array_equal(image.plane().numpy(), plane + number)


def test_pages_of_a_plain_tiff_with_different_sizes(tmp_path, plane):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        for pixels in (plane[:9, :9], plane, plane[:30, :30]):
            writer.write(pixels, photometric="minisblack", metadata=None)
    with open_micrograph(path) as image:
        assert np.array_equal(image.plane().numpy(), plane)
    with open_micrograph(path, series=2) as image:
        assert np.array_equal(image.plane().numpy(), plane[:30, :30])


def test_label_of_a_slide_is_not_the_largest_image(tmp_path, plane):
    path = tmp_path / "a.ome.tif"
    write_images(path, ("label image", np.tile(plane, (2, 2)), 1), ("scan", plane, 0.25))
    with open_micrograph(path) as image:
        assert image.series == 1
        assert np.array_equal(image.plane().numpy(), plane)


def test_pyramid_is_read_at_its_full_size(tmp_path, plane):
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(plane[:16, :16], photometric="minisblack", metadata={"Name": "thumbnail"})
        writer.write(plane, photometric="minisblack", subifds=2, tile=(32, 32))
        for step in (2, 4):
            reduced = plane[::step, ::step]
            writer.write(reduced, photometric="minisblack", subfiletype=1, tile=(32, 32))
    with open_micrograph(path) as image:
        assert image.series == 1
        assert np.array_equal(image.plane().numpy(), plane)
        assert image.notes[0].startswith("2 images in the file")


def test_flat_files_have_one_image(tmp_path, plane):
    path = tmp_path / "a.png"
    Image.fromarray(plane).save(path)
    with open_micrograph(path, series=0) as image:
        assert np.array_equal(image.plane().numpy(), plane)
    with pytest.raises(InputError, match=r"--series 1 is not in .*a\.png; it has 0 only\."):
        open_micrograph(path, series=1)


# --- vendors


def facts_of(path):
    with open_micrograph(path, z=0) as image:
        return image.facts, image.calibration


def metamorph(**properties) -> str:
    """MetaMorph's XML; `properties` are pairs of type and value."""
    props = "".join(
        f'<prop id="{name.replace("__", "-")}" type="{kind}" value="{value}"/>'
        for name, (kind, value) in properties.items()
    )
    return f"<MetaData><PlaneInfo>{props}</PlaneInfo></MetaData>"


METAMORPH = {
    "spatial__calibration__state": ("bool", "on"),
    "spatial__calibration__x": ("float", 278),
    "spatial__calibration__y": ("float", 278),
    "spatial__calibration__units": ("string", "nm"),
    "_MagNA_": ("float", 0.45),
    "_MagRI_": ("float", 1.33),
    "wavelength": ("float", 525),
}


def test_metamorph_xml(tmp_path, plane):
    path = tmp_path / "a.tif"
    options = {"software": "MetaSeries", "metadata": None}
    tifffile.imwrite(path, plane, description=metamorph(**METAMORPH), **options)
    facts, _ = facts_of(path)
    assert facts.pixel_size_um == pytest.approx(0.278)
    assert (facts.na, facts.refractive_index, facts.wavelength_um) == (0.45, 1.33, 0.525)
    assert facts.sources["pixel_size_um"] == "MetaMorph spatial-calibration-x"
    off = METAMORPH | {"spatial__calibration__state": ("bool", "off")}
    tifffile.imwrite(path, plane, description=metamorph(**off), **options)
    facts, _ = facts_of(path)
    assert (facts.pixel_size_um, facts.na) == (None, 0.45)


@pytest.mark.parametrize("value", ["nan", 0, -1, 1e9, "inf", "many"])
def test_absurd_values_are_no_facts(tmp_path, plane, value):
    absurd = {name: ("float", value) for name in ("_MagNA_", "_MagRI_", "wavelength")}
    absurd["spatial__calibration__x"] = ("float", value)
    path = tmp_path / "a.tif"
    description = metamorph(**(METAMORPH | absurd))
    tifffile.imwrite(path, plane, description=description, software="MetaSeries", metadata=None)
    facts, _ = facts_of(path)
    assert (facts.pixel_size_um, facts.na, facts.refractive_index) == (None, None, None)
    assert facts.wavelength_um is None


def test_metamorph_stack(tmp_path, plane):
    path = tmp_path / "a.stk"
    write_stk(path, plane, planes=3)
    with open_micrograph(path, z=2) as image:
        assert image.sizes["Z"] == 3
        assert np.array_equal(image.plane().numpy(), plane + 2)
        facts = image.facts
    assert (facts.pixel_size_um, facts.wavelength_um) == (pytest.approx(0.16), 0.61)
    assert facts.z_step_um == pytest.approx(0.4)
    assert facts.sources["z_step_um"] == "MetaMorph STK ZDistance"


def write_stk(path, plane, planes: int) -> None:
    """One page, all planes behind each other, and the tags of the Universal Imaging Corporation."""
    stack = np.stack([plane + i for i in range(planes)])
    fractions = np.array([[2, 5, 0, 0, 0, 0]] * planes, "<u4")
    fractions[0, 0] = 0  # no distance before the first plane
    wavelengths = np.array([[610, 1]] * planes, "<u4")
    uic4 = struct.pack("<HII", 4, 16, 100) + struct.pack("<HII", 5, 16, 100)
    uic4 += struct.pack("<HI3s", 6, 3, b"um\0") + struct.pack("<H", 0)
    tags = [(256, 4, 1, WIDTH), (257, 4, 1, HEIGHT), (258, 3, 1, 16), (259, 3, 1, 1)]
    tags += [(262, 3, 1, 1), (273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, HEIGHT)]
    tags += [(279, 4, 1, plane.nbytes)]
    place = 8 + stack.nbytes
    auto_scale = struct.pack("<II", 0, 1)
    tags += [(33628, 4, 1, place + fractions.nbytes + wavelengths.nbytes + len(uic4))]
    tags += [(33629, 5, planes, place)]
    tags += [(33630, 5, planes, place + fractions.nbytes)]
    tags += [(33631, 4, planes, place + fractions.nbytes + wavelengths.nbytes)]
    data = stack.tobytes() + fractions.tobytes() + wavelengths.tobytes() + uic4 + auto_scale
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *t) for t in tags)
    path.write_bytes(struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + directory + bytes(4))


def test_micro_manager_tag(tmp_path, plane):
    path = tmp_path / "a.tif"
    held = json.dumps({"PixelSizeUm": 0.278, "Summary": {"Interval_ms": 500, "z-step_um": 0.4}})
    tags = [(51123, "s", 0, held, True)]
    tifffile.imwrite(path, plane, metadata=None, extratags=tags)
    facts, calibration = facts_of(path)
    assert (facts.pixel_size_um, facts.z_step_um) == (0.278, 0.4)
    assert facts.sources["pixel_size_um"] == "Micro-Manager PixelSizeUm"
    assert calibration.frame_interval_s == 0.5


def test_micro_manager_summary_in_the_header(tmp_path, plane):
    """The program writes its summary between the header and the first page."""
    path = tmp_path / "a.tif"
    summary = {"PixelSize_um": 0.1, "z-step_um": 0.25, "Interval_ms": 0, "ChNames": ["DAPI"]}
    held = json.dumps(summary).encode()
    tags = [(51123, "s", 0, '{"UUID": 1}', True)]
    tifffile.imwrite(path, plane, metadata=None, extratags=tags)
    data = bytearray(path.read_bytes())
    header = struct.pack("<8I", 54773648, 0, 483765892, 0, 99384722, 0, 2355492, len(held)) + held
    with tifffile.TiffFile(path) as tiff:
        start = tiff.pages[0].offset
    shift = len(header) + len(header) % 2
    # Move everything behind the header; the page's offsets move with it.
    moved = move_tiff(bytes(data), start, shift)
    path.write_bytes(moved[:8] + header.ljust(shift, b"\0") + moved[8:])
    facts, calibration = facts_of(path)
    assert (facts.pixel_size_um, facts.z_step_um) == (0.1, 0.25)
    assert calibration.channel_names == ("DAPI",)
    assert calibration.frame_interval_s is None
    with open_micrograph(path) as image:
        assert np.array_equal(image.plane().numpy(), plane)


def move_tiff(data: bytes, start: int, shift: int) -> bytes:
    """A little-endian TIFF of one page whose offsets are larger by `shift`."""
    sizes = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1}
    moved = bytearray(data)
    struct.pack_into("<I", moved, 4, start + shift)
    (count,) = struct.unpack_from("<H", data, start)
    for i in range(count):
        at = start + 2 + 12 * i
        code, kind, number, value = struct.unpack_from("<HHII", data, at)
        if sizes[kind] * number > 4 or code == 273:
            struct.pack_into("<I", moved, at + 8, value + shift)
    return bytes(moved)


def test_scanimage_and_aperio_without_their_writers(tmp_path, plane, monkeypatch):
    """Their settings as tifffile returns them, since it writes none of these formats."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, plane, metadata=None, description="Aperio Image|AppMag = 20|MPP = 0.499")
    facts, _ = facts_of(path)
    assert facts.pixel_size_um == 0.499
    assert facts.sources["pixel_size_um"] == "Aperio MPP"
    corners = [[-35, -30], [35, -30], [35, 30], [-35, 30]]
    held = {"SI.hRoiManager.imagingFovUm": corners, "SI.hStackManager.stackZStepSize": 2.0}
    voxel = {"VoxelSizeX": 2e-7, "VoxelSizeY": 2e-7, "VoxelSizeZ": 1e-6, "TimeIntervall": 3.0}
    axes = [("X", 70, 0.0, 0.3, "um"), ("Y", 60, 0.0, 0.3, "um"), ("Time", 3, 0.0, 2.0, "s")]
    tifffile.imwrite(path, plane, metadata=None)
    for program, replaced, expected in (
        ("scanimage", {"FrameData": held}, (1.0, 2.0, None)),
        ("lsm", voxel, (0.2, 1.0, 3.0)),
        ("fluoview", {"Dimensions": axes}, (0.3, None, 2.0)),
        ("sis", {"pixelsizex": 1.5e-7, "pixelsizey": 1.5e-7}, (0.15, None, None)),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(tifffile.TiffFile, f"{program}_metadata", replaced)
            facts, calibration = facts_of(path)
        found = (facts.pixel_size_um, facts.z_step_um, calibration.frame_interval_s)
        assert found == pytest.approx(expected)


def test_ome_wins_over_private_tags_and_these_over_the_resolution(tmp_path, plane):
    path = tmp_path / "a.ome.tif"
    held = json.dumps({"PixelSizeUm": 0.278, "z-step_um": 0.4})
    tifffile.imwrite(
        path,
        plane,
        ome=True,
        metadata={"PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25},
        extratags=[(51123, "s", 0, held, True)],
        resolution=(20000, 20000),
        resolutionunit="CENTIMETER",
    )
    facts, _ = facts_of(path)
    assert (facts.pixel_size_um, facts.z_step_um) == (0.25, 0.4)
    tifffile.imwrite(
        path,
        plane,
        metadata=None,
        extratags=[(51123, "s", 0, held, True)],
        resolution=(20000, 20000),
        resolutionunit="CENTIMETER",
    )
    facts, _ = facts_of(path)
    assert facts.pixel_size_um == 0.278
