"""Maps: a network's predictions on a grid of overlapping patches of one image."""

from dataclasses import dataclass

import torch
from tqdm import tqdm

from models.checkpoint import Estimator, Prediction
from psf.errors import InputError
from psf.microscope import Microscope

BATCH = 64


@dataclass(frozen=True)
class PsfMap:
    """PSF parameters on a grid of patch centres; R rows and C columns."""

    names: tuple[str, ...]  # of the P parameters
    unit: str
    values: torch.Tensor  # (P, R, C)
    standard_deviations: torch.Tensor  # (P, R, C)
    content: torch.Tensor  # (R, C) probability that a patch holds anything to estimate from
    rows: torch.Tensor  # (R,) centres of the patches, pixels from the top
    columns: torch.Tensor  # (C,) pixels from the left

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Names of the channels of `channels`."""
        deviations = tuple(f"{name} standard deviation" for name in self.names)
        return (*self.names, *deviations, "content probability")

    @property
    def channels(self) -> torch.Tensor:
        """Values, standard deviations, content: (2 P + 1, R, C)."""
        return torch.cat([self.values, self.standard_deviations, self.content[None]])


def predict_map(
    estimator: Estimator, image: torch.Tensor, microscope: Microscope, stride: int
) -> PsfMap:
    """Predict PSF parameters on a grid of patches `stride` pixels apart.

    Parameters
    ----------
    image : (H, W) tensor, any linear intensity unit
    stride : pixels between neighbouring patches

    Raises
    ------
    InputError
        If the image is smaller than one patch, holds NaN or is constant, or the stride is below 1.
    """
    size = estimator.patch_size
    check_image(image, size)
    if stride < 1:
        raise InputError(f"--stride is {stride}; give at least 1 pixel.")
    # (R, C, size, size): a view, so that memory holds one batch of patches at a time
    patches = image.unfold(0, size, stride).unfold(1, size, stride)
    grid = patches.shape[:2]
    places = torch.arange(grid.numel())
    parts: list[Prediction] = []
    for chunk in tqdm(places.split(BATCH), unit="batch", desc="map", disable=len(places) < 2000):
        batch = patches[chunk // grid[1], chunk % grid[1]]
        parts.append(estimator.predict(batch, microscope, BATCH))
    centre = (size - 1) / 2

    def on_grid(name: str) -> torch.Tensor:
        columns = torch.cat([getattr(part, name).reshape(len(part.values), -1) for part in parts])
        return columns.T.reshape(-1, *grid)

    return PsfMap(
        names=parts[0].names,
        unit=parts[0].unit,
        values=on_grid("values"),
        standard_deviations=on_grid("standard_deviations"),
        content=on_grid("content_probability")[0],
        rows=torch.arange(grid[0]) * stride + centre,
        columns=torch.arange(grid[1]) * stride + centre,
    )


def check_image(image: torch.Tensor, patch_size: int) -> None:
    """Refuse what cannot be mapped."""
    height, width = image.shape
    if min(height, width) < patch_size:
        raise InputError(
            f"the image has {height} x {width} px, less than one patch of {patch_size} px."
        )
    if not torch.isfinite(image).all():
        raise InputError("the image contains NaN or infinite pixels; repair or crop it first.")
    if image.min() == image.max():
        raise InputError(f"all pixels of the image are {image[0, 0]:g}; there is nothing to see.")
