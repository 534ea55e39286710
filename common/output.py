"""Output folders: one run at a time writes to a folder, and its result appears whole or not at all.

    with new_result(config.out, "config.json", NAMES) as folder:
        ...                                             # write the files of NAMES to `folder`
        write_record(folder / "config.json", {...})     # last: it lists them

At the end of the block the files replace those of the last run. Until then, and after a failure,
the last result stays as it is.
"""

import contextlib
import functools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.files import check_out_folder, write_json
from psf.errors import InputError

try:
    import fcntl
except ImportError:  # Windows: a second run is not noticed there
    fcntl = None

NEW = ".unfinished_run"  # folder inside the output folder for files that are not complete yet
PLAN = "complete.json"  # file in NEW: its files are complete, and these of the last run must go
# Names of `common.files.whole_file`, which a killed run leaves behind.
PARTIAL = re.compile(r".+\.\d+\.partial(\.[^.]+)?")


@contextlib.contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Keep an output folder for this run until the end of the block.

    The folder is made, and files that killed runs or processes left half-written are deleted, at
    the start and at the end. The end of a failed run deletes the folder if the run made it and it
    is empty.

    Raises
    ------
    InputError
        If the folder cannot be written, or another run is writing to it.
    """
    check_out_folder(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    with contextlib.ExitStack() as stack:
        with _told(folder):
            folder.mkdir(parents=True, exist_ok=True)
            stack.callback(_remove_empty, made)
            stack.enter_context(_locked(folder))
            _remove_partial(folder)
        yield
        with _told(folder):
            _remove_partial(folder)


def holds_out_folder(main: Callable[[Any], None]) -> Callable[[Any], None]:
    """Decorate the `main` of a script: its folder --out belongs to one run, see `hold_folder`."""

    @functools.wraps(main)
    def held(config: Any) -> None:
        with hold_folder(config.out):
            main(config)

    return held


@contextlib.contextmanager
def new_result(folder: Path, record: str, names: Sequence[str]) -> Iterator[Path]:
    """Yield an empty folder for the files of a new result, which then replaces the last one.

    Files of the last run are deleted, as far as its record lists them. Other files stay.

    Parameters
    ----------
    folder : output folder
    record : name of the file that lists all others, see `write_record`
    names : of all files that the script may write

    Raises
    ------
    InputError
        If the folder cannot be written, another run is writing to it, or it holds a file of these
        names that is not from a run of this script.
    """
    with hold_folder(folder):
        new = folder / NEW
        with _told(folder):
            if (new / PLAN).is_file():  # the last run was killed while it replaced the files
                _replace(folder)
            shutil.rmtree(new, ignore_errors=True)
            held = files_of_record(folder / record, names)
            foreign = [n for n in (*names, record) if n not in held and (folder / n).exists()]
            if foreign:
                raise InputError(
                    f"--out {folder} holds {foreign[0]}, which is not listed in a {record} of this "
                    "script; give another folder, or remove the file."
                )
            new.mkdir()
        try:
            yield new
            with _told(folder):
                write_json(new / PLAN, {"record": record, "remove": held})
                _replace(folder)
        finally:
            if not (new / PLAN).exists():
                shutil.rmtree(new, ignore_errors=True)


def write_record(path: Path, content: Mapping[str, Any]) -> None:
    """Write the record of a result: the content, and the names of all files beside it."""
    names = {path.name, *(file.name for file in path.parent.iterdir())}
    write_json(path, {**content, "files": sorted(names)})


def files_of_record(path: Path, names: Sequence[str]) -> list[str]:
    """Names of the files of the run whose record is at `path`; empty if there is no such run.

    Earlier versions did not list them; their files have these `names`.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    if not isinstance(record, dict) or "written" not in record:  # of `common.files.run_record`
        return []
    listed = record.get("files", [*names, path.name])
    return [name for name in listed if isinstance(name, str) and name in (*names, path.name)]


def _replace(folder: Path) -> None:
    """Put the new files in the place of the old ones; the record goes first and comes last.

    A folder without its record holds no result. So nobody reads old and new files together, and
    the next run can go on after a kill.
    """
    new = folder / NEW
    plan = json.loads((new / PLAN).read_text(encoding="utf-8"))
    record = plan["record"]
    fresh = {path.name for path in new.iterdir()} - {PLAN, record}
    if (new / record).exists():
        (folder / record).unlink(missing_ok=True)
        for name in fresh:
            _delete(folder / name)
            os.replace(new / name, folder / name)
        kept = set(json.loads((new / record).read_text(encoding="utf-8"))["files"])
        for name in set(plan["remove"]) - kept:
            _delete(folder / name)
        os.replace(new / record, folder / record)
    shutil.rmtree(new)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock a folder; the system gives the lock back when the process ends, also after a kill."""
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"another run is writing to {folder}; wait for it, or give another --out."
            ) from error
        except OSError:  # some network file systems have no locks
            pass
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Turn the system's errors of a place that cannot be written into a message to the user."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"--out {folder} cannot be written: {reason}.") from error


def _remove_partial(folder: Path) -> None:
    for path in folder.iterdir():
        if PARTIAL.fullmatch(path.name) and path.is_file():
            path.unlink()


def _delete(path: Path) -> None:
    """Delete a file or a folder, e.g. an OME-Zarr, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _remove_empty(folders: Sequence[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()
