"""Depth: a calibration or the optics turn labels into um, with their sign only where it shows."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from models.depth import DepthCalibration, depth_from_optics, depth_of_map, is_signed
from models.mapping import PsfMap
from psf import InputError, Microscope, synthesize
from psf.gibson_lanni import Layers
from psf.model import psf_model
from psf.zernike import noll_to_nm

MICROSCOPE = Microscope()
UM_PER_WAVE = MICROSCOPE.um_per_wave  # 6.57

SIGNED = DepthCalibration(
    parameter="focus",
    unit="waves",
    microscope=MICROSCOPE,
    checkpoint="first",
    signed=True,
    focus_z_um=1.7,
    values=(-2.0, 0.0, 1.0, 2.0),
    z_um=(-14.0, 0.0, 7.0, 14.0),  # 7 um per wave
    usable_um=(-10.0, 10.0),
    limit_um=2.0,
    rms_um=0.5,
    patch_rms_um=1.0,
)
DISTANCE = replace(SIGNED, signed=False, values=(0.1, 1.1, 2.1), z_um=(0.0, 7.0, 14.0))


# --- calibrations


def test_values_in_range_follow_the_curve():
    assert SIGNED.depth_um([-1.5, 0.3, 2.0]) == pytest.approx([-10.5, 2.1, 14])
    assert SIGNED.depth_um(np.zeros((3, 4))).shape == (3, 4)


def test_depth_goes_on_for_five_percent_and_no_farther():
    # 5 % of a range of 4 waves is 0.2 waves
    assert SIGNED.depth_um([2.19, -2.19]) == pytest.approx([15.33, -15.33])
    assert np.isnan(SIGNED.depth_um([2.21, -2.21, np.nan])).all()


def test_distances_are_never_negative():
    assert DISTANCE.depth_um([0.02, 0.6]) == pytest.approx([0, 3.5])


def test_deviations_go_through_the_slope():
    assert SIGNED.deviation_um([-1.0, 0.5], 0.1) == pytest.approx([0.7, 0.7])
    assert SIGNED.deviation_um([1.99], 0.1) == pytest.approx([0.7])  # on both sides of the end
    assert np.isnan(SIGNED.deviation_um(9.0, 0.1))
    falling = replace(SIGNED, z_um=(14.0, 0.0, -7.0, -14.0))
    assert falling.deviation_um([0.5], 0.1) == pytest.approx([0.7])


def test_usable_depths():
    assert SIGNED.is_usable(np.array([-11.0, 9.0, np.nan])).tolist() == [False, True, False]


# --- files


def test_calibrations_come_back_from_json(tmp_path):
    SIGNED.to_json(tmp_path / "depth.json", note="for people")
    assert DepthCalibration.from_json(tmp_path / "depth.json") == SIGNED
    assert json.loads((tmp_path / "depth.json").read_text())["note"] == "for people"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "checkpoint"}, "is not a depth calibration"),
        ({"values": [0, 2, 1]}, "not monotone"),
        ({"values": [0, 1]}, "not monotone"),
        ({"z_um": [0, "x"]}, "damaged"),
        ({"usable_um": 3}, "damaged"),
        ({"microscope": {"na": 0.4, "colour": 3}}, "damaged"),
        ({"rms_um": None}, "damaged"),
    ],
)
def test_foreign_files_are_refused(tmp_path, change, message):
    path = tmp_path / "depth.json"
    SIGNED.to_json(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=message):
        DepthCalibration.from_json(path)


def test_missing_and_broken_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="is missing"):
        DepthCalibration.from_json(tmp_path / "none.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        DepthCalibration.from_json(tmp_path / "broken.json")


def test_other_optics_and_parameters_are_refused():
    SIGNED.check_matches(replace(MICROSCOPE, na=0.453), "focus")  # within 1 %
    SIGNED.check_matches(MICROSCOPE, "focus", "first")
    with pytest.raises(InputError, match=r"na 0\.45, here 0\.44\. Make one"):
        SIGNED.check_matches(replace(MICROSCOPE, na=0.44), "focus")
    with pytest.raises(InputError, match="parameter focus, here z_um"):
        SIGNED.check_matches(MICROSCOPE, "z_um")
    with pytest.raises(InputError, match="checkpoint first, here second"):
        SIGNED.check_matches(MICROSCOPE, "focus", "second")


# --- by the optics


def test_depth_by_the_optics():
    # NA 0.45 in water at 500 nm: 6.57 um per wave
    depth = depth_from_optics([0.0, 1.0, -2.0], UM_PER_WAVE, signed=True)
    assert depth == pytest.approx([0, 6.568, -13.136], abs=1e-3)
    assert depth_from_optics([-0.1, 1.0], UM_PER_WAVE, signed=False)[0] == 0


def one_row(model, *labels):
    """Map of one row of patches with these labels; each standard deviation is 0.1."""
    values = torch.tensor(labels).T[:, None]  # (P, 1, C)
    places = torch.arange(float(len(labels)))
    content = torch.ones(1, len(labels))
    deviations = torch.full_like(values, 0.1)
    return PsfMap(model, MICROSCOPE, values, deviations, content, torch.zeros(1), places)


def zernike_model(ranges, *noll):
    return psf_model("zernike", ranges, modes=tuple(noll_to_nm(j) for j in noll))


@pytest.mark.parametrize(
    ("model", "labels", "depth_um", "deviation_um", "name"),
    [
        # NA 0.45 in water at 500 nm: 6.568 um per wave of Seidel focus
        (psf_model("zernike1d"), [[1.0], [-0.1]], [6.568, 0], 0.6568, "distance from focus (um)"),
        (psf_model("zernike2d"), [[2.0, 9, 9]], [13.136], 0.6568, "distance from focus (um)"),
        (psf_model("astigmatic"), [[1.0], [-2.0]], [6.568, -13.136], 0.6568, "depth (um)"),
        (psf_model("gibson_lanni"), [[12.0], [-1.0]], [12, 0], 0.1, "distance from focus (um)"),
        (
            psf_model("gibson_lanni", {"z_um": (-9, 9)}, depth_um=20, layers=Layers(n_immersion=1)),
            [[-3.0]],
            [-3],
            0.1,
            "depth (um)",
        ),
        # 1 wave rms of Noll 4 is 2 sqrt 3 = 3.4641 waves of Seidel focus, 22.752 um
        (
            zernike_model({"noll4": (0, 1)}, 6, 4),
            [[9.0, 0.5]],
            [11.376],
            2.2752,
            "distance from focus (um)",
        ),
        # both signs of a range without a sign are the same distance
        (
            zernike_model(None, 4),
            [[0.1], [-0.1]],
            [2.2752, 2.2752],
            2.2752,
            "distance from focus (um)",
        ),
    ],
)
def test_depth_of_maps_by_the_optics(model, labels, depth_um, deviation_um, name):
    found = depth_of_map(one_row(model, *labels))
    assert found.values[0] == pytest.approx(depth_um, rel=1e-4)
    assert found.standard_deviations == pytest.approx(deviation_um, rel=1e-4)
    assert found.name == name


@pytest.mark.parametrize(
    ("model", "label"),
    [
        (psf_model("gaussian1d"), [3.0]),
        (psf_model("gaussian2d"), [3.0, 4.0]),
        (zernike_model(None, 5, 6), [0.1, 0.1]),
    ],
)
def test_labels_without_a_length_along_z_give_no_depth(model, label):
    assert depth_of_map(one_row(model, label)) is None


def test_a_calibration_gives_the_depth_of_its_own_parameter():
    found = depth_of_map(one_row(psf_model("astigmatic"), [1.0], [-1.5], [2.9]), SIGNED)
    assert found.values[0, :2] == pytest.approx([7, -10.5])
    assert np.isnan(found.values[0, 2])
    assert found.standard_deviations[0, :2] == pytest.approx(0.7)
    assert found.name == "depth (um)"
    widths = replace(DISTANCE, parameter="fwhm_y", unit="px")
    found = depth_of_map(one_row(psf_model("gaussian2d"), [9.0, 1.1]), widths)
    assert found.values == pytest.approx(np.array([[7.0]]))
    assert found.name == "distance from focus (um)"
    with pytest.raises(InputError, match=r"made for focus, but the map has fwhm;"):
        depth_of_map(one_row(psf_model("gaussian1d"), [3.0]), SIGNED)


# --- the sign


MISMATCH = Layers(n_immersion=1.515, n_sample=1.33)


@pytest.mark.parametrize(
    ("model", "parameter", "signed"),
    [
        (psf_model("astigmatic"), "focus", True),
        (psf_model("astigmatic", known_ast_waves=0.0), "focus", False),
        (psf_model("astigmatic", {"focus": (0.0, 3.0)}), "focus", False),
        (psf_model("zernike1d"), "focus", False),
        (psf_model("zernike1d", {"focus": (-3.0, 3.0)}), "focus", False),
        (psf_model("zernike2d"), "focus", False),
        (psf_model("zernike2d"), "ast_cos2", True),  # relative to a focus of one sign
        (psf_model("zernike2d", {"focus": (-2.0, 2.0)}), "focus", False),
        (psf_model("zernike2d", {"focus": (-2.0, 2.0)}), "ast_cos2", False),
        (psf_model("gaussian1d"), "fwhm", False),
        (psf_model("gibson_lanni"), "z_um", False),
        (psf_model("gibson_lanni", {"z_um": (-9, 9)}), "z_um", False),
        (psf_model("gibson_lanni", {"z_um": (-9, 9)}, layers=MISMATCH), "z_um", False),
        (psf_model("gibson_lanni", {"z_um": (-9, 9)}, layers=MISMATCH, depth_um=20), "z_um", True),
        (
            psf_model("gibson_lanni", {"z_um": (-9, 9)}, layers=Layers(coverslip_um_design=150)),
            "z_um",
            True,
        ),
        (zernike_model(None, 4), "noll4", False),
        (zernike_model(None, 4, 6, 8, 11), "noll4", False),
        (zernike_model(None, 4, 6, 8, 11), "noll8", True),  # coma
        (zernike_model({"noll11": (0.1, 0.4)}, 4, 11), "noll4", True),
        # turned by 90 degrees in training, astigmatism takes both signs
        (zernike_model({"noll6": (0.1, 0.4)}, 4, 6), "noll4", False),
        (zernike_model({"noll4": (0.0, 0.4)}, 4, 6), "noll6", True),
    ],
)
def test_which_labels_are_signed(model, parameter, signed):
    assert is_signed(model, parameter) == signed


def difference(model, label, twin):
    """Largest difference of two PSFs, part of the peak."""
    labels = torch.tensor([label, twin], dtype=torch.float64)
    one, other = synthesize(model, labels, MICROSCOPE, 127)
    return float((one - other).abs().max() / one.max())


@pytest.mark.parametrize(
    ("model", "label", "twin"),
    [
        (psf_model("zernike1d", {"focus": (-3.0, 3.0)}), [1.0], [-1.0]),
        (psf_model("gibson_lanni", {"z_um": (-9, 9)}), [6.0], [-6.0]),
        (zernike_model(None, 4, 6, 8, 11), [0.2, 0.1, 0.15, -0.1], [-0.2, -0.1, 0.15, 0.1]),
        (psf_model("zernike2d", {"focus": (-3.0, 3.0)}), [0.5, 0.6, 0.8], [-1.5, -0.6, -0.8]),
    ],
)
def test_unsigned_labels_have_a_twin_of_the_same_psf(model, label, twin):
    assert not is_signed(model, model.label_names[0])
    assert difference(model, label, twin) < 1e-9


@pytest.mark.parametrize(
    ("model", "label", "twin"),
    [
        (psf_model("astigmatic"), [1.0], [-1.0]),
        (
            psf_model("gibson_lanni", {"z_um": (-9, 9)}, layers=MISMATCH, depth_um=100),
            [6.0],
            [-6.0],
        ),
        (zernike_model({"noll11": (0.1, 0.4)}, 4, 11), [0.2, 0.2], [-0.2, 0.2]),
        (zernike_model(None, 8, 4), [0.2, 0.1], [-0.2, 0.1]),
    ],
)
def test_signed_labels_change_the_psf_with_their_sign(model, label, twin):
    assert is_signed(model, model.label_names[0])
    assert difference(model, label, twin) > 0.2
