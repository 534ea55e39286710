"""After kill -9 the same command ends with the files of an undisturbed run."""

import json
import multiprocessing
import os
import re
import resource
import signal
import time
from functools import partial

import numpy as np
import pandas as pd
import pytest
import tifffile
from safetensors.torch import load_file
from skimage import data as skimage_data

import deconvolve
import estimate_psf_map
import train
from models import done_rows, map_image
from psf import InputError

# Processes are forked from a clean server that has imported the scripts already.
SERVER = multiprocessing.get_context("forkserver")
OPTICS = {"na": 0.45, "wavelength_um": 0.5, "pixel_size_um": 0.278, "refractive_index": 1.33}
TIMES = {"written", "seconds", "minutes", "command"}  # of records: they may differ


def start(script, config, operation=None, bytes_left=None):
    """Start a script in a process of its own.

    It dies before the file operation of this number, or at a disk with so many bytes left for each
    file.
    """
    SERVER.set_forkserver_preload(["deconvolve", "estimate_psf_map", "train"])
    process = SERVER.Process(target=work, args=(script.__name__, config, operation, bytes_left))
    process.start()
    return process


def work(name, config, operation, bytes_left):
    script = {"deconvolve": deconvolve, "estimate_psf_map": estimate_psf_map, "train": train}[name]
    map_image.RESUMED, done_rows.BAND = 10, 20  # so that a small map is kept band by band
    if operation is not None:
        die_at(operation)
    if bytes_left is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_left, bytes_left))
    try:
        script.main(config)
    except InputError as error:
        config.out.with_suffix(".error").write_text(str(error))
        raise SystemExit(2) from error


def die_at(operation):
    left = operation
    replace = os.replace

    def mortal(source, target):
        nonlocal left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        replace(source, target)

    os.replace = mortal


def finish(script, config):
    process = start(script, config)
    process.join()
    assert process.exitcode == 0


def contents(folder):
    """Every file by its name, without times."""
    return {path.name: content(path) for path in folder.iterdir()}


def content(path):
    if path.suffix == ".json":
        return without_times(json.loads(path.read_text()))
    if path.name == "metrics.csv":
        return pd.read_csv(path).drop(columns="minutes").to_csv()
    if path.name == "state.safetensors":  # its facts hold the seconds of the training
        return {name: tensor.numpy().tobytes() for name, tensor in load_file(path).items()}
    if path.name == "README.md":
        return [line for line in path.read_text().splitlines() if "minutes" not in line]
    return path.read_bytes()


def without_times(value):
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in {*TIMES, "out", "rows"}}
    return value


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("image") / "a.tif"
    tifffile.imwrite(path, skimage_data.brick()[:160, :160].astype(np.uint16))
    return path


@pytest.fixture(scope="module")
def jobs(tmp_path_factory, image, focus_run, focus_data):
    """Script and configuration (without --out) of each kind, and the undisturbed result."""
    folder = tmp_path_factory.mktemp("undisturbed")
    common = {"image": image, "device": "cpu"}
    made = {
        "map": (
            estimate_psf_map,
            partial(estimate_psf_map.Config, **common, checkpoint=focus_run, stride=16, **OPTICS),
        ),
        "restoration": (
            deconvolve,
            partial(deconvolve.Config, **common, map=folder / "map", iterations=3, refine="no"),
        ),
        "training": (
            train,
            partial(train.Config, data=focus_data, epochs=2, batch_size=100, device="cpu"),
        ),
    }
    for name, (script, config) in made.items():
        finish(script, config(out=folder / name))
    return {name: (*job, contents(folder / name)) for name, job in made.items()}


KINDS = pytest.mark.parametrize("kind", ["map", "restoration", "training"])
# Numbers of files that were put in their places before the kill: of the map the first one is the
# header of its unfinished rows, and from the eighth on the new result replaces the old one.
MOMENTS = [("map", 1), ("map", 9), ("restoration", 5), ("training", 5)]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "operation"), MOMENTS)
def test_killed_between_two_files(jobs, tmp_path, kind, operation):
    script, config, expected = jobs[kind]
    process = start(script, config(out=tmp_path / "out"), operation)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert contents_of_files(tmp_path / "out") != expected
    finish(script, config(out=tmp_path / "out"))
    assert contents(tmp_path / "out") == expected


def contents_of_files(folder):
    return {path.name: content(path) for path in folder.iterdir() if path.is_file()}


@pytest.mark.slow
@KINDS
def test_killed_at_random_moments(jobs, tmp_path, kind):
    script, config, expected = jobs[kind]
    started = time.perf_counter()
    finish(script, config(out=tmp_path / "timed"))
    seconds = time.perf_counter() - started
    for number, share in enumerate(np.random.default_rng(0).random(20)):
        out = tmp_path / str(number)
        process = start(script, config(out=out))
        process.join(share * seconds)
        process.kill()
        process.join()
        if kind != "training" or not (out / "run.json").exists():
            finish(script, config(out=out))
        assert contents(out) == expected, f"killed after {share:.1%} of the run"


@KINDS
def test_full_disk_is_one_line_and_leaves_the_last_result(jobs, tmp_path, kind):
    script, config, expected = jobs[kind]
    limit = 20_000  # bytes: less than the pictures and the weights
    process = start(script, config(out=tmp_path / "out"), bytes_left=limit)
    process.join()
    assert process.exitcode == 2
    error = (tmp_path / "out.error").read_text()
    assert re.search("(cannot be written: File too large|was not written whole)", error)
    left = [path.name for path in (tmp_path / "out").glob("**/*") if ".partial" in path.name]
    assert left == []
    finish(script, config(out=tmp_path / "out"))
    assert contents(tmp_path / "out") == expected
    if kind == "training":
        return
    process = start(script, config(out=tmp_path / "out"), bytes_left=limit)
    process.join()
    assert process.exitcode == 2
    # The finished rows of the second map stay for the next run.
    found = contents_of_files(tmp_path / "out")
    assert {k: v for k, v in found.items() if not k.startswith("unfinished_map.")} == expected
