"""Common objectives and cameras: none is refused, aliasing is exact, images are binned well."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import estimate_psf_map
from benchmarks import camera_patches, objectives
from benchmarks.camera_patches import seidel_waves_per_um, simulate_camera, subpixels
from benchmarks.objectives import CAMERA_PIXELS_UM, OBJECTIVES, nyquist_share
from models.checkpoint import ADVISED, SHIPPED, load_estimator
from models.map_image import map_image
from models.mapping import TensorImage
from models.recording import (
    MapOptions,
    choose_checkpoint,
    choose_resampling,
    open_recording,
    outside_training,
)
from models.resampling import ResampledImage, fit_resampling
from psf import InputError, Microscope, psf_model
from psf.blur import blur_valid
from psf.noise import camera_counts, to_photons
from psf.synthesis import synthesize_with_loss

# Of a network for every common objective: NA, um, index, pixel in um, cut-off in cycles per px.
SHARES = (0.85, 3.3)
LIMITS = {
    "na": [0.1, 1.45],
    "wavelength_um": [0.45, 0.7],
    "refractive_index": [1.0, 1.52],
    "pixel_size_um": [SHARES[0] * 0.45 / (4 * 1.45), SHARES[1] * 0.7 / (4 * 0.1)],
    "cutoff_cycles_per_pixel": [share / 2 for share in SHARES],
}
BY_NAME = {one.name: one for one in OBJECTIVES}
COMBINATIONS = [(one, camera) for one in OBJECTIVES for camera in CAMERA_PIXELS_UM]


@pytest.fixture(scope="module")
def wide_folder(tmp_path_factory):
    """The advised network, posed as one for every common objective."""
    folder = tmp_path_factory.mktemp("checkpoints") / "wide"
    shutil.copytree(SHIPPED / ADVISED, folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"optics_limits": LIMITS}))
    return folder


@pytest.fixture(scope="module")
def wide(wide_folder):
    return load_estimator(wide_folder)


def blurred_image(microscope, focus, edge, path):
    """Write an image of random rectangles at a known focus; 3000 photons per pixel."""
    rng = np.random.default_rng(3)
    size = int(120 / nyquist_share(microscope)) | 1
    side = edge + size - 1
    sharp = np.full((side, side), 0.1, np.float32)
    for y, x, height, width in rng.integers(0, (side, side, 25, 25), (900, 4)) + 2:
        sharp[y : y + height, x : x + width] = rng.uniform(0.1, 1)
    model, label = psf_model("zernike1d", light="vectorial"), torch.tensor([[focus]])
    psf, _ = synthesize_with_loss(model, label, microscope, size)
    photons = to_photons(blur_valid(torch.from_numpy(sharp)[None], psf).clamp(min=0), 3000.0)
    counts = camera_counts(photons, torch.Generator().manual_seed(0), 1.6, 2.0, 100.0)[0]
    tifffile.imwrite(path, counts.round().numpy().astype(np.uint16))


def flags(microscope):
    names = ("na", "wavelength_um", "pixel_size_um", "refractive_index")
    return {name: getattr(microscope, name) for name in names}


@pytest.mark.parametrize(
    ("objective", "camera_um"), COMBINATIONS, ids=[f"{o.name} {c:g}" for o, c in COMBINATIONS]
)
def test_no_common_microscope_is_refused(wide, objective, camera_um):
    microscope = objective.microscope(camera_um)
    resampling = choose_resampling(wide, microscope, allow_other_optics=False)
    assert outside_training(wide, microscope, resampling) == []
    seen = nyquist_share(resampling.microscope(microscope))
    assert SHARES[0] <= seen <= SHARES[1]
    assert resampling.scale == 1  # whole pixels are binned: no filter between camera and network
    assert (resampling.binning > 1) == (nyquist_share(microscope) < SHARES[0])
    assert resampling.binning == 1 or seen < 1.7
    finer = subpixels(microscope)
    assert nyquist_share(microscope) / finer <= 1  # the fine grid of the table aliases nothing
    assert finer == 1 or nyquist_share(microscope) / (finer - 1) > 1


@pytest.mark.parametrize(
    ("name", "camera_um", "note"),
    [
        ("40x/0.95", 3.45, "binned 2 x 2"),  # NA / n = 0.95
        ("100x/1.45", 3.45, "binned 3 x 3"),
    ],
)
def test_images_are_mapped_without_warnings(tmp_path, wide, name, camera_um, note):
    microscope = BY_NAME[name].microscope(camera_um)
    path = tmp_path / "image.tif"
    blurred_image(microscope, 1.5, 400, path)
    options = MapOptions(image=path, out=tmp_path / "map", stride=256, **flags(microscope))
    with open_recording(path, options, wide) as recording:
        assert sum(note in line for line in recording.notes) == 1
        found = map_image(recording, "off").patches
    assert found.has_content.float().mean() > 0.9
    assert float(found.values[0].median()) == pytest.approx(1.5, abs=0.15)


def test_the_script_says_that_pixels_are_coarse_in_one_note(tmp_path, wide_folder, capsys):
    microscope = BY_NAME["20x/0.75"].microscope(11)  # 3.2 times the Nyquist pixel
    blurred_image(microscope, 1.0, 200, tmp_path / "image.tif")
    config = estimate_psf_map.Config(
        image=tmp_path / "image.tif",
        out=tmp_path / "map",
        checkpoint=wide_folder,
        stride=64,
        smooth="off",
        full_resolution=False,
        **flags(microscope),
    )
    estimate_psf_map.main(config)
    said = capsys.readouterr()
    assert said.out.count("Nyquist") == 1
    assert (
        "note: the pixel is 3.2 times the Nyquist pixel, so fine detail is aliased; wide was "
        "trained for that" in said.out
    )
    assert "warning" not in said.err


def test_small_images_of_fine_pixels_still_hold_a_patch():
    microscope = BY_NAME["20x/0.5"].microscope(3.45)  # 0.66 times the Nyquist pixel
    limits = (SHARES[0] / 2, SHARES[1] / 2)
    assert fit_resampling(microscope, limits).binning == 2
    for edge in (180, 200, 255, 257):
        found = fit_resampling(microscope, limits, edge / 129)
        assert min(ResampledImage(TensorImage(torch.rand(edge, edge)), found).shape) >= 128
        assert found.microscope(microscope).cutoff_cycles_per_pixel >= limits[0] * 0.999


def test_auto_is_the_advised_network(tmp_path, capsys):
    assert load_estimator("auto").name == ADVISED
    tifffile.imwrite(tmp_path / "image.tif", np.eye(150, dtype=np.uint16))
    config = estimate_psf_map.Config(image=tmp_path / "image.tif", out=tmp_path / "map")
    assert choose_checkpoint(config) == replace(config, checkpoint=Path(ADVISED))
    assert f"--checkpoint is {ADVISED}, the network advised" in capsys.readouterr().out
    named = replace(config, checkpoint=Path("gaussian1d"))
    assert choose_checkpoint(named) == named
    assert not capsys.readouterr().out
    with pytest.raises(InputError, match=r"give --na, .* --checkpoint gaussian1d maps the width"):
        estimate_psf_map.main(config)


@pytest.mark.parametrize("na", [0.1, 0.3, 0.5])
def test_seidel_focus_fits_the_exact_defocus(na):
    # W = n / lambda (1 - sqrt(1 - q^2 u)), u = rho^2, as a series in u. The straight line that fits
    # u^k best over the pupil has the slope 6 k / ((k + 1) (k + 2)).
    q2 = na**2
    terms = [q2 / 2, q2**2 / 8, q2**3 / 16, 5 * q2**4 / 128, 7 * q2**5 / 256]
    slope = sum(c * 6 * k / ((k + 1) * (k + 2)) for k, c in enumerate(terms, 1))
    found = seidel_waves_per_um(Microscope(na, 0.5, 0.1, 1.0))
    assert found == pytest.approx(slope / 0.5, rel=1e-4)


def test_frequencies_fold_as_in_a_camera(monkeypatch):
    microscope = BY_NAME["20x/0.75"].microscope(11)  # cut-off at 1.59 cycles per px
    frequency = 0.8  # cycles per px of the camera, which shows it at 0.2

    def grating(sources, edge, inner, seen_px, rng):
        x = torch.arange(edge) / subpixels(microscope)
        return (0.5 + 0.4 * torch.cos(2 * torch.pi * frequency * x)).expand(edge, edge), "grating"

    monkeypatch.setattr(camera_patches, "draw_crop", grating)
    monkeypatch.setattr(camera_patches, "draw_labels", lambda *_: torch.zeros(1, 1))
    monkeypatch.setattr(camera_patches, "held_out_sources", lambda: [[]])
    model = psf_model("zernike1d", {"focus": (0.0, 1.0)})
    pixels = simulate_camera(model, microscope, 40, 40, 1, 0).pixels[0]
    spectrum = torch.fft.rfft(pixels[20]).abs() / 40
    assert int(spectrum[1:].argmax()) + 1 == 0.2 * 40
    v = frequency / microscope.cutoff_cycles_per_pixel
    lens = 2 / np.pi * (np.arccos(v) - v * np.sqrt(1 - v**2))
    expected = 0.4 * lens * np.sinc(frequency)
    assert 2 * float(spectrum[8]) == pytest.approx(abs(expected), rel=0.02)


def test_table_is_resumed_and_scores_what_the_network_reads(tmp_path, monkeypatch):
    photographs = camera_patches.builtin_sources()
    held_out = [s for s in photographs if s.name in ("camera", "gravel")]
    monkeypatch.setattr(camera_patches, "held_out_sources", lambda: [held_out])
    config = objectives.Config(
        patches=12, objectives=("20x/0.5",), cameras_um=(5.2,), out=tmp_path, device="cpu"
    )
    objectives.main(config)
    (row,) = pd.read_csv(tmp_path / "objectives.csv").itertuples()
    assert row.nyquist_share == pytest.approx(1.0)
    assert row.r2_noise_free > 0.97
    assert row.rmse_um_noise_free == pytest.approx(row.rmse_noise_free * 3.885, rel=1e-3)
    assert "| 20x/0.5 | 5.2 | 0.26 | 1.00 | as it is | accepted |" in (
        tmp_path / "objectives.md"
    ).read_text("utf-8")
    monkeypatch.setattr(objectives, "row_of", None)  # a row made again would fail
    objectives.main(config)
    with pytest.raises(InputError, match=r"no objective 20x/0\.4"):
        objectives.main(replace(config, objectives=("20x/0.4",)))
