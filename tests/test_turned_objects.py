"""Objects turned before the blur: a round blur turns with them, labels and draws stay."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from models.data import Batch
from models.degradations import turned_levels
from psf import InputError, Microscope, psf_model
from simulation.settings import OpticsRanges, Simulation
from simulation.sources import Source

ROUND = Simulation(psf_model("gaussian1d", {"fwhm": (0.0, 8.0)}), Microscope(), None, 64, 33, 0.0)


@pytest.fixture(scope="module")
def sources():
    return [Source(name, "builtin") for name in ("camera", "gravel")]


@pytest.fixture(scope="module")
def turned(sources):
    levels = (0.0, 45.0, 90.0, 180.0)
    return {level.value: level.batch for level in turned_levels(ROUND, sources, levels, 4, seed=0)}


def test_turning_the_object_turns_a_round_blur_with_it(turned):
    still = turned[0.0].patches
    spread = float(still.std())
    for degrees, quarters in ((90.0, -1), (180.0, -2)):  # from +x to +y: rot90 turns the other way
        difference = turned[degrees].patches - torch.rot90(still, quarters, (1, 2))
        assert float(difference.abs().max()) < 1e-3 * spread
        wrong = turned[degrees].patches - torch.rot90(still, quarters + 1, (1, 2))
        assert float(wrong.std()) > 0.3 * spread
    # 45 degrees show parts of the object that 0 degrees do not; the middle stays
    means = [b.patches[:, 24:40, 24:40].mean((1, 2)) for b in (turned[0.0], turned[45.0])]
    assert torch.allclose(*means, rtol=0.1)


def test_turns_keep_labels_and_optics(turned):
    for batch in turned.values():
        assert isinstance(batch, Batch)
        assert torch.equal(batch.labels, turned[0.0].labels)
        assert torch.allclose(batch.optics, torch.tensor([0.45, 0.5, 0.278, 1.33]))
        assert batch.patches.min() >= 0


def test_the_same_seed_turns_the_same_objects(sources, turned):
    _, again = turned_levels(ROUND, sources, (0.0, 45.0), 4, seed=0)
    assert torch.equal(again.batch.patches, turned[45.0].patches)
    (other,) = turned_levels(ROUND, sources, (0.0,), 4, seed=1)
    assert not torch.equal(other.batch.labels, turned[0.0].labels)


def test_each_turned_patch_names_its_source(sources):
    first, second = turned_levels(ROUND, sources, (0.0, 30.0), 12, seed=0)
    assert set(first.source_names) == {"camera", "gravel"}
    assert first.source_names.tolist() == second.source_names.tolist()
    for source in sources:
        (alone, *_) = turned_levels(ROUND, [source], (0.0,), 3, seed=0)
        assert alone.source_names.tolist() == [source.name] * 3


def test_sources_too_small_for_a_turn_are_left_out(sources, tmp_path):
    """A crop of 96 px needs 99 sqrt(2) + 2 = 142.01 px, so 143."""
    noise = np.random.default_rng(0).integers(0, 256, (143, 300)).astype(np.uint8)
    small, large = tmp_path / "small.png", tmp_path / "large.png"
    Image.fromarray(noise[:142]).save(small)
    Image.fromarray(noise).save(large)
    files = {path: Source(path.name, "file", path=str(path)) for path in (small, large)}
    (both,) = turned_levels(ROUND, [files[large], files[small]], (0.0,), 4, 0)
    (alone,) = turned_levels(ROUND, [files[large]], (0.0,), 4, 0)
    assert torch.equal(both.batch.patches, alone.batch.patches)
    with pytest.raises(InputError, match="143 x 143 px"):
        next(turned_levels(ROUND, [files[small]], (0.0,), 4, 0))


def test_varied_optics_are_drawn_for_each_patch(sources):
    varied = replace(ROUND, optics_ranges=OpticsRanges())
    (level,) = turned_levels(varied, sources, (0.0,), 4, 0)
    na, wavelength, pixel, _ = level.batch.optics.T
    assert len(na.unique()) == 4
    share = pixel * 4 * na / wavelength
    low, high = varied.optics_ranges.nyquist_share
    assert bool(((share > low - 0.001) & (share < high + 0.001)).all())
