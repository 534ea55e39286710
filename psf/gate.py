"""The gate for crops: sharp enough, and with enough content, to carry the label of a blur.

It looks at the object before the blur, so that it cannot depend on the label.
"""

import numpy as np
import torch

# An ideal edge has a sharpness of 1/4, a smooth gradient 1/16; see `sharpness`.
MIN_CONTRAST = 0.1
MIN_QUADRANT_DETAIL = 0.04
MIN_SHARPNESS = 0.14
MIN_GOOD_QUADRANTS = 3
MIN_PATCH_PX = 32
PLACES_STEP = 32  # px between the windows that `sharp_places` looks at


def is_sharp_and_rich(patches: torch.Tensor) -> torch.Tensor:
    """Whether patches (N, H, W) have contrast, and sharp content in 3 of 4 quadrants. (N,) bool."""
    mean = patches.mean((-2, -1)).clamp_min(1e-6)
    contrast = deviation(patches)[:, 0, 0] / mean
    quarters = _quadrants(patches)  # (N, 4, h, w)
    # White texture of standard deviation s has D = 4 s^2; a slow gradient hardly counts.
    detail = (_structure_function(quarters, 4) / 4).sqrt()  # (N, 4)
    good = detail >= MIN_QUADRANT_DETAIL * mean[:, None]
    good &= sharpness(quarters) >= MIN_SHARPNESS
    return (contrast >= MIN_CONTRAST) & (good.sum(1) >= MIN_GOOD_QUADRANTS)


def sharpness(pixels: torch.Tensor) -> torch.Tensor:
    """Fine over coarse detail: the lesser of D(1)/D(4) and D(2)/D(8). (N, C, H, W) -> (N, C).

    D(d) is the structure function: the mean squared differences of pixels d px apart, down and
    across, added. It grows as d^2 where the image is smooth over d (ratio 1/16), as d for sharp
    edges (1/4), not at all for isolated points or white noise (1). Two scales, since noise on a
    blurred background makes D(1) large. Brightness and contrast cancel.
    """
    structure = {lag: _structure_function(pixels, lag) for lag in (1, 2, 4, 8)}
    fine = structure[1] / structure[4].clamp_min(1e-12)
    coarse = structure[2] / structure[8].clamp_min(1e-12)
    return torch.minimum(fine, coarse)


def sharp_places(plane: np.ndarray, patch_size: int) -> np.ndarray:
    """Centres (M, 2), row and column, of the windows of a plane that pass the gate."""
    tiles = torch.from_numpy(plane).unfold(0, patch_size, PLACES_STEP)
    tiles = tiles.unfold(1, patch_size, PLACES_STEP)  # (rows, columns, patch, patch)
    good = torch.stack([is_sharp_and_rich(row) for row in tiles])
    return good.nonzero().numpy() * PLACES_STEP + (patch_size - 1) / 2


def deviation(pixels: torch.Tensor) -> torch.Tensor:
    """Compute the standard deviation of each image (N, 1, 1); torch.std is slower."""
    centred = pixels - pixels.mean((-2, -1), True)
    root_count = np.sqrt(pixels.shape[-2] * pixels.shape[-1])
    return torch.linalg.vector_norm(centred, dim=(-2, -1), keepdim=True) / root_count


def _structure_function(pixels: torch.Tensor, lag: int) -> torch.Tensor:
    down = pixels[..., lag:, :] - pixels[..., :-lag, :]
    across = pixels[..., lag:] - pixels[..., :-lag]
    # vector_norm squared is several times faster here than squares and their mean.
    return sum(
        torch.linalg.vector_norm(step, dim=(-2, -1)).square() / step[0, 0].numel()
        for step in (down, across)
    )


def _quadrants(patches: torch.Tensor) -> torch.Tensor:
    """(N, H, W) -> (N, 4, H // 2, W // 2)."""
    half = patches.shape[-2] // 2, patches.shape[-1] // 2
    parts = patches[:, : 2 * half[0], : 2 * half[1]].unflatten(2, (2, -1)).unflatten(1, (2, -1))
    return parts.transpose(2, 3).flatten(1, 2)
