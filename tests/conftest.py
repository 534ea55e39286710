"""A tiny data set of each kind and a tiny run, made once for all test files."""

import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import generate_training_set
import train

# Small tensors gain nothing from threads, and several processes would wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

# Gaussians fit a small support; the Airy rings of a pupil need 79 px to lose less than 1 %.
GAUSSIAN = generate_training_set.Config(
    out=Path(),
    psf_model="gaussian1d",
    fwhm_px=(0.0, 8.0),
    train_patches=200,
    validation_patches=40,
    test_patches=48,
    patch_size=64,
    psf_size=33,
    blank_fraction=0.1,
    workers=1,
)
FOCUS = replace(GAUSSIAN, psf_model="zernike1d", fwhm_px=None, focus_waves=(0.0, 1.0), psf_size=79)


def pytest_collection_modifyitems(items):
    """Skip the tests marked `gpu` where there is none, and say so under `pytest -rs`."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA GPU: torch.cuda.is_available() is False here")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def gaussian_config():
    return GAUSSIAN


@pytest.fixture(scope="session")
def focus_config():
    return FOCUS


@pytest.fixture(scope="session")
def gaussian_data(tmp_path_factory):
    """Folder of 200 + 40 + 48 patches of 64 px, label: the FWHM of a Gaussian. Read only."""
    folder = tmp_path_factory.mktemp("data") / "gaussian"
    generate_training_set.main(replace(GAUSSIAN, out=folder))
    return folder


@pytest.fixture(scope="session")
def focus_data(tmp_path_factory):
    """Folder of 200 + 40 + 48 patches of 64 px, label: the focus in waves. Read only."""
    folder = tmp_path_factory.mktemp("data") / "focus"
    generate_training_set.main(replace(FOCUS, out=folder))
    return folder


@pytest.fixture(scope="session")
def focus_run(tmp_path_factory, focus_data):
    """Folder of a `spectral_resnet` after one epoch on `focus_data`. Read only.

    Its histograms are wide, but it learns that patches have content, so that maps are not empty.
    """
    folder = tmp_path_factory.mktemp("runs") / "focus"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("models.loss.UNINFORMATIVE", math.inf)
        train.main(train.Config(data=focus_data, out=folder, epochs=1, batch_size=40, device="cpu"))
    return folder
