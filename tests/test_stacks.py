"""What comes out is calibrated as what went in: scale, time, names and kind of file."""

import numpy as np
import pytest
import tifffile
import tyro
from skimage import data as skimage_data

import deconvolve
from common import stacks
from common.stacks import write_stack
from micrographs.metadata import Calibration
from micrographs.micrograph import open_micrograph

NAMES = ("核 µ", "GFP $1$")
PIXELS = np.arange(2 * 3 * 2 * 8 * 9, dtype=np.float32).reshape(2, 3, 2, 8, 9)
SCALE = {"z_step_um": 2.5, "frame_interval_s": 3.0, "channel_names": NAMES}


@pytest.mark.parametrize("kind", ["ome", "imagej"])
def test_scale_and_names_come_back(tmp_path, kind):
    write_stack(tmp_path / "a.tif", PIXELS, 0.278, as_ome=kind == "ome", **SCALE)
    with open_micrograph(tmp_path / "a.tif", 1, 2, 1) as found:
        assert found.calibration == Calibration(2.5, 3.0, NAMES, kind)
        assert found.facts.pixel_size_um == pytest.approx(0.278, rel=1e-6)
        assert found.sizes == {"C": 2, "Z": 3, "T": 2}
        assert np.array_equal(found.plane(), PIXELS[1, 2, 1])


@pytest.mark.parametrize("as_ome", [True, False])
def test_unknown_scale_stays_unknown(tmp_path, as_ome):
    write_stack(tmp_path / "a.tif", PIXELS, 0.278, as_ome=as_ome)
    with open_micrograph(tmp_path / "a.tif") as found:
        assert found.calibration == Calibration(kind="ome" if as_ome else "imagej")


@pytest.mark.parametrize("as_ome", [True, False])
def test_equal_stacks_are_equal_files(tmp_path, as_ome):
    for name in ("a.tif", "b.tif"):
        write_stack(tmp_path / name, PIXELS, 0.278, as_ome=as_ome, **SCALE)
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()


def test_stacks_too_large_for_imagej_are_ome_tiff(tmp_path, monkeypatch):
    monkeypatch.setattr(stacks, "IMAGEJ_LIMIT", 1000)
    write_stack(tmp_path / "a.tif", PIXELS, 0.278, **SCALE)
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        assert tiff.is_ome and tiff.is_bigtiff
        assert np.array_equal(tiff.asarray(), PIXELS)


@pytest.mark.parametrize("kind", ["ome", "imagej", ""])
@pytest.mark.parametrize("flags", [("--all-planes",), ("--channel", "1")])
def test_restoration_keeps_the_calibration_of_its_image(focus_run, tmp_path, kind, flags):
    photo = skimage_data.brick()[:96, :112].astype(np.uint16)
    stack = np.stack([photo + 10 * k for k in range(4)]).reshape(1, 2, 2, *photo.shape)
    path, pixel = tmp_path / ("a.ome.tif" if kind == "ome" else "a.tif"), 0.278
    if kind:
        write_stack(path, stack, pixel, as_ome=kind == "ome", **SCALE)
    else:
        tifffile.imwrite(path, stack, metadata={"axes": "TZCYX"})
    optics = "--na 0.45 --wavelength-um 0.5 --pixel-size-um 0.278 --refractive-index 1.33".split()
    fast = "--iterations 1 --refine no --device cpu".split()
    given = ["--checkpoint", str(focus_run), "--out", str(tmp_path / "out"), *optics, *fast]
    deconvolve.main(tyro.cli(deconvolve.Config, args=[str(path), *given, *flags]))
    with open_micrograph(tmp_path / "out" / "restored.tif") as found:
        assert found.calibration.kind == (kind or "imagej")
        assert found.facts.pixel_size_um == pytest.approx(pixel, rel=1e-6)
        if flags == ("--all-planes",):
            assert found.sizes == {"C": 2, "Z": 2, "T": 1}
            if kind:
                assert found.calibration == Calibration(2.5, 3.0, NAMES, kind)
        elif kind:
            assert found.calibration.channel_names == NAMES[1:]
