"""figure_depth.py on small planes: true depths, finished tables and pictures."""

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex, to_rgb

import figure_depth
from common.depth_figure import condition_colours, draw_depth_figure
from common.depth_scores import summarise, usable_range_um
from common.dome_figure import Dome
from common.files import code_fingerprint
from figure_depth import Config, plane_path, render
from models.checkpoint import load_estimator
from models.depth import DepthCalibration
from models.mapping import PsfMap
from psf import InputError, Microscope, psf_model, synthesize
from psf.blur import blur_valid
from simulation.surfaces import held_out_object, image_of_dome

NO_LENS = psf_model("zernike1d")
RESULTS = Path(__file__).parents[1] / "results"


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


# --- profiles


def calibration():
    """Curve of 6 um per wave, usable to 12 um."""
    ends, optics = ((-3.0, 3.0), (-18.0, 18.0)), Microscope()
    return DepthCalibration("focus", "waves", optics, "", True, 0.0, *ends, (-12, 12), 2, 1, 1)


def map_of(values, content=1.0):
    """Map of focus (R, C) whose patches are 64 px apart."""
    values = torch.tensor(values)
    rows, columns = (torch.arange(n) * 64 + 63.5 for n in values.shape)
    lens, ones = psf_model("astigmatic"), torch.ones(values.shape)
    return PsfMap(lens, Microscope(), values[None], ones[None], ones * content, rows, columns)


def test_patches_without_a_usable_depth_are_refused_and_leave_the_errors():
    values = [[0.5, -0.5], [0.5, 9.0], [0.5, 2.5], [0.5, 0.5]]
    content = torch.tensor([[1.0, 1.0], [1.0, 1.0], [0.0, 1.0], [1.0, 1.0]])
    found = map_of(values, content)
    table = figure_depth.profile(Config(size_px=320), found, calibration(), degrees=0.0)
    assert table["patches"].tolist() == [4, 4]
    assert table["refused"].tolist() == [1, 2]  # no content; off the curve and out of range (15 um)
    assert table["patch_square_error_um2"].tolist() == [3 * 9.0, 2 * 9.0]
    assert table["spread_um"].tolist() == [0, 3]
    assert table["depth_um"].iloc[0] == pytest.approx(3)
    assert table["usable"].all()


def test_a_wrong_sign_counts_only_if_its_depth_passes_as_usable(monkeypatch):
    found = map_of([[-1.0], [-2.5], [1.0]])  # -6, -15 (out of range) and 6 um
    monkeypatch.setattr(figure_depth, "depth_of_columns", lambda *_: np.array([6.0]))
    table = figure_depth.profile(Config(size_px=320), found, calibration(), degrees=5.0)
    assert table["wrong_signs"].tolist() == [1]
    assert table["patch_square_error_um2"].tolist() == [144]


# --- scores


def profile_table(depth_um, truth_um, **columns):
    count = len(truth_um)
    given = {"model": "astigmatic", "photons": 100.0, "degrees": 3.0, "texture": "gravel"}
    given |= {"z_um": truth_um, "truth_um": truth_um, "depth_um": depth_um, "patches": 12}
    given |= {"spread_um": 1.0, "refused": 2, "patch_square_error_um2": 40.0, "wrong_signs": 0}
    return pd.DataFrame({**given, "usable": True, **columns}, index=range(count))


def test_summary_scores_the_usable_part_alone():
    truth = np.array([-6.0, 0.0, 6.0, 30.0])
    table = profile_table(truth + np.array([1, -1, 1, 50]), truth, usable=[True, True, True, False])
    table["wrong_signs"] = [1, 5, 0, 10]
    table["refused"] = [2, 2, 2, 9]
    (row,) = summarise(table).itertuples()
    assert row.profile_rms_um == pytest.approx(1)
    assert row.patch_rms_um == pytest.approx(2)  # sqrt(40 / 10)
    assert (row.usable_from_um, row.usable_to_um, row.usable_span_um) == (-6, 6, 12)
    assert row.wrong_signs_share == pytest.approx(1 / 20)  # within a depth of field none counts
    assert row.refused_share_in_range == pytest.approx(6 / 36)
    assert row.refused_share_out_of_range == pytest.approx(0.75)


def test_without_patches_out_of_range_their_share_is_missing():
    row = summarise(profile_table(np.array([-4.0, 4.0]), np.array([-4.0, 4.0]))).iloc[0]
    assert np.isnan(row["refused_share_out_of_range"])


def test_without_the_lens_distances_of_2_to_20_um_are_scored():
    truth = np.array([0.05, 1.0, 3.0, 21.0, 30.0])
    depth = truth + np.array([9, 9, 0.5, 9, 9])
    usable = [False, True, True, True, False]
    table = profile_table(depth, truth, model="zernike1d", usable=usable)
    table["refused"] = [0, 0, 3, 0, 12]
    (row,) = summarise(table).itertuples()
    assert row.profile_rms_um == pytest.approx(0.5)
    assert row.refused_share_in_range == pytest.approx(0.25)
    assert row.refused_share_out_of_range == 1  # the column in focus is not out of range


def test_the_usable_range_ends_where_the_profiles_of_the_textures_are_off_by_2_um():
    truth = np.array([-15.0, -10, -5, 0, 5, 10])
    first = profile_table(truth + np.array([0, 3, 0, 0, 0, 0]), truth)
    second = profile_table(truth, truth, texture="coins")
    # rms of 3 and 0 um is 2.1 um
    assert usable_range_um(pd.concat([first, second])) == (-5, 10)
    assert usable_range_um(pd.concat([first.assign(depth_um=truth + 2), second])) == (-15, 10)
    second.loc[4, "depth_um"] = np.nan  # this texture has no depth here
    assert usable_range_um(pd.concat([first, second])) == (-5, 0)
    lost = usable_range_um(first.assign(depth_um=truth + 5))
    assert np.isnan(lost).all()


# --- the figure


@pytest.fixture(scope="module")
def drawn():
    """Figure of two lenses, two photon levels, two tilts and two textures, and its tables."""
    z = np.linspace(-24, 24, 17)
    tables = []
    for model in ("astigmatic", "zernike1d"):
        truth = z if model == "astigmatic" else np.abs(z)
        for photons, degrees, texture in product((1000.0, 100.0), (3.0, 6.0), ("gravel", "coins")):
            facts = {"model": model, "photons": photons, "degrees": degrees, "texture": texture}
            table = profile_table(truth + 0.3, truth, **facts, z_um=z, usable=np.abs(z) < 19)
            tables.append(table.assign(refused=np.where(np.abs(z) < 19, 0, 12)))
    table = pd.concat(tables)
    bound = pd.concat(
        pd.DataFrame({"model": m, "photons": p, "z_um": np.linspace(a, 25, 9), "sd_um": 0.1})
        for m, a in (("astigmatic", -25), ("zernike1d", 0))
        for p in (1000.0, 100.0)
    )
    return draw_depth_figure(table, summarise(table), bound), table


def panels(figure):
    """Axes of the rows of profiles, refused patches and errors, and the two of the last row."""
    axes = figure.axes
    return axes[0:12:3], axes[1:12:3], axes[2:12:3], axes[12:]


def test_the_bound_is_drawn_within_each_panel_of_errors(drawn):
    for axes in panels(drawn[0])[2]:
        (bound,) = (line for line in axes.lines if line.get_linestyle() == "--")
        low, high = axes.get_ylim()
        assert ((bound.get_ydata() > low) & (bound.get_ydata() < high)).all()
        assert bound.get_xdata().min() < -20  # on both sides of focus
        assert bound.get_xdata().max() > 20
        assert any("Cramér-Rao" in text.get_text() for text in axes.texts)


def test_each_lens_and_photon_level_has_one_colour_and_textures_are_grey(drawn):
    figure, table = drawn
    colours = list(condition_colours(table).values())
    assert len(set(colours)) == 4
    *rows, (textures, precision) = panels(figure)
    for row in rows:
        for axes, colour in zip(row, colours, strict=True):
            found = {to_hex(line.get_color()) for line in axes.lines}
            assert found <= {colour, "#000000"}
            assert colour in found
    assert {to_hex(line.get_color()) for line in precision.lines} == {*colours, "#000000"}
    for line in textures.lines:
        red, green, blue = to_rgb(line.get_color())
        assert red == green == blue


def test_panels_of_a_row_share_their_axes(drawn):
    for row in panels(drawn[0])[:3]:
        assert len({(axes.get_xlim(), axes.get_ylim()) for axes in row}) == 1


def test_the_share_of_refused_patches_is_drawn_against_depth(drawn):
    for axes in panels(drawn[0])[1]:
        line = axes.lines[0]
        far = np.abs(line.get_xdata()) > 19
        assert (line.get_ydata()[far] == 100).all()
        assert (line.get_ydata()[~far] == 0).all()


def test_the_error_on_the_dome_counts_patches_with_a_depth(tmp_path, monkeypatch):
    truth = np.linspace(-9, 9, 16).reshape(4, 4)
    depth = truth + 0.5
    depth[0, 0] = np.nan
    dome = Dome("gravel", 1000.0, np.random.default_rng(0).random((64, 64)), truth, depth, 0.3, 5)
    monkeypatch.setattr(figure_depth, "measure_dome", lambda config: dome)
    figure_depth.write_dome(Config(out=tmp_path))
    assert pd.read_csv(tmp_path / "depth_dome.csv").to_dict("records") == [
        {"texture": "gravel", "photons": 1000, "rms_um": 0.5}
    ]
    assert (tmp_path / "figure_dome.png").stat().st_size > 10_000


def test_drawing_needs_a_table_of_this_version(tmp_path):
    with pytest.raises(InputError, match=r"depth\.csv; run without --draw-only"):
        figure_depth.main(Config(out=tmp_path, draw_only=True))
    table = profile_table(np.zeros(2), np.zeros(2)).drop(columns="refused")
    table.to_csv(tmp_path / "depth.csv", index=False)
    with pytest.raises(InputError, match=r"no column 'refused'.*Run without --draw-only"):
        figure_depth.main(Config(out=tmp_path, draw_only=True))


def test_drawing_changes_no_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(figure_depth, "save_figure", lambda path, figure: None)
    (tmp_path / "depth.csv").write_bytes((RESULTS / "depth.csv").read_bytes())
    figure_depth.main(Config(out=tmp_path, draw_only=True))
    assert [path.name for path in tmp_path.iterdir()] == ["depth.csv"]
    assert "drew" in capsys.readouterr().out
