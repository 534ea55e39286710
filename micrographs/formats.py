"""Packages that read further formats: asked for when a file needs them, never before."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from common.addresses import as_typed
from common.extras import needed
from psf.errors import InputError


def reading_package(module: str, path: Path) -> ModuleType:
    """Module of an optional package that reads the file at `path`; see `needed`."""
    return needed(
        module, as_typed(path), "requirements-formats.txt", "export the image as OME-TIFF."
    )


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
