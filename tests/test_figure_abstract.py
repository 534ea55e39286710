"""The graphical abstract blurs by depth, scores what it shows, and draws it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import figure_abstract
from figure_abstract import Config, Found, Scene, curved_depth_um, draw, row_of, simulate
from models.mapping import PsfMap
from psf import InputError, Microscope, psf_model

FOCUS = psf_model("zernike1d")
PLACES = torch.arange(12.0, 120, 16)
TRUE_UM = curved_depth_um(120, 0, 10)


def a_scene():
    truth = torch.rand(120, 120, generator=torch.Generator().manual_seed(0)) + 1
    return Scene(0.5 * truth, truth, TRUE_UM)


def estimates(scene, error_um=0.0):
    at = PLACES.long()
    depth_um = scene.depth_um[at[:, None], at] + error_um
    values = depth_um[None] / Microscope().um_per_wave
    content = torch.ones(7, 7)
    psf_map = PsfMap(FOCUS, Microscope(), values, 0 * values + 0.1, content, PLACES, PLACES)
    return Found(psf_map, depth_um.numpy(), 0.9 * scene.truth)


def test_the_surface_rises_along_x_and_is_bent_along_y():
    depth_um = curved_depth_um(101, 2, 12)
    assert float(depth_um.min()) == float(depth_um[50, 0]) == 2
    assert float(depth_um.max()) == float(depth_um[0, 100]) == float(depth_um[100, 100]) == 12
    assert (depth_um.diff(dim=1) > 0).all()


def test_the_recording_is_sharp_where_the_surface_is_in_focus():
    sharp = torch.rand(300, 300, generator=torch.Generator().manual_seed(0))
    scene = simulate(Config(photons=5000.0, depth_um=(0.0, 10.0)), sharp, FOCUS)
    assert scene.counts.shape == scene.truth.shape == scene.depth_um.shape == (174, 174)
    assert float(scene.counts.mean()) == pytest.approx(5000, rel=0.01)
    assert float(scene.truth.mean()) == pytest.approx(5000, rel=0.02)  # blur keeps the light
    contrast = [
        float(scene.counts[70:100, part].std() / scene.truth[70:100, part].std())
        for part in (slice(30), slice(-30, None))
    ]
    assert contrast[0] > 2 * contrast[1]


def test_the_row_holds_the_errors_of_what_is_shown():
    scene = a_scene()
    found = estimates(scene, error_um=0.7)
    found.psf_map.content[0, 0], found.depth_um[0, 0] = 0, 99
    row = row_of(Config(source="coins"), scene, found)
    assert row["image"] == "coins"
    assert row["depth_rms_error_um"] == pytest.approx(0.7, abs=1e-5)
    assert row["focus_rms_error_waves"] == pytest.approx(0.7 / Microscope().um_per_wave, abs=1e-5)
    # errors of a half and of a tenth of the truth
    assert row["snr_blurred_db"] == pytest.approx(20 * np.log10(2), abs=1e-3)
    assert row["snr_gain_db"] == pytest.approx(20 * np.log10(5), abs=1e-3)


def test_the_four_steps_are_drawn():
    scene = a_scene()
    found = estimates(scene)
    axes = draw(scene, found).axes
    image, psfs, depth, restored, before, after = axes[:6]
    assert (image.images[0].get_array() == scene.counts.numpy()).all()
    assert (restored.images[0].get_array() == found.restored.numpy()).all()
    assert len(psfs.images) > 9
    shown = depth.images[0].get_array()
    inside = slice(12, 109)
    assert np.abs(shown - TRUE_UM.numpy())[inside, inside].max() < 0.2
    top, left = (round(v + 0.5) for v in reversed(image.patches[0].get_xy()))
    for detail, whole in ((before, scene.counts), (after, found.restored)):
        assert (
            detail.images[0].get_array() == whole[top : top + 20, left : left + 20].numpy()
        ).all()
    clims = {axis.images[0].get_clim() for axis in (image, restored, before, after)}
    assert len(clims) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "moon"}, "--source is 'moon'"),
        ({"depth_um": (5.0, 5.0)}, "--depth-um is 5 5"),
        ({"stride": 0}, "--stride 0"),
        ({"photons": 0.0}, "--photons is 0"),
    ],
)
def test_wrong_settings_are_refused(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        figure_abstract.main(replace(Config(out=tmp_path), **changes))
