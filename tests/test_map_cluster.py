"""A Dask cluster gives the same map and restoration as this process, to the last digit.

The tests with workers need the package distributed (requirements-cluster.txt). The workers do not
find the project's code by themselves.
"""

import os
import pickle
import signal
import sys
from dataclasses import replace

import numpy as np
import pytest
import tifffile
import torch
from dask_processes import needs_dask, running_scheduler, running_workers

import deconvolve
import estimate_psf_map
from common.jobs import run_jobs
from micrographs.micrograph import open_micrograph
from models import bands, done_rows, map_image, mapping
from models.bands import Band, BandWork, bands_per_job, in_order
from models.checkpoint import load_estimator
from models.estimator import Prediction
from models.mapping import TensorImage
from psf import InputError, Microscope
from restoration import with_map

OPTICS = {"na": 0.45, "wavelength_um": 0.5, "pixel_size_um": 0.278, "refractive_index": 1.33}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Settings of the map of a noisy texture of 330 x 410 px with hot pixels."""
    folder = tmp_path_factory.mktemp("map")
    random = np.random.default_rng(0)
    waves = np.sin(np.arange(330)[:, None] / 3) + np.sin(np.arange(410) / 4 + 1)
    counts = random.poisson(300 * (waves + 2.2)).astype(np.uint16)
    counts[random.random(counts.shape) < 1e-4] = 50_000
    tifffile.imwrite(folder / "image.tif", counts)
    return estimate_psf_map.Config(
        image=folder / "image.tif",
        out=folder / "here",
        checkpoint="zernike1d_tilted",
        stride=32,
        full_resolution=False,
        device="cpu",
        **OPTICS,
    )


# --- without a cluster


def test_missing_package_is_named_before_any_work(config, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    on_cluster = replace(config, out=tmp_path / "map", dask="tcp://127.0.0.1:8786")
    with pytest.raises(InputError, match="--dask needs the package distributed"):
        estimate_psf_map.main(on_cluster)
    assert not on_cluster.out.exists()


def test_other_devices_than_the_processors_of_the_workers_are_refused(config):
    with pytest.raises(InputError, match="not on cuda; leave --device out"):
        estimate_psf_map.main(replace(config, dask="tcp://127.0.0.1:8786", device="cuda"))


def test_a_plane_opens_its_file_again_in_another_process(tmp_path, monkeypatch):
    pixels = np.arange(2 * 3 * 40 * 50, dtype=np.uint16).reshape(2, 3, 40, 50)
    tifffile.imwrite(tmp_path / "z.tif", pixels, imagej=True, metadata={"axes": "ZCYX"})
    monkeypatch.chdir(tmp_path)
    with open_micrograph("z.tif", channel=2, z=1) as plane:
        sent = pickle.dumps(plane)
    assert len(sent) < 1000
    monkeypatch.chdir("/")
    with pickle.loads(sent) as again:
        assert (again.channel, again.z, again.t) == (2, 1, 0)
        assert np.array_equal(again.rows(3, 9).numpy(), pixels[1, 2, 3:9])


def test_jobs_hold_the_bands_of_a_map_in_this_process():
    here = bands_per_job(6, 40, 3, 100, on_cluster=False)
    there = bands_per_job(6, 40, 3, 100, on_cluster=True)
    assert here == [[(start, min(start + 3, 40))] for start in range(6, 40, 3)]
    assert [band for job in there for band in job] == [job[0] for job in here]
    assert {len(job) for job in there[:-1]} == {512 // 300}


def test_bands_are_put_in_order():
    def band(start):
        return Band(start, torch.zeros(1, 2, 4), 0.0, 1.0)

    found = in_order(iter([band(6), band(4), band(10), band(8)]), 4)
    assert [one.start for one in found] == [4, 6, 8, 10]


class ThreadReader:
    """Stands in for an estimator: every value is the number of threads."""

    patch_size = 16
    device = torch.device("cpu")

    def predict(self, patches, microscope, batch_size):
        ones = torch.ones(len(patches), 1)
        return Prediction(("threads",), "", torch.get_num_threads() * ones, ones, ones, ones[:, 0])


def test_workers_take_the_number_of_threads_of_a_local_map():
    before = torch.get_num_threads()
    image = TensorImage(torch.arange(1600.0).reshape(40, 40))
    work = BandWork(ThreadReader(), image, Microscope(), 8, False, before + 2)
    try:
        found = work([(0, 2), (2, 4)])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found.columns[0], torch.full((4, 4), before + 2.0))
    assert (found.start, found.darkest, found.brightest) == (0, 0.0, 1599.0)


def test_a_network_travels_once_without_what_it_keeps_for_later():
    estimator = load_estimator("zernike1d")
    image = TensorImage(torch.rand(200, 200))
    work = BandWork(estimator, image, Microscope(), 32, False, torch.get_num_threads())
    before = len(pickle.dumps(work))
    expected = work([(0, 2)])
    sent = pickle.dumps(work)
    assert len(sent) == before  # without `fast_network`
    assert torch.equal(pickle.loads(sent)([(0, 2)]).columns, expected.columns)


# --- on a cluster


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory):
    """Address of a scheduler without workers."""
    with running_scheduler(tmp_path_factory.mktemp("scheduler")) as address:
        yield address


@pytest.fixture
def small_jobs(monkeypatch):
    """Make several jobs of a small map, and keep its finished rows."""
    monkeypatch.setattr(done_rows, "BAND", 20)
    monkeypatch.setattr(bands, "JOB_ROWS", 1)
    monkeypatch.setattr(map_image, "RESUMED", 10)


def assert_same_files(config, other):
    for name in ("map.csv", "psf_map.tif"):
        assert (config.out / name).read_bytes() == (other.out / name).read_bytes(), name


@needs_dask
@pytest.mark.slow
@pytest.mark.parametrize("network", ["zernike1d_tilted", "focus"])
def test_the_same_bytes_as_here_with_one_and_two_workers(
    config, scheduler, small_jobs, tmp_path, network
):
    config = replace(config, checkpoint=network, out=tmp_path / "here")
    estimate_psf_map.main(config)
    for workers in (1, 2):
        there = replace(config, out=tmp_path / str(workers), device="auto", dask=scheduler)
        with running_workers(scheduler, workers, tmp_path):
            estimate_psf_map.main(there)
        assert_same_files(config, there)
        assert sorted(p.name for p in there.out.iterdir()) == sorted(
            p.name for p in config.out.iterdir()
        )


@needs_dask
@pytest.mark.slow
def test_the_same_bytes_after_a_killed_worker_and_an_interruption(
    config, scheduler, small_jobs, tmp_path, monkeypatch
):
    import distributed

    config = replace(config, out=tmp_path / "here")
    estimate_psf_map.main(config)
    there = replace(config, out=tmp_path / "there", dask=scheduler)

    def interrupted(*arguments):
        results = run_jobs(*arguments)
        for _ in range(2):
            yield next(results)
        results.close()
        raise KeyboardInterrupt

    def with_a_death(*arguments):
        assert arguments[1][0][0][0] > 0, "it begins anew"
        results = run_jobs(*arguments)
        yield next(results)
        with distributed.Client(scheduler, set_as_default=False) as client:
            os.kill(next(iter(client.run(os.getpid).values())), signal.SIGKILL)
        yield from results

    with running_workers(scheduler, 2, tmp_path):
        monkeypatch.setattr(mapping, "run_jobs", interrupted)
        with pytest.raises(KeyboardInterrupt):
            estimate_psf_map.main(there)
        monkeypatch.setattr(mapping, "run_jobs", with_a_death)
        estimate_psf_map.main(there)
    assert_same_files(config, there)


@needs_dask
@pytest.mark.slow
@pytest.mark.parametrize("prior", ["tv", "learned"])
def test_tiles_are_restored_to_the_same_bytes(config, scheduler, tmp_path, monkeypatch, prior):
    monkeypatch.setattr(with_map, "WHOLE_PX", 200**2)
    monkeypatch.setattr(with_map, "TILE", 150)
    shared = {name: getattr(config, name) for name in ("image", "checkpoint", *OPTICS)}
    rules = {"iterations": 3} if prior == "tv" else {"prior": "learned"}
    here = deconvolve.Config(**shared, **rules, stride=96, out=tmp_path / "here")
    deconvolve.main(replace(here, device="cpu"))
    there = replace(here, out=tmp_path / "there", dask=scheduler)
    with running_workers(scheduler, 2, tmp_path):
        deconvolve.main(there)
    pixels = [(one.out / "restored.tif").read_bytes() for one in (here, there)]
    assert pixels[0] == pixels[1]
    assert len(list(there.out.iterdir())) == len(list(here.out.iterdir()))
