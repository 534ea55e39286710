"""Specimens that are thick, soft, hazy, sparse or lit, checked against their physics."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from psf import InputError, Microscope, psf_model, synthesize_with_loss
from psf.microscope import simulated_microscopes
from simulation.bank import Bank
from simulation.patches import FocusChanges, blur_patches, simulate
from simulation.settings import Simulation
from simulation.sources import Source
from simulation.specimens import (
    SLICES,
    SpecimenRanges,
    Specimens,
    draw_sparse,
    draw_specimens,
    haze_labels,
    make_sparse,
    soften,
    specimen_psfs,
    varied_psfs,
)

CPU = torch.device("cpu")
FOCUS = psf_model("zernike1d", {"focus": (0.0, 2.0)})
SIMULATION = Simulation(FOCUS, Microscope(), None, patch_size=64, psf_size=63, blank_fraction=0.0)
CONSTANT = FocusChanges(np.zeros(0, int), np.zeros((0, 2)), np.ones((0, 1), np.float32))
FLOAT32 = 1e-5  # of images in [0, 1]: FFTs in single precision


def specimens(count, **changed):
    """Thin, sharp specimens without haze, but for what is given."""
    none = dict.fromkeys(Specimens.__dataclass_fields__, 0.0) | changed
    kinds = {name: bool if name == "haze_only" else float for name in none}
    return Specimens(**{k: np.full(count, v, kinds[k]) for k, v in none.items()})


def psfs_of(labels, size=63, **changed):
    labels = torch.tensor(labels)[:, None]
    some = specimens(len(labels), **changed)
    return specimen_psfs(FOCUS, labels, Microscope(), size, some, CPU)


def crops_of(count, seed=0):
    """Sharp random discs."""
    rng = np.random.default_rng(seed)
    axis = np.arange(SIMULATION.crop_size)
    crops = np.full((count, len(axis), len(axis)), 0.1, np.float32)
    for crop in crops:
        for y, x, radius in rng.uniform(0, (len(axis), len(axis), 9), (60, 3)):
            crop[(axis[:, None] - y) ** 2 + (axis - x) ** 2 < radius**2] = rng.uniform(0.2, 1)
    return torch.from_numpy(crops)


def blurred(crops, labels, some):
    labels = torch.tensor(labels)[:, None]
    return blur_patches(SIMULATION, crops, labels, Microscope(), CONSTANT, some)[1]


def variance(psfs):
    """Second moment across, px squared."""
    x = torch.arange(psfs.shape[-1]) - (psfs.shape[-1] - 1) / 2
    return (psfs.sum(1) * x**2).sum(1) / psfs.sum((1, 2))


# --- thickness and softness


def test_psf_of_a_thick_specimen_is_the_mean_of_its_slices():
    offsets = 1.5 * ((np.arange(SLICES) + 0.5) / SLICES - 0.5)
    for focus in (0.2, 1.3):  # the first specimen reaches to both sides of the focal plane
        found = psfs_of([focus], thickness_waves=1.5)[0]
        slices = psfs_of(list(np.float32(focus + offsets)))
        assert torch.allclose(found, slices.mean(0), atol=1e-7)
        assert (found - psfs_of([focus])[0]).abs().max() > 0.05 * found.max()


def test_only_thick_specimens_of_a_batch_change():
    some = replace(specimens(3), thickness_waves=np.array([0.0, 1.0, 0.0]))
    labels = torch.tensor([[0.3], [0.9], [1.5]])
    optics = [Microscope(na=na) for na in (0.4, 0.45, 0.42)]
    found = specimen_psfs(FOCUS, labels, optics, 63, some, CPU)
    plain = varied_psfs(FOCUS, labels, optics, 63, CPU)
    assert torch.equal(found[[0, 2]], plain[[0, 2]])
    alone = specimen_psfs(FOCUS, labels[1:2], optics[1:2], 63, some.take(np.array([1])), CPU)
    assert torch.allclose(found[1], alone[0], atol=1e-4 * float(alone.max()))
    assert torch.equal(specimen_psfs(FOCUS, labels, optics, 63, some.thin(), CPU), plain)


def test_softness_adds_its_variance_and_keeps_the_sum():
    sharp = psf_model("gaussian1d")
    psfs, _ = synthesize_with_loss(sharp, torch.tensor([[4.0], [6.0], [5.0]]), Microscope(), 63)
    sigmas = torch.tensor([1.0, 1.5, 2.0])
    soft = soften(psfs, sigmas)
    assert torch.allclose(soft.sum((1, 2)), psfs.sum((1, 2)), rtol=1e-5)
    added = variance(soft) - variance(psfs)
    # the Gaussian ends at 3 to 6 standard deviations, which takes up to 3 % of its variance
    assert torch.allclose(added, sigmas.square(), rtol=0.03)
    assert torch.allclose(soft, soft.transpose(1, 2), atol=1e-7)


def test_only_soft_specimens_of_a_batch_change():
    some = replace(specimens(3), softness_px=np.array([0.0, 1.2, 0.0]))
    labels = torch.tensor([[0.3], [0.9], [1.5]])
    found = specimen_psfs(FOCUS, labels, Microscope(), 63, some, CPU)
    plain = varied_psfs(FOCUS, labels, Microscope(), 63, CPU)
    assert torch.equal(found[[0, 2]], plain[[0, 2]])
    expected = soften(plain[1:2], torch.tensor([1.2]))[0]
    assert torch.allclose(found[1], expected, atol=1e-7)


# --- haze and background


def test_haze_is_the_mirrored_object_farther_from_focus():
    crops, labels = crops_of(2), [0.4, 1.1]
    hazy = blurred(crops, labels, specimens(2, haze=0.7, haze_distance_waves=1.5))
    layer = blurred(crops.flip(1, 2), [1.9, 2.6], specimens(2))
    expected = blurred(crops, labels, specimens(2)) + 0.7 * layer
    assert torch.allclose(hazy, expected, atol=FLOAT32)


@pytest.mark.parametrize("signed", [False, True])
def test_haze_lies_farther_from_focus_on_the_side_of_its_object(signed):
    labels = torch.tensor([[0.0, 5.0], [0.3, 6.0], [1.7, 7.0], [-0.4 if signed else 0.4, 8.0]])
    some = replace(specimens(4), haze_distance_waves=np.array([1.0, 2.0, 3.0, 4.0]))
    found = haze_labels(labels, some, np.array([1, 2, 3]))
    expected = [2.3, 4.7, -4.4 if signed else 4.4]
    assert found[:, 0].tolist() == pytest.approx(expected)
    assert found[:, 1].tolist() == [6.0, 7.0, 8.0]  # the other parameters are those of the object
    assert labels[1, 0] == pytest.approx(0.3)  # the labels themselves stay


def test_patch_of_haze_alone_does_not_show_the_object_in_focus():
    crops = crops_of(1)
    only = specimens(1, haze=1.0, haze_distance_waves=2.0, haze_only=True)
    found = blurred(crops, [0.0], only)
    assert torch.allclose(found, blurred(crops.flip(1, 2), [2.0], specimens(1)), atol=FLOAT32)
    both = blurred(crops, [0.0], only.without_haze_only())
    expected = found + blurred(crops, [0.0], specimens(1))
    assert torch.allclose(both, expected, atol=FLOAT32)


@pytest.mark.parametrize("light", [0.5, 3.0])
def test_background_lowers_the_contrast(light):
    crops = crops_of(2)
    dark, lit = (blurred(crops, [0.5, 1.0], specimens(2, background=b)) for b in (0.0, light))
    contrast = [one.std((1, 2)) / one.mean((1, 2)) for one in (dark, lit)]
    assert torch.allclose(contrast[1], contrast[0] / (1 + light), rtol=1e-4)
    assert torch.allclose(lit.std((1, 2)), dark.std((1, 2)), rtol=1e-4)


# --- sparse objects


def test_sparse_objects_keep_their_brightest_parts():
    values = torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(0))
    quantiles = np.array([0.5, 0.0, 0.9])
    found = make_sparse(values.clone(), quantiles, 64)
    assert torch.equal(found[1], values[1])
    for number, quantile in ((0, 0.5), (2, 0.9)):
        middle = found[number, 16:80, 16:80]
        # the level comes from a sixteenth of the pixels: 5 standard errors
        error = 5 * math.sqrt(quantile * (1 - quantile) / 256)
        assert float((middle > 0).float().mean()) == pytest.approx(1 - quantile, abs=error)
        kept = found[number] > 0
        assert values[number][kept].min() >= values[number][~kept].max()
        assert float(found[number].max()) == pytest.approx(float(values[number].max()), abs=1e-3)


def test_sparse_objects_of_full_brightness_do_not_vanish():
    crop = torch.zeros(1, 96, 96)
    crop[:, :, ::2] = 1.0
    assert float((make_sparse(crop, np.array([0.9]), 64) > 0).float().mean()) == 0.5


def test_share_of_sparse_objects():
    ranges = SpecimenRanges(sparse=0.4, plain=0.5, sparse_quantile=(0.6, 0.8))
    found = draw_sparse(ranges, 4000, np.random.default_rng(0))
    chosen = found[found > 0]
    assert len(chosen) / 4000 == pytest.approx(0.2, abs=5 * math.sqrt(0.2 * 0.8 / 4000))
    assert 0.6 <= chosen.min() < 0.61 < 0.79 < chosen.max() <= 0.8


# --- PSFs on coarse and fine pixels


def test_psfs_of_coarse_pixels_are_those_of_the_full_grid():
    pixels = (0.2, 0.278, 0.5, 0.9)  # cut-offs of 0.36 to 1.6 cycles per px
    optics = simulated_microscopes([(0.45, 0.5, pixel, 1.33) for pixel in pixels])
    labels = torch.tensor([[0.5], [1.2], [1.9], [0.7]])
    found = varied_psfs(FOCUS, labels, optics, 95, CPU)
    # cut-offs of more than 0.425 2^(g / 2) have grids smaller by 2^(g / 2), of odd width
    for number, (microscope, width) in enumerate(zip(optics, (95, 95, 49, 35), strict=True)):
        one = labels[number : number + 1]
        expected, _ = synthesize_with_loss(FOCUS, one, microscope, 95)
        # light outside a smaller grid is spread over it: up to 1 % of the energy
        scale = (found[number] * expected[0]).sum() / expected[0].square().sum()
        assert float(scale) == pytest.approx(1, abs=0.01)
        inside = found[number] > 0
        difference = (found[number] / scale - expected[0])[inside].abs().max()
        assert difference < 1e-4 * expected.max()
        assert inside.any(0).sum() == width


# --- which specimens are drawn


def test_shares_and_ranges_of_specimens():
    ranges = SpecimenRanges(thick=0.3, soft=0.5, hazy=0.4, background=0.2, haze_only=0.1, plain=0.2)
    found = draw_specimens(ranges, 5000, np.random.default_rng(0))
    shares = {
        "thickness_waves": (0.3 * 0.8, ranges.thickness_waves),
        "softness_px": (0.5 * 0.8, ranges.softness_px),
        "background": (0.2 * 0.8, ranges.background_light),
        "haze": (1 - (1 - 0.4 * 0.8) * 0.9, ranges.haze),
        "haze_only": (0.1, (1, 1)),
    }
    for name, (share, (low, high)) in shares.items():
        values = getattr(found, name)
        chosen = values[values > 0]
        error = 5 * math.sqrt(share * (1 - share) / 5000)
        assert len(chosen) / 5000 == pytest.approx(share, abs=error), name
        assert low <= chosen.min() <= chosen.max() <= high
    assert (found.haze[found.haze_only] > 0).all()
    # uniform in the logarithm: as many below as above the geometric mean
    bright = found.haze[found.haze > 0] > math.sqrt(0.3 * 4.0)
    assert bright.mean() == pytest.approx(0.5, abs=0.06)
    assert not found.without_haze_only().haze_only.any()


@pytest.mark.parametrize(
    "wrong",
    [
        {"thick": 1.2},
        {"soft": -0.1},
        {"hazy": math.nan},
        {"softness_px": (2.0, 1.0)},
        {"thickness_waves": (-1.0, 1.0)},
        {"haze": (0.0, 1.0)},
        {"background_light": (0.0, 1.0)},
        {"haze_distance_waves": (1.0, math.inf)},
        {"sparse_quantile": (0.5, 1.5)},
    ],
)
def test_impossible_specimens_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(InputError, match=rf"specimens\.{name} is .*; give ") as caught:
        SpecimenRanges(**wrong)
    assert "\n" not in str(caught.value)


def test_specimens_need_a_focus():
    with pytest.raises(InputError, match=r"no focus in waves; leave out .*specimens"):
        replace(SIMULATION, model=psf_model("gaussian1d"), specimens=SpecimenRanges(soft=0.1))


# --- in simulated patches


@pytest.fixture(scope="module")
def bank():
    sources = [Source("camera", "builtin"), Source("gravel", "builtin")]
    return Bank(sources, SIMULATION.crop_size, SIMULATION.patch_size)


def patches_of(bank, ranges, count=12):
    simulation = replace(SIMULATION, specimens=ranges)
    return simulate(simulation, bank, count, np.random.default_rng(3), augment=True)


def test_ranges_without_shares_change_no_patch(bank):
    ranges = SpecimenRanges(thickness_waves=(1.0, 3.0), haze=(1.0, 9.0), plain=0.7)
    assert ranges.is_plain
    plain, same = (patches_of(bank, one) for one in (SpecimenRanges(), ranges))
    assert torch.equal(plain.blurred, same.blurred)
    all_plain = patches_of(bank, SpecimenRanges(plain=1.0, thick=1.0, soft=1.0, background=1.0))
    assert torch.equal(plain.blurred, all_plain.blurred)
    assert torch.equal(plain.psfs, synthesize_with_loss(FOCUS, plain.labels, Microscope(), 63)[0])


def test_patches_of_haze_alone_have_no_label(bank):
    found = patches_of(bank, SpecimenRanges(haze_only=0.4), count=40)
    plain = patches_of(bank, SpecimenRanges(), count=40)
    assert plain.has_content.all()
    same = (found.blurred - plain.blurred).abs().amax((1, 2)) < FLOAT32
    assert torch.equal(same, found.has_content)
    assert 8 <= int((~found.has_content).sum()) <= 24
    # haze is blurred more than any label of the range
    detail = [
        one.diff(dim=2).std((1, 2)) / one.std((1, 2)) for one in (found.blurred, plain.blurred)
    ]
    hazy = ~found.has_content
    assert (detail[0] < detail[1])[hazy].float().mean() > 0.9
