"""Panel that draws the PSF and the spectrum of the patch under the cursor."""

import numpy as np
from matplotlib.backends.backend_qtagg import FigureCanvasQTAgg
from matplotlib.figure import Figure
from qtpy.QtWidgets import QLabel, QVBoxLayout, QWidget

from common.pictures import COLOURS, add_scale_bar
from viewer.point import Point, Spectrum

POINT_HERE = "Point at the image. A click keeps the patch; another one releases it."
EMPTY = f"Estimate a map first. {POINT_HERE}"


class PointPanel(QWidget):
    """Values, PSF and spectrum of one patch."""

    def __init__(self) -> None:
        super().__init__()
        self.text = QLabel(EMPTY)
        self.text.setWordWrap(True)
        self.figure = Figure(figsize=(4.2, 5.2), layout="constrained")
        self.canvas = FigureCanvasQTAgg(self.figure)
        self.canvas.setMinimumHeight(280)
        layout = QVBoxLayout(self)
        layout.addWidget(self.text)
        layout.addWidget(self.canvas, 1)
        self.psf_axes, self.axes = self.figure.subplots(2, 1, height_ratios=(1, 1.1))
        self.clear()

    def clear(self, text: str = EMPTY) -> None:
        """Show no patch."""
        self.text.setText(text)
        for axes in (self.psf_axes, self.axes):
            axes.clear()
            axes.set_axis_off()
        self.canvas.draw_idle()

    def show_point(self, point: Point, pinned: bool) -> None:
        """Draw one patch."""
        place = f"patch {point.row}, {point.column}" + (" (kept)" if pinned else "")
        self.text.setText("\n".join([place, *point.lines]).replace(" um", " µm"))
        axes = self.psf_axes
        axes.clear()
        # The square root shows the rings beside the bright middle.
        axes.imshow(np.sqrt(point.psf.clip(0)), cmap="viridis", interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        axes.set_title("PSF of the model (square root of the intensity)", fontsize=8)
        add_scale_bar(axes, point.pixel_um, point.psf.shape[1])
        draw_spectrum(self.axes, point.spectrum)
        self.canvas.draw_idle()


def draw_spectrum(axes, spectrum: Spectrum) -> None:
    """Draw measured power and the model's over the frequency, one colour per direction."""
    axes.clear()
    lines = zip(spectrum.names, spectrum.measured, spectrum.model, COLOURS, strict=False)
    for name, measured, model, colour in lines:
        axes.semilogy(spectrum.frequency, measured, ".", ms=4, color=colour, label=f"patch, {name}")
        axes.semilogy(spectrum.frequency, model, color=colour, lw=1.3, label=f"model, {name}")
    if np.isfinite(spectrum.cutoff):
        axes.axvline(spectrum.cutoff, color="0.5", lw=1, ls="--", label="cut-off of the optics")
    seen = spectrum.measured[np.isfinite(spectrum.measured) & (spectrum.measured > 0)]
    if len(seen):
        axes.set_ylim(seen.min() / 3, seen.max() * 3)
    axes.set_xlim(0, spectrum.frequency[-1] * 1.02)
    axes.set_xlabel("frequency (cycles per µm)", fontsize=8)
    axes.set_ylabel("power (1 = variance)", fontsize=8)
    axes.set_title("Spectrum of the patch, and object x |OTF|² + noise", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=7, loc="upper right")
