"""figure_depth.py on small planes: true depths, finished tables and pictures."""

import numpy as np
import pandas as pd
import pytest
import torch

import figure_depth
from figure_depth import Config, summarise, texture
from psf import InputError


def test_textures_fill_the_field_and_are_held_out():
    image = texture("gravel", 700)
    assert image.shape == (700, 700)
    assert torch.equal(image[:, 512], image[:, 511])  # mirrored at its border
    assert torch.equal(texture("membranes", 90), texture("membranes", 90))
    with pytest.raises(InputError, match="choose of camera"):
        texture("brick", 700)  # trained on


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
