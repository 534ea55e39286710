"""Maps of all channels, planes and time points: the values, axes, notes and what is kept."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
import tyro
from skimage import data as skimage_data

import deconvolve
import estimate_psf_map
import simulate_tilted_plane
from models import map_series, series_result
from models.estimator import Prediction
from models.kept_maps import KEPT
from psf import InputError, Microscope
from psf.model import psf_model
from restoration.blur_map import read_map

ROOT = Path(__file__).parents[1]
OPTICS = "--na 0.45 --wavelength-um 0.5 --pixel-size-um 0.278 --refractive-index 1.33".split()
CAMERA = ("--gain-counts-per-e", 1, "--offset-counts", 0)
FAST = (*OPTICS, *CAMERA, "--device", "cpu")
UM_PER_WAVE = Microscope(0.45, 0.5, 0.278, 1.33).um_per_wave


def run(script, *arguments):
    script.main(tyro.cli(script.Config, args=[str(one) for one in arguments]))


class Reader:
    """Stands in for an estimator: the mean of a patch, in thousands of counts, is its focus."""

    patch_size = 32
    device = torch.device("cpu")
    name, fingerprint, context = "reader", "reader", None
    psf_model = psf_model("zernike1d")

    def __init__(self):
        limits = {"cutoff_cycles_per_pixel": [0.4, 0.6]}
        self.config = {"psf_model": self.psf_model.as_config(), "optics_limits": limits}
        self.calls, self.left = 0, None

    def predict(self, patches, microscope, batch_size):
        if self.left is not None and self.calls >= self.left:
            raise KeyboardInterrupt
        self.calls += 1
        values = patches.mean((1, 2))[:, None] / 1000
        ones = torch.ones_like(values)
        return Prediction(("focus",), "waves", values, 0.1 * ones, 0.2 * ones, ones[:, 0])


@pytest.fixture
def reader(monkeypatch):
    """The stand-in for the network; no overview is drawn, which takes most of the time."""
    found = Reader()
    monkeypatch.setattr(estimate_psf_map, "load_estimator", lambda *_: found)
    monkeypatch.setattr(series_result, "draw_overview", lambda path, *_: path.write_bytes(b""))
    return found


def frames(means, seed=0):
    """Frames of 80 x 64 px with photon noise of these mean counts, uint16."""
    light = np.random.default_rng(seed)
    return np.stack([light.poisson(mean, (80, 64)) for mean in means]).astype(np.uint16)


def write(path, pixels, axes, **metadata):
    tifffile.imwrite(path, pixels, imagej=True, metadata={"axes": axes, **metadata})
    return path


@pytest.fixture(scope="module")
def both(tmp_path_factory, focus_run):
    """A file of 2 times, 2 planes and 2 channels, the maps of all, and the map of one plane."""
    folder = tmp_path_factory.mktemp("both")
    light = np.random.default_rng(0)
    photo = skimage_data.brick()[:96, :112]
    pixels = np.stack([light.poisson(photo * (1 + k / 4)) for k in range(8)]).astype(np.uint16)
    image = folder / "a.tif"
    facts = {"spacing": 2.5, "unit": "um", "finterval": 60.0, "Labels": ["DAPI", "GFP"] * 4}
    write(image, pixels.reshape(2, 2, 2, 96, 112), "TZCYX", **facts)
    given = (image, *FAST, "--checkpoint", focus_run, "--out")
    run(estimate_psf_map, *given, folder / "all", "--all-planes")
    run(estimate_psf_map, *given, folder / "one", "--channel", 1, "--z", 0, "--t", 1)
    return folder


def test_a_plane_has_the_values_of_its_own_map(both):
    series, single = (tifffile.imread(both / name / "psf_map.tif") for name in ("all", "one"))
    np.testing.assert_array_equal(series[1, 0, 4:], single)
    assert not np.array_equal(series[0, 0, 4:], single)
    table = pd.read_csv(both / "all" / "map.csv")
    assert list(table)[:5] == ["t", "z", "channel", "time_s", "z_um"]
    assert len(table) == 8 * single[0].size
    chosen = table.query("t == 1 and z == 0 and channel == 1").reset_index(drop=True)
    assert set(chosen["time_s"]) == {60} and set(chosen["z_um"]) == {0}
    one = pd.read_csv(both / "one" / "map.csv")
    np.testing.assert_allclose(chosen[list(one)], one, rtol=1e-4)


def test_the_tiff_keeps_axes_scale_and_names(both):
    with tifffile.TiffFile(both / "all" / "psf_map.tif") as tiff:
        told, found = tiff.imagej_metadata, tiff.series[0]
        x, y = tiff.pages[0].tags["XResolution"].value
        pixel_um = y / x
    assert (found.axes, found.shape[:3]) == ("TZCYX", (2, 2, 8))
    assert (told["spacing"], told["finterval"], told["unit"]) == (2.5, 60.0, "um")
    assert pixel_um == pytest.approx(32 * 0.278, rel=1e-5)
    kinds = "focus (waves)", "focus standard deviation (waves)", "content probability"
    names = [f"{c} {kind}" for c in ("DAPI", "GFP") for kind in (*kinds, "photons per pixel")]
    assert told["Labels"][:8] == names


def test_each_plane_is_restored_with_its_own_map(both, monkeypatch):
    given, original = {}, deconvolve.restore_plane

    def seen(config, plane, psf_map, camera):
        given[plane.t, plane.z, plane.channel] = psf_map.values.mean().item()
        return original(config, plane, psf_map, camera)

    monkeypatch.setattr(deconvolve, "restore_plane", seen)
    fast = ("--iterations", 1, "--refine", "no", "--device", "cpu")
    arguments = (both / "a.tif", "--map", both / "all", *fast)
    run(deconvolve, *arguments, "--all-planes", "--out", both / "restored")
    assert len(set(given.values())) == 8
    expected, _ = read_map(both / "one")
    assert given[1, 0, 1] == pytest.approx(expected.values.mean().item(), rel=1e-4)
    # one plane, and a copy of it in a file of its own, take the same map of the series
    run(deconvolve, *arguments, "--channel", 1, "--z", 0, "--t", 1, "--out", both / "restored")
    assert given[1, 0, 1] == pytest.approx(expected.values.mean().item(), rel=1e-4)
    given.clear()
    tifffile.imwrite(both / "copy.tif", tifffile.imread(both / "a.tif")[1, 0, 1])
    run(deconvolve, both / "copy.tif", *arguments[1:], "--out", both / "restored")
    assert next(iter(given.values())) == pytest.approx(expected.values.mean().item(), rel=1e-4)


def test_planes_and_drift_have_the_values_of_the_image(reader, tmp_path, capsys):
    means = 600 + 40.0 * np.arange(6)
    image = write(tmp_path / "a.tif", frames(means), "TYX", finterval=1800.0)
    run(estimate_psf_map, image, *FAST, "--all-planes", "--out", tmp_path / "m")
    planes = pd.read_csv(tmp_path / "m" / "planes.csv")
    np.testing.assert_allclose(planes["focus_waves"], means / 1000, rtol=2e-3)
    np.testing.assert_allclose(planes["depth_um"], UM_PER_WAVE * means / 1000, rtol=2e-3)
    np.testing.assert_allclose(planes["photons_per_pixel"], means, rtol=5e-3)
    np.testing.assert_allclose(planes["time_s"], 1800 * np.arange(6))
    # 2 x 2 patches of 32 px, 32 px apart: four errors of 0.1 waves
    np.testing.assert_allclose(planes["focus_standard_error_waves"], 0.05)
    said = capsys.readouterr().out
    assert f"mean distance from focus: +{UM_PER_WAVE * 0.2:.1f} ±" in said and "over 2.5 h" in said
    assert "--all-planes --map" in said.partition("next: ")[2]
    assert (tmp_path / "m" / "drift.png").stat().st_size > 10_000
    assert not (tmp_path / "m" / KEPT).exists()


def test_planes_without_a_map_do_not_end_the_series(reader, tmp_path, capsys):
    pixels = frames([600, 650, 700, 750, 800]).astype(np.float32)
    pixels[1] = 7
    pixels[2, 5, 5] = np.nan
    pixels[4] = 0
    image = write(tmp_path / "a.tif", pixels, "TYX")
    run(estimate_psf_map, image, *FAST, "--all-planes", "--t", 1, "--out", tmp_path / "m")
    planes = pd.read_csv(tmp_path / "m" / "planes.csv")
    assert planes["focus_waves"].isna().tolist() == [False, True, True, False, True]
    assert planes["content_share"].tolist() == [1, 0, 0, 1, 0]
    table = pd.read_csv(tmp_path / "m" / "map.csv")
    bad = table["t"].isin([1, 2, 4])
    assert table.loc[bad, "focus_waves"].isna().all() and table.loc[~bad].notna().all().all()
    assert (table.loc[bad, "content_probability"] == 0).all()
    maps = tifffile.imread(tmp_path / "m" / "psf_map.tif")
    assert np.isnan(maps[1, [0, 1, 3]]).all() and (maps[1, 2] == 0).all()
    said = capsys.readouterr().out
    assert "3 of 5 planes have no map (channel 0, z 0, t 1: all pixels" in said
    assert "t 2: the image contains NaN" in said
    # the overview shows the mapped plane that is nearest to the dark one asked for
    assert json.loads((tmp_path / "m" / "config.json").read_text())["plane"]["t"] == 0
    with pytest.raises(InputError, match="has no map of channel 0, z 0, t 1: all pixels"):
        read_map(tmp_path / "m", {"t": 1})


def test_a_series_without_any_map_is_refused(reader, tmp_path):
    image = write(tmp_path / "a.tif", np.full((3, 80, 64), 9, np.uint16), "TYX")
    with pytest.raises(InputError, match="9"):
        run(estimate_psf_map, image, *FAST, "--all-planes", "--out", tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_an_interrupted_series_goes_on_with_the_same_result(reader, tmp_path):
    image = write(tmp_path / "a.tif", frames([600, 650, 700, 750]), "TYX")
    given = (image, *FAST, "--all-planes", "--out")
    run(estimate_psf_map, *given, tmp_path / "whole")
    whole, reader.calls, reader.left = reader.calls, 0, 2
    with pytest.raises(KeyboardInterrupt):
        run(estimate_psf_map, *given, tmp_path / "m")
    assert len(list((tmp_path / "m" / KEPT).glob("*.npz"))) == 2
    reader.calls, reader.left = 0, None
    run(estimate_psf_map, *given, tmp_path / "m")
    assert reader.calls == whole - 2
    for name in ("map.csv", "planes.csv", "psf_map.tif", "drift.png"):
        assert (tmp_path / "m" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    # the finished planes of other settings are not taken
    reader.calls, reader.left = 0, 2
    with pytest.raises(KeyboardInterrupt):
        run(estimate_psf_map, *given, tmp_path / "m")
    reader.calls, reader.left = 0, None
    run(estimate_psf_map, *given, tmp_path / "m", "--stride", 16)
    assert reader.calls == whole


OME = """<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">
<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZTC" Type="uint16" SizeX="64" SizeY="80"
 SizeZ="1" SizeC="2" SizeT="1" PhysicalSizeX="0.278" PhysicalSizeY="0.278">
<Channel ID="Channel:0:0" SamplesPerPixel="1" EmissionWavelength="500"/>
<Channel ID="Channel:0:1" SamplesPerPixel="1" EmissionWavelength="550"/>
<TiffData/></Pixels></Image></OME>"""


def test_each_channel_has_its_wavelength(reader, tmp_path):
    image = tmp_path / "a.ome.tif"
    tifffile.imwrite(image, frames([600, 600]), description=OME, metadata=None)
    given = (image, "--na", 0.45, "--refractive-index", 1.33, *CAMERA, "--all-planes", "--device")
    run(estimate_psf_map, *given, "cpu", "--out", tmp_path / "m")
    planes = pd.read_csv(tmp_path / "m" / "planes.csv")
    scale = planes["depth_um"] / planes["focus_waves"]
    np.testing.assert_allclose(scale, UM_PER_WAVE * np.array([1, 1.1]), rtol=1e-5)
    told = json.loads((tmp_path / "m" / "config.json").read_text())["channels"]
    assert [one["optics"]["wavelength_um"] for one in told] == [0.5, 0.55]
    with pytest.raises(InputError, match=r"--wavelength-um is 0\.5, but .* have 0\.5, 0\.55 um"):
        run(estimate_psf_map, *given, "cpu", "--wavelength-um", 0.5, "--out", tmp_path / "n")


def test_planes_in_z_are_one_group_where_they_are_seen_together(reader, tmp_path):
    image = write(tmp_path / "a.tif", frames([600] * 12).reshape(2, 3, 2, 80, 64), "TZCYX")
    options = tyro.cli(
        estimate_psf_map.Config, args=[str(a) for a in (image, *FAST, "--out", tmp_path)]
    )
    with map_series.open_channels(options, reader) as channels:
        assert [len(g) for g in map_series.seen_together(channels, options)] == [1] * 12
        reader.context = torch.nn.Identity()
        groups = map_series.seen_together(channels, options)
    assert [len(group) for group in groups] == [3] * 4
    assert {(p["t"], p["channel"]) for p in groups[0]} == {(0, 0)}


def test_a_truth_has_all_planes(reader, tmp_path):
    image = write(tmp_path / "a.tif", frames([600, 700]), "TYX")
    given = (image, *FAST, "--all-planes", "--out", tmp_path / "m", "--truth", tmp_path / "t.tif")
    tifffile.imwrite(tmp_path / "t.tif", np.ones((80, 64), np.float32))
    with pytest.raises(InputError, match="give 2 planes of 80 x 64 px"):
        run(estimate_psf_map, *given)
    truth = np.ones((2, 80, 64), np.float32)
    truth[1] = 1.5
    tifffile.imwrite(tmp_path / "t.tif", truth)
    run(estimate_psf_map, *given)
    planes = pd.read_csv(tmp_path / "m" / "planes.csv")
    np.testing.assert_allclose(planes["true_focus_waves"], [1, 1.5], rtol=1e-5)
    np.testing.assert_allclose(planes["true_depth_um"], UM_PER_WAVE * np.array([1, 1.5]), rtol=1e-5)


SIMULATE = ("--psf-size", 41, "--levels", 5, "--focus-waves", 0, 0.4, "--source", "page")


@pytest.mark.filterwarnings("ignore:up to:psf.synthesis.EnergyWarning")
def test_a_simulated_series_drifts_as_it_says(tmp_path):
    given = (*SIMULATE, "--frames", 3, "--drift-um", -2, "--frame-interval-s", 90)
    run(simulate_tilted_plane, *given, "--out", tmp_path)
    run(simulate_tilted_plane, *SIMULATE, "--out", tmp_path / "still")
    truth, still = (
        tifffile.imread(tmp_path / "truth.tif"),
        tifffile.imread(tmp_path / "still/truth.tif"),
    )
    for frame, drift_um in enumerate((0, -1, -2)):
        np.testing.assert_allclose(truth[frame], abs(still + drift_um / UM_PER_WAVE), atol=1e-5)
    with tifffile.TiffFile(tmp_path / "image.tif") as tiff:
        assert tiff.imagej_metadata["finterval"] == 90
        first, last = tiff.asarray()[[0, 2]]
    np.testing.assert_array_equal(first, tifffile.imread(tmp_path / "still/image.tif"))
    assert not np.array_equal(first, last)
    with pytest.raises(InputError, match="--drift-um is 3 and --frames 1; give"):
        run(simulate_tilted_plane, *SIMULATE, "--drift-um", 3, "--out", tmp_path / "x")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--t", 2), "--t 2 is not in .*; it has 0 to 1"),
        (("--z", 1), "--z 1 is not in .*; it has 0 only"),
        (("--stride", 0), "can be mapped: --stride is 0; give at least 1 pixel"),
        (("--smooth", -1), "--smooth is -1; give auto, off or a number above 0"),
        (("--truth", "none.tif"), "none.tif cannot be read as a TIFF"),
    ],
)
def test_wrong_options_of_a_series(reader, tmp_path, given, message):
    image = write(tmp_path / "a.tif", frames([600, 700]), "TYX")
    with pytest.raises(InputError, match=message):
        run(estimate_psf_map, image, *FAST, "--all-planes", *given, "--out", tmp_path / "m")
    assert not (tmp_path / "m").exists()


@pytest.mark.slow
def test_the_drift_of_a_simulated_series_is_found(tmp_path, capsys):
    plane = ("--focus-waves", 0.5, 1.5, "--frames", 6, "--drift-um", 6, "--out", tmp_path / "s")
    run(simulate_tilted_plane, *plane)
    optics = (*OPTICS, "--device", "cpu", "--checkpoint", "zernike1d_tilted")
    image = tmp_path / "s" / "image.tif"
    run(estimate_psf_map, image, *optics, "--all-planes", "--out", tmp_path / "m")
    planes = pd.read_csv(tmp_path / "m" / "planes.csv")
    change = planes["depth_um"].iloc[-1] - planes["depth_um"].iloc[0]
    error = np.hypot(*planes["depth_standard_error_um"].iloc[[0, -1]])
    # The truth counts pixels, the map patches: the mean over patches drifts by 6 um too.
    assert abs(change - 6) < 3 * error < 3
    assert "drift of the mean distance from focus: +" in capsys.readouterr().out


@pytest.mark.slow
def test_a_killed_series_goes_on_with_the_same_result(tmp_path):
    plane = ("--psf-size", 101, "--frames", 6, "--drift-um", 3, "--out", tmp_path / "s")
    run(simulate_tilted_plane, *plane)
    command = [sys.executable, "estimate_psf_map.py", str(tmp_path / "s" / "image.tif"), *OPTICS]
    command += ["--checkpoint", "focus", "--all-planes", "--device", "cpu", "--out"]
    out = tmp_path / "killed"
    process = subprocess.Popen([*command, str(out)], cwd=ROOT, stderr=subprocess.DEVNULL)
    while len(list(out.glob(f"{KEPT}/*.npz"))) < 2 and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = {path: path.stat().st_mtime_ns for path in out.glob(f"{KEPT}/*.npz")}
    assert len(kept) >= 2 and not (out / "map.csv").exists()
    for folder in (out, tmp_path / "whole"):
        subprocess.run([*command, str(folder)], cwd=ROOT, check=True, env={**os.environ})
    for name in ("map.csv", "planes.csv", "psf_map.tif", "drift.png", "overview.png"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
