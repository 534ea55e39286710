"""Attention over the patches of an image, and maps whose patches are seen together."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch

from common.files import write_json
from models import context as module
from models import error_bars
from models.checkpoint import load_estimator, save_context
from models.context import FACTS, KEYS, ContextNet, facts_of, spread_keys
from models.data import normalise
from models.loss import BINS, split_outputs
from models.mapping import TensorImage, predict_map, predict_stack
from models.spectral_resnet import FEATURES
from psf import InputError, Microscope

OUTPUTS = BINS + 1
FLOAT32 = 1e-5


def random_context(seed=0):
    """A context whose every layer matters, as after training."""
    torch.manual_seed(seed)
    net = ContextNet(OUTPUTS).eval()
    torch.nn.init.normal_(net.leave[1].weight, std=0.3)
    for layer in net.layers:
        for attention in (layer.along, layer.across):
            torch.nn.init.normal_(attention.bias.weight)
    return net


@pytest.fixture(scope="module")
def net():
    return random_context()


def inputs(planes, places, seed=1):
    """Features, facts and places of one image."""
    torch.manual_seed(seed)
    features = torch.randn(1, planes, places, FEATURES)
    return features, torch.rand(1, planes, places, FACTS), 5 * torch.rand(1, places, 2)


@torch.no_grad()
def seen(net, features, facts, places, keys=None):
    count = features.shape[1] * features.shape[2]
    return net(features, facts, places, torch.arange(count) if keys is None else keys)


# --- the network


def test_a_fresh_context_changes_nothing():
    torch.manual_seed(0)
    assert (seen(ContextNet(OUTPUTS), *inputs(2, 3)) == 0).all()


def test_order_of_the_places_does_not_matter(net):
    features, facts, places = inputs(2, 5)
    order = torch.tensor([3, 0, 4, 1, 2])
    found = seen(net, features[:, :, order], facts[:, :, order], places[:, order])
    expected = seen(net, features, facts, places)
    assert torch.allclose(found, expected[:, :, order], atol=FLOAT32)
    assert (found - expected).abs().max() > 0.1


def test_only_distances_between_places_count(net):
    features, facts, places = inputs(2, 5)
    turned = places.flip(2) * torch.tensor([1.0, -1.0]) + 7
    expected = seen(net, features, facts, places)
    assert torch.allclose(seen(net, features, facts, turned), expected, atol=1e-4)
    assert (seen(net, features, facts, 3 * places) - expected).abs().max() > 1e-3


def test_only_contrast_relative_to_the_image_counts(net):
    features, facts, places = inputs(1, 5)
    brighter = facts + torch.tensor([2.0, 0.0])
    expected = seen(net, features, facts, places)
    assert torch.allclose(seen(net, features, brighter, places), expected, atol=1e-4)
    noisier = facts + torch.tensor([0.0, 2.0])
    assert (seen(net, features, noisier, places) - expected).abs().max() > 1e-2


def test_planes_keep_their_distance(net):
    features, facts, places = inputs(4, 3)
    expected = seen(net, features, facts, places)
    reverse = seen(net, features.flip(1), facts.flip(1), places).flip(1)
    assert torch.allclose(reverse, expected, atol=FLOAT32)  # up is as good as down
    order = torch.tensor([2, 0, 3, 1])
    mixed = seen(net, features[:, order], facts[:, order], places)[:, order.argsort()]
    assert (mixed - expected).abs().max() > 1e-3


def test_images_of_a_batch_do_not_see_each_other(net):
    first, second = inputs(2, 3, seed=1), inputs(2, 3, seed=2)
    both = seen(net, *(torch.cat(pair) for pair in zip(first, second, strict=True)))
    assert torch.allclose(both[:1], seen(net, *first), atol=FLOAT32)
    assert torch.allclose(both[1:], seen(net, *second), atol=FLOAT32)


def test_patches_see_the_keys_and_their_own_column_only(net):
    features, facts, places = inputs(1, 6)
    facts[..., 0] = 0  # its mean over the image would tell of every patch
    keys = torch.tensor([1, 4])
    expected = seen(net, features, facts, places, keys)
    features[:, :, 5] += 1
    changed = (seen(net, features, facts, places, keys) - expected).abs().amax((0, 1, 3))
    assert (changed[:5] < FLOAT32).all()
    assert changed[5] > 0.01
    features[:, :, 4] += 1
    changed = (seen(net, features, facts, places, keys) - expected).abs().amax((0, 1, 3))
    assert (changed > 1e-4).all()


@pytest.mark.parametrize("planes", [1, 3])
def test_chunks_give_the_same_as_all_patches_at_once(net, monkeypatch, planes):
    given = inputs(planes, 9)
    keys = torch.tensor([0, 2, 7, 8, 9 * planes - 6])
    expected = seen(net, *given, keys)
    monkeypatch.setattr(module, "CHUNK", 4)
    assert torch.allclose(seen(net, *given, keys), expected, atol=FLOAT32)
    # the layers by hand: all patches pass together, and only the keys are seen
    features, facts, places = given
    with torch.no_grad():
        contrast, noise = facts.unbind(-1)
        more = [contrast - contrast.mean(), noise, torch.zeros_like(noise)]
        x = net.enter(torch.cat([features, torch.stack(more, -1)], -1))
        level = torch.arange(planes)
        between = module.near((level[:, None] - level).float(), module.NEAR_PLANES)
        closeness = module.near_keys(places, places[:, keys % 9], planes, keys // 9)
        for layer in net.layers:
            x = layer.in_column(x, between)
            x = layer.in_image(x, x.flatten(1, 2)[:, keys], closeness)
        assert torch.allclose(net.leave(x), expected, atol=FLOAT32)


def test_keys_are_spread_and_always_the_same():
    assert torch.equal(spread_keys(KEYS, torch.device("cpu")), torch.arange(KEYS))
    keys = spread_keys(40 * 40, torch.device("cpu"))
    assert len(keys.unique()) == KEYS
    assert torch.equal(keys, spread_keys(40 * 40, torch.device("cpu")))
    for part in (keys // 40, keys % 40):  # each tenth of the rows and of the columns has its share
        assert (torch.bincount(part // 4, minlength=10) > 0.5 * KEYS / 10).all()


def test_facts_are_contrast_and_noise():
    torch.manual_seed(0)
    smooth = torch.linspace(0, 6, 64).sin().expand(64, 64)
    patches = torch.stack([smooth + 3, 20 * smooth + 3, smooth + 3 + torch.randn(64, 64)])
    facts = facts_of(patches, normalise(patches))
    assert float(facts[1, 0] - facts[0, 0]) == pytest.approx(math.log(20), abs=1e-4)
    assert torch.allclose(facts[:, 0], patches.std((1, 2)).log())
    assert facts[0, 1] == pytest.approx(float(facts[1, 1]), rel=1e-3)
    assert facts[2, 1] > 10 * facts[0, 1]


# --- the estimator with a context


FACTORS = error_bars.IntervalFactors((0.0,), (2.0,), (5.0,))  # of the context's error bars


@pytest.fixture(scope="module")
def folder(tmp_path_factory, focus_run):
    """Checkpoint of a short training with a context of random weights."""
    found = tmp_path_factory.mktemp("checkpoints") / "context"
    shutil.copytree(focus_run, found)
    config = json.loads((found / "config.json").read_text("utf-8"))
    calibration = error_bars.to_config([error_bars.FactorsByNoise((0.0,), (FACTORS,))])
    write_json(found / "config.json", {**config, "context": {"calibration": calibration}})
    save_context(found, random_context())
    return found


@pytest.fixture(scope="module")
def estimator(folder):
    return load_estimator(folder)


@pytest.fixture(scope="module")
def alone(estimator):
    return replace(estimator, context=None)


@pytest.fixture(scope="module")
def image():
    torch.manual_seed(4)
    rough = torch.rand(160, 128).cumsum(1) + torch.rand(160, 128).cumsum(0)
    return 100 * (rough + 3 * torch.rand(160, 128))


def patches_of(image, stride=32):
    return image.unfold(0, 64, stride).unfold(1, 64, stride).flatten(0, 1)


def assert_same(found, expected):
    for name in ("values", "standard_deviations", "half_widths_95"):
        assert torch.allclose(getattr(found, name), getattr(expected, name), atol=FLOAT32), name


def test_without_a_context_each_patch_counts_by_itself(alone, image):
    patches = patches_of(image)
    features, facts = alone.features(patches, Microscope())
    found = alone.predict_together(features[None], facts[None], torch.rand(len(patches), 2))
    expected = alone.predict(patches, Microscope())
    assert_same(found, expected)
    content = expected.content_probability
    assert torch.allclose(found.content_probability, content, atol=FLOAT32)
    assert (found.names, found.unit) == (expected.names, expected.unit)


def test_context_corrects_the_outputs_of_the_encoder(estimator, image):
    patches = patches_of(image)
    features, facts = estimator.features(patches, Microscope())
    assert torch.equal(facts, facts_of(patches, normalise(patches)))
    features, facts = (t.unflatten(0, (3, 4)) for t in (features, facts))  # as 3 planes of 4 places
    places = torch.rand(4, 2)
    found = estimator.predict_together(features, facts, places)
    with torch.no_grad():
        base = estimator.network.outputs(features.flatten(0, 1))
        change = seen(estimator.context, features[None], facts[None], places[None])
        outputs = base + change[0].flatten(0, 1)
    values, log_variances, logits = split_outputs(outputs)
    assert torch.allclose(found.values, (values + 1) / 2, atol=FLOAT32)  # 0 to 1 waves
    deviations = (log_variances / 2).exp() / 2
    # the error bars are those that were measured with the context
    assert torch.allclose(found.standard_deviations, 2 * deviations, atol=FLOAT32)
    assert torch.allclose(found.half_widths_95, 5 * deviations, atol=FLOAT32)
    assert torch.allclose(found.content_probability, logits.sigmoid(), atol=FLOAT32)
    assert (found.values - estimator.predict(patches, Microscope()).values).abs().max() > 0.01


def test_context_is_part_of_the_fingerprint(estimator, alone):
    other = replace(estimator, context=random_context(seed=8))
    assert len({one.fingerprint for one in (estimator, alone, other)}) == 3


@pytest.mark.parametrize("damage", ["missing", "truncated", "other"])
def test_damaged_context_is_named(tmp_path, folder, damage):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    path = copy / "context.safetensors"
    whole = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "other":
        save_context(copy, torch.nn.Linear(3, 4))
    with pytest.raises(InputError, match=r"context\.safetensors is ") as caught:
        load_estimator(copy)
    assert "\n" not in str(caught.value)


def test_context_without_error_bars_is_named(tmp_path, folder):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text("utf-8"))
    write_json(copy / "config.json", {**config, "context": {"calibration": [{"log_noise": [0.0]}]}})
    with pytest.raises(InputError, match=r"config\.json .*damaged") as caught:
        load_estimator(copy)
    assert "\n" not in str(caught.value)


# --- maps


def test_map_without_context_is_that_of_single_patches(estimator, alone, image):
    found = predict_map(estimator, image, Microscope(), 32, context=False)
    expected = predict_map(alone, image, Microscope(), 32)
    assert_same(found, expected)
    assert torch.equal(found.content, expected.content)
    single = alone.predict(patches_of(image), Microscope())
    assert torch.allclose(found.values.flatten(), single.values[:, 0], atol=FLOAT32)


def test_map_with_context_is_that_of_all_patches_together(estimator, image):
    found = predict_map(estimator, image, Microscope(), 32)
    assert found.values.shape == (1, 4, 3)
    features, facts = estimator.features(patches_of(image), Microscope())
    places = torch.tensor([[row / 2, column / 2] for row in range(4) for column in range(3)])
    expected = estimator.predict_together(features[None], facts[None], places)
    assert torch.allclose(found.values.flatten(), expected.values[:, 0], atol=FLOAT32)
    bars = expected.standard_deviations[:, 0]
    assert torch.allclose(found.standard_deviations.flatten(), bars, atol=FLOAT32)
    assert torch.allclose(found.content.flatten(), expected.content_probability, atol=FLOAT32)
    assert torch.allclose(found.brightness.flatten(), patches_of(image).mean((1, 2)))


def test_outliers_take_the_content_of_patches_seen_together(estimator, image):
    class Spotted(TensorImage):
        usable = TensorImage(torch.ones(160, 128))

    Spotted.usable.pixels[:64, :64] = 0
    plain = predict_map(estimator, image, Microscope(), 32)
    found = predict_map(estimator, Spotted(image), Microscope(), 32)
    assert found.content[0, 0] == 0
    assert torch.equal(found.content[2:], plain.content[2:])
    assert torch.equal(found.values, plain.values)


def test_context_chooses_which_planes_are_seen_together(estimator, alone, image):
    planes = [
        TensorImage(image),
        TensorImage(image.flip(0)),
        TensorImage(image[:, ::2].repeat(1, 2)),
    ]
    stack = {c: predict_stack(estimator, planes, Microscope(), 48, c) for c in ("stack", "image")}
    single = predict_stack(estimator, planes, Microscope(), 48, "none")
    for plane, whole, image_map, each in zip(
        planes, stack["stack"], stack["image"], single, strict=True
    ):
        assert_same(image_map, predict_map(estimator, plane, Microscope(), 48))
        assert_same(each, predict_map(alone, plane, Microscope(), 48))
        assert (whole.values - image_map.values).abs().max() > 1e-3
        assert torch.equal(whole.brightness, each.brightness)


def test_killed_map_goes_on_with_the_same_context_only(tmp_path, estimator, image):
    partial = tmp_path / "partial.f32"
    expected = [predict_map(estimator, image, Microscope(), 32, context=c) for c in (True, False)]
    for context in (True, False, False, True):
        found = predict_map(estimator, image, Microscope(), 32, partial, {}, context)
        assert torch.equal(found.values, expected[0 if context else 1].values)
