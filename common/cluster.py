"""Jobs on an existing Dask cluster, whose workers share a disk with this computer.

The work and the project's code travel in one file in the output folder, the bundle. So the workers
need the packages of requirements.txt, but no copy of the project, and all run the same code.
"""

import asyncio
import contextlib
import inspect
import logging
import pickle
import sys
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any
from zipfile import ZipFile

from common import worker
from common.extras import needed
from common.files import PACKAGES, process_number, writing
from psf.errors import InputError

ROOT = Path(__file__).parents[1]  # of the project's code
CONNECT_S = 10  # seconds to wait for the scheduler, and for a first worker
# Seconds without any worker after which a run ends. Dask restarts a killed worker in a few.
LOST_S = 60
POLL_S = 5  # seconds between two looks at the number of workers
# Expression that calls a function of common/worker.py from the text of that file. Dask can send it
# to any Python, since `eval` is built in.
CALL = "(lambda names: exec(text, names) or names[function](*arguments))({'__name__': 'worker'})"


@dataclass(frozen=True)
class Cluster:
    """A Dask cluster, and the places that its workers must see under the same path as here."""

    address: str  # of the scheduler, e.g. tcp://HOST:8786
    folder: Path  # existing output folder, to which the workers write
    inputs: tuple[Path, ...] = ()  # files and folders that the workers read


def check_cluster(address: str) -> None:
    """Find out before any other work whether there is a Dask cluster with workers.

    Raises
    ------
    InputError
        If the package is missing, no Dask scheduler answers, or it has no workers.
    """
    with _connected(address):
        pass


def cluster_results(
    work: Callable[[Any], Any], jobs: Sequence[Any], cluster: Cluster
) -> Iterator[Any]:
    """Results of `work(job)` for every job, each as soon as a worker has computed it.

    Dask gives the jobs of a lost worker to another one. The end of the iteration, also an early
    one, takes all jobs off the cluster.

    Raises
    ------
    InputError
        If there is no cluster (see `check_cluster`), its workers cannot run the work, it is lost
        on the way, or several workers died of the same job.
    """
    name = f"jobs-{uuid.uuid4().hex}"  # workers remember the bundle by its name
    bundle = cluster.folder.absolute() / f"{name}.{process_number()}.partial.zip"
    seen = [str(path.absolute()) for path in cluster.inputs]
    versions = {name: version(name) for name in PACKAGES}
    arguments = (str(bundle), seen, versions)
    with _connected(cluster.address) as client, _bundle(bundle, work, jobs):
        scope = _scope("find_problem", *arguments)
        for found in client.run(eval, CALL, scope, on_error="return").values():
            _refuse(cluster, found)
        pending = [
            client.submit(eval, CALL, _scope("run_job", *arguments, index), key=f"{name}-{index}")
            for index in range(len(jobs))
        ]
        try:
            for problem, result in _finished(client, pending, cluster.address):
                _refuse(cluster, problem)
                yield result
        finally:
            client.cancel(pending)
            with contextlib.suppress(Exception):  # nothing is lost if a worker cannot be reached
                client.run(eval, CALL, _scope("forget", str(bundle)))


def _scope(function: str, *arguments: Any) -> dict[str, Any]:
    """Names in `CALL`."""
    return {"text": inspect.getsource(worker), "function": function, "arguments": arguments}


def _refuse(cluster: Cluster, found: str | Exception) -> None:
    """Raise what was found wrong with a worker, unless it is only lost: others take its jobs."""
    if isinstance(found, Exception) and not isinstance(found, OSError):
        raise found
    if isinstance(found, str) and found:
        raise InputError(f"--dask {cluster.address}: {found}")


@contextlib.contextmanager
def _bundle(path: Path, work: Callable[[Any], Any], jobs: Sequence[Any]) -> Iterator[None]:
    """Keep a file with the project's code, the work and the jobs at `path`."""
    main = Path(getattr(sys.modules["__main__"], "__file__", None) or "__main__").stem
    code = [
        *ROOT.glob("*.py"),
        *(f for p in ROOT.glob("*/__init__.py") for f in p.parent.rglob("*.py")),
    ]
    try:
        with writing(path), ZipFile(path, "w") as file:
            for source in code:
                file.write(source, source.relative_to(ROOT))
            file.writestr(worker.WORK, pickle.dumps(main) + pickle.dumps((work, jobs)))
        yield
    finally:
        path.unlink(missing_ok=True)


def _package() -> ModuleType:
    """The package `distributed`, which reports nothing by itself."""
    return needed("distributed", "--dask", "requirements-cluster.txt")


@contextlib.contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Client of a Dask cluster that has workers."""
    distributed = _package()
    with _silent():
        _find_scheduler(address)
        with warnings.catch_warnings():  # `find_problem` compares the versions that matter
            warnings.simplefilter("ignore", distributed.versions.VersionMismatchWarning)
            client = distributed.Client(address, timeout=CONNECT_S, set_as_default=False)
        with client:
            try:
                client.wait_for_workers(1, timeout=CONNECT_S)
            except TimeoutError as error:
                raise InputError(
                    f"the Dask cluster at --dask {address} has no workers after {CONNECT_S} s; "
                    f"start some with `dask worker {address} --nworkers 4 --nthreads 1`."
                ) from error
            yield client


def _find_scheduler(address: str) -> None:
    """Refuse an address at which there is no Dask scheduler.

    A Dask client that fails to connect would keep the process from ending.
    """
    from distributed.comm import connect
    from distributed.core import send_recv
    from distributed.security import Security

    async def ask() -> str:
        security = Security().get_connection_args("client")
        comm = await connect(address, timeout=CONNECT_S, **security)
        try:
            return (await send_recv(comm, op="identity"))["type"]
        finally:
            comm.abort()

    try:
        kind = asyncio.run(asyncio.wait_for(ask(), CONNECT_S + 1))
        reason = "" if kind == "Scheduler" else f"it belongs to a Dask {kind.lower()}"
    except OSError as error:
        raise InputError(
            f"no Dask scheduler answers at --dask {address} within {CONNECT_S} s; start one "
            "with `dask scheduler` and give the address that it prints."
        ) from error
    except (TypeError, ValueError) as error:  # of the address itself
        reason = str(error)
    except Exception:  # whatever Dask makes of the answer of another program
        reason = "another program answers there"
    if reason:
        raise InputError(
            f"--dask {address} is not the address of a Dask scheduler ({reason}); give the one "
            "that `dask scheduler` prints, e.g. tcp://HOST:8786."
        )


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep the log of Dask off the terminal; what the user must know is an InputError."""
    names = [n for n in logging.root.manager.loggerDict if n.startswith(("distributed", "tornado"))]
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _finished(client: Any, pending: Sequence[Any], address: str) -> Iterator[Any]:
    """Results of futures in the order in which they finish."""
    distributed = _package()
    last_seen = time.monotonic()
    while pending:
        done = []
        try:
            with client.as_current():
                done, pending = distributed.wait(pending, POLL_S, return_when="FIRST_COMPLETED")
        except TimeoutError:
            pass
        except CancelledError as error:
            raise InputError(
                f"the Dask scheduler at --dask {address} was lost; start it and its workers again. "
                "The same command continues."
            ) from error
        if done or (client.status == "running" and client.scheduler_info()["workers"]):
            last_seen = time.monotonic()
        if time.monotonic() - last_seen > LOST_S:
            raise InputError(
                f"the workers of --dask {address} have been lost for {LOST_S} s; start some. The "
                "same command continues."
            )
        for future in done:
            try:
                result = future.result()
            except distributed.scheduler.KilledWorker as error:
                raise InputError(
                    f"{error.allowed_failures + 1} workers of --dask {address} died of the same "
                    "job, probably of too little memory; start them with a higher --memory-limit."
                ) from error
            future.release()  # the worker need not keep the result
            yield result
