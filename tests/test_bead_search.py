"""Which bead of a stack is fitted, which pixels get weight 0, and how the fit is judged."""

from dataclasses import replace

import numpy as np
import pytest

from common import stack_pictures
from common.stack_pictures import WARNING_COLOUR, draw_bead_fit
from micrographs.bead_quality import _far_off_numbers, explain_dispersion, judge_fit
from micrographs.bead_search import find_bead, find_outliers
from psf import InputError, Microscope
from psf.bead import BeadFit, fit_bead
from psf.bead_stack import Scene, expected_stack

MICROSCOPE = Microscope(na=0.85, wavelength_um=0.52, pixel_size_um=0.13, refractive_index=1.0)
SCENE = Scene(MICROSCOPE, z_step_um=0.4, modes=((2, -2), (3, 1), (4, 0)), light="scalar")
MODES = (0.08, -0.05, 0.06)  # waves, of SCENE
PLANES, BACKGROUND = 7, 10.0
SIGMAS = 4.5  # of the three modes; a fit with a hot pixel is a hundred off


def field(*beads, size=(40, 64), background=BACKGROUND, seed=0):
    """Stack (Z, H, W) of beads (row, column, photons) with photon noise."""
    edge = max(size)
    clean = np.full((PLANES, *size), background)
    for row, column, photons in beads:
        place = [column - (edge - 1) / 2, row - (edge - 1) / 2]
        values = np.array([*place, 0.15, photons, 0, 0, 0, 0, *MODES])
        clean += expected_stack(SCENE, values, PLANES, edge)[:, : size[0], : size[1]]
    return np.random.default_rng(seed).poisson(clean).astype(float)


def fit(electrons, scene=SCENE, size=24):
    view = find_bead(scene, electrons, size)
    found = fit_bead(scene, view.electrons, usable=view.usable)
    return view, found, judge_fit(scene, view.electrons, view.usable, found)


def off(found):
    """Largest error of an aberration in standard errors."""
    return np.abs((found.values[-3:] - MODES) / found.standard_errors[-3:]).max()


# --- outliers


def test_no_pixel_of_a_bead_is_an_outlier():
    for background in (0.1, 10.0, 1000.0):
        for photons in (500, 20000, 1e6):
            stack = field((20, 30, photons), background=background)
            assert find_outliers(SCENE, stack).sum() <= 1, (background, photons)


@pytest.mark.slow
def test_hot_and_dead_pixels_and_a_cosmic_ray_are_found_and_do_not_move_the_fit():
    clean = field((20, 30, 20000))
    stack, bad = clean.copy(), np.zeros(clean.shape, bool)
    for row, column, electrons in ((20, 31, 4000), (15, 33, 300), (5, 5, 60000)):
        stack[:, row, column] += electrons
        bad[:, row, column] = True
    stack[:, 22, 29], bad[:, 22, 29] = 0, True  # dead, in the light of the bead
    stack[3, 23:29, 36] += 900
    bad[3, 23:29, 36] = True
    found = find_outliers(SCENE, stack)
    assert (found & bad).sum() >= bad.sum() - 1
    assert (found & ~bad).sum() <= 1
    view, with_weights, quality = fit(stack)
    assert quality.verdict == "good" and quality.explained > 0.999
    assert off(with_weights) < SIGMAS
    assert with_weights["photons"] == pytest.approx(20000, rel=0.03)
    assert "are hot, dead or hit by cosmic rays" in view.notes[0]
    square = stack[:, view.top : view.top + 24, view.left : view.left + 24]
    assert off(fit_bead(SCENE, square)) > 10  # the same pixels without weights


def test_a_hot_pixel_brighter_than_the_bead_is_not_fitted_for_it():
    stack = field((20, 44, 20000))
    stack[:, 8, 10] += 1e6
    view, found, _ = fit(stack)
    assert view.left + 11.5 + found["x_px"] == pytest.approx(44, abs=0.05)
    assert view.top + 11.5 + found["y_px"] == pytest.approx(20, abs=0.05)
    only_hot = np.random.default_rng(0).poisson(10.0, (7, 40, 40)).astype(float)
    only_hot[:, 20, 20] += 1000
    with pytest.raises(InputError, match="there is no bead in the stack"):
        find_bead(SCENE, only_hot)


def test_pixels_without_a_value_get_weight_0():
    stack = field((20, 30, 20000))
    stack[:, :, 24] = np.nan
    stack[2, 20, 30] = np.inf
    view, found, _ = fit(stack)
    assert (~view.usable).sum() == PLANES * 24 + 1
    assert np.isfinite(view.electrons).all()
    assert off(found) < SIGMAS
    assert f"{PLANES * 24 + 1} pixels are NaN or infinite" in view.notes[0]
    stack[:4] = np.nan
    with pytest.raises(InputError, match="58% of the pixels are NaN"):
        find_bead(SCENE, stack)


# --- beads


def test_the_brightest_whole_bead_is_fitted_and_the_others_get_no_weight():
    view, found, quality = fit(field((20, 18, 20000), (22, 46, 30000)), size=0)
    middle = (view.electrons.shape[-1] - 1) / 2
    assert view.left + middle + found["x_px"] == pytest.approx(46, abs=0.05)
    assert found["photons"] == pytest.approx(30000, rel=0.03)
    assert off(found) < SIGMAS and quality.verdict == "good"
    assert "2 beads; the brightest one that can be fitted is at row 22, column 46" in view.notes[0]


def test_a_bead_at_the_border_is_skipped_or_refused():
    view = find_bead(SCENE, field((20, 1, 60000), (20, 44, 20000)))
    assert "skipped: it is cut off by the border" in view.notes[0]
    assert view.left + view.electrons.shape[-1] // 2 == pytest.approx(44, abs=6)
    with pytest.raises(InputError, match=r"the bead at row \d+, column \d is cut off"):
        find_bead(SCENE, field((20, 1, 60000)))


def test_a_saturated_bead_is_refused_but_not_a_saturated_hot_pixel():
    stack = field((20, 30, 60000))
    with pytest.raises(InputError, match=r"saturated \(\d+ pixels at the highest value\)"):
        find_bead(SCENE, np.minimum(stack, 1023), full_scales=(255, 1023))
    with pytest.raises(InputError, match="is saturated"):  # at no full scale that is known
        find_bead(SCENE, np.minimum(stack, 1500))
    hot = np.minimum(stack / 20, 1023)
    hot[:, 5, 5:8:2] = 1023
    assert not find_bead(SCENE, hot, 24, (255, 1023)).notes


def test_the_default_square_holds_the_light_of_the_bead():
    stack = field((60, 60, 20000), size=(128, 128))
    size = find_bead(SCENE, stack).electrons.shape[-1]
    # full width of the cone over the whole stack, and some Airy patterns
    cone_px = 2 * 6 * 0.4 * 0.85 / np.sqrt(1 - 0.85**2) / 0.13
    assert cone_px < size < cone_px + 25
    assert find_bead(SCENE, stack, 32).electrons.shape == (PLANES, 32, 32)


@pytest.mark.parametrize(
    ("electrons", "size", "message"),
    [
        (np.ones((1, 16, 20)), 0, "1 plane in z; a fit takes 3 or more"),
        (np.ones((5, 16, 20)), 18, "--size 18 does not fit planes of 16 x 20"),
        (np.ones((5, 16, 20)), 4, "squares of at least 8 px"),
        (np.ones((5, 16, 16)), 0, "no bead"),
        (np.full((5, 16, 16), np.nan), 0, "100% of the pixels are NaN"),
        (np.random.default_rng(0).poisson(100.0, (9, 128, 128)), 0, "no bead"),
    ],
)
def test_refuses_stacks_without_a_bead(electrons, size, message):
    with pytest.raises(InputError, match=message):
        find_bead(SCENE, electrons, size)


# --- the verdict


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::psf.microscope.SamplingWarning")
def test_the_number_that_is_far_off_is_named():
    view = find_bead(SCENE, field((20, 30, 20000)), 16)
    wrong = replace(SCENE, z_step_um=1.0, modes=SCENE.modes[:2])
    causes = list(_far_off_numbers(wrong, view.electrons, view.usable))
    assert causes == ["--z-step-um is wrong, since 0.4 fits much better"]
    assert not list(_far_off_numbers(SCENE, view.electrons, view.usable))


@pytest.mark.slow
def test_a_wrong_z_step_is_a_bad_fit_with_its_cause():
    wrong = replace(SCENE, z_step_um=1.0)
    quality = fit(field((20, 30, 20000)), wrong)[2]
    assert quality.verdict == "bad" and quality.explained < 0.9
    assert "likely cause: --z-step-um is wrong, since 0.4 fits much better" in quality.sentence


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"z_step_um": 0.3}, "--z-step-um is too small"),
        pytest.param(
            {"microscope": replace(MICROSCOPE, na=0.75)},
            "--na is too small",
            marks=pytest.mark.slow,
        ),
        ({"modes": ()}, "aberrations that are not fitted; give more --modes-noll"),
    ],
)
def test_the_likely_cause_is_what_was_changed(changes, cause):
    quality = fit(field((20, 30, 20000)), replace(SCENE, **changes), size=16)[2]
    assert quality.verdict != "good"
    assert cause in quality.sentence


def test_a_focus_outside_of_the_stack_is_said():
    values = np.array([0.0, 0.0, 0.15, 20000, 10, 0, 0, 0, *MODES])
    model = expected_stack(SCENE, values, PLANES, 24)
    values[2] = 5.0  # um
    found = BeadFit(SCENE.names, values, np.ones_like(values), model, 3.0)
    noise = np.random.default_rng(0).poisson(100.0, model.shape).astype(float)
    quality = judge_fit(SCENE, noise, np.ones(model.shape, bool), found)
    assert quality.verdict == "bad"
    assert "the focus lies outside of the stack" in quality.sentence


def test_the_dispersion_is_explained_by_the_gain_only_where_the_error_is_random():
    assert explain_dispersion(0.0, 1.1, 1.0) == []
    assert "--electrons-per-count 2 would" in explain_dispersion(0.0, 0.5, 1.0)[0]
    assert "--electrons-per-count 0.5 would" in explain_dispersion(0.0, 4.0, 2.0)[0]
    assert "is not random" in explain_dispersion(0.5, 4.0, 2.0)[0]


def test_the_picture_shows_the_verdict_and_the_pixels_of_weight_0(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(stack_pictures, "save_figure", lambda _, figure: figures.append(figure))
    stack = field((20, 30, 20000))
    stack[:, 18, 33] += 3000
    view, found, quality = fit(stack)
    shown = np.where(view.usable, view.electrons, np.nan)
    for is_good in (True, False):
        draw_bead_fit(tmp_path / "x.png", shown, found, SCENE, "a$b", quality.sentence, is_good)
    good, bad = (figure._suptitle for figure in figures)
    assert good.get_text().startswith("a\\$b: ") and "grey: weight 0" in good.get_text()
    assert good.get_color() == "black" and bad.get_color() == WARNING_COLOUR
    middle = next(a for a in figures[0].axes if a.get_title().startswith("residual, z = +0.2"))
    masked = np.ma.getmaskarray(middle.images[0].get_array())
    assert np.argwhere(masked).tolist() == [[18 - view.top, 33 - view.left]]
