"""Overviews show what they were given: masked where nothing is known, to scale, with errors."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import common.overviews
from common.overviews import busiest, draw_map, draw_restoration
from models.mapping import PsfMap
from psf import Microscope
from psf.model import psf_model

ROWS, COLUMNS = torch.arange(3) * 32.0 + 63.5, torch.arange(4) * 32.0 + 63.5
CONTENT = torch.ones(3, 4)
CONTENT[0, 0] = 0.4
FIELD = (192, 224)  # pixels of the image


@pytest.fixture
def drawn(monkeypatch):
    """Figures that would have been written."""
    figures = []
    monkeypatch.setattr(common.overviews, "save_figure", lambda _, figure: figures.append(figure))
    return figures


def a_map(model="zernike1d"):
    values = torch.arange(12.0).reshape(1, 3, 4) / 10
    deviations = torch.full_like(values, 0.1)
    optics = Microscope(pixel_size_um=0.25)
    return PsfMap(psf_model(model), optics, values, deviations, CONTENT, ROWS, COLUMNS)


def axes_of(figure, title):
    (axes,) = (a for a in figure.axes if a.get_title().startswith(title))
    return axes


def panel(figure, title):
    """Values shown under a title, masked where grey."""
    return axes_of(figure, title).images[0].get_array()


def legend(figure):
    return [text.get_text() for one in figure.legends for text in one.get_texts()]


def test_values_are_grey_without_content(drawn, tmp_path):
    draw_map(tmp_path / "x.png", torch.rand(FIELD), a_map(), "title")
    for title, expected in (("focus", np.arange(12).reshape(3, 4) / 10), ("standard dev", 0.1)):
        shown = panel(drawn[0], title)
        assert shown.mask.tolist() == (CONTENT < 0.5).tolist()
        assert np.abs(shown - expected).max() < 1e-6
    assert panel(drawn[0], "content")[0, 0] == pytest.approx(0.4)


def test_truth_is_shown_with_the_rms_error_where_there_is_content(drawn, tmp_path):
    psf_map = a_map()
    truth = psf_map.values[0] + 0.3
    truth[0, 0] = 9  # without content
    draw_map(tmp_path / "x.png", torch.rand(FIELD), psf_map, "title", truth)
    assert panel(drawn[0], "estimated focus: rms error 0.30 waves")[2, 3] == pytest.approx(1.1)
    assert panel(drawn[0], "true focus")[2, 3] == pytest.approx(1.4)


def test_depth_out_of_range_is_striped_and_not_zero(drawn, tmp_path):
    depth = np.full((3, 4), 5.0)
    depth[2, 1] = np.nan
    draw_map(tmp_path / "x.png", torch.rand(FIELD), a_map(), "title", None, (depth, "depth (um)"))
    shown = panel(drawn[0], "depth (µm)")
    assert np.argwhere(shown.mask).tolist() == [[0, 0], [2, 1]]
    assert shown.min() == shown.max() == 5
    stripes = ~axes_of(drawn[0], "depth").images[1].get_array().mask
    cell = stripes.shape[0] // 3
    in_cells = stripes.reshape(3, cell, 4, cell).mean((1, 3))
    assert np.argwhere(in_cells).tolist() == [[2, 1]]
    assert 0.4 < in_cells[2, 1] < 0.6
    assert [text.split(":")[0] for text in legend(drawn[0])] == ["no content", "outlier"]


def test_outliers_are_striped_and_do_not_set_the_colours(drawn, tmp_path):
    psf_map = a_map()  # 0 to 1.1 waves
    psf_map.values[0, 2, 3] = 40  # trained to 4
    psf_map.standard_deviations[0, 1, 1] = 1.2  # as wide as 0 to 4 waves: 4 / sqrt(12) = 1.15
    psf_map.standard_deviations[0, 1, 2] = 1.1
    draw_map(tmp_path / "x.png", torch.rand(FIELD), psf_map, "title")
    focus = axes_of(drawn[0], "focus").images[0]
    assert np.argwhere(focus.get_array().mask).tolist() == [[0, 0], [1, 1], [2, 3]]
    assert focus.get_clim()[1] < 1.1
    deviations = axes_of(drawn[0], "standard deviation").images[0]
    assert deviations.get_clim() == pytest.approx((0, 1.1), abs=0.1)


@pytest.mark.parametrize(
    ("model", "optics", "noise", "span"),
    [
        ("zernike1d", Microscope(), 0.01, 0.5),
        ("gaussian1d", Microscope(), 0.1, 2.0),
        ("gibson_lanni", Microscope(na=0.8, pixel_size_um=0.15), 0.01, 1.33 * 0.5 / 0.8**2),
    ],
)
def test_a_flat_object_looks_flat(drawn, tmp_path, model, optics, noise, span):
    values = 2 + noise * torch.rand(1, 3, 4, generator=torch.Generator().manual_seed(0))
    deviations = torch.full_like(values, noise)
    psf_map = PsfMap(psf_model(model), optics, values, deviations, CONTENT, ROWS, COLUMNS)
    draw_map(tmp_path / "x.png", torch.rand(FIELD), psf_map, "title")
    low, high = axes_of(drawn[0], psf_map.names[0]).images[0].get_clim()
    assert high - low == pytest.approx(span)
    assert (low + high) / 2 == pytest.approx(2, abs=noise)
    assert axes_of(drawn[0], "standard deviation").images[0].get_clim()[0] == 0


def test_colours_do_not_begin_below_the_range(drawn, tmp_path):
    psf_map = a_map()
    psf_map.values[:] = 0.1
    draw_map(tmp_path / "x.png", torch.rand(FIELD), psf_map, "title")
    assert axes_of(drawn[0], "focus").images[0].get_clim() == pytest.approx((0, 0.5))


def test_maps_without_content_are_grey_and_have_no_psfs(drawn, tmp_path):
    psf_map = replace(a_map(), content=torch.zeros(3, 4))
    draw_map(tmp_path / "x.png", torch.rand(FIELD), psf_map, "title")
    assert panel(drawn[0], "focus").mask.all()
    assert len(axes_of(drawn[0], "no PSFs").images) == 1  # the field alone
    assert legend(drawn[0]) == ["no content"]


def test_scale_bars_and_the_mapped_region_are_in_proportion(drawn, tmp_path):
    # the image has half the pixels of the camera along each axis: 0.5 um, 224 px are 112 um
    draw_map(tmp_path / "x.png", torch.rand(FIELD), a_map(), "title", shrunk=2.0)
    field, focus = axes_of(drawn[0], "image"), axes_of(drawn[0], "focus")
    assert field.texts[0].get_text() == "20 µm"
    (bar, _) = field.lines
    assert np.ptp(bar.get_xdata()) == pytest.approx(20 / 112)
    assert field.patches[0].get_xy() == (31.75, 31.75)
    assert (field.patches[0].get_width(), field.patches[0].get_height()) == (48, 32)
    # patches lie 32 camera pixels of 0.25 um apart, so 4 columns are 32 um
    assert focus.texts[0].get_text() == "5 µm"
    assert np.ptp(focus.lines[0].get_xdata()) == pytest.approx(5 / 32)


def test_the_busiest_squares_hold_the_largest_differences():
    difference = np.zeros((100, 120))
    difference[45:50, 85:90] = -3
    difference[5, 5] = 2
    difference[70, 30] = 1
    assert busiest(difference, 20, 2) == [(0, 0), (40, 80)]


def test_pixels_that_were_left_out_are_painted(drawn, tmp_path):
    image, left_out = np.random.default_rng(0).random(FIELD), np.zeros(FIELD, bool)
    left_out[:20] = True
    image[:20] = np.nan
    draw_map(tmp_path / "x.png", torch.tensor(image), a_map(), "title", left_out=left_out)
    draw_restoration(tmp_path / "y.png", image, 2 * image, 0.25, "title", left_out=left_out)
    for figure, title in zip(drawn, ("image", "input"), strict=True):
        axes = next(a for a in figure.axes if a.get_title().startswith(title))
        assert "orange" in axes.get_title()
        assert (~axes.images[1].get_array().mask).tolist() == left_out.tolist()
    assert drawn[1].axes[0].images[0].get_clim()[1] <= 1
