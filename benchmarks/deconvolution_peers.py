"""Restorations of other programs, in their own words; none of them is needed by the project."""

import importlib.util
import warnings

import torch


def installed(name: str) -> bool:
    """Whether a peer can be imported; says how to install it if not."""
    if importlib.util.find_spec(name) is None:
        print(f"not installed: {name} (pip install {name})")
        return False
    with warnings.catch_warnings(action="ignore"):  # of its own dependencies
        importlib.import_module(name)
    return True


def deepinv_richardson_lucy(
    image: torch.Tensor,
    filters: torch.Tensor,
    weights: torch.Tensor,
    iterations: int,
    valid: bool = True,
) -> torch.Tensor:
    """Richardson-Lucy (MLEM) on deepinv's `SpaceVaryingBlur`.

    Parameters
    ----------
    image : (H, W)
    filters : (M, K, K), K odd
    weights : (M, H + K - 1, W + K - 1), on the object
    valid : estimate the field around the image too; otherwise, as by default there, zeros
    """
    from deepinv.physics import SpaceVaryingBlur

    margin = filters.shape[-1] // 2
    inside = tuple(slice(margin, margin + edge) for edge in image.shape)
    weights = weights if valid else weights[:, *inside]
    padding = "valid" if valid else "constant"
    physics = SpaceVaryingBlur(filters[None, None], weights[None, None], padding, use_fft=True)
    seen_image = image[None, None]
    seen = physics.A_adjoint(torch.ones_like(seen_image)).clamp(min=1e-3)
    found = torch.full_like(seen, float(image.mean()))
    for _ in range(iterations):
        expected = physics.A(found).clamp(min=1e-3)
        found = found * physics.A_adjoint(seen_image / expected).clamp(min=0) / seen
    return found[0, 0, *inside] if valid else found[0, 0]


def sdeconv_richardson_lucy(
    image: torch.Tensor, psf: torch.Tensor, iterations: int
) -> torch.Tensor:
    """SDeconv with one PSF (K, K) and its own padding, (H, W)."""
    from sdeconv.deconv import SRichardsonLucy

    return SRichardsonLucy(psf, niter=iterations, pad=psf.shape[-1] // 2)(image).cpu()
