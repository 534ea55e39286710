"""Networks by name."""

import torch
from torch import nn

from models.rivals import RIVALS, PixelResNet
from models.spectral_resnet import SpectralResNet
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
