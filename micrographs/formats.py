"""Packages that read further formats: asked for when a file needs them, never before."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from psf.errors import InputError


def needed(package: str, path: Path) -> ModuleType:
    """An optional package, imported.

    Raises
    ------
    InputError
        If it is missing; it says how to install it.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        name = package.partition(".")[0]
        raise InputError(
            f"{path} needs the package {name}: pip install -r requirements-formats.txt, or export "
            "the image as OME-TIFF."
        ) from error


@contextmanager
def foreign_errors() -> Iterator[None]:
    """Turn any error of an optional package into a ValueError, one of DECODE_ERRORS.

    These packages name no class of errors that they raise on a damaged file.
    """
    try:
        yield
    except (InputError, ValueError):
        raise
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
