"""Every script as a user calls it: what it writes, by value, and what it says to bad input."""

import io
import json
import re
import runpy
import shutil
import subprocess
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from PIL import Image
from scipy import ndimage
from skimage import data as skimage_data
from sklearn.metrics import r2_score

from models.checkpoint import load_estimator
from models.data import CONDITIONS, PatchSet
from models.depth import DepthCalibration
from psf import Microscope
from simulation.shards import read_column, shard_path

ROOT = Path(__file__).parents[1]
OPTICS = "--na 0.45 --wavelength-um 0.5 --pixel-size-um 0.278 --refractive-index 1.33".split()
DIGITS = 1e-4  # tables are written with five digits


def call(script, *arguments):
    """Run a script in this process; (exit code, stdout, stderr)."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", [script, *map(str, arguments)])
        patch.setattr(warnings, "showwarning", warnings.showwarning)  # `run` changes it
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as end:
            code = end.code
    return code, out.getvalue(), err.getvalue()


def succeed(script, *arguments):
    code, out, err = call(script, *arguments)
    assert code == 0, err
    return out


def refuse(script, *arguments):
    """The one line of the error."""
    code, _, err = call(script, *arguments)
    lines = [line for line in err.replace("\r", "\n").splitlines() if line.startswith("error:")]
    assert code == 2, err
    assert len(lines) == 1, err
    assert err.endswith(lines[0] + "\n")
    assert "Traceback" not in err
    return lines[0]


def assert_shows_something(path):
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
    assert min(pixels.shape) > 100
    assert pixels.std() > 10


# --- simulate


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    """A data set of a folder of images, one of them corrupt, one too small."""
    images = tmp_path_factory.mktemp("images")
    for name in ("camera", "brick", "gravel", "grass", "text"):
        Image.fromarray(getattr(skimage_data, name)()).save(images / f"{name}.png")
    (images / "broken.png").write_bytes((images / "camera.png").read_bytes()[:999])
    Image.fromarray(skimage_data.camera()[:80, :80]).save(images / "small.tif")
    folder = tmp_path_factory.mktemp("data") / "own"
    counts = "--train-patches 24 --validation-patches 8 --test-patches 8 --workers 1".split()
    size = "--patch-size 64 --psf-size 33 --psf-model gaussian2d --fwhm-px 1 6".split()
    out = succeed("generate_training_set.py", "--images", images, *counts, *size, "--out", folder)
    return folder, out


def test_generation_names_and_skips_bad_images(generated):
    folder, out = generated
    skipped = [line for line in out.splitlines() if line.startswith("skipped")]
    assert len(skipped) == 2
    assert "broken.png: cannot be decoded" in skipped[0]
    assert "small.tif: too small (80 x 80 px, 96 px needed)" in skipped[1]
    assert "40 patches of gaussian2d from 5 images (3 train, 1 validation, 1 test)" in out
    record = json.loads((folder / "run.json").read_text())
    assert [line.removeprefix("skipped ") for line in skipped] == record["skipped_images"]
    assert record["command"].startswith("generate_training_set.py --images")


def test_generation_keeps_the_ranges_of_the_command_line(generated):
    folder, _ = generated
    labels = read_column(shard_path(folder, "train", 0), "labels")
    assert labels.shape == (24, 2)
    assert 1 <= labels.min() < 2
    assert 5 < labels.max() <= 6
    assert_shows_something(folder / "preview.png")


def test_error_of_a_process_of_its_own(tmp_path):
    command = [sys.executable, "train.py", "--data", "no/such/data", "--out", str(tmp_path / "x")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"error: {Path('no/such/data/config.json')} is missing: "
        f"{Path('no/such/data')} is no training set."
    ]
    assert not (tmp_path / "x").exists()


# --- train and benchmark


@pytest.fixture(scope="module")
def scored(tmp_path_factory, focus_data, focus_run):
    """Results of the tiny run and of a `resnet18` that was trained by the script."""
    rival = tmp_path_factory.mktemp("runs") / "rival"
    out = succeed(
        *("train.py", "--data", focus_data, "--out", rival, "--model", "resnet18"),
        *("--epochs", 1, "--batch-size", 100, "--device", "cpu"),
    )
    assert "resnet18, 11," in out
    assert f"--checkpoints {rival} --data {focus_data}" in out
    results = tmp_path_factory.mktemp("results")
    succeed(
        *("benchmark_models.py", "--data", focus_data, "--out", results, "--device", "cpu"),
        *("--checkpoints", focus_run, rival),
    )
    return results


def test_benchmark_has_a_row_per_network_and_condition(scored):
    table = pd.read_csv(scored / "benchmark.csv")
    assert list(zip(table["network"], table["condition"], strict=True)) == [
        (network, condition.name) for network in ("focus", "rival") for condition in CONDITIONS
    ]
    assert set(table["parameter"]) == {"focus"}
    assert set(table["unit"]) == {"waves"}
    assert set(table["images"]) == {"builtin"}


def test_benchmark_numbers_agree_with_one_another(scored, focus_data):
    table = pd.read_csv(scored / "benchmark.csv")
    test_set = PatchSet(focus_data, "test")
    truth = test_set.labels[test_set.has_content, 0].numpy()
    assert (table["patches"] == len(truth)).all()
    um_per_wave = Microscope().um_per_wave
    assert np.allclose(table["rmse_um"], table["rmse"] * um_per_wave, rtol=DIGITS)
    assert np.allclose(
        table["median_abs_error_um"], table["median_abs_error"] * um_per_wave, rtol=DIGITS
    )
    assert np.allclose(table["r2"], 1 - table["rmse"] ** 2 / truth.var(), rtol=1e-3, atol=1e-3)
    assert (table["r2_low"] < table["r2"]).all()
    assert (table["r2"] < table["r2_high"]).all()
    # the best straight line through the points is at least as good as no line
    assert (table["pearson2"] >= table["r2"] - DIGITS).all()
    assert table["content_auc"].between(0, 1).all()
    assert (table["coverage_68"] <= table["coverage_95"]).all()
    assert table["coverage_95"].between(0.3, 1).all()
    assert (table[table["condition"] == "noise-free"]["psf_snr_db"] > 0).all()


def test_benchmark_scores_what_the_network_predicts(scored, focus_data, focus_run):
    table = pd.read_csv(scored / "benchmark.csv").set_index(["network", "condition"])
    test_set, estimator = PatchSet(focus_data, "test"), load_estimator(focus_run)
    for condition in CONDITIONS[:3]:
        batch = next(test_set.recorded(condition, 48, torch.device("cpu")))
        values = estimator.predict(batch.patches, Microscope()).values[batch.has_content, 0]
        expected = r2_score(batch.labels[batch.has_content, 0], values)
        assert table.loc[("focus", condition.name), "r2"] == pytest.approx(expected, abs=1e-3)


def test_benchmark_table_and_picture_show_the_same(scored):
    text = (scored / "benchmark.md").read_text(encoding="utf-8")
    shown = np.array([float(number) for number in re.findall(r"\| (-?[\d.]+) \(", text)])
    for row in pd.read_csv(scored / "benchmark.csv").itertuples():
        assert f"{row.images} ({row.source_images} images, {row.patches} patches)" in text
        assert row.source_images == 4  # camera, coins, gravel, immunohistochemistry
        # three decimals in the one, five digits in the other
        assert np.isclose(shown, row.r2, rtol=1e-4, atol=6e-4).any()
    assert_shows_something(scored / "scatter.png")
    record = json.loads((scored / "benchmark.json").read_text())
    assert record["data"]["zernike1d"]["psf_model"]["name"] == "zernike1d"
    assert_shows_something(scored / "reliability.png")


# --- tilted plane and map


@pytest.fixture(scope="module")
def plane(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plane")
    settings = "--source camera --focus-waves 0 1 --psf-size 119 --levels 5 --photons 500".split()
    succeed("simulate_tilted_plane.py", *settings, "--out", folder)
    return folder


def test_tilted_plane_is_sharp_on_the_left_and_tells_its_truth(plane):
    image, truth = (tifffile.imread(plane / f"{name}.tif") for name in ("image", "truth"))
    assert image.shape == truth.shape == (394, 394)  # 512 - 119 + 1: the valid region
    assert image.dtype == truth.dtype == np.float32
    np.testing.assert_allclose(truth, np.linspace(0, 1, 394)[None].repeat(394, 0), atol=1e-6)
    assert image.mean() == pytest.approx(500, rel=0.01)


def test_tilted_plane_blurs_more_where_it_is_out_of_focus(tmp_path):
    """Page of text: alike everywhere, so that detail shows the blur."""
    edges = {}
    for limits in (("0", "1"), ("1", "0")):
        folder = tmp_path / limits[0]
        settings = "--source page --psf-size 79 --levels 3 --photons 100000".split()
        # points beyond the border are farther out of focus; their PSF may lose 1 % and warn
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            out = ("--focus-waves", *limits, "--out", folder)
            succeed("simulate_tilted_plane.py", *settings, *out)
        image = tifffile.imread(folder / "image.tif")
        steps = np.abs(np.diff(image, axis=1)) / image.mean()
        edges[limits[0]] = steps[:, :100].mean(), steps[:, -100:].mean()
    assert edges["0"][0] > 1.5 * edges["1"][0]
    assert edges["1"][1] > 1.5 * edges["0"][1]


@pytest.fixture(scope="module")
def mapped(tmp_path_factory, plane, focus_run):
    folder = tmp_path_factory.mktemp("map")
    out = succeed(
        *("estimate_psf_map.py", plane / "image.tif", "--checkpoint", focus_run, *OPTICS),
        *("--stride", 48, "--truth", plane / "truth.tif", "--out", folder, "--device", "cpu"),
        *("--smooth", "off", "--gain-counts-per-e", 2, "--offset-counts", 100),
    )
    assert "7 x 7 patches" in out
    return folder


def opened(path):
    """Pixels, ImageJ metadata and um per pixel of a TIFF."""
    with tifffile.TiffFile(path) as tiff:
        resolution = tiff.pages[0].tags["XResolution"].value
        return tiff.asarray(), tiff.imagej_metadata, resolution[1] / resolution[0]


def test_map_opens_calibrated_with_named_channels(mapped):
    channels, metadata, um = opened(mapped / "psf_map.tif")
    assert channels.shape == (4, 7, 7)
    assert channels.dtype == np.float32
    names = ["focus (waves)", "focus standard deviation (waves)"]
    assert metadata["Labels"] == [*names, "content probability", "photons per pixel"]
    assert (metadata["unit"], metadata["channels"]) == ("um", 4)
    assert um == pytest.approx(48 * 0.278, rel=1e-6)


def test_full_resolution_and_depth_have_the_pixels_of_the_image(mapped):
    full, metadata, um = opened(mapped / "psf_map_full.tif")
    depth, depth_metadata, _ = opened(mapped / "depth.tif")
    assert full.shape == depth.shape == (2, 394, 394)
    assert metadata["Labels"] == ["focus (waves)", "focus standard deviation (waves)"]
    assert depth_metadata["Labels"][0] == "distance from focus (um)"
    assert um == pytest.approx(0.278, rel=1e-6)
    np.testing.assert_allclose(depth, full.clip(0) * Microscope().um_per_wave, rtol=1e-5)
    channels = tifffile.imread(mapped / "psf_map.tif")
    # pixel 31 lies half a pixel before the centre of the first patch, where the map is constant
    assert full[0, 31, 31] == channels[0, 0, 0]


def test_photons_are_counts_less_offset_over_gain(mapped, plane):
    photons, image = (
        tifffile.imread(mapped / "psf_map.tif")[3],
        tifffile.imread(plane / "image.tif"),
    )
    assert photons[2, 3] == pytest.approx((image[96:160, 144:208].mean() - 100) / 2, rel=1e-5)


def test_map_and_its_table_hold_the_same(mapped):
    channels, table = tifffile.imread(mapped / "psf_map.tif"), pd.read_csv(mapped / "map.csv")
    blank = table["content_probability"] < 0.5
    columns = ["focus_waves", "focus_standard_deviation_waves"]
    for name, channel in zip(columns, channels, strict=False):
        expected = table[name].mask(blank)
        np.testing.assert_allclose(channel.ravel(), expected, rtol=DIGITS, atol=1e-30)
    np.testing.assert_allclose(channels[2].ravel(), table["content_probability"], rtol=DIGITS)
    centres = 31.5 + 48 * np.arange(7)
    assert table["y_px"].tolist() == np.repeat(centres, 7).tolist()
    assert table["x_px"].tolist() == np.tile(centres, 7).tolist()
    np.testing.assert_allclose(table["x_um"], 0.278 * table["x_px"], rtol=DIGITS)


def test_map_holds_the_predictions_of_the_patches(mapped, plane, focus_run):
    table, image = pd.read_csv(mapped / "map.csv"), tifffile.imread(plane / "image.tif")
    for row, column in ((0, 0), (2, 5), (6, 1)):
        patch = image[48 * row :, 48 * column :][:64, :64]
        found = load_estimator(focus_run).predict(torch.from_numpy(patch)[None], Microscope())
        there = table.iloc[7 * row + column]
        assert there["focus_waves"] == pytest.approx(float(found.values), abs=1e-4)
        deviation = there["focus_standard_deviation_waves"]
        assert deviation == pytest.approx(float(found.standard_deviations), rel=1e-3)


def test_map_says_what_it_was_made_with(mapped, focus_run):
    config = json.loads((mapped / "config.json").read_text())
    assert config["checkpoint"] == str(focus_run)
    assert config["optics"]["na"] == 0.45
    assert config["optics_from"]["na"] == "--na"
    assert config["stride"] == 48
    assert (config["label_names"], config["image_shape"]) == (["focus"], [394, 394])
    assert_shows_something(mapped / "overview.png")
    assert sorted(p.name for p in mapped.iterdir()) == [
        "config.json",
        "depth.tif",
        "map.csv",
        "overview.png",
        "psf_map.tif",
        "psf_map_full.tif",
    ]


# --- bad input


def save(folder, name, pixels):
    folder.mkdir(exist_ok=True)
    tifffile.imwrite(folder / name, pixels)


def texture(size=200, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (size, size)).astype(np.uint8)


SMALL_SET = "--patch-size 64 --psf-size 33 --psf-model gaussian1d --fwhm-px 0 8 --workers 1".split()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--na", 1.4], "NA 1.4 is not below the refractive index 1.33"),
        (["--pixel-size-um", -0.2], "pixel_size_um is -0.2"),
        (["--wavelength-um", "nan"], "wavelength_um is nan"),
        (["--patch-size", -64], "--patch-size is -64"),
        (["--patch-size", 16], "--patch-size is 16; give at least 32 px"),
        (["--psf-size", -1], "--psf-size is -1"),
        (["--seed", -1], "--seed -1; give at least 0"),
        (["--train-patches", -1], "--train-patches is -1"),
        (["--workers", 0], "--workers is 0"),
        (["--blank-fraction", 1.5], "--blank-fraction is 1.5"),
        (["--fwhm-px", 5, 2], "fwhm range 5.0 to 2.0"),
        (["--fwhm-px", -1, 2], "fwhm range starts at -1.0"),
        (["--focus-waves", 0, 2], "gaussian1d has no focus range"),
        (["--vary-optics"], "gaussian1d does not depend on the optics"),
        (["--fwhm-px", 0, 40], r"of its energy outside 33 px (limit 5 %)"),
        (["--images", "no/such/folder"], "There is no folder no/such/folder"),
        (["--images", ROOT / "LICENSE"], "LICENSE is not a folder"),
        (["--images", ROOT / "psf"], "There is no image in"),
    ],
)
def test_bad_settings_of_a_training_set(tmp_path, arguments, message):
    error = refuse("generate_training_set.py", *SMALL_SET, "--out", tmp_path / "out", *arguments)
    assert message in error
    assert list(tmp_path.iterdir()) == []


LAYERED = "--psf-model gibson_lanni --patch-size 64 --workers 1 --images procedural".split()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layers.n-immersion", 0.4], "NA 0.45 is not below n_immersion 0.4"),
        (["--layers.n-sample", 1.4], "n_sample 1.4 is not the microscope's refractive index 1.33"),
        (["--depth-um", 500], "a particle 500 um deep is beyond the working distance"),
        (["--depth-um", -1], "depth_um is -1.0"),
        (["--depth-um", 1, "--depth-range-um", 0, 5], "either known or drawn from a range"),
        (["--z-um", 0, 300], "of its energy outside 63 px (limit 5 %)"),
        (["--z-um", "nan", 3], "z_um range nan to 3.0"),
        (["--modes-noll", 5], "gibson_lanni has labels in um only"),
        (["--psf-model", "zernike1d", "--depth-um", 1], "belong to the PSF model 'gibson_lanni'"),
        (["--pixel-size-um", 278], "give it in um in object space"),
    ],
)
def test_bad_settings_of_layers(tmp_path, arguments, message):
    error = refuse("generate_training_set.py", *LAYERED, "--out", tmp_path / "out", *arguments)
    assert message in error
    assert list(tmp_path.iterdir()) == []


def test_training_set_of_stage_defocus_and_depth_under_layers(tmp_path):
    counts = "--train-patches 32 --validation-patches 16 --test-patches 16".split()
    layers = "--layers.n-immersion 1.0 --z-um -3 3 --depth-range-um 0 10 --light vectorial".split()
    larger = [size if size != "64" else "96" for size in LAYERED]  # vectorial light spreads far
    succeed("generate_training_set.py", *larger, *counts, *layers, "--out", tmp_path / "set")
    config = json.loads((tmp_path / "set" / "config.json").read_text())
    assert (config["label_names"], config["label_unit"]) == (["z_um", "depth_um"], "um")
    assert config["psf_model"]["light"] == "vectorial"
    assert config["psf_model"]["layers"]["n_immersion"] == 1.0
    labels = read_column(shard_path(tmp_path / "set", "train", 0), "labels")
    assert (labels.min(0) >= [-3, 0]).all()
    assert (labels.max(0) <= [3, 10]).all()


def test_varied_optics_that_contradict_each_other(tmp_path):
    arguments = "--psf-model zernike1d --vary-optics --optics.na 0.97 1.2".split()
    error = refuse("generate_training_set.py", *arguments, "--out", tmp_path / "out")
    assert "NA from 0.97 is above 0.96 times the lowest refractive index 1.0" in error
    assert list(tmp_path.iterdir()) == []


def out_of_focus(seed):
    return (255 * ndimage.gaussian_filter(texture(seed=seed) / 255.0, 5)).astype(np.uint8)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ({"a.tif": texture(80), "b.tif": texture(50)}, "All 2 images in .* too small: .*96 px"),
        ({"a.tif": np.full((200, 200), 7, np.uint8)}, "None of the 1 .* a.tif: constant"),
        ({"a.tif": np.full((200, 200), np.nan, np.float32)}, "None of the 1 .* holds NaN"),
        (
            {"a.tif": texture(), "b.tif": texture(seed=1), "c.png": None, "d.tif": None},
            "2 of 4 images in .* cannot be decoded .c.png; d.tif.",
        ),
        ({"a.tif": texture(), "b.tif": texture(seed=1)}, "2 usable image files cannot be divided"),
        ({f"{i}.tif": out_of_focus(i) for i in range(3)}, "Hardly any part of 1 images .* is"),
    ],
    ids=["small", "constant", "nan", "corrupt", "few", "blurred"],
)
def test_bad_folders_of_images(tmp_path, images, message):
    for name, pixels in images.items():
        save(tmp_path / "images", name, texture() if pixels is None else pixels)
        if pixels is None:
            (tmp_path / "images" / name).write_bytes(b"II*\x00 not an image")
    out = tmp_path / "out"
    error = refuse(
        "generate_training_set.py", *SMALL_SET, "--images", tmp_path / "images", "--out", out
    )
    assert re.search(message, error)
    assert not out.exists()


def test_full_disk_is_told_before_the_work(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=1000))
    error = refuse("generate_training_set.py", *SMALL_SET, "--out", tmp_path / "out")
    assert "and the disk has 0.0 GB left" in error
    assert list(tmp_path.iterdir()) == []


def test_output_folder_of_another_configuration(gaussian_data):
    before = {path.name: path.read_bytes() for path in gaussian_data.iterdir()}
    error = refuse("generate_training_set.py", *SMALL_SET, "--out", gaussian_data)
    assert "holds a training set of a different configuration" in error
    assert {path.name: path.read_bytes() for path in gaussian_data.iterdir()} == before


def test_budget_given_twice(tmp_path, gaussian_data):
    budget = "--max-minutes 1 --epochs 2".split()
    error = refuse("train.py", "--data", gaussian_data, "--out", tmp_path / "run", *budget)
    assert "give --max-minutes or --epochs, not both" in error
    assert list(tmp_path.iterdir()) == []


def test_training_set_that_lost_a_shard(tmp_path, gaussian_data):
    shutil.copytree(gaussian_data, tmp_path / "data")
    (tmp_path / "data" / "validation_00000.h5").unlink()
    error = refuse("train.py", "--data", tmp_path / "data", "--out", tmp_path / "run")
    assert "validation_00000.h5 is missing; run generate_training_set.py again" in error
    assert not (tmp_path / "run").exists()


def test_training_set_with_a_truncated_shard(tmp_path, gaussian_data):
    shutil.copytree(gaussian_data, tmp_path / "data")
    path = tmp_path / "data" / "train_00000.h5"
    path.write_bytes(path.read_bytes()[:100_000])
    error = refuse("train.py", "--data", tmp_path / "data", "--out", tmp_path / "run")
    assert "train_00000.h5 is damaged" in error
    assert not (tmp_path / "run").exists()


def test_training_set_and_network_of_different_labels(tmp_path, gaussian_data, focus_run):
    error = refuse(
        *("benchmark_models.py", "--checkpoints", focus_run, "--data", gaussian_data),
        *("--out", tmp_path / "out"),
    )
    assert "predicts zernike1d (focus), but the data hold gaussian1d (fwhm)" in error
    assert list(tmp_path.iterdir()) == []


def test_training_set_and_network_of_different_patches(tmp_path, focus_data, focus_run):
    shutil.copytree(focus_run, tmp_path / "run")
    config = json.loads((focus_run / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps({**config, "patch_size": 128}))
    error = refuse(
        *("benchmark_models.py", "--checkpoints", tmp_path / "run", "--data", focus_data),
        *("--out", tmp_path / "out"),
    )
    assert "takes patches of 128 px, but the data hold patches of 64 px" in error
    assert not (tmp_path / "out").exists()


def test_checkpoints_of_a_benchmark(tmp_path, focus_data, focus_run):
    def error(*checkpoints):
        return refuse(
            *("benchmark_models.py", "--data", focus_data, "--out", tmp_path / "out"),
            *("--checkpoints", *checkpoints),
        )

    shutil.copytree(focus_run, tmp_path / "focus")
    assert "two checkpoints are called focus" in error(focus_run, tmp_path / "focus")
    assert "there is no checkpoint folder" in error(tmp_path / "nowhere")
    twice = ("--data", focus_data, focus_data, "--out", tmp_path / "out")
    message = refuse("benchmark_models.py", "--checkpoints", focus_run, *twice)
    assert "two --data folders hold the same PSF model" in message
    assert "at least one folder each for --checkpoints and --data" in error()
    weights = tmp_path / "focus" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    assert "model.safetensors is truncated" in error(tmp_path / "focus")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def refuse_map(tmp_path, focus_run):
    def refused(image, *arguments, checkpoint=focus_run):
        out = tmp_path / "out"
        given = ("--checkpoint", checkpoint, "--device", "cpu", *OPTICS, "--out", out, *arguments)
        error = refuse("estimate_psf_map.py", image, *given)
        assert not out.exists()
        return error

    return refused


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (texture(60), "the image has 60 x 60 px, less than one patch of 64 px"),
        (np.full((80, 80), 9, np.uint16), "all pixels of the image are"),
        (np.full((80, 80), np.nan, np.float32), "no pixel of the image shows an object"),
    ],
    ids=["small", "constant", "nan"],
)
def test_images_that_cannot_be_mapped(tmp_path, refuse_map, pixels, message):
    save(tmp_path, "image.tif", pixels)
    assert message in refuse_map(tmp_path / "image.tif")


def test_files_that_are_no_images(tmp_path, refuse_map):
    (tmp_path / "note.tif").write_text("no image")
    assert "note.tif is no TIFF, PNG, JPEG" in refuse_map(tmp_path / "note.tif")
    assert "there is no image" in refuse_map(tmp_path / "nothing.tif")
    assert "is a folder and no OME-Zarr image" in refuse_map(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--na", 0.6, "--pixel-size-um", 0.2], "trained for other optics: na 0.6"),
        (["--refractive-index", 1.0], "refractive_index 1, trained on 1.33"),
        (["--refractive-index", 0.4], "NA 0.45 is not below the refractive index 0.4"),
        (["--pixel-size-um", -1], "pixel_size_um is -1.0"),
        (["--stride", 0], "--stride is 0"),
        (["--stride", -8], "--stride is -8"),
        (["--device", "cuda:99"], "device 'cuda:99' is not available"),
        (["--truth", ROOT / "LICENSE"], "LICENSE cannot be read as a TIFF"),
    ],
)
def test_settings_that_cannot_be_mapped_with(tmp_path, refuse_map, arguments, message):
    save(tmp_path, "image.tif", texture(80))
    assert message in refuse_map(tmp_path / "image.tif", *arguments)


def test_optics_come_from_the_file_and_flags_overrule_it(tmp_path, focus_run, plane):
    metadata = {"axes": "YX", "PhysicalSizeX": 0.278, "PhysicalSizeXUnit": "µm"}
    image = tifffile.imread(plane / "image.tif")[:200, :200]
    tifffile.imwrite(tmp_path / "a.ome.tif", image, metadata=metadata)
    given = ("--checkpoint", focus_run, "--na", 0.45, "--wavelength-um", 0.5, "--device", "cpu")
    error = refuse("estimate_psf_map.py", tmp_path / "a.ome.tif", *given, "--out", tmp_path / "o")
    assert "give --refractive-index" in error
    given = (*given, "--refractive-index", 1.33, "--out", tmp_path / "o")
    out = succeed("estimate_psf_map.py", tmp_path / "a.ome.tif", *given)
    assert "pixel_size_um is 0.278, from the file (OME" in out
    out = succeed("estimate_psf_map.py", tmp_path / "a.ome.tif", *given, "--pixel-size-um", 0.2)
    assert "note: --pixel-size-um 0.2 overrules 0.278 of the file" in out
    assert "the pixels are finer than the network's: the image is resampled to 1.3" in out
    factor = json.loads((tmp_path / "o" / "config.json").read_text())["patch_size_px"] / 64
    assert factor == pytest.approx(0.278 / 0.2, rel=0.01)
    _, _, um = opened(tmp_path / "o" / "psf_map.tif")
    stride = round(32 / factor)
    assert um == pytest.approx(stride * factor * 0.2, rel=1e-4)


def test_saturated_images(tmp_path, refuse_map):
    pixels = texture(100).copy()
    pixels[:40] = np.iinfo(pixels.dtype).max
    save(tmp_path, "image.tif", pixels)
    assert "40% of the pixels are saturated" in refuse_map(tmp_path / "image.tif")


def test_calibration_of_other_optics(tmp_path, refuse_map):
    calibration = DepthCalibration(
        **{"parameter": "focus", "unit": "waves", "microscope": Microscope(refractive_index=1.4)},
        **{"checkpoint": "other", "signed": False, "focus_z_um": 0.0, "values": (0.0, 4.0)},
        **{"z_um": (0.0, 26.0), "usable_um": (0.0, 20.0), "limit_um": 3.0, "rms_um": 1.0},
        patch_rms_um=2.0,
    )
    calibration.to_json(tmp_path / "depth_calibration.json")
    save(tmp_path, "image.tif", texture(100))
    given = ("--depth-calibration", tmp_path / "depth_calibration.json")
    error = refuse_map(tmp_path / "image.tif", *given)
    assert "made for refractive_index 1.4, here 1.33; checkpoint other, here" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--smooth", -1.0], "--smooth is -1"),
        (["--gain-counts-per-e", 0], "--gain-counts-per-e is 0"),
        (["--offset-counts", "nan"], "--offset-counts is nan"),
        (["--z", 3], "--z 3 is not in"),
    ],
)
def test_numbers_that_make_no_sense_for_a_map(tmp_path, refuse_map, arguments, message):
    save(tmp_path, "image.tif", texture(80))
    assert message in refuse_map(tmp_path / "image.tif", *arguments)


def test_truth_of_another_size(tmp_path, refuse_map):
    save(tmp_path, "image.tif", texture(80))
    save(tmp_path, "truth.tif", texture(81))
    error = refuse_map(tmp_path / "image.tif", "--truth", tmp_path / "truth.tif")
    assert "truth.tif has shape (81, 81), the image (80, 80)" in error


def test_foreign_checkpoint_for_a_map(tmp_path, refuse_map, focus_data):
    save(tmp_path, "image.tif", texture(80))
    error = refuse_map(tmp_path / "image.tif", checkpoint=focus_data)
    assert "is no checkpoint; train one with train.py" in error


def test_output_that_is_a_file(tmp_path, focus_run):
    save(tmp_path, "image.tif", texture(80))
    (tmp_path / "out").write_text("in the way")
    given = ("--checkpoint", focus_run, "--device", "cpu", *OPTICS, "--out", tmp_path / "out")
    assert "cannot be written" in refuse("estimate_psf_map.py", tmp_path / "image.tif", *given)
    error = refuse("generate_training_set.py", *SMALL_SET, "--out", tmp_path / "out")
    assert "cannot be written" in error
    assert (tmp_path / "out").read_text() == "in the way"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", "nobody"], "--source is 'nobody'; choose from astronaut"),
        (["--focus-waves", 1, 1], "--focus-waves is 1 1; give two different values"),
        (["--focus-waves", -1, 1], "--focus-waves is -1 1; give two different values"),
        (["--psf-size", 64], "--psf-size is 64 and --levels 2; give an odd size"),
        (["--psf-size", -3], "give an odd size of at least 3 px"),
        (["--psf-size", 2001], "--psf-size is 2001; give less than"),
        (["--levels", 1], "--levels 1; give"),
        (["--photons", -5], "--photons is -5"),
        (["--photons", "nan"], "--photons is nan"),
        (["--read-noise-e", -1], "the read noise -1 e-; give"),
        (["--na", 2], "NA 2.0 is not below the refractive index"),
    ],
)
def test_bad_settings_of_a_tilted_plane(tmp_path, arguments, message):
    fast = "--psf-size 101 --levels 2 --focus-waves 0 0.1".split()
    error = refuse("simulate_tilted_plane.py", *fast, "--out", tmp_path / "out", *arguments)
    assert message in error
    assert list(tmp_path.iterdir()) == []


def test_choices_are_listed(tmp_path):
    code, _, err = call("train.py", "--data", tmp_path, "--out", tmp_path, "--model", "vgg")
    assert code == 2
    assert "spectral_resnet" in err
