"""How long the window of view_psf_map.py does not answer while a map is estimated.

    pip install -r requirements-viewer.txt
    python benchmarks/viewer_responsiveness.py

It needs a display; on a server, `xvfb-run -a python benchmarks/viewer_responsiveness.py`. A timer
of the event loop ticks every 5 ms. The gaps between its ticks, while the window estimates the map
of a simulated image, go to results/benchmark_viewer.csv. The end of the work counts too: it adds
the layers of the map.
"""

import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import tifffile
from skimage import data
from skimage.transform import resize

sys.path.insert(0, str(Path(__file__).parents[1]))

from common.command import run
from common.extras import needed
from common.files import write_csv

TICK_MS = 5
SETTLE_S = 1.0
OPTICS = {"na": 0.45, "wavelength_um": 0.5, "pixel_size_um": 0.278, "refractive_index": 1.33}


@dataclass(frozen=True)
class Config:
    """Settings of the benchmark."""

    size: int = 1024  # edge of the image, px
    network: str = "focus"  # name of a checkpoint
    repeats: int = 5  # estimates; the first one adds the layers, the others replace them
    out: Path = Path("results")  # folder to write


def write_image(path: Path, size: int) -> None:
    """Write a photograph with photon noise as TIFF."""
    image = resize(data.camera(), (size, size), order=1) * 1000
    noisy = np.random.default_rng(0).poisson(image)
    tifffile.imwrite(path, noisy.astype(np.uint16))


def settle(application) -> None:
    """Let the window draw all that waits to be drawn."""
    from qtpy.QtCore import QEventLoop

    until = time.perf_counter() + SETTLE_S
    while time.perf_counter() < until:
        application.processEvents(QEventLoop.ProcessEventsFlag.WaitForMoreEvents)


def measure(widget, application, use) -> tuple[np.ndarray, float]:
    """Gaps of the event loop while the widget works, ms, and the seconds of the work."""
    from qtpy.QtCore import QEventLoop, QTimer

    ticks = [time.perf_counter()]
    timer = QTimer()
    timer.timeout.connect(lambda: ticks.append(time.perf_counter()))
    timer.start(TICK_MS)
    started = time.perf_counter()
    use()
    while widget.is_busy:
        application.processEvents(QEventLoop.ProcessEventsFlag.WaitForMoreEvents)
    seconds = time.perf_counter() - started
    settle(application)  # the layers are drawn after the work
    timer.stop()
    return 1000 * np.diff(ticks), seconds


def main(config: Config) -> None:
    """Open the window, estimate, write the gaps."""
    napari = needed("napari", "the window", "requirements-viewer.txt")
    from qtpy.QtWidgets import QApplication

    from viewer.layers import open_layer
    from viewer.widget import PsfMapWidget

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.tif"
        write_image(path, config.size)
        viewer = napari.Viewer()
        pixels, how = open_layer(path)
        viewer.add_image(pixels, **how)
        widget = PsfMapWidget(viewer)
        widget.form.fill(OPTICS)
        widget.form.network.setCurrentText(config.network)
        viewer.window.add_dock_widget(widget)
        application = QApplication.instance()
        settle(application)  # the first drawing of the window itself
        rows = []
        for repeat in range(config.repeats):
            gaps, seconds = measure(widget, application, widget.estimate)
            low, high = np.percentile(gaps, (50, 99))
            rows.append(
                {
                    "network": config.network,
                    "image_px": config.size,
                    "repeat": repeat,
                    "seconds": seconds,
                    "median_gap_ms": low,
                    "gap_99_percent_ms": high,
                    "longest_gap_ms": gaps.max(),
                }
            )
        viewer.close()
    table = pd.DataFrame(rows)
    write_csv(config.out / "benchmark_viewer.csv", table)
    print(table.to_string(float_format="%.1f"))
    print(f"wrote {config.out / 'benchmark_viewer.csv'}")


if __name__ == "__main__":
    run(Config, main, __doc__)
