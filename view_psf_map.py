"""Look at an image and its PSF map in a window: IMAGE -> napari.

    pip install -r requirements-viewer.txt
    python view_psf_map.py image.tif

In the window, Estimate maps the plane that is shown. Then the panel on the right shows the PSF of
the patch under the cursor, and the spectrum from which it was read. Restore and Save call the same
functions as deconvolve.py and estimate_psf_map.py.
"""

import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro

from common.command import keep_freed_memory, run
from common.extras import needed
from psf.errors import InputError
from psf.microscope import OPTICS_NAMES


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the window."""

    image: tyro.conf.Positional[Path]  # TIFF, PNG, JPEG, OME-Zarr, ND2, CZI or LIF
    series: int | None = None  # image in a file of several, from 0; default: the largest
    na: float | None = None  # numerical aperture of the objective; default: the file's
    wavelength_um: float | None = None  # emission wavelength in vacuum, um; default: the file's
    pixel_size_um: float | None = None  # camera pixel / magnification, um; default: the file's
    refractive_index: float | None = None  # of the medium around the object; default: the file's


def refuse_no_display() -> None:
    """Raise InputError where Qt would end the program for want of a display."""
    names = ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM")
    if sys.platform.startswith("linux") and not any(os.environ.get(name) for name in names):
        raise InputError("there is no display for the window; use estimate_psf_map.py here.")


def main(config: Config) -> None:
    """Open napari with the image and the widget."""
    keep_freed_memory()
    napari = needed("napari", "the window", "requirements-viewer.txt")
    from viewer.layers import open_layer
    from viewer.widget import PsfMapWidget

    pixels, how = open_layer(config.image, config.series)
    refuse_no_display()
    viewer = napari.Viewer(title=f"{config.image.name} - PSF map")
    viewer.add_image(pixels, **how)
    widget = PsfMapWidget(viewer)
    widget.form.fill({name: asdict(config)[name] for name in OPTICS_NAMES})
    viewer.window.add_dock_widget(widget, name="PSF map", area="right")
    napari.run()


if __name__ == "__main__":
    run(Config, main, __doc__)
