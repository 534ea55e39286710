"""The widget for napari: choose, estimate, point, restore, save."""

import gc
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

import napari
import numpy as np
from napari.layers import Image, Shapes
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import (
    QComboBox,
    QFileDialog,
    QHBoxLayout,
    QLabel,
    QPlainTextEdit,
    QProgressBar,
    QPushButton,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from common.pictures import WARNING_COLOUR
from micrographs.metadata import OpticsFacts
from micrographs.micrograph import open_micrograph
from models.map_result import MapResultOptions, describe_result
from models.recording import MapOptions
from psf.errors import InputError
from restoration.outcome import RestorationOptions, report
from viewer.layers import KEY, plane_of_layer
from viewer.options_form import OptionsForm
from viewer.point import point_at
from viewer.point_panel import POINT_HERE, PointPanel
from viewer.running import Running
from viewer.work import (
    Estimate,
    MapLayer,
    Restoration,
    estimate,
    layers_over_image,
    rectangle_px,
    restore,
    save_map,
    save_restoration,
)

RECTANGLE = "rectangle to restore"
TURN_MS = 20  # between two layers of a map, in which the window answers
UM = ("um", "um")  # units of all layers of this widget
MESSAGE_PX = 36  # height of two lines
LOG_PX = 110  # height of the notes: five lines, the rest scrolls
POINT_EVERY_MS = 80  # the panel is drawn at most so often, which takes about half of that
MADE_HERE = "psf_map_layer"  # in the metadata of layers that show a map or a restoration


class PsfMapWidget(QWidget):
    """Estimate the PSF map of an image layer, look at it, restore the image, and save both."""

    def __init__(self, napari_viewer: "napari.Viewer") -> None:
        super().__init__()
        self.viewer, self.running = napari_viewer, Running()
        self.images: list[Image] = []  # in the order of the box `layers`
        self.found: Estimate | None = None
        self.restoration: Restoration | None = None
        self.pinned = False
        self.origin_um = np.zeros(2)  # place of the first pixel of the mapped layer, y before x
        self.turns: deque[Callable[[], None]] = deque()  # see `_later`
        self.folder = tempfile.TemporaryDirectory()  # for planes that have no file
        self.viewer.canvas.overlays.scale_bar.visible = True
        self._build()
        self._connect()
        self.refresh_layers()
        # Python's garbage collection stops the window for 0.4 s when it looks at all objects of
        # napari and PyTorch. Those that exist now stay, so it need not.
        gc.collect()
        gc.freeze()

    # --- window

    def _build(self) -> None:
        self.layers, self.form, self.panel = QComboBox(), OptionsForm(), PointPanel()
        self.estimate_button, self.cancel_button = QPushButton("Estimate"), QPushButton("Cancel")
        self.field_button = QPushButton("Restore field")
        self.part_button = QPushButton("Restore rectangle")
        self.save_map_button = QPushButton("Save map…")
        self.save_button = QPushButton("Save restoration…")
        self.bar, self.message, self.log = QProgressBar(), QLabel(), QPlainTextEdit()
        self.message.setWordWrap(True)
        self.message.setMinimumHeight(MESSAGE_PX)
        self.form.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Fixed)
        self.log.setReadOnly(True)
        self.log.setMaximumHeight(LOG_PX)
        layout, labels = QVBoxLayout(self), [QLabel("image")]
        for row in (
            (*labels, self.layers),
            (self.form,),
            (self.estimate_button, self.cancel_button),
            (self.bar,),
            (self.field_button, self.part_button),
            (self.save_map_button, self.save_button),
            (self.message,),
        ):
            line = QHBoxLayout()
            for part in row:
                line.addWidget(part, 0 if part in labels else 1)
            layout.addLayout(line)
        layout.addWidget(self.log)
        layout.addStretch(1)
        self.viewer.window.add_dock_widget(self.panel, name="PSF at the cursor", area="right")
        self._show_state()

    def _connect(self) -> None:
        self.layers.currentIndexChanged.connect(self._layer_chosen)
        self.estimate_button.clicked.connect(self.estimate)
        self.cancel_button.clicked.connect(self.running.stop)
        self.field_button.clicked.connect(self.restore_field)
        self.part_button.clicked.connect(self.restore_rectangle)
        self.save_map_button.clicked.connect(lambda: self.save_map(self._ask_folder("maps")))
        self.save_button.clicked.connect(
            lambda: self.save_restoration(self._ask_folder("restored"))
        )
        self.running.progress.connect(self._show_progress)
        self.running.failed.connect(self.show_error)
        self.running.cancelled.connect(lambda: self.show_message("cancelled; nothing was changed"))
        self.running.ended.connect(self._show_state)
        self.viewer.layers.events.inserted.connect(self.refresh_layers)
        self.viewer.layers.events.removed.connect(self.refresh_layers)
        self.viewer.layers.events.renamed.connect(self.refresh_layers)
        self.viewer.mouse_move_callbacks.append(self._moved)
        self.viewer.mouse_drag_callbacks.append(self._clicked)
        self.timer = QTimer(self)
        self.timer.setSingleShot(True)
        self.timer.timeout.connect(self._show_cursor)

    def refresh_layers(self, event: Any = None) -> None:
        """List the image layers that a map can be made of; the chosen one stays chosen."""
        chosen = self.layer
        self.images = [
            layer
            for layer in self.viewer.layers
            if isinstance(layer, Image) and MADE_HERE not in layer.metadata
        ]
        self.layers.blockSignals(True)
        self.layers.clear()
        self.layers.addItems([layer.name for layer in self.images])
        if chosen in self.images:
            self.layers.setCurrentIndex(self.images.index(chosen))
        self.layers.blockSignals(False)
        if self.layer is not chosen:
            self._layer_chosen()

    def _layer_chosen(self) -> None:
        """Show what the file of the layer states of its optics."""
        layer, facts = self.layer, OpticsFacts()
        source = layer and layer.metadata.get(KEY)
        path = source.path if source else layer and layer.source.path
        if path:
            try:
                with open_micrograph(Path(path), series=source.series if source else None) as one:
                    facts = one.facts
            except InputError:  # another reader of napari knows the format
                pass
        self.form.show_facts(facts)

    @property
    def layer(self) -> Image | None:
        """The image layer that was chosen."""
        number = self.layers.currentIndex()
        return self.images[number] if 0 <= number < len(self.images) else None

    def _show_state(self) -> None:
        """Enable the buttons that make sense now."""
        busy = self.running.is_running
        self.estimate_button.setEnabled(not busy)
        self.cancel_button.setEnabled(busy)
        for button in (self.field_button, self.part_button, self.save_map_button):
            button.setEnabled(not busy and self.found is not None)
        self.save_button.setEnabled(not busy and self.restoration is not None)
        if not busy:
            self.bar.setRange(0, 1)
            self.bar.setValue(0)
            self.bar.setFormat("")

    def _show_progress(self, what: str, done: int, total: int) -> None:
        if (what, total) != getattr(self, "_work", None):
            self._work, self._began = (what, total), time.monotonic()
        self.bar.setRange(0, total)  # without an end the bar only moves
        self.bar.setValue(done)
        spent = time.monotonic() - self._began
        left = f", {spent / done * (total - done):.0f} s left" if done and total else ""
        self.bar.setFormat(f"{what} %p %{left}" if total else what)

    def show_error(self, text: str) -> None:
        """Show a mistake in one line."""
        self.message.setStyleSheet(f"color: {WARNING_COLOUR}; font-weight: bold")
        self.message.setText(f"error: {text}")

    def show_message(self, text: str) -> None:
        """Show what was done in one line."""
        self.message.setStyleSheet("")
        self.message.setText(text)

    # --- work

    def estimate(self) -> None:
        """Estimate the map of the plane that is shown."""
        layer = self.layer
        try:
            if layer is None:
                raise InputError("there is no image; drop one on the window.")
            typed = self.form.options()
        except InputError as error:
            self.show_error(str(error))
            return
        shown, folder = self._shown_plane(layer), Path(self.folder.name)

        def work() -> Estimate:
            plane = plane_of_layer(layer, shown, folder)
            out = Path("maps") / plane.image.stem
            return estimate(MapResultOptions(out=out, **typed, **asdict(plane)))

        self.show_message("estimating…")
        self.running.start(work, partial(self._show_map, layer))
        self._show_state()

    def _shown_plane(self, layer: Image) -> tuple[int, ...]:
        """Index along each axis of a layer before y and x, by the sliders."""
        at = layer.world_to_data(self.viewer.dims.point)[: layer.ndim - 2]
        return tuple(
            int(np.clip(round(i), 0, n - 1)) for i, n in zip(at, layer.data.shape, strict=False)
        )

    def _show_map(self, layer: Image, found: Estimate) -> None:
        """Put the map of an estimate of a layer in the place of the last one."""
        if self.found is not None:
            self.found.close()
        self.found, self.restoration, self.pinned = found, None, False
        pixel_um = found.recording.microscope.pixel_size_um
        self.origin_um = layer.translate[-2:] / layer.scale[-2:] * pixel_um
        layer.scale = (*layer.scale[:-2], pixel_um, pixel_um)
        layer.translate = (*layer.translate[:-2], *self.origin_um)
        layer.units = (*layer.units[:-2], *UM)
        lines = [*map("note: {}".format, found.recording.notes)]
        lines += describe_result(found.result, found.recording)
        self.log.setPlainText("\n".join(lines))
        self.show_message(lines[len(found.recording.notes)])
        layers = layers_over_image(found)
        for number, one in enumerate(layers):
            self._later(partial(self._put_map, one, number == 0))
        self._later(partial(self._show_colours, layers[0].name))
        self._later(partial(self.panel.clear, POINT_HERE))

    def _put_map(self, one: MapLayer, visible: bool) -> None:
        self._put(
            one.name,
            one.pixels,
            visible=visible,
            scale=one.scale_um,
            translate=one.translate_um + self.origin_um,
            contrast_limits=one.limits,
            colormap=one.colour_map,
            opacity=0.6,
        )

    def _made_here(self, name: str) -> Image | None:
        """The layer of this widget with a name; a user's layer may have the same one."""
        made = (layer for layer in self.viewer.layers if layer.metadata.get(MADE_HERE) == name)
        return next(made, None)

    def _show_colours(self, name: str) -> None:
        layer = self._made_here(name)
        if layer is not None:  # the user may have removed it already
            layer.colorbar.visible = True

    def _visibility_changed(self, event: Any) -> None:
        """Draw the colour bar of a map when the map is first shown."""
        layer = event.source
        if layer.visible and not layer.colorbar.visible:
            self._later(partial(self._show_colours, layer.metadata[MADE_HERE]))

    def _put(self, name: str, pixels: np.ndarray, **how: Any) -> None:
        """Show a layer of this widget, in the place of the last one of its name."""
        layer = self._made_here(name)
        if layer is not None:
            how.pop("visible", None)
            layer.data = pixels
            for key, value in how.items():
                setattr(layer, key, value)
            return
        how |= {"metadata": {MADE_HERE: name}, "units": UM, "interpolation2d": "nearest"}
        layer = self.viewer.add_image(pixels, name=name, **how)
        if layer.opacity < 1:  # a map; a restoration needs no colour bar
            layer.events.visible.connect(self._visibility_changed)

    def _later(self, step: Callable[[], None]) -> None:
        """Do a step a little later, after those that wait already, so that the window answers.

        A new layer takes napari about a tenth of a second, so several at once would be felt.
        """
        self.turns.append(step)
        if len(self.turns) == 1:
            QTimer.singleShot(TURN_MS, self._take_turn)

    def _take_turn(self) -> None:
        try:
            self.turns[0]()
        finally:
            self.turns.popleft()
            if self.turns:
                QTimer.singleShot(TURN_MS, self._take_turn)

    @property
    def is_busy(self) -> bool:
        """Whether work runs, or its result is not yet shown."""
        return self.running.is_running or bool(self.turns)

    def restore_field(self) -> None:
        """Restore the mapped plane."""
        self._restore(None)

    def restore_rectangle(self) -> None:
        """Restore the last rectangle that was drawn, or let the user draw one."""
        shapes = [layer for layer in self.viewer.layers if isinstance(layer, Shapes) and layer.data]
        if not shapes:
            layer = next((one for one in self.viewer.layers if isinstance(one, Shapes)), None)
            layer = layer or self.viewer.add_shapes(
                name=RECTANGLE, face_color="transparent", edge_color="white", units=UM
            )
            self.viewer.layers.selection.active = layer
            layer.mode = "add_rectangle"
            self.show_message("draw a rectangle on the image, then press the button again")
            return
        layer = shapes[-1]
        corners = np.array([layer.data_to_world(corner)[-2:] for corner in layer.data[-1]])
        micrograph = self.found.recording.micrograph
        pixel_um = self.found.recording.microscope.pixel_size_um
        self._restore(rectangle_px(corners - self.origin_um, pixel_um, micrograph.shape))

    def _restore(self, part: tuple[slice, slice] | None) -> None:
        found = self.found
        shared = {field.name: getattr(found.options, field.name) for field in fields(MapOptions)}
        options = RestorationOptions(**shared)
        self.show_message("restoring…")
        self.running.start(lambda: restore(found, options, part), self._show_restored)
        self._show_state()

    def _show_restored(self, restoration: Restoration) -> None:
        self.restoration = restoration
        outcome, pixel_um = restoration.outcome, restoration.psf_map.microscope.pixel_size_um
        before = np.percentile(outcome.before, (0.5, 99.8))
        corner = self.origin_um + [line.start * pixel_um for line in restoration.part]
        self._put(
            "restored",
            outcome.after,
            scale=(pixel_um, pixel_um),
            translate=corner,
            contrast_limits=(float(before[0]), float(before[1]) + 1e-9),
            colormap="gray",
        )
        camera = self.found.recording.camera
        lines = report([outcome], outcome, camera, restoration.seconds)
        self.log.setPlainText("\n".join([self.log.toPlainText(), *lines]))
        self.show_message(f"restored in {restoration.seconds:.1f} s; see the notes below")

    # --- files

    def _ask_folder(self, kind: str) -> Path | None:
        chosen = QFileDialog.getExistingDirectory(self, f"Folder for the files ({kind}/NAME)")
        return Path(chosen) if chosen else None

    def save_map(self, folder: Path | None) -> None:
        """Write the files of estimate_psf_map.py to a folder."""
        if folder is not None:
            found = self.found
            self._save(folder, lambda: save_map(folder, found))

    def save_restoration(self, folder: Path | None) -> None:
        """Write the files of deconvolve.py to a folder."""
        if folder is not None:
            found, restoration = self.found, self.restoration
            self._save(folder, lambda: save_restoration(folder, found, restoration))

    def _save(self, folder: Path, work: Any) -> None:
        self.show_message("saving…")
        self.running.start(work, lambda _: self.show_message(f"wrote {folder}"))
        self._show_state()

    # --- cursor

    def _moved(self, viewer: Any, event: Any) -> None:
        if not self.pinned and self.found is not None and not self.timer.isActive():
            self.timer.start(POINT_EVERY_MS)

    def _clicked(self, viewer: Any, event: Any) -> Any:
        yield  # the press; a drag follows, or the release
        moved = False
        while event.type == "mouse_move":
            moved = True
            yield
        if not moved and self.found is not None:
            self.pinned = not self.pinned
            self._show_cursor()

    def _show_cursor(self) -> None:
        """Show the patch under the cursor."""
        self.show_place(*self.viewer.cursor.position[-2:])

    def show_place(self, y_um: float, x_um: float) -> None:
        """Show the patch at a place of the image."""
        found = self.found
        if found is None or self.running.is_running:  # the work reads the same file
            return
        pixel_um = found.recording.microscope.pixel_size_um
        y_px, x_px = (np.array([y_um, x_um]) - self.origin_um) / pixel_um
        point = point_at(found.recording, found.result, y_px, x_px)
        if point is None:
            self.panel.clear("There is no patch here: its centre must lie half a patch inside.")
        else:
            self.panel.show_point(point, self.pinned)
