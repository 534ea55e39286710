"""The ImageJ macro: the commands that it builds, the plane that it takes, and what it opens."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from test_document_links import fault_of

ROOT = Path(__file__).parents[1]
MACRO = ROOT / "fiji" / "Estimate_PSF_Map.ijm"
JAR = Path("/usr/share/java/ij.jar")  # where Debian's package of ImageJ puts it
KEYS = f"python={sys.executable} network=zernike1d na=0.45 wavelength=0,5 index=1.33 "
NAMES = (
    "title",
    "width",
    "channels",
    "planes",
    "unit",
    "pixel",
    "mean",
    "low",
    "high",
    "selection",
)
# Macro that runs ours with each argument, and then tells what is open.
REPORT = """
function report() {
    for (i = 1; i <= nImages; i++) {
        selectImage(i);
        getDimensions(width, height, channels, slices, frames);
        getPixelSize(unit, pixel, pixel_height);
        getRawStatistics(count, mean);
        getMinAndMax(low, high);
        values = newArray(getTitle(), width, channels, nSlices, unit, d2s(pixel, 6), d2s(mean, 6),
            d2s(low, 6), d2s(high, 6), selectionType());
        print("open|" + String.join(values, "|"));
    }
}
"""

needs_imagej = pytest.mark.skipif(
    not (JAR.is_file() and shutil.which("java") and shutil.which("xvfb-run")),
    reason="needs ImageJ and Xvfb: apt-get install imagej xvfb",
)


def imagej(folder: Path, code: str) -> str:
    """What a macro prints; ImageJ has a screen of its own, and its settings in `folder`."""
    macro = folder / "test.ijm"
    macro.write_text(REPORT + code.replace("MACRO", f'"{MACRO}"'), "utf-8")
    command = ["xvfb-run", "-a", "timeout", "120", "java", f"-Duser.home={folder}", "-jar"]
    done = subprocess.run(
        [*command, str(JAR), "-batch", str(macro)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def open_images(printed: str) -> dict[str, dict[str, str]]:
    """Images that were open at the end, by title."""
    rows = [line.split("|")[1:] for line in printed.splitlines() if line.startswith("open|")]
    return {row[0]: dict(zip(NAMES, row, strict=True)) for row in rows}


def commands(printed: str) -> list[list[str]]:
    """Commands that were printed by dry=yes, from the name of the script on."""
    lines = [line for line in printed.splitlines() if line.startswith("python ")]
    return [line.removeprefix("python ").split(" | ") for line in lines]


def textured(shape: tuple[int, int]) -> np.ndarray:
    """Counts of a blurred random texture."""
    rng = np.random.default_rng(3)
    frequency = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1]))
    spectrum = np.fft.rfft2(rng.normal(size=shape)) * np.exp(-((frequency / 0.12) ** 2))
    texture = np.fft.irfft2(spectrum, shape)
    return rng.poisson(1000 * (1 + 0.2 * texture / texture.std()).clip(0.1)).astype(np.uint16)


def write(path: Path, pixels: np.ndarray, axes: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"axes": axes, "unit": "um"}
    tifffile.imwrite(path, pixels, imagej=True, resolution=(4, 4), metadata=metadata)
    return path


def test_every_flag_of_the_macro_is_one_of_the_scripts(capsys):
    """Also on machines without ImageJ."""
    text = MACRO.read_text("utf-8")
    values = {"--network": "focus", "--map": "maps/image", "--out": "maps/image"}
    flags = dict.fromkeys(re.findall(r"\\t(--[a-z-]+)\\t", text))
    assert {"--na", "--channel", "--z", "--t", "--map", "--checkpoint"} <= set(flags)
    only_map = [f for f in flags if f != "--map"]
    words = [word for flag in only_map for word in (flag, values.get(flag, "0"))]
    assert fault_of(["estimate_psf_map.py", "image.tif", *words], capsys) == ""
    restoring = ("--map", "--out", "--channel", "--z", "--t")
    words = [word for flag in restoring for word in (flag, values.get(flag, "0"))]
    assert fault_of(["deconvolve.py", "image.tif", *words], capsys) == ""
    assert "no-such" in fault_of(["deconvolve.py", "image.tif", "--no-such", "0"], capsys)


def run_py(folder: Path, *arguments: str) -> tuple[str, str]:
    """Messages and exit code that the macro reads."""
    folder.mkdir()
    command = [sys.executable, ROOT / "fiji" / "run.py", folder, "\t".join(arguments)]
    done = subprocess.run(command, capture_output=True, check=True)
    assert done.stdout == done.stderr == b""
    return (folder / "messages.txt").read_text("ascii"), (folder / "exit_code.txt").read_text()


def test_messages_and_exit_code_reach_the_macro(tmp_path):
    code = "import sys; print('0.5 µm', sys.argv[1]); sys.exit('error: a\\tb ☃')"
    messages, exit_code = run_py(tmp_path / "x y", "-c", code.replace("\\t", "-"), "my cells.tif")
    assert messages == "0.5 um my cells.tif\nerror: a-b ?\n"
    assert exit_code == "1"


def test_a_script_is_stopped_when_the_macro_ends(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "fiji")
    import run

    monkeypatch.setattr(run, "PATIENCE", 2)
    monkeypatch.setattr(run, "POLL_S", 0.02)
    run.main(tmp_path, ["-c", "import time; print('started', flush=True); time.sleep(60)"])
    assert int((tmp_path / "exit_code.txt").read_text()) != 0


@needs_imagej
@pytest.mark.slow
def test_the_plane_on_the_screen_is_taken(tmp_path):
    """A file as it is, else a copy of the plane; selection, title and pixels of the image stay."""
    pixels = np.arange(2 * 3 * 2 * 150 * 160).reshape(2, 3, 2, 150, 160) % 60000
    path = write(tmp_path / "a b" / "series.tif", pixels.astype(np.uint16), "TZCYX")
    out = tmp_path / "the results"
    printed = imagej(
        tmp_path,
        f"""
        keys = "{KEYS} dry=yes restore=yes restore_options=[--iterations  5] out=[{out}]";
        open("{path}");
        Stack.setPosition(2, 3, 1);
        makeRectangle(5, 6, 20, 30);
        runMacro(MACRO, keys);
        setPixel(10, 11, 999);
        setOption("Changes", true);
        runMacro(MACRO, keys + " pixel=0.3");
        report();
        """,
    )
    of_file, restoring, of_copy, _ = commands(printed)
    plane = [str(path), "--channel", "1", "--z", "2", "--t", "0"]
    optics = ["--na", "0.45", "--wavelength-um", "0.5", "--pixel-size-um", "0.25"]
    rest = ["--refractive-index", "1.33", "--checkpoint", "zernike1d", "--out", f"{out}/map"]
    assert of_file == ["estimate_psf_map.py", *plane, *optics, *rest]
    options = ["--map", f"{out}/map", "--iterations", "5", "--out", f"{out}/restored"]
    assert restoring == ["deconvolve.py", *plane, *options]
    assert of_copy[1:6] == [f"{out}/image.tif", *optics[:4]] and "0.3" in of_copy
    with tifffile.TiffFile(out / "image.tif") as saved:
        copy = saved.asarray()
        assert saved.imagej_metadata["unit"] in ("um", "µm", "micron", "\\u00B5m")
        assert saved.pages[0].tags["XResolution"].value[0] / 1e6 == pytest.approx(4, rel=1e-4)
    expected = pixels[0, 2, 1].astype(np.uint16)
    expected[11, 10] = 999
    assert np.array_equal(copy, expected)
    (kept,) = open_images(printed).values()
    assert (kept["title"], kept["planes"], kept["selection"]) == ("series.tif", "12", "0")


@needs_imagej
@pytest.mark.slow
def test_what_a_user_gets_wrong(tmp_path):
    printed = imagej(
        tmp_path,
        f"""
        keys = "{KEYS} out=[{tmp_path}/o] ";
        runMacro(MACRO, keys);
        newImage("colour", "RGB ramp", 160, 150, 1);
        runMacro(MACRO, keys + "dry=yes pixel=0.3");
        run("Close All");
        newImage("printed", "8-bit ramp", 160, 150, 1);
        run("Properties...", "unit=inch pixel_width=0.01 pixel_height=0.01");
        runMacro(MACRO, keys + "dry=yes");
        runMacro(MACRO, keys);
        runMacro(MACRO, "python={sys.executable} dry=yes wavelength=500");
        runMacro(MACRO, "python={sys.executable} dry=yes na=O.45");
        runMacro(MACRO, "python=[/no where/python]");
        """,
    )
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    found = "error: the file does not tell its optics; give --pixel-size-um."
    assert errors == [
        "error: no image is open; open the image to map, then run this macro again.",
        found,  # in the messages of the script
        found,  # and as the error of the macro
        "error: the wavelength is 500; give it in um (500 nm is 0.5).",
        "error: the NA is 'O.45'; give a number, e.g. 0.5",
        "error: there is no Python program at '/no where/python'.",
    ]
    colour, printed_unit = commands(printed)
    assert colour[colour.index("--pixel-size-um") + 1] == "0.3"
    assert "--pixel-size-um" not in printed_unit


@needs_imagej
@pytest.mark.slow
def test_results_are_opened_with_their_scale(tmp_path):
    path = write(tmp_path / "my data" / "cells.tif", textured((170, 200)), "YX")
    keys = f"image=[{path}] {KEYS} restore=yes restore_options=[--iterations 3]"
    printed = imagej(tmp_path, f'runMacro(MACRO, "{keys}"); report();')
    out = path.parent / "cells_psf"
    found = open_images(printed)
    assert {"cells.tif", "overview.png", "psf_map.tif", "depth.tif"} <= set(found), printed
    for name, file in (
        ("psf_map.tif", "map/psf_map.tif"),
        ("depth.tif", "map/depth.tif"),
        ("restored cells.tif", "restored/restored.tif"),
    ):
        pixels, shown = tifffile.imread(out / file), found[name]
        first = pixels if pixels.ndim == 2 else pixels[0]
        assert int(shown["width"]) == pixels.shape[-1]
        assert int(shown["channels"]) == (1 if pixels.ndim == 2 else len(pixels))
        assert shown["unit"] in ("µm", "um", "?m")
        assert float(shown["mean"]) == pytest.approx(np.nanmean(first), rel=1e-4)
        assert np.nanmin(first) - 1e-3 <= float(shown["low"]) < float(shown["high"])
        assert float(shown["high"]) <= np.nanmax(first) + 1e-3
    assert float(found["restored cells.tif"]["pixel"]) == pytest.approx(0.25, rel=1e-4)
    assert float(found["psf_map.tif"]["pixel"]) == pytest.approx(32 * 0.25, rel=1e-4)
    record = json.loads((out / "map" / "config.json").read_text("utf-8"))
    assert record["optics"]["wavelength_um"] == 0.5 and record["optics"]["na"] == 0.45
