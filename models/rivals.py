"""The paper's networks: torchvision's ResNets on pixels, one input channel."""

from collections.abc import Callable

import torch
import torchvision
from torch import nn

RIVALS: dict[str, Callable[..., nn.Module]] = {
    "resnet18": torchvision.models.resnet18,
    "resnet34": torchvision.models.resnet34,
    "resnet50": torchvision.models.resnet50,
    "resnext50": torchvision.models.resnext50_32x4d,
}


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
