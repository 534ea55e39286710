"""What a Dask worker does with a bundle of `common.cluster`: check it, load it, run its jobs.

Workers need no copy of the project: `common.cluster` sends them the text of this file. So it must
not import anything of the project.
"""

import io
import pickle
import platform
import sys
import tempfile
import threading
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO
from zipfile import ZipFile

WORK = "work.pickle"  # file in a bundle: the name of the script that was started, (work, jobs)


def run_job(bundle: str, seen: Sequence[str], versions: dict[str, str], index: int) -> tuple:
    """("", result of job `index` of a bundle), or (why this worker cannot do it, None)."""
    problem = find_problem(bundle, seen, versions)
    if problem:
        return problem, None
    work, jobs = _loaded(bundle)
    with _state().running:  # some caches of the project are not safe with several threads
        return "", work(jobs[index])


def find_problem(bundle: str, seen: Sequence[str], versions: dict[str, str]) -> str:
    """Why this worker cannot run the jobs of a bundle, as text; empty if it can.

    `seen` are the paths that it must see, `versions` those of the packages that it must have.
    """
    if _state().bundle == bundle:
        return ""
    where = f"the worker on {platform.node()}"
    for path in (bundle, *seen):
        if not Path(path).exists():
            path = Path(path).parent if path == bundle else path
            return (
                f"{where} does not see {path}; all workers must share this disk, under the same "
                "path. Give a folder on a shared disk."
            )
    try:
        tempfile.TemporaryFile(dir=Path(bundle).parent).close()
    except OSError as error:
        return f"{where} cannot write to {Path(bundle).parent}: {error.strerror}."
    for package, needed in versions.items():
        try:
            found = version(package)
        except PackageNotFoundError:
            return _lacks(where, package)
        # The build behind the plus sign may differ: "2.5.0+cpu" and "2.5.0+cu124".
        if found.partition("+")[0] != needed.partition("+")[0]:
            return (
                f"{where} has {package} {found}, and this computer has {needed}, so results could "
                f"differ; install {package}=={needed.partition('+')[0]} on the workers."
            )
    try:
        _loaded(bundle)
    except ModuleNotFoundError as error:
        return _lacks(where, str(error.name))
    return ""


def forget(bundle: str) -> None:
    """Release the memory of a bundle, and the names of its modules."""
    with _state().lock:
        if _state().bundle == bundle:
            _unload()


def _lacks(where: str, package: str) -> str:
    return (
        f"{where} lacks the package {package}; run pip install -r requirements.txt in the Python "
        "environment of all workers."
    )


def _state() -> ModuleType:
    """What is loaded in this process; tasks run copies of this file with globals of their own."""
    fresh = ModuleType("_loaded_bundle")
    fresh.lock, fresh.running = threading.Lock(), threading.Lock()
    fresh.bundle, fresh.content, fresh.path, fresh.names = "", None, "", frozenset()
    return sys.modules.setdefault(fresh.__name__, fresh)


def _loaded(bundle: str) -> tuple[Any, Sequence[Any]]:
    """(work, jobs) of a bundle, whose code can be imported from now on."""
    state = _state()
    with state.lock:
        if state.bundle != bundle:
            _unload()
            with ZipFile(bundle) as file:
                sources = [name for name in file.namelist() if name.endswith(".py")]
                content = io.BytesIO(file.read(WORK))
            state.names = frozenset(n.partition("/")[0].removesuffix(".py") for n in sources)
            _remove_modules(state.names)
            state.path = bundle
            sys.path.insert(0, bundle)  # Python imports from ZIP files
            script = pickle.load(content)
            state.content = _Unpickler(content, script).load()
            state.bundle = bundle
        return state.content


def _unload() -> None:
    state = _state()
    if state.path:
        sys.path.remove(state.path)
        _remove_modules(state.names)
    state.bundle, state.content, state.path = "", None, ""


def _remove_modules(names: frozenset[str]) -> None:
    """Remove the modules that the bundle replaces, so that the next import finds those in it."""
    for name in [name for name in sys.modules if name.partition(".")[0] in names]:
        del sys.modules[name]


class _Unpickler(pickle.Unpickler):
    """Finds what the client defined in its `__main__` in the script that was started there."""

    def __init__(self, file: BinaryIO, script: str) -> None:
        super().__init__(file)
        self.script = script

    def find_class(self, module: str, name: str) -> Any:
        return super().find_class(self.script if module == "__main__" else module, name)
