"""Jobs give the same results in this process, in a local pool and on a Dask cluster.

The tests on a cluster need the package distributed (requirements-cluster.txt). Their workers are
started in another folder, so they do not find the project's code by themselves.
"""

import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from importlib.metadata import version

import pytest
import torch
from dask_processes import needs_dask, running_scheduler, running_workers

import generate_training_set
import reproduce
from common import cluster, worker
from common.cluster import Cluster, check_cluster
from common.files import PACKAGES
from common.jobs import run_jobs
from psf import InputError

VERSIONS = {name: version(name) for name in PACKAGES}
# A module that only this process and the workers of the fixture can import.
JOBS = '''
import os, time
from pathlib import Path

def write_pid(job, folder):
    """The job; who works on it, and how often, is written down."""
    with (Path(folder) / f"{job}.txt").open("a") as file:
        file.write(f"{os.getpid()}\\n")
    time.sleep(0.3)
    return job

def refuse(job):
    from psf.errors import InputError
    raise InputError(f"job {job} is refused")

def die(job):
    os._exit(1)
'''


@pytest.mark.parametrize("workers", [1, 2])
def test_every_job_is_done_once(workers):
    assert sorted(run_jobs(abs, [-3, -2, 1], workers)) == [1, 2, 3]
    assert list(run_jobs(abs, [], workers)) == []


def test_threads_are_the_same_after_work_in_this_process():
    before = torch.get_num_threads()
    list(run_jobs(torch.set_num_threads, [before + 1], 1))
    assert torch.get_num_threads() == before


def test_missing_package_is_named(monkeypatch, tmp_path, gaussian_config):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(InputError, match=r"pip install -r requirements-cluster\.txt"):
        check_cluster("tcp://127.0.0.1:8786")
    config = replace(gaussian_config, out=tmp_path / "data", dask="tcp://127.0.0.1:8786")
    with pytest.raises(InputError, match="--dask needs the package distributed"):
        generate_training_set.main(config)
    assert not config.out.exists()


# --- what a worker finds out about itself


def test_a_worker_names_the_disk_that_it_does_not_see(tmp_path):
    missing = str(tmp_path / "elsewhere" / "jobs.1.partial.zip")
    found = worker.find_problem(missing, [], VERSIONS)
    assert f"does not see {tmp_path / 'elsewhere'}; all workers must share this disk" in found
    (tmp_path / "jobs.1.partial.zip").touch()
    images = str(tmp_path / "images")
    found = worker.find_problem(str(tmp_path / "jobs.1.partial.zip"), [images], VERSIONS)
    assert f"does not see {images}" in found


@pytest.mark.parametrize(
    ("versions", "message"),
    [
        ({"no-such-package": "1.0"}, "lacks the package no-such-package; run pip install"),
        ({"numpy": "0.1+cpu"}, rf"has numpy {VERSIONS['numpy']}, and .* numpy==0\.1 on the work"),
    ],
)
def test_a_worker_names_the_package_that_differs(tmp_path, versions, message):
    bundle = tmp_path / "jobs.1.partial.zip"
    bundle.touch()
    assert re.search(message, worker.find_problem(str(bundle), [], versions))


@pytest.mark.slow
def test_a_worker_runs_the_code_of_the_bundle(tmp_path, monkeypatch):
    """It has another module `common`, and the work is defined in the script that was started."""
    (tmp_path / "common.py").write_text("stale = True")
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "reproduce.py")
    monkeypatch.setattr(sys.modules["__main__"], "Config", reproduce.Config, raising=False)
    monkeypatch.setattr(reproduce.Config, "__module__", "__main__")
    bundle = tmp_path / "jobs.1.partial.zip"
    scope = cluster._scope("run_job", str(bundle), [], VERSIONS, 1)
    end = cluster._scope("forget", str(bundle))
    program = (
        "import common, pickle, sys\n"
        "call, scope, end = pickle.load(sys.stdin.buffer)\n"
        "problem, result = eval(call, scope)\n"
        "assert problem == '', problem\n"
        "where = sys.modules['common.command'].__file__\n"
        "assert where.startswith(scope['arguments'][0])\n"
        "print(type(result).__module__, result.only)\n"
        "eval(call, end)\n"
        "assert 'common' not in sys.modules and sys.path[0] == ''\n"
    )
    with cluster._bundle(bundle, partial(reproduce.Config, "quick"), ["a", "b"]):
        command = [sys.executable, "-c", program]
        content = pickle.dumps((cluster.CALL, scope, end))
        done = subprocess.run(command, input=content, capture_output=True, cwd=tmp_path)
    assert done.stdout.decode().split() == ["reproduce", "b"], done.stderr.decode()
    assert not bundle.exists()


# --- on a cluster


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory):
    """Address of a scheduler without workers."""
    with running_scheduler(tmp_path_factory.mktemp("dask")) as address:
        yield address


@pytest.fixture(scope="module")
def two_workers(scheduler, tmp_path_factory):
    """Address of a scheduler with two workers, which can import JOBS as `jobs_of_test`."""
    folder = tmp_path_factory.mktemp("workers")
    (folder / "jobs_of_test.py").write_text(JOBS)
    with running_workers(scheduler, 2, folder), pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield scheduler


@needs_dask
def test_scheduler_without_workers(scheduler, monkeypatch):
    monkeypatch.setattr(cluster, "CONNECT_S", 5)
    with pytest.raises(InputError, match=r"has no workers after 5 s; start some with `dask worker"):
        check_cluster(scheduler)


@needs_dask
@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("tcp://127.0.0.1:{closed}", "no Dask scheduler answers at .* within 1 s; start one"),
        ("tcp://127.0.0.1:{silent}", "no Dask scheduler answers at .* within 1 s; start one"),
        ("tcp://127.0.0.1:{other}", "not the address of a Dask scheduler"),
        ("tcp://127.0.0.1", "not the address of a Dask scheduler .*missing port number"),
        ("http://127.0.0.1:8787", "not the address of a Dask scheduler .*unknown address scheme"),
        ("", "not the address of a Dask scheduler"),
    ],
)
def test_address_without_a_scheduler(address, message, monkeypatch):
    monkeypatch.setattr(cluster, "CONNECT_S", 1)
    with socket.socket() as closed, socket.socket() as silent, socket.socket() as other:
        for one in (closed, silent, other):
            one.bind(("127.0.0.1", 0))
        silent.listen()
        other.listen()
        threading.Thread(target=greet, args=(other,), daemon=True).start()
        names = {"closed": closed, "silent": silent, "other": other}
        ports = {name: one.getsockname()[1] for name, one in names.items()}
        with pytest.raises(InputError, match=message):
            check_cluster(address.format(**ports))
        other.shutdown(socket.SHUT_RDWR)


def greet(server):
    """Answer as an HTTP server does to what it does not understand."""
    with suppress(OSError):
        while True:
            with server.accept()[0] as connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


@needs_dask
def test_address_of_a_worker(two_workers):
    import distributed

    with distributed.Client(two_workers, set_as_default=False) as client:
        address = next(iter(client.scheduler_info()["workers"]))
    with pytest.raises(InputError, match=r"it belongs to a Dask worker"):
        check_cluster(address)


@needs_dask
def test_jobs_of_a_killed_worker_are_done_by_the_other_one(two_workers, tmp_path):
    import jobs_of_test

    work = partial(jobs_of_test.write_pid, folder=str(tmp_path))
    results, killed = [], None
    for job in run_jobs(work, list(range(8)), 1, Cluster(two_workers, tmp_path)):
        results.append(job)
        if killed is None:
            running = [p for p in tmp_path.glob("*.txt") if int(p.stem) not in results]
            killed = int(running[0].read_text())
            os.kill(killed, signal.SIGKILL)
    assert sorted(results) == list(range(8))
    done_by = [path.read_text().split() for path in tmp_path.glob("*.txt")]
    assert len(done_by) == 8
    assert any(pids[0] == str(killed) and len(pids) == 2 for pids in done_by)
    assert not list(tmp_path.glob("*.zip"))


@needs_dask
def test_an_early_end_takes_the_jobs_off_the_cluster(two_workers, tmp_path):
    import distributed
    import jobs_of_test

    work = partial(jobs_of_test.write_pid, folder=str(tmp_path))
    with (
        pytest.raises(KeyboardInterrupt),
        closing(run_jobs(work, list(range(30)), 1, Cluster(two_workers, tmp_path))) as results,
    ):
        next(results)
        raise KeyboardInterrupt
    with distributed.Client(two_workers, set_as_default=False) as client:
        assert client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)) == 0
    assert len(list(tmp_path.glob("*.txt"))) < 10
    assert not list(tmp_path.glob("*.zip"))


@needs_dask
def test_workers_that_do_not_see_the_images_are_found_before_the_work(two_workers, tmp_path):
    import jobs_of_test

    work = partial(jobs_of_test.write_pid, folder=str(tmp_path))
    place = Cluster(two_workers, tmp_path, (tmp_path / "images",))
    with pytest.raises(InputError, match=r"does not see .*images; all workers must share"):
        list(run_jobs(work, [1, 2], 1, place))
    assert not list(tmp_path.iterdir())


@needs_dask
def test_mistakes_and_deaths_of_the_work_are_one_line(two_workers, tmp_path):
    import jobs_of_test

    with pytest.raises(InputError, match="job 5 is refused"):
        list(run_jobs(jobs_of_test.refuse, [5], 1, Cluster(two_workers, tmp_path)))
    with pytest.raises(InputError, match=r"4 workers .* died of the same job.* --memory-limit"):
        list(run_jobs(jobs_of_test.die, [0], 1, Cluster(two_workers, tmp_path)))


@needs_dask
@pytest.mark.slow
def test_shards_have_the_same_bytes_after_a_killed_worker(two_workers, tmp_path, gaussian_config):
    import distributed

    config = replace(gaussian_config, train_patches=3 * 1024, out=tmp_path / "pool", workers=2)
    generate_training_set.main(config)
    out, died = tmp_path / "cluster", []

    def kill_busy_worker():
        with distributed.Client(two_workers, set_as_default=False) as client:
            while not list(out.glob("*.h5")):
                time.sleep(0.01)
            busy = [address for address, keys in client.processing().items() if keys]
            pids = client.run(os.getpid, workers=busy[:1])
            died.extend(pids.values())
            os.kill(died[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_busy_worker)
    killer.start()
    generate_training_set.main(replace(config, out=out, dask=two_workers))
    killer.join()
    assert len(died) == 1
    names = sorted(path.name for path in config.out.iterdir())
    assert sorted(path.name for path in out.iterdir()) == names
    assert len(names) == 8
    for name in names:
        if name != "run.json":
            assert (out / name).read_bytes() == (config.out / name).read_bytes(), name
