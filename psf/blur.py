"""Blur on the valid region only: real content outside the patch, no wrap-around, no reflection."""

import torch
from scipy.fft import next_fast_len

from psf.errors import InputError

GROUP = 8  # images transformed together: they fit the cache of a processor core


def blur_valid(images: torch.Tensor, psfs: torch.Tensor) -> torch.Tensor:
    """Convolve each image with its PSF and keep what no border can have touched.

    Parameters
    ----------
    images : (N, H, W) tensor
    psfs : (N, K, K) or (1, K, K) tensor

    Returns
    -------
    (N, H - K + 1, W - K + 1) tensor, centred where the images are centred.

    Raises
    ------
    InputError
        If the PSF is larger than the image.
    """
    height, width, size = *images.shape[-2:], psfs.shape[-1]
    if size > min(height, width):
        raise InputError(f"a PSF of {size} px does not fit an image of {height} x {width} px.")
    # circular wrap-around reaches the first size - 1 rows and columns only, which are cut off
    shape = tuple(next_fast_len(edge, real=True) for edge in (height, width))
    psfs = psfs.expand(len(images), -1, -1)
    parts = zip(images.split(GROUP), psfs.split(GROUP), strict=True)
    spectra = (torch.fft.rfft2(x, s=shape) * torch.fft.rfft2(h, s=shape) for x, h in parts)
    valid = slice(size - 1, height), slice(size - 1, width)
    return torch.cat([torch.fft.irfft2(s, s=shape)[:, *valid] for s in spectra])


def blur_varying(
    image: torch.Tensor, psfs: torch.Tensor, weights: torch.Tensor, chunk: int = 16
) -> torch.Tensor:
    """Spatially variant blur y = sum_i h_i * (w_i x): each object point has one PSF.

    Parameters
    ----------
    image : (H, W) tensor
    psfs : (M, K, K) tensor
    weights : (M, H, W) tensor
        Share of PSF i at each object point; sums to 1 over i.

    Returns
    -------
    (H - K + 1, W - K + 1) tensor, the valid region.
    """
    parts = zip(psfs.split(chunk), weights.split(chunk), strict=True)
    return sum(blur_valid(image * w, h).sum(0) for h, w in parts)


def interpolation_weights(values: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Weights (M, H, W) that blend rising levels (M,) linearly into a map of values (H, W)."""
    if len(levels) == 1:
        return torch.ones_like(values)[None]
    upper = torch.searchsorted(levels, values.contiguous()).clamp(1, len(levels) - 1)
    share = (values - levels[upper - 1]) / (levels[upper] - levels[upper - 1])
    share = share.clamp(0, 1)
    weights = values.new_zeros(len(levels), *values.shape)
    weights.scatter_(0, upper[None] - 1, (1 - share)[None])
    return weights.scatter_(0, upper[None], share[None])
