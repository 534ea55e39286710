"""The network that sees the patches of an image together, as one that can be exported."""

import math

import torch
from torch import nn

from export.network import Readout
from models.context import HEADS, NEAR_PATCHES, NEAR_PLANES, WIDTH, Attention, near
from models.estimator import Estimator


class ImageNetwork(nn.Module):
    """Features of the patches of an image or a focal stack in, the tensors of OUTPUTS out.

    It equals `Estimator.predict_together`, but all patches pass the layers at once, and the caller
    chooses the keys: the patches that all others attend to.
    """

    def __init__(self, estimator: Estimator) -> None:
        super().__init__()
        self.last_layer = estimator.fast_network.head[2]
        self.context = estimator.context
        self.readout = Readout(estimator.config, estimator.config["context"])

    def forward(
        self, features: torch.Tensor, facts: torch.Tensor, places: torch.Tensor, keys: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Tensors of K M patches, plane by plane.

        Parameters
        ----------
        features, facts : (K, M, F) and (K, M, 2) of `PatchNetwork`, of K planes and M places
        places : (M, 2) row and column of the places, in patches
        keys : (S,) numbers of patches, below K M
        """
        x = self._entered(features, facts)  # (K, M, W)
        level = torch.arange(features.shape[0], device=features.device).float()
        between_planes = near((level[:, None] - level).abs(), NEAR_PLANES)
        closeness = self._closeness(places, level, keys)
        for layer in self.context.layers:
            columns = x.transpose(0, 1)
            columns = columns + attended(layer.along, columns, columns, between_planes)
            flat = columns.transpose(0, 1).flatten(0, 1)  # (K M, W)
            flat = flat + attended(layer.across, flat, flat[keys], closeness)
            x = (flat + layer.perceptron(flat)).view_as(x)
        correction = self.context.leave(x)
        outputs = (self.last_layer(features) + correction).flatten(0, 1)
        return self.readout(outputs, facts[..., 1].flatten())

    def _entered(self, features: torch.Tensor, facts: torch.Tensor) -> torch.Tensor:
        """First states (K, M, W) of the patches."""
        contrast, noise = facts.unbind(-1)
        contrast = contrast - contrast.mean()
        # counted as a tensor, because a condition on a size would fix this size in the graph
        alone = (torch.ones_like(noise).sum() == 1).to(noise).expand_as(noise)
        return self.context.enter(
            torch.cat([features, torch.stack([contrast, noise, alone], -1)], -1)
        )

    @staticmethod
    def _closeness(places: torch.Tensor, level: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Closeness (K M, S, scales) of patches to keys; see `models.context.near_keys`."""
        each_place = places.expand(level.shape[0], *places.shape).flatten(0, 1)  # (K M, 2)
        each_level = level[:, None].expand(-1, places.shape[0]).flatten()  # (K M,)
        distance = (each_place[:, None] - each_place[keys]).square().sum(-1).sqrt()
        space = near(distance, NEAR_PATCHES)
        same = (each_level[:, None] == each_level[keys])[..., None].to(space)
        return torch.cat([space, space * same, same], -1)


def attended(
    attention: Attention, x: torch.Tensor, others: torch.Tensor, closeness: torch.Tensor
) -> torch.Tensor:
    """Change of patches (..., T, W) by others (..., S, W), from matrix products and a softmax.

    The exporter has no `scaled_dot_product_attention` for any number of axes.
    """

    def heads(features: torch.Tensor) -> torch.Tensor:
        return features.unflatten(-1, (HEADS, WIDTH // HEADS)).transpose(-3, -2)

    query = heads(attention.query(attention.norm(x))) / math.sqrt(WIDTH // HEADS)
    key, value = (heads(t) for t in attention.key_value(attention.norm(others)).chunk(2, -1))
    bias = attention.bias(closeness).movedim(-1, -3)  # (heads, T, S)
    found = (query @ key.transpose(-2, -1) + bias).softmax(-1) @ value
    return attention.out(found.transpose(-3, -2).flatten(-2))
