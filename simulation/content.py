"""The content filter: whether the centre of a crop has contrast and sharp detail before any blur.

The filter sees only the unblurred object, so it cannot depend on the label of the blur.
"""

import numpy as np
import torch

from simulation.augmentation import deviation

# The content filter. Contrast and detail are relative to the mean of the patch.
MIN_CONTRAST = 0.1  # standard deviation of the patch
MIN_QUADRANT_DETAIL = 0.04  # standard deviation of white texture with the same differences
MIN_SHARPNESS = 0.14  # between a smooth gradient (1/16) and an ideal edge (1/4); see `sharpness`
MIN_GOOD_QUADRANTS = 3  # of 4: one quadrant may be background
MIN_PATCH_PX = 32  # gives quadrants of 16 px, for differences over up to 8 px
PLACES_STEP = 32  # px between the windows that `sharp_places` tests


def is_sharp_and_rich(patches: torch.Tensor) -> torch.Tensor:
    """Content filter: whether patches (N, H, W) have contrast and sharp detail. (N,) bool.

    Three of the four quadrants need sharp detail.
    """
    mean = patches.mean((-2, -1)).clamp_min(1e-6)
    contrast = deviation(patches)[:, 0, 0] / mean
    quarters = _quadrants(patches)  # (N, 4, h, w)
    # White texture of standard deviation s has D = 4 s^2. A slow gradient has almost none.
    detail = (_structure_function(quarters, 4) / 4).sqrt()  # (N, 4)
    good = detail >= MIN_QUADRANT_DETAIL * mean[:, None]
    good &= sharpness(quarters) >= MIN_SHARPNESS
    return (contrast >= MIN_CONTRAST) & (good.sum(1) >= MIN_GOOD_QUADRANTS)


def sharpness(pixels: torch.Tensor) -> torch.Tensor:
    """Ratio (N, C) of fine to coarse detail of images (N, C, H, W): least of D(1)/D(4), D(2)/D(8).

    The structure function D(d) is the mean squared difference of pixels d px apart, down plus
    across. It grows as d^2 in a smooth image (ratio 1/16) and as d at sharp edges (1/4); it is
    constant for isolated points and white noise (1). Two scales are needed, since noise on a
    blurred background makes D(1) large. Brightness and contrast cancel.
    """
    structure = {lag: _structure_function(pixels, lag) for lag in (1, 2, 4, 8)}
    fine = structure[1] / structure[4].clamp_min(1e-12)
    coarse = structure[2] / structure[8].clamp_min(1e-12)
    return torch.minimum(fine, coarse)


def sharp_places(plane: np.ndarray, patch_size: int) -> np.ndarray:
    """Centres (M, 2), row and column, of the windows of a plane that pass the content filter."""
    tiles = torch.from_numpy(plane).unfold(0, patch_size, PLACES_STEP)
    tiles = tiles.unfold(1, patch_size, PLACES_STEP)  # (rows, columns, patch, patch)
    good = torch.stack([is_sharp_and_rich(row) for row in tiles])
    return good.nonzero().numpy() * PLACES_STEP + (patch_size - 1) / 2


def _structure_function(pixels: torch.Tensor, lag: int) -> torch.Tensor:
    down = pixels[..., lag:, :] - pixels[..., :-lag, :]
    across = pixels[..., lag:] - pixels[..., :-lag]
    # The squared norm is several times faster here than the mean of squares.
    return sum(
        torch.linalg.vector_norm(step, dim=(-2, -1)).square() / step[0, 0].numel()
        for step in (down, across)
    )


def _quadrants(patches: torch.Tensor) -> torch.Tensor:
    """(N, H, W) -> (N, 4, H // 2, W // 2)."""
    half = patches.shape[-2] // 2, patches.shape[-1] // 2
    parts = patches[:, : 2 * half[0], : 2 * half[1]].unflatten(2, (2, -1)).unflatten(1, (2, -1))
    return parts.transpose(2, 3).flatten(1, 2)
