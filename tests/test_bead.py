"""Fit of a bead stack: recovery, standard errors, signs, and what is refused."""

import json
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile

import fit_psf
from psf import InputError, Layers, Microscope
from psf.bead import check_stack, fit_bead
from psf.bead_stack import Scene, _bead_blur, expected_and_slopes, expected_stack

ROOT = Path(__file__).parents[1]
RECOVERY = 1e-3  # px, um, waves, and relative for photons and background
SIGMAS = 3  # within which 95 % of the repetitions must lie, in every parameter
ROUNDING = 1e-9

MICROSCOPE = Microscope(na=0.85, wavelength_um=0.52, pixel_size_um=0.13, refractive_index=1.0)
SCENE = Scene(MICROSCOPE, z_step_um=0.4, modes=((2, -2), (3, 1), (4, 0)), light="scalar")
PLANES, SIZE = 7, 24


def truth(photons=5000.0, modes=(0.08, -0.05, 0.06), drift=(0.0, 0.0), fading=0.0):
    """Parameters of SCENE; the stack is not centred on focus, nor the bead on the planes."""
    return np.array([0.7, -0.4, 0.15, photons, 10.0, *drift, fading, *modes])


def stack(values, scene=SCENE):
    return expected_stack(scene, values, PLANES, SIZE)


def errors(fit, values):
    """Absolute errors, of photons and background relative ones."""
    relative = np.isin(fit.names, ("photons", "background"))
    return np.abs(fit.values - values) / np.where(relative, values, 1)


# --- the fit


def test_noise_free_stack_gives_the_parameters_back():
    values = truth(drift=(0.1, -0.2), fading=0.05)
    fit = fit_bead(SCENE, stack(values))
    assert errors(fit, values).max() < RECOVERY
    assert fit.dispersion < ROUNDING
    assert fit.wavefront_rms_waves == pytest.approx(np.hypot(np.hypot(0.08, 0.05), 0.06), abs=1e-4)


def test_strong_spherical_aberration_is_found_from_a_start_without_it():
    values = truth(modes=(0.0, 0.0, -0.35))
    assert errors(fit_bead(SCENE, stack(values)), values).max() < RECOVERY


@pytest.mark.slow
@pytest.mark.parametrize("light", ["aplanatic", "vectorial"])
def test_noise_free_stack_under_layers_gives_the_parameters_and_the_na_back(light):
    microscope = Microscope(na=1.2, wavelength_um=0.6, pixel_size_um=0.1, refractive_index=1.33)
    known = replace(SCENE, microscope=microscope, light=light, layers=Layers(n_immersion=1.515))
    known = replace(known, depth_um=3.0, fit_na=True)
    values = np.append(truth(), 1.2)
    electrons = stack(values, known)
    guess = replace(known, microscope=replace(microscope, na=1.15))
    assert errors(fit_bead(guess, electrons), values).max() < RECOVERY


def sigmas_off(seed):
    values = truth()
    rng = np.random.default_rng(seed)
    fit = fit_bead(SCENE, rng.poisson(stack(values)).astype(float))
    return (fit.values - values) / fit.standard_errors, fit.dispersion


def test_photon_noise_moves_the_parameters_by_their_standard_errors():
    off, dispersion = sigmas_off(seed=0)
    assert np.abs(off).max() < SIGMAS + 0.5
    assert 0.3 < np.sqrt(np.mean(off**2)) < 2.0
    assert dispersion == pytest.approx(1, abs=0.1)  # 4 sigma of 4032 pixels


@pytest.mark.slow
def test_parameters_lie_within_three_standard_errors_in_95_percent_of_repetitions():
    off = np.array([sigmas_off(seed)[0] for seed in range(40)])
    assert (np.abs(off).max(1) < SIGMAS).mean() >= 0.95 - 0.025  # one more in 40 may be chance
    assert (np.abs(off) < SIGMAS).mean() >= 0.95
    assert np.sqrt(np.mean(off**2)) == pytest.approx(1, abs=0.15)  # neither too large nor small


def test_standard_errors_fall_with_the_root_of_the_light():
    few, many = truth(), truth(photons=20000.0)
    many[SCENE.names.index("background")] *= 4
    ratios = [fit_bead(SCENE, stack(v)).standard_errors for v in (few, many)]
    # photons and background are themselves four times as large
    expected = np.where(np.isin(SCENE.names, ("photons", "background")), 0.5, 2.0)
    assert ratios[0] / ratios[1] == pytest.approx(expected, rel=1e-3)


def test_read_noise_makes_the_standard_errors_larger():
    noisy = replace(SCENE, read_noise_e=5.0)
    quiet, loud = (fit_bead(s, stack(truth())).standard_errors for s in (SCENE, noisy))
    assert (loud > quiet).all()


def test_a_bead_widens_a_line_by_the_variance_of_a_ball():
    line = np.arange(61) - 30
    sharp = np.exp(-(line**2) / (2 * 2.0**2))
    wide = _bead_blur(3.0, 61) @ sharp
    assert wide.sum() == pytest.approx(sharp.sum(), rel=1e-6)
    assert (wide * line**2).sum() / wide.sum() == pytest.approx(2.0**2 + 3.0**2 / 20, rel=1e-4)


def test_a_bead_of_known_size_gives_the_parameters_back():
    known = replace(SCENE, bead_um=0.5)
    electrons = stack(truth(), known)
    assert electrons.max() < 0.9 * stack(truth()).max()
    assert errors(fit_bead(known, electrons), truth()).max() < RECOVERY


def test_derivative_of_the_stack_by_each_parameter_is_that_of_finite_differences():
    known = replace(SCENE, fit_na=True, bead_um=0.3)
    values = np.append(truth(drift=(0.1, -0.2), fading=0.05), 0.85)
    _, slopes = expected_and_slopes(known, known.named(values), PLANES, SIZE)
    for name, slope in zip(known.names, slopes.T, strict=True):
        step = np.where(np.isin(known.names, name), 1e-4, 0)
        up, down = (expected_stack(known, values + side * step, PLANES, SIZE) for side in (1, -1))
        found = (up - down).ravel() / (2 * step.max())
        assert np.abs(found - slope).max() < 1e-5 * np.abs(slope).max(), name


# --- signs


def test_a_stack_read_backwards_has_even_aberrations_of_the_other_sign():
    values = truth(modes=(0.08, 0.0, 0.06))
    fit = fit_bead(replace(SCENE, z_step_um=-0.4), stack(values))
    found = [fit[name] for name in SCENE.mode_names]
    assert found == pytest.approx([-0.08, 0.0, -0.06], abs=RECOVERY)
    assert fit["z_focus_um"] == pytest.approx(-0.15, abs=RECOVERY)


def test_x_is_along_columns_and_y_along_rows():
    values = truth(modes=(0.0, 0.0, 0.0))
    plane = stack(values)[PLANES // 2] - SCENE.named(values)["background"]
    line = np.arange(SIZE) - (SIZE - 1) / 2
    # the centre of mass of what lies on the grid; more of the tails outside is lost on one side
    assert (plane.sum(0) * line).sum() / plane.sum() == pytest.approx(0.7, abs=0.1)
    assert (plane.sum(1) * line).sum() / plane.sum() == pytest.approx(-0.4, abs=0.1)


# --- refusals


@pytest.mark.parametrize(
    ("electrons", "message"),
    [
        (np.ones((5, 16, 20)), "square planes"),
        (np.ones((2, 16, 16)), "2 planes of 16 x 16"),
        (np.ones((5, 6, 6)), "at least 3 of 8 x 8"),
        (np.full((5, 16, 16), np.nan), "NaN"),
    ],
)
def test_refuses_stacks_that_cannot_be_fitted(electrons, message):
    with pytest.raises(InputError, match=message):
        check_stack(electrons)


# --- the script


def write_tiff(path, counts, **metadata):
    tifffile.imwrite(
        path,
        counts,
        imagej=True,
        resolution=(1 / 0.13, 1 / 0.13),
        metadata={"axes": "ZYX"} | metadata,
    )
    return path


def run_script(*arguments):
    command = [sys.executable, "fit_psf.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def read(path, **choice):
    return fit_psf.read_stack(fit_psf.Config(stack=path, out=path.parent / "fit", **choice))


OPTICS = ("--na", 0.85, "--wavelength-um", 0.52, "--refractive-index", 1.0, "--light", "scalar")


def test_reads_the_calibration_of_imagej_and_ome(tmp_path):
    counts = np.ones((5, 16, 16), np.uint16)
    imagej = read(write_tiff(tmp_path / "a.tif", counts, spacing=0.4, unit="um"))
    assert (imagej.facts.pixel_size_um, imagej.facts.z_step_um) == pytest.approx((0.13, 0.4))
    sizes = {"PhysicalSizeX": 130, "PhysicalSizeXUnit": "nm", "PhysicalSizeZ": 0.4}
    tifffile.imwrite(tmp_path / "b.ome.tif", counts, metadata={"axes": "ZYX", **sizes})
    ome = read(tmp_path / "b.ome.tif")
    assert (ome.facts.pixel_size_um, ome.facts.z_step_um) == pytest.approx((0.13, 0.4))
    tifffile.imwrite(tmp_path / "c.tif", counts)
    assert read(tmp_path / "c.tif").facts.z_step_um is None


def test_reads_one_channel_of_several_and_planes_stored_as_time(tmp_path):
    counts = np.random.default_rng(0).integers(1, 999, (5, 2, 16, 16)).astype(np.uint16)
    path = write_tiff(tmp_path / "two.tif", counts, axes="ZCYX")
    assert np.array_equal(read(path).counts, counts[:, 0])
    assert np.array_equal(read(path, channel=1).counts, counts[:, 1])
    path = write_tiff(tmp_path / "time.tif", counts[:, 0], axes="TYX")
    assert np.array_equal(read(path, z_step_um=0.4).counts, counts[:, 0])
    for choice in ({}, {"z_step_um": 0.4, "t": 1}):
        with pytest.raises(InputError, match="1 plane in z and 5 time points; if these are"):
            read(path, **choice)
    path = write_tiff(tmp_path / "both.tif", counts.swapaxes(0, 1), axes="TZYX")
    assert np.array_equal(read(path, t=1).counts, counts[:, 1])


def test_channels_are_no_planes(tmp_path):
    path = write_tiff(tmp_path / "c.tif", np.ones((5, 16, 16), np.uint16), axes="CYX")
    with pytest.raises(InputError, match="1 plane in z and 5 channels; a fit takes 3 or more"):
        read(path, z_step_um=0.4)


def test_z_of_imagej_has_its_own_unit_and_inverted_files_are_turned_back(tmp_path):
    counts = np.arange(5 * 16 * 16, dtype=np.uint16).reshape(5, 16, 16)
    path = tmp_path / "z.tif"
    scale = {"resolution": (1 / 130, 1 / 130), "metadata": {"unit": "nm", "zunit": "micron"}}
    scale["metadata"] |= {"axes": "ZYX", "spacing": 0.4}
    tifffile.imwrite(path, counts, imagej=True, **scale)
    facts = read(path).facts
    assert (facts.pixel_size_um, facts.z_step_um) == pytest.approx((0.13, 0.4))
    tifffile.imwrite(path, 65535 - counts, photometric="miniswhite", metadata={"axes": "ZYX"})
    assert np.array_equal(read(path).counts, counts)


def test_script_fits_a_stack_and_writes_a_calibrated_record(tmp_path):
    rng = np.random.default_rng(1)
    counts = rng.poisson(stack(truth())) * 2 + 100  # half an electron per count, offset 100
    path = write_tiff(tmp_path / "bead.tif", counts.astype(np.uint16), spacing=0.4, unit="um")
    camera = ("--offset-counts", 100, "--electrons-per-count", 0.5, "--modes-noll", 5, 8, 11)
    done = run_script(path, *OPTICS, *camera, "--out", tmp_path / "fit")
    assert done.returncode == 0, done.stderr
    fit = json.loads((tmp_path / "fit" / "fit.json").read_text())
    middle = (SIZE - 1) / 2
    expected = truth()
    expected[:2] += middle
    for found, value in zip(fit["parameters"].values(), expected, strict=True):
        assert found["value"] == pytest.approx(value, abs=4 * found["standard_error"])
    assert fit["dispersion"] == pytest.approx(1, abs=0.1)
    assert fit["quality"]["verdict"] == "good" and fit["quality"]["explained"] > 0.999
    assert fit["sources"]["z_step_um"] == "ImageJ spacing and unit"
    assert fit["sources"]["na"] == "--na"
    assert "z_step_um 0.4 (ImageJ spacing and unit)" in done.stdout
    assert "each plane is 0.4 um farther from the objective" in done.stdout
    assert "the fit is good" in done.stdout
    model = read(tmp_path / "fit" / "model.tif").facts
    assert (model.pixel_size_um, model.z_step_um) == pytest.approx((0.13, 0.4))
    assert (tmp_path / "fit" / "fit.png").stat().st_size > 10000
    shutil.rmtree(tmp_path / "fit")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"z_step_um": None}, "the file does not tell its z step; give --z-step-um"),
        ({"z_step_um": 400}, "--z-step-um is 400"),
        ({"modes_noll": (4, 5)}, "Noll mode 4 is the focus"),
        ({"modes_noll": (5, 5)}, "given twice"),
        ({"na": 1.2}, "NA 1.2 is not below the refractive index"),
        ({"wavelength_um": 520}, "give it in um"),
        ({"size": 99}, "--size 99 does not fit"),
        ({"depth_um": -1.0}, "depth_um is -1.0"),
        ({"bead_um": -0.2}, "--bead-um is -0.2"),
        ({"electrons_per_count": 0.0}, "must be above 0"),
        ({"offset_counts": 500.0}, "most pixels are below --offset-counts 500 .median 100"),
        ({"z_step_um": 0.0004}, "5 planes with a z step of 0.0004 um span 0.0016 um, far less"),
        ({"na": None}, "does not tell its optics; give --na"),
        ({}, "no bead in the stack"),
    ],
)
def test_refuses_settings_that_make_no_sense_and_writes_nothing(tmp_path, settings, message):
    counts = np.random.default_rng(0).poisson(100.0, (5, 16, 16)).astype(np.uint16)
    if "depth_um" in settings:
        counts = stack(truth()).astype(np.uint16)
    plain = {"na": 0.85, "wavelength_um": 0.52, "refractive_index": 1.0, "light": "scalar"}
    plain |= {"z_step_um": 0.4, "out": tmp_path / "fit"}
    path = write_tiff(tmp_path / "bead.tif", counts, unit="um")
    with pytest.raises(InputError, match=message), warnings.catch_warnings(action="ignore"):
        fit_psf.main(fit_psf.Config(stack=path, **plain | settings))
    assert not (tmp_path / "fit").exists()


def test_refuses_a_file_that_would_not_fit_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(fit_psf, "MOST_VOXELS", 1279)
    path = write_tiff(tmp_path / "large.tif", np.ones((5, 16, 16), np.uint16))
    with pytest.raises(InputError, match="5 planes of 16 x 16 px; crop it around one bead"):
        read(path)


def test_refuses_colour_and_a_file_as_folder(tmp_path):
    tifffile.imwrite(tmp_path / "rgb.tif", np.zeros((32, 32, 3), np.uint8), photometric="rgb")
    with pytest.raises(InputError, match="a colour image"):
        read(tmp_path / "rgb.tif")
    config = fit_psf.Config(stack=tmp_path / "rgb.tif", out=tmp_path / "rgb.tif" / "fit")
    with pytest.raises(InputError, match=r"rgb\.tif is a file; give a folder"):
        fit_psf.main(config)


def test_script_says_what_is_wrong_in_one_line(tmp_path):
    done = run_script(tmp_path / "none.tif", *OPTICS, "--out", tmp_path / "fit")
    assert done.returncode == 2
    assert done.stderr == f"error: there is no image {tmp_path / 'none.tif'}.\n"
