"""Polar log power spectra of patches, sampled in units of the cut-off frequency.

The power spectrum of an image is that of the object times |OTF|^2, plus white noise. At
f / f_cutoff, the |OTF|^2 of an aberration is the same for every NA, wavelength and pixel size. A
rotation of the aberration is a circular shift in angle.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

# Highest frequency that is sampled, in units of the cut-off. Above 1 there is only noise, which the
# network needs to see; the value was not tuned.
REACH = 1.25
# Directions whose power is averaged into one angle of the grid. 16 angles of 4 directions, tried
# together with another Huber width, scored higher than 32 single directions (docs/experiments.md).
SECTOR_SAMPLES = 4
# Added to the power of patches of unit variance before the logarithm. Rounding to 16 bits adds
# about as much: 1 / 12 count^2, when the standard deviation is 10,000 counts.
FLOOR = 1e-9


def welch_spectrum(patches: torch.Tensor, window: int) -> torch.Tensor:
    """Power spectrum averaged over half-overlapping Hann windows (Welch 1967).

    Parameters
    ----------
    patches : (N, H, W) tensor
    window : side of the windows, px, even, at most H and W

    Returns
    -------
    (N, window, window / 2 + 1) tensor
        f_y from -1/2 to 1/2 cycles per px, f_x from 0 to 1/2. The mean over all frequencies is the
        variance under the window.
    """
    hann = torch.hann_window(window, device=patches.device, dtype=patches.dtype)
    taper = hann[:, None] * hann
    taper = taper / taper.square().sum().sqrt()
    tiles = patches.unfold(1, window, window // 2).unfold(2, window, window // 2)
    spectra = torch.fft.rfft2(tiles * taper)  # (N, rows, columns, window, window / 2 + 1)
    power = (spectra.real.square() + spectra.imag.square()).mean((1, 2))
    return torch.fft.fftshift(power, dim=1)


def polar_grid(
    cutoff: torch.Tensor, window: int, radii: int, angles: int, samples: int = 1
) -> torch.Tensor:
    """Sampling points for `grid_sample` on the output of `welch_spectrum`.

    Radii are (k + 1/2) / radii * REACH cut-offs. Angles are -90 to below +90 degrees, since the
    other half of the spectrum is the same. Each angle is the middle of a sector of `samples`
    directions. Points above the Nyquist frequency of the camera get the value at that frequency.

    Returns
    -------
    (N, radii, angles * samples, 2) tensor
    """
    radius = (torch.arange(radii, device=cutoff.device, dtype=cutoff.dtype) + 0.5) * REACH / radii
    angle = polar_angles(angles, cutoff.device, cutoff.dtype)
    within = (torch.arange(samples, device=cutoff.device, dtype=cutoff.dtype) + 0.5) / samples - 0.5
    angle = (angle[:, None] + within * math.pi / angles).flatten()
    angle = (
        angle + math.pi / 2
    ) % math.pi - math.pi / 2  # the first sector starts below -90 degrees
    frequency = cutoff[:, None, None] * radius[:, None]  # (N, R, 1) cycles per px
    column = frequency * angle.cos() * window  # 0 .. window / 2
    row = frequency * angle.sin() * window + window / 2  # window / 2: zero frequency
    x = 2 * column / (window / 2) - 1
    y = 2 * row / (window - 1) - 1
    return torch.stack([x, y], -1).clamp(-1, 1)


def polar_angles(angles: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Angles of the polar grid, radians from +x to +y, in [-pi/2, pi/2)."""
    return (torch.arange(angles, device=device, dtype=dtype) / angles - 0.5) * math.pi


def polar_log_spectra(
    patches: torch.Tensor,
    cutoff: torch.Tensor,
    windows: Sequence[int] = (64, 128),
    radii: int = 80,
    angles: int = 16,
) -> torch.Tensor:
    """Log power on the polar grid, one channel per window length.

    The power is averaged over the directions of a sector before the logarithm. Single directions
    have speckle, whose logarithm is a strong noise.

    Parameters
    ----------
    patches : (N, H, W) tensor, mean 0 and standard deviation 1
    cutoff : (N,) tensor
        Cut-off frequency of the optics, cycles per px.
    windows : sides, px, even; windows larger than the patch are reduced to its size

    Returns
    -------
    (N, len(windows), radii, angles) tensor, natural logarithm.
    """
    channels = []
    largest = min(patches.shape[1:]) // 2 * 2
    for window in (min(window, largest) for window in windows):
        power = welch_spectrum(patches, window)[:, None]
        grid = polar_grid(cutoff, window, radii, angles, SECTOR_SAMPLES)
        sectors = functional.grid_sample(power, grid, align_corners=True)
        sectors = sectors.unflatten(3, (angles, SECTOR_SAMPLES)).mean(4)
        channels.append((sectors + FLOOR).log())
    return torch.cat(channels, 1)


class HarmonicPooling(nn.Module):
    """Means over angle, weighted by 1 and by cosine and sine of twice the angle.

    The last two keep the orientation of an astigmatism.
    """

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Means (N, 3 C R), from features (N, C, R, A)."""
        angle = polar_angles(features.shape[-1], features.device, features.dtype)
        basis = torch.stack([torch.ones_like(angle), (2 * angle).cos(), (2 * angle).sin()])
        return torch.einsum("ncra,ha->nhcr", features, basis / len(angle)).flatten(1)
