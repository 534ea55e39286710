"""Many jobs at once: in this process, in a pool of local processes, or on a Dask cluster."""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from common.cluster import Cluster, cluster_results

Job, Result = TypeVar("Job"), TypeVar("Result")


def run_jobs(
    work: Callable[[Job], Result],
    jobs: Sequence[Job],
    workers: int,
    cluster: Cluster | None = None,
) -> Iterator[Result]:
    """Results of `work(job)` for every job, each as soon as it is there.

    Parameters
    ----------
    work : function, or partial of one, that pickle can send to another process. It may run twice
        for the same job if a Dask worker is lost. So it must write a file whole or not at all, and
        twice the same.
    workers : number of local processes; 1 means this process. A cluster does not use it.
    cluster : where to run the jobs instead

    Raises
    ------
    InputError
        If the cluster cannot do the work, see `common.cluster.cluster_results`.
    """
    if cluster is not None and jobs:
        yield from cluster_results(work, jobs, cluster)
        return
    if workers == 1 or len(jobs) < 2:
        threads = torch.get_num_threads()  # the work may change it
        yield from map(work, jobs)
        torch.set_num_threads(threads)
        return
    # spawn is safe with PyTorch's threads and works on every system
    with multiprocessing.get_context("spawn").Pool(min(workers, len(jobs))) as pool:
        yield from pool.imap_unordered(work, jobs)
