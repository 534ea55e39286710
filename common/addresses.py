"""Addresses of images that lie on no disk of this computer, in options of the type Path."""

import re
from pathlib import Path
from typing import Any

# One or several protocols of fsspec, e.g. s3 or simplecache::s3. A single letter is a disk of
# Windows.
PROTOCOL = re.compile(r"((?:[a-z][a-z0-9+.-]+::)*[a-z][a-z0-9+.-]+):/+")


def address_of(path: Path) -> str | None:
    """Address that fsspec takes, e.g. s3://bucket/image.zarr; None for a path on a disk.

    A Path folds the two slashes of an address into one.
    """
    text = path.as_posix()
    found = PROTOCOL.match(text)
    if found is None:
        return None
    slashes = ":///" if found[1].endswith("file") else "://"
    return f"{found[1]}{slashes}{text[found.end() :]}"


def as_typed(path: Path) -> str:
    """A path, or an address, as the user gives it on the command line."""
    return address_of(path) or str(path)


def stamp_of(path: Path) -> dict[str, Any]:
    """What tells a file from a later one of the same name: a key for work that goes on with it.

    Of an address only the name is known.
    """
    if address := address_of(path):
        return {"image": address}
    stat = path.stat()
    return {"image": str(path.resolve()), "bytes": stat.st_size, "changed": stat.st_mtime}
