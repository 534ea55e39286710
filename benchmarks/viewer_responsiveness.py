"""How long the window of view_psf_map.py does not answer while a map is estimated.

    pip install -r requirements-viewer.txt
    python benchmarks/viewer_responsiveness.py

It needs a display; on a server, `xvfb-run -a python benchmarks/viewer_responsiveness.py`. A timer
of the event loop ticks every 5 ms. The gaps between its ticks, while the window estimates the map
of a simulated image, and then while napari makes and draws the layers of the map, go to
results/benchmark_viewer.csv.
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


def measure(widget, application, use) -> tuple[np.ndarray, np.ndarray, float]:
    """Gaps of the event loop, ms: during the work, and while its result is shown; seconds of both.

    A gap that begins during the work counts as one of the work.
    """
    from qtpy.QtCore import QEventLoop, QTimer

    ticks, working = [time.perf_counter()], []

    def tick() -> None:
        ticks.append(time.perf_counter())
        working.append(widget.running.is_running)

    timer = QTimer()
    timer.timeout.connect(tick)
    timer.start(TICK_MS)
    use()
    while widget.is_busy:
        application.processEvents(QEventLoop.ProcessEventsFlag.WaitForMoreEvents)
    seconds = time.perf_counter() - ticks[0]
    settle(application)  # the layers are drawn after the work
    timer.stop()
    gaps, begun = 1000 * np.diff(ticks), np.array([True, *working[:-1]])
    return gaps[begun], gaps[~begun], seconds


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
            gaps, shown, seconds = measure(widget, application, widget.estimate)
            rows.append(
                {
                    "network": config.network,
                    "image_px": config.size,
                    "repeat": repeat,
                    "seconds": seconds,
                    "gap_99_percent_ms": np.percentile(gaps, 99),
                    "longest_gap_ms": gaps.max(),
                    "longest_gap_showing_ms": shown.max(),
                }
            )
        viewer.close()
    table = pd.DataFrame(rows)
    write_csv(config.out / "benchmark_viewer.csv", table)
    print(table.to_string(float_format="%.1f"))
    print(f"wrote {config.out / 'benchmark_viewer.csv'}")


if __name__ == "__main__":
    run(Config, main, __doc__)
