"""Random restorations of known truth, from which the network of the unrolled steps learns.

Objects are crops of the stream of source images. Each is blurred by PSFs that vary over the crop,
exposed, and given a map that is wrong as estimated maps are.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from psf.microscope import Microscope
from psf.model import PsfModel, draw_labels, psf_model
from psf.synthesis import synthesize_with_loss
from restoration.care import changes_within_bars
from restoration.iteration import LARGEST_TV, Settings
from restoration.richardson_lucy import TYPICAL_TV_AT_ONE_PHOTON
from restoration.unrolled import Problem
from restoration.variant_blur import VariantBlur
from simulation.bank import Bank
from simulation.crops import draw_crops
from simulation.settings import OpticsRanges, Simulation, draw_microscopes
from simulation.specimens import SpecimenRanges, draw_sparse

MODELS = ("gaussian2d", "zernike1d", "zernike2d", "astigmatic")
IMAGE_PX = 112  # edge of the images
SUPPORTS_PX = (31, 63, 95, 127)  # of the PSFs of a batch, and how often each is drawn
SUPPORT_SHARES = (0.25, 0.35, 0.25, 0.15)
CROP_PX = IMAGE_PX + max(SUPPORTS_PX) - 1
MOST_LOST = 0.02  # share of its light that a PSF may lose outside its support
SHRINK, SHRINKS = 0.75, 12  # factor on the labels of PSFs that lose more, and how often
CHANGE = 0.15  # standard deviation of the change of a label over the image, in its range
PHOTONS = (10.0, 10_000.0)  # mean per pixel, uniform in the logarithm
OPTICS = OpticsRanges(na=(0.3, 0.95), nyquist_share=(0.85, 1.7))
REFERENCE_SHARE = 0.5  # of batches with the reference optics
PEDESTAL = (0.01, 0.5)  # light of the object everywhere, in its brightest pixel
SOFT_SHARE, SOFTNESS_PX = 0.25, (0.4, 2.0)  # objects without detail at the scale of a pixel
SPARSE = SpecimenRanges(sparse=0.3)
# Errors of a map: standard deviation of each label in its range, uniform in the logarithm; share
# and spread of a factor on all labels that no error bar tells.
ERROR = (0.003, 0.25)
GROSS_SHARE, GROSS = 0.15, 0.35
BAR_SPREAD = 0.4  # of the logarithm of a reported error bar around the true one
GAIN_SPREAD = 0.15  # of the logarithm of the camera's gain around the assumed one
READ_SHARE, READ_NOISE_E = 0.3, (0.5, 2.5)


@dataclass(frozen=True)
class Exercise:
    """A problem and its solution."""

    problem: Problem
    truth: torch.Tensor  # (H, W) photons


def draw_exercises(bank: Bank, count: int, rng: np.random.Generator) -> list[Exercise]:
    """`count` exercises whose PSFs have one support and one model."""
    size = int(rng.choice(SUPPORTS_PX, p=SUPPORT_SHARES))
    model = psf_model(MODELS[rng.integers(len(MODELS))])
    crops = draw_crops(bank, count, rng, True, draw_sparse(SPARSE, count, rng)).pixels
    edge = IMAGE_PX + size - 1
    first = (crops.shape[-1] - edge) // 2
    crops = crops[:, first : first + edge, first : first + edge]
    labels, wrong, bars, microscopes = draw_maps(model, count, size, rng)
    # PSFs at two ends of the map, of the truth and of the wrong map, (2, N, K, K) each
    true_psfs, wrong_psfs = (
        psfs_at(model, one.flatten(0, 1), microscopes * 2, size).unflatten(0, (2, count))
        for one in (labels, wrong)
    )
    changes = changes_within_bars(model, wrong.mean(0), bars, microscopes, size)
    found = []
    for i in range(count):
        shares = torch.from_numpy(rng.uniform(0, 1, (2, 2)).astype(np.float32))
        blurs = [two_psf_blur(psfs[:, i], shares) for psfs in (true_psfs, wrong_psfs)]
        found.append(exposed(soften(crops[i], rng), *blurs, float(changes[i]), rng))
    return found


def draw_maps(
    model: PsfModel, count: int, size: int, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[Microscope]]:
    """Labels (2, N, P) at two ends, wrong ones, their error bars (N, P), and N optics."""
    if rng.random() < REFERENCE_SHARE:
        microscopes = [Microscope()] * count
    else:
        simulation = Simulation(model, Microscope(), OPTICS, IMAGE_PX, size, 0.0)
        microscopes = list(draw_microscopes(simulation, count, rng))
    low, high = torch.tensor(model.label_ranges).T
    span = high - low

    def normal(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.normal(size=shape).astype(np.float32))

    first = draw_labels(model, count, rng)
    labels = torch.stack([first, first + CHANGE * span * normal(*first.shape)])
    labels = within_support(model, labels.clamp(low, high), microscopes, size)
    scale = np.exp(rng.uniform(*np.log(ERROR), (count, 1))).astype(np.float32)
    bars = torch.from_numpy(scale) * span
    error = bars * normal(*first.shape) + 0.3 * bars * normal(2, *first.shape)
    gross = np.where(rng.random((count, 1)) < GROSS_SHARE, rng.normal(0, GROSS, (count, 1)), 0)
    factor = torch.from_numpy(np.exp(gross).astype(np.float32))
    wrong = within_support(model, ((labels + error) * factor).clamp(low, high), microscopes, size)
    return labels, wrong, bars * (BAR_SPREAD * normal(count, 1)).exp(), microscopes


def within_support(
    model: PsfModel, labels: torch.Tensor, microscopes: Sequence[Microscope], size: int
) -> torch.Tensor:
    """Labels (2, N, P), made smaller until their PSFs fit into `size` px."""
    low = torch.tensor(model.label_ranges).T[0]
    flat, optics = labels.flatten(0, 1), list(microscopes) * len(labels)
    for _ in range(SHRINKS):
        _, lost = synthesize_with_loss(model, flat, optics, size)
        wide = lost > MOST_LOST
        if not wide.any():
            break
        flat = torch.where(wide[:, None], (SHRINK * flat).maximum(low), flat)
    return flat.unflatten(0, labels.shape[:2])


def psfs_at(
    model: PsfModel, labels: torch.Tensor, microscopes: Sequence[Microscope], size: int
) -> torch.Tensor:
    """PSFs (N, K, K) of labels (N, P)."""
    return synthesize_with_loss(model, labels, list(microscopes), size)[0]


def two_psf_blur(psfs: torch.Tensor, shares: torch.Tensor) -> VariantBlur:
    """Blur of an image whose PSFs mix two (2, K, K), with shares (2, 2) at its corners."""
    places = torch.tensor([0.0, IMAGE_PX - 1.0])
    coefficients = torch.stack([1 - shares, shares])
    return VariantBlur(psfs, coefficients, places, places, (IMAGE_PX, IMAGE_PX))


def soften(crop: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """A crop (S, S) in [0, 1], soft in some cases, with a pedestal of light."""
    if rng.random() < SOFT_SHARE:
        crop = torch.from_numpy(gaussian_filter(crop.numpy(), rng.uniform(*SOFTNESS_PX)))
    return crop + math.exp(rng.uniform(*np.log(PEDESTAL)))


def exposed(
    crop: torch.Tensor,
    true_blur: VariantBlur,
    wrong_blur: VariantBlur,
    uncertainty: float,
    rng: np.random.Generator,
) -> Exercise:
    """The exercise of an object (field), with photon noise, and read noise in some cases."""
    photons = math.exp(rng.uniform(*np.log(PHOTONS)))
    clean = true_blur.forward(crop[None])[0].clamp(min=0)
    scale = photons / float(clean.mean())
    gain = math.exp(rng.normal(0, GAIN_SPREAD))
    image = rng.poisson((clean * scale / gain).numpy()) * gain
    if rng.random() < READ_SHARE:
        image = image + rng.normal(0, rng.uniform(*READ_NOISE_E), image.shape)
    seen = torch.from_numpy(image.clip(0).astype(np.float32))
    mean = max(float(seen.mean()), 1e-3)
    weight = min(TYPICAL_TV_AT_ONE_PHOTON / math.sqrt(mean), LARGEST_TV)
    uncertain = torch.full_like(seen, uncertainty)
    settings = Settings(torch.zeros(()), weight, "momentum", mean, mean, uncertainty=uncertain)
    return Exercise(Problem(seen, wrong_blur, settings), crop[true_blur.image_part] * scale)
