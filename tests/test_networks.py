"""Networks: every name builds, learns in all its weights, and sees what it should see."""

import pytest
import torch

from models import MODEL_NAMES, build
from models.data import normalise
from models.networks import for_inference
from models.spectral_resnet import CircularConv, SpectralResNet
from psf import InputError

FLOAT32 = 1e-4  # of outputs near 1 after twenty layers in single precision


def batch(count=4, size=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    patches = normalise(torch.rand(count, size, size, generator=generator))
    return patches, torch.linspace(0.3, 0.5, count)


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_every_weight_takes_part(name):
    torch.manual_seed(0)
    network = build(name, 7)
    outputs = network(*batch())
    assert outputs.shape == (4, 7)
    assert outputs.dtype == torch.float32
    outputs.square().sum().backward()
    for weight_name, weight in network.named_parameters():
        assert torch.isfinite(weight.grad).all(), weight_name
        # of a bias before a normalisation the gradient would be zero
        assert weight.grad.abs().max() > 0, weight_name


@pytest.mark.parametrize(("size", "windows"), [(33, (32, 32)), (96, (64, 96)), (200, (64, 128))])
def test_windows_larger_than_the_patch_take_its_size(size, windows):
    outputs = []
    for asked in ((64, 128), windows):
        torch.manual_seed(0)
        outputs.append(SpectralResNet(3, asked)(*batch(size=size)))
    assert torch.equal(*outputs)
    assert float(outputs[0].detach().std(0).min()) > 10 * FLOAT32  # patches differ


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(InputError, match=r"unknown network 'vgg'.*spectral_resnet.*resnext50"):
        build("vgg", 3)


@pytest.mark.parametrize(("name", "sees_it"), [("spectral_resnet", True), ("resnet18", False)])
def test_only_the_spectral_network_sees_the_optics(name, sees_it):
    torch.manual_seed(0)
    network = build(name, 3).eval()
    patches, cutoff = batch()
    with torch.inference_mode():
        changed = (network(patches, cutoff) - network(patches, 0.9 * cutoff)).abs().max()
    assert (float(changed) > 10 * FLOAT32) == sees_it
    if not sees_it:
        assert float(changed) == 0


@pytest.mark.parametrize("name", ["spectral_resnet", "resnet18"])
def test_a_patch_is_judged_alone(name):
    torch.manual_seed(0)
    network = build(name, 3).eval()
    patches, cutoff = batch()
    with torch.inference_mode():
        together = network(patches, cutoff)
        alone = torch.cat([network(patches[i : i + 1], cutoff[i : i + 1]) for i in range(4)])
    assert torch.allclose(together, alone, atol=FLOAT32)


@pytest.mark.parametrize("stride", [1, 2])
def test_circular_convolution_shifts_with_its_input_in_angle(stride):
    torch.manual_seed(0)
    conv = CircularConv(2, 3, stride)
    x = torch.randn(1, 2, 12, 16)
    shifted = conv(x.roll(4, 3))
    assert torch.allclose(shifted, conv(x).roll(4 // stride, 3), atol=1e-6)
    assert not torch.allclose(conv(x.roll(4, 2)), conv(x).roll(4 // stride, 2), atol=1e-2)


def test_spectral_branch_does_not_feel_a_shift_of_the_object():
    """The power spectrum forgets where things are; the pixel branch is left out here."""
    torch.manual_seed(0)
    network = SpectralResNet(3, windows=(64,), pixel_widths=()).eval()
    periodic = torch.rand(1, 32, 32).repeat(1, 4, 4)
    patches = normalise(torch.cat([periodic, periodic.roll((32, 64), (1, 2))]))
    with torch.inference_mode():
        first, moved = network(patches, torch.full((2,), 0.5))
        mirrored = network(normalise(periodic.flip((1, 2))), torch.full((1,), 0.5))[0]
    assert torch.allclose(first, moved, atol=FLOAT32)
    # a point reflection leaves every power spectrum alone, up to the taper's half pixel
    assert torch.allclose(first, mirrored, atol=0.05)


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_folded_networks_predict_the_same(name):
    """Folding moves a normalisation into the weights before it: values stay, up to rounding."""
    torch.manual_seed(0)
    network = build(name, 3)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.8, 1.2)
    network.eval()
    folded = for_inference(network)
    with torch.inference_mode():
        plain = network(*batch())
        assert torch.allclose(folded(*batch()), plain, rtol=1e-3, atol=FLOAT32)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in network.modules())
