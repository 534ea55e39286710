"""Polar log power spectra: what a blurred patch says about its PSF, in units of the optics.

The power spectrum of an image is that of the object times |OTF|^2, plus a white floor of noise.
Sampled at f / f_cutoff, it looks the same for every NA, wavelength and pixel size, and a turn of
the aberration becomes a circular shift in angle.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

REACH = 1.25  # highest frequency sampled, in units of the cut-off; beyond 1 there is only noise
SECTOR_SAMPLES = 4  # directions averaged into one angle of the polar grid
FLOOR = 1e-9  # added to the power of a patch of unit variance: below 16-bit rounding


def welch_spectrum(patches: torch.Tensor, window: int) -> torch.Tensor:
    """Power spectrum averaged over half-overlapping Hann windows (Welch 1967).

    Parameters
    ----------
    patches : (N, H, W) tensor
    window : even edge of the windows, px, at most H and W

    Returns
    -------
    (N, window, window / 2 + 1) tensor: f_y from -1/2 to 1/2 cycles per px, f_x from 0 to 1/2; its
    mean over all frequencies is the windowed variance.
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

    Radii are (k + 1/2) / radii * REACH cut-offs; angles are -90 to +90 degrees, half open: the
    spectrum of a real image repeats beyond. Each angle is the middle of a sector of `samples`
    directions. Points beyond the camera's Nyquist frequency take the value at its border.

    Returns
    -------
    (N, radii, angles * samples, 2) tensor
    """
    radius = (torch.arange(radii, device=cutoff.device, dtype=cutoff.dtype) + 0.5) * REACH / radii
    angle = polar_angles(angles, cutoff.device, cutoff.dtype)
    within = (torch.arange(samples, device=cutoff.device, dtype=cutoff.dtype) + 0.5) / samples - 0.5
    angle = (angle[:, None] + within * math.pi / angles).flatten()
    angle = (angle + math.pi / 2) % math.pi - math.pi / 2  # the first sector reaches below -90
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

    The power is averaged over the directions of each sector before the logarithm is taken: a
    single window has a speckled spectrum, whose logarithm has deep, meaningless holes.

    Parameters
    ----------
    patches : (N, H, W) tensor, mean 0 and standard deviation 1
    cutoff : (N,) tensor
        Cut-off frequency of the optics, cycles per px.
    windows : even edges, px; one that is larger than the patch is cut to the patch

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
    """Mean over angle, and the cosine and sine of twice the angle, so that orientation survives."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(N, C, R, A) -> (N, 3 C R)."""
        angle = polar_angles(features.shape[-1], features.device, features.dtype)
        basis = torch.stack([torch.ones_like(angle), (2 * angle).cos(), (2 * angle).sin()])
        return torch.einsum("ncra,ha->nhcr", features, basis / len(angle)).flatten(1)
