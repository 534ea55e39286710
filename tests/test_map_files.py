"""Map files: reopened, they show names, um and values."""

import numpy as np
import pytest
import tifffile
import torch

from common.files import write_imagej
from models import map_files
from models.map_files import map_table, write_full_resolution
from models.mapping import PsfMap
from psf import Microscope, PsfModel, psf_model

ROWS, COLUMNS = torch.arange(3) * 16.0 + 31.5, torch.arange(4) * 16.0 + 31.5


@pytest.fixture
def psf_map():
    rng = torch.Generator().manual_seed(0)
    values = torch.rand(2, 3, 4, generator=rng)
    return PsfMap(
        PsfModel("zernike", {"focus": (0.0, 4.0), "ast": (0.0, 2.0)}, "waves"),
        Microscope(),
        values,
        values / 10,
        torch.ones(3, 4),
        ROWS,
        COLUMNS,
        half_widths_95=values / 5,
        brightness=100 * torch.ones(3, 4),
    )


def opened(path):
    with tifffile.TiffFile(path) as tiff:
        x = tiff.pages[0].tags["XResolution"].value
        return tiff.asarray(), tiff.imagej_metadata, x[0] / x[1]


def test_channels_come_back_with_names_and_um(psf_map, tmp_path):
    names = ["focus (waves)", "ast (waves)"]
    write_imagej(tmp_path / "a.tif", psf_map.values.numpy(), "CYX", 4.448, names)
    pixels, metadata, per_um = opened(tmp_path / "a.tif")
    assert np.array_equal(pixels, psf_map.values.numpy())
    assert (metadata["Labels"], metadata["unit"]) == (names, "um")
    assert 1 / per_um == pytest.approx(4.448, rel=1e-5)


def plane(y, x):
    return 0.5 + 0.02 * y - 0.01 * x


def test_full_resolution_is_bilinear_between_centres_and_constant_beyond(psf_map, tmp_path):
    y, x = np.mgrid[:95, :112].astype(float)
    channel = plane(ROWS.numpy()[:, None], COLUMNS.numpy()).astype(np.float32)
    write_full_resolution(tmp_path / "b.tif", [channel], ["focus"], psf_map, (95, 112), 0.278)
    pixels, metadata, per_um = opened(tmp_path / "b.tif")
    expected = plane(y.clip(31.5, 63.5), x.clip(31.5, 79.5))
    assert np.allclose(pixels, expected, atol=1e-5)
    assert metadata["unit"] == "um" and 1 / per_um == pytest.approx(0.278, rel=1e-5)


def test_nan_stays_near_its_patch(psf_map, tmp_path):
    channel = np.ones((3, 4), np.float32)
    channel[0, 0] = np.nan
    write_full_resolution(tmp_path / "c.tif", [channel], ["focus"], psf_map, (95, 112), 0.278)
    pixels = tifffile.imread(tmp_path / "c.tif")
    assert np.isnan(pixels[:40, :40]).all()
    assert not np.isnan(pixels[48:, :]).any() and not np.isnan(pixels[:, 48:]).any()


def test_large_maps_are_ome_tiff(psf_map, tmp_path, monkeypatch):
    monkeypatch.setattr(map_files, "IMAGEJ_LIMIT", 1000)
    channels = [np.full((3, 4), value, np.float32) for value in (1, 2)]
    write_full_resolution(tmp_path / "d.tif", channels, ["focus", "ast"], psf_map, (95, 112), 0.3)
    with tifffile.TiffFile(tmp_path / "d.tif") as tiff:
        assert tiff.is_ome and tiff.is_bigtiff
        assert 'PhysicalSizeX="0.3"' in tiff.ome_metadata and 'Name="ast"' in tiff.ome_metadata
        assert (tiff.asarray() == np.array([1, 2])[:, None, None]).all()


def test_one_patch_fills_the_image(psf_map, tmp_path):
    one = PsfMap(
        psf_model("zernike1d"),
        Microscope(),
        torch.ones(1, 1, 1),
        torch.ones(1, 1, 1),
        torch.ones(1, 1),
        ROWS[:1],
        COLUMNS[:1],
    )
    write_full_resolution(tmp_path / "e.tif", [np.full((1, 1), 3.0)], ["z"], one, (64, 70), 0.3)
    assert (tifffile.imread(tmp_path / "e.tif") == 3).all()


def test_table_has_a_row_per_patch_and_units_in_the_header(psf_map):
    table = map_table(psf_map, 0.5, [("photons", np.arange(12.0).reshape(3, 4))])
    assert len(table) == 12
    assert table.loc[5, ["y_px", "x_px", "y_um", "x_um"]].tolist() == [47.5, 47.5, 23.75, 23.75]
    assert table.loc[5, "ast_waves"] == pytest.approx(float(psf_map.values[1, 1, 1]))
    for name in ("focus_standard_deviation_waves", "ast_half_width_95_waves"):
        assert name in table
    assert table.loc[5, "photons"] == 5
