"""Files are written whole or not at all, and each folder has a record of how it was made."""

import contextlib
import errno
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tifffile

from psf.errors import InputError

# Errors of a place that the user may not, or cannot, write to, or not as much as this.
UNWRITABLE = (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.EISDIR)
UNWRITABLE += (errno.ENAMETOOLONG, errno.EFBIG)
CONTENT_ERRORS = (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError)
CONTENT_ERRORS += (OSError, TypeError, ValueError)
# NumPy reports a short write without the reason.
SHORT_WRITE = re.compile(r"\d+ requested and \d+ written")
HDF5_ERROR = re.compile(r"errno = (\d+)")
MOST_NAMED = 5  # values of a group in a message; a group with more differences is named itself
NEARLY_FULL_BYTES = 2**20  # of free space; with less, a short write means a full disk
# Packages whose versions can change a result.
PACKAGES = ("numpy", "scipy", "torch", "torchvision", "h5py", "scikit-image")


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; rename it on success, remove it on failure.

    Raises
    ------
    InputError
        If the disk is full or the place cannot be written.
    """
    partial = path.with_name(f"{path.stem}.{process_number()}.partial{path.suffix}")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):  # e.g. a read-only disk, on which there is no such file
            partial.unlink(missing_ok=True)


def process_number() -> int:
    """Number of this process, different from those on other computers that share the disk."""
    return os.getpid() * 2**32 + zlib.crc32(platform.node().encode())


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the system's errors of writing `path` into a message to the user.

    Raises
    ------
    InputError
        If the disk is full or the place cannot be written.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        number = _error_number(error)
        if _is_full(error, number, path.parent):
            raise InputError(f"the disk is full: {path} was not written; free space.") from error
        if SHORT_WRITE.search(str(error)):
            raise InputError(
                f"{path} was not written whole ({error}): a quota or a limit of the size of files "
                "is reached; free space."
            ) from error
        if number in UNWRITABLE:
            raise InputError(f"{path} cannot be written: {os.strerror(number)}.") from error
        raise


def _error_number(error: OSError | RuntimeError) -> int | None:
    """Number of an error of the system; HDF5 gives it in its message alone."""
    stated = HDF5_ERROR.search(str(error))
    return int(stated[1]) if stated else getattr(error, "errno", None)


def _is_full(error: OSError | RuntimeError, number: int | None, folder: Path) -> bool:
    if number is None and isinstance(error, OSError):  # tifffile and Pillow: fewer bytes written
        return folder.is_dir() and shutil.disk_usage(folder).free < NEARLY_FULL_BYTES
    return number in (errno.ENOSPC, errno.EDQUOT)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    InputError
        If the file is missing or holds no JSON object; `what` names it for the user.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing: {path.parent} is no {what}.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is damaged ({error}): {path.parent} is no {what}.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged: {path.parent} is no {what}.")
    return content


@contextlib.contextmanager
def naming_damage(path: Path, what: str) -> Iterator[None]:
    """Raise an InputError that names `path` if its content cannot be what it claims to be.

    The errors are those of Python, numpy and torch on values of a wrong type, number or size.
    """
    try:
        yield
    except InputError as error:
        if str(path) in str(error) or str(path.parent) in str(error):
            raise
        raise InputError(f"{path} is no valid {what}: {error}") from error
    except CONTENT_ERRORS as error:
        lines = str(error).splitlines() or [""]
        raise InputError(
            f"{path} is damaged and no valid {what} ({type(error).__name__}: {lines[0][:200]})."
        ) from error


def write_csv(path: Path, table: pd.DataFrame, float_format: str = "%.4g") -> None:
    """Write a table without its index, whole or not at all."""
    with whole_file(path) as partial:
        table.to_csv(partial, index=False, float_format=float_format)


def write_imagej(
    path: Path,
    pixels: np.ndarray,
    axes: str,
    pixel_um: float,
    labels: Sequence[str] = (),
    z_step_um: float | None = None,
) -> None:
    """Write a TIFF that Fiji and napari open with its scale, whole or not at all.

    Parameters
    ----------
    pixels : array of as many axes as `axes` names; uint8, uint16 or float32
    axes : letters of T, Z, C, Y, X in this order, e.g. "CYX"
    pixel_um : distance of neighbouring pixels, um
    labels : names of the channels
    z_step_um : distance of neighbouring planes, um
    """
    metadata: dict[str, Any] = {"axes": axes, "unit": "um"}
    if labels:
        metadata["Labels"] = list(labels)
    if z_step_um is not None:
        metadata["spacing"] = z_step_um
    resolution = (1 / pixel_um, 1 / pixel_um)
    with whole_file(path) as partial:
        tifffile.imwrite(partial, pixels, imagej=True, resolution=resolution, metadata=metadata)


def check_out_folder(folder: Path) -> None:
    """Refuse --out if it cannot become a folder or cannot be written, before any work is done.

    Raises
    ------
    InputError
        That names the file or folder in the way.
    """
    try:
        standing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    except OSError as error:  # e.g. the name is too long
        raise InputError(f"--out {folder} cannot be written: {error.strerror}.") from error
    if not standing.is_dir():
        raise InputError(f"--out {folder} cannot be written: {standing} is a file; give a folder.")
    if not os.access(standing, os.W_OK | os.X_OK):
        raise InputError(
            f"--out {folder} cannot be written: {standing} is read-only; give another folder."
        )


def claim_folder(
    folder: Path, config: Mapping[str, Any], what: str, name: str = "config.json"
) -> None:
    """Make `folder` the place of this configuration by writing it there under `name`.

    Raises
    ------
    InputError
        If the folder already holds another configuration, or files of something else.
    """
    path = folder / name
    if path.is_file():
        held = read_json(path, what)
        asked = json.loads(json.dumps(config))
        different = _differences(held, asked)
        if different:
            raise InputError(
                f"{folder} holds a {what} of a different configuration "
                f"({', '.join(different)}); choose another folder or remove it."
            )
        return
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty and holds no {what}; choose another folder.")
    write_json(path, config)


def _differences(held: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """Names of the values that differ, as "group.name" within a group of which few differ."""
    names = []
    for key in sorted(held.keys() | asked.keys()):
        one, other = held.get(key), asked.get(key)
        if one == other:
            continue
        groups = isinstance(one, dict) and isinstance(other, dict)
        inner = _differences(one, other) if groups else []
        names += [f"{key}.{name}" for name in inner] if 0 < len(inner) <= MOST_NAMED else [key]
    return names


def check_free_space(folder: Path, needed_bytes: int) -> None:
    """Refuse to start work that cannot fit the disk."""
    existing = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if needed_bytes > free:
        raise InputError(
            f"{folder} needs {needed_bytes / 1e9:.1f} GB and the disk has {free / 1e9:.1f} GB left."
        )


def run_record(**facts: Any) -> dict[str, Any]:
    """How a result was made: command, commit, versions, number of cores, time (UTC)."""
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "cores": os.cpu_count(),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        **facts,
    }


def code_fingerprint(*paths: Path) -> str:
    """Hash of the text of source files and of all Python files in folders.

    It is a key for what they computed.
    """
    files = (file for path in paths for file in (sorted(path.rglob("*.py")) or [path]))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _git(*arguments: str) -> str | None:
    """Answer of git about the code's own repository, or None outside of one."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
