"""Micrographs: each kind of storage gives the same counts, facts are read, damage is named."""

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from micrographs.metadata import Calibration, OpticsFacts
from micrographs.micrograph import open_micrograph
from psf import InputError

HEIGHT, WIDTH = 150, 130  # no multiple of a tile
OME_METADATA = {
    "axes": "CZYX",
    "PhysicalSizeX": 108.0,
    "PhysicalSizeXUnit": "nm",
    "PhysicalSizeY": 0.108,
    "PhysicalSizeZ": 0.3,
    "SignificantBits": 12,
    "Channel": {
        "Name": ["DAPI", "GFP"],
        "EmissionWavelength": [461.0, 0.51],
        "EmissionWavelengthUnit": ["nm", "µm"],
    },
}


@pytest.fixture
def counts():
    """A stack (T, Z, C, Y, X) in which all pixels differ, uint16."""
    return np.random.default_rng(0).integers(0, 4096, (2, 3, 2, HEIGHT, WIDTH), np.uint16)


@pytest.fixture
def plane(counts):
    return counts[0, 0, 0]


def same(found: torch.Tensor, expected: np.ndarray) -> bool:
    return found.dtype == torch.float32 and np.array_equal(found.numpy(), expected)


# --- pixels


STORED = {
    "plain": {},
    "one strip": {"rowsperstrip": HEIGHT},
    "strips": {"rowsperstrip": 7},
    "lzw": {"compression": "lzw", "rowsperstrip": 11, "predictor": True},
    "deflate": {"compression": "zlib"},
    "zstd": {"compression": "zstd", "rowsperstrip": 40},
    "tiled": {"tile": (32, 48)},
    "tiled lzw": {"tile": (64, 32), "compression": "lzw"},
    "one tile across": {"tile": (160, 144)},
    "BigTIFF": {"bigtiff": True},
    "big endian": {"byteorder": ">"},
    "big endian tiled": {"byteorder": ">", "tile": (32, 32), "compression": "zlib"},
}


@pytest.mark.parametrize("kind", STORED)
@pytest.mark.parametrize(
    "dtype", ["uint8", "int16", "uint16", "int32", "uint32", "float16", "float32", "float64"]
)
def test_rows_equal_the_array_however_it_is_stored(tmp_path, plane, kind, dtype):
    pixels = (plane % 200).astype(dtype)
    options = dict(STORED[kind])
    if dtype.startswith("float") and options.get("predictor"):
        options["predictor"] = 3
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="minisblack", **options)
    with open_micrograph(tmp_path / "a.tif") as image:
        assert image.shape == (HEIGHT, WIDTH) and image.notes == ()
        assert same(image.plane(), pixels)
        for start, stop in ((0, 1), (31, 33), (30, 100), (HEIGHT - 1, HEIGHT)):
            assert same(image.rows(start, stop), pixels[start:stop])
        full = {"uint8": 255, "uint16": 65535, "uint32": 2**32 - 1}
        assert image.full_scale == full.get(dtype)


@pytest.mark.parametrize("kind", ["plain", "lzw", "tiled lzw"])
def test_every_plane_of_a_hyperstack(tmp_path, counts, kind):
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, counts, metadata={"axes": "TZCYX"}, photometric="minisblack", **STORED[kind]
    )
    check_all_planes(path, counts)


def test_every_plane_of_imagej_and_ome(tmp_path, counts):
    imagej, ome = tmp_path / "imagej.tif", tmp_path / "a.ome.tif"
    tifffile.imwrite(imagej, counts, imagej=True, metadata={"axes": "TZCYX"})
    check_all_planes(imagej, counts)
    turned = np.moveaxis(counts, 2, 0)  # C first
    tifffile.imwrite(ome, turned, ome=True, photometric="minisblack", metadata={"axes": "CTZYX"})
    check_all_planes(ome, counts)


def check_all_planes(path, counts):
    with open_micrograph(path) as image:
        assert image.sizes == {"C": 2, "Z": 3, "T": 2} and image.plane_count == 12
        assert same(image.plane(), counts[0, 1, 0])  # the middle plane
        for t, z, c in np.ndindex(2, 3, 2):
            other = image.select(channel=c, z=z, t=t)
            assert same(other.rows(20, 70), counts[t, z, c, 20:70])
        kept = image.select(z=2).select(channel=1)
        assert same(kept.plane(), counts[0, 2, 1])


def test_imagej_stack_with_all_planes_behind_a_single_page(tmp_path, counts):
    stack = counts[0, :, 0]
    path = tmp_path / "virtual.tif"
    description = "ImageJ=1.54f\nimages=3\nslices=3\n"
    tifffile.imwrite(path, stack[0], description=description, metadata=None, software="x")
    with tifffile.TiffFile(path) as tiff:
        assert tiff.pages[0].dataoffsets[0] + stack[0].nbytes == path.stat().st_size
    path.write_bytes(path.read_bytes() + stack[1].tobytes() + stack[2].tobytes())
    with open_micrograph(path) as image:
        assert image.sizes == {"C": 1, "Z": 3, "T": 1}
        for z in range(3):
            assert same(image.select(z=z).plane(), stack[z])
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(InputError, match=r"virtual\.tif is damaged or was not copied whole"):
        open_micrograph(path)


def test_pages_without_axes_count_as_z(tmp_path, counts):
    path = tmp_path / "pages.tif"
    with tifffile.TiffWriter(path) as writer:
        for page in counts[0, :, 0]:
            writer.write(page, photometric="minisblack", metadata=None)
    with open_micrograph(path) as image:
        assert image.sizes == {"C": 1, "Z": 3, "T": 1}
        assert image.notes == ("3 planes in z; the middle one, 1 is used; choose with --z",)
        assert same(image.plane(), counts[0, 1, 0])


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("options", [{}, {"compression": "lzw"}, {"tile": (32, 32)}])
def test_colours_become_luminance_or_one_of_them(tmp_path, planar, options):
    rgb = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    stored = rgb if planar == "contig" else np.moveaxis(rgb, -1, 0)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, stored, photometric="rgb", planarconfig=planar, **options)
    with open_micrograph(path) as image:
        luminance = rgb @ np.array([0.2126, 0.7152, 0.0722])
        assert torch.allclose(image.rows(10, 90), torch.tensor(luminance[10:90]).float())
        assert image.plane_count == 1 and image.full_scale == 255
        (note,) = image.notes
        assert "luminance (Rec. 709) is used" in note and "--channel" in note
    with open_micrograph(path, channel=1) as image:
        assert same(image.plane(), rgb[..., 1]) and image.notes == ()


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_samples_that_are_no_colours_are_channels(tmp_path, counts, planar):
    channels = counts[0, :, 0]  # three of them
    stored = np.moveaxis(channels, 0, -1) if planar == "contig" else channels
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, stored, photometric="minisblack", planarconfig=planar, extrasamples=[0, 0]
    )
    for number in range(3):
        with open_micrograph(path, channel=number) as image:
            assert image.sizes["C"] == 3
            assert same(image.rows(5, 60), channels[number, 5:60])


def test_opacity_is_dropped(tmp_path, plane):
    stored = np.stack([plane, plane // 2], -1)
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, stored, photometric="minisblack", planarconfig="contig", extrasamples=["unassalpha"]
    )
    with open_micrograph(path) as image:
        assert image.sizes["C"] == 1 and image.notes == ()
        assert same(image.plane(), plane)


def test_jpeg_in_a_tiff(tmp_path):
    smooth = np.add.outer(np.arange(160), np.arange(160)).astype(np.uint8) // 2
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, smooth, tile=(64, 64), compression="jpeg", photometric="minisblack")
    with open_micrograph(path) as image:
        assert np.array_equal(image.plane().numpy(), tifffile.imread(path))
        assert float((image.plane() - torch.from_numpy(smooth)).abs().mean()) < 2


def test_png_and_jpeg(tmp_path, plane):
    Image.fromarray(plane).save(tmp_path / "a.png", dpi=(300, 300))
    rgb = np.stack([plane % 256, plane // 16, plane * 0], -1).astype(np.uint8)
    Image.fromarray(rgb).save(tmp_path / "colour.png")
    Image.fromarray(rgb[..., 0]).save(tmp_path / "a.jpg", dpi=(72, 72))
    with open_micrograph(tmp_path / "a.png") as image:
        assert same(image.rows(3, 50), plane[3:50]) and image.full_scale == 65535
        assert image.facts == OpticsFacts() and image.sizes == {"C": 1, "Z": 1, "T": 1}
    with open_micrograph(tmp_path / "colour.png", channel=1) as image:
        assert same(image.plane(), rgb[..., 1])
    with open_micrograph(tmp_path / "a.jpg") as image:
        assert same(image.plane(), np.asarray(Image.open(tmp_path / "a.jpg")))
        assert image.facts.pixel_size_um is None and image.full_scale == 255


def test_white_zero_is_inverted_and_two_levels_are_zero_and_one(tmp_path, plane):
    tifffile.imwrite(tmp_path / "white.tif", plane, photometric="miniswhite")
    tifffile.imwrite(tmp_path / "mask.tif", plane > 2000, photometric="minisblack")
    with open_micrograph(tmp_path / "white.tif") as image:
        assert same(image.plane(), 65535 - plane.astype(float))
        assert image.notes == ("zero is white in this file (MinIsWhite); it is inverted",)
    with open_micrograph(tmp_path / "mask.tif") as image:
        assert same(image.plane(), plane > 2000)
        assert image.full_scale is None


def test_colour_table_leaves_the_stored_values(tmp_path, plane):
    table = np.random.default_rng(2).integers(0, 65536, (3, 256), np.uint16)
    pixels = (plane % 256).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="palette", colormap=table)
    with open_micrograph(tmp_path / "a.tif") as image:
        assert same(image.plane(), pixels)
        assert "colour table" in image.notes[0]


def test_empty_tiles_are_zero(tmp_path, plane):
    path = tmp_path / "sparse.tif"
    tifffile.imwrite(path, plane[:128, :128], tile=(64, 64), compression="zlib")
    with tifffile.TiffFile(path, mode="r+") as tiff:
        for tag in ("TileOffsets", "TileByteCounts"):
            values = tiff.pages[0].tags[tag].value
            tiff.pages[0].tags[tag].overwrite((0, values[1], 0, 0))
    expected = np.zeros((128, 128))
    expected[:64, 64:] = plane[:64, 64:128]
    with open_micrograph(path) as image:
        assert same(image.plane(), expected)


def test_few_rows_decode_few_tiles(tmp_path, monkeypatch):
    pixels = np.random.default_rng(3).integers(0, 99, (1024, 640), np.uint8)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, tile=(128, 128), compression="zlib")
    decoded = []
    with open_micrograph(path) as image:
        keyframe = image.source._planes.keyframe
        decode = keyframe.decode

        def counting(data, index, **options):
            if data is not None:
                decoded.append(index)
            return decode(data, index, **options)

        monkeypatch.setitem(keyframe.__dict__, "decode", counting)  # a cached property
        assert same(image.rows(130, 140), pixels[130:140])
        assert decoded == [5, 6, 7, 8, 9]  # the second row of tiles, five across
        assert same(image.rows(140, 150), pixels[140:150])
        assert len(decoded) == 5  # kept
        assert same(image.rows(250, 260), pixels[250:260])
        assert decoded[5:] == [10, 11, 12, 13, 14]


def test_few_rows_of_an_uncompressed_file_read_few_bytes(tmp_path, monkeypatch, plane):
    tifffile.imwrite(tmp_path / "a.tif", plane)
    sizes = []
    read = tifffile.FileHandle.read
    with open_micrograph(tmp_path / "a.tif") as image:
        monkeypatch.setattr(
            tifffile.FileHandle,
            "read",
            lambda self, size=-1: sizes.append(size) or read(self, size),
        )
        assert same(image.rows(60, 70), plane[60:70])
    assert sizes == [10 * WIDTH * 2]


# --- choice


def test_notes_say_what_was_chosen(tmp_path, counts):
    path = tmp_path / "a.ome.tif"
    turned = np.moveaxis(counts, 2, 0)
    names = {"axes": "CTZYX", "Channel": {"Name": ["DAPI", "GFP"]}}
    tifffile.imwrite(path, turned, ome=True, photometric="minisblack", metadata=names)
    with open_micrograph(path) as image:
        assert image.notes == (
            "2 channels; channel 0 (DAPI) is used; choose with --channel",
            "3 planes in z; the middle one, 1 is used; choose with --z",
            "2 time points; the first one, 0 is used; choose with --t",
        )
    with open_micrograph(path, channel=1, z=2, t=1) as image:
        assert image.notes == ()
        assert same(image.plane(), counts[1, 2, 1])


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"channel": 2}, r"--channel 2 is not in .*a\.tif; it has 0 to 1\."),
        ({"z": -1}, r"--z -1 is not in .*a\.tif; it has 0 to 2\."),
        ({"t": 1}, r"--t 1 is not in .*a\.tif; it has 0 only\."),
    ],
)
def test_indices_out_of_range_name_the_flag(tmp_path, counts, choice, message):
    tifffile.imwrite(tmp_path / "a.tif", counts[0], imagej=True, metadata={"axes": "ZCYX"})
    with pytest.raises(InputError, match=message):
        open_micrograph(tmp_path / "a.tif", **choice)


# --- facts


def write_ome(path, pixels, change=lambda xml: xml):
    """An OME-TIFF whose XML is changed after tifffile has written it."""
    tifffile.imwrite(
        path, pixels, ome=True, photometric="minisblack", metadata=OME_METADATA, compression="zlib"
    )
    with tifffile.TiffFile(path) as tiff:
        xml = tiff.ome_metadata
    tifffile.tiffcomment(path, change(xml).encode())


def with_objective(xml: str, objective: str, settings: str) -> str:
    head, image, tail = xml.partition("<Image ")
    tag, pixels, rest = tail.partition("<Pixels ")
    instrument = f'<Instrument ID="Instrument:0">{objective}</Instrument>'
    return f"{head}{instrument}{image}{tag}{settings}{pixels}{rest}"


TWO_OBJECTIVES = (
    '<Objective ID="Objective:0" LensNA="0.3" Immersion="Air"/>'
    '<Objective ID="Objective:1" LensNA="1.4" Immersion="Oil"/>'
)


def test_ome_sizes_and_the_wavelength_of_the_chosen_channel(tmp_path, counts):
    path = tmp_path / "a.ome.tif"
    write_ome(path, np.moveaxis(counts[0], 1, 0))
    for channel, wavelength in ((0, 0.461), (1, 0.51)):
        with open_micrograph(path, channel=channel) as image:
            facts = image.facts
            assert facts.pixel_size_um == pytest.approx(0.108, rel=1e-12)
            assert facts.z_step_um == 0.3
            assert facts.wavelength_um == pytest.approx(wavelength, rel=1e-12)
            assert (facts.na, facts.refractive_index) == (None, None)
            assert facts.sources == {
                "pixel_size_um": "OME-XML PhysicalSizeX",
                "z_step_um": "OME-XML PhysicalSizeZ",
                "wavelength_um": "OME-XML EmissionWavelength",
            }
            assert image.full_scale == 4095  # 12 significant bits


@pytest.mark.parametrize(
    ("objective", "settings", "na", "index", "source"),
    [
        (TWO_OBJECTIVES, '<ObjectiveSettings ID="Objective:1"/>', 1.4, 1.518, "Immersion Oil"),
        (TWO_OBJECTIVES, '<ObjectiveSettings ID="Objective:0"/>', 0.3, 1.0, "Immersion Air"),
        (
            TWO_OBJECTIVES,
            '<ObjectiveSettings ID="Objective:1" RefractiveIndex="1.52"/>',
            1.4,
            1.52,
            "RefractiveIndex",
        ),
        (TWO_OBJECTIVES, "", None, None, None),
        ('<Objective ID="x" LensNA="1.1" Immersion="WATER"/>', "", 1.1, 1.33, "Immersion WATER"),
        ('<Objective ID="x" LensNA="0.9" Immersion="Glycerol"/>', "", 0.9, 1.47, "Immersion G"),
        ('<Objective ID="x" LensNA="0" Immersion="Multi"/>', "", None, None, None),
    ],
)
def test_ome_objective(tmp_path, counts, objective, settings, na, index, source):
    path = tmp_path / "a.ome.tif"
    pixels = np.moveaxis(counts[0], 1, 0)
    write_ome(path, pixels, lambda xml: with_objective(xml, objective, settings))
    with open_micrograph(path) as image:
        assert (image.facts.na, image.facts.refractive_index) == (na, index)
        found = image.facts.sources.get("refractive_index")
        assert found is None if source is None else found.startswith(f"OME-XML {source}")


def test_broken_ome_xml_leaves_the_pixels(tmp_path, counts):
    path = tmp_path / "a.ome.tif"
    write_ome(path, np.moveaxis(counts[0], 1, 0), lambda xml: xml.replace("<Pixels", "<Pix<els"))
    with open_micrograph(path, z=0) as image:
        assert same(image.plane(), counts[0, 0, 0])
        assert image.facts == OpticsFacts()
        assert image.notes == ("the OME-XML is damaged; it is ignored",)


@pytest.mark.parametrize(
    ("unit", "resolution", "pixel_um", "step_um"),
    [
        ("micron", 8.0, 0.125, 0.5),
        ("um", 8.0, 0.125, 0.5),
        ("\\u00B5m", 8.0, 0.125, 0.5),
        ("nm", 0.008, 0.125, None),
        ("mm", 4000.0, 0.25, 500),
        ("cm", 40000.0, 0.25, None),
        ("inch", 101600.0, 0.25, None),
        ("inch", 72.0, None, None),
        ("pixel", 8.0, None, None),
        ("", 1.0, None, None),
    ],
)
def test_imagej_calibration(tmp_path, counts, unit, resolution, pixel_um, step_um):
    tifffile.imwrite(
        tmp_path / "a.tif",
        counts[0, :, 0],
        imagej=True,
        resolution=(resolution, resolution),
        metadata={"axes": "ZYX", "unit": unit, "spacing": 0.5},
    )
    with open_micrograph(tmp_path / "a.tif", z=0) as image:
        if pixel_um is None:
            assert image.facts.pixel_size_um is None
            assert "pixel_size_um" not in image.facts.sources
        else:
            assert image.facts.pixel_size_um == pytest.approx(pixel_um, rel=1e-6)
            assert image.facts.sources["pixel_size_um"] == "ImageJ resolution and unit"
        assert image.facts.z_step_um == (step_um and pytest.approx(step_um))
        assert image.notes == ()


@pytest.mark.parametrize(
    ("resolution", "unit", "pixel_um"),
    [
        (20000, "CENTIMETER", 0.5),
        (118.11, "CENTIMETER", None),  # 300 dpi
        (96, "INCH", None),
        (50800, "INCH", None),
        (8, "NONE", None),
    ],
)
def test_resolution_tags_of_a_plain_tiff(tmp_path, plane, resolution, unit, pixel_um):
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, plane, metadata=None, resolution=(resolution, resolution), resolutionunit=unit
    )
    with open_micrograph(path) as image:
        assert image.facts.pixel_size_um == pixel_um
        sources = {} if pixel_um is None else {"pixel_size_um": "TIFF resolution per cm"}
        assert image.facts.sources == sources


def test_pixels_that_are_not_square_are_noted(tmp_path, plane):
    for across, noted in ((4.0, False), (3.97, False), (2.0, True)):
        tifffile.imwrite(
            tmp_path / "a.tif",
            plane,
            imagej=True,
            resolution=(across, 4.0),
            metadata={"unit": "um"},
        )
        with open_micrograph(tmp_path / "a.tif") as image:
            assert image.facts.pixel_size_um == pytest.approx(1 / across, rel=1e-6)
            assert bool(image.notes) == noted
    assert image.facts.notes == (
        "the pixels are not square (0.5 um along x, 0.25 um along y); the size along x is used",
    )


# --- calibration of all planes


@pytest.mark.parametrize(("unit", "seconds"), [(None, 3.0), ("min", 180.0), ("fortnight", None)])
def test_imagej_interval_z_step_and_names(tmp_path, counts, unit, seconds):
    path = tmp_path / "a.tif"
    labels = ["DAPI", "GFP"] * 6
    metadata = {"axes": "TZCYX", "unit": "nm", "zunit": "micron", "spacing": 0.4}
    metadata |= {"finterval": 3.0, "Labels": labels} | ({"tunit": unit} if unit else {})
    tifffile.imwrite(path, counts, imagej=True, metadata=metadata)
    with open_micrograph(path) as image:
        assert image.calibration == Calibration(0.4, seconds, ("DAPI", "GFP"), "imagej")
        assert image.select(channel=1, z=2, t=1).calibration == image.calibration


def test_labels_of_single_planes_name_no_channels(tmp_path, counts):
    labels = [f"plane {i}" for i in range(6)]
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, counts[0], imagej=True, metadata={"axes": "ZCYX", "Labels": labels})
    with open_micrograph(path) as image:
        assert image.calibration == Calibration(kind="imagej")


def test_ome_interval_z_step_and_names(tmp_path, counts):
    path = tmp_path / "a.ome.tif"
    metadata = OME_METADATA | {"axes": "CTZYX", "TimeIncrement": 200, "TimeIncrementUnit": "ms"}
    turned = np.moveaxis(counts, 2, 0)
    tifffile.imwrite(path, turned, ome=True, photometric="minisblack", metadata=metadata)
    with open_micrograph(path) as image:
        assert image.calibration == Calibration(0.3, 0.2, ("DAPI", "GFP"), "ome")


def test_files_without_calibration(tmp_path, plane):
    Image.fromarray(plane).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a.tif", plane)
    for name in ("a.png", "a.tif"):
        with open_micrograph(tmp_path / name) as image:
            assert image.calibration == Calibration()


# --- errors


def refused(path, message):
    with pytest.raises(InputError, match=message) as caught:
        with open_micrograph(path) as image:
            image.plane()
    assert "\n" not in str(caught.value) and path.name in str(caught.value)


def test_no_such_file(tmp_path):
    refused(tmp_path / "nowhere.tif", r"there is no image .*nowhere\.tif\.")


@pytest.mark.parametrize("start", [b"", b"not an image\n" * 20, b"GIF89a" + bytes(100)])
def test_foreign_files(tmp_path, start):
    (tmp_path / "a.tif").write_bytes(start)
    refused(tmp_path / "a.tif", r"a\.tif is no TIFF, PNG, JPEG, .*; export it as OME-TIFF")


@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["plain", "lzw", "imagej", "ome", "pages", "png", "jpg"])
def test_files_that_were_cut_off(tmp_path, counts, kind, share):
    path = tmp_path / ("a." + (kind if kind in ("png", "jpg") else "tif"))
    stack = counts[0, :, 0]
    if kind in ("plain", "lzw"):
        tifffile.imwrite(path, stack[0], **STORED[kind])
    elif kind == "imagej":
        tifffile.imwrite(path, stack, imagej=True)
    elif kind == "ome":
        tifffile.imwrite(path, stack, ome=True, photometric="minisblack", compression="lzw")
    elif kind == "pages":
        for page in stack:
            tifffile.imwrite(path, page, append=True, metadata=None, compression="zlib")
    else:
        Image.fromarray((stack[0] // 16).astype(np.uint8)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    refused(path, "is damaged")


def test_damaged_strips(tmp_path, plane):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, plane, compression="zlib", rowsperstrip=10)
    with tifffile.TiffFile(path) as tiff:
        start = tiff.pages[0].dataoffsets[5]
    data = bytearray(path.read_bytes())
    data[start : start + 40] = bytes(40)
    path.write_bytes(data)
    with open_micrograph(path) as image:
        assert same(image.rows(0, 50), plane[:50])  # what is whole can be read
        with pytest.raises(InputError, match=r"a\.tif is damaged: "):
            image.rows(50, 60)


@pytest.mark.parametrize(
    ("code", "message"),
    [(34676, r"compressed with SGILOG \(34676\)"), (12345, r"compressed with number \(12345\)")],
)
def test_unknown_compression_is_named(tmp_path, plane, code, message):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, plane, compression="lzw")
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tiff.pages[0].tags["Compression"].overwrite(code)
    refused(path, message)


def test_complex_pixels_are_refused(tmp_path, plane):
    tifffile.imwrite(tmp_path / "a.tif", plane.astype(np.complex64), photometric="minisblack")
    refused(tmp_path / "a.tif", "pixels of type complex64; intensities are real numbers")


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((20, 30, 5), {"metadata": {"axes": "YXZ"}}, "axes in the order YXZ; Y and X must come"),
        ((2, 3, 2, 2, 20, 20), {"metadata": {"axes": "RTZCYX"}}, "axes RTZCYX; only C, Z and T"),
        ((16, 64, 64), {"volumetric": True, "tile": (16, 16, 16)}, "several planes in one page"),
    ],
)
def test_axes_that_are_not_known(tmp_path, shape, options, message):
    pixels = np.zeros(shape, np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="minisblack", **options)
    refused(tmp_path / "a.tif", message)


def test_rows_beyond_the_image(tmp_path, plane):
    tifffile.imwrite(tmp_path / "a.tif", plane)
    with open_micrograph(tmp_path / "a.tif") as image:
        for start, stop in ((0, HEIGHT + 1), (-1, 5), (7, 7)):
            with pytest.raises(ValueError, match=f"of an image of {HEIGHT} rows"):
                image.rows(start, stop)
