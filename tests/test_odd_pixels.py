"""Images as other programs save them: read as the numbers that they show, or refused in a line."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from micrographs.micrograph import open_micrograph
from psf import InputError

LUMINANCE = np.array([0.2126, 0.7152, 0.0722])
GREY = np.random.default_rng(0).integers(0, 256, (40, 50), np.uint8)
COLOURS = np.random.default_rng(1).integers(0, 256, (4, 40, 50, 4), np.uint8)  # T, Y, X, RGBA


def read(path, **chosen):
    with open_micrograph(path, **chosen) as image:
        return image.plane().numpy()


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_opacity_of_a_colour_image_is_dropped(tmp_path, name):
    Image.fromarray(COLOURS[0]).save(tmp_path / name)
    expected = COLOURS[0, ..., :3] @ LUMINANCE
    assert np.allclose(read(tmp_path / name), expected, atol=1e-3)
    assert np.array_equal(read(tmp_path / name, channel=2), COLOURS[0, ..., 2])
    with pytest.raises(InputError, match="--channel 3 is not in"):
        open_micrograph(tmp_path / name, channel=3)


@pytest.mark.parametrize(
    ("name", "options", "top"),
    [("a.png", {}, 255), ("a.tif", {}, 1), ("a.tif", {"compression": "group4"}, 1)],
)
def test_one_bit(tmp_path, name, options, top):
    Image.fromarray(GREY > 99).save(tmp_path / name, **options)
    assert np.array_equal(read(tmp_path / name), top * (GREY > 99))


def test_grey_palette_of_a_png_and_grey_with_opacity(tmp_path):
    Image.fromarray(GREY).convert("P").save(tmp_path / "palette.png")
    Image.fromarray(np.stack([GREY, GREY // 2], -1), "LA").save(tmp_path / "opacity.png")
    for name in ("palette.png", "opacity.png"):
        assert np.allclose(read(tmp_path / name), GREY, atol=1e-3)


@pytest.mark.parametrize("kind", ["i1", "<i2", ">i2", "<i8", ">u8", ">f8", "<f2"])
def test_signed_long_and_big_endian_numbers(tmp_path, kind):
    pixels = (GREY.astype(float) - (128 if "i" in kind else 0)).astype(kind)
    order = ">" if kind.startswith(">") else "<"
    tifffile.imwrite(tmp_path / "a.tif", pixels, byteorder=order, photometric="minisblack")
    assert np.array_equal(read(tmp_path / "a.tif"), pixels)


def test_twelve_packed_bits(tmp_path):
    pixels = GREY.astype(np.uint16) * 16
    tifffile.imwrite(tmp_path / "a.tif", pixels, bitspersample=12, photometric="minisblack")
    with open_micrograph(tmp_path / "a.tif") as image:
        assert np.array_equal(image.plane().numpy(), pixels)
        assert image.full_scale == 4095


@pytest.mark.parametrize("kind", ["plain", "ome", "imagej", "separate"])
def test_colours_over_time(tmp_path, kind):
    colours = COLOURS[..., :3]
    path = tmp_path / ("a.ome.tif" if kind == "ome" else "a.tif")
    options = {"photometric": "rgb", "metadata": {"axes": "TYXS"}}
    if kind == "separate":
        options |= {"planarconfig": "separate", "metadata": {"axes": "TSYX"}}
    stored = np.moveaxis(colours, -1, 1) if kind == "separate" else colours
    tifffile.imwrite(path, stored, ome=kind == "ome", imagej=kind == "imagej", **options)
    with open_micrograph(path) as image:
        assert image.sizes == {"C": 3, "Z": 1, "T": 4}
        for t in range(4):
            found = image.select(t=t).plane().numpy()
            assert np.allclose(found, colours[t] @ LUMINANCE, atol=1e-3)
        assert np.array_equal(image.select(t=3, channel=1).plane().numpy(), colours[3, ..., 1])


@pytest.mark.parametrize(("mode", "name"), [("CMYK", "SEPARATED"), ("LAB", "CIELAB")])
def test_inks_and_colour_spaces_are_refused(tmp_path, mode, name):
    Image.fromarray(COLOURS[0, ..., :3]).convert(mode).save(tmp_path / "a.tif")
    with pytest.raises(
        InputError, match=rf"a\.tif stores its colours as {name}, .*; save it as RGB"
    ):
        open_micrograph(tmp_path / "a.tif")


def test_plain_ycbcr_is_refused_and_in_a_jpeg_it_is_read(tmp_path):
    image = Image.fromarray(COLOURS[0, ..., :3])
    image.convert("YCbCr").save(tmp_path / "a.tif")
    with pytest.raises(InputError, match="stores its colours as YCBCR"):
        open_micrograph(tmp_path / "a.tif")
    flat = np.tile(np.array([200, 100, 50], np.uint8), (64, 64, 1))
    tifffile.imwrite(tmp_path / "b.tif", flat, photometric="rgb", compression="jpeg", tile=(32, 32))
    assert np.allclose(read(tmp_path / "b.tif"), flat @ LUMINANCE, atol=2)


@pytest.mark.parametrize("suffix", ["bmp", "gif", "webp"])
def test_other_formats_are_named(tmp_path, suffix):
    Image.fromarray(GREY).save(tmp_path / f"a.{suffix}")
    with pytest.raises(InputError, match=r"is no TIFF, PNG, JPEG, .*; export it as OME-TIFF"):
        open_micrograph(tmp_path / f"a.{suffix}")


def test_changed_bytes_of_a_png_are_noticed(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(GREY).save(path)
    whole = path.read_bytes()
    start = whole.index(b"IDAT") + 4
    for place in (start + 40, start + 400, len(whole) - 30):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(InputError, match=r"a\.png is damaged"):
            open_micrograph(path)
