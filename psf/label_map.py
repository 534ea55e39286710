"""A map of PSF parameters, and the blur that it makes of an image."""

import math
from dataclasses import dataclass

import torch

from psf.microscope import Microscope
from psf.model import PsfModel
from psf.synthesis import ENERGY_TOLERANCE, synthesize_with_loss
from psf.variant import VariantBlur, interpolation_matrix, psf_grid_from_map, refine_map

TOLERANCE = 0.01  # of the eigen-PSFs: far below what any map is certain of
STEP_WAVES = 0.2  # largest change between neighbouring PSFs of the grid, which are mixed linearly
LARGEST_REFINEMENT = 16
MOST_PSFS = 6000  # of the refined grid: 400 MB at 127 px
SUPPORT_STEP = 16  # px between the supports that are tried
WIDEST = 16  # labels whose PSFs decide on the support
LARGEST_PSF = 255  # px


@dataclass(frozen=True)
class LabelMap:
    """Parameters of a PSF model on a grid of places in an image."""

    model: PsfModel
    microscope: Microscope  # with the pixel of the image
    values: torch.Tensor  # (P, R, C) labels
    standard_deviations: torch.Tensor  # (P, R, C)
    content: torch.Tensor  # (R, C) probability that there was anything to estimate from
    rows: torch.Tensor  # (R,) places, rising, pixels from the top
    columns: torch.Tensor  # (C,) pixels from the left


def support_px(label_map: LabelMap, largest: int) -> int:
    """Smallest odd support, at most `largest` px, that keeps 99 % of the energy of each PSF."""
    model = label_map.model
    low, high = label_map.values.new_tensor(model.label_ranges).T
    labels = label_map.values.flatten(1).T.clamp(low, high)
    # the widest PSFs have the largest labels, of either sign
    largest_labels = labels.abs().sum(1).topk(min(WIDEST, len(labels))).indices
    extremes = labels[torch.cat([largest_labels, labels.argmax(0), labels.argmin(0)])]
    largest = min(largest, LARGEST_PSF)
    largest -= 1 - largest % 2
    for size in (*range(SUPPORT_STEP - 1, largest, SUPPORT_STEP), largest):
        _, lost = synthesize_with_loss(model, extremes, label_map.microscope, size)
        if float(lost.max()) <= ENERGY_TOLERANCE:
            break
    return size


def blur_of_map(
    label_map: LabelMap, shape: tuple[int, int], size: int | None = None
) -> VariantBlur:
    """Make the blur of an image (H, W) from the map of its PSF, on a support of `size` px.

    The grid is refined until neighbouring PSFs differ little, see `psf.variant.refine_map`.
    """
    values = label_map.values
    steps = [values.diff(dim=axis).abs().max() for axis in (1, 2) if values.shape[axis] > 1]
    step = float(max(steps)) if steps else 0.0
    most = math.isqrt(max(1, MOST_PSFS // values[0].numel()))
    factor = min(LARGEST_REFINEMENT, most, max(1, -int(-step // STEP_WAVES)))
    fine, rows, columns = refine_map(values, label_map.rows, label_map.columns, factor)
    size = size or support_px(label_map, min(shape))
    psfs = psf_grid_from_map(label_map.model, fine, label_map.microscope, size)
    return VariantBlur.from_psfs(psfs, rows, columns, shape, TOLERANCE)


def interpolate(
    values: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, shape: tuple[int, int]
) -> torch.Tensor:
    """Bilinear interpolation of values (R, C) to every pixel (H, W); constant beyond the grid."""
    along_y = interpolation_matrix(rows.to(values), shape[0], 0)
    along_x = interpolation_matrix(columns.to(values), shape[1], 0)
    return along_y @ values @ along_x.T
