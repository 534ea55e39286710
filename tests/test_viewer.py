"""The window: what it shows and saves is what the scripts make.

Tests with a real window need napari and a display, and are slow:
`xvfb-run -a pytest -p no:napari -W default -m slow tests/test_viewer.py`.
"""

import json
import os
import re
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import torch
from skimage import data as skimage_data

import deconvolve
import estimate_psf_map
import view_psf_map
from common.progress import Cancelled, listening, tell_progress
from models.map_result import MapResultOptions
from models.mapping import PsfMap
from psf import InputError, Microscope
from psf.model import psf_model
from psf.synthesis import synthesize
from restoration.outcome import RestorationOptions
from restoration.variant_blur import interpolate_grid
from viewer import work
from viewer.point import point_at, spectrum_of
from viewer.rectangle import map_of_part

OPTICS = {"na": 0.45, "wavelength_um": 0.5, "pixel_size_um": 0.278, "refractive_index": 1.33}
FAST = {"checkpoint": Path("zernike1d"), "device": "cpu", "stride": 64}
ROOT = Path(view_psf_map.__file__).parent


@pytest.fixture(scope="module")
def image_path(tmp_path_factory):
    """A photograph of 256 x 320 px that is sharp on the left and defocused on the right."""
    path = tmp_path_factory.mktemp("image") / "image.tif"
    photo = torch.from_numpy(skimage_data.gravel()[100:356, 60:380].astype(np.float32)) * 20
    blurred = torch.nn.functional.conv2d(
        photo[None, None],
        synthesize("zernike1d", torch.tensor([[2.5]]), Microscope(**OPTICS), 95)[:, None],
        padding="same",
    )[0, 0]
    sharp_left = torch.where(torch.arange(320) < 160, photo, blurred)
    counts = np.random.default_rng(0).poisson(sharp_left.clamp(min=1).numpy())
    tifffile.imwrite(path, counts.astype(np.uint16))
    return path


@pytest.fixture(scope="module")
def found(image_path):
    options = MapResultOptions(image=image_path, out=Path("maps/image"), **FAST, **OPTICS)
    result = work.estimate(options)
    yield result
    result.close()


def test_work_that_tells_its_progress_can_be_stopped():
    heard = []

    def listen(what, done, total):
        heard.append((what, done, total))
        if done == 2:
            raise Cancelled

    with pytest.raises(Cancelled), listening(listen):
        for number in range(5):
            tell_progress("work", number, 5)
    tell_progress("unheard", 0)
    assert heard == [("work", 0, 5), ("work", 1, 5), ("work", 2, 5)]


def test_the_map_lies_over_its_image(found):
    """The centre of the first patch of 128 px is at 63.5 px, and neighbours are a stride apart."""
    focus = next(one for one in work.layers_over_image(found) if one.name == "focus (waves)")
    assert focus.translate_um == pytest.approx((63.5 * 0.278, 63.5 * 0.278))
    assert focus.scale_um == pytest.approx((64 * 0.278, 64 * 0.278))
    assert focus.pixels.shape == (3, 4)
    assert (focus.pixels[:, 0] < 1.5).all() and (focus.pixels[:, -1] > 1.5).all()


def test_a_point_shows_the_patch_that_is_nearest(found):
    sharp = point_at(found.recording, found.result, 64.0, 60.0)
    blurred = point_at(found.recording, found.result, 64.0, 250.0)
    assert (sharp.row, sharp.column, blurred.column) == (0, 0, 3)
    assert sharp.psf.max() > 2 * blurred.psf.max()
    value = float(found.result.found.smooth.values[0, 0, 0])
    assert sharp.lines[0].startswith(f"focus {value:.2f} ± ")
    assert sharp.lines[0].endswith("waves") and sharp.lines[1].endswith("um")
    assert point_at(found.recording, found.result, -70.0, 60.0) is None


@pytest.mark.parametrize("focus", [0.5, 2.0])
def test_the_spectrum_of_the_model_fits_an_object_that_follows_it(focus):
    """A power-law object, blurred and with white noise: the fit stays within its speckle."""
    generator = torch.Generator().manual_seed(0)
    edge, optics = 256, Microscope(**OPTICS)
    f = torch.fft.fftfreq(edge)
    radius = torch.hypot(f[:, None], f).clamp(min=1 / edge)
    psf = synthesize("zernike1d", torch.tensor([[focus]]), optics, 127)[0]
    otf = torch.fft.fft2(psf, s=(edge, edge))
    white = torch.fft.fft2(torch.randn(edge, edge, generator=generator))
    blurred = torch.fft.ifft2(white / radius * otf).real
    noisy = blurred + 0.02 * blurred.std() * torch.randn(edge, edge, generator=generator)
    patch = noisy[:128, :128]

    def misfit(psf):
        found = spectrum_of(patch, psf, 0.278, optics.cutoff_cycles_per_pixel)
        used = np.isfinite(found.model) & np.isfinite(found.measured)
        return np.median(np.abs(np.log(found.model[used] / found.measured[used])))

    assert misfit(psf) < 0.15
    wrong = synthesize("zernike1d", torch.tensor([[focus + 1.0]]), optics, 127)[0]
    assert misfit(wrong) > 1.5 * misfit(psf)


def test_frequencies_are_cycles_per_um(found):
    spectrum = point_at(found.recording, found.result, 64.0, 60.0).spectrum
    assert spectrum.cutoff == pytest.approx(2 * 0.45 / 0.5)
    assert spectrum.frequency[-1] < 0.5 / 0.278 < spectrum.frequency[-1] * 1.02


def test_the_map_of_a_part_holds_the_same_values():
    generator = torch.Generator().manual_seed(0)
    at = torch.tensor([10.0, 42.0, 74.0, 106.0])
    values = torch.rand(1, 4, 4, generator=generator)
    whole = PsfMap(psf_model("zernike1d"), Microscope(), values, values / 10, values[0], at, at + 3)
    part = map_of_part(whole, (slice(20, 90), slice(50, 120)))
    y, x = torch.arange(70.0), torch.arange(70.0)
    inside = interpolate_grid(part.values, part.rows, part.columns, y, x)
    expected = interpolate_grid(values, whole.rows, whole.columns, y + 20, x + 50)
    assert torch.allclose(inside, expected, atol=1e-6)


def test_a_rectangle_is_restored_as_in_the_field(found):
    options = RestorationOptions(
        image=found.options.image, out=Path("none"), iterations=10, tv=0.002, refine="no", **OPTICS
    )
    options = replace(options, cautious=False)
    part = (slice(60, 200), slice(100, 240))
    field = work.restore(found, options).outcome.after[part]
    rectangle = work.restore(found, options, part)
    assert rectangle.outcome.after.shape == (140, 140)
    assert np.abs(rectangle.outcome.after - field).mean() < 0.02 * field.std()
    assert rectangle.outcome.name == "channel 0, z 0, t 0, rows 60:200, columns 100:240"


def test_a_tiny_rectangle_is_refused(found):
    options = RestorationOptions(image=found.options.image, out=Path("none"))
    with pytest.raises(InputError, match="0 x 4 px inside the image; draw one of at least 16 px"):
        work.restore(found, options, (slice(256, 256), slice(0, 4)))


def test_corners_in_um_are_pixels_inside_the_image():
    corners = np.array([[10.0, -5.0], [10.0, 20.0], [30.0, 20.0], [30.0, -5.0]])
    part = work.rectangle_px(corners, 0.5, (50, 100))
    assert part == (slice(20, 50), slice(0, 41))


class ShownLayer:
    """What `plane_of_layer` reads of an image layer of napari."""

    name, rgb, multiscale = "layer", False, False

    def __init__(self, data, path=None, scale=0.278, unit="pixel"):
        self.scale, self.units = (scale, scale), (unit, unit)
        self.data, self.metadata, self.source = data, {}, SimpleNamespace(path=path)


def test_a_layer_that_was_changed_is_taken_as_it_is_shown(image_path, tmp_path):
    """Cropped, or with other counts: its file no longer holds what the user sees."""
    pixels = tifffile.imread(image_path)
    plane_of_layer = pytest.importorskip("viewer.layers").plane_of_layer
    same = plane_of_layer(ShownLayer(pixels, str(image_path)), (), tmp_path)
    assert same.image == image_path
    for changed in (pixels[:200, 50:], pixels + np.uint16(1)):
        plane = plane_of_layer(ShownLayer(changed, str(image_path)), (), tmp_path)
        assert np.array_equal(tifffile.imread(plane.image), changed)


def test_the_plane_of_a_map_stays_while_another_one_is_estimated(tmp_path):
    """A cancelled estimate must leave the pixels of the last map as they were."""
    plane_of_layer = pytest.importorskip("viewer.layers").plane_of_layer
    layer = ShownLayer(np.stack([np.full((8, 8), 1.0), np.full((8, 8), 2.0)]))
    first, second = (plane_of_layer(layer, (n,), tmp_path).image for n in (0, 1))
    assert (tifffile.imread(first) == 1).all() and (tifffile.imread(second) == 2).all()


def test_the_scale_of_a_layer_is_a_pixel_size_where_it_has_a_unit():
    layers = pytest.importorskip("viewer.layers")
    unit = pytest.importorskip("pint").get_application_registry()
    read = layers.pixel_of_layer_um
    assert read(ShownLayer(None, scale=65.0, unit=unit.nanometer)) == pytest.approx(0.065)
    assert read(ShownLayer(None, scale=1.0, unit=unit.um)) == pytest.approx(1.0)
    assert read(ShownLayer(None, scale=0.278)) == 0.278
    assert read(ShownLayer(None, scale=1.0)) is None  # napari's own, of a file without a scale


@pytest.mark.slow
def test_saved_files_are_those_of_the_scripts(found, image_path, tmp_path, capsys):
    work.save_map(tmp_path / "window", found)
    config = estimate_psf_map.Config(image=image_path, out=tmp_path / "script", **FAST, **OPTICS)
    estimate_psf_map.main(config)
    saved, made = (sorted(p.name for p in (tmp_path / f).iterdir()) for f in ("window", "script"))
    assert saved == made
    for name in ("map.csv", "psf_map.tif", "psf_map_full.tif", "depth.tif", "overview.png"):
        assert (tmp_path / "window" / name).read_bytes() == (
            tmp_path / "script" / name
        ).read_bytes()
    restored = deconvolve.Config(
        image=image_path, map=tmp_path / "window", out=tmp_path / "r", iterations=2, refine="no"
    )
    deconvolve.main(restored)  # takes the folder for its own
    options = RestorationOptions(
        image=image_path, out=Path("none"), iterations=2, refine="no", **OPTICS
    )
    work.save_restoration(tmp_path / "w", found, work.restore(found, options))
    names = [sorted(p.name for p in (tmp_path / f).iterdir()) for f in ("w", "r")]
    assert names[0] == names[1]
    one, other = (tifffile.imread(tmp_path / f / "restored.tif") for f in ("w", "r"))
    assert np.allclose(one, other, rtol=1e-4, atol=1e-2)


def test_a_cancelled_estimate_leaves_nothing(image_path, tmp_path):
    def stop(what, done, total):
        raise Cancelled

    out = tmp_path / "map"
    options = MapResultOptions(image=image_path, out=out, **FAST, **OPTICS)
    with pytest.raises(Cancelled), listening(stop):
        work.estimate(options)
    assert not out.exists()


def test_wrong_optics_give_one_clear_line(image_path):
    options = MapResultOptions(image=image_path, out=Path("none"), **FAST, **{**OPTICS, "na": 1.4})
    with pytest.raises(InputError, match=r"NA|na 1\.4"):
        work.estimate(options)


def test_the_manifest_registers_no_reader():
    manifest = (ROOT / "viewer" / "napari.yaml").read_text("utf-8")
    assert re.findall(r"^  (\w+):", manifest, re.M) == ["commands", "widgets"]
    (command,) = re.findall(r"- id: (\S+)", manifest)
    assert re.findall(r"- command: (\S+)", manifest) == [command]


def test_without_napari_one_line_says_what_to_install(monkeypatch, image_path):
    monkeypatch.setitem(sys.modules, "napari", None)
    with pytest.raises(
        InputError, match=r"needs the package napari: pip install -r requirements-viewer\.txt"
    ):
        view_psf_map.main(view_psf_map.Config(image=image_path))


def test_without_a_display_one_line_says_so(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match="there is no display"):
        view_psf_map.refuse_no_display()
    monkeypatch.setenv("DISPLAY", ":0")
    view_psf_map.refuse_no_display()


# --- with a window


@pytest.fixture
def window(image_path, monkeypatch):
    """The widget in a napari window, the image in it, and a function that waits for its work."""
    napari = pytest.importorskip("napari")
    if not (os.environ.get("DISPLAY") or sys.platform in ("win32", "darwin")):
        pytest.skip("there is no display")
    from qtpy.QtWidgets import QApplication

    from viewer.layers import open_layer
    from viewer.widget import PsfMapWidget

    errors = []  # of the window's callbacks; without the hook they would end the process
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, trace: errors.append(error))
    viewer = napari.Viewer()
    pixels, how = open_layer(image_path)
    viewer.add_image(pixels, **how)
    widget = PsfMapWidget(viewer)
    viewer.window.add_dock_widget(widget)

    def wait() -> None:
        until = time.monotonic() + 600
        while widget.is_busy and time.monotonic() < until:
            QApplication.processEvents()
            time.sleep(0.005)
        assert not errors and not widget.is_busy

    widget.form.network.setCurrentText("zernike1d")
    yield widget, wait
    viewer.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_visit_to_the_window(window, tmp_path):
    """Open, estimate, point, restore a rectangle and the field, save, cancel, wrong optics."""
    widget, wait = window
    widget.estimate()
    wait()
    assert widget.message.text().startswith("error: ") and "--na" in widget.message.text()
    widget.form.fill({**OPTICS, "na": 1.4})
    widget.estimate()
    wait()
    assert widget.message.text().startswith("error: ")
    widget.form.fill(OPTICS)
    widget.estimate()
    wait()
    assert "patches in" in widget.message.text()
    names = [layer.name for layer in widget.viewer.layers]
    assert names == [
        "image.tif",
        "focus (waves)",
        "focus standard deviation (waves)",
        "distance from focus (um)",
        "content probability",
        "photons per pixel",
    ]
    assert widget.viewer.layers[0].scale == pytest.approx([0.278, 0.278])
    widget.show_place(20.0, 20.0)
    assert "waves" in widget.panel.text.text() and widget.panel.axes.lines
    widget.restore_rectangle()
    assert "draw a rectangle" in widget.message.text()
    corners = np.array([[10, 20], [10, 50], [40, 50], [40, 20]], float)
    widget.viewer.layers["rectangle to restore"].add_rectangles(corners)
    widget.restore_rectangle()
    wait()
    restored = widget.viewer.layers["restored"]
    assert restored.data.shape == (109, 109)
    assert restored.translate == pytest.approx([36 * 0.278, 72 * 0.278])
    widget.save_map(tmp_path / "map")
    wait()
    widget.save_restoration(tmp_path / "restored")
    wait()
    record = json.loads((tmp_path / "restored" / "restoration.json").read_text())
    assert record["planes"][0]["rows"] == "36:145"
    assert (tmp_path / "map" / "overview.png").exists()
    before = widget.found
    widget.estimate()
    widget.running.stop()
    wait()
    assert widget.message.text() == "cancelled; nothing was changed"
    assert widget.found is before
    widget.restore_field()
    wait()
    assert widget.viewer.layers["restored"].data.shape == (256, 320)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_layer_without_a_file_is_mapped_as_it_is_shown(window):
    """Planes of a layer that another program made, with the optics typed."""
    widget, wait = window
    viewer = widget.viewer
    stack = np.random.default_rng(0).poisson(np.stack([gravel(), 2 * gravel()]))
    viewer.add_image(stack.astype(np.uint16), name="made here", scale=(1, 0.278, 0.278))
    widget.layers.setCurrentText("made here")
    viewer.dims.set_current_step(0, 1)
    widget.form.fill({**OPTICS, "pixel_size_um": None})
    widget.estimate()
    wait()
    assert "patches in" in widget.message.text(), widget.message.text()
    brightness = float(widget.found.result.found.patches.brightness.mean())
    assert brightness == pytest.approx(2 * gravel().mean(), rel=0.1)
    assert widget.found.recording.microscope.pixel_size_um == pytest.approx(0.278)
    assert "ImageJ" in widget.found.recording.optics.sources["pixel_size_um"]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_the_map_follows_a_layer_that_lies_elsewhere(window):
    """Another layer is chosen meanwhile; the map must belong to the one it was made of."""
    widget, wait = window
    viewer = widget.viewer
    moved = viewer.add_image(
        gravel(), name="moved", scale=(278, 278), translate=(2780, 5560), units=("nm", "nm")
    )
    widget.layers.setCurrentText("moved")
    widget.form.fill({**OPTICS, "pixel_size_um": None})
    widget.estimate()
    widget.layers.setCurrentText("image.tif")
    before = viewer.layers["image.tif"].scale.copy()
    wait()
    assert (viewer.layers["image.tif"].scale == before).all()
    assert moved.scale == pytest.approx([0.278, 0.278])
    assert moved.translate == pytest.approx([2.78, 5.56])
    focus = viewer.layers["focus (waves)"]
    assert focus.translate == pytest.approx([2.78 + 63.5 * 0.278, 5.56 + 63.5 * 0.278])
    widget.show_place(*focus.translate)
    assert widget.panel.text.text().startswith("patch 0, 0")
    corners = np.array([[10, 20], [10, 50], [40, 50], [40, 20]], float)
    viewer.add_shapes(corners[None], name="box", units=("um", "um"))
    widget.restore_rectangle()
    wait()
    restored = viewer.layers["restored"]
    apart_px = (restored.translate - moved.translate) / 0.278
    assert restored.translate == pytest.approx([10, 20], abs=0.278)
    assert apart_px == pytest.approx(apart_px.round())


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_layers_of_the_user_keep_their_choice_and_their_pixels(window):
    """A renamed image stays chosen, and a layer that is named like a result is left alone."""
    widget, wait = window
    viewer = widget.viewer
    own = viewer.add_image(np.full((20, 20), 7.0), name="restored")
    image = viewer.layers["image.tif"]
    image.name = "renamed"
    viewer.add_image(np.zeros((9, 9)), name="another")
    assert widget.layer is image and widget.layers.currentText() == "renamed"
    widget.layers.setCurrentText("restored")
    viewer.add_image(np.zeros((9, 9)), name="a third")
    assert widget.layer is own
    widget.layers.setCurrentText("renamed")
    widget.form.fill(OPTICS)
    widget.estimate()
    widget.layers.setCurrentText("restored")
    wait()
    assert image.scale == pytest.approx([0.278, 0.278]) and own.scale == pytest.approx([1, 1])
    widget._put("restored", np.zeros((5, 5)))
    assert own.data.shape == (20, 20) and own.data.mean() == 7


def gravel() -> np.ndarray:
    return skimage_data.gravel()[:256, :256].astype(float) * 20
