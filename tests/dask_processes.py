"""A Dask scheduler and workers for tests, started in folders from which they see no project."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

needs_dask = pytest.mark.skipif(
    find_spec("distributed") is None,
    reason="needs the package distributed: pip install -r requirements-cluster.txt",
)


def start_dask(folder: Path, *arguments: object) -> subprocess.Popen:
    """A Dask process that can import the modules in a folder, but not the project."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment["PYTHONPATH"] = str(folder)
    command = [sys.executable, "-m", "dask", *map(str, arguments)]
    with (folder / f"{arguments[0]}.log").open("w") as log:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)


@contextmanager
def running_scheduler(folder: Path) -> Iterator[str]:
    """Address of a scheduler without workers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ("--host", "127.0.0.1", "--port", port, "--no-dashboard")
    process = start_dask(folder, "scheduler", *options)
    try:
        yield f"tcp://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@contextmanager
def running_workers(scheduler: str, count: int, folder: Path) -> Iterator[None]:
    """Some workers of a scheduler; Dask starts killed ones again."""
    options = ("--nworkers", count, "--nthreads", 1, "--no-dashboard", "--local-directory", folder)
    process = start_dask(folder, "worker", scheduler, *options)
    try:
        import distributed

        with distributed.Client(scheduler, set_as_default=False) as client:
            client.wait_for_workers(count, timeout=60)
        yield
    finally:
        process.terminate()
        process.wait()
