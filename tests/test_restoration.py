"""From a map to a restored image: its PSFs, care where the map is uncertain, files."""

import json
import re
import sys
import warnings

import numpy as np
import pytest
import tifffile
import torch
from scipy.ndimage import gaussian_filter

import deconvolve
from micrographs.camera import estimate_camera
from micrographs.micrograph import open_micrograph
from models.mapping import PsfMap
from psf import InputError, Microscope, psf_model, synthesize
from psf.blur import interpolate_grid
from restoration import outcome
from restoration.blur_map import (
    blur_of_map,
    check_belongs,
    continue_to_borders,
    map_on,
    read_map,
    support_px,
)
from restoration.care import MISFIT_ALLOWED, psf_uncertainty, shrunk_where_misfit
from restoration.fit import NOISE_ALLOWED, judge
from restoration.iteration import Restored
from restoration.richardson_lucy import richardson_lucy
from restoration.rivals import blind_richardson_lucy, blind_total_variation, weights_after_blur
from restoration.variant_blur import VariantBlur
from restoration.with_map import fade_bad_places, restore_with_map

SHAPE = (96, 112)
MODEL = psf_model("gaussian1d")


def psf_map(low=2.0, high=6.0, deviation=0.1, content=1.0):
    rows, columns = torch.tensor([16.0, 48.0, 80.0]), torch.tensor([16.0, 56.0, 96.0])
    values = torch.linspace(low, high, 3).expand(1, 3, 3).clone()
    return PsfMap(
        MODEL,
        Microscope(),
        values,
        torch.full_like(values, deviation),
        torch.full((3, 3), content),
        rows,
        columns,
    )


def scene(found, photons=1000.0):
    blur = blur_of_map(found, SHAPE)
    torch.manual_seed(0)
    coarse = torch.rand(1, 1, 20, 20)
    objects = torch.nn.functional.interpolate(coarse, blur.field_shape, mode="nearest")[0, 0]
    objects = (objects + 0.05) * photons / (objects.mean() + 0.05)
    clean = blur.forward(objects[None])[0].clamp(min=0)
    return objects[blur.image_part], torch.poisson(clean)


def error(found, truth):
    return float((found - truth).square().mean())


def test_blur_has_the_psf_of_the_map_at_its_points():
    found = psf_map()
    blur = blur_of_map(found, SHAPE)
    for column, fwhm in ((16.0, 2.0), (56.0, 4.0), (96.0, 6.0)):
        expected = synthesize(MODEL, torch.tensor([[fwhm]]), Microscope(), blur.psf_size)[0]
        assert torch.allclose(blur.psf_at(48.0, column), expected, atol=0.02 * expected.max())


def test_support_keeps_the_energy_of_the_widest_psf():
    size = support_px(psf_map(2.0, 10.0), 95)
    assert size % 2 == 1
    # 99 % along both axes: 2.8 standard deviations on either side
    assert 2 * 2.8 * 10 / 2.355 < size < 2 * 2.8 * 10 / 2.355 + 17


def test_restoration_with_the_map_gains_and_beats_one_psf():
    found = psf_map()
    truth, image = scene(found)
    restored, blur = restore_with_map(image, found, iterations=30)
    middle = synthesize(MODEL, torch.tensor([[4.0]]), Microscope(), blur.psf_size)
    one = PsfMap(**{**vars(found), "values": torch.full((1, 3, 3), 4.0)})
    single, _ = restore_with_map(image, one, iterations=30)
    assert len(middle) == 1
    assert error(restored.image, truth) < 0.7 * error(image, truth)
    assert error(restored.image, truth) < error(single.image, truth)


def test_places_without_content_are_denoised_and_keep_their_blur():
    found = psf_map(6.0, 6.001, content=0.0)
    _, image = scene(found)
    smooth = scene(found, photons=1e7)[1] * 1e-4
    restored, _ = restore_with_map(image, found, iterations=20)
    assert error(restored.image, smooth) < 0.95 * error(image, smooth)
    trusted, _ = restore_with_map(image, found, iterations=20, cautious=False)
    assert error(restored.image, smooth) < 0.3 * error(trusted.image, smooth)


def test_uncertainty_grows_with_the_uncertainty_of_the_psf():
    shares = [float(psf_uncertainty(psf_map(deviation=d), SHAPE).mean()) for d in (0.0, 0.5, 2.0)]
    assert shares[0] == 0 < shares[1] < shares[2] <= 1


def test_where_the_psf_is_uncertain_a_smaller_one_is_taken():
    _, image = scene(psf_map())
    sure, plain = restore_with_map(image, psf_map(), iterations=3, refined=False)
    unsure, smaller = restore_with_map(image, psf_map(deviation=20.0), iterations=3, refined=False)
    assert float(smaller.psf_at(48, 56).max()) > 1.2 * float(plain.psf_at(48, 56).max())
    assert not torch.equal(sure.image, unsure.image)


def test_interpolation_is_linear_inside_and_constant_outside():
    values = torch.tensor([[0.0, 2.0], [4.0, 6.0]])
    grid = torch.tensor([2.0, 6.0]), torch.tensor([1.0, 5.0])
    full = interpolate_grid(values, *grid, torch.arange(9), torch.arange(8))
    assert full.shape == (9, 8)
    assert full[0, 0] == 0 and full[8, 7] == 6
    assert float(full[4, 3]) == pytest.approx(3.0)


def test_map_that_reaches_outside_the_image_is_refused():
    with pytest.raises(InputError, match="give the map of this image"):
        restore_with_map(torch.rand(90, 90), psf_map())


def test_large_images_are_restored_in_tiles_with_the_same_result(monkeypatch):
    found = psf_map()
    _, image = scene(found)
    whole, _ = restore_with_map(image, found, iterations=8)
    monkeypatch.setattr("restoration.with_map.WHOLE_PX", 100)
    monkeypatch.setattr("restoration.with_map.TILE", 60)
    tiled, _ = restore_with_map(image, found, iterations=8)
    difference = (whole.image - tiled.image).abs().max() / whole.image.mean()
    assert difference < 5e-3


@pytest.mark.parametrize("options", [{}, {"cautious": False}, {"refined": False}])
def test_a_field_that_cannot_be_improved_comes_back_as_it_was(options):
    noise = torch.poisson(torch.full(SHAPE, 5.0), torch.Generator().manual_seed(0))
    restored, _ = restore_with_map(noise, psf_map(content=0.0), **options)
    assert restored.iterations == 0
    assert torch.equal(restored.image, noise)
    assert "the image is returned as it was" in restored.note


def test_a_map_of_another_device_comes_to_the_image():
    found = map_on(psf_map(), torch.device("meta"))
    tensors = [value for value in vars(found).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 5 and all(one.is_meta for one in tensors)


@pytest.mark.parametrize("method", [blind_richardson_lucy, blind_total_variation])
def test_blind_methods_find_a_wider_psf_in_a_wider_blur(method):
    widths = []
    for fwhm in (2.0, 9.0):
        _, image = scene(psf_map(fwhm, fwhm + 1e-3), photons=1000.0)
        restored, psf = method(image)
        line = torch.arange(len(psf)) - len(psf) // 2
        assert psf.min() >= 0 and float(psf.sum()) == pytest.approx(1, abs=1e-4)
        assert float(restored.mean()) == pytest.approx(float(image.mean()), rel=0.02)
        widths.append(float((psf.sum(0) * line**2).sum()))
    assert widths[1] > 1.1 * widths[0]


def test_2018_scheme_with_one_psf_is_plain_richardson_lucy():
    psf = synthesize(MODEL, torch.tensor([[4.0]]), Microscope(), 21)[0]
    blur = VariantBlur.from_psf(psf, SHAPE)
    truth, image = scene(psf_map(4.0, 4.001))
    found = weights_after_blur(image, blur, iterations=10, weight=0.0)
    assert error(found, truth) < 0.9 * error(image, truth)
    inner = slice(20, -20)
    plain = richardson_lucy(image, blur, 10, tv=0.0, acceleration=None).image
    close = (found - plain)[inner, inner].abs().mean() / plain.mean()
    assert close < 0.02


@pytest.fixture
def map_folder(tmp_path):
    """A map as estimate_psf_map.py writes it, and its image."""
    found = psf_map()
    _, image = scene(found)
    folder = tmp_path / "map"
    folder.mkdir()
    lines = ["y_px,x_px,fwhm_px,fwhm_standard_deviation_px,content_probability"]
    for r, row in enumerate(found.rows.tolist()):
        for c, column in enumerate(found.columns.tolist()):
            lines.append(f"{row},{column},{float(found.values[0, r, c])},0.1,0.99")
    (folder / "map.csv").write_text("\n".join([lines[0], *reversed(lines[1:])]))
    optics = vars(Microscope())
    camera = {"offset_counts": 100.0, "gain_counts_per_e": 2.0}
    camera |= {"gain_error": 0.01, "noise_counts": 3.0, "white_noise": True}
    facts = {"psf_model": MODEL.as_config(), "label_names": ["fwhm"], "label_unit": "px"}
    facts |= {"optics": dict(optics), "image_shape": list(SHAPE), "camera": camera}
    facts |= {"smoothing_strength": [], "patch_size_px": 40}
    (folder / "config.json").write_text(json.dumps(facts))
    path = tmp_path / "image.tif"
    tifffile.imwrite(path, (100 + 2 * image).round().numpy().astype(np.uint16))
    return folder, path, image


def call(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["deconvolve.py", *map(str, arguments)])
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # `run` changes it
    code = 0
    try:
        deconvolve.run(deconvolve.Config, deconvolve.main, deconvolve.__doc__)
    except SystemExit as end:
        code = end.code
    return code, capsys.readouterr()


def test_map_files_come_back_in_order(map_folder):
    found, facts = read_map(map_folder[0])
    assert torch.allclose(found.values[0, 1], torch.tensor([2.0, 4.0, 6.0]))
    assert found.rows.tolist() == [16.0, 48.0, 80.0]
    with open_micrograph(map_folder[1]) as micrograph:
        assert "an earlier version made this map" in check_belongs(facts, micrograph)


def test_smooth_map_files_come_back_continued_to_the_borders(map_folder):
    config = map_folder[0] / "config.json"
    facts = json.loads(config.read_text()) | {"smoothing_strength": [1.0]}
    config.write_text(json.dumps(facts))
    found, _ = read_map(map_folder[0])
    assert found.rows.tolist() == [0.0, 16.0, 48.0, 80.0, 95.0]
    assert found.columns.tolist() == [0.0, 16.0, 56.0, 96.0, 111.0]


def test_plane_of_labels_goes_on_as_a_plane_to_the_borders():
    places = torch.arange(64.0, 449.0, 32.0)
    plane = 0.01 * places.expand(1, len(places), -1)
    raw = PsfMap(
        MODEL,
        Microscope(),
        plane,
        torch.full_like(plane, 0.1),
        torch.ones_like(plane[0]),
        places,
        places,
    )
    found = continue_to_borders(raw, [0.1], 128, (512, 512))
    assert found.columns[0] == 0 and found.columns[-1] == 511
    assert len(found.rows) == len(places) + 4
    expected = 0.01 * torch.linspace(0, 512, len(found.columns))  # the last is cut to 511
    assert torch.allclose(found.values[0], expected.expand_as(found.values[0]), atol=0.02)
    deviations = found.standard_deviations[0]
    assert deviations[0, 0] > 1.5 * deviations[8, 8]
    assert (found.content == 1).all()


def test_maps_of_one_patch_stay_one_patch():
    place = torch.tensor([40.0])
    one = torch.ones(1, 1, 1)
    raw = PsfMap(MODEL, Microscope(), 3 * one, 0.1 * one, one[0], place, place)
    found = continue_to_borders(raw, [1.0], 64, (80, 80))
    assert found.values.shape == (1, 1, 1) and float(found.values) == pytest.approx(3.0, abs=1e-3)


def test_misfit_is_large_where_the_psf_is_too_large():
    found = psf_map(2.0, 2.001)
    _, image = scene(found)
    wide = psf_map(2.0, 2.001)
    wide.values[..., 2] = 10.0
    right, _ = restore_with_map(image, found, iterations=20, cautious=False)
    wrong, _ = restore_with_map(image, wide, iterations=20, cautious=False)
    assert judge(image, right.expected).misfit.max() < MISFIT_ALLOWED
    misfit = judge(image, wrong.expected).misfit
    assert misfit[:, 90:].min() > MISFIT_ALLOWED > misfit[:, :40].max()
    smaller = shrunk_where_misfit(wide, misfit)
    assert torch.equal(smaller.values[..., 0], wide.values[..., 0])
    assert torch.allclose(smaller.values[..., 2], torch.tensor(0.6 * 10))
    assert shrunk_where_misfit(found, judge(image, right.expected).misfit) is None


def test_sharp_regions_survive_a_map_that_takes_them_for_blurred():
    truth, image = scene(psf_map(1.0, 1.001))
    wide = psf_map(1.0, 1.001)
    wide.values[..., 2] = 10.0
    trusting, _ = restore_with_map(image, wide, cautious=False)
    careful, _ = restore_with_map(image, wide)
    part = (slice(None), slice(80, None))
    assert error(careful.image[part], truth[part]) < 0.3 * error(trusting.image[part], truth[part])


def test_expected_image_is_the_blurred_result_in_the_unit_of_the_input():
    found = psf_map()
    _, image = scene(found)
    restored, _ = restore_with_map(5 * image, found, iterations=8, gain=5.0, cautious=False)
    assert float(restored.expected.mean()) == pytest.approx(5 * float(image.mean()), rel=0.02)
    # under noise, the expected image is nearer to the data's mean than the data are
    assert restored.expected.diff().abs().mean() < 5 * image.diff().abs().mean()


def test_script_restores_in_counts_with_the_pixel_size(map_folder, tmp_path, monkeypatch, capsys):
    folder, path, image = map_folder
    out = tmp_path / "out"
    arguments = (path, "--map", folder, "--iterations", 12, "--out", out)
    code, printed = call(monkeypatch, capsys, *arguments)
    assert code == 0, printed.err
    with tifffile.TiffFile(out / "restored.tif") as file:
        restored = file.asarray()
        numerator, denominator = file.pages[0].tags["XResolution"].value
        assert file.imagej_metadata["unit"] == "um"
    assert restored.shape == SHAPE and restored.dtype == np.float32
    assert numerator / denominator == pytest.approx(1 / Microscope().pixel_size_um, rel=1e-4)
    assert restored.mean() == pytest.approx(2 * float(image.mean()), rel=0.03)  # counts, no offset
    assert json.loads((out / "restoration.json").read_text())["planes"][0]["iterations"] == 12
    assert (out / "side_by_side.png").stat().st_size > 10_000


def test_all_planes_of_a_stack_are_restored(map_folder, tmp_path, monkeypatch, capsys):
    folder, path, _ = map_folder
    stack = np.stack([tifffile.imread(path)] * 2)
    tifffile.imwrite(tmp_path / "stack.tif", stack, imagej=True, metadata={"axes": "ZYX"})
    arguments = (tmp_path / "stack.tif", "--map", folder, "--iterations", 3, "--all-planes")
    code, printed = call(
        monkeypatch, capsys, *arguments, "--bits", 16, "--out", tmp_path / "planes"
    )
    assert code == 0, printed.err
    restored = tifffile.imread(tmp_path / "planes" / "restored.tif")
    assert restored.shape == (2, *SHAPE) and restored.dtype == np.uint16


@pytest.mark.parametrize(("flags", "z"), [((), 2), (("--z", 0), 0)])
def test_plane_of_the_map_is_restored_unless_a_flag_chooses(
    map_folder, tmp_path, monkeypatch, capsys, flags, z
):
    folder, path, _ = map_folder
    config = folder / "config.json"
    facts = json.loads(config.read_text()) | {"plane": {"channel": 0, "z": 2, "t": 0}}
    config.write_text(json.dumps(facts))
    stack = np.stack([tifffile.imread(path) + 50 * k for k in range(3)]).astype(np.uint16)
    tifffile.imwrite(tmp_path / "stack.tif", stack, imagej=True, metadata={"axes": "ZYX"})
    arguments = (tmp_path / "stack.tif", "--map", folder, "--iterations", 3, *flags)
    code, printed = call(monkeypatch, capsys, *arguments, "--out", tmp_path / "out")
    assert code == 0, printed.err
    record = json.loads((tmp_path / "out" / "restoration.json").read_text())
    assert record["planes"][0]["z"] == z
    restored = tifffile.imread(tmp_path / "out" / "restored.tif")
    assert restored.mean() == pytest.approx(float(stack[z].mean()) - 100, rel=0.03)


def test_file_without_the_plane_of_the_map_is_restored(map_folder, tmp_path, monkeypatch, capsys):
    folder, path, _ = map_folder
    config = folder / "config.json"
    facts = json.loads(config.read_text()) | {"plane": {"channel": 0, "z": 2, "t": 0}}
    config.write_text(json.dumps(facts))
    arguments = (path, "--map", folder, "--iterations", 3, "--out", tmp_path / "out")
    code, printed = call(monkeypatch, capsys, *arguments)
    assert code == 0, printed.err
    assert "plane of the map" not in printed.out


def test_constant_plane_of_a_stack_stays_as_it_is(map_folder, tmp_path, monkeypatch, capsys):
    folder, path, _ = map_folder
    plane = tifffile.imread(path)
    stack = np.stack([plane, np.full_like(plane, 300)])
    tifffile.imwrite(tmp_path / "stack.tif", stack, imagej=True, metadata={"axes": "ZYX"})
    arguments = (tmp_path / "stack.tif", "--map", folder, "--iterations", 3, "--all-planes")
    code, printed = call(monkeypatch, capsys, *arguments, "--out", tmp_path / "out")
    assert code == 0, printed.err
    assert "channel 0, z 1, t 0: the plane is constant" in printed.out
    restored = tifffile.imread(tmp_path / "out" / "restored.tif")
    assert (restored[1] == 200).all()
    assert restored[0].std() > plane.std()


def test_restoration_runs_on_the_device_that_is_asked_for(
    map_folder, tmp_path, monkeypatch, capsys
):
    seen = []

    def restore(image, psf_map, *settings):
        seen.append(image.device.type)
        raise InputError("seen")

    monkeypatch.setattr(outcome, "device_of", lambda options: torch.device("meta"))
    monkeypatch.setattr(outcome, "restore_with_map", restore)
    code, printed = call(
        monkeypatch, capsys, map_folder[1], "--map", map_folder[0], "--out", tmp_path / "out"
    )
    assert code == 2 and "seen" in printed.err, printed.err
    assert seen == ["meta"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--checkpoint", "zernike1d"), "give --map or --checkpoint, not both"),
        (("--iterations", 0), "0 iterations; give a count from 1"),
        (("--iterations", 99999), "99999 iterations; give a count"),
        (("--tv", 3), "tv is 3; give a number from 0 to 0.1"),
        (("--background-counts", -1), "--background-counts is -1; give 0 or more"),
        (("--background-counts", 1e7), "give a lower background"),
    ],
)
def test_mistakes_end_in_one_line_and_nothing_written(
    map_folder, tmp_path, monkeypatch, capsys, arguments, message
):
    folder, path, _ = map_folder
    out = tmp_path / "none"
    code, printed = call(monkeypatch, capsys, path, "--map", folder, "--out", out, *arguments)
    assert code == 2 and message in printed.err
    assert len(printed.err.strip().splitlines()) == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.full(SHAPE, 300, np.uint16), "all pixels of the image are"),
        (np.full((200, 200), 300, np.uint16), "the map is of an image of 96 x 112 px"),
        (np.full(SHAPE, np.nan, np.float32), "no pixel of the image is usable"),
        (np.linspace(-5, 5, 96 * 112, dtype=np.float32).reshape(SHAPE), "--offset-counts"),
    ],
)
def test_images_that_cannot_be_restored_are_refused(
    map_folder, tmp_path, monkeypatch, capsys, pixels, message
):
    path, out = tmp_path / "bad.tif", tmp_path / "none"
    tifffile.imwrite(path, pixels)
    code, printed = call(monkeypatch, capsys, path, "--map", map_folder[0], "--out", out)
    assert code == 2 and message in printed.err, printed.err
    assert not out.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("fwhm_px", "width_px"), "map.csv lacks columns fwhm_px"),
        (lambda text: text.rsplit("\n", 1)[0], "map.csv is incomplete; make the map again"),
        (lambda text: text.replace(",2.0,0.1", ",nan,0.1"), "map.csv holds NaN or infinite values"),
    ],
)
def test_damaged_tables_of_a_map_are_refused(map_folder, change, message):
    path = map_folder[0] / "map.csv"
    text = path.read_text()
    path.write_text(change(text))
    assert path.read_text() != text
    with pytest.raises(InputError, match=message):
        read_map(map_folder[0])


def test_folder_without_a_map_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="holds no map"):
        read_map(tmp_path)


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_restoration_does_not_depend_on_the_unit_of_the_counts(scale):
    found = psf_map()
    _, image = scene(found)
    for counts in (image.double(), gaussian_filtered(image)):
        results = []
        for factor in (1.0, scale):
            camera = estimate_camera(factor * counts)
            light = factor * counts - camera.offset_counts
            gain, white = camera.gain_counts_per_e, camera.white_noise
            restored, _ = restore_with_map(light.clamp(min=0), found, gain=gain, white_noise=white)
            results.append(restored.image / factor)
        difference = (results[1] - results[0]).abs().mean() / results[0].mean()
        assert difference < 0.01


def gaussian_filtered(image):
    return torch.from_numpy(gaussian_filter(image.double().numpy(), 1.0))


def test_noise_above_photon_noise_is_restored_as_with_the_right_gain():
    found = psf_map(8.0, 12.0)
    truth, image = scene(found, photons=200.0)
    right, _ = restore_with_map(8 * image, found, gain=8.0)
    wrong, _ = restore_with_map(8 * image, found, gain=1.0)
    assert right.fit.noise < NOISE_ALLOWED and right.fit.gain == 8.0
    assert wrong.fit.noise < NOISE_ALLOWED and 4 < wrong.fit.gain < 20
    assert error(wrong.image, 8 * truth) < 1.1 * error(right.image, 8 * truth)
    assert error(wrong.image, 8 * truth) < error(8 * image, 8 * truth)


def test_places_that_are_not_explained_show_the_input():
    expected = torch.full((96, 240), 100.0)
    generator = torch.Generator().manual_seed(0)
    image = torch.poisson(expected, generator)
    image[:, 180:] += 30 * torch.randn(96, 60, generator=generator)  # three times the photon noise
    fit = judge(image, expected)
    assert fit.noise == pytest.approx(1, abs=0.3)
    assert fit.bad[:, 180:].all() and not fit.bad[:, :130].any()
    restored = Restored(torch.zeros(96, 240), 5, 0.0, 1.0, expected)
    faded = fade_bad_places(image.clamp(min=0), restored, fit).image
    assert torch.equal(faded[:, 190:], image.clamp(min=0)[:, 190:]) and not faded[:, :130].any()


def test_detail_that_was_taken_for_noise_returns_to_processed_images():
    # A gain 30 times too large: the rule stops early, and detail stays in the residuals.
    found = psf_map(1.0, 1.001)
    blur = blur_of_map(found, SHAPE)
    generator = torch.Generator().manual_seed(0)
    texture = gaussian_filtered(torch.rand(blur.field_shape, generator=generator)).float()
    objects = 20_000 * texture**3
    objects[:, objects.shape[1] // 2 :] = float(objects.mean())  # quiet places tell the noise
    truth, image = (
        objects[blur.image_part],
        torch.poisson(blur.forward(objects[None])[0], generator),
    )
    smooth, _ = restore_with_map(image, found, gain=30.0, prior="tv")
    kept, _ = restore_with_map(image, found, gain=30.0, white_noise=False, prior="tv")
    assert error(kept.image, truth) < 0.6 * error(smooth.image, truth)
    # the residuals of the right gain are noise, which stays away
    truth, image = scene(psf_map())
    right, _ = restore_with_map(image, psf_map())
    same, _ = restore_with_map(image, psf_map(), white_noise=False)
    assert error(same.image, truth) < 1.1 * error(right.image, truth)


def test_all_planes_have_one_offset(map_folder, tmp_path, monkeypatch, capsys):
    folder, path, _ = map_folder
    config = folder / "config.json"
    facts = json.loads(config.read_text())
    facts["camera"] |= {"offset_source": "assumed", "gain_source": "assumed", "offset_counts": 60.0}
    config.write_text(json.dumps(facts))
    plane = tifffile.imread(path).astype(np.float32)
    missing = np.full_like(plane, np.nan)
    stack = np.stack([plane, plane[::-1], missing])
    tifffile.imwrite(tmp_path / "stack.tif", stack, imagej=True, metadata={"axes": "ZYX"})
    arguments = (tmp_path / "stack.tif", "--map", folder, "--all-planes", "--iterations", 3)
    code, printed = call(monkeypatch, capsys, *arguments, "--out", tmp_path / "out")
    assert code == 0, printed.err
    assert "z 2, t 0: the plane is without a usable pixel" in printed.out
    restored = tifffile.imread(tmp_path / "out" / "restored.tif")
    for one in restored[:2]:
        assert one.mean() == pytest.approx(plane.mean() - 60, rel=0.03)


@pytest.mark.parametrize(
    ("factor", "arguments", "message"),
    [
        (1e-4, ("--bits", 16), "--bits 16 keeps whole counts"),
        (1.0, ("--offset-counts", 1e6), "--offset-counts is 1e.06, but the brightest pixel is"),
        (1e30, ("--offset-counts", 0), "the largest pixel value is"),
        (1e-30, ("--offset-counts", 0), "multiply the image by a number"),
    ],
)
def test_useless_numbers_are_refused(
    map_folder, tmp_path, monkeypatch, capsys, factor, arguments, message
):
    folder, path, _ = map_folder
    scaled = (tifffile.imread(path) * np.float64(factor)).astype(np.float32)
    tifffile.imwrite(tmp_path / "scaled.tif", scaled)
    out = tmp_path / "out"
    places = (tmp_path / "scaled.tif", "--map", folder, "--other-image")
    code, printed = call(monkeypatch, capsys, *places, *arguments, "--out", out)
    assert code == 2 and re.search(message, printed.err), printed.err
    assert not out.exists()


def test_residuals_of_a_psf_that_is_too_large_are_alike():
    found = psf_map(2.0, 3.0)
    _, image = scene(found)
    right, _ = restore_with_map(image, found)
    wide = psf_map(6.0, 9.0)
    wrong, _ = restore_with_map(image, wide, cautious=False)
    assert right.fit.correlation < 0
    assert wrong.fit.correlation > 0.1
    assert not right.fit.sentences(1.0, white_noise=True)
    # residuals of pixels that are drawn one by one are not
    generator = torch.Generator().manual_seed(0)
    expected = torch.full((200, 200), 50.0)
    drawn = judge(torch.poisson(expected, generator), expected)
    assert drawn.correlation == pytest.approx(0, abs=4 / (2**0.5 * 200))


def test_a_given_number_of_iterations_is_not_faded_into_the_input():
    found = psf_map(8.0, 12.0)
    _, image = scene(found)
    few, _ = restore_with_map(image, found, iterations=1)
    assert few.fit.noise > NOISE_ALLOWED and not few.fit.faded
    assert float((few.image - image).abs().mean()) > 0.01 * float(image.mean())
    said = few.fit.sentences(1.0, white_noise=True)[0]
    assert "--iterations is too small" in said and "faded" not in said


@pytest.mark.parametrize(("prior", "found"), [("tv", "total variation"), ("learned", "learned")])
def test_the_prior_that_is_asked_for_is_taken(prior, found):
    _, image = scene(psf_map())
    restored, _ = restore_with_map(image, psf_map(), prior=prior, refined=False)
    assert restored.prior == found


def test_the_learned_prior_has_no_setting_of_total_variation():
    _, image = scene(psf_map())
    with pytest.raises(InputError, match="leave --tv and --iterations out"):
        restore_with_map(image, psf_map(), iterations=20, prior="learned")
    by_hand, _ = restore_with_map(image, psf_map(), iterations=5, refined=False)
    assert by_hand.prior == "total variation"
