"""Restorations by other open-source programs, called in their own way; all but one are optional."""

import importlib.util
import warnings

import numpy as np
import torch
from skimage.restoration import unsupervised_wiener

SMALLEST = 1e-3  # photons: least expected image and visible share, avoids division by zero


def is_installed(name: str) -> bool:
    """Whether an optional program can be imported."""
    if importlib.util.find_spec(name) is None:
        return False
    with warnings.catch_warnings(action="ignore"):  # of its own dependencies
        importlib.import_module(name)
    return True


def skimage_wiener(image: torch.Tensor, psf: torch.Tensor) -> torch.Tensor:
    """scikit-image's unsupervised Wiener estimate (H, W), one PSF (K, K), borders mirrored."""
    margin = psf.shape[-1] // 2
    padded = np.pad(image.cpu().numpy().astype(float), margin, mode="reflect")
    scale = padded.max()
    found, _ = unsupervised_wiener(padded / scale, psf.cpu().double().numpy(), rng=0, clip=False)
    inner = tuple(slice(margin, margin + edge) for edge in image.shape)
    return torch.from_numpy(found[inner] * scale).to(image)


def deepinv_richardson_lucy(
    image: torch.Tensor,
    filters: torch.Tensor,
    weights: torch.Tensor,
    iterations: int,
    valid: bool = True,
) -> torch.Tensor:
    """Richardson-Lucy estimate (H, W) with deepinv's `SpaceVaryingBlur`.

    Parameters
    ----------
    image : (H, W)
    filters : (M, K, K), K odd
    weights : (M, H + K - 1, W + K - 1), on the object
    valid : estimate the field around the image too; otherwise zeros surround it, the default there
    """
    from deepinv.physics import SpaceVaryingBlur

    margin = filters.shape[-1] // 2
    inside = tuple(slice(margin, margin + edge) for edge in image.shape)
    weights = weights if valid else weights[:, *inside]
    padding = "valid" if valid else "constant"
    physics = SpaceVaryingBlur(filters[None, None], weights[None, None], padding, use_fft=True)
    seen_image = image[None, None]
    seen = physics.A_adjoint(torch.ones_like(seen_image)).clamp(min=SMALLEST)
    found = torch.full_like(seen, float(image.mean()))
    for _ in range(iterations):
        expected = physics.A(found).clamp(min=SMALLEST)
        found = found * physics.A_adjoint(seen_image / expected).clamp(min=0) / seen
    return found[0, 0, *inside] if valid else found[0, 0]


def sdeconv_richardson_lucy(
    image: torch.Tensor, psf: torch.Tensor, iterations: int
) -> torch.Tensor:
    """Richardson-Lucy estimate (H, W) of SDeconv with one PSF (K, K) and its own padding."""
    from sdeconv.deconv import SRichardsonLucy

    return SRichardsonLucy(psf, niter=iterations, pad=psf.shape[-1] // 2)(image).cpu()
