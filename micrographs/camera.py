"""Offset, gain and noise of the camera, estimated from one image.

On a camera without a gain error the variance of a pixel's counts follows from its mean (the
photon transfer curve, Janesick 2007, Photon Transfer, ch. 5):

    variance = gain (mean - offset) + (gain read_noise_e)^2

Mean and variance are measured in small blocks. The variance is that of fourth differences along
both axes, which cancel smooth content and keep the noise. Within a block it is the mean square,
since that corresponds to the block's mean where brightness varies. Among blocks of equal
brightness those with the least variance count, since texture adds to it.

Noise that is not white (`micrographs.noise_spectrum`) is measured at low frequencies instead.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from micrographs.noise_spectrum import (
    CLIPPED_SHARE,
    FEWEST_SPECTRA,
    ROUNDED,
    BlockSpectra,
    block_spectra,
    is_white,
    low_frequency_noise,
    quiet_power,
    quiet_share_of_white_noise,
)

BLOCK_PX = 8  # side of a block: small enough for even brightness, 64 samples of the noise
DIFFERENCE = (1.0, -4.0, 6.0, -4.0, 1.0)  # cancels polynomials up to third order
LEVELS = 24  # classes of equal brightness, the points of the photon transfer curve
FEWEST_LEVELS = 4  # a line through fewer points has no meaningful standard error
FEWEST_BLOCKS = 6  # in a level, for its lower quartile
QUIET_SHARE = 0.25  # quantile of a level's variances; texture and hot pixels only add variance
LARGEST_PX = 2**22  # larger images are measured in evenly spaced bands
DARKEST_SHARE = 0.001  # quantile of the blocks' means, which the offset must not exceed
SIGNIFICANT = 3.0  # standard errors by which a slope must differ from zero
SIGNIFICANT_AT_LOW_FREQUENCIES = 10.0  # more, since content may rise with brightness, too
FIT_ROUNDS = 10  # of weights by the distance from the last line
LEVEL_ROUNDS = 3  # of choosing the blocks of least variance by the line found so far
# Light of an image whose noise is not that of a camera, at most: errors of the map and traces of
# the processing then outweigh the noise.
MOST_PHOTONS = 4000.0


@dataclass(frozen=True)
class Camera:
    """A camera, estimated from one image."""

    offset_counts: float  # counts without light
    gain_counts_per_e: float | None  # counts per detected photon; None: the image shows no noise
    gain_error: float | None  # relative standard error of the fit alone; None: not fitted
    noise_counts: float  # standard deviation of the noise at middle brightness
    offset_source: str = "found"  # found in the image, assumed, or given by the user
    gain_source: str = "found"
    offset_error_counts: float | None = None  # standard error of the fit; None: not fitted
    white_noise: bool = True  # False: the image was registered, denoised or compressed


@dataclass(frozen=True)
class _TransferCurve:
    """Noise against brightness."""

    offset: float
    gain: float | None  # None: the noise does not rise with brightness
    error: float | None  # relative, of the gain
    mean: float  # middle brightness, counts
    variance: float  # of the noise there, counts^2
    offset_found: bool = False  # the zero of the line, not an end of the possible range


def estimate_camera(
    plane: torch.Tensor,
    usable: torch.Tensor | None = None,
    offset_counts: float | None = None,
    gain_counts_per_e: float | None = None,
    raw: bool | None = None,
) -> Camera:
    """Offset, gain and noise of the camera that recorded a plane (H, W) of counts.

    One image has its limits. Read noise lowers the offset found by gain x read_noise_e^2 (2.6
    counts for 1.6 e at gain 1). Out-of-focus background is told from an offset only by its noise.
    An EM-CCD doubles the gain. In images sampled far below Nyquist, detail counts as noise.

    If the noise does not rise with brightness, the offset is assumed to be 0, and the gain such
    that photon noise is as strong as the noise at middle brightness. If the noise is not white,
    photon noise of the gain is as strong as the noise at low frequencies.

    Parameters
    ----------
    usable : (H, W) bool; blocks are left out if they hold other pixels. By default all are usable.
    offset_counts, gain_counts_per_e : given by the user, if known
    raw : whether the noise is that of a raw image; by default its spectrum is tested
    """
    if usable is not None and not usable.all():
        # Blocks with NaN are left out, and so are blocks whose differences reach into one.
        plane = torch.where(usable, plane, torch.nan)
    bands = _bands(plane)
    mean, variance = _blocks(plane, bands)
    if len(mean) == 0:
        return _without_blocks(plane, offset_counts, gain_counts_per_e)
    curve = _transfer_curve(mean, variance, _quiet_share_of_noise(), offset_counts)
    white = True
    if spectra := _spectra(bands):
        white = _is_raw(spectra, curve) if raw is None else raw
        if not white:
            curve = _curve_at_low_frequencies(spectra, curve, offset_counts)
    gain, source = curve.gain, "found"
    light = max(curve.mean - curve.offset, 0.0)
    if gain is None and light > 0:
        gain, source = curve.variance / light, "assumed"
    if (source == "assumed" or not white) and light > MOST_PHOTONS * (gain or 0.0):
        gain, source = light / MOST_PHOTONS, "assumed"
    found = "found" if curve.offset_found else "assumed"
    offset_source = found if offset_counts is None else "given"
    if gain_counts_per_e is not None:
        gain, source = gain_counts_per_e, "given"
    error = curve.error if source == "found" else None
    # The slope is the least certain: the line turns about middle brightness.
    offset_error = light * curve.error if offset_source == "found" else None
    how = (math.sqrt(curve.variance), offset_source, source, offset_error, white)
    return Camera(curve.offset, gain or None, error, *how)


def describe_camera(camera: Camera) -> list[str]:
    """The camera and where its numbers come from, in sentences for the user."""
    gain = camera.gain_counts_per_e or math.nan
    words = f"{gain:.3g} counts per photon ({camera.gain_source})"
    spread = f" ± {camera.offset_error_counts:.3g}" if camera.offset_error_counts else ""
    offset = f"{camera.offset_counts:.4g}{spread} counts ({camera.offset_source})"
    lines = [f"camera: offset {offset}, gain {words}"]
    if camera.gain_source == "assumed":
        lines[0] += "; if you know them, give --offset-counts and --gain-counts-per-e"
    if not camera.white_noise:
        lines.append(
            "the noise is not that of a raw camera image: the image looks registered, denoised, "
            "compressed or simulated without noise; a raw image can be restored better"
        )
    return lines


def _without_blocks(plane: torch.Tensor, offset: float | None, gain: float | None) -> Camera:
    """A camera assumed for a plane that is too small, or clipped all over."""
    finite = plane[plane.isfinite()].double()
    sources = ["assumed" if one is None else "given" for one in (offset, gain)]
    if offset is None:
        offset = min(0.0, float(finite.min())) if len(finite) else 0.0
    light = float(finite.mean()) - offset if len(finite) else 0.0
    if gain is None and light > 0:
        gain = light / MOST_PHOTONS
    return Camera(offset, gain, None, math.nan, *sources)


def _transfer_curve(
    mean: torch.Tensor,
    variance: torch.Tensor,
    quiet_share: float,
    given: float | None,
    significant: float = SIGNIFICANT,
) -> _TransferCurve:
    """Line through the noise variances (B,) of blocks of brightness `mean` (B,).

    `quiet_share` is the low quantile of the variances that noise of variance 1 has, `given` the
    offset, if it is known.
    """
    darkest = float(torch.quantile(mean, DARKEST_SHARE))
    lowest = min(0.0, darkest)  # cameras don't subtract below zero
    level_mean, level_variance = _levels(mean, variance, quiet_share)
    middle, noise = float(level_mean.median()), float(level_variance.median())
    unknown = _TransferCurve(lowest if given is None else given, None, None, middle, noise)
    if len(level_mean) < FEWEST_LEVELS:
        return unknown
    slope, intercept, error = _line(level_mean, level_variance)
    for _ in range(LEVEL_ROUNDS):
        level_mean, level_variance = _levels(mean, variance, quiet_share, (slope, intercept))
        slope, intercept, error = _line(level_mean, level_variance)
    if not slope > significant * error:
        return unknown
    offset = -intercept / slope if given is None else given
    if given is not None or not lowest <= offset <= darkest:
        # A line through a known point: the offset can't be above the darkest pixels.
        offset = min(max(offset, lowest), darkest) if given is None else given
        if not (level_mean > offset).any():
            return unknown
        slope, error = _line_through(level_mean - offset, level_variance)
        return _TransferCurve(offset, slope, error / slope, middle, noise)
    return _TransferCurve(offset, slope, error / slope, middle, noise, True)


def _spectra(bands: list[torch.Tensor]) -> BlockSpectra | None:
    """Spectra of the blocks of all bands; None if there are too few blocks."""
    found = [block_spectra(band) for band in bands]
    mean = torch.cat([one.mean for one in found])
    if len(mean) < FEWEST_SPECTRA:
        return None
    rounding = min(one.rounding for one in found)
    return BlockSpectra(mean, torch.cat([one.power for one in found]), rounding)


def _is_raw(spectra: BlockSpectra, curve: _TransferCurve) -> bool:
    """Whether the noise is white and stronger than the rounding of the image's numbers."""
    if curve.variance < ROUNDED * spectra.rounding:
        return False
    expected = torch.full_like(spectra.mean, curve.variance)
    if curve.gain is not None:
        expected += curve.gain * (spectra.mean - curve.mean)
    expected = expected.clamp(min=curve.variance / 100)
    return is_white(quiet_power(spectra.power / expected[:, None]))


def _curve_at_low_frequencies(
    spectra: BlockSpectra, curve: _TransferCurve, given: float | None
) -> _TransferCurve:
    """The transfer curve of the noise at low frequencies; that of the rounding if none is seen."""
    quiet = quiet_power(spectra.power)
    place = low_frequency_noise(quiet, spectra.rounding)
    if place is None:
        offset = min(0.0, curve.offset) if given is None else given
        return replace(curve, offset=offset, gain=None, error=None, variance=spectra.rounding)
    variance = place.factor * spectra.power[:, place.ring]
    share = float(quiet_share_of_white_noise()[place.ring])
    return _transfer_curve(spectra.mean, variance, share, given, SIGNIFICANT_AT_LOW_FREQUENCIES)


def _blocks(plane: torch.Tensor, bands: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Means and noise variances (B,) of the blocks without clipped or missing pixels."""
    means, variances = [], []
    known = plane[plane.isfinite()]
    low, high = (known.min(), known.max()) if len(known) else (0.0, 0.0)
    for band in bands:
        if min(band.shape) < BLOCK_PX + len(DIFFERENCE) - 1:
            continue
        band = band.double()
        residual = _fourth_differences(band)
        inner = band[2:-2, 2:-2]
        pixels, noise = _cut(inner), _cut(residual)  # (B, BLOCK_PX^2)
        for end in (low, high):
            whole = (pixels == end).double().mean(1) <= CLIPPED_SHARE
            pixels, noise = pixels[whole], noise[whole]
        finite = pixels.isfinite().all(1) & noise.isfinite().all(1)
        means.append(pixels[finite].mean(1))
        variances.append(noise[finite].square().mean(1))
    if not means:
        return plane.new_zeros(0, dtype=torch.float64), plane.new_zeros(0, dtype=torch.float64)
    return torch.cat(means), torch.cat(variances)


def _bands(plane: torch.Tensor) -> list[torch.Tensor]:
    """The plane, or of a large one evenly spaced bands of rows of LARGEST_PX in all."""
    height, width = plane.shape
    if height * width <= LARGEST_PX:
        return [plane]
    rows = 8 * BLOCK_PX + len(DIFFERENCE) - 1
    count = max(1, min(LARGEST_PX // (rows * width), height // rows))
    starts = torch.linspace(0, max(height - rows, 0), count).long().tolist()
    return [plane[start : start + rows] for start in starts]


def _fourth_differences(pixels: torch.Tensor) -> torch.Tensor:
    """(H, W) -> (H - 4, W - 4), scaled so that white noise keeps its variance."""
    norm = math.sqrt(sum(w * w for w in DIFFERENCE))
    for axis in (0, 1):
        length = pixels.shape[axis] - len(DIFFERENCE) + 1
        pixels = sum(w / norm * pixels.narrow(axis, i, length) for i, w in enumerate(DIFFERENCE))
    return pixels


def _cut(pixels: torch.Tensor) -> torch.Tensor:
    """(H, W) -> blocks (B, BLOCK_PX^2); what is left over at the right and below is dropped."""
    blocks = pixels.unfold(0, BLOCK_PX, BLOCK_PX).unfold(1, BLOCK_PX, BLOCK_PX)
    return blocks.reshape(-1, BLOCK_PX**2)


def _levels(
    mean: torch.Tensor,
    variance: torch.Tensor,
    quiet_share: float,
    line: tuple[float, float] = (0.0, 1.0),
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and noise variance of each class of brightness, from its blocks of least variance.

    Variances are compared relative to a line (slope, intercept), or the darkest blocks of a class
    would be taken for those of least variance.
    """
    count = max(1, min(LEVELS, len(mean) // FEWEST_BLOCKS))
    groups = mean.argsort().tensor_split(count)
    slope, intercept = line
    expected = (intercept + slope * mean).clamp(min=variance.median() / 100)
    means = torch.stack([mean[group].mean() for group in groups])
    quiet = torch.stack(
        [
            torch.quantile(variance[group] / expected[group], QUIET_SHARE) * expected[group].mean()
            for group in groups
        ]
    )
    return means, quiet / quiet_share


@lru_cache(maxsize=1)
def _quiet_share_of_noise() -> float:
    """Lower quantile of the blocks' variances of white noise of variance 1, by simulation."""
    side = 128 * BLOCK_PX + len(DIFFERENCE) - 1
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(side, side, generator=generator, dtype=torch.float64)
    variances = _cut(_fourth_differences(noise)).square().mean(1)
    return float(torch.quantile(variances, QUIET_SHARE))


def _line(x: torch.Tensor, y: torch.Tensor) -> tuple[float, float, float]:
    """Slope, intercept and standard error of the slope of a robust straight line.

    A measured variance is known to a fixed share of itself, hence weights 1 / y^2 with y from
    the line; levels far above the line hold texture and count less.
    """
    fitted, robust = y, torch.ones_like(y)
    for _ in range(FIT_ROUNDS):
        weights = robust / fitted.square()
        x0, y0 = (weights * x).sum() / weights.sum(), (weights * y).sum() / weights.sum()
        spread = (weights * (x - x0).square()).sum()
        if not spread > 0:
            return 0.0, float(y0), 0.0
        slope = (weights * (x - x0) * (y - y0)).sum() / spread
        fitted = (y0 + slope * (x - x0)).clamp(min=y.min() / 2)
        residual = (y - fitted) / fitted
        robust = _downweight(residual)
    scatter = (robust * residual.square()).sum() / (len(x) - 2)
    return float(slope), float(y0 - slope * x0), float((scatter / spread).sqrt())


def _line_through(x: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
    """Slope and its standard error of a robust line through the origin, at x > 0."""
    x, y = x[x > 0], y[x > 0]
    ratio = y / x
    slope = ratio.median()
    for _ in range(FIT_ROUNDS):
        robust = _downweight(ratio / slope - 1)
        slope = (robust * ratio).sum() / robust.sum()
    scatter = (robust * (ratio - slope).square()).sum() / max(len(x) - 1, 1)
    return float(slope), float((scatter / robust.sum()).sqrt())


def _downweight(residual: torch.Tensor) -> torch.Tensor:
    """Tukey-like weights 1 / (1 + (r / s)^2), s three median absolute residuals."""
    scale = 3 * residual.abs().median().clamp(min=1e-6)
    return 1 / (1 + (residual / scale).square())
