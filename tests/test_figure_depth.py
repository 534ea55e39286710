"""figure_depth.py on small planes: true depths, finished tables and pictures."""

import numpy as np
import pandas as pd
import pytest
import torch

import figure_depth
from common.files import code_fingerprint
from figure_depth import Config, plane_path, render, summarise
from models.checkpoint import load_estimator
from psf import InputError, Microscope, psf_model, synthesize
from psf.blur import blur_valid
from simulation.surfaces import held_out_object, image_of_dome

NO_LENS = psf_model("zernike1d")


def test_textures_fill_the_field_and_are_held_out():
    image = held_out_object("gravel", 700)
    assert image.shape == (700, 700)
    assert torch.equal(image[:, 512], image[:, 511])  # mirrored at its border
    assert torch.equal(held_out_object("membranes", 90), held_out_object("membranes", 90))
    with pytest.raises(InputError, match="choose one of camera"):
        held_out_object("brick", 700)  # trained on


# --- rendered planes


def small(tmp_path, **settings):
    """Settings of planes of 40 px with PSFs of 127 px."""
    return Config(
        **{"size_px": 40, "psf_px": 127, "pixel_size_um": 0.25, "scratch": tmp_path, **settings}
    )


def plane(config, degrees=8.0, model=NO_LENS):
    optics = Microscope(pixel_size_um=config.pixel_size_um)
    return render(config, "gravel", degrees, model, optics)


@pytest.mark.parametrize("change", [{"pixel_size_um": 0.2}, {"psf_px": 119}])
def test_settings_never_share_a_rendered_plane(tmp_path, change):
    first = plane(small(tmp_path))
    other = plane(small(tmp_path, **change))
    alone = plane(small(tmp_path / "fresh", **change))
    assert torch.equal(other, alone)
    assert float((other - first).abs().max()) > 0.01 * float(first.max())


def test_a_rendered_plane_is_read_back(tmp_path):
    first = plane(small(tmp_path))
    (path,) = tmp_path.glob("*.tif")
    before = path.stat().st_mtime_ns
    assert torch.equal(plane(small(tmp_path)), first)
    assert path.stat().st_mtime_ns == before


def test_each_setting_that_decides_the_pixels_is_in_the_name(tmp_path, monkeypatch):
    config, optics = small(tmp_path), Microscope(pixel_size_um=0.25)
    lens = psf_model("astigmatic")

    def name(config=config, texture="gravel", degrees=8.0, model=lens, optics=optics):
        return plane_path(config, texture, degrees, model, optics).name

    names = [
        name(),
        name(texture="coins"),
        name(degrees=8.0000001),
        name(model=psf_model("astigmatic", known_ast_waves=0.5)),
        name(optics=Microscope(pixel_size_um=0.2)),
        name(optics=Microscope(na=0.4, pixel_size_um=0.25)),
        name(small(tmp_path, size_px=41)),
        name(small(tmp_path, psf_px=125)),
    ]
    assert name() == name(small(tmp_path, seed=5, stride=8))  # of the noise and of the map
    monkeypatch.setattr(figure_depth, "code_fingerprint", lambda *paths: "other code")
    names.append(name())
    assert len(set(names)) == len(names)


def test_a_fingerprint_changes_with_any_file(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a.py").write_text("x = 1")
    (tmp_path / "notes.txt").write_text("one")
    first = code_fingerprint(tmp_path)
    (tmp_path / "notes.txt").write_text("two")
    assert code_fingerprint(tmp_path) == first  # not code
    (tmp_path / "inner" / "a.py").write_text("x = 2")
    second = code_fingerprint(tmp_path)
    script = tmp_path / "script.py"
    script.write_text("y")
    assert len({first, second, code_fingerprint(tmp_path), code_fingerprint(script)}) == 4


def test_a_level_plane_is_blurred_by_one_psf(tmp_path):
    config = small(tmp_path)
    psf = synthesize(NO_LENS, torch.zeros(1, 1), Microscope(pixel_size_um=0.25), 127)
    expected = blur_valid(held_out_object("gravel", 166)[None], psf)[0]
    assert torch.allclose(plane(config, degrees=0.0), expected, atol=1e-6)


def test_a_plane_without_the_lens_is_sharp_in_its_middle_and_alike_on_both_sides(tmp_path):
    config = small(tmp_path, size_px=41)
    shifted = plane(config, degrees=20.0)
    expected = plane(small(tmp_path, size_px=41), degrees=-20.0)  # turned the other way
    assert torch.allclose(shifted, expected, atol=1e-6)
    lens = psf_model("astigmatic")
    signed = [plane(config, degrees, lens) for degrees in (20.0, -20.0)]
    assert float((signed[0] - signed[1]).abs().max()) > 0.01 * float(signed[0].max())


def test_a_flat_dome_is_blurred_by_one_psf():
    optics, lens = Microscope(pixel_size_um=0.25), psf_model("astigmatic")
    image, depth_um = image_of_dome("coins", 1.5, 1.5001, 40, lens, optics, 127)
    assert depth_um.shape == image.shape == (40, 40)
    psf = synthesize(lens, torch.tensor([[1.5 / optics.um_per_wave]]), optics, 127)
    expected = blur_valid(held_out_object("coins", 166)[None], psf)[0]
    assert torch.allclose(image, expected, atol=1e-4)
    assert float(
        image_of_dome("coins", -1, 1.5, 41, lens, optics, 127)[1][20, 20]
    ) == pytest.approx(1.5)


def test_the_calibration_plane_spans_the_range_of_the_network():
    # (2048 - 128) / 2 px of 0.25 um are 240 um; 3 waves of 6.568 um are 19.7 um
    estimator = load_estimator("astigmatic_tilted")
    degrees = figure_depth.calibration_degrees(
        Config(pixel_size_um=0.25), estimator, Microscope(pixel_size_um=0.25)
    )
    assert degrees == pytest.approx(np.degrees(np.arctan(19.704 / 240)), abs=0.005)


# --- scores


def profile_table(depth_um, truth_um, **columns):
    count = len(truth_um)
    given = {"model": "astigmatic", "photons": 100.0, "degrees": 3.0, "texture": "gravel"}
    given |= {"z_um": truth_um, "truth_um": truth_um, "depth_um": depth_um, "patches": 10}
    given |= {"patch_square_error_um2": 40.0, "wrong_signs": 0, "usable": True}
    return pd.DataFrame({**given, "taken_as_usable": 0, **columns}, index=range(count))


def test_summary_scores_the_usable_part_alone():
    truth = np.array([-6.0, 0.0, 6.0, 30.0])
    table = profile_table(truth + np.array([1, -1, 1, 50]), truth, usable=[True, True, True, False])
    table["wrong_signs"] = [1, 5, 0, 10]
    table["taken_as_usable"] = [0, 0, 0, 4]
    (row,) = summarise(table).itertuples()
    assert row.profile_rms_um == pytest.approx(1)
    assert row.patch_rms_um == pytest.approx(2)  # sqrt(40 / 10)
    assert (row.usable_from_um, row.usable_to_um) == (-6, 6)
    assert row.wrong_signs_share == pytest.approx(1 / 20)  # within a depth of field none counts
    assert row.outside_taken_as_usable_share == pytest.approx(0.4)


def test_without_the_lens_distances_of_2_to_20_um_are_scored():
    truth = np.array([1.0, 3.0, 21.0])
    table = profile_table(truth + np.array([9, 0.5, 9]), truth, model="zernike1d")
    assert float(summarise(table)["profile_rms_um"].iloc[0]) == pytest.approx(0.5)


def test_drawing_needs_a_table(tmp_path):
    with pytest.raises(InputError, match=r"depth\.csv; run without --draw-only"):
        figure_depth.main(Config(out=tmp_path, draw_only=True))
