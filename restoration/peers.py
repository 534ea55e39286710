"""Restorations by other open-source programs, called in their own way; all but one are optional."""

import importlib.util
import itertools
import warnings
from collections.abc import Iterator

import numpy as np
import torch
from skimage.restoration import richardson_lucy, unsupervised_wiener

# Steps of deepinv's total variation denoiser, which goes on from its last result at each call
DENOISER_STEPS = 10
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
    padded, inner, scale = _mirrored(image, psf)
    found, _ = unsupervised_wiener(padded, psf.cpu().double().numpy(), rng=0, clip=False)
    return torch.from_numpy(found[inner] * scale).to(image)


def skimage_richardson_lucy(
    image: torch.Tensor, psf: torch.Tensor, iterations: int
) -> torch.Tensor:
    """scikit-image's Richardson-Lucy estimate (H, W), one PSF (K, K), borders mirrored."""
    padded, inner, scale = _mirrored(image, psf)
    found = richardson_lucy(padded, psf.cpu().double().numpy(), iterations, clip=False)
    return torch.from_numpy(found[inner] * scale).to(image)


def _mirrored(
    image: torch.Tensor, psf: torch.Tensor
) -> tuple[np.ndarray, tuple[slice, slice], float]:
    """Image with half a PSF mirrored on each side, divided by its peak; its place; the peak."""
    margin = psf.shape[-1] // 2
    padded = np.pad(image.cpu().numpy().astype(float), margin, mode="reflect")
    rows, columns = (slice(margin, margin + edge) for edge in image.shape)
    return padded / padded.max(), (rows, columns), float(padded.max())


def deepinv_plug_and_play(
    image: torch.Tensor,
    filters: torch.Tensor,
    weights: torch.Tensor,
    strength: float,
    iterations: int = 20,
) -> torch.Tensor:
    """Estimate (H, W) by deepinv's plug-and-play scheme with its total variation denoiser.

    Accelerated proximal gradient steps on least squares, its default, each followed by the
    denoiser. That needs no download, other than deepinv's networks. The field around the image is
    estimated too.

    Parameters
    ----------
    image : (H, W), photons
    filters, weights : as for `deepinv_richardson_lucy`
    strength : of the denoiser, for an image of mean 1
    """
    from deepinv.models import TVDenoiser
    from deepinv.optim import FISTA, L2, PnP
    from deepinv.physics import SpaceVaryingBlur

    margin = filters.shape[-1] // 2
    mean = image.mean()
    physics = SpaceVaryingBlur(filters[None, None], weights[None, None], "valid", use_fft=True)
    denoiser = TVDenoiser(n_it_max=DENOISER_STEPS)
    scheme = FISTA(L2(), PnP(denoiser), stepsize=1.0, g_param=strength, max_iter=iterations)
    seen = (image / mean)[None, None]
    start = torch.nn.functional.pad(seen, [margin] * 4, mode="reflect")
    with torch.no_grad():
        found = scheme(seen, physics, init=(start, start))
    inside = tuple(slice(margin, margin + edge) for edge in image.shape)
    return found[0, 0, *inside].clamp(min=0) * mean


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
    steps = deepinv_richardson_lucy_steps(image, filters, weights, valid)
    return next(itertools.islice(steps, iterations - 1, None))


def deepinv_richardson_lucy_steps(
    image: torch.Tensor, filters: torch.Tensor, weights: torch.Tensor, valid: bool = True
) -> Iterator[torch.Tensor]:
    """Estimates (H, W) after 1, 2, ... iterations of `deepinv_richardson_lucy`, without end."""
    from deepinv.physics import SpaceVaryingBlur

    margin = filters.shape[-1] // 2
    inside = tuple(slice(margin, margin + edge) for edge in image.shape)
    weights = weights if valid else weights[:, *inside]
    padding = "valid" if valid else "constant"
    physics = SpaceVaryingBlur(filters[None, None], weights[None, None], padding, use_fft=True)
    seen_image = image[None, None]
    seen = physics.A_adjoint(torch.ones_like(seen_image)).clamp(min=SMALLEST)
    found = torch.full_like(seen, float(image.mean()))
    while True:
        expected = physics.A(found).clamp(min=SMALLEST)
        found = found * physics.A_adjoint(seen_image / expected).clamp(min=0) / seen
        yield found[0, 0, *inside] if valid else found[0, 0]


def sdeconv_richardson_lucy(
    image: torch.Tensor, psf: torch.Tensor, iterations: int
) -> torch.Tensor:
    """Richardson-Lucy estimate (H, W) of SDeconv with one PSF (K, K) and its own padding."""
    from sdeconv.deconv import SRichardsonLucy

    return SRichardsonLucy(psf, niter=iterations, pad=psf.shape[-1] // 2)(image).cpu()
