"""Images of surfaces that are not flat: every object point is blurred by the PSF of its depth.

z > 0 is an emitter farther from the objective than the focal plane; um in object space.
"""

import math
from collections.abc import Callable

import torch
from scipy.fft import next_fast_len

from psf.errors import InputError

CHUNK = 16  # columns whose PSFs are in memory together


def tilted_depth_um(columns: int, degrees: float, pixel_size_um: float) -> torch.Tensor:
    """Depth (columns,) of a plane tilted about the y axis, in focus at its middle.

    The plane rises along x; a pixel is pixel_size_um wide in the image, that is across the axis.
    """
    if not abs(degrees) < 90:
        raise InputError(f"a plane cannot be tilted by {degrees:g} degrees; give less than 90.")
    x_um = (torch.arange(columns) - (columns - 1) / 2) * pixel_size_um
    return x_um * math.tan(math.radians(degrees))


def dome_depth_um(size: int, rim_um: float, top_um: float) -> torch.Tensor:
    """Depth (size, size) of a spherical cap: top_um in the middle, rim_um from its rim outwards."""
    half = (size - 1) / 2
    share = torch.linspace(-half, half, size) / (0.9 * half)
    squared = (share[:, None] ** 2 + share**2).clamp(max=1)
    # of a sphere; the cap is a third of its radius high, so that its slope stays finite
    radius = (1 + (1 / 3) ** 2) / (2 / 3)
    height = (radius**2 - squared).sqrt() - (radius - 1 / 3)
    return rim_um + (top_um - rim_um) * 3 * height


def blur_by_column(
    sharp: torch.Tensor, psfs_of: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Blur an object whose depth changes along x: each column has its own PSF, exactly.

    y = sum_x h_x * (column x of the object), by FFTs along the columns.

    Parameters
    ----------
    sharp : (H, W) tensor
    psfs_of : function of column indices (N,) that returns their PSFs (N, K, K), K odd

    Returns
    -------
    (H - K + 1, W - K + 1) tensor, the valid region.
    """
    height, width = sharp.shape
    size = psfs_of(torch.zeros(1, dtype=torch.long)).shape[-1]
    if size > min(height, width):
        raise InputError(f"a PSF of {size} px does not fit an object of {height} x {width} px.")
    # circular wrap-around reaches the first size - 1 rows only, which are cut off
    rows = next_fast_len(height, real=True)
    objects = torch.fft.rfft(sharp, n=rows, dim=0).T  # (W, F)
    blurred = objects.new_zeros(width + size - 1, objects.shape[1])
    for chunk in torch.arange(width).split(CHUNK):
        spectra = torch.fft.rfft(psfs_of(chunk).transpose(1, 2), n=rows)  # (N, K along x, F)
        spectra *= objects[chunk, None]
        for x, column in zip(chunk.tolist(), spectra, strict=True):
            blurred[x : x + size] += column
    valid = torch.fft.irfft(blurred[size - 1 : width], n=rows)[:, size - 1 : height]
    return valid.T.contiguous()
