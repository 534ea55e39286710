"""Figure of the depth of a dome: image, truth, estimate and error side by side."""

import math
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from common.pictures import add_scale_bar, colour_map, new_figure, show_image


class Dome(NamedTuple):
    """What was measured on a dome."""

    texture: str
    photons: float  # mean per pixel
    image: np.ndarray  # (H, W) electrons
    truth_um: np.ndarray  # (R, C) depth at the centres of the patches
    depth_um: np.ndarray  # (R, C) estimate
    pixel_size_um: float  # of the image
    stride_um: float  # between patches

    @property
    def rms_um(self) -> float:
        """Error of the estimate, over the patches that have one."""
        return math.sqrt(np.nanmean((self.depth_um - self.truth_um) ** 2))


def draw_dome(dome: Dome) -> Figure:
    """Figure with the image, the truth, the estimate and the error of a dome."""
    figure, axes = new_figure(1, 4, 3.2, 3.0)
    show_image(axes[0, 0], dome.image, f"image, {dome.photons:g} photons per pixel")
    add_scale_bar(axes[0, 0], dome.pixel_size_um, dome.image.shape[1])
    limits = (dome.truth_um.min() - 1, dome.truth_um.max() + 1)
    estimate = f"estimated depth: rms error {dome.rms_um:.2f} µm"
    panels = (
        (dome.truth_um, "true depth", "viridis", limits),
        (dome.depth_um, estimate, "viridis", limits),
        (dome.depth_um - dome.truth_um, "error", "PuOr", (-4, 4)),
    )
    for at, (values, title, name, (low, high)) in zip(axes[0, 1:], panels, strict=True):
        drawn = at.imshow(values, cmap=colour_map(name), vmin=low, vmax=high)
        figure.colorbar(drawn, ax=at, shrink=0.8, label="µm")
        at.set(xticks=[], yticks=[])
        at.set_title(title, fontsize=8)
        add_scale_bar(at, dome.stride_um, values.shape[1])
    texture = dome.texture.replace("_", " ")
    figure.suptitle(f"A dome of {texture} under a cylindrical lens", fontsize=9)
    return figure
