"""A map belongs to one plane of one image; printed commands run as they stand; any file name."""

import importlib
import io
import json
import shlex
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import tyro
from skimage import data as skimage_data

import benchmark_models
import calibrate_depth
import deconvolve
import estimate_psf_map
import train
from common import pictures
from common.command import next_command
from common.command import run as run_command
from common.pictures import new_figure, plain_text, save_figure
from models import map_result
from models.map_files import pixels_hash
from models.mapping import TensorImage
from psf import InputError, Microscope
from restoration.blur_map import read_map

OPTICS = "--na 0.45 --wavelength-um 0.5 --pixel-size-um 0.278 --refractive-index 1.33".split()
FAST = "--iterations 1 --refine no --device cpu".split()
PHOTO = skimage_data.brick()[:96, :112].astype(np.uint16)
ODD_NAMES = ('$5_$ and it\'s "100%d"', "-dash 核 顕微鏡 ☃", "two\nlines")


def run(script, *arguments):
    script.main(tyro.cli(script.Config, args=[str(one) for one in arguments]))


def run_printed(command):
    """Run a command `python SCRIPT ...` that a script printed."""
    python, script, *arguments = shlex.split(command)
    assert python == "python"
    run(importlib.import_module(script.removesuffix(".py")), *arguments)


@pytest.fixture
def map_of(focus_run, tmp_path, monkeypatch, capsys):
    """Make the map of an image; returns its folder and the printed next command."""
    monkeypatch.chdir(tmp_path)

    def made(path, *flags, out=Path("maps/m")):
        given = ("--checkpoint", focus_run, *OPTICS, "--device", "cpu", "--out", out)
        run(estimate_psf_map, path, *given, *flags)
        return out, capsys.readouterr().out.partition("next: ")[2].rstrip("\n")

    return made


@pytest.fixture
def stack(tmp_path):
    """ImageJ stack of 2 time points, 2 planes in z and 2 channels, all different."""
    planes = [PHOTO + 10 * k for k in range(8)]
    path = tmp_path / "stack.tif"
    pixels = np.stack(planes).reshape(2, 2, 2, *PHOTO.shape)
    tifffile.imwrite(path, pixels, imagej=True, metadata={"axes": "TZCYX"})
    return path


def restore(path, folder, *flags, out=Path("restored/r")):
    run(deconvolve, path, "--map", folder, *FAST, "--out", out, *flags)
    return json.loads((out / "restoration.json").read_text())


# --- which image


def test_hash_is_of_the_pixels_in_their_places():
    image = np.arange(600 * 7, dtype=np.float32).reshape(600, 7)  # more rows than a band
    hashes = {
        pixels_hash(TensorImage(torch.from_numpy(np.ascontiguousarray(one))))
        for one in (image, image.reshape(7, 600), image[::-1], image + (image == 4000))
    }
    assert len(hashes) == 4 and all(len(one) == 64 for one in hashes)


def test_the_same_pixels_pass_under_any_name(map_of, tmp_path, capsys):
    tifffile.imwrite("a.tif", PHOTO)
    folder, _ = map_of(Path("a.tif"))
    tifffile.imwrite("copy.ome.tif", PHOTO, compression="zlib")
    restore("copy.ome.tif", folder)
    assert "the map was made" not in capsys.readouterr().out


def test_another_image_is_refused_unless_told(map_of, capsys):
    tifffile.imwrite("gravel.tif", PHOTO)
    folder, _ = map_of(Path("gravel.tif"))
    one_pixel = PHOTO.copy()
    one_pixel[50, 60] += 1
    for path in (Path("image.tif"), Path("other/gravel.tif")):
        path.parent.mkdir(exist_ok=True)
        tifffile.imwrite(path, one_pixel)
        with pytest.raises(InputError, match=r"gravel.*other pixels.*--other-image") as error:
            restore(path, folder)
        assert ("image.tif has other pixels" in str(error.value)) == (path.name == "image.tif")
        assert not Path("restored/r").exists()
    restore("image.tif", folder, "--other-image")
    note = "note: the map was made of gravel.tif; it is used for image.tif (--other-image)"
    assert note in capsys.readouterr().out
    tifffile.imwrite("small.tif", PHOTO[:90])
    with pytest.raises(InputError, match="the map is of an image of 96 x 112 px"):
        restore("small.tif", folder, "--other-image")


def test_other_planes_of_the_file_are_legitimate(map_of, stack, capsys):
    folder, command = map_of(stack, "--channel", 1, "--z", 0, "--t", 1)
    assert " --channel 1 --z 0 --t 1 " in command
    note = "note: the map was made of another plane of stack.tif (channel 1, z 0, t 1)"
    record = restore(stack, folder)
    assert [record["planes"][0][k] for k in ("channel", "z", "t")] == [1, 0, 1]
    assert note not in capsys.readouterr().out
    record = restore(stack, folder, "--z", 1, "--channel", 0)
    assert [record["planes"][0][k] for k in ("channel", "z", "t")] == [0, 1, 1]
    assert note in capsys.readouterr().out
    assert len(restore(stack, folder, "--all-planes")["planes"]) == 8
    assert note not in capsys.readouterr().out


def test_image_of_a_file_of_several(map_of, capsys):
    with tifffile.TiffWriter("two.ome.tif") as file:
        for pixels in (PHOTO, PHOTO + 5):
            file.write(pixels, metadata={"axes": "YX"})
    folder, command = map_of(Path("two.ome.tif"), "--series", 1)
    assert " --series 1 " in command
    given = json.loads((folder / "config.json").read_text())["plane"]
    assert given == {"series": 1, "channel": 0, "z": 0, "t": 0}
    restore("two.ome.tif", folder)
    assert "the map was made" not in capsys.readouterr().out
    restore("two.ome.tif", folder, "--series", 0)
    assert "the map was made of another plane of two.ome.tif (series 1" in capsys.readouterr().out
    tifffile.imwrite("copy.tif", PHOTO + 5)
    restore("copy.tif", folder)
    assert "the map was made" not in capsys.readouterr().out


def test_one_colour_with_the_map_of_the_luminance(map_of, capsys):
    tifffile.imwrite("rgb.tif", np.stack([PHOTO, PHOTO // 2, PHOTO // 3], -1), photometric="rgb")
    folder, command = map_of(Path("rgb.tif"))
    assert "--channel" not in command
    restore("rgb.tif", folder, "--channel", 1)
    assert "the map was made of another plane of rgb.tif" in capsys.readouterr().out


def test_map_without_its_table_names_the_command_that_makes_it(map_of):
    tifffile.imwrite("a b.tif", PHOTO)
    folder, _ = map_of(Path("a b.tif"))
    (folder / "map.csv").unlink()
    with pytest.raises(InputError, match=r"maps/m holds no map: map.csv is missing. Make the map"):
        read_map(folder)
    with pytest.raises(InputError, match=r"estimate_psf_map\.py IMAGE .* --out 'no map'"):
        read_map(Path("no map"))


# --- the next command


@pytest.mark.parametrize("name", ODD_NAMES)
def test_any_file_name_passes_from_the_map_to_the_restoration(map_of, name, capsys):
    path = Path(f"{name}.tif")
    tifffile.imwrite(path, PHOTO)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a missing glyph warns, too
        _, command = map_of(f"./{path}", out=Path("maps") / name)
        assert " --device cpu " in command
        run_printed(command.replace("--device cpu", " ".join(FAST)))
    record = json.loads((Path("restored") / name / "restoration.json").read_text())
    assert Path(record["image"]) == path
    assert "note: the map" not in capsys.readouterr().out


def test_file_name_that_is_no_text(focus_run, tmp_path, monkeypatch):
    """A name in Latin 1 has bytes that UTF-8 does not know; they are printed as they are."""
    monkeypatch.chdir(tmp_path)
    path, printed = Path("latin\udce9.tif"), io.BytesIO()
    tifffile.imwrite(path, PHOTO)
    given = ["--checkpoint", str(focus_run), *OPTICS, "--device", "cpu", "--out", "maps/m"]
    with monkeypatch.context() as patch:
        stdout = io.TextIOWrapper(printed, "utf-8", write_through=True)
        patch.setattr(sys, "stdout", stdout)
        patch.setattr(sys, "argv", ["estimate_psf_map.py", str(path), *given])
        patch.setattr(warnings, "showwarning", warnings.showwarning)  # `run` changes it
        run_command(estimate_psf_map.Config, estimate_psf_map.main, estimate_psf_map.__doc__)
    assert b" deconvolve.py 'latin\xe9.tif' --map maps/m " in printed.getvalue()
    restore(path, "maps/m")


def test_commands_of_training_and_benchmark_are_valid(focus_run, focus_data, tmp_path):
    odd = tmp_path / "my $data's"
    for script, options in (
        (train, {"--data": odd, "--out": odd}),
        (benchmark_models, {"--checkpoints": odd, "--data": odd, "--out": odd}),
    ):
        line = next_command(f"{script.__name__}.py", *options.items())
        _, _, *arguments = shlex.split(line.removeprefix("next: "))
        config = tyro.cli(script.Config, args=arguments)
        assert config.out == odd


def test_command_of_a_calibration_keeps_the_optics(tmp_path):
    given = {"stack": Path("s.tif"), "checkpoint": Path("my net"), "out": tmp_path, "na": 0.45}
    config = calibrate_depth.Config(**given, wavelength_um=0.5, allow_other_optics=True)
    line = calibrate_depth.next_step(config, Microscope(), tmp_path / "depth_calibration.json")
    _, script, *arguments = shlex.split(line.removeprefix("next: "))
    found = tyro.cli(importlib.import_module(script.removesuffix(".py")).Config, args=arguments)
    assert (found.checkpoint, found.na, found.wavelength_um) == (Path("my net"), 0.45, 0.5)
    assert found.depth_calibration == tmp_path / "depth_calibration.json"
    assert found.pixel_size_um is None and found.allow_other_optics


def test_names_are_drawn_as_they_are(tmp_path):
    """Between dollar signs matplotlib would read a formula, here a broken one."""
    widths = []
    for title in ("$x^$ a", r"\$x^\$ a"):
        figure, axes = new_figure(1, 1, 3, 3)
        axes[0, 0].set_title(plain_text(title))
        save_figure(tmp_path / "a.png", figure)
        widths.append(axes[0, 0].title.get_window_extent().width)
    assert widths[0] < widths[1]  # the second one shows its backslashes
    assert plain_text("a\nb\x07\udce9") == "a?b??"


# --- early refusals


@pytest.mark.parametrize("script", [estimate_psf_map, deconvolve])
@pytest.mark.parametrize(
    ("image", "flags", "message"),
    [
        ("negative.tif", (), "the darkest pixel is -7; give the camera's --offset-counts"),
        ("a.tif", ("--out", "file"), "file is a file; give a folder"),
        ("a.tif", ("--out", "file/deep"), "file is a file; give a folder"),
        ("a.tif", ("--out", "/proc/none"), "--out /proc/none cannot be written"),
        ("a.tif", ("--checkpoint", "nowhere"), "there is no checkpoint folder nowhere"),
        ("a.tif", ("--z", "4"), "--z 4 is not in a.tif"),
    ],
)
def test_refused_before_the_prediction(
    focus_run, tmp_path, monkeypatch, script, image, flags, message
):
    monkeypatch.chdir(tmp_path)
    tifffile.imwrite("a.tif", PHOTO)
    tifffile.imwrite("negative.tif", PHOTO.astype(np.float32) - PHOTO.min() - 7)
    Path("file").write_text("")
    before = sorted(tmp_path.iterdir())
    for module in (map_result, deconvolve):
        monkeypatch.setattr(module, "map_image", None)  # calling it would be another error
    given = ("--checkpoint", focus_run, *OPTICS, "--device", "cpu", "--out", "out")
    with pytest.raises(InputError, match=message):
        run(script, image, *given, *flags)
    assert sorted(tmp_path.iterdir()) == before


def test_negative_pixels_pass_with_the_offset_of_the_map(map_of):
    tifffile.imwrite("negative.tif", PHOTO.astype(np.float32) - 20)
    _, command = map_of(Path("negative.tif"), "--offset-counts", -30)
    run_printed(command.replace("--device cpu", " ".join(FAST)))
    record = json.loads(Path("restored/m/restoration.json").read_text())
    assert record["camera"]["offset_counts"] == -30


def test_second_map_leaves_no_depth_of_the_first(map_of):
    tifffile.imwrite("a.tif", PHOTO)
    folder, _ = map_of(Path("a.tif"))
    assert (folder / "depth.tif").is_file()
    (folder / "mine.txt").write_text("notes")
    map_of(Path("a.tif"), "--no-full-resolution")
    files = ["config.json", "map.csv", "mine.txt", "overview.png", "psf_map.tif"]
    assert sorted(path.name for path in folder.iterdir()) == files


def test_title_of_a_scatter_plot_has_its_two_lines(monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(pictures, "save_figure", lambda path, figure: drawn.append(figure))
    values = np.arange(3.0)
    panel = pictures.Panel("$net$, noise-free\nR² 1.000", "focus (waves)", values, values)
    pictures.draw_scatter(tmp_path / "scatter.png", [[panel]])
    assert drawn[0].axes[0].get_title() == "\\$net\\$, noise-free\nR² 1.000"
