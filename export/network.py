"""Everything that `Estimator.predict` does to patches, as one network that can be exported."""

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from export import spectrum
from export.error_bars import IntervalTables
from models.error_bars import noise_share
from models.estimator import Estimator
from models.loss import Scaler, split_outputs
from models.spectral_resnet import CircularConv, SpectralResNet

# Outputs of an exported network, in this order.
OUTPUTS = ("values", "standard_deviations", "half_widths_95", "content_probability")
PARTS = ("features", "facts")  # further ones, from which `ImageNetwork` starts


class Readout(nn.Module):
    """Values with error bars, from the outputs of a network."""

    def __init__(self, config: Mapping[str, Any], calibrated: Mapping[str, Any]) -> None:
        super().__init__()
        scaler = Scaler.from_ranges(config["label_ranges"])
        self.register_buffer("middle", scaler.middle)
        self.register_buffer("half_range", scaler.half_range)
        self.intervals = IntervalTables(calibrated, len(config["label_names"]))

    def forward(self, outputs: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The tensors of OUTPUTS, from outputs (N, outputs) and noise shares (N,)."""
        values, log_variances, logits = split_outputs(outputs)
        factors = self.intervals(log_variances / 2, noise) * self.half_range  # (2, N, P)
        half_widths = (log_variances / 2).exp() * factors
        return (
            values * self.half_range + self.middle,
            half_widths[0],
            half_widths[1],
            logits.sigmoid(),
        )


class PatchNetwork(nn.Module):
    """Patches and cut-off frequencies in, the tensors of OUTPUTS out.

    With `parts`, the tensors of PARTS follow.
    """

    def __init__(self, estimator: Estimator, parts: bool = False) -> None:
        super().__init__()
        self.network = copy.deepcopy(estimator.fast_network).cpu()
        if isinstance(self.network, SpectralResNet):
            self.network.make_spectra = spectrum.polar_log_spectra
            _replace_circular(self.network)
        self.readout = Readout(estimator.config, estimator.config)
        self.parts = parts
        self.fixed_cutoff = None  # cycles per px, of networks whose labels are widths in px
        if estimator.psf_model.is_gaussian:
            trained = estimator.config["optics_limits"]["cutoff_cycles_per_pixel"]
            self.fixed_cutoff = float(torch.tensor(trained).mean())

    def forward(self, patches: torch.Tensor, cutoff: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Tensors of patches (N, H, W), any linear unit, and cut-offs (N,), cycles per px."""
        if self.fixed_cutoff is not None:
            cutoff = torch.full_like(cutoff, self.fixed_cutoff)
        batch, deviation = normalised(patches)
        noise = noise_share(batch)
        if not self.parts:
            return self.readout(self.network(batch, cutoff), noise)
        features = self.network.features(batch, cutoff)
        found = self.readout(self.network.outputs(features), noise)
        pixels = patches.shape[1] * patches.shape[2]
        return (*found, features, facts_of(deviation, noise, pixels))


class JoinedConv(nn.Module):
    """Convolution of `CircularConv`, which takes its padding from a concatenation.

    The padding of an ONNX operator can be circular from opset 19 on only.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features (N, C', R / stride, A / stride), from (N, C, R, A)."""
        return self.conv(torch.cat([x[..., -1:], x, x[..., :1]], -1))


def _replace_circular(network: nn.Module) -> None:
    """Replace every `CircularConv` in a network by a `JoinedConv`."""
    for name, child in network.named_children():
        if isinstance(child, CircularConv):
            setattr(network, name, JoinedConv(child.conv))
        else:
            _replace_circular(child)


def normalised(patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches (N, H, W) of mean 0 and standard deviation 1 each, and what the deviations were (N,).

    They are those of `models.data.normalise`. Some runtimes lose digits of a sum in float32, which
    a low contrast needs. So the mean is taken along one axis after the other, and once more of what
    is left.
    """

    def mean(values: torch.Tensor) -> torch.Tensor:
        return values.mean(2, keepdim=True).mean(1, keepdim=True)

    centred = patches - mean(patches)
    centred = centred - mean(centred)
    deviation = mean(centred.square()).sqrt()
    smallest = 1e-6 * patches.abs().amax((1, 2), keepdim=True)
    batch = torch.where(deviation > smallest, centred / deviation.clamp(min=1e-30), 0)
    return batch, deviation[:, 0, 0]


def facts_of(deviation: torch.Tensor, noise: torch.Tensor, pixels: int) -> torch.Tensor:
    """Facts (N, 2) about patches of so many pixels; see `models.context.facts_of`."""
    contrast = deviation * math.sqrt(pixels / (pixels - 1))
    return torch.stack([contrast.clamp(min=1e-30).log(), noise], 1)
