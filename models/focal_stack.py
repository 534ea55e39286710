"""Maps of all planes of a focal stack: the same grid of patches through z."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from models import mapping
from models.checkpoint import Estimator
from models.mapping import Image
from psf.errors import InputError
from psf.microscope import Microscope


@dataclass(frozen=True)
class StackMaps:
    """PSF parameters on a grid of R x C patch centres in K planes."""

    names: tuple[str, ...]  # of the P parameters
    unit: str
    values: np.ndarray  # (K, P, R, C)
    standard_deviations: np.ndarray  # (K, P, R, C)
    content: np.ndarray  # (K, R, C) probability
    rows: np.ndarray  # (R,) centres of the patches, px from the top

    def of(self, parameter: str, largest_deviation: float) -> tuple[np.ndarray, np.ndarray]:
        """Values and standard deviations of one parameter, (K, R, C) each.

        NaN for patches without content, and with a standard deviation above the largest.
        """
        p = self.names.index(parameter)
        values, deviations = self.values[:, p], self.standard_deviations[:, p]
        good = (self.content >= 0.5) & (deviations <= largest_deviation)
        return np.where(good, values, np.nan), np.where(good, deviations, np.nan)


def predict_stack(
    estimator: Estimator, planes: Sequence[Image], microscope: Microscope, stride: int
) -> StackMaps:
    """Predict a map of each plane, `stride` pixels between neighbouring patches.

    Raises
    ------
    InputError
        If a plane is constant, holds NaN or is smaller than a patch; it says which one.
    """
    maps = []
    for k, plane in enumerate(tqdm(planes, desc="stack", unit="plane")):
        try:
            maps.append(mapping.predict_map(estimator, plane, microscope, stride))
        except InputError as error:
            raise InputError(f"plane {k}: {error}") from error
    first = maps[0]
    values, deviations, content = (
        np.stack([getattr(one, name).numpy() for one in maps])
        for name in ("values", "standard_deviations", "content")
    )
    return StackMaps(first.names, first.unit, values, deviations, content, first.rows.numpy())
