"""The shipped networks: there, small, and right on patches whose PSF is known."""

import pytest
import torch

from models.checkpoint import SHIPPED, load_estimator, shipped_names
from psf import Microscope, synthesize
from psf.blur import blur_valid
from psf.noise import camera_counts, to_photons

NAMES = ("astigmatic", "astigmatic_tilted", "focus", "gaussian1d", "gaussian2d")
NAMES += ("zernike1d", "zernike1d_tilted", "zernike2d", "zernike2d_tilted")
# labels that a reader can check, in the model's unit, and the error that is allowed
KNOWN = {
    "astigmatic": ([[-2.0], [0.5], [2.0]], 0.3),
    "gaussian1d": ([[4.0], [9.0], [15.0]], 1.5),
    "gaussian2d": ([[4.0, 10.0], [12.0, 6.0]], 1.5),
    "zernike1d": ([[1.0], [2.0], [3.5]], 0.3),
    "zernike2d": ([[1.0, 1.2, 0.0], [1.5, 0.0, -1.2]], 0.35),
}


def texture(count, size):
    """Sharp random polygons: straight edges in all directions, as no training image has them."""
    generator = torch.Generator().manual_seed(5)
    y, x = torch.meshgrid(torch.arange(float(size)), torch.arange(float(size)), indexing="ij")
    image = torch.zeros(count, size, size)
    for _ in range(120):
        centre = torch.rand(count, 2, 1, 1, generator=generator) * size
        turn = torch.rand(count, 1, 1, generator=generator) * torch.pi
        edges = 3 + 15 * torch.rand(count, 2, 1, 1, generator=generator)
        u, v = x - centre[:, 0], y - centre[:, 1]
        along, across = u * turn.cos() + v * turn.sin(), v * turn.cos() - u * turn.sin()
        inside = (along.abs() < edges[:, 0]) & (across.abs() < edges[:, 1])
        image = torch.where(inside, torch.rand(count, 1, 1, generator=generator), image)
    return image + 0.05


def test_all_are_there_and_small():
    assert shipped_names() == NAMES
    for name in NAMES:
        assert all(file.stat().st_size < 10e6 for file in (SHIPPED / name).iterdir())
        card = (SHIPPED / name / "README.md").read_text(encoding="utf-8")
        assert "## Holds for" in card and "patches seen" in card and "100 photons" in card


@pytest.mark.parametrize("name", NAMES)
def test_known_blurs_are_read(name):
    estimator = load_estimator(name)
    model = estimator.psf_model
    labels, allowed = torch.tensor(KNOWN[model.name][0]), KNOWN[model.name][1]
    # optics in the middle of the ranges, which no training patch had exactly
    varied = estimator.config["optics_limits"]["na"][0] < estimator.config["optics_limits"]["na"][1]
    microscope = Microscope(0.42, 0.6, 0.34, 1.4) if varied else Microscope()
    psfs = synthesize(model, labels, microscope, 127)
    blurred = blur_valid(texture(len(labels), 128 + 126), psfs).clamp(min=0)
    counts = camera_counts(to_photons(blurred, 3000.0), torch.Generator().manual_seed(0))
    found = estimator.predict(counts, microscope)
    assert (found.content_probability > 0.5).all()
    assert (found.values - labels).abs().max() < allowed
    flat = camera_counts(torch.full((4, 128, 128), 300.0), torch.Generator().manual_seed(1))
    blank = estimator.predict(flat, microscope).content_probability
    assert blank.max() < found.content_probability.min()
