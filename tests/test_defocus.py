"""Exact defocus: its path is that of steep rays, and its wave the one that fits rho^2 best."""

import json
import math
from dataclasses import replace

import pytest
import torch

import generate_training_set
from models.data import read_data_config
from psf import InputError, Microscope, psf_model, synthesize_with_loss
from psf.defocus import exact_shape, um_per_exact_wave
from psf.model import from_config, um_per_label
from simulation.settings import from_config as from_data

HIGH = Microscope(1.2, 0.52, 0.1, 1.33)


@pytest.mark.parametrize("sine", [0.1, 0.5, 0.9, 0.957])
def test_a_wave_of_exact_defocus_is_fitted_best_by_one_wave_of_rho_squared(sine):
    u = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000  # rho^2, even over the pupil
    path = exact_shape(u.sqrt(), torch.tensor([sine], dtype=torch.float64))[0]
    slope = ((u - u.mean()) * path).mean() / (u - u.mean()).square().mean()
    assert float(slope) == pytest.approx(1, abs=1e-6)


def test_the_path_in_um_is_that_of_the_rays():
    """z (n - sqrt(n^2 - NA^2 rho^2)) for the z of one wave, over the wavelength."""
    rho = torch.linspace(0, 1, 7, dtype=torch.float64)
    z_um, n = um_per_exact_wave(HIGH), HIGH.refractive_index
    waves = z_um / HIGH.wavelength_um * (n - (n**2 - HIGH.na**2 * rho**2).sqrt())
    got = exact_shape(rho, torch.tensor([HIGH.na / n], dtype=torch.float64))[0]
    assert torch.allclose(got, waves, rtol=1e-9)


def test_low_na_is_the_paraxial_limit():
    low = Microscope(0.05, 0.52, 1.0, 1.0)
    assert um_per_exact_wave(low) == pytest.approx(low.um_per_wave, rel=2e-3)


def test_at_high_na_a_wave_of_exact_defocus_is_shorter():
    exact = psf_model("zernike1d", defocus="exact")
    shorter = (
        um_per_label(exact, HIGH)["focus"] / um_per_label(psf_model("zernike1d"), HIGH)["focus"]
    )
    assert shorter == pytest.approx(1 / 1.35, abs=0.01)
    assert from_config(exact.as_config()) == exact


def test_exact_psf_equals_that_of_gibson_lanni_without_mismatch():
    """Two independent roads to the wavefront: by waves of focus, and by the z of the stage."""
    focus = torch.tensor([[1.5]])
    z_um = focus * um_per_exact_wave(HIGH)
    exact, seidel, layered = (
        synthesize_with_loss(model, label, HIGH, 95)[0]  # 2 % of the energy lies outside
        for model, label in (
            (psf_model("zernike1d", defocus="exact"), focus),
            (psf_model("zernike1d"), focus),
            (psf_model("gibson_lanni"), z_um),
        )
    )
    peak = float(layered.max())
    assert float((exact - layered).abs().max()) < 2e-5 * peak
    assert float((seidel - layered).abs().max()) > 0.05 * peak


def test_a_model_without_focus_has_no_exact_defocus():
    with pytest.raises(InputError, match="defocus 'exact' for gaussian1d"):
        psf_model("gaussian1d", defocus="exact")
    assert math.isfinite(um_per_exact_wave(HIGH))


def test_training_set_of_exact_defocus_says_so(tmp_path, focus_config):
    counts = {"train_patches": 4, "validation_patches": 2, "test_patches": 2}
    exact = replace(focus_config, out=tmp_path / "data", defocus="exact", **counts)
    generate_training_set.main(exact)
    found = from_data(read_data_config(exact.out))
    assert (
        json.loads((exact.out / "config.json").read_text("utf-8"))["psf_model"]["defocus"]
        == "exact"
    )
    assert found.model == psf_model("zernike1d", {"focus": (0.0, 1.0)}, defocus="exact")
    with pytest.raises(InputError, match="defocus 'exact' for gaussian1d"):
        generate_training_set.main(
            replace(exact, out=tmp_path / "no", psf_model="gaussian1d", focus_waves=None)
        )
