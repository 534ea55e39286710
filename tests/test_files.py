"""Files come out whole or not at all, and say in one line why not."""

import errno
import json
import os
import sys
import warnings
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from common.command import pick_device, run
from common.files import (
    check_free_space,
    claim_folder,
    read_json,
    run_record,
    whole_file,
    write_json,
)
from psf import InputError

Usage = namedtuple("Usage", "total used free")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# --- whole_file


def test_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "table.csv"
    with whole_file(path) as partial:
        partial.write_text("half")
        assert not path.exists()
        assert partial.parent == path.parent  # a rename within one file system
        assert partial.suffix == ".csv"  # writers go by it
        partial.write_text("whole")
    assert names(tmp_path / "new") == ["table.csv"]
    assert path.read_text() == "whole"


def test_old_content_stays_until_the_new_is_whole(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with whole_file(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


@pytest.mark.parametrize("mistake", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_of_a_failure(tmp_path, mistake):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with pytest.raises(mistake), whole_file(path) as partial:
        partial.write_text("half")
        raise mistake
    assert names(tmp_path) == ["table.csv"]
    assert path.read_text() == "old"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_is_one_clear_line(tmp_path, code):
    path = tmp_path / "shard.h5"
    with pytest.raises(InputError, match=r"disk is full: .*shard\.h5 was not written"):
        with whole_file(path) as partial:
            partial.write_bytes(b"half")
            raise OSError(code, "No space left on device")
    assert names(tmp_path) == []


def test_full_disk_during_the_rename(tmp_path, monkeypatch):
    def refuse(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(InputError, match="disk is full"):
        write_json(tmp_path / "config.json", {})
    assert names(tmp_path) == []


def test_short_write_means_a_full_disk_or_a_quota(tmp_path, monkeypatch):
    """tifffile raises `OSError: 100 requested and 60 written`, without an error number."""

    def write_short():
        with whole_file(tmp_path / "map.tif"):
            raise OSError("100 requested and 60 written")

    with pytest.raises(InputError, match=r"map\.tif was not written whole \(100 requested.*quota"):
        write_short()
    monkeypatch.setattr("shutil.disk_usage", lambda folder: Usage(10**9, 10**9, 0))
    with pytest.raises(InputError, match="disk is full"):
        write_short()


@pytest.mark.parametrize(("number", "message"), [(28, "disk is full"), (27, "File too large")])
def test_errors_of_hdf5_are_told(tmp_path, number, message):
    """HDF5 raises RuntimeError when it closes a file on a full disk."""
    error = RuntimeError(f"Can't decrement id ref count (file write failed: errno = {number}, ...)")
    with pytest.raises(InputError, match=message), whole_file(tmp_path / "shard.h5"):
        raise error
    with pytest.raises(RuntimeError, match="bug"), whole_file(tmp_path / "shard.h5"):
        raise RuntimeError("bug")


def test_read_only_disk_is_one_clear_line(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", refuse)
    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(InputError, match="cannot be written: Read-only file system"):
        write_json(tmp_path / "run.json", {})


def test_folder_that_cannot_be_written(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(InputError, match=r"run\.json cannot be written: Permission denied"):
        write_json(tmp_path / "run.json", {})


def test_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "taken").write_text("a file")
    for path in (tmp_path / "taken" / "run.json", tmp_path / "taken" / "deep" / "run.json"):
        with pytest.raises(InputError, match=r"run\.json cannot be written"):
            write_json(path, {})
    assert (tmp_path / "taken").read_text() == "a file"


def test_other_errors_keep_their_traceback(tmp_path):
    with pytest.raises(OSError, match="weather"), whole_file(tmp_path / "a"):
        raise OSError(errno.EIO, "weather")


# --- JSON


def test_json_round_trip(tmp_path):
    content = {"names": ["focus"], "range": [0.0, 4.0], "µ": None}
    write_json(tmp_path / "config.json", content)
    assert read_json(tmp_path / "config.json", "run") == content


@pytest.mark.parametrize("content", [b"", b'{"a": ', b"[1, 2]", b"\xff\xfe\x00"])
def test_damaged_json_is_named(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"config\.json is damaged.*is no checkpoint"):
        read_json(path, "checkpoint")


def test_missing_json_is_named(tmp_path):
    with pytest.raises(InputError, match=r"config\.json is missing: .* is no checkpoint"):
        read_json(tmp_path / "config.json", "checkpoint")


# --- folders


def test_new_empty_and_own_folders_can_be_claimed(tmp_path):
    config = {"seed": 0, "range": (0.0, 4.0)}  # a tuple is a list in JSON
    (tmp_path / "empty").mkdir()
    for name in ("new", "empty"):
        claim_folder(tmp_path / name, config, "training set")
        assert json.loads((tmp_path / name / "config.json").read_text())["range"] == [0, 4]
        claim_folder(tmp_path / name, config, "training set")


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ({"seed": 1, "a": 2}, "seed"),
        ({"seed": 0}, "a"),
        ({"seed": 0, "a": 2, "b": 3}, "b"),
        ({"seed": 0, "a": {"b": 2}}, "a"),
    ],
)
def test_folder_of_another_configuration_is_refused(tmp_path, other, difference):
    claim_folder(tmp_path / "x", {"seed": 0, "a": 2}, "training set")
    before = (tmp_path / "x" / "config.json").read_bytes()
    with pytest.raises(InputError, match=rf"different configuration \({difference}\)"):
        claim_folder(tmp_path / "x", other, "training set")
    assert (tmp_path / "x" / "config.json").read_bytes() == before


def test_refusal_names_the_settings_in_a_group_unless_they_are_many(tmp_path):
    held = {"group": {"rate": 1, "same": 0}, "hashes": {f"{n}.png": "a" for n in range(9)}}
    other = {"group": {"rate": 2, "same": 0}, "hashes": {f"{n}.png": "b" for n in range(9)}}
    claim_folder(tmp_path, held, "training run")
    with pytest.raises(InputError, match=r"different configuration \(group\.rate, hashes\)"):
        claim_folder(tmp_path, other, "training run")


def test_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.doc").write_text("precious")
    with pytest.raises(InputError, match="is not empty and holds no training set"):
        claim_folder(tmp_path, {}, "training set")
    assert names(tmp_path) == ["thesis.doc"]


def test_free_space_is_checked_before_the_work(tmp_path, monkeypatch):
    asked = []

    def usage(folder):
        asked.append(folder)
        return Usage(2 * 10**9, 10**9, 10**9)

    monkeypatch.setattr("shutil.disk_usage", usage)
    check_free_space(tmp_path / "a" / "b", 10**9)
    with pytest.raises(InputError, match=r"needs 1\.5 GB and the disk has 1\.0 GB left"):
        check_free_space(tmp_path / "a" / "b", 1_500_000_000)
    assert asked == [tmp_path, tmp_path]  # of folders that do not exist yet, the parent


def test_run_record_says_where_a_result_came_from():
    record = run_record(minutes=3)
    assert record["minutes"] == 3
    assert record["versions"]["numpy"] == np.__version__
    json.dumps(record)


# --- command line


@dataclass(frozen=True)
class Counting:
    count: int = 1


def count(config):
    """What a script's `main` may do."""
    warnings.warn("careful", stacklevel=2)
    if config.count < 0:
        raise InputError(f"--count is {config.count};\ngive 0 or more.")
    if config.count == 0:
        raise KeyboardInterrupt
    if config.count > 5:
        raise ZeroDivisionError
    print("done", config.count)


@pytest.fixture
def call(monkeypatch, capsys):
    """Run `count` as a command; (exit code, stdout, lines of stderr)."""

    def called(*arguments):
        monkeypatch.setattr(sys, "argv", ["count.py", *arguments])
        monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # `run` changes it
        code = 0
        try:
            run(Counting, count, "Count.\n\nMore.")
        except SystemExit as end:
            code = end.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err.splitlines()

    return called


@pytest.mark.filterwarnings("always")
def test_a_warning_is_shown_once(monkeypatch, capsys):
    def main(config):
        for text in ("careful", "careful", "other"):
            warnings.warn(text, stacklevel=1)

    monkeypatch.setattr(sys, "argv", ["count.py"])
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    run(Counting, main, "Count.")
    assert capsys.readouterr().err.splitlines() == ["warning: careful", "warning: other"]


@pytest.mark.filterwarnings("always")
def test_command_line_speaks_in_single_lines(call):
    assert call("--count", "2") == (0, "done 2\n", ["warning: careful"])
    code, out, err = call("--count", "-1")
    assert (code, out) == (2, "")
    assert err == ["warning: careful", "error: --count is -1; give 0 or more."]
    code, _, err = call("--count", "0")
    assert code == 130
    assert err[1].startswith("interrupted")
    code, _, err = call("--count", "many")
    assert code == 2
    assert "many" in "".join(err)


@pytest.mark.filterwarnings("ignore")
def test_a_bug_keeps_its_traceback(call):
    with pytest.raises(ZeroDivisionError):
        call("--count", "6")


@pytest.mark.parametrize("name", ["cuda:99", "abacus"])
def test_absent_device_is_refused(name):
    with pytest.raises(InputError, match=f"device '{name}' is not available here"):
        pick_device(name)


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_the_fastest_device_is_taken(monkeypatch, cuda, mps, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert pick_device("auto") == torch.device(expected)
    assert pick_device("cpu") == torch.device("cpu")
