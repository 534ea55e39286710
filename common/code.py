"""Which files of the project a module runs, so that a stored result can be tied to its code."""

import ast
from functools import cache
from pathlib import Path


def imported_files(root: Path, *modules: str) -> list[Path]:
    """Files below `root` of modules, and of all that they import, sorted.

    Imports inside functions count. Modules that are not below `root` are left out.
    """
    found: set[Path] = set()
    waiting = [path for module in modules for path in _files_of(root, module)]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += [p for name in _imports(path) for p in _files_of(root, name)]
    return sorted(found)


@cache
def _imports(path: Path) -> list[str]:
    """Dotted names in a file that may be modules; `from a import b` names a and a.b."""
    names = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


def _files_of(root: Path, module: str) -> list[Path]:
    """File of a module, if there is one, and `__init__.py` of each package around it."""
    parts = module.split(".")
    packages = [root.joinpath(*parts[:n], "__init__.py") for n in range(1, len(parts) + 1)]
    file = root.joinpath(*parts).with_suffix(".py")
    return [path for path in (*packages, file) if path.is_file()]
