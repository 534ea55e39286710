"""Networks by name: the spectral ResNet, and the ResNets of the paper for comparison."""

import copy
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
import torchvision
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.spectral_resnet import CircularConv, SpectralResNet
from psf.errors import InputError

# Architectures of the paper, and a smaller ResNet; all see pixels only.
RIVALS: dict[str, Callable[..., nn.Module]] = {
    "resnet18": torchvision.models.resnet18,
    "resnet34": torchvision.models.resnet34,
    "resnet50": torchvision.models.resnet50,
    "resnext50": torchvision.models.resnext50_32x4d,
}
CPU_BATCH = 64  # patches that a CPU predicts together
GPU_BATCH = 1024  # on a GPU, which needs much work in each step; not measured
# Channels of the pixel branch of the wide network, by stage; that of the other one ends at 64. Dim
# patches need it: their spectra drown in noise.
WIDE_PIXELS = (32, 64, 128, 192)
ModelName = Literal[
    "spectral_resnet", "spectral_resnet_wide", "resnet18", "resnet34", "resnet50", "resnext50"
]
MODEL_NAMES = get_args(ModelName)


def build(name: str, n_outputs: int) -> nn.Module:
    """Network with random weights, in channels-last layout, which is the faster one on CPUs.

    It takes patches (N, H, W) of mean 0 and standard deviation 1, and cut-off frequencies (N,) in
    cycles per px. It returns (N, n_outputs).

    Raises
    ------
    InputError
        If there is no network of that name.
    """
    if name == "spectral_resnet":
        return SpectralResNet(n_outputs).to(memory_format=torch.channels_last)
    if name == "spectral_resnet_wide":
        network = SpectralResNet(n_outputs, pixel_widths=WIDE_PIXELS)
        return network.to(memory_format=torch.channels_last)
    if name in RIVALS:
        return PixelResNet(name, n_outputs).to(memory_format=torch.channels_last)
    raise InputError(f"unknown network '{name}'; choose one of {', '.join(MODEL_NAMES)}.")


def for_inference(network: nn.Module) -> nn.Module:
    """Copy of a network for prediction, with batch normalisations folded into convolutions.

    It predicts the same values up to rounding, 1.6 times as fast on a CPU. All networks here
    register a normalisation directly after the convolution before it.
    """
    folded = copy.deepcopy(network).eval()
    for parent in folded.modules():
        children = list(parent.named_children())
        for (name, first), (next_name, norm) in itertools.pairwise(children):
            owner, key = (first, "conv") if isinstance(first, CircularConv) else (parent, name)
            conv = getattr(owner, key, None)
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(owner, key, fuse_conv_bn_eval(conv, norm))
                setattr(parent, next_name, nn.Identity())
    return folded.to(memory_format=torch.channels_last)


def batch_for(device: torch.device) -> int:
    """Number of patches that a network should see at once on a device."""
    return CPU_BATCH if device.type == "cpu" else GPU_BATCH


@contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """Context in which CUDA computes convolutions in float32, as a CPU does.

    By default it rounds their inputs to the 10 bits of TF32.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


class PixelResNet(nn.Module):
    """ResNet of torchvision with random weights, for one channel; it ignores the optics."""

    def __init__(self, name: str, outputs: int) -> None:
        super().__init__()
        self.net = RIVALS[name](num_classes=outputs)
        self.net.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)

    def forward(self, patches: torch.Tensor, cutoff: torch.Tensor) -> torch.Tensor:
        """Outputs (N, outputs) for normalised patches (N, H, W); `cutoff` is not used."""
        images = patches[:, None].contiguous(memory_format=torch.channels_last)
        return self.net(images).float()
