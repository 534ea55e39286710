"""Pixels that are sharper than the PSF allows, and so do not show the object.

A microscope image cannot be sharper than its PSF. The light of any object is a sum of PSFs, so the
mean of two neighbours on either side of a pixel is at least a fixed share of that pixel, whatever
the object. The share is that of the sharpest PSF: its value one pixel from its centre over the one
at its centre. Hot pixels and cosmic rays fall below it; beads, edges and fine texture do not. Dead
pixels are found in the same way in the inverted image. Differences count against the local noise,
which is measured with the texture in it.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from scipy import ndimage

from micrographs.neighbours import grown, medians_near, smallest_near, some

BLOCK_PX = 16  # edge of the blocks in which brightness and noise are measured
SAMPLED_PX = 2  # in a block every second pixel of every second row is measured
LOW, HIGH = 0.05, 0.95  # quantiles of a block's pixels, in place of its darkest and brightest one
SHARPEST_CUTOFF = 0.6  # cycles per px, where the optics are unknown: coarser than Nyquist by 20 %
COARSEST_CUTOFF = 1.0  # cycles per px; coarser pixels leave no bound
# Share of the bound that counts: noise, rounding and the sharpening of cameras need room.
BOUND_SHARE = 0.75
FLOOR_NOISE = 2.0  # standard deviations by which the darkest of so many noisy pixels is too dark
FLOOR_PX = 7  # edge of the square whose darkest pixel, or the block's, is the floor under a pixel
# Standard deviations of the local noise, texture included, by which a pixel exceeds the bound.
# With 5, fewer than 1e-4 of the pixels of simulated objects in focus are left out.
NOISE_FACTOR = 5.0
# The noise counts as at least so many grey steps, since single photons and rounding show as steps
# in dark and flat places, and as at least this share of the local range of brightness.
LEAST_STEPS, LEAST_NOISE = 0.5, 0.02
NOISE_FACTOR_BESIDE = 4.0  # the same beside an outlier
ROUNDS = 3  # of searching beside outliers that were found: cosmic rays are several pixels wide
RUN_PX = 32  # length of the pieces of rows and columns that are searched for dead lines
RUN_SHARE = 0.5  # of outliers in such a piece, from which all of it counts as dead


@lru_cache(maxsize=16)
def sharpest_shares(cutoff: float) -> tuple[float, float]:
    """Least share of neighbours under the PSF in focus: of one pixel, and of two side by side.

    h(1) / h(0) and h(1.5) / h(0.5), with h the PSF of an ideal lens integrated over pixels, on a
    line through its centre. The cut-off frequency is in cycles per px.
    """
    cutoff = min(cutoff, COARSEST_CUTOFF)
    count = 256  # frequencies per axis: h is sampled finely enough for three digits
    step = 2 * cutoff / count
    f = (torch.arange(count) + 0.5) * step - cutoff
    rho = torch.hypot(f[:, None], f).div(cutoff).clamp(max=1)
    otf = rho.acos() - rho * (1 - rho.square()).clamp(min=0).sqrt()  # of a circular pupil
    along_x = (otf * torch.sinc(f)[:, None]).sum(0) * torch.sinc(f)

    def h(x: float) -> float:
        return float((along_x * torch.cos(2 * math.pi * x * f)).sum())

    return h(1.0) / h(0.0), h(1.5) / h(0.5)


@dataclass(frozen=True)
class _Surroundings:
    """Brightness and noise in blocks, (ceil(H / BLOCK_PX), ceil(W / BLOCK_PX)) each."""

    low: torch.Tensor  # darkest and
    high: torch.Tensor  # brightest level near by
    variance: torch.Tensor  # of one pixel's noise, texture included
    per_count: float  # variance per count above the darkest level: shot noise, or more


def _surroundings(plane: torch.Tensor) -> _Surroundings:
    """Brightness and noise around each pixel of a plane (H, W), NaN where pixels are unknown."""
    padding = [-length % BLOCK_PX for length in plane.shape]
    padded = torch.nn.functional.pad(plane[None], (0, padding[1], 0, padding[0]), mode="replicate")
    pixels = padded[0, ::SAMPLED_PX, 1::SAMPLED_PX]
    beside = padded[0, ::SAMPLED_PX, ::SAMPLED_PX]
    side = BLOCK_PX // SAMPLED_PX

    def blocks(values: torch.Tensor) -> torch.Tensor:
        return values.unfold(0, side, side).unfold(1, side, side).flatten(2)

    quantiles = torch.tensor([LOW, 0.5, HIGH])
    low, middle, high = torch.nanquantile(blocks(pixels), quantiles, dim=2)
    spread = torch.zeros_like(low)
    for before_or_after in (beside, beside.roll(-1, 1)):
        steps = (pixels - before_or_after).abs()
        # Pixels that were enlarged by repetition say nothing of the noise where they are equal.
        steps = blocks(steps.masked_fill(steps == 0, torch.nan))
        spread = torch.fmax(spread, steps.nanquantile(0.5, dim=2))
    # the median of |difference| of two pixels of noise s is 0.6745 sqrt(2) s
    variance = (spread / (0.6745 * math.sqrt(2))).square()
    least = (LEAST_NOISE * (high - low)).clamp(min=LEAST_STEPS * _grey_step(pixels))
    variance = torch.maximum(variance, least.square())
    unknown = low.isnan()
    low, high = low.masked_fill(unknown, math.inf), high.masked_fill(unknown, -math.inf)
    variance = variance.masked_fill(unknown, 0.0)
    light = (middle - low[~unknown].min() if (~unknown).any() else middle)[~unknown]
    shares = variance[~unknown][light > 0] / light[light > 0]
    per_count = float(shares.median()) if len(shares) else 0.0
    return _Surroundings(
        -_largest_near(-low), _largest_near(high), _largest_near(variance), per_count
    )


def _grey_step(pixels: torch.Tensor) -> float:
    """Smallest difference between two values: the step of the grey values of an image file."""
    steps = some(pixels).unique().diff()
    return float(steps[steps > 0].min()) if (steps > 0).any() else 0.0


def _largest_near(values: torch.Tensor) -> torch.Tensor:
    """Largest value (R, C) of each block and the eight around it."""
    return torch.nn.functional.max_pool2d(values[None], 3, 1, 1)[0]


def too_sharp(plane: torch.Tensor, cutoff: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Hot and dead pixels (H, W) of a plane that is NaN where pixels are unknown."""
    if min(plane.shape) < BLOCK_PX or plane.isnan().all():
        return torch.zeros_like(plane, dtype=torch.bool), torch.zeros_like(plane, dtype=torch.bool)
    around = _surroundings(plane)
    shares = tuple(BOUND_SHARE * share for share in sharpest_shares(cutoff))
    above = _Bound(around.low, around.variance, around.per_count, *shares)
    below = _Bound(-around.high, around.variance, 0.0, *shares)  # noise falls with brightness
    hot = _too_sharp_pixels(plane, above)
    clean = _without(plane, hot)
    dead = _too_sharp_pixels(-clean, below)
    clean = _without(clean, dead)
    hot, dead = hot | above.lines(clean, hot), dead | below.lines(-clean, dead)
    return hot & ~plane.isnan(), dead & ~plane.isnan()


def _too_sharp_pixels(plane: torch.Tensor, bound: "_Bound") -> torch.Tensor:
    """Pixels (H, W) that exceed a bound; those beside one with a smaller factor."""
    found = torch.zeros_like(plane, dtype=torch.bool)
    places, factor = bound.candidates(plane).nonzero(), NOISE_FACTOR
    for _ in range(ROUNDS):
        places = places[bound.is_exceeded(_without(plane, found), places, factor)]
        if not len(places):
            break
        found[tuple(places.T)] = True
        places, factor = (grown(found, 1) & ~found).nonzero(), NOISE_FACTOR_BESIDE
    return found


def _without(plane: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """The plane (H, W) with outliers replaced by the medians of their neighbours."""
    if not found.any():
        return plane
    clean = plane.clone()
    clean[found] = medians_near(plane.masked_fill(found, torch.nan), found.nonzero())
    return clean


@dataclass(frozen=True)
class _Bound:
    """How bright a pixel may be above its neighbours; the arrays are those of `_Surroundings`.

    Along an axis, the light c of a pixel above the floor and the mean n of its two neighbours obey
    n >= share c. The difference must exceed its noise by a factor before the pixel is an outlier.
    """

    floor: torch.Tensor
    variance: torch.Tensor
    per_count: float
    single: float  # the share, of one pixel
    pair: float  # of two pixels side by side

    def candidates(self, plane: torch.Tensor) -> torch.Tensor:
        """Pixels (H, W) that are bright enough to exceed the bound with neighbours at the floor."""
        least = NOISE_FACTOR * math.sqrt(self.single**2 + 0.25) / self.single
        threshold = self.floor + least * self.variance.sqrt()
        wide = threshold.repeat_interleave(BLOCK_PX, 1)[:, : plane.shape[1]]
        return plane > wide.repeat_interleave(BLOCK_PX, 0)[: len(plane)]

    def is_exceeded(self, plane: torch.Tensor, places: torch.Tensor, factor: float) -> torch.Tensor:
        """Whether the pixels at places (N, 2), alone or with a neighbour, are too bright, (N,)."""
        # At the edge of the image nothing is known across it: comparisons with NaN are false.
        padded = torch.nn.functional.pad(plane, (2, 2, 2, 2), value=torch.nan)
        y, x = places.T
        floor, variance = (v[y // BLOCK_PX, x // BLOCK_PX] for v in (self.floor, self.variance))
        floor = torch.minimum(floor, smallest_near(plane, places, FLOOR_PX))
        floor = floor + FLOOR_NOISE * variance.sqrt()

        def light(dy: int, dx: int) -> torch.Tensor:
            return padded[y + 2 + dy, x + 2 + dx] - floor

        own = light(0, 0)
        across = [(light(-dy, -dx), light(dy, dx)) for dy, dx in ((0, 1), (1, 0))]
        four = (across[0][0] + across[0][1] + across[1][0] + across[1][1]) / 4
        found = self._is_above(own, four, variance, factor, self.single, 4)
        for (before, after), (dy, dx) in zip(across, ((0, 1), (1, 0)), strict=True):
            found |= self._is_above(own, (before + after) / 2, variance, factor, self.single, 2)
            for partner, far, other in (
                (after, light(2 * dy, 2 * dx), before),
                (before, light(-2 * dy, -2 * dx), after),
            ):
                two, beside = (own + partner) / 2, (other + far) / 2
                found |= self._is_above(two, beside, variance / 2, factor, self.pair, 1)
        return found

    def lines(self, plane: torch.Tensor, outliers: torch.Tensor) -> torch.Tensor:
        """Pieces (H, W) of rows and columns that are too bright for the lines beside them.

        The means of pieces of `RUN_PX` obey the same bound as pixels do. Their medians must exceed
        it too, since a bright point is no line. A piece also counts if most of it are outliers
        (H, W) already, which the plane does not hold any more.
        """
        found = torch.zeros_like(outliers)
        for turn in (False, True):
            values, known, variance, whole = (
                one.T if turn else one for one in (plane, outliers, self.variance, found)
            )
            count = len(values) // RUN_PX
            if not count:
                continue
            pieces = (count, RUN_PX, values.shape[1])
            parts = values[: count * RUN_PX].reshape(pieces)
            share = known[: count * RUN_PX].reshape(pieces).float().mean(1)
            rows = (torch.arange(count) * RUN_PX + RUN_PX // 2) // BLOCK_PX
            variance = variance[rows].repeat_interleave(BLOCK_PX, 1)[:, : values.shape[1]]
            above = self._line_is_above(parts.mean(1), variance)
            if above.any():
                above &= self._line_is_above(parts.median(1).values, variance * math.pi / 2)
            above |= share > RUN_SHARE
            piece = torch.arange(len(values)) // RUN_PX
            whole |= above[piece.clamp(max=count - 1)]  # the last piece is longer
        return found

    def _line_is_above(self, light: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
        """Whether pieces (N, W) of lines, side by side, exceed the bound; variance of one pixel."""
        floor = torch.from_numpy(ndimage.minimum_filter1d(light.numpy(), FLOOR_PX, 1))
        padded = torch.nn.functional.pad(light, (1, 1), value=torch.nan)
        beside = (padded[:, :-2] + padded[:, 2:]) / 2 - floor
        return self._is_above(
            *(light - floor, beside, variance, NOISE_FACTOR, self.single, 2), averaged=RUN_PX
        )

    def _is_above(
        self,
        light: torch.Tensor,
        beside: torch.Tensor,
        variance: torch.Tensor,
        factor: float,
        share: float,
        count: int,
        averaged: int = 1,
    ) -> torch.Tensor:
        """Whether light exceeds the bound; `beside` is the mean of `count` values of its noise."""
        beside = beside.clamp(min=0)
        # the noise of the pixel is that of the brightest one that the bound allows
        noise = (variance + beside * self.per_count / share) / averaged
        return share * light - beside > factor * ((share**2 + 1 / count) * noise).sqrt()
