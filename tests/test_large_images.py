"""Benchmarks of large images: what they measure is the same map, image and quality as elsewhere."""

import numpy as np
import pytest
import tifffile
import torch

from benchmarks import deconvolution_large, large_image, mapping
from micrographs.micrograph import open_micrograph
from models.checkpoint import load_estimator
from models.mapping import predict_map
from psf import InputError, Microscope


def test_single_patches_agree_with_the_map():
    estimator, image = load_estimator("zernike1d"), mapping.scene()[:176, :208]
    found = predict_map(estimator, image, Microscope(), 16)
    rows, columns = np.array([0, 3, 2]), np.array([5, 0, 1])
    single = mapping.predict_single(estimator, image, 16 * rows, 16 * columns)
    assert torch.allclose(single, found.values[:, rows, columns].T, atol=1e-5)


def test_large_file_repeats_the_image(tmp_path, monkeypatch):
    monkeypatch.setattr(mapping, "SIZE", 512)
    image = torch.arange(512.0 * 512).reshape(512, 512) % 60_000
    mapping.write_large(tmp_path / "large.tif", 1024, image)
    written = tifffile.imread(tmp_path / "large.tif")
    assert written.dtype == np.uint16
    assert np.array_equal(written, np.tile(image.numpy(), (2, 2)))


def test_large_file_is_refused_by_its_edge(tmp_path):
    for edge in (1000, 2100):
        with pytest.raises(InputError, match=f"--large-px is {edge}; give a multiple of 256"):
            mapping.large_row(mapping.Config(large_px=edge, scratch=tmp_path), torch.zeros(1, 1))


def test_tilted_image_loses_detail_along_x():
    config = deconvolution_large.Config(size=256)
    truth, noisy = deconvolution_large.make_image(config)
    assert truth.shape == noisy.shape == (256, 256)
    assert float(truth.mean()) == pytest.approx(deconvolution_large.PHOTONS, rel=0.2)

    def detail(image: torch.Tensor, part: slice) -> float:
        return float(image[:, part].diff(dim=0).square().mean())

    sharp, blurred = slice(0, 64), slice(192, 256)
    kept = [detail(noisy, part) / detail(truth, part) for part in (sharp, blurred)]
    assert kept[1] < 0.5 * kept[0]


def test_psnr():
    truth = torch.tensor([[0.0, 100.0]])
    assert deconvolution_large.psnr(truth + 10, truth) == pytest.approx(20)


def test_settings_that_cannot_be_are_refused(tmp_path):
    for wrong, message in (
        ({"size": 200}, "--size is 200; give at least 256"),
        ({"objects": "cats"}, "--objects is 'cats'; give one of "),
    ):
        with pytest.raises(InputError, match=message):
            deconvolution_large.main(deconvolution_large.Config(scratch=tmp_path, **wrong))


def test_very_large_image_takes_little_disk_and_loses_detail_to_the_right(tmp_path):
    pytest.importorskip("zarr")
    large_image.write_image(tmp_path, 4096)
    kept = {path.stat().st_ino: path.stat().st_size for path in tmp_path.rglob("*")}
    assert sum(kept.values()) < 4096**2
    with open_micrograph(tmp_path / "image.zarr") as plane:
        assert plane.shape == (4096, 4096)
        assert plane.facts.pixel_size_um == pytest.approx(0.278)
        pixels = plane.rows(1024, 1536)
    assert float(pixels.mean()) == pytest.approx(large_image.PHOTONS, rel=0.2)
    detail = [float(part.diff(dim=1).square().mean()) for part in pixels.split(512, 1)]
    assert detail[7] < 0.5 * detail[0]


def test_edge_of_a_very_large_image_is_refused():
    with pytest.raises(InputError, match="--edges-px is 5000; give multiples of 4096"):
        large_image.main(large_image.Config(edges_px=(4096, 5000)))
