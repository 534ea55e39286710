"""Noise in photons, illumination and rotation: what a camera and a stage do to an image.

Images are expected photons per pixel once `to_photons` has scaled them; read noise is in
electrons, gain in counts per electron, offset in counts. Quantum efficiency is part of the photon
number (photons mean detected photons). The degradations of Shajkofci & Liebling (2020), Fig. 6,
are here with physical arguments in place of their unitless strengths. Every random function takes
the generator it draws from; it must live on the images' device.
"""

import math

import torch

from psf.errors import InputError


def to_photons(images: torch.Tensor, photons_per_pixel: torch.Tensor | float) -> torch.Tensor:
    """Scale non-negative images (N, H, W) to the given mean photons per pixel, scalar or (N,)."""
    photons = torch.as_tensor(photons_per_pixel, dtype=images.dtype, device=images.device)
    mean = images.mean((1, 2), keepdim=True).clamp(min=torch.finfo(images.dtype).tiny)
    return images / mean * photons.reshape(-1, 1, 1)


def poisson_noise(photons: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Photon counts drawn from expected photons, exact."""
    if (photons < 0).any():
        raise InputError("expected photons are negative; subtract less background.")
    return torch.poisson(photons, generator)


def fast_poisson_noise(photons: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Photon counts by the Cornish-Fisher expansion; 10 times faster than exact on a CPU.

    mean + sqrt(mean) z + (z^2 - 1) / 6 has the mean, variance (to 1/18) and skewness of a Poisson
    variate (Abramowitz & Stegun 26.2.49); rounded to whole photons. Made for training sets.
    """
    z = torch.randn(photons.shape, generator=generator, device=photons.device, dtype=photons.dtype)
    return (photons + photons.sqrt() * z + (z * z - 1) / 6).round_().clamp_(min=0)


def gaussian_noise(
    photons: torch.Tensor, read_noise_e: torch.Tensor | float, generator: torch.Generator
) -> torch.Tensor:
    """Add read noise of the given standard deviation in electrons, scalar or (N,)."""
    sigma = torch.as_tensor(read_noise_e, dtype=photons.dtype, device=photons.device)
    z = torch.randn(photons.shape, generator=generator, device=photons.device, dtype=photons.dtype)
    return photons + sigma.reshape(-1, *[1] * (photons.ndim - 1)) * z


def camera_counts(
    photons: torch.Tensor,
    generator: torch.Generator,
    read_noise_e: float = 1.6,
    gain_counts_per_e: float = 1.0,
    offset_counts: float = 0.0,
) -> torch.Tensor:
    """Camera counts from expected photons: Poisson, read noise, gain, offset, in this order."""
    if gain_counts_per_e <= 0 or read_noise_e < 0:
        raise InputError("the gain must be positive and the read noise not negative.")
    electrons = gaussian_noise(poisson_noise(photons, generator), read_noise_e, generator)
    return gain_counts_per_e * electrons + offset_counts


def quantise(images: torch.Tensor, bits: int = 8) -> torch.Tensor:
    """Round images (N, H, W) to the levels 0 .. 2^bits - 1, the brightest pixel at the top."""
    if not 1 <= bits <= 16:
        raise InputError(f"{bits} bits; give 1 to 16.")
    top = images.amax((1, 2), keepdim=True).clamp(min=torch.finfo(images.dtype).tiny)
    return (images / top * (2**bits - 1)).round()


def global_illumination(photons: torch.Tensor, gain: torch.Tensor | float) -> torch.Tensor:
    """Change the lamp: expected photons times a gain, scalar or (N,)."""
    gain = torch.as_tensor(gain, dtype=photons.dtype, device=photons.device)
    if (gain <= 0).any():
        raise InputError("the illumination gain must be positive.")
    return photons * gain.reshape(-1, *[1] * (photons.ndim - 1))


def axial_illumination(
    photons: torch.Tensor,
    corner_loss: torch.Tensor | float,
    centre: torch.Tensor | None = None,
) -> torch.Tensor:
    """Vignetting: full light on the axis, a share `corner_loss` (scalar or (N,)) less at 1.

    Parameters
    ----------
    centre : (N, 2) tensor, optional
        The axis (y, x) in coordinates that run from -1 to 1 across the image; default the middle.
        The loss grows with the square of the distance, 1 being the distance of a corner.
    """
    height, width = photons.shape[1:]
    loss = torch.as_tensor(corner_loss, dtype=photons.dtype, device=photons.device)
    if (loss < 0).any() or (loss > 1).any():
        raise InputError("the loss of light in the corner must lie between 0 and 1.")
    centre = photons.new_zeros(1, 2) if centre is None else centre
    y = torch.linspace(-1, 1, height, device=photons.device, dtype=photons.dtype)
    x = torch.linspace(-1, 1, width, device=photons.device, dtype=photons.dtype)
    dy = (y - centre[:, :1]).square()  # (N, H)
    dx = (x - centre[:, 1:]).square()  # (N, W)
    squared = (dy[:, :, None] + dx[:, None, :]) / 2
    return photons * (1 - loss.reshape(-1, 1, 1) * squared).clamp(min=0)


def rotate(images: torch.Tensor, degrees: torch.Tensor | float, size: int) -> torch.Tensor:
    """Turn the object by any angle and cut out the middle (N, size, size); never looks outside.

    Parameters
    ----------
    images : (N, H, W) tensor
    degrees : scalar or (N,); from +x (columns) to +y (rows)
    size : pixels; at most the square that fits every angle, min(H, W) / sqrt(2) - 2

    Raises
    ------
    InputError
        If the cut-out could reach beyond the image.
    """
    height, width = images.shape[-2:]
    if size > min(height, width) / math.sqrt(2) - 2:
        raise InputError(f"a turned square of {size} px does not fit {height} x {width} px.")
    angle = torch.as_tensor(degrees, dtype=images.dtype, device=images.device).reshape(-1)
    angle = torch.deg2rad(angle).expand(len(images))
    steps = torch.arange(size, device=images.device, dtype=images.dtype) - (size - 1) / 2
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    x = cos * steps + sin * steps[:, None]  # where the output pixel comes from
    y = -sin * steps + cos * steps[:, None]
    grid = torch.stack([x * 2 / width, y * 2 / height], -1)  # (N, size, size, 2)
    turned = torch.nn.functional.grid_sample(
        images[:, None], grid, mode="bicubic", align_corners=False
    )
    return turned[:, 0]
