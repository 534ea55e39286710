"""Simulated patches: the blur is the convolution, the optics those that were drawn."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.signal import convolve2d

from psf import InputError, Microscope, psf_model, synthesize_with_loss
from psf.blur import blur_by_column
from psf.microscope import simulated_microscopes
from simulation.bank import Bank
from simulation.patches import OUT_OF_RANGE, REACH, FocusChanges, blur_patches, simulate
from simulation.settings import (
    OpticsRanges,
    Simulation,
    check_energy,
    draw_microscopes,
    optics_limits,
)
from simulation.sources import Source, read_plane
from simulation.specimens import SpecimenRanges, draw_specimens

SOURCES = [Source("camera", "builtin"), Source("gravel", "builtin")]
GAUSSIAN = Simulation(
    model=psf_model("gaussian1d", {"fwhm": (0.0, 8.0)}),
    microscope=Microscope(),
    optics_ranges=None,
    patch_size=64,
    psf_size=33,
    blank_fraction=0.0,
)
FOCUS = replace(GAUSSIAN, model=psf_model("zernike1d", {"focus": (0.0, 1.0)}), psf_size=79)
VARIED = replace(FOCUS, optics_ranges=OpticsRanges(), psf_size=95)
# coma in any direction: a PSF without any symmetry shows a flip of either axis
COMA = replace(
    FOCUS, model=psf_model("zernike", modes=((3, 1), (3, -1))), psf_size=81, patch_size=96
)
THIN = draw_specimens(SpecimenRanges(), 3, np.random.default_rng(0))
FLOAT32 = 1e-5  # of images in [0, 1]: FFTs in single precision


STORED = 1e-4  # of source pixels in [0, 1]: kept in 16 bits, sampled at places in float32


def patches_of(simulation, count=12, seed=0, augment=False):
    bank = Bank(SOURCES, simulation.crop_size, simulation.patch_size)
    return simulate(simulation, bank, count, np.random.default_rng(seed), augment)


@pytest.mark.parametrize("simulation", [GAUSSIAN, COMA], ids=["gaussian", "coma"])
@pytest.mark.parametrize("augment", [False, True])
def test_blurred_patch_is_the_valid_convolution_of_object_and_psf(simulation, augment):
    drawn = patches_of(simulation, 4, augment=augment)
    edge = simulation.psf_size // 2
    for sharp, psf, blurred in zip(drawn.sharp, drawn.psfs, drawn.blurred, strict=True):
        # of the object only the patch is kept: its valid region is the middle of the blurred patch
        expected = convolve2d(sharp.double(), psf.double(), "valid")
        np.testing.assert_allclose(blurred[edge:-edge, edge:-edge], expected, atol=FLOAT32)


def test_blur_takes_real_content_from_outside_of_the_patch():
    drawn = patches_of(GAUSSIAN, 20)
    wide = int(drawn.labels[:, 0].argmax())
    padded = np.pad(drawn.sharp[wide].numpy(), 16, mode="reflect")
    reflected = convolve2d(padded, drawn.psfs[wide].numpy(), "valid")
    difference = np.abs(drawn.blurred[wide].numpy() - reflected)
    assert difference[16:-16, 16:-16].max() < FLOAT32
    assert difference[0].max() > 1000 * FLOAT32


def test_object_of_test_patches_is_a_plain_window_of_the_named_source():
    drawn = patches_of(GAUSSIAN, 6)
    planes = {source.name: read_plane(source) for source in SOURCES}
    for sharp, name in zip(drawn.sharp.numpy(), drawn.names, strict=True):
        windows = np.lib.stride_tricks.sliding_window_view(planes[name], (64, 64))
        close = np.argwhere(np.abs(windows[:, :, 0, 0] - sharp[0, 0]) < STORED)
        assert any(np.abs(windows[row, column] - sharp).max() < STORED for row, column in close)


def test_psf_belongs_to_label_and_optics_of_its_patch():
    drawn = patches_of(VARIED, 5)
    microscopes = simulated_microscopes(drawn.optics.tolist())
    expected, _ = synthesize_with_loss(VARIED.model, drawn.labels, microscopes, VARIED.psf_size)
    assert torch.allclose(drawn.psfs, expected, atol=FLOAT32 * float(expected.max()))
    assert float(drawn.labels.min()) >= 0
    assert float(drawn.labels.max()) <= 1
    assert len(set(drawn.labels[:, 0].tolist())) == 5


def test_blank_patches_are_flagged_nameless_and_flat():
    drawn = patches_of(replace(GAUSSIAN, blank_fraction=0.5), 200)
    blank = ~drawn.has_content
    # binomial: 200 draws at 0.5 stay within 100 +- 5 * 7.1
    assert 65 < int(blank.sum()) < 135
    assert [name == "" for name in drawn.names] == blank.tolist()
    contrast = drawn.blurred.std((1, 2)) / drawn.blurred.mean((1, 2))
    assert float(contrast[blank].max()) < 0.04
    assert float(contrast[drawn.has_content].median()) > 0.1


def test_same_generator_same_patches_another_seed_others():
    first, again, other = patches_of(FOCUS), patches_of(FOCUS), patches_of(FOCUS, seed=1)
    for name in ("sharp", "psfs", "blurred", "labels", "has_content", "optics"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert first.names == again.names
    assert not torch.equal(first.blurred, other.blurred)
    assert not torch.equal(first.labels, other.labels)


def test_one_microscope_stands_in_every_row_of_the_optics():
    microscope = Microscope(0.5, 0.6, 0.29, 1.0)
    drawn = patches_of(replace(FOCUS, microscope=microscope), 3)
    assert torch.allclose(drawn.optics, torch.tensor([[0.5, 0.6, 0.29, 1.0]]).expand(3, 4))


def test_varied_optics_fill_their_ranges_and_no_more():
    ranges = OpticsRanges()
    drawn = draw_microscopes(VARIED, 500, np.random.default_rng(0))
    shares = [m.pixel_size_um / m.nyquist_pixel_um for m in drawn]
    for values, (low, high) in (
        ([m.na for m in drawn], ranges.na),
        ([m.wavelength_um for m in drawn], ranges.wavelength_um),
        ([m.refractive_index for m in drawn], ranges.refractive_index),
        (shares, ranges.nyquist_share),
    ):
        span = high - low
        assert low - 1e-9 <= min(values) < low + 0.05 * span
        assert high - 0.05 * span < max(values) <= high + 1e-9


def test_limits_of_the_optics_cover_what_is_drawn():
    limits = optics_limits(VARIED)
    for microscope in draw_microscopes(VARIED, 300, np.random.default_rng(1)):
        numbers = {name: getattr(microscope, name) for name in limits}
        for name, (low, high) in limits.items():
            assert low * (1 - 1e-9) <= numbers[name] <= high * (1 + 1e-9)
    assert optics_limits(FOCUS)["na"] == [0.45, 0.45]
    assert optics_limits(FOCUS)["cutoff_cycles_per_pixel"] == pytest.approx([0.5004] * 2)


def test_energy_check_names_loss_support_and_remedy():
    with pytest.raises(InputError, match=r"\d\.\d% .* 21 px \(limit 5 %\).* larger --psf-size"):
        check_energy(replace(FOCUS, psf_size=21))


def test_energy_check_returns_the_loss_of_the_widest_psf():
    _, lost = synthesize_with_loss(FOCUS.model, torch.tensor([[1.0]]), Microscope(), 79)
    assert check_energy(FOCUS) == pytest.approx(float(lost), abs=1e-6)
    assert 0.001 < check_energy(FOCUS) < 0.01


def test_energy_check_covers_all_drawn_optics():
    worst = check_energy(VARIED)
    microscopes = draw_microscopes(VARIED, 64, np.random.default_rng(2))
    labels = torch.ones(64, 1)
    _, lost = synthesize_with_loss(VARIED.model, labels, microscopes, VARIED.psf_size)
    assert float(lost.max()) <= worst + FLOAT32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"na": (0.8, 0.3)}, "na range 0.8 to 0.3"),
        ({"wavelength_um": (-0.5, 0.7)}, "wavelength_um range -0.5 to 0.7"),
        ({"na": (0.97, 1.4)}, "NA .*0.97 .*refractive index"),
    ],
)
def test_impossible_ranges_of_optics_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        OpticsRanges(**changes)


SLOPED = replace(FOCUS, model=psf_model("zernike1d", {"focus": (0.0, 2.0)}), focus_change_waves=1.5)


def test_focus_of_a_sloped_patch_changes_linearly_around_its_label():
    flat, sloped = (patches_of(s, 40) for s in (replace(SLOPED, focus_change_waves=0.0), SLOPED))
    assert torch.equal(flat.labels, sloped.labels)
    changed = (flat.blurred - sloped.blurred).abs().amax((1, 2)) > 100 * FLOAT32
    assert 0.1 < changed.float().mean() < 0.45


def changed_blur(simulation, crop, label, across, shares):
    """Patch of a crop (S, S) whose focus changes by `across` from column to column, and its PSF."""
    slopes = np.array([[0.0, across]])
    changes = FocusChanges(np.array([0]), slopes, np.array([shares], np.float32))
    labels = torch.tensor([label])
    _, blurred = blur_patches(simulation, crop[None], labels, simulation.microscope, changes, THIN)
    return blurred[0]


@pytest.mark.parametrize("across", [0.1, 0.7, 1.5])
def test_blur_of_a_changing_focus_is_that_of_each_object_points_own_psf(across):
    """Against `blur_by_column`, which gives every column of the object its own PSF."""
    crop = torch.rand(SLOPED.crop_size, SLOPED.crop_size)
    middle = 1.0
    got = changed_blur(SLOPED, crop, [middle], across, [1.0])
    x = (torch.arange(SLOPED.crop_size) - (SLOPED.crop_size - 1) / 2) / SLOPED.patch_size
    focus = middle + across * x.clamp(-REACH, REACH)

    def psfs_of(columns):
        labels = focus[columns, None]
        return synthesize_with_loss(SLOPED.model, labels, SLOPED.microscope, SLOPED.psf_size)[0]

    exact = blur_by_column(crop, psfs_of)
    plain = blur_by_column(crop, lambda c: psfs_of(torch.full_like(c, SLOPED.crop_size // 2)))
    assert (got - exact).square().mean() < 1e-3 * (plain - exact).square().mean()


def test_other_parameters_change_along_with_focus_by_their_shares():
    """Across columns, focus 0.6 + t and the cosine part of astigmatism 0.3 - t / 2."""
    simulation = replace(SLOPED, model=psf_model("zernike2d"))
    crop = torch.rand(simulation.crop_size, simulation.crop_size)
    middle, shares = [0.6, 0.3, 0.0], [1.0, -0.5, 0.0]
    microscope = simulation.microscope
    got = changed_blur(simulation, crop, middle, 0.8, shares)
    x = (torch.arange(simulation.crop_size) - (simulation.crop_size - 1) / 2) / 64
    change = 0.8 * x.clamp(-REACH, REACH)

    def blurred(own_shares):
        def psfs_of(columns):
            labels = torch.tensor(middle) + change[columns, None] * torch.tensor(own_shares)
            return synthesize_with_loss(simulation.model, labels, microscope, simulation.psf_size)[
                0
            ]

        return blur_by_column(crop, psfs_of)

    exact, focus_only = blurred(shares), blurred([1.0, 0.0, 0.0])
    assert (got - exact).square().mean() < 1e-2 * (focus_only - exact).square().mean()


def test_changing_and_constant_patches_of_a_batch_keep_their_places():
    """Patch 1 of three changes its focus; the others are blurred as without any change."""
    crops = torch.rand(2, SLOPED.crop_size, SLOPED.crop_size)
    labels = torch.tensor([[0.2], [0.9], [1.6]])
    changes = FocusChanges(np.array([1]), np.array([[0.9, 0.0]]), np.ones((1, 1), np.float32))
    none = FocusChanges(np.zeros(0, int), np.zeros((0, 2)), np.ones((0, 1), np.float32))
    _, mixed = blur_patches(SLOPED, crops, labels, SLOPED.microscope, changes, THIN)
    _, plain = blur_patches(SLOPED, crops, labels, SLOPED.microscope, none, THIN)
    assert torch.allclose(mixed[[0, 2]], plain[[0, 2]], atol=FLOAT32)
    turned = changed_blur(SLOPED, crops[1].T, [0.9], 0.9, [1.0]).T
    assert torch.allclose(mixed[1], turned, atol=FLOAT32)


def test_patches_out_of_range_are_marked_as_without_content():
    drawn = patches_of(replace(FOCUS, beyond_fraction=0.3), 60)
    out_of_range = drawn.labels[:, 0] > 1.0
    assert torch.equal(drawn.has_content, ~out_of_range)
    assert 8 < int(out_of_range.sum()) < 30
    far = drawn.labels[out_of_range, 0]
    low, high = OUT_OF_RANGE
    assert far.min() >= low and far.max() <= high


def test_only_models_with_focus_can_change_it_across_a_patch():
    with pytest.raises(InputError, match="gaussian1d has no focus"):
        replace(GAUSSIAN, focus_change_waves=1.0)


def test_drawn_optics_stay_within_the_steepest_rays():
    high = replace(VARIED, optics_ranges=OpticsRanges(na=(0.3, 1.4)))
    drawn = draw_microscopes(high, 200, np.random.default_rng(0))
    ratios = [m.na / m.refractive_index for m in drawn]
    assert max(ratios) <= 0.96 + 1e-6
    assert max(m.na for m in drawn) > 1.2
