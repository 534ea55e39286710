"""Optional packages: imported when they are needed, never before."""

import importlib
from types import ModuleType

from psf.errors import InputError


def needed(
    module: str, what: str, requirements: str, otherwise: str = "", package: str = ""
) -> ModuleType:
    """Module of an optional package, imported.

    Parameters
    ----------
    module : to import, e.g. "nd2"
    what : what the user asked for, e.g. an option or the path of a file
    requirements : file with the packages of this extra, e.g. "requirements-formats.txt"
    otherwise : what the user can do without the package
    package : that holds the module; by default its first name

    Raises
    ------
    InputError
        If the package is missing; it says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = package or module.partition(".")[0]
        or_else = f", or {otherwise}" if otherwise else ""
        raise InputError(
            f"{what} needs the package {package}: pip install -r {requirements}{or_else}"
        ) from error
