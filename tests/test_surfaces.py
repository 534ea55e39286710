"""Surfaces: depth where geometry puts it, and every point blurred by its own PSF."""

import math

import pytest
import torch

from psf import InputError
from psf.blur import blur_by_column, blur_valid, blur_varying, dome_depth_um, tilted_depth_um


def gaussians(widths_px, size=15):
    at = torch.arange(size) - size // 2
    squared = at[:, None] ** 2 + 0.5 * at**2 + 0.3 * at[:, None] * at  # neither x nor y is special
    psfs = torch.exp(-squared / (2 * widths_px[:, None, None] ** 2))
    return psfs / psfs.sum((1, 2), keepdim=True)


def test_plane_rises_by_the_tangent_of_its_tilt():
    depth = tilted_depth_um(101, 6.0, 0.32)
    assert depth[50] == 0
    assert float(depth[100] - depth[0]) == pytest.approx(32 * math.tan(math.radians(6)), rel=1e-5)
    assert depth[60] > 0 > depth[40]
    with pytest.raises(InputError, match="90 degrees"):
        tilted_depth_um(10, 90, 0.3)


def test_dome_has_its_top_in_the_middle_and_a_flat_rim():
    depth = dome_depth_um(101, -10.0, 8.0)
    assert float(depth[50, 50]) == pytest.approx(8, abs=1e-4)
    assert float(depth[0, 0]) == pytest.approx(-10, abs=1e-4)
    assert float(depth.min()) == pytest.approx(-10, abs=1e-4)
    assert torch.allclose(depth, depth.T) and torch.allclose(depth, depth.flip(0))
    assert bool((depth[50, 50:95].diff() < 0).all())


def test_column_blur_is_the_sum_over_object_columns():
    generator = torch.Generator().manual_seed(0)
    sharp = torch.rand(40, 50, generator=generator)
    widths = torch.linspace(0.5, 3, 50)
    found = blur_by_column(sharp, lambda columns: gaussians(widths[columns]))
    weights = torch.eye(50)[:, None].expand(50, 40, 50)  # PSF i at column i alone
    expected = blur_varying(sharp, gaussians(widths), weights)
    assert found.shape == (26, 36)
    assert torch.allclose(found, expected, atol=1e-6)


def test_column_blur_with_one_psf_is_a_convolution():
    sharp = torch.rand(33, 47, generator=torch.Generator().manual_seed(1))
    psfs = gaussians(torch.tensor([1.7]))
    found = blur_by_column(sharp, lambda columns: psfs.expand(len(columns), -1, -1))
    assert torch.allclose(found, blur_valid(sharp[None], psfs)[0], atol=1e-6)


def test_column_blur_refuses_psfs_larger_than_the_object():
    psfs = gaussians(torch.tensor([1.7]))
    with pytest.raises(InputError, match="15 px does not fit"):
        blur_by_column(torch.rand(14, 40), lambda columns: psfs.expand(len(columns), -1, -1))
