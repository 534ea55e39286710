"""Default network: residual networks on polar log spectra and on pixels, joined at the end."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from models.spectrum import HarmonicPooling, polar_log_spectra

FEATURES = 256  # of a patch, from which the last layer makes the outputs


class CircularConv(nn.Module):
    """3x3 convolution with zero padding in radius and circular padding in angle."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3, stride, (1, 0), bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features (N, C', R / stride, A / stride), from (N, C, R, A)."""
        return self.conv(functional.pad(x, (1, 1, 0, 0), mode="circular"))


def plain_conv(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    """3x3 convolution with zero padding."""
    return nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)


class ResidualBlock(nn.Module):
    """Two convolutions and a shortcut (He et al. 2016), with either kind of convolution."""

    def __init__(self, conv: type, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(channels_in, channels_out, stride),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(inplace=True),
            conv(channels_out, channels_out),
            nn.BatchNorm2d(channels_out),
        )
        self.short_cut = nn.Sequential()
        if stride > 1 or channels_in != channels_out:
            self.short_cut = nn.Sequential(
                nn.AvgPool2d(stride, ceil_mode=True) if stride > 1 else nn.Identity(),
                nn.Conv2d(channels_in, channels_out, 1, bias=False),
                nn.BatchNorm2d(channels_out),
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features (N, C', H / stride, W / stride), from (N, C, H, W)."""
        return functional.relu(self.body(x) + self.short_cut(x))


def residual_stages(conv: type, widths: Sequence[int]) -> nn.Sequential:
    """One block per width; each but the first halves the resolution."""
    pairs = zip(widths[:1] + widths[:-1], widths, strict=True)
    return nn.Sequential(
        *(ResidualBlock(conv, a, b, 1 if i == 0 else 2) for i, (a, b) in enumerate(pairs))
    )


class SpectralResNet(nn.Module):
    """Network with a spectral branch on `polar_log_spectra`, and a branch on pixels.

    The variants that were tried are in docs/experiments.md.

    Parameters
    ----------
    outputs : number of output values
    windows : sides of the spectral windows, px
    radii, angles : size of the polar grid; a multiple of 8 angles
    spectral_widths, pixel_widths : channels per stage; without `pixel_widths` there is no pixel
        branch
    """

    def __init__(
        self,
        outputs: int,
        windows: Sequence[int] = (64, 128),
        radii: int = 80,
        angles: int = 16,
        spectral_widths: Sequence[int] = (32, 64, 96, 128),
        pixel_widths: Sequence[int] = (16, 32, 64),
    ) -> None:
        super().__init__()
        self.windows, self.radii, self.angles = tuple(windows), radii, angles
        self.make_spectra = polar_log_spectra  # an exported network makes them in another way
        spectral_widths, pixel_widths = list(spectral_widths), list(pixel_widths)
        # normalises the log power at each radius, over angles and patches
        self.standardise = nn.BatchNorm1d(len(windows) * radii)
        self.spectral = nn.Sequential(
            CircularConv(len(windows), spectral_widths[0], 2),
            nn.BatchNorm2d(spectral_widths[0]),
            nn.ReLU(inplace=True),
            residual_stages(CircularConv, spectral_widths),
            HarmonicPooling(),
        )
        steps = 2 ** len(spectral_widths)
        features = 3 * spectral_widths[-1] * -(-radii // steps)
        self.pixel = None
        if pixel_widths:
            self.pixel = nn.Sequential(
                nn.Conv2d(1, pixel_widths[0], 7, 4, 3, bias=False),
                nn.BatchNorm2d(pixel_widths[0]),
                nn.ReLU(inplace=True),
                residual_stages(plain_conv, pixel_widths),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
            )
            features += pixel_widths[-1]
        self.head = nn.Sequential(
            nn.Linear(features + 1, FEATURES), nn.ReLU(inplace=True), nn.Linear(FEATURES, outputs)
        )

    def forward(self, patches: torch.Tensor, cutoff: torch.Tensor) -> torch.Tensor:
        """Outputs (N, outputs) of normalised patches (N, H, W) and cut-offs (N,), cycles per px."""
        return self.outputs(self.features(patches, cutoff))

    def outputs(self, features: torch.Tensor) -> torch.Tensor:
        """Outputs (..., outputs) of features (..., F)."""
        return self.head[2](features)

    def features(self, patches: torch.Tensor, cutoff: torch.Tensor) -> torch.Tensor:
        """Features (N, F) of normalised patches (N, H, W) and cut-offs (N,), cycles per px."""
        # powers span ten decades, too many for bfloat16
        with torch.autocast(patches.device.type, enabled=False):
            spectra = self.make_spectra(
                patches.float(), cutoff.float(), self.windows, self.radii, self.angles
            )
            spectra = self.standardise(spectra.flatten(1, 2)).view_as(spectra)  # (N, w, R, A)
        spectra = spectra.contiguous(memory_format=torch.channels_last)
        features = [self.spectral(spectra), cutoff.float().log()[:, None]]
        if self.pixel is not None:
            features.append(self.pixel(patches[:, None]))
        return self.head[:2](torch.cat([f.float() for f in features], 1))
