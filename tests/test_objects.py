"""Procedural objects: full range, sharp, dense, reproducible; the size law of the leaves."""

import numpy as np
import pytest
import torch

from simulation.crops import is_sharp_and_rich
from simulation.objects import OBJECTS, sample_leaf_radii

SIZE_PX = 256


@pytest.mark.parametrize("kind", OBJECTS)
def test_object_is_a_reproducible_image_in_unit_range(kind):
    image = OBJECTS[kind](np.random.default_rng(3), SIZE_PX)
    again = OBJECTS[kind](np.random.default_rng(3), SIZE_PX)
    other = OBJECTS[kind](np.random.default_rng(4), SIZE_PX)
    assert image.shape == (SIZE_PX, SIZE_PX) and image.dtype == np.float32
    assert image.min() >= 0 and 0.9 < image.max() <= 1
    assert np.array_equal(image, again)
    assert not np.array_equal(image, other)


@pytest.mark.parametrize("kind", OBJECTS)
def test_object_is_sharp_and_has_content_up_to_its_corners(kind):
    corners = []
    for seed in range(20):
        image = torch.from_numpy(OBJECTS[kind](np.random.default_rng(seed), SIZE_PX))
        corners += [image[:128, :128], image[:128, -128:], image[-128:, :128], image[-128:, -128:]]
    # Large round cells may leave a corner bare now and then.
    assert is_sharp_and_rich(torch.stack(corners)).float().mean() > 0.85


def test_leaf_radii_follow_the_inverse_cube_law():
    low, high = 1.5, 60.0
    radii = sample_leaf_radii(np.random.default_rng(0), 200_000, low, high)
    assert radii.min() >= low and radii.max() <= high
    # P(r > x) = (x^-2 - high^-2) / (low^-2 - high^-2) is the integral of 1/r^3.
    for x in (2.0, 4.0, 10.0, 30.0):
        expected = (x**-2 - high**-2) / (low**-2 - high**-2)
        standard_error = np.sqrt(expected * (1 - expected) / len(radii))
        assert abs(np.mean(radii > x) - expected) < 5 * standard_error


def test_leaves_cover_the_field_with_flat_regions_and_hard_edges():
    image = OBJECTS["dead_leaves"](np.random.default_rng(1), SIZE_PX)
    steps = np.abs(np.diff(image, axis=1))
    # Neighbours are in one leaf and alike, or in two and independent.
    assert np.median(steps) < 0.1 and np.quantile(steps, 0.98) > 0.3
