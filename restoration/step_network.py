"""The small network that corrects each step of the unrolled restoration."""

import torch
from torch import nn
from torch.nn import functional

WIDTH, DEEP = 32, 40  # channels at half and at a quarter of the resolution
MEMORY = 16  # channels at half the resolution that a step hands to the next one
FIRST_EXTRAPOLATION = 0.3  # before the training
STRIDE = 4  # px: the network works on images whose edges are multiples of it


class StepNetwork(nn.Module):
    """Correction (N, 1, H, W) of one step from images (N, C, H, W), with a memory between steps.

    The images are folded to half the resolution, so that a convolution costs a quarter. One level
    at a quarter of the resolution sees 60 px around each pixel. The last layer begins at 0: an
    untrained network corrects nothing.
    """

    def __init__(self, channels: int, steps: int, width: int = WIDTH, deep: int = DEEP) -> None:
        super().__init__()
        # by which share of its last change the object is extrapolated before each step
        self.extrapolation = nn.Parameter(torch.full((steps,), FIRST_EXTRAPOLATION))
        self.first = nn.Conv2d(4 * channels + MEMORY, width, 3, padding=1)
        self.before = Residual(width)
        self.down = nn.Conv2d(width, deep, 3, 2, padding=1)
        self.middle = Residual(deep)
        self.up = nn.Conv2d(deep, width, 1)
        self.after = Residual(width)
        self.last = nn.Conv2d(width, 4 + MEMORY, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(
        self, images: torch.Tensor, memory: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Correction (N, 1, H, W), and the memory (N, MEMORY, ...) of the next step."""
        height, width = images.shape[-2:]
        margins = (0, -width % STRIDE, 0, -height % STRIDE)
        folded = functional.pixel_unshuffle(functional.pad(images, margins, "replicate"), 2)
        if memory is None:
            memory = folded.new_zeros(len(folded), MEMORY, *folded.shape[-2:])
        folded = torch.cat([folded, memory], 1).contiguous(memory_format=torch.channels_last)
        fine = self.before(functional.relu(self.first(folded)))
        coarse = self.middle(functional.relu(self.down(fine)))
        fine = fine + functional.interpolate(self.up(coarse), scale_factor=2.0)
        found = self.last(self.after(functional.relu(fine)))
        correction = functional.pixel_shuffle(found[:, :4], 2)
        return correction[..., :height, :width], found[:, 4:].tanh()


class Residual(nn.Module):
    """Two convolutions whose result is added to their input (N, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(channels, channels, 3, padding=1)
        self.two = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W), of the same shape as the input."""
        return functional.relu(images + self.two(functional.relu(self.one(images))))
