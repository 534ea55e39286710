"""The unrolled restoration: its steps, what they conserve, its network on disk, its choice."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from psf import InputError, Microscope, psf_model
from psf.synthesis import synthesize_with_loss
from restoration import unrolled as unrolled_module
from restoration.iteration import Restored, Settings, restore
from restoration.learned import KIND, Prior, load_prior, save_prior
from restoration.prior_choice import learned_is_better
from restoration.richardson_lucy import restore_tiles, settle, tiles
from restoration.step_network import StepNetwork
from restoration.unrolled import (
    CHANNELS,
    START_STEPS,
    STEPS,
    Problem,
    psf_radius_px,
    restore_unrolled,
    start,
    unrolled,
)
from restoration.variant_blur import VariantBlur
from simulation.objects import OBJECTS

SHAPE = (88, 101)  # not a multiple of the network's stride


def blur_of(focus=0.8, size=31):
    labels = torch.tensor([[0.2], [focus]])
    psfs, _ = synthesize_with_loss(psf_model("zernike1d"), labels, Microscope(), size)
    places = torch.tensor([0.0, SHAPE[0] - 1.0]), torch.tensor([0.0])
    return VariantBlur(psfs, torch.eye(2)[..., None], *places, SHAPE)


def problem_of(photons=300.0, kind="nuclei", seed=5, **settings):
    blur = blur_of()
    objects = OBJECTS[kind](np.random.default_rng(seed), 192)
    objects = torch.from_numpy(objects[: blur.field_shape[0], : blur.field_shape[1]]) + 0.05
    objects = objects * photons / objects.mean()
    clean = blur.forward(objects[None])[0]
    image = torch.poisson(clean, torch.Generator().manual_seed(1))
    found, _ = settle(image, blur, torch.zeros(()), START_STEPS, "auto", "momentum")
    return Problem(image, blur, replace(found, **settings)), objects[blur.image_part]


def untrained(extrapolation=0.0):
    torch.manual_seed(0)
    network = StepNetwork(CHANNELS, STEPS)
    torch.nn.init.constant_(network.extrapolation, extrapolation)
    return network


def gain_db(found, truth, image):
    return 10 * math.log10(float((image - truth).square().mean() / (found - truth).square().mean()))


# --- steps


def test_without_correction_the_steps_are_richardson_lucy():
    problem, _ = problem_of()
    objects = start(problem)
    *_, found = unrolled([problem], untrained())
    blur = problem.blur
    for _ in range(STEPS):
        ratio = problem.photons / blur.forward(objects[None])[0]
        seen = blur.seen.clamp(min=unrolled_module.UNSEEN)
        missing = (unrolled_module.UNSEEN - blur.seen).clamp(min=0)
        objects = objects * (blur.adjoint(ratio[None])[0] + missing) / seen
    torch.testing.assert_close(found[0], objects, rtol=1e-4, atol=1e-3)


def test_both_designs_are_the_same_without_correction():
    problem, _ = problem_of()
    one, other = (list(unrolled([problem], untrained(), d))[-1] for d in ("image", "ratio"))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


def test_light_is_conserved_and_brightness_positive():
    usable = torch.ones(SHAPE, dtype=torch.bool)
    usable[10:14, 20:30] = False
    problem, _ = problem_of(background=torch.tensor(20.0), usable=usable)
    network = untrained(0.5)
    torch.nn.init.normal_(network.last.weight, 0, 0.05)
    found = restore_unrolled(problem, network)
    assert (found.image >= 0).all()
    expected, photons = found.expected[usable], problem.photons[usable]
    assert float(expected.sum()) == pytest.approx(float(photons.sum()), rel=1e-5)
    assert found.prior == "learned"


def test_the_radius_of_a_gaussian_is_twice_its_standard_deviation():
    line = torch.arange(41.0) - 20
    psf = torch.exp(-(line[:, None] ** 2 + line**2) / (2 * 3.0**2))
    radius = psf_radius_px(VariantBlur.from_psf(psf, SHAPE))
    assert radius.shape == SHAPE
    torch.testing.assert_close(radius, torch.full(SHAPE, 6.0), rtol=1e-4, atol=0)


def test_the_result_is_in_proportion_to_the_light():
    """Twice the photons under a gain of two are the same image: only the noise channel differs."""
    problem, _ = problem_of()
    twice = Problem(2 * problem.photons, problem.blur, problem.settings)
    mean = 2 * problem.settings.mean
    twice = replace(twice, settings=replace(problem.settings, mean=mean, level=mean))
    one, other = (restore_unrolled(p, untrained()).image for p in (problem, twice))
    assert float((other / 2 - one).abs().max() / one.max()) < 0.05


@pytest.mark.parametrize("size", [9, 31, 33])
def test_the_binned_blur_of_blocks_is_the_binned_image(size):
    """Objects of 2 x 2 px blocks: their image, summed over 2 x 2 px, by both operators."""
    psf, _ = synthesize_with_loss(psf_model("zernike1d"), torch.tensor([[0.8]]), Microscope(), size)
    blur = VariantBlur.from_psf(psf[0].double(), (64, 70))
    coarse = blur.binned()
    blocks = torch.rand(coarse.field_shape, generator=torch.Generator().manual_seed(0)).double()
    first = 2 * coarse.image_part[0].start - blur.image_part[0].start
    fine = blocks.repeat_interleave(2, 0).repeat_interleave(2, 1)[first:, first:]
    fine = fine[: blur.field_shape[0], : blur.field_shape[1]]
    image = blur.forward(fine[None])
    summed = 4 * torch.nn.functional.avg_pool2d(image, 2)
    torch.testing.assert_close(coarse.forward(4 * blocks[None]), summed, rtol=0, atol=1e-10)


# --- the network that comes with the project


@pytest.mark.parametrize(
    ("kind", "photons"),
    [("round_cells", 1000.0), ("round_cells", 100.0), ("filaments", 100.0), ("collage", 100.0)],
)
def test_the_learned_prior_is_better_than_total_variation(kind, photons):
    problem, truth = problem_of(photons, kind)
    learned = restore_unrolled(problem, load_prior().network)
    by_tv = [
        restore(problem.photons, problem.blur, problem.settings, n).image for n in (10, 20, 40)
    ]
    gains = [gain_db(image, truth, problem.photons) for image in (learned.image, *by_tv)]
    assert gains[0] > max(gains[1:]) and gains[0] > 1.0


def test_tiles_agree_with_the_whole():
    problem, _ = problem_of()
    work = load_prior().restore
    whole = work(problem.photons, problem.blur, problem.settings)
    parts = list(tiles(SHAPE, 60))
    tiled = restore_tiles(problem.photons, problem.blur, problem.settings, work, parts)
    assert len(parts) == 4
    difference = (tiled.image - whole.image).square().mean().sqrt() / whole.image.mean()
    assert float(difference) < 0.02


def test_less_is_sharpened_where_the_psf_is_uncertain():
    problem, _ = problem_of()
    sure, unsure = (
        restore_unrolled(
            Problem(
                problem.photons,
                problem.blur,
                replace(problem.settings, uncertainty=torch.full(SHAPE, share)),
            ),
            load_prior().network,
        ).image
        for share in (0.0, 1.0)
    )
    assert float(unsure.std()) < float(sure.std())


# --- choice


def test_held_out_photons_choose_the_better_restoration():
    problem, _ = problem_of()
    parts = (problem.photons, problem.blur, problem.settings)
    smooth = torch.from_numpy(gaussian_filter(problem.photons.numpy(), 8.0))
    calls = {"smooth": smooth, "tv": restore(*parts, 20).expected}

    def giving(expected):
        return lambda photons, blur, settings: Restored(photons, 1, 0.0, 1.0, expected)

    assert not learned_is_better(*parts, giving(calls["smooth"]))
    assert learned_is_better(*parts, giving(true_image()))
    assert learned_is_better(*parts, load_prior().restore)


def true_image():
    blur = blur_of()
    objects = OBJECTS["nuclei"](np.random.default_rng(5), 192)
    objects = torch.from_numpy(objects[: blur.field_shape[0], : blur.field_shape[1]]) + 0.05
    return blur.forward((objects * 300.0 / objects.mean())[None])[0]


# --- on disk


def config(**facts):
    training = {"photons": [10, 100], "na": [0.3, 0.9], "nyquist_share": [1, 2], "sources": 3}
    run = {"steps": 1, "images": 2, "minutes": 0.1, "processes": 1, "command": "", "commit": ""}
    sizes = {"steps": STEPS, "start_steps": START_STEPS, "channels": CHANNELS, "weights": 5}
    return {
        "kind": KIND,
        "design": "image",
        **sizes,
        "training": {**training, "psf_models": ["gaussian1d"]},
        "gains": {"10 to 100": {"start": 1.0, "learned": 2.0}},
        "run": run,
        **facts,
    }


def test_a_network_comes_back_from_its_folder(tmp_path):
    network = untrained(0.4)
    save_prior(tmp_path, network, config())
    found = load_prior(tmp_path)
    assert isinstance(found, Prior) and found.design == "image"
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, found.network.state_dict()[name])
    assert "| 10 to 100 | 1.00 | 2.00 |" in (tmp_path / "README.md").read_text()
    size = (tmp_path / "restoration.safetensors").stat().st_size
    assert size < 1e6


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"kind": "checkpoint"}, "no learned restoration"),
        ({"channels": 4}, "sees 4 images"),
        ({"steps": None, "design": "other"}, "design"),
    ],
)
def test_a_wrong_folder_is_refused(tmp_path, facts, message):
    save_prior(tmp_path, untrained(), config(**facts))
    with pytest.raises(InputError, match=message):
        load_prior(tmp_path)


def test_damaged_weights_are_refused(tmp_path):
    save_prior(tmp_path, untrained(), config())
    weights = tmp_path / "restoration.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match="damaged"):
        load_prior(tmp_path)


def test_settings_of_a_part_have_its_uncertainty():
    uncertainty = torch.arange(12.0).view(3, 4)
    settings = Settings(torch.zeros(()), 0.01, None, 1.0, 1.0, uncertainty=uncertainty)
    part = (slice(1, 3), slice(0, 2))
    assert torch.equal(settings.of_part(part).uncertainty, uncertainty[part])
