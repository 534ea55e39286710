"""Camera noise, illumination and rotation of images, with physical units.

`to_photons` scales images to expected photons per pixel. Photons are detected photons, so that the
quantum efficiency is included. Read noise is in electrons, gain in counts per electron, offset in
counts. The degradations of Shajkofci & Liebling (2020), Fig. 6, are here, with physical arguments
in place of their unitless strengths. Every random function takes a generator on the images' device.
"""

import math

import torch

from psf.errors import InputError

PIXEL_GAIN = 0.01  # standard deviation of the gain from pixel to pixel of an sCMOS camera
PIXEL_READ_NOISE_E = 1.0  # electrons; the scale of the additional noise of its noisier pixels


def to_photons(images: torch.Tensor, photons_per_pixel: torch.Tensor | float) -> torch.Tensor:
    """Non-negative images (N, H, W), scaled to these mean photons per pixel, scalar or (N,)."""
    photons = torch.as_tensor(photons_per_pixel, dtype=images.dtype, device=images.device)
    mean = images.mean((1, 2), keepdim=True).clamp(min=torch.finfo(images.dtype).tiny)
    return images / mean * photons.reshape(-1, 1, 1)


def poisson_noise(photons: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Photon counts drawn from the Poisson distribution of the expected photons."""
    if (photons < 0).any():
        raise InputError("some expected photons are negative; subtract less background.")
    return torch.poisson(photons, generator)


def fast_poisson_noise(photons: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Photon counts by the Cornish-Fisher expansion, 10 times as fast on a CPU.

    mean + sqrt(mean) z + (z^2 - 1) / 6 has the mean, the variance (to 1/18) and the skewness of a
    Poisson variate (Abramowitz & Stegun 26.2.49). The result is rounded to whole photons. Used in
    training.
    """
    z = torch.randn(photons.shape, generator=generator, device=photons.device, dtype=photons.dtype)
    return (photons + photons.sqrt() * z + (z * z - 1) / 6).round_().clamp_(min=0)


def gaussian_noise(
    photons: torch.Tensor, read_noise_e: torch.Tensor | float, generator: torch.Generator
) -> torch.Tensor:
    """Photons plus read noise of this standard deviation in electrons, scalar or (N,)."""
    sigma = torch.as_tensor(read_noise_e, dtype=photons.dtype, device=photons.device)
    z = torch.randn(photons.shape, generator=generator, device=photons.device, dtype=photons.dtype)
    return photons + sigma.reshape(-1, *[1] * (photons.ndim - 1)) * z


def pixel_noise(electrons: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Electrons as an sCMOS camera reads them, whose pixels differ in gain and in read noise.

    The gain varies by PIXEL_GAIN. A few pixels have several times the read noise of the others
    (Huang et al., Nature Methods 10, 653 (2013), Fig. 1), which is drawn as the square of a normal
    variate.
    """
    z = torch.randn(
        3, *electrons.shape, generator=generator, device=electrons.device, dtype=electrons.dtype
    )
    noisier = PIXEL_READ_NOISE_E * z[0].square()
    return electrons * (1 + PIXEL_GAIN * z[2]) + noisier * z[1]


def camera_counts(
    photons: torch.Tensor,
    generator: torch.Generator,
    read_noise_e: float = 1.6,
    gain_counts_per_e: float = 1.0,
    offset_counts: float = 0.0,
) -> torch.Tensor:
    """Camera counts from expected photons: Poisson, read noise, gain, offset, in this order."""
    if gain_counts_per_e <= 0 or read_noise_e < 0:
        raise InputError(
            f"the gain is {gain_counts_per_e:g}, the read noise {read_noise_e:g} e-; give a gain "
            "above 0 and a read noise of at least 0."
        )
    electrons = gaussian_noise(poisson_noise(photons, generator), read_noise_e, generator)
    return gain_counts_per_e * electrons + offset_counts


def quantise(images: torch.Tensor, bits: int = 8) -> torch.Tensor:
    """Images (N, H, W) in integer levels 0 .. 2^bits - 1; the brightest pixel has the highest."""
    if not 1 <= bits <= 16:
        raise InputError(f"the number of bits is {bits}; give 1 to 16.")
    top = images.amax((1, 2), keepdim=True).clamp(min=torch.finfo(images.dtype).tiny)
    return (images / top * (2**bits - 1)).round()


def global_illumination(photons: torch.Tensor, gain: torch.Tensor | float) -> torch.Tensor:
    """Expected photons under a brighter or dimmer lamp: times a gain, scalar or (N,)."""
    gain = torch.as_tensor(gain, dtype=photons.dtype, device=photons.device)
    if (gain <= 0).any():
        raise InputError(f"the illumination gain is {float(gain.min()):g}; give more than 0.")
    return photons * gain.reshape(-1, *[1] * (photons.ndim - 1))


def axial_illumination(
    photons: torch.Tensor,
    corner_loss: torch.Tensor | float,
    centre: torch.Tensor | None = None,
) -> torch.Tensor:
    """Expected photons under vignetting, which grows with the square of the distance to the axis.

    Parameters
    ----------
    corner_loss : scalar or (N,)
        Share of the light that is lost at the distance of a corner from the middle.
    centre : (N, 2) tensor, optional
        The axis (y, x) in coordinates that run from -1 to 1 across the image; default the middle.
    """
    height, width = photons.shape[1:]
    loss = torch.as_tensor(corner_loss, dtype=photons.dtype, device=photons.device)
    # Looking at values on a GPU would wait for it at every step of a training.
    if loss.device.type == "cpu" and ((loss < 0).any() or (loss > 1).any()):
        raise InputError(f"the loss of light in the corner is {corner_loss}; give 0 to 1.")
    centre = photons.new_zeros(1, 2) if centre is None else centre
    y = torch.linspace(-1, 1, height, device=photons.device, dtype=photons.dtype)
    x = torch.linspace(-1, 1, width, device=photons.device, dtype=photons.dtype)
    dy = (y - centre[:, :1]).square()  # (N, H)
    dx = (x - centre[:, 1:]).square()  # (N, W)
    squared = (dy[:, :, None] + dx[:, None, :]) / 2
    return photons * (1 - loss.reshape(-1, 1, 1) * squared).clamp(min=0)


def rotate(images: torch.Tensor, degrees: torch.Tensor | float, size: int) -> torch.Tensor:
    """Middle (N, size, size) of images turned by any angle, without values from outside them.

    Parameters
    ----------
    images : (N, H, W) tensor
    degrees : scalar or (N,); from +x (columns) to +y (rows)
    size : pixels; at most min(H, W) / sqrt(2) - 2, the square that fits at every angle

    Raises
    ------
    InputError
        If the square is too large for the image.
    """
    height, width = images.shape[-2:]
    if size > min(height, width) / math.sqrt(2) - 2:
        raise InputError(f"a turned square of {size} px does not fit {height} x {width} px.")
    angle = torch.as_tensor(degrees, dtype=images.dtype, device=images.device).reshape(-1)
    angle = torch.deg2rad(angle).expand(len(images))
    steps = torch.arange(size, device=images.device, dtype=images.dtype) - (size - 1) / 2
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    x = cos * steps + sin * steps[:, None]  # place of the output pixel in the input
    y = -sin * steps + cos * steps[:, None]
    grid = torch.stack([x * 2 / width, y * 2 / height], -1)  # (N, size, size, 2)
    turned = torch.nn.functional.grid_sample(
        images[:, None], grid, mode="bicubic", align_corners=False
    )
    return turned[:, 0]
