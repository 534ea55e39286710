"""Networks by name: the spectral one, and the paper's ResNets on pixels as its rivals."""

import copy
import itertools
from collections.abc import Callable

import torch
import torchvision
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.spectral_resnet import CircularConv, SpectralResNet
from psf.errors import InputError

RIVALS: dict[str, Callable[..., nn.Module]] = {
    "resnet18": torchvision.models.resnet18,
    "resnet34": torchvision.models.resnet34,
    "resnet50": torchvision.models.resnet50,
    "resnext50": torchvision.models.resnext50_32x4d,
}
MODEL_NAMES = ("spectral_resnet", *RIVALS)


def build(name: str, n_outputs: int) -> nn.Module:
    """Build a network by name, with random weights, in channels-last layout.

    Its forward takes patches (N, H, W) of mean 0 and standard deviation 1 and cut-off frequencies
    (N,) in cycles per px, and returns (N, n_outputs).

    Raises
    ------
    InputError
        If there is no network of that name.
    """
    if name == "spectral_resnet":
        return SpectralResNet(n_outputs).to(memory_format=torch.channels_last)
    if name in RIVALS:
        return PixelResNet(name, n_outputs).to(memory_format=torch.channels_last)
    raise InputError(f"unknown network '{name}'; choose one of {', '.join(MODEL_NAMES)}.")


def for_inference(network: nn.Module) -> nn.Module:
    """Copy a network in evaluation mode, batch normalisations folded into their convolutions.

    The same values up to rounding, 1.6 times as fast on a CPU. Every network here registers a
    normalisation right after the convolution whose output it takes.
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


class PixelResNet(nn.Module):
    """A torchvision ResNet from scratch on grey patches; it is blind to the optics."""

    def __init__(self, name: str, outputs: int) -> None:
        super().__init__()
        self.net = RIVALS[name](num_classes=outputs)
        self.net.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)

    def forward(self, patches: torch.Tensor, cutoff: torch.Tensor) -> torch.Tensor:
        """(N, H, W) normalised patches -> (N, outputs); `cutoff` is not used."""
        images = patches[:, None].contiguous(memory_format=torch.channels_last)
        return self.net(images).float()
