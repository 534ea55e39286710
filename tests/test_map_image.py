"""The way from a file to its map: an interrupted map goes on for its own plane alone."""

import numpy as np
import pytest
import tifffile
import torch

from models import map_image as way
from models.estimator import Prediction
from models.map_image import map_image
from models.recording import RecordingOptions, open_recording
from psf.model import psf_model

OPTICS = {"na": 0.45, "wavelength_um": 0.5, "pixel_size_um": 0.27, "refractive_index": 1.33}


class PixelReader:
    """Stands in for an estimator: the first pixel of a patch is its focus."""

    patch_size = 16
    device = torch.device("cpu")
    name, fingerprint, context = "reader", "reader", None
    psf_model = psf_model("zernike1d")

    def __init__(self, killed_after=None):
        self.config = {"optics_limits": {"cutoff_cycles_per_pixel": [0.4, 0.55]}}
        self.left = killed_after

    def predict(self, patches, microscope, batch_size):
        if self.left is not None:
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
        values = patches[:, 0, :1]
        ones = torch.ones_like(values)
        return Prediction(("focus",), "waves", values, 0.1 * ones, 0.2 * ones, ones[:, 0])


@pytest.fixture
def stack(tmp_path):
    """TIFF of 2 time points, 2 planes in z and 2 channels, of 200 x 200 px."""
    pixels = np.random.default_rng(0).random((2, 2, 2, 200, 200), np.float32)
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, pixels, imagej=True, metadata={"axes": "TZCYX"})
    return path


def run(path, folder, reader, z=0, stride=2, **choice):
    options = RecordingOptions(**OPTICS | choice, stride=stride)
    with open_recording(path, options, reader, z) as recording:
        return map_image(recording, "off", folder).patches


@pytest.mark.parametrize("other", [{"z": 1}, {"channel": 1}, {"t": 1}, {"pixel_size_um": 0.135}])
def test_interrupted_map_is_resumed_for_its_own_plane_alone(stack, tmp_path, monkeypatch, other):
    monkeypatch.setattr(way, "RESUMED", 10)
    folder = tmp_path / "map"
    folder.mkdir()
    first = {"z": 0, "channel": 0, "t": 0}
    with pytest.raises(KeyboardInterrupt):
        run(stack, folder, PixelReader(killed_after=40), **first)
    assert (folder / "unfinished_map.f32").is_file()
    found, expected = (
        run(stack, place, PixelReader(), **first | other) for place in (folder, None)
    )
    assert torch.equal(found.values, expected.values)
    assert torch.equal(found.rows, expected.rows)


def test_interrupted_map_goes_on_with_what_is_left(stack, tmp_path, monkeypatch):
    monkeypatch.setattr(way, "RESUMED", 10)
    folder = tmp_path / "map"
    folder.mkdir()
    with pytest.raises(KeyboardInterrupt):
        run(stack, folder, PixelReader(killed_after=40))
    found = run(stack, folder, PixelReader(killed_after=120))  # the whole map takes 135 calls
    assert torch.equal(found.values, run(stack, None, PixelReader()).values)
