"""An output folder holds one run, whole, after any failure and any kill."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
from collections import namedtuple
from pathlib import Path

import pytest

from common.command import next_command
from common.files import check_out_folder, run_record, write_json
from common.output import NEW, files_of_record, hold_folder, new_result, write_record
from psf import InputError

MADE = ("a.txt", "b.txt")
# The forked processes start from a clean server, which has imported the modules already.
SERVER = multiprocessing.get_context("forkserver")
Usage = namedtuple("Usage", "total used free")


def make(out, **texts):
    """A result of files with these texts."""
    with new_result(out, "run.json", MADE) as folder:
        for name, text in texts.items():
            (folder / f"{name}.txt").write_text(text)
        write_record(folder / "run.json", run_record(**texts))


def texts(out):
    return {p.name: p.read_text() for p in out.iterdir() if p.name != "run.json"}


# --- one run


def test_second_run_leaves_none_of_the_files_of_the_first(tmp_path):
    out = tmp_path / "deep" / "out"
    make(out, a="first", b="first")
    assert texts(out) == {"a.txt": "first", "b.txt": "first"}
    assert json.loads((out / "run.json").read_text())["files"] == ["a.txt", "b.txt", "run.json"]
    make(out, a="second")
    assert texts(out) == {"a.txt": "second"}


def test_files_of_the_user_stay(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    make(tmp_path, a="first", b="first")
    make(tmp_path, a="second")
    assert texts(tmp_path) == {"a.txt": "second", "notes.txt": "mine"}


@pytest.mark.parametrize("name", ["a.txt", "run.json"])
def test_file_that_no_run_wrote_is_not_overwritten(tmp_path, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match=rf"holds {name}, which is not listed in a run\.json"):
        make(tmp_path, a="new")
    assert texts(tmp_path) | {"run.json": "{}"} == {name: "{}", "run.json": "{}"}


def test_files_of_an_earlier_version_are_known_by_their_names(tmp_path):
    write_json(tmp_path / "run.json", run_record())
    (tmp_path / "b.txt").write_text("old")
    make(tmp_path, a="new")
    assert texts(tmp_path) == {"a.txt": "new"}


def test_a_record_cannot_name_files_elsewhere(tmp_path):
    listed = ["../precious", "notes.txt", 3, "b.txt"]
    write_json(tmp_path / "run.json", run_record(files=listed))
    assert files_of_record(tmp_path / "run.json", MADE) == ["b.txt"]


@pytest.mark.parametrize("mistake", [InputError, RuntimeError, KeyboardInterrupt])
def test_failure_leaves_the_last_result(tmp_path, mistake):
    make(tmp_path / "out", a="first", b="first")
    for out in (tmp_path / "out", tmp_path / "new" / "deep"):
        with pytest.raises(mistake), new_result(out, "run.json", MADE) as folder:
            (folder / "a.txt").write_text("half")
            raise mistake
    assert texts(tmp_path / "out") == {"a.txt": "first", "b.txt": "first"}
    assert os.listdir(tmp_path) == ["out"]


# --- killed


def make_and_die(out, operation):
    """Make a second result; die before the file operation of this number."""
    left = operation

    def mortal(function):
        def called(*arguments, **options):
            nonlocal left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return function(*arguments, **options)

        return called

    for name in ("replace", "unlink", "rmdir"):
        setattr(os, name, mortal(getattr(os, name)))
    make(out, a="second")


def test_killed_run_is_replaced_by_the_same_command(tmp_path):
    SERVER.set_forkserver_preload(["common.output"])
    for operation in range(30):
        out = tmp_path / str(operation)
        make(out, a="first", b="first")
        process = SERVER.Process(target=make_and_die, args=(out, operation))
        process.start()
        process.join()
        if (out / "run.json").exists():  # then the result is that of one run
            whole = {k: v for k, v in texts_of_files(out).items() if k != "run.json"}
            assert whole in ({"a.txt": "first", "b.txt": "first"}, {"a.txt": "second"})
        make(out, a="second")
        assert texts(out) == {"a.txt": "second"}
        if process.exitcode == 0:
            break
    assert process.exitcode == 0 and operation > 5


def texts_of_files(out):
    return {p.name: p.read_text() for p in out.iterdir() if p.is_file()}


def test_half_written_files_of_killed_runs_go(tmp_path):
    mine = ("part.partial.txt", "a.7.partial.d.txt", "state.safetensors")
    for name in (*mine, "state.123.partial.safetensors", "b.5.partial"):
        (tmp_path / name).write_text("")
    with hold_folder(tmp_path):
        assert sorted(os.listdir(tmp_path)) == sorted(mine)


# --- two runs, full disks, read-only folders


def test_half_written_files_of_a_killed_worker_go_at_the_end(tmp_path):
    with hold_folder(tmp_path):
        (tmp_path / "train_00000.123.partial.h5").touch()
        (tmp_path / "train_00000.h5").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["train_00000.h5"]


def test_two_runs_cannot_write_one_folder(tmp_path):
    out = tmp_path / "out"
    with hold_folder(out):
        with pytest.raises(InputError, match=r"another run is writing to .*out; wait"):
            make(out, a="mixed")
        assert list(out.iterdir()) == []
        with hold_folder(tmp_path / "other"):
            pass
    make(out, a="alone")
    assert texts(out) == {"a.txt": "alone"}


def test_full_disk_while_the_files_are_replaced(tmp_path, monkeypatch):
    make(tmp_path, a="first", b="first")
    replace = os.replace

    def full(source, target):
        if Path(target).name == "a.txt":
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(InputError, match="cannot be written: No space left on device"):
            make(tmp_path, a="second")
    make(tmp_path, a="third")
    assert texts(tmp_path) == {"a.txt": "third"}


def test_read_only_folders_are_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"--out .* cannot be written"):
        make(Path("/proc/no_folder_can_be_made_here"), a="")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match="is read-only; give another folder"):
        make(tmp_path / "out", a="")
    assert list(tmp_path.iterdir()) == []


def test_places_that_are_no_folders_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "deep"):
        with pytest.raises(InputError, match="file is a file; give a folder"):
            check_out_folder(out)
    with pytest.raises(InputError, match="File name too long"):
        check_out_folder(tmp_path / ("x" * 300))


def test_leftovers_of_a_killed_start_go(tmp_path):
    (tmp_path / NEW).mkdir()
    (tmp_path / NEW / "a.txt").write_text("half")
    make(tmp_path, b="new")
    assert texts(tmp_path) == {"b.txt": "new"}
    shutil.rmtree(tmp_path)


# --- commands


def test_commands_are_quoted_and_complete():
    arguments = (Path("-a $b 'c'.tif"), ("--z", 0), ("--na", None), ("--out", Path("r/核")))
    line = next_command("deconvolve.py", *arguments)
    expected = """next: python deconvolve.py './-a $b '"'"'c'"'"'.tif' --z 0 --out r/核"""
    assert line.replace("'r/核'", "r/核") == expected
