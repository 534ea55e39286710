"""Loss of a network that predicts a histogram of each parameter and a content flag.

Values are in standard units: half of the label range, from its middle.
"""

import math
from dataclasses import dataclass

import torch
from torch.nn import functional

# The trials behind these values are in docs/experiments.md.
BINS = 80  # of each parameter's histogram; other numbers were not tried
# The histogram ends here, in standard units. A label at the end of its range, which is 1, then
# keeps both tails of its target.
SUPPORT = 1.25
BLUR = 0.75  # standard deviation of the target, bins; 2 scored no better
# Errors above this many standard units count linearly. Errors rarely exceed it: the loss is nearly
# the squared error, which R^2 counts. Widths of 0.1 and 0.25 scored higher on bright patches, and
# lower on dim ones.
HUBER_WIDTH = 1.0
VALUE_WEIGHT = 10.0  # of the Huber loss, half the squared error; 0 scored lower on dim images
# Standard deviation of a histogram above which a patch counts as without content: half of that of
# labels that are uniform over their range.
UNINFORMATIVE = 0.5 / math.sqrt(3)
# Mean standard deviation from which a network has hardly learned anything. It would refuse every
# patch, so its flag follows the objects alone.
UNTRAINED = 0.4
FLAG_WEIGHT = 0.1  # of the content flag, which is easy to learn; not tuned
SMALLEST_VARIANCE = 1e-6  # standard units squared; keeps the logarithm finite


@dataclass(frozen=True)
class Scaler:
    """Conversion between labels and standard units."""

    middle: torch.Tensor  # (P,)
    half_range: torch.Tensor  # (P,)

    @staticmethod
    def from_ranges(ranges: list[list[float]]) -> "Scaler":
        """Scaler for the label ranges [[low, high], ...] of a data set."""
        low, high = torch.tensor(ranges, dtype=torch.float32).T
        return Scaler((low + high) / 2, (high - low) / 2)

    def to(self, device: torch.device) -> "Scaler":
        """The scaler with its numbers on a device."""
        return Scaler(self.middle.to(device), self.half_range.to(device))

    def scale(self, labels: torch.Tensor) -> torch.Tensor:
        """Labels (N, P) in standard units."""
        return (labels - self.middle.to(labels)) / self.half_range.to(labels)

    def unscale(self, values: torch.Tensor) -> torch.Tensor:
        """Standard units (N, P) in the unit of the labels."""
        return values * self.half_range.to(values) + self.middle.to(values)


def output_count(parameters: int) -> int:
    """Number of outputs of a network: a histogram per parameter, and the content flag."""
    return parameters * BINS + 1


def bin_edges(like: torch.Tensor) -> torch.Tensor:
    """Edges of the histogram's bins, (BINS + 1,) in standard units."""
    return torch.linspace(-SUPPORT, SUPPORT, BINS + 1, device=like.device, dtype=like.dtype)


def histogram_logits(outputs: torch.Tensor) -> torch.Tensor:
    """Unnormalised log probabilities (N, P, BINS), from outputs (N, P BINS + 1)."""
    parameters = (outputs.shape[1] - 1) // BINS
    return outputs[:, :-1].unflatten(1, (parameters, BINS))


def split_outputs(outputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Values (N, P), log-variances (N, P) and content logits (N,), from outputs (N, P BINS + 1).

    Values and variances are the mean and the variance of the histograms, in standard units.
    """
    edges = bin_edges(outputs)
    middles = (edges[1:] + edges[:-1]) / 2
    shares = histogram_logits(outputs).softmax(2)
    values = (shares * middles).sum(2)
    variances = (shares * (middles - values[..., None]).square()).sum(2)
    return values, variances.clamp(min=SMALLEST_VARIANCE).log(), outputs[:, -1]


def target_histograms(targets: torch.Tensor) -> torch.Tensor:
    """Histograms (N, P, BINS) of normal distributions around targets (N, P) in standard units."""
    blur = BLUR * 2 * SUPPORT / BINS
    below = torch.special.ndtr((bin_edges(targets) - targets[..., None]) / blur)
    shares = below.diff(dim=2)
    return shares / shares.sum(2, keepdim=True)


def value_loss(
    values: torch.Tensor, targets: torch.Tensor, has_content: torch.Tensor
) -> torch.Tensor:
    """Mean Huber loss of values (N, P) in standard units, over the patches with content."""
    mask = has_content[:, None].to(values)
    errors = functional.smooth_l1_loss(values, targets, beta=HUBER_WIDTH, reduction="none")
    return (errors * mask).sum() / mask.sum().clamp(min=1) / targets.shape[1]


def estimation_loss(
    outputs: torch.Tensor,
    targets: torch.Tensor,
    has_content: torch.Tensor,
    value_weight: float = VALUE_WEIGHT,
) -> torch.Tensor:
    """Weighted sum of three losses: of the histograms, of their means, and of the content flag.

    The cross-entropy of blurred bins learns fine differences faster than a regression does
    (HL-Gauss: Imani & White 2018). The Huber loss of the means improves the patches with wide
    histograms, which hold most of the squared error. A patch has content if something lies in it
    and the histogram of the first parameter is narrow: it tells more than the range of the labels.
    """
    values, log_variances, logits = split_outputs(outputs)
    mask = has_content[:, None].to(values)
    # a label far out of range lies in no bin, and its target is NaN even under the mask
    targets = torch.where(has_content[:, None], targets, torch.zeros_like(targets))
    entropies = -(target_histograms(targets) * histogram_logits(outputs).log_softmax(2)).sum(2)
    fit = (entropies * mask).sum() / mask.sum().clamp(min=1) / targets.shape[1]
    widths = (log_variances[:, 0] / 2).exp().detach()
    informative = (widths < UNINFORMATIVE) | (widths.mean() > UNTRAINED)
    flags = (has_content & informative).to(logits)
    flag_loss = functional.binary_cross_entropy_with_logits(logits, flags)
    value_fit = value_loss(values, targets, has_content)
    return fit + value_weight * value_fit + FLAG_WEIGHT * flag_loss
