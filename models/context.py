"""The estimator of images: attention over the patches of an image, or of all planes of a stack.

One patch alone cannot tell a soft object from a blurred one. The patches of an image share optics,
light and kind of object, while their focus differs. The features of each patch come from the
encoder, which is the network of single patches; attention (Vaswani et al. 2017) over them corrects
its histogram. A patch that is alone keeps nearly the estimate of the encoder.
"""

import torch
from torch import nn
from torch.nn import functional

from models.error_bars import noise_share
from models.spectral_resnet import FEATURES

WIDTH = 192  # of the features of a patch in the context
HEADS = 6
LAYERS = 3
# Distances in patches, and in planes, over which neighbours can count more than others.
NEAR_PATCHES = (0.5, 1.0, 2.0, 5.0)
NEAR_PLANES = (1.0, 3.0)
KEYS = 256  # patches at most that the others attend to; training sees up to 200
CHUNK = 4096  # patches that pass the layers together; the distances to the keys need 40 MB
FACTS = 2  # about a patch beside its features: log contrast and noise share, see `facts_of`


def near(distance: torch.Tensor, scales: tuple[float, ...]) -> torch.Tensor:
    """Closeness (..., S) at distances (...): Gaussians of several widths."""
    return torch.stack([torch.exp(-0.5 * (distance / s).square()) for s in scales], -1)


class Attention(nn.Module):
    """Multi-head attention with a bias from the distance between the patches."""

    def __init__(self, scales: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key_value = nn.Linear(WIDTH, 2 * WIDTH)
        self.bias = nn.Linear(scales, HEADS, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, others: torch.Tensor, closeness: torch.Tensor):
        """Change (..., T, W) of patches (..., T, W) by others (..., S, W).

        `closeness` is (..., T, S, scales), or can be broadcast to it.
        """
        query = self._heads(self.query(self.norm(x)))
        key, value = (self._heads(t) for t in self.key_value(self.norm(others)).chunk(2, -1))
        bias = self.bias(closeness).movedim(-1, -3)  # (..., heads, T, S)
        bias = bias.expand(*query.shape[:-1], key.shape[-2])
        found = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return self.out(found.transpose(-3, -2).flatten(-2))

    @staticmethod
    def _heads(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (HEADS, -1)).transpose(-3, -2)


class Layer(nn.Module):
    """Attention along the planes of each place, then to the keys, then a perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.along = Attention(len(NEAR_PLANES))
        self.across = Attention(2 * len(NEAR_PATCHES) + 1)
        self.perceptron = nn.Sequential(
            nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH)
        )

    def in_column(self, x: torch.Tensor, between_planes: torch.Tensor) -> torch.Tensor:
        """Patches (B, K, M, W) that have seen the other planes of their place."""
        columns = x.transpose(1, 2)  # (B, M, K, W)
        return x + self.along(columns, columns, between_planes).transpose(1, 2)

    def in_image(
        self, x: torch.Tensor, others: torch.Tensor, closeness: torch.Tensor
    ) -> torch.Tensor:
        """Patches (B, K, M, W) that have seen the keys (B, S, W)."""
        flat = x.flatten(1, 2)
        flat = flat + self.across(flat, others, closeness)
        return (flat + self.perceptron(flat)).view_as(x)


class ContextNet(nn.Module):
    """Corrects the outputs of an encoder for the patches of images.

    Parameters
    ----------
    outputs : number of output values of the encoder
    """

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.enter = nn.Sequential(
            nn.LayerNorm(FEATURES + FACTS + 1), nn.Linear(FEATURES + FACTS + 1, WIDTH)
        )
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.leave = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, outputs))
        nn.init.zeros_(self.leave[1].weight)
        nn.init.zeros_(self.leave[1].bias)

    def forward(
        self, features: torch.Tensor, facts: torch.Tensor, places: torch.Tensor, keys: torch.Tensor
    ) -> torch.Tensor:
        """Correction (B, K, M, outputs) of the outputs of the encoder.

        Parameters
        ----------
        features : (B, K, M, F) of the encoder, of K planes and M places
        facts : (B, K, M, 2) logarithm of the contrast, any unit, and noise share
        places : (B, M, 2) row and column of the places, in patches
        keys : (S,) numbers, below K M, of the patches that the others attend to
        """
        planes, count = features.shape[1:3]
        contrast, noise = facts.unbind(-1)
        contrast = contrast - contrast.mean((1, 2), keepdim=True)
        # one more number tells a patch that is alone
        alone = torch.full_like(contrast, float(planes * count == 1))
        x = self.enter(torch.cat([features, torch.stack([contrast, noise, alone], -1)], -1))
        level = torch.arange(planes, device=x.device)
        between_planes = near((level[:, None] - level).float(), NEAR_PLANES)

        def closeness(some: torch.Tensor) -> torch.Tensor:
            return near_keys(places[:, some], places[:, keys % count], planes, keys // count)

        every = torch.arange(count, device=x.device)
        key_places = (keys % count).unique()
        states, found = self._passed(
            x[:, :, key_places],
            between_planes,
            closeness(key_places),
            keys=(keys // count) * len(key_places) + torch.searchsorted(key_places, keys % count),
        )
        if len(key_places) == count:
            return self.leave(found)
        parts = [
            self._passed(x[:, :, some], between_planes, closeness(some), states=states)[1]
            for some in every.split(max(1, CHUNK // planes))
        ]
        return self.leave(torch.cat(parts, 2))

    def _passed(
        self,
        x: torch.Tensor,
        between_planes: torch.Tensor,
        closeness: torch.Tensor,
        keys: torch.Tensor | None = None,
        states: list[torch.Tensor] | None = None,
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """States (B, S, W) of the keys before each layer, and patches (B, K, M, W) after the last.

        The keys are some of these patches, or their states are known.
        """
        seen = []
        for number, layer in enumerate(self.layers):
            x = layer.in_column(x, between_planes)
            seen.append(states[number] if keys is None else x.flatten(1, 2)[:, keys])
            x = layer.in_image(x, seen[-1], closeness)
        return seen, x


def near_keys(
    places: torch.Tensor, key_places: torch.Tensor, planes: int, key_planes: torch.Tensor
) -> torch.Tensor:
    """Closeness (B, K M, S, scales) of patches at places (B, M, 2) in K planes to keys (B, S, 2).

    The first scales count in any plane, the others in the plane of the key only.
    """
    space = near(torch.cdist(places, key_places), NEAR_PATCHES).repeat(1, planes, 1, 1)
    level = torch.arange(planes, device=places.device).repeat_interleave(places.shape[1])
    same = (level[:, None] == key_planes).to(space)[None, :, :, None]
    return torch.cat([space, space * same, same.expand(*space.shape[:3], 1)], -1)


def spread_keys(count: int, device: torch.device) -> torch.Tensor:
    """Numbers of at most KEYS patches of `count`, chosen at random with a fixed seed.

    Evenly spaced ones could all lie in a few columns of the image.
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return order[:KEYS].sort().values.to(device)


def facts_of(patches: torch.Tensor, normalised: torch.Tensor) -> torch.Tensor:
    """Facts (N, 2) about patches (N, H, W) that normalisation hides: log contrast, noise share."""
    contrast = patches.float().std((1, 2)).clamp(min=1e-30).log()
    return torch.stack([contrast, noise_share(normalised)], 1)
