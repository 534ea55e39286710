"""calibrate_depth.py on tiny stacks whose pixels say the focus: files and refusals."""

import json

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch

import calibrate_depth
from calibrate_depth import Config, main
from common import stack_pictures
from common.stack_pictures import draw_refused_calibration
from models.depth import DepthCalibration
from models.estimator import Prediction
from psf import InputError
from psf.model import psf_model

UM_PER_WAVE = 2 * 1.33 * 0.5 / 0.45**2
OPTICS = {"na": 0.45, "wavelength_um": 0.5, "pixel_size_um": 0.27, "refractive_index": 1.33}
Z_UM = np.arange(15) * 1.5
FOCUS_UM = 9.4


class PixelReader:
    """Stands in for an estimator: the first pixel of a patch is its focus, 99 means no content."""

    patch_size = 16
    device = torch.device("cpu")
    name, context = "first", None

    def __init__(self, name="zernike1d", outside=False):
        self.psf_model = psf_model(name)
        self.config = {
            "label_names": self.psf_model.label_names,
            "label_unit": self.psf_model.unit,
            "label_ranges": self.psf_model.label_ranges,
            "optics_limits": {"cutoff_cycles_per_pixel": [0.4, 0.55]},
        }
        if outside:
            self.config["optics_limits"]["na"] = [0.6, 0.8]

    def predict(self, patches, microscope, batch_size):
        values = patches[:, 0, :1].repeat(1, len(self.psf_model.label_names))
        deviations = torch.full_like(values, 0.1)
        content = (values[:, 0] < 90).float()
        names, unit = self.psf_model.label_names, self.psf_model.unit
        return Prediction(names, unit, values, deviations, 2 * deviations, content)


@pytest.fixture
def reader(monkeypatch):
    """Stub in place of the network; its attributes may be changed."""
    stub = PixelReader()
    monkeypatch.setattr(calibrate_depth, "load_estimator", lambda *_: stub)
    return stub


def write_stack(path, curve=lambda z: np.abs(z - FOCUS_UM) / UM_PER_WAVE, z_um=Z_UM, **metadata):
    rng = np.random.default_rng(0)
    pixels = curve(z_um)[:, None, None] + rng.normal(0, 0.02, (len(z_um), 40, 40))
    axes = {"axes": "ZYX", "unit": "um", **metadata}
    scale = (1 / 0.27, 1 / 0.27)
    tifffile.imwrite(path, pixels.astype(np.float32), imagej=True, resolution=scale, metadata=axes)
    return path


@pytest.fixture
def config(tmp_path, reader):
    """Settings that work; `settings` below changes them."""
    stack = write_stack(tmp_path / "stack.tif")

    def settings(**changes):
        plain = {"checkpoint": tmp_path / "first", "out": tmp_path / "depth", "stride": 8}
        plain |= {"stack": stack, "z_step_um": 1.5, "device": "cpu", **OPTICS}
        return Config(**plain | changes)

    return settings


def test_writes_calibration_table_and_picture(config, tmp_path, capsys):
    main(config())
    found = DepthCalibration.from_json(tmp_path / "depth" / "depth_calibration.json")
    assert found.focus_z_um == pytest.approx(FOCUS_UM, abs=0.1)
    assert not found.signed
    assert (found.parameter, found.unit, found.checkpoint) == ("focus", "waves", "first")
    assert found.depth_um([0.5, 1.0]) == pytest.approx([3.28, 6.57], abs=0.15)
    table = pd.read_csv(tmp_path / "depth" / "calibration.csv")
    assert table["z_um"].tolist() == pytest.approx(Z_UM)
    expected = np.abs(Z_UM - FOCUS_UM) / UM_PER_WAVE
    assert table["mean_waves"].to_numpy() == pytest.approx(expected, abs=0.03)
    assert (table["patches"] == 16).all()  # (40 - 16) // 8 + 1 = 4 each way
    assert table["error_left_out_um"].abs().max() < 0.8
    assert (tmp_path / "depth" / "calibration.png").stat().st_size > 10_000
    said = capsys.readouterr().out
    assert "--depth-calibration" in said and "look at" in said and "focal plane at z = 9.4" in said
    content = json.loads((tmp_path / "depth" / "depth_calibration.json").read_text())
    assert content["settings"]["z_step_um"] == 1.5 and "versions" in content["run"]


def test_pixel_size_is_read_from_the_file(config, tmp_path, capsys):
    main(config(pixel_size_um=None))
    found = DepthCalibration.from_json(tmp_path / "depth" / "depth_calibration.json")
    assert found.microscope.pixel_size_um == pytest.approx(0.27, rel=1e-4)
    assert "pixel_size_um is 0.27, from the file" in capsys.readouterr().out


def test_signed_focus_and_a_stage_that_runs_the_other_way(config, reader, tmp_path, capsys):
    reader.__init__("astigmatic")
    stack = write_stack(tmp_path / "signed.tif", lambda z: -(z - FOCUS_UM) / UM_PER_WAVE)
    main(config(stack=stack))
    assert "falls with z" in capsys.readouterr().out
    main(config(stack=stack, z_step_um=-1.5))
    assert "falls with z" not in capsys.readouterr().out
    found = DepthCalibration.from_json(tmp_path / "depth" / "depth_calibration.json")
    assert found.signed
    assert found.focus_z_um == pytest.approx(-FOCUS_UM, abs=0.1)
    assert found.depth_um([-1.0, 0.5]) == pytest.approx([-6.57, 3.28], abs=0.15)


def test_positions_from_a_table_in_any_order(config, tmp_path):
    table = pd.DataFrame({"plane": np.arange(15), "z_um": Z_UM + 100})
    table.sample(frac=1, random_state=0).to_csv(tmp_path / "z.csv", index=False)
    main(config(z_step_um=None, z_csv=tmp_path / "z.csv"))
    found = DepthCalibration.from_json(tmp_path / "depth" / "depth_calibration.json")
    assert found.focus_z_um == pytest.approx(FOCUS_UM + 100, abs=0.1)


def test_gaussian_widths_are_calibrated_unsigned(config, reader, tmp_path):
    reader.__init__("gaussian1d", outside=True)  # a width in px asks for no optics
    stack = write_stack(tmp_path / "fwhm.tif", lambda z: np.hypot(2.0, (z - FOCUS_UM) / 1.2))
    main(config(stack=stack))
    found = DepthCalibration.from_json(tmp_path / "depth" / "depth_calibration.json")
    assert (found.parameter, found.unit, found.signed) == ("fwhm", "px", False)
    assert found.focus_z_um == pytest.approx(FOCUS_UM, abs=0.1)
    assert found.depth_um(np.hypot(2.0, 5 / 1.2)) == pytest.approx(5, abs=0.2)


def test_gaussian_widths_need_the_optics_of_the_depth(config, reader):
    reader.__init__("gaussian1d")
    with pytest.raises(InputError, match="holds for one microscope; give --na, --wavelength-um"):
        main(config(na=None, wavelength_um=None))


def test_patches_without_content_do_not_count(config, tmp_path):
    path = write_stack(tmp_path / "part.tif")
    pixels = tifffile.imread(path)
    pixels[3], pixels[:, :8] = 99, 99
    pixels[3, 0, 1] = 98  # a constant plane is refused
    tifffile.imwrite(path, pixels, imagej=True, metadata={"axes": "ZYX"})
    main(config(stack=path))
    table = pd.read_csv(tmp_path / "depth" / "calibration.csv")
    assert table["patches"].tolist() == [12] * 3 + [0] + [12] * 11
    assert table["error_left_out_um"].isna().tolist() == [i == 3 for i in range(15)]


def test_another_parameter(config, reader, tmp_path):
    reader.__init__("gaussian2d")
    stack = write_stack(tmp_path / "fwhm.tif", lambda z: np.hypot(2.0, (z - FOCUS_UM) / 1.2))
    main(config(stack=stack, parameter="fwhm_y"))
    found = DepthCalibration.from_json(tmp_path / "depth" / "depth_calibration.json")
    assert found.parameter == "fwhm_y"


# --- refusals


def test_stacks_that_are_none(config, tmp_path):
    one = tmp_path / "one.tif"
    tifffile.imwrite(one, np.random.default_rng(0).random((40, 40), np.float32))
    few = write_stack(tmp_path / "few.tif", z_um=Z_UM[:3])
    for stack, message in (
        (one, "has 1 plane in z; a calibration takes 5"),
        (few, "has 3 planes in z"),
        (tmp_path / "none.tif", "there is no image"),
    ):
        with pytest.raises(InputError, match=message):
            main(config(stack=stack))
    assert not (tmp_path / "depth").exists()


def test_planes_that_were_saved_as_time_points(config, tmp_path, capsys):
    movie = tmp_path / "movie.tif"
    tifffile.imwrite(movie, tifffile.imread(config().stack), imagej=True, metadata={"axes": "TYX"})
    main(config(stack=movie))
    printed = capsys.readouterr().out
    assert "15 time points are taken for the planes" in printed
    assert "--t" not in printed
    found = DepthCalibration.from_json(tmp_path / "depth" / "depth_calibration.json")
    assert found.focus_z_um == pytest.approx(FOCUS_UM, abs=0.3)


def test_finer_pixels_are_binned_and_give_the_same_curve(config, tmp_path, capsys):
    main(config())
    coarse = DepthCalibration.from_json(tmp_path / "depth" / "depth_calibration.json")
    pixels = tifffile.imread(config().stack).repeat(3, 1).repeat(3, 2)
    tifffile.imwrite(tmp_path / "fine.tif", pixels, imagej=True, metadata={"axes": "ZYX"})
    main(config(stack=tmp_path / "fine.tif", pixel_size_um=0.09, stride=24, out=tmp_path / "fine"))
    assert "binned 3 x 3" in capsys.readouterr().out
    fine = DepthCalibration.from_json(tmp_path / "fine" / "depth_calibration.json")
    assert fine.microscope.pixel_size_um == 0.09
    assert fine.z_um == pytest.approx(coarse.z_um, abs=1e-3)
    assert fine.values == pytest.approx(coarse.values, abs=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"z_step_um": None}, "give either --z-step-um or --z-csv"),
        ({"z_csv": "z.csv"}, "give either"),
        ({"z_step_um": 0.0}, "--z-step-um is 0"),
        ({"z_step_um": float("nan")}, "--z-step-um is nan"),
        ({"na": None}, "does not tell its optics; give --na"),
        ({"wavelength_um": None}, "give --wavelength-um"),
        ({"refractive_index": None}, "give --refractive-index"),
        ({"na": 1.5}, "not below the refractive index"),
        ({"parameter": "fwhm"}, "has no parameter 'fwhm'; it has focus"),
        ({"largest_deviation": 0.0}, "--largest-deviation is 0"),
        ({"largest_deviation": 0.02}, "no plane .* holds patches with content"),
        ({"limit_um": -1.0}, "--limit-um is -1"),
        ({"limit_um": 0.001}, "larger --limit-um"),
        ({"stride": 0}, "plane 0: --stride is 0"),
    ],
)
def test_settings_that_make_no_sense(config, tmp_path, changes, message):
    with pytest.raises(InputError, match=message) as caught:
        main(config(**changes))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "depth" / "depth_calibration.json").exists()


def test_a_step_that_contradicts_the_file_wins_with_a_note(config, tmp_path, capsys):
    main(config(stack=write_stack(tmp_path / "spaced.tif", spacing=1.0)))
    assert "--z-step-um 1.5 overrules 1 of the file (ImageJ spacing" in capsys.readouterr().out
    found = DepthCalibration.from_json(tmp_path / "depth" / "depth_calibration.json")
    assert found.focus_z_um == pytest.approx(FOCUS_UM, abs=0.1)


def test_the_file_is_asked_for_the_step_that_it_knows(config, tmp_path):
    stack = write_stack(tmp_path / "spaced.tif", spacing=1.5)
    with pytest.raises(InputError, match=r"the file says 1\.5 um"):
        main(config(stack=stack, z_step_um=None))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (list(enumerate(Z_UM[:-1])), "has 14 rows, the stack 15 planes"),
        (list(enumerate(np.repeat(Z_UM, 2)[:15])), "same z_um"),
        (list(enumerate(np.abs(Z_UM - 6.1))), "turns around at plane 4"),
        (list(enumerate(Z_UM, start=1)), "each plane 0 to 14"),
        (list(enumerate([*Z_UM[:-1], "high"])), "as a number"),
    ],
)
def test_tables_that_make_no_sense(config, tmp_path, rows, message):
    pd.DataFrame(rows, columns=["plane", "z_um"]).to_csv(tmp_path / "z.csv", index=False)
    with pytest.raises(InputError, match=message):
        main(config(z_step_um=None, z_csv=tmp_path / "z.csv"))


def test_files_that_are_no_tables(config, tmp_path):
    (tmp_path / "z.csv").write_text("depth\n3\n")
    with pytest.raises(InputError, match="give plane and z_um"):
        main(config(z_step_um=None, z_csv=tmp_path / "z.csv"))
    (tmp_path / "z.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(InputError, match="cannot be read as a table"):
        main(config(z_step_um=None, z_csv=tmp_path / "z.csv"))
    with pytest.raises(InputError, match="cannot be read as a table"):
        main(config(z_step_um=None, z_csv=tmp_path / "none.csv"))


def test_estimates_that_do_not_follow_z(config, tmp_path):
    noise = np.random.default_rng(0).uniform(0, 2, len(Z_UM))
    stack = write_stack(tmp_path / "noise.tif", lambda z: noise)
    with pytest.raises(InputError, match=r"focus does not follow z.*Check the order.*refused\.png"):
        main(config(stack=stack))
    assert [p.name for p in (tmp_path / "depth").iterdir()] == ["refused.png"]
    main(config())
    assert not (tmp_path / "depth" / "refused.png").exists()


def test_the_picture_of_a_refusal_shows_the_planes_and_the_reason(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(stack_pictures, "save_figure", lambda _, figure: figures.append(figure))
    table = pd.DataFrame({"z_um": [0.0, 1.0, 2.0], "mean_waves": [1, 3, 2], "spread_waves": 0.1})
    reason = "focus does not follow z"
    draw_refused_calibration(tmp_path / "x.png", table, "focus", "waves", "a$b.tif", reason)
    (axes,) = figures[0].axes
    points = axes.containers[0].lines[0].get_xydata()
    assert points.tolist() == [[0, 1], [1, 3], [2, 2]]
    assert axes.get_title() == "a\\$b.tif\nrefused: focus does not follow z"


@pytest.mark.parametrize("focus_um", [-3.6, Z_UM[-1] + 3.6])
@pytest.mark.parametrize("step_um", [1.5, -1.5])
def test_the_focal_plane_of_a_stack_on_one_side_comes_from_the_optics(
    config, tmp_path, capsys, focus_um, step_um
):
    stack = write_stack(tmp_path / "side.tif", lambda z: np.abs(z - focus_um) / UM_PER_WAVE)
    main(config(stack=stack, z_step_um=step_um))
    assert "by the optics the focal plane is 3.6 um outside" in capsys.readouterr().out
    found = DepthCalibration.from_json(tmp_path / "depth" / "depth_calibration.json")
    assert found.focus_z_um == pytest.approx(np.sign(step_um) * focus_um, abs=0.1)
    assert found.depth_um([1.0, 2.0]) == pytest.approx([UM_PER_WAVE, 2 * UM_PER_WAVE], abs=0.15)
    content = json.loads((tmp_path / "depth" / "depth_calibration.json").read_text())
    assert "one side of the focus" in content["warning"]


def test_a_stack_that_begins_in_focus_keeps_its_focal_plane(config, tmp_path, capsys):
    stack = write_stack(tmp_path / "end.tif", lambda z: z / UM_PER_WAVE)
    main(config(stack=stack))
    assert "is an end of the stack" in capsys.readouterr().out
    found = DepthCalibration.from_json(tmp_path / "depth" / "depth_calibration.json")
    assert found.focus_z_um == pytest.approx(0, abs=0.3)


def test_optics_that_the_network_was_not_trained_for(config, reader):
    reader.__init__(outside=True)
    with pytest.raises(InputError, match=r"na 0\.45, trained on .* add --allow-other-optics"):
        main(config())
    main(config(allow_other_optics=True))


def test_constant_planes_are_left_out(config, tmp_path, capsys):
    path = write_stack(tmp_path / "blank.tif")
    pixels = tifffile.imread(path)
    pixels[7], pixels[14] = 1, 0
    tifffile.imwrite(path, pixels, imagej=True, metadata={"axes": "ZYX"})
    main(config(stack=path))
    assert "all pixels are equal in plane 7, 14 (from 0)" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "depth" / "calibration.csv")
    assert table["patches"].tolist() == [16] * 7 + [0] + [16] * 6 + [0]
    found = DepthCalibration.from_json(tmp_path / "depth" / "depth_calibration.json")
    assert found.focus_z_um == pytest.approx(FOCUS_UM, abs=0.1)
    tifffile.imwrite(path, np.ones_like(pixels), imagej=True, metadata={"axes": "ZYX"})
    with pytest.raises(InputError, match=r"all planes of .* are constant"):
        main(config(stack=path))


def test_an_output_folder_that_is_a_file(config, tmp_path):
    (tmp_path / "depth").write_text("")
    with pytest.raises(InputError, match="is a file; give a folder"):
        main(config())
