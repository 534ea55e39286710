"""Parts of the training loop: loss, schedule, resumable state, processes."""

from dataclasses import dataclass

import torch
from torch.nn import functional

BINS = 80  # of each parameter's histogram
SUPPORT = 1.25  # half ranges, the histogram's ends: beyond the label range by a quarter
BLUR = 0.75  # bins, standard deviation of the histogram that is the target
HUBER_WIDTH = 0.25  # half ranges; larger errors count linearly, since some patches say nothing
VALUE_WEIGHT = 5.0  # of the values' error against the histograms' cross-entropy
FLAG_WEIGHT = 0.1  # of the content flag's cross-entropy
SMALLEST_VARIANCE = 1e-6  # half ranges squared; keeps the logarithm finite


@dataclass(frozen=True)
class Scaler:
    """Labels in units of half their range, centred: what the network regresses."""

    middle: torch.Tensor  # (P,)
    half_range: torch.Tensor  # (P,)

    @staticmethod
    def from_ranges(ranges: list[list[float]]) -> "Scaler":
        """From the label ranges [[low, high], ...] of a data set."""
        low, high = torch.tensor(ranges, dtype=torch.float32).T
        return Scaler((low + high) / 2, (high - low) / 2)

    def scale(self, labels: torch.Tensor) -> torch.Tensor:
        """(N, P) labels in their unit -> standard units."""
        return (labels - self.middle.to(labels)) / self.half_range.to(labels)

    def unscale(self, values: torch.Tensor) -> torch.Tensor:
        """(N, P) standard units -> label unit."""
        return values * self.half_range.to(values) + self.middle.to(values)


def output_count(parameters: int) -> int:
    """Outputs of a network: the logits of a histogram per parameter, and the content logit."""
    return parameters * BINS + 1


def bin_edges(like: torch.Tensor) -> torch.Tensor:
    """Edges of the histogram's bins, (BINS + 1,) in standard units."""
    return torch.linspace(-SUPPORT, SUPPORT, BINS + 1, device=like.device, dtype=like.dtype)


def histogram_logits(outputs: torch.Tensor) -> torch.Tensor:
    """(N, P BINS + 1) -> (N, P, BINS), unnormalised log probabilities."""
    parameters = (outputs.shape[1] - 1) // BINS
    return outputs[:, :-1].unflatten(1, (parameters, BINS))


def split_outputs(outputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(N, P BINS + 1) -> values (N, P), log-variances (N, P), content logits (N,).

    Values and variances, in standard units, are the mean and the variance of the histograms: of
    what the patch leaves possible.
    """
    edges = bin_edges(outputs)
    middles = (edges[1:] + edges[:-1]) / 2
    shares = histogram_logits(outputs).softmax(2)
    values = (shares * middles).sum(2)
    variances = (shares * (middles - values[..., None]).square()).sum(2)
    return values, variances.clamp(min=SMALLEST_VARIANCE).log(), outputs[:, -1]


def target_histograms(targets: torch.Tensor) -> torch.Tensor:
    """(N, P) standard units -> (N, P, BINS): a normal distribution around each, in bins."""
    blur = BLUR * 2 * SUPPORT / BINS
    below = torch.special.ndtr((bin_edges(targets) - targets[..., None]) / blur)
    shares = below.diff(dim=2)
    return shares / shares.sum(2, keepdim=True)


def value_loss(
    values: torch.Tensor, targets: torch.Tensor, has_content: torch.Tensor
) -> torch.Tensor:
    """Huber loss of values (N, P) in standard units; blank patches do not count."""
    mask = has_content[:, None].to(values)
    errors = functional.smooth_l1_loss(values, targets, beta=HUBER_WIDTH, reduction="none")
    return (errors * mask).sum() / mask.sum().clamp(min=1) / targets.shape[1]


def estimation_loss(
    outputs: torch.Tensor,
    targets: torch.Tensor,
    has_content: torch.Tensor,
    value_weight: float = VALUE_WEIGHT,
) -> torch.Tensor:
    """Cross-entropy of the histograms, Huber loss of their means, cross-entropy of the flag.

    Regression as classification into blurred bins (HL-Gauss: Imani & White 2018) learns fine
    differences faster than a regression does; the error of the mean looks after the patches whose
    histograms are wide, where most of the squared error is.
    """
    values, _, logits = split_outputs(outputs)
    mask = has_content[:, None].to(values)
    # a label far beyond its range lies in no bin: NaN, which no mask takes away
    targets = torch.where(has_content[:, None], targets, torch.zeros_like(targets))
    entropies = -(target_histograms(targets) * histogram_logits(outputs).log_softmax(2)).sum(2)
    fit = (entropies * mask).sum() / mask.sum().clamp(min=1) / targets.shape[1]
    flag_loss = functional.binary_cross_entropy_with_logits(logits, has_content.to(logits))
    value_fit = value_loss(values, targets, has_content)
    return fit + value_weight * value_fit + FLAG_WEIGHT * flag_loss
