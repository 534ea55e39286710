"""What sets a specimen apart from a thin object with sharp detail that fills the field.

A thick specimen is a pile of slices, each with a defocus of its own. A soft one has no detail at
the scale of a pixel. Haze is the light of layers farther from the focal plane. Each part can be
switched on by itself, and leaves the label true: that of the middle of the object.
"""

import math
from dataclasses import asdict, dataclass, fields, replace

import numpy as np
import torch
from torch.nn import functional

from psf.errors import InputError
from psf.microscope import Microscope, Microscopes
from psf.model import PsfModel
from psf.synthesis import synthesize_with_loss
from simulation.augmentation import on_device

SLICES = 5  # of a thick specimen; at 2 waves they are 0.4 waves apart, and no PSF has rings so fine
# Cut-off frequency, cycles per px, of the finest pixels that networks see; images on finer ones are
# binned. Optics with finer pixels than these have the full grid.
FINEST_CUTOFF = 0.425
GROUPS_PER_OCTAVE = 2  # of cut-off frequencies, whose PSFs are computed together
LOGARITHMIC = ("haze", "background_light")  # drawn uniformly in their logarithm
SOFT_REACH = 3.0  # standard deviations at which the Gaussian of a soft specimen ends


@dataclass(frozen=True)
class SpecimenRanges:
    """Shares of the specimens that are thick, soft, hazy and so on, and by how much.

    Shares are 0 by default: thin, sharp objects. Numbers are drawn uniformly from their range,
    those of haze and background uniformly in their logarithm.

    Raises
    ------
    InputError
        If a share is not between 0 and 1, or a range falls, has negative numbers, or has a 0 whose
        logarithm is needed.
    """

    plain: float = 0.0  # share of specimens to which nothing below happens, except for haze_only
    thick: float = 0.0  # share of thick specimens
    thickness_waves: tuple[float, float] = (0.2, 2.0)  # change of focus from top to bottom
    soft: float = 0.0  # share without detail at the scale of a pixel
    softness_px: tuple[float, float] = (0.3, 2.0)  # standard deviation of the Gaussian
    hazy: float = 0.0  # share with light from another layer
    haze: tuple[float, float] = (0.3, 4.0)  # its brightness, in that of the object
    haze_distance_waves: tuple[float, float] = (1.0, 4.0)  # it is so much farther from focus
    haze_only: float = 0.0  # share of patches with haze and no object, hence without a label
    background: float = 0.0  # share with more even background light
    background_light: tuple[float, float] = (0.3, 10.0)  # in the mean of the object
    sparse: float = 0.0  # share of objects of which only the brightest parts stay
    sparse_quantile: tuple[float, float] = (0.5, 0.97)  # of the pixels that become dark

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            low, high = value if isinstance(value, tuple) else (0.0, value)
            is_share = not isinstance(value, tuple) or name == "sparse_quantile"
            if not 0 <= low <= high < math.inf or (is_share and high > 1):
                asked = "a share from 0 to 1" if low == 0 and is_share else "two rising numbers"
                raise InputError(f"specimens.{name} is {value}; give {asked}.")
            if name in LOGARITHMIC and low == 0:
                raise InputError(f"specimens.{name} is {value}; give numbers above 0.")

    @property
    def is_plain(self) -> bool:
        """Whether every object is thin, sharp and without haze."""
        shares = {k: v for k, v in asdict(self).items() if not isinstance(v, tuple)}
        return not any(share for name, share in shares.items() if name != "plain")


@dataclass(frozen=True)
class Specimens:
    """Random properties of N specimens, each an array (N,)."""

    thickness_waves: np.ndarray  # 0: thin
    softness_px: np.ndarray  # 0: sharp
    haze: np.ndarray  # 0: none
    haze_distance_waves: np.ndarray
    haze_only: np.ndarray  # bool
    background: np.ndarray  # 0: none

    def take(self, numbers: np.ndarray) -> "Specimens":
        """Specimens of these numbers."""
        return Specimens(*(getattr(self, field.name)[numbers] for field in fields(self)))

    def thin(self) -> "Specimens":
        """The same specimens without thickness."""
        return replace(self, thickness_waves=np.zeros(len(self.haze)))

    def without_haze_only(self) -> "Specimens":
        """The same specimens, each with an object."""
        return replace(self, haze_only=np.zeros(len(self.haze), bool))


def draw_specimens(ranges: SpecimenRanges, count: int, rng: np.random.Generator) -> Specimens:
    """Random properties of `count` specimens."""
    is_plain = rng.random(count) < ranges.plain

    def chosen(share: float, values: np.ndarray) -> np.ndarray:
        return np.where((rng.random(count) < share) & ~is_plain, values, 0.0)

    def uniform(limits: tuple[float, float]) -> np.ndarray:
        return rng.uniform(*limits, count)

    def logarithmic(limits: tuple[float, float]) -> np.ndarray:
        return np.exp(rng.uniform(*np.log(limits), count))

    haze = logarithmic(ranges.haze)
    haze_only = rng.random(count) < ranges.haze_only
    return Specimens(
        thickness_waves=chosen(ranges.thick, uniform(ranges.thickness_waves)),
        softness_px=chosen(ranges.soft, uniform(ranges.softness_px)),
        haze=np.where(haze_only, haze, chosen(ranges.hazy, haze)),
        haze_distance_waves=uniform(ranges.haze_distance_waves),
        haze_only=haze_only,
        background=chosen(ranges.background, logarithmic(ranges.background_light)),
    )


def draw_sparse(ranges: SpecimenRanges, count: int, rng: np.random.Generator) -> np.ndarray:
    """Share of the pixels (N,) of each object that become dark; 0 for objects that stay."""
    some = rng.random(count) < ranges.sparse * (1 - ranges.plain)
    return np.where(some, rng.uniform(*ranges.sparse_quantile, count), 0.0)


def make_sparse(pixels: torch.Tensor, quantiles: np.ndarray, patch_size: int) -> torch.Tensor:
    """Crops (N, S, S) in [0, 1], of which only the parts above a quantile stay; in place.

    The quantile is that of the middle, so that the patch keeps some of the object.
    """
    some = np.flatnonzero(quantiles)
    if not len(some):
        return pixels
    index = on_device(some, pixels.device)
    start = (pixels.shape[-1] - patch_size) // 2
    middle = pixels[index, start : start + patch_size : 4, start : start + patch_size : 4]
    middle = middle.flatten(1).sort(1).values
    places = on_device((quantiles[some] * middle.shape[1]).astype(np.int64), pixels.device)
    level = middle.gather(1, places.clamp(max=middle.shape[1] - 1)[:, None])[..., None]
    # a level of 1 would leave nothing: many pixels of drawn objects have the full brightness
    level = level.clamp(max=0.9)
    pixels[index] = (pixels[index] - level).clamp_(min=0).div_(1 - level)
    return pixels


def varied_psfs(
    model: PsfModel,
    labels: torch.Tensor,
    microscopes: Microscopes,
    size: int,
    device: torch.device,
) -> torch.Tensor:
    """PSFs (N, K, K) of labels (N, P), on smaller grids where the pixels are coarse.

    A PSF covers fewer pixels the coarser they are. With grids of one size, the optics with the
    coarsest pixels would decide the number of points between the pixels for all others.
    """
    if isinstance(microscopes, Microscope):
        return synthesize_with_loss(model, labels, microscopes, size, device=device)[0]
    cutoff = np.array([microscope.cutoff_cycles_per_pixel for microscope in microscopes])
    coarser = np.floor(np.log2(np.maximum(cutoff / FINEST_CUTOFF, 1)) * GROUPS_PER_OCTAVE)
    psfs = torch.zeros(len(labels), size, size, device=device)
    for group in np.unique(coarser):
        numbers = np.flatnonzero(coarser == group)
        smaller = math.ceil(size * 2 ** (-group / GROUPS_PER_OCTAVE))
        margin = (size - smaller) // 2
        found, _ = synthesize_with_loss(
            model,
            labels[torch.from_numpy(numbers)],
            [microscopes[number] for number in numbers],
            size - 2 * margin,
            device=device,
        )
        inner = slice(margin, size - margin)
        psfs[on_device(numbers, device), inner, inner] = found
    return psfs


def specimen_psfs(
    model: PsfModel,
    labels: torch.Tensor,
    microscopes: Microscopes,
    size: int,
    specimens: Specimens,
    device: torch.device,
) -> torch.Tensor:
    """PSFs (N, K, K) of labels (N, P), averaged over the slices of thick specimens, and softened.

    The slices of a specimen show the same object, as columns or cells do.
    """
    psfs = varied_psfs(model, labels, microscopes, size, device)
    thick = np.flatnonzero(specimens.thickness_waves)
    if len(thick):
        offsets = (np.arange(SLICES) + 0.5) / SLICES - 0.5
        shifts = specimens.thickness_waves[thick, None] * offsets
        moved = labels[torch.from_numpy(thick)][:, None].repeat(1, SLICES, 1)
        moved[..., 0] += torch.from_numpy(shifts.astype(np.float32))
        if not isinstance(microscopes, Microscope):
            microscopes = [microscopes[number] for number in thick for _ in range(SLICES)]
        slices = varied_psfs(model, moved.flatten(0, 1), microscopes, size, device)
        psfs[on_device(thick, device)] = slices.unflatten(0, (-1, SLICES)).mean(1)
    soft = np.flatnonzero(specimens.softness_px)
    if len(soft):
        index = on_device(soft, device)
        psfs[index] = soften(psfs[index], on_device(specimens.softness_px[soft], device))
    return psfs


def soften(psfs: torch.Tensor, softness_px: torch.Tensor) -> torch.Tensor:
    """PSFs (N, K, K) blurred by Gaussians of standard deviations (N,), their sum kept."""
    reach = int(np.ceil(SOFT_REACH * float(softness_px.max())))
    x = torch.arange(-reach, reach + 1, device=psfs.device)
    kernels = torch.exp(-0.5 * (x / softness_px[:, None]).square())
    kernels = kernels / kernels.sum(1, keepdim=True)
    count, total = len(psfs), psfs.sum((1, 2), keepdim=True)
    for shape, padding in (((count, 1, -1, 1), (reach, 0)), ((count, 1, 1, -1), (0, reach))):
        psfs = functional.conv2d(psfs[None], kernels.view(shape), padding=padding, groups=count)[0]
    return psfs * (total / psfs.sum((1, 2), keepdim=True))


def haze_labels(labels: torch.Tensor, specimens: Specimens, numbers: np.ndarray) -> torch.Tensor:
    """Labels (H, P) of the layers that cause the haze of these specimens.

    A layer lies on the side of its object, and farther from the focal plane.
    """
    found = labels[torch.from_numpy(numbers)].clone()
    distance = torch.from_numpy(specimens.haze_distance_waves[numbers].astype(np.float32))
    found[:, 0] += torch.where(found[:, 0] < 0, -distance, distance)
    return found
