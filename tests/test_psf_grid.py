"""PSFs over the image of a map: the map's own, at reliable places, to scale, without overlap."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from common.psf_grid import draw_psfs, outliers, psf_grid
from models.mapping import PsfMap
from psf import Microscope, psf_model, synthesize

FOCUS = psf_model("zernike1d")


def a_map(shape, stride, values, model=FOCUS, content=None, deviation=0.1):
    """Map of an image of `shape` px by patches of 128 px, whose values are functions of (y, x)."""
    rows, columns = (torch.arange(0.0, length - 127, stride) + 63.5 for length in shape)
    y, x = torch.meshgrid(rows / shape[0], columns / shape[1], indexing="ij")
    found = torch.stack([value(y, x) + 0 * x for value in values])
    content = torch.ones_like(x) if content is None else content
    deviations = torch.full_like(found, deviation)
    return PsfMap(model, Microscope(), found, deviations, content, rows, columns)


def distances(grid):
    """Larger of the distances along y and x between all pairs of PSFs."""
    apart = (grid.places_px[:, None] - grid.places_px).abs().amax(2)
    return apart[~torch.eye(len(apart), dtype=bool)]


SHAPES = [((512, 512), 16), ((2000, 1500), 64), ((300, 900), 32), ((640, 640), 128)]


@pytest.mark.parametrize(("shape", "stride"), SHAPES)
@pytest.mark.parametrize("widest", [0.1, 2.0])
def test_psfs_fill_the_image_without_overlap(shape, stride, widest):
    grid = psf_grid(a_map(shape, stride, [lambda y, x: widest * x]), shape)
    along_y, along_x = (len(places.unique()) for places in grid.places_px.T)
    assert len(grid.psfs) == along_y * along_x
    assert 5 <= max(along_y, along_x) <= 8
    edge = grid.enlarged * grid.psfs.shape[1]
    assert edge <= distances(grid).min() < edge + grid.psfs.shape[1]  # no larger factor fits
    assert (grid.places_px >= edge / 2 - 1).all()
    assert (grid.places_px <= torch.tensor(shape) - edge / 2).all()


def test_each_psf_is_that_of_its_place_with_the_peak_one():
    grid = psf_grid(a_map((512, 512), 16, [lambda y, x: 2 * x]), (512, 512))
    labels = 2 * grid.places_px[:, 1:] / 512
    expected = synthesize(FOCUS, labels, Microscope(), 127)
    half = grid.psfs.shape[1] // 2
    inner = slice(63 - half, 64 + half)
    peaks = expected.amax((1, 2), keepdim=True)
    assert (grid.psfs - (expected / peaks)[:, inner, inner]).abs().max() < 1e-3
    assert grid.psfs.amax((1, 2)).allclose(torch.ones(()))


@pytest.mark.parametrize(("axis", "wide"), [(0, "y"), (1, "x")])
def test_gaussians_are_wide_along_their_axis(axis, wide):
    functions = [lambda y, x: 9 if wide == "x" else 2, lambda y, x: 9 if wide == "y" else 2]
    psf_map = a_map((512, 512), 64, functions, psf_model("gaussian2d"))
    psf = psf_grid(psf_map, (512, 512)).psfs[0]
    above = (psf > 0.5).sum(1 - axis).bool().sum()
    assert above == pytest.approx(9, abs=1)


def test_unreliable_patches_have_no_psf():
    content = (torch.rand(25, 25, generator=torch.Generator().manual_seed(0)) > 0.6).float()
    psf_map = a_map((512, 512), 16, [lambda y, x: 2 * x], content=content)
    psf_map.values[0, :12, :12] = 9.0
    psf_map.standard_deviations[0, 12:, 12:] = 3.0
    grid = psf_grid(psf_map, (512, 512))
    assert len(grid.psfs) >= 8
    rows, columns = ((grid.places_px - 63.5) / 16).round().long().T
    assert (content[rows, columns] == 1).all()
    assert not ((rows < 12) & (columns < 12)).any()
    assert not ((rows >= 12) & (columns >= 12)).any()
    assert distances(grid).min() >= grid.enlarged * grid.psfs.shape[1]


def test_values_a_little_out_of_range_are_noise():
    psf_map = a_map((300, 300), 64, [lambda y, x: 1.0])
    psf_map.values[0, 0] = torch.tensor([-0.15, -0.25, 4.25])  # trained from 0 to 4
    assert outliers(psf_map)[0].tolist() == [[False, True, True], [False] * 3, [False] * 3]


def test_a_single_patch_has_one_psf():
    grid = psf_grid(a_map((140, 150), 32, [lambda y, x: 1.0]), (140, 150))
    assert grid.places_px.tolist() == [[63.5, 63.5]]
    assert 70 < grid.enlarged * grid.psfs.shape[1] <= 140


def test_psfs_as_wide_as_the_image_are_fewer():
    grid = psf_grid(a_map((260, 260), 16, [lambda y, x: 4.0]), (260, 260))
    assert len(grid.psfs) == 4
    assert grid.enlarged == 1


def test_psfs_are_drawn_to_scale_on_a_shrunk_image():
    axes = Figure().subplots()
    psf_map = a_map((1200, 1200), 64, [lambda y, x: 1.0])
    grid = draw_psfs(axes, torch.rand(400, 400), psf_map, shrunk=3.0)
    _, first, *_ = axes.images
    left, right, bottom, top = first.get_extent()
    assert right - left == bottom - top == pytest.approx(grid.enlarged * grid.psfs.shape[1] / 3)
    centre = np.array([(top + bottom) / 2, (left + right) / 2])
    assert centre == pytest.approx(grid.places_px[0].numpy() / 3, abs=0.5)
    assert axes.get_xlim() == (-0.5, 399.5)
    bars = {
        text.get_text(): np.ptp(axes.lines[2 * i].get_xdata()) for i, text in enumerate(axes.texts)
    }
    field, enlarged = bars.items()
    um = 400 * 3 * 0.278
    assert field[1] == pytest.approx(float(field[0].split()[0]) / um)
    assert enlarged[0].startswith("PSFs: ")
    assert enlarged[1] == pytest.approx(float(enlarged[0].split()[1]) * grid.enlarged / um)


@pytest.mark.parametrize("corner", [(0, 0), (-1, -1)])
def test_the_only_patch_with_content_has_a_psf(corner):
    content = torch.zeros(30, 30)
    content[corner] = 1
    psf_map = a_map((2000, 2000), 64, [lambda y, x: 1.0], content=content)
    grid = psf_grid(psf_map, (2000, 2000))
    place = [float(psf_map.rows[corner[0]]), float(psf_map.columns[corner[1]])]
    assert grid.places_px.tolist() == [place]
