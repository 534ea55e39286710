"""The tables of `models.error_bars` as a layer of a network."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from models.error_bars import from_config


class IntervalTables(nn.Module):
    """Factors that turn predicted deviations into half widths of 68 % and 95 %.

    A linear interpolation between nodes is a sum of clamped steps, so that no search is needed. The
    tables have G noise levels and K deviations; shorter ones are filled with their last entry.

    Parameters
    ----------
    config : with the entry "calibration" of a checkpoint's config.json
    parameters : number of labels P
    """

    def __init__(self, config: Mapping[str, Any], parameters: int) -> None:
        super().__init__()
        entries = from_config(config, parameters)
        groups = max(len(entry.tables) for entry in entries)
        nodes = max(len(table.log_deviation) for entry in entries for table in entry.tables)
        tables = [_filled(entry.tables, groups) for entry in entries]
        self.register_buffer(
            "log_noise", torch.tensor([_filled(entry.log_noise, groups) for entry in entries])
        )  # (P, G)
        for name in ("log_deviation", "factor_68", "factor_95"):
            columns = [[_filled(getattr(one, name), nodes) for one in some] for some in tables]
            self.register_buffer(name, torch.tensor(columns))  # (P, G, K)

    def forward(self, log_deviation: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Factors (2, N, P) of logarithmic deviations (N, P) and noise shares (N,)."""
        groups = self.log_noise.shape[1]
        level = torch.arange(groups, dtype=noise.dtype, device=noise.device)
        place = interpolated(
            noise.log()[:, None], self.log_noise, level.expand_as(self.log_noise)
        )  # (N, P), in groups
        weights = (1 - (place[..., None] - level).abs()).clamp(min=0)  # (N, P, G)
        each = [
            interpolated(log_deviation[..., None], self.log_deviation, factors)
            for factors in (self.factor_68, self.factor_95)
        ]
        return (torch.stack(each) * weights).sum(-1)


def interpolated(x: torch.Tensor, nodes: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Linear interpolation, constant outside the nodes.

    Parameters
    ----------
    x : (N, ...), can be broadcast to the first axes of the nodes
    nodes, values : (..., K), the nodes rising

    Returns
    -------
    (N, ...) tensor
    """
    widths = nodes.diff(dim=-1)
    slopes = torch.where(widths > 0, values.diff(dim=-1) / widths.clamp(min=1e-12), 0)
    steps = torch.minimum((x[..., None] - nodes[..., :-1]).clamp(min=0), widths)
    return values[..., 0] + (steps * slopes).sum(-1)


def _filled(entries: Sequence, count: int) -> list:
    """Entries, the last one repeated up to a count."""
    return [*entries, *[entries[-1]] * (count - len(entries))]
