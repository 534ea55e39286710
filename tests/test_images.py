"""Simulated images as sets of patches: what their patches share, and how focus changes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from psf import Microscope, psf_model
from simulation import images
from simulation.bank import Bank
from simulation.images import SURFACES, draw_images
from simulation.settings import OpticsRanges, Simulation
from simulation.sources import Source, folder_sources, procedural_sources
from simulation.specimens import SpecimenRanges

FOCUS = psf_model("zernike1d", {"focus": (0.0, 4.0)})
SIMULATION = Simulation(FOCUS, Microscope(), None, patch_size=64, psf_size=95, blank_fraction=0.0)
SIGNED = replace(SIMULATION, model=psf_model("astigmatic", {"focus": (-3.0, 3.0)}))
VARIED = replace(
    SIMULATION,
    optics_ranges=OpticsRanges(na=(0.4, 0.5), nyquist_share=(0.9, 1.1)),
    specimens=SpecimenRanges(soft=0.5, thick=0.3, hazy=0.5, background=0.5, sparse=0.5),
)
FLOAT32 = 1e-5


@pytest.fixture(autouse=True)
def all_with_objects(monkeypatch):
    monkeypatch.setattr(images, "BLANK_IMAGES", 0.0)


@pytest.fixture(scope="module")
def bank():
    sources = [*procedural_sources(1, 512), Source("gravel", "builtin")]
    return Bank(sources, SIMULATION.crop_size, SIMULATION.patch_size)


def drawn(bank, simulation=SIMULATION, sizes=(3, 6, 4), seed=0, focus=None):
    """Images, places and planes of these sizes."""
    return draw_images(simulation, bank, *sizes, np.random.default_rng(seed), focus)


def focus_of(monkeypatch, surface, planes=1, seed=0, places=40):
    """Places (M, 2), and focus (K, M) before the absolute value, of one image."""
    shares = [float(name == surface) for name in SURFACES]
    monkeypatch.setattr(images, "SURFACE_SHARES", shares)
    rng = np.random.default_rng(seed)
    where = rng.uniform(3, 9, (1, places, 2))
    return where[0], images._draw_focus(where, planes, rng)[0]


# --- surfaces of focus


def residual_of_fit(columns, values):
    fit = np.linalg.lstsq(columns, values, rcond=None)[0]
    return np.abs(columns @ fit - values).max()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_surfaces_have_their_shape(monkeypatch, seed):
    found = {name: focus_of(monkeypatch, name, seed=seed) for name in SURFACES}
    where, focus = {n: w for n, (w, _) in found.items()}, {n: f[0] for n, (_, f) in found.items()}
    assert np.ptp(focus["constant"]) == 0
    ones = np.ones((40, 1))
    linear = {name: np.hstack([ones, where[name]]) for name in SURFACES}
    assert residual_of_fit(linear["plane"], focus["plane"]) < 1e-9
    dome = np.hstack([linear["dome"], (where["dome"] ** 2).sum(1, keepdims=True)])
    assert residual_of_fit(dome, focus["dome"]) < 1e-9
    for name in ("dome", "step", "smooth", "any"):
        assert residual_of_fit(linear[name], focus[name]) > 0.05 * np.ptp(focus[name])
    assert len(np.unique(focus["step"].round(9))) == 2


def test_focus_changes_by_less_than_the_limit(monkeypatch):
    for surface, most in (("plane", np.sqrt(2)), ("step", 1), ("any", 2)):
        heights = [focus_of(monkeypatch, surface, seed=seed)[1] for seed in range(60)]
        spread = np.array([np.ptp(height) for height in heights]) / 2
        assert spread.max() <= images.MOST_CHANGE * most
        # half of the images change by less than a quarter of it
        assert np.median(spread) <= images.MOST_CHANGE * most * 0.3
        assert spread.max() > images.MOST_CHANGE * most * 0.3


def test_neighbours_share_their_focus_on_smooth_surfaces_only(monkeypatch):
    def roughness(surface):
        shares = []
        for seed in range(12):
            where, (focus,) = focus_of(monkeypatch, surface, seed=seed)
            distance = np.hypot(*(where[:, None] - where).T) + 99 * np.eye(len(where))
            step = focus - focus[distance.argmin(0)]
            shares.append((step**2).mean() / (2 * focus.var()))
        return np.mean(shares)

    assert roughness("plane") < 0.1
    assert roughness("smooth") < 0.4
    assert roughness("any") == pytest.approx(1, abs=0.25)


def test_planes_of_a_stack_are_equally_spaced(monkeypatch):
    for surface in SURFACES:
        _, focus = focus_of(monkeypatch, surface, planes=7, seed=3)
        step = focus[1, 0] - focus[0, 0]
        assert np.allclose(np.diff(focus, axis=0), step)
        assert images.PLANE_STEP_WAVES[0] <= step <= images.PLANE_STEP_WAVES[1]
    ranges = [focus_of(monkeypatch, "constant", 20, seed)[1][:, 0] for seed in range(50)]
    assert max(np.ptp(one) for one in ranges) <= 8
    # most stacks contain the plane in focus: 1 of 1.4 positions
    inside = np.mean([one.min() <= 0 <= one.max() for one in ranges])
    assert inside == pytest.approx(1 / 1.4, abs=0.2)


# --- labels, content and optics


def test_label_is_the_absolute_focus_where_the_sign_is_unknown(bank):
    focus = np.array([[[-1.0, 2.5, 4.5, 0.0], [-5.0, 3.5, 5.5, 1.0]]])
    absolute = drawn(bank, sizes=(1, 4, 2), focus=focus)
    assert absolute.labels[0, ..., 0].tolist() == [[1, 2.5, 4.5, 0], [5, 3.5, 5.5, 1]]
    assert absolute.has_content[0].tolist() == [
        [True, True, False, True],
        [False, True, False, True],
    ]
    signed = drawn(bank, SIGNED, sizes=(1, 4, 2), focus=focus)
    assert signed.labels[0, ..., 0].tolist() == focus[0].tolist()
    assert signed.has_content[0].tolist() == [
        [True, True, False, True],
        [False, False, False, True],
    ]


def test_patches_of_an_image_share_optics_and_images_do_not(bank):
    found = drawn(bank, replace(VARIED, specimens=SpecimenRanges()), sizes=(3, 2, 1))
    assert found.blurred.shape == (3, 1, 2, 64, 64)
    assert len(found.optics[:, 0].unique()) == 3
    assert (found.optics[:, 0] >= 0.4).all() and (found.optics[:, 0] <= 0.5).all()


def test_a_generator_gives_the_same_images(bank):
    sizes = (2, 3, 2)
    first, other = (drawn(bank, VARIED, sizes, seed) for seed in (0, 1))
    again = drawn(bank, VARIED, sizes)  # the bank holds other tiles than before
    for name in ("blurred", "labels", "has_content", "optics", "places"):
        assert torch.equal(getattr(first, name), getattr(again, name)), name
    assert not torch.equal(first.blurred, other.blurred)


# --- objects


def low_passed(patch):
    spectrum = torch.fft.rfft2(patch - patch.mean())
    spectrum[4:-3] = 0
    spectrum[:, 4:] = 0
    return torch.fft.irfft2(spectrum).flatten()


def correlation(first, second):
    return float(torch.corrcoef(torch.stack([low_passed(first), low_passed(second)]))[0, 1])


def test_planes_of_a_place_show_the_same_object(bank):
    focus = np.tile(np.array([0.0, 0.8])[:, None], (2, 1, 5))
    found = drawn(bank, sizes=(2, 5, 2), seed=2, focus=focus)
    sharp, soft = found.blurred.unbind(1)
    for image in range(2):
        for place in range(5):
            assert correlation(sharp[image, place], soft[image, place]) > 0.95
            assert correlation(sharp[image, place], soft[image, (place + 1) % 5]) < 0.6
    # the second plane has less detail
    assert (soft.diff(dim=3).std((2, 3)) < 0.7 * sharp.diff(dim=3).std((2, 3))).all()


def test_patches_lie_at_their_places_of_the_source(tmp_path, monkeypatch):
    """A source whose brightness rises down and across tells where a patch was cut out."""
    ramp = 5 * np.add.outer(3 * np.arange(600.0), np.arange(600.0)) / 600
    noise = np.random.default_rng(0).uniform(0, 200, (600, 600))
    Image.fromarray(np.uint8(ramp + noise + 20)).save(tmp_path / "ramp.png")
    sources, _ = folder_sources(tmp_path, SIMULATION.crop_size)
    bank = Bank(sources, SIMULATION.crop_size, SIMULATION.patch_size)
    monkeypatch.setattr(images, "vary_contrast", lambda pixels, _: pixels)
    monkeypatch.setattr(images, "add_grain", lambda pixels, *_: pixels)
    crops, where, _ = images._draw_objects(SIMULATION, bank, 4, 12, np.random.default_rng(1))
    means = crops.view(4, 12, -1).mean(2)
    for brightness, places in zip(means.double().numpy(), where, strict=True):
        expected = places @ [3.0, 1.0]
        assert np.corrcoef(brightness, expected)[0, 1] > 0.95


def test_sparse_images_of_full_brightness_do_not_vanish(tmp_path):
    """More than half of the pixels have the highest brightness, that of the quantile."""
    blocks = np.full((400, 400), 255, np.uint8)
    for y, x in np.random.default_rng(0).integers(0, 394, (600, 2)):
        blocks[y : y + 6, x : x + 6] = 60
    Image.fromarray(blocks).save(tmp_path / "blocks.png")
    sources, _ = folder_sources(tmp_path, SIMULATION.crop_size)
    bank = Bank(sources, SIMULATION.crop_size, SIMULATION.patch_size)
    ranges = SpecimenRanges(sparse=1.0, sparse_quantile=(0.9, 0.9))
    sparse = replace(SIMULATION, specimens=ranges)
    crops, _, is_empty = images._draw_objects(sparse, bank, 3, 5, np.random.default_rng(0))
    assert not is_empty.any()
    assert (crops.std((1, 2)) > 0.1).all()


def test_blank_images_have_no_content(bank, monkeypatch):
    focus = np.zeros((30, 1, 2))
    plain = drawn(bank, sizes=(30, 2, 1), focus=focus)
    monkeypatch.setattr(images, "BLANK_IMAGES", 0.5)
    found = drawn(bank, sizes=(30, 2, 1), focus=focus)
    blank = ~found.has_content.flatten(1).any(1)
    assert 6 <= int(blank.sum()) <= 24
    assert torch.equal(found.has_content[~blank], plain.has_content[~blank])
    contrast = found.blurred.std((3, 4)) / found.blurred.mean((3, 4))
    assert (contrast[blank] <= 0.0201).all()
    assert contrast[found.has_content].median() > 0.2


def test_background_belongs_to_the_whole_image(bank):
    lit = replace(SIMULATION, specimens=SpecimenRanges(background=1.0, background_light=(2.0, 2.0)))
    dark, bright = drawn(bank), drawn(bank, lit)
    light = 2 * dark.blurred.mean((1, 2, 3, 4), keepdim=True)
    assert torch.allclose(bright.blurred, dark.blurred + light, atol=4 * FLOAT32)


def test_some_places_of_hazy_images_hold_haze_alone(bank):
    hazy = replace(SIMULATION, specimens=SpecimenRanges(hazy=1.0, haze=(1.0, 1.0)))
    plain, found = (drawn(bank, one, sizes=(5, 10, 2)) for one in (SIMULATION, hazy))
    lost = plain.has_content & ~found.has_content
    assert torch.equal(lost[:, 0] | ~plain.has_content[:, 0], ~found.has_content[:, 0])
    alone = lost.any(1)  # the same places in all planes
    assert 0.02 < float(alone.float().mean()) < 0.25
    kept = plain.has_content
    assert torch.equal(lost, alone[:, None] & kept)
