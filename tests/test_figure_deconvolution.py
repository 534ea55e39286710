"""The restoration experiment: scenes of the right blur, scores by value, valid results."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.ndimage import gaussian_filter

import figure_deconvolution
from benchmarks.restoration_methods import METHODS as IMAGE_METHODS
from common.code import imported_files
from common.deconvolution_figure import (
    INSET_PX,
    draw_cases,
    draw_errors,
    draw_gains,
    inset_place,
)
from common.files import read_json, write_json
from common.method_colours import METHOD_COLOURS, OURS_COLOUR, method_colour
from common.pictures import COLOURS
from common.shown_cases import STEP, TRUTH, ShownCase, read_shown, write_shown
from figure_deconvolution import (
    Config,
    best_rival,
    cases,
    draw,
    main,
    result_path,
    run_case,
    save_image,
    write_results,
)
from psf.errors import InputError
from restoration.compared import (
    BLIND,
    BLIND_BEST,
    DEEPINV,
    INPUT,
    METHODS,
    ORACLE,
    OURS,
    OURS_TV,
    ROOT,
    SCHEME_2018,
    Method,
    Trial,
    best_by_truth,
    blind_richardson_lucy,
    blind_total_variation,
    function_text,
    method_key,
)
from restoration.real_objects import (
    LEAST_SHARP,
    fine_detail,
    installed_micrographs,
    read_micrograph,
)
from restoration.rival_settings import (
    choose_settings,
    chosen_at_an_edge,
    gains_of_settings,
    read_settings,
    setting_of,
    write_settings,
)
from restoration.scenes import Case, Scene, load_object, make_scene, mean_psf
from restoration.scores import BORDER, agreement, score, snr_db
from restoration.summary import report, summarise
from simulation.sources import TEST_IMAGES, Source, read_plane

# a little light lies outside of the supports that render the truth
pytestmark = pytest.mark.filterwarnings("ignore::psf.synthesis.EnergyWarning")


def test_snr_is_that_of_a_known_error():
    truth = torch.full((40, 40), 10.0)
    assert snr_db(truth + 1, truth) == pytest.approx(20)
    assert snr_db(truth * 1.1, truth) == pytest.approx(20, abs=1e-3)


def test_cases_begin_with_real_objects_and_take_turns():
    found = cases(Config(images=14, photons=(1000.0, 100.0)))
    names = [case.name for case in found[::2]]
    assert names[:4] == list(TEST_IMAGES)
    assert names[4 : 4 + len(installed_micrographs())] == installed_micrographs()
    assert len({case.key for case in found}) == 28
    assert {case.model for case in found} == {"zernike1d", "zernike2d", "gaussian2d"}
    assert {case.map_kind for case in found} == {"tilted plane", "random map"}
    kinds = {case.name: case.objects for case in found}
    assert kinds["camera"] == "photograph" and kinds["immunohistochemistry"] == "micrograph"
    assert kinds["DAB"] == "micrograph" and found[-1].objects == "procedural"
    sizes = {case.name: case.size for case in found}
    assert sizes["camera"] == 320 and sizes["coins"] == 303  # no larger than the photograph


def test_no_test_object_is_used_to_choose_settings():
    test, validation = (
        {case.name for case in cases(Config(images=9, split=split)) if case.objects != "procedural"}
        for split in ("test", "validation")
    )
    assert not test & validation and validation == {"chelsea", "coffee"}


@pytest.mark.parametrize("name", installed_micrographs())
def test_micrographs_are_sharp_and_fill_an_image(name):
    image = read_micrograph(name)
    assert min(image.shape) >= 256 and image.min() == 0 and image.max() == 1
    assert fine_detail(image) > LEAST_SHARP
    assert fine_detail(gaussian_filter(image, 1.0)) < LEAST_SHARP  # FWHM of 2.4 px


def test_objects_that_are_too_small_are_mirrored_on_all_sides():
    plane = read_plane(Source("coins", "builtin"))
    padded = load_object(Case(1, "coins", "zernike2d", "random map", 100.0, 303, 0), 323)
    inner = padded[10:-10, 10:-10].numpy()
    left = (plane.shape[1] - 323) // 2
    assert np.allclose(inner, plane[:, left + 10 : left + 313] + 0.02)
    assert torch.equal(padded[:10], padded[10:20].flip(0))
    assert torch.equal(padded[-10:], padded[-20:-10].flip(0))


@pytest.fixture(scope="module")
def case() -> Case:
    return Case(2, "gravel", "zernike1d", "tilted plane", 1000.0, 256, 0)


@pytest.fixture(scope="module")
def scene(case) -> Scene:
    return make_scene(case)


def trial_of(scene: Scene) -> Trial:
    """The scene with the true map in place of an estimated one."""
    return Trial(scene, scene.labels, scene.blur)


def test_a_scene_is_blurred_by_its_own_map(scene):
    # along a plane tilted about y, focus changes with x alone, from 0 to 2.5 waves
    focus = scene.labels.values[0]
    assert torch.allclose(focus[0], focus[-1])
    assert float(focus.min()) == 0 and float(focus.max()) == pytest.approx(2.5)
    assert float(scene.image.mean()) == pytest.approx(1000, rel=0.05)
    ends = [
        scene.image[:, part] - scene.truth[:, part] for part in (slice(0, 40), slice(-40, None))
    ]
    blurred = [float(end.square().mean()) for end in ends]
    right = float(focus[0, -1]) > float(focus[0, 0])
    assert blurred[right] > 3 * blurred[not right]
    assert float(scene.sharp.float().mean()) == pytest.approx(0.24, abs=0.03)  # 0.6 of 2.5 waves


def test_the_exposures_differ_by_photon_noise_alone(scene):
    # the difference of two Poisson counts has the variance of their sum
    difference, total = scene.image - scene.second, scene.image + scene.second
    assert float(difference.square().mean() / total.mean()) == pytest.approx(1, abs=0.03)
    assert abs(float(difference.mean())) < 1


def test_scores_are_gains_over_the_blurred_input(scene):
    unchanged = score(scene.image, scene)
    assert unchanged["snr_gain_db"] == 0 and unchanged["snr_gain_sharp_db"] == 0
    halved = score((scene.image + scene.truth) / 2, scene)
    for name in ("snr_gain_db", "snr_gain_centre_db", "snr_gain_sharp_db"):
        assert halved[name] == pytest.approx(20 * math.log10(2), abs=1e-3)
    assert halved["ssim"] > unchanged["ssim"]
    spoilt = scene.image.clone()
    spoilt[:BORDER] = 0
    only_borders = score(spoilt, scene)
    assert only_borders["snr_gain_centre_db"] == 0 and only_borders["snr_gain_db"] < -3


def test_the_truth_is_resolved_to_the_pixel_and_its_blur_is_not(scene):
    pixel_um = scene.labels.microscope.pixel_size_um
    perfect, curves = agreement(scene.truth, scene.truth, scene)
    assert perfect == pytest.approx({"frc_pair_um": 2 * pixel_um, "frc_truth_um": 2 * pixel_um})
    assert curves["frc_truth"] == pytest.approx([1.0] * 64)
    blurred, _ = agreement(scene.image, scene.second, scene)
    assert blurred["frc_truth_um"] > 4 * pixel_um
    once, curves = agreement(scene.image, None, scene)
    assert math.isnan(once["frc_pair_um"]) and curves["frc_pair"] == []


def test_the_mean_psf_lies_between_the_sharpest_and_the_widest(scene):
    peak = float(mean_psf(scene).max())
    peaks = [float(scene.blur.psf_at(128, x).max()) for x in (0, 255)]
    assert min(peaks) < peak < max(peaks)


def sharpened(trial, share):
    """Stands in for a method: a mixture of image and truth."""
    return (1 - share) * trial.image + share * trial.scene.truth


def test_the_best_setting_is_chosen_by_the_truth(scene):
    found = best_by_truth(trial_of(scene), sharpened, (0.1, 0.9, 0.5))
    assert torch.allclose(found, sharpened(trial_of(scene), 0.9))


def test_settings_are_those_with_the_highest_mean_gain(scene, tmp_path):
    method = Method(sharpened, settings=(0.1, 0.5, 0.3), setting="share")
    several = Method(
        sharpened, settings=(0.1, 0.3), several=lambda p, all: [sharpened(p, s) for s in all]
    )
    rows = pd.DataFrame(gains_of_settings(trial_of(scene), {"one": method, "two": several}))
    gains = -20 * np.log10(1 - rows["value"])
    assert np.allclose(rows["snr_gain_db"], gains, atol=1e-3)
    bright, dim = rows.assign(photons=1000.0), rows.assign(photons=10.0)
    dim["snr_gain_db"] *= -1
    table = choose_settings(pd.concat([bright, bright, dim, dim]))
    assert set(table["images"]) == {2}
    assert chosen_at_an_edge(table)[0] == "one, 1000 photons: 0.5"
    path = tmp_path / "settings.csv"
    write_settings(path, table)
    chosen = read_settings(path, {"one": method, "two": several})
    assert setting_of(chosen, "one", method, 2000.0) == 0.5
    assert setting_of(chosen, "one", method, 90.0) == 0.1  # nearer to 10 than to 1000, in ratio
    assert setting_of(chosen, "one", Method(sharpened), 90.0) is None
    with pytest.raises(InputError, match=r"lacks three; run figure_deconvolution\.py --tune"):
        read_settings(path, {"three": method})
    with pytest.raises(InputError, match=r"does not exist; run figure_deconvolution\.py --tune"):
        read_settings(tmp_path / "none.csv", {})


def test_a_count_of_one_is_no_edge():
    rows = [(value, gain) for value, gain in ((1, 2.0), (3, 1.0), (9, 0.0))]
    table = pd.DataFrame(rows, columns=["value", "snr_gain_db"])
    table = table.assign(method="blind", setting="rounds", photons=100.0)
    assert not chosen_at_an_edge(choose_settings(table))
    assert chosen_at_an_edge(choose_settings(table.assign(value=2 * table["value"])))


def test_the_shipped_settings_fit_all_methods():
    table = read_settings(ROOT / "results" / "deconvolution_settings.csv", METHODS)
    for name, method in METHODS.items():
        for photons in (1000.0, 100.0):
            value = setting_of(table, name, method, photons)
            assert value in method.settings or (value is None and not method.settings)


def test_the_files_of_a_module_are_those_it_imports(tmp_path):
    for name, text in {
        "a/__init__.py": "",
        "a/one.py": "import numpy\nfrom a import two\n",
        "a/two.py": "def f():\n    from b.three import g\n",
        "b/__init__.py": "from b import four",
        "b/three.py": "",
        "b/four.py": "",
        "b/five.py": "",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    found = [str(path.relative_to(tmp_path)) for path in imported_files(tmp_path, "a.one")]
    names = "a/__init__.py a/one.py a/two.py b/__init__.py b/four.py b/three.py"
    assert found == names.split()


def test_the_others_do_not_depend_on_our_restoration():
    for name, method in METHODS.items():
        files = {str(path.relative_to(ROOT)) for path in imported_files(ROOT, *method.code)}
        assert ("restoration/with_map.py" in files) == name.startswith("ours")
        assert ("restoration/iteration.py" in files) == name.startswith("ours")
    blind = imported_files(ROOT, *METHODS[BLIND[1]].code)
    assert ROOT / "restoration" / "rivals.py" in blind
    keys = [method_key(METHODS[BLIND[1]], value) for value in (0.1, 0.3)]
    assert keys[0] != keys[1] and method_key(METHODS[BLIND[1]], 0.1) == keys[0]
    assert method_key(METHODS[BLIND_BEST[1]], 0.1)["function"] != keys[0]["function"]


def test_the_text_of_an_oracle_holds_the_functions_it_calls():
    text = function_text(METHODS[BLIND_BEST[1]].restore)
    for name in ("oracle_total_variation", "best_by_truth", "blind_total_variation"):
        assert f"def {name}(" in text
    assert "def blind_richardson_lucy(" not in text


def test_a_step_of_blind_richardson_lucy_is_one_on_the_psf_and_one_on_the_image(scene, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "restoration.rivals.blind_richardson_lucy",
        lambda image, rounds, steps: asked.append(rounds * steps) or (image, None),
    )
    for steps in METHODS[BLIND[0]].settings:
        blind_richardson_lucy(trial_of(scene), steps)
    assert asked == list(METHODS[BLIND[0]].settings)


def brightened(trial, factor):
    """Stands in for a method."""
    return trial.image * factor


@pytest.fixture
def one_method(monkeypatch, scene):
    """Restorations that `run_case` made, of a scene that may be replaced."""
    calls = []

    def counted(trial, factor):
        calls.append(factor)
        return brightened(trial, factor)

    fake = {"scene": scene, "trial": trial_of, "calls": calls}
    monkeypatch.setattr(figure_deconvolution, "make_scene", lambda _: fake["scene"])
    monkeypatch.setattr(figure_deconvolution, "trial_of", lambda s: fake["trial"](s))
    monkeypatch.setitem(METHODS, "bright", Method(counted, shown=True))
    monkeypatch.setitem(METHODS, "mapped", Method(counted, uses_map=True, twice=False))
    return fake


def test_a_method_runs_again_only_if_what_it_uses_has_changed(case, scene, one_method, tmp_path):
    calls = one_method["calls"]
    keys = {name: {"setting": 2.0, "code": "a"} for name in ("bright", "mapped")}
    run_case(case, keys, tmp_path)
    assert len(calls) == 3  # two exposures of one method, one of the other
    run_case(case, keys, tmp_path)
    assert len(calls) == 3
    run_case(case, keys | {"mapped": {"setting": 2.0, "code": "b"}}, tmp_path)
    assert len(calls) == 4
    other = replace(scene.labels, values=0.9 * scene.labels.values)
    one_method["trial"] = lambda s: Trial(s, other, s.blur)
    run_case(case, keys | {"mapped": {"setting": 2.0, "code": "b"}}, tmp_path)
    assert len(calls) == 5  # the map is another
    one_method["scene"] = replace(scene, second=scene.second + 1)
    run_case(case, {"bright": keys["bright"]}, tmp_path)
    assert len(calls) == 7
    stored = read_json(result_path(tmp_path, case, "bright"), "case")
    twice = 2 * scene.image
    assert stored["row"]["snr_gain_db"] == pytest.approx(
        snr_db(twice, scene.truth) - snr_db(scene.image, scene.truth)
    )
    assert stored["row"]["setting"] == 2.0 and stored["row"]["objects"] == "photograph"
    shown = np.load(result_path(tmp_path, case, "bright").with_suffix(".npy"))
    assert np.array_equal(shown, twice.numpy())


def rows_of(gains, photons=100.0):
    """Rows of deconvolution.csv from gains by method and image."""
    names = ("snr_gain_centre_db", "psnr_db", "psnr_centre_db", "ssim", "ssim_centre", "seconds")
    kinds = ("photograph", "micrograph", "procedural")
    return pd.DataFrame(
        dict.fromkeys(names, 1.0)
        | {"photons": photons, "method": method, "index": index, "setting": 3.0}
        | {"name": f"object {index}", "objects": kinds[min(index, 2)]}
        | {"snr_gain_db": gain, "snr_gain_sharp_db": gain, "frc_pair_um": 1.0 + index}
        | {"frc_truth_um": math.inf if index == 0 else 2.0}
        for method, values in gains.items()
        for index, gain in enumerate(values)
    )


GAINS = {
    INPUT: (0.0, 0.0, 0.0, 0.0),
    BLIND[0]: (0.1, 0.1, 0.1, 0.1),
    BLIND[1]: (0.2, 0.2, 0.2, 0.6),
    BLIND_BEST[0]: (0.5, 0.2, 0.2, 0.6),
    BLIND_BEST[1]: (0.2, 0.2, 0.2, 0.7),
    DEEPINV: (0.5, 0.5, 0.5, 0.5),
    OURS: (1.0, 2.0, -0.5, -0.05),
    ORACLE: (1.5, 2.0, 0.0, 2.0),
}


def test_summary_has_means_intervals_and_counts():
    summary = summarise(rows_of(GAINS)).set_index(["objects", "method"])
    line = summary.loc["all", OURS]
    assert line["images"] == 4 and line["worse_than_input"] == 1 and line["sharp_harmed"] == 1
    assert line["snr_gain_db"] == pytest.approx(2.45 / 4)
    # Student's t with 3 degrees of freedom: 3.182; standard deviation of the four gains: 1.1183
    assert line["interval_95_db"] == pytest.approx(3.182 * 1.1183 / 2, rel=1e-3)
    assert line["worst_gain_db"] == -0.5
    assert line["frc_pair_um"] == 2.5 and line["frc_truth_um"] == 2.0
    assert summary.loc["micrograph", OURS]["snr_gain_db"] == 2.0
    assert summary.loc["procedural", OURS]["images"] == 2
    assert math.isnan(summary.loc["photograph", OURS]["interval_95_db"])


def test_the_report_names_leads_losses_and_harm(capsys):
    report(rows_of(GAINS))
    text = capsys.readouterr().out
    assert "best blind method (blind total variation): 0.31 +-" in text  # 2.45 / 4 - 1.2 / 4
    assert "suit each image: 0.21 +-" in text  # minus the mean of 0.5, 0.2, 0.2, 0.7
    assert "true map: 0.76 +-" in text and "median 0.50 dB" in text
    assert "input by more than 0.1 dB: 1" in text and "more than 0.1 dB: 1 of 4" in text
    assert f"ahead of {DEEPINV}: 2 of 4" in text


def test_the_inset_is_where_ours_and_the_input_differ_most_in_error():
    truth = np.zeros((200, 300))
    blurred = truth.copy()
    blurred[70:120, 150:200] = 1
    blurred[:64, :64] = 2
    ours = blurred.copy()
    ours[70:120, 150:200] = 0.1  # the larger error is not corrected
    top, left = inset_place(truth, blurred, ours)
    assert top <= 70 and 120 <= top + INSET_PX and left <= 150 and 200 <= left + INSET_PX
    ours[-3:, -3:] = 30  # and here ours is worse than the input
    assert inset_place(truth, blurred, ours) == (200 - INSET_PX, 300 - INSET_PX)


def test_every_method_has_one_colour_and_those_in_one_figure_differ():
    names = [*METHODS, *IMAGE_METHODS]
    assert {method_colour(name) for name in names} <= set(METHOD_COLOURS.values())
    shown = [INPUT, *BLIND, SCHEME_2018, DEEPINV, OURS, ORACLE]
    assert len({method_colour(name) for name in shown}) == len(shown)
    assert method_colour("deepinv Richardson-Lucy") == method_colour(DEEPINV) == COLOURS[1]
    assert method_colour(BLIND_BEST[0]) == method_colour(BLIND[0])
    ours = (OURS, "ours", "ours, total variation", "ours, learned", OURS_TV)
    assert {method_colour(name) for name in ours} == {OURS_COLOUR} != {method_colour(ORACLE)}


@pytest.fixture
def drawn(monkeypatch):
    """Figures by name that would have been saved."""
    saved = {}
    monkeypatch.setattr(
        "common.deconvolution_figure.save_figure",
        lambda path, figure, dpi: saved.__setitem__(path.name, figure),
    )
    return saved


@pytest.fixture
def shown() -> ShownCase:
    """An object whose restorations have known errors."""
    truth = np.random.default_rng(0).random((80, 80)) * 100
    images = {TRUTH: truth, INPUT: truth + 8, OURS: truth - 4, ORACLE: truth}
    curves = {INPUT: np.full(64, 0.2), OURS: np.full(64, 0.6), ORACLE: np.ones(64)}
    gains = {INPUT: 0.0, OURS: 1.04, ORACLE: -2.0}
    return ShownCase("best", 3, "round beads, zernike1d", gains, images, curves)


def assert_scale_bar_inside(axes):
    """All lines and texts of a scale bar lie in the image; outside, they would move the columns."""
    ends = [x for line in axes.lines for x in line.get_xdata()]
    assert ends and 0 < min(ends) < max(ends) < 1
    assert 0 < axes.texts[0].get_position()[0] < 1


def test_the_figure_of_cases_shows_fields_above_their_insets(drawn, shown):
    draw_cases(Path("cases"), [shown], OURS, 0.3, 100.0)
    assert set(drawn) == {"cases.png", "cases.pdf"}
    axes = drawn["cases.png"].axes
    fields, insets = axes[:4], axes[4:]
    titles = [at.get_title() for at in fields]
    assert titles[2:] == ["ours\nestimated map\n+1.0 dB", "ours\ntrue map\n\N{MINUS SIGN}2.0 dB"]
    assert [title.strip() for title in titles[:2]] == [TRUTH, INPUT]
    assert fields[2].title.get_color() == OURS_COLOUR
    assert fields[0].get_ylabel() == "best: round beads\nzernike1d, 24 µm wide"
    top, left = inset_place(*(shown.images[name] for name in (TRUTH, INPUT, OURS)))
    for field, inset, image in zip(fields, insets, shown.images.values(), strict=True):
        assert np.array_equal(field.images[0].get_array(), image)
        part = image[top : top + INSET_PX, left : left + INSET_PX]
        assert np.array_equal(inset.images[0].get_array(), part)
        assert inset.images[0].get_interpolation() == "nearest"
        box = field.patches[0].get_bbox().bounds
        assert box == (left - 0.5, top - 0.5, INSET_PX, INSET_PX)  # from edge to edge of pixels
    for row in (fields, insets):
        assert len({at.images[0].get_clim() for at in row}) == 1  # the same grey values for all
    figure, width_px = drawn["cases.png"], 180 / 25.4 * 200
    figure.draw_without_rendering()
    assert figure.get_figwidth() * 200 == pytest.approx(width_px)
    assert_scale_bar_inside(insets[0])
    assert insets[0].get_position().width * width_px >= 2 * INSET_PX  # px of the figure


def test_the_figure_of_errors_has_one_symmetric_scale_and_the_correlations(drawn, shown):
    draw_errors(Path("errors"), [shown], 0.3, 100.0)
    blurred, ours, _, curves, bar = drawn["errors.png"].axes
    assert np.allclose(blurred.images[0].get_array(), 8)
    assert np.allclose(ours.images[0].get_array(), -4)
    for at in (blurred, ours):
        assert at.images[0].get_clim() == pytest.approx((-8, 8))
    assert_scale_bar_inside(blurred)
    assert bar.get_ylabel() == "image \N{MINUS SIGN} truth,\nphotons per pixel"
    heights = {line.get_color(): line.get_ydata()[0] for line in curves.lines}
    assert heights[OURS_COLOUR] == 0.6 and heights[method_colour(INPUT)] == 0.2
    frequency = curves.lines[0].get_xdata()
    assert frequency[-1] == pytest.approx(63.5 / 64 * 0.5 / 0.3)  # cycles per um
    assert curves.lines[-1].get_ydata()[0] == 0.5  # the threshold


def test_the_figure_of_gains_sorts_objects_and_names_the_curves(drawn):
    frequencies = (np.arange(64) + 0.5) / 128
    curves = pd.DataFrame({"cycles_per_px": frequencies, "with": "truth", "photons": 100.0})
    compared = [BLIND[1], DEEPINV, ORACLE, OURS]
    levels = {INPUT: 0.1, BLIND[1]: 0.3, DEEPINV: 0.2, OURS: 0.5, ORACLE: 0.9}
    curves = pd.concat([curves.assign(method=n, correlation=v) for n, v in levels.items()])
    curves = pd.concat([curves, curves.assign(correlation=0.0, **{"with": "pair"})])
    draw_gains(Path("gains"), rows_of(GAINS), curves, compared, 0.3)
    dots, lines = drawn["gains.png"].axes
    order = [2, 3, 0, 1]  # by the gains of ours
    for line, name in zip(dots.lines, compared, strict=False):
        assert list(line.get_ydata()) == [GAINS[name][index] for index in order]
        assert line.get_color() == method_colour(name)
    assert [text.get_text() for text in dots.get_xticklabels()] == [f"object {i}" for i in order]
    assert len(dots.patches) == 2  # bands behind the photograph and the micrograph
    heights = {line.get_color(): line.get_ydata()[0] for line in lines.lines}
    assert heights.items() >= {method_colour(n): v for n, v in levels.items()}.items()
    names = [text.get_text() for text in lines.texts[1:]]  # the first is the threshold
    assert names == ["ours, true map", "ours", BLIND[1], "deepinv Richardson-Lucy", INPUT]
    legend = [text.get_text() for text in drawn["gains.png"].legends[0].get_texts()]
    assert legend[:4] == compared


def test_shown_cases_are_kept_to_half_a_step(shown, tmp_path):
    table = rows_of(GAINS).assign(model="zernike1d")
    write_shown(tmp_path / "shown.npz", [shown], 100.0)
    (found,), photons = read_shown(tmp_path / "shown.npz", table)
    assert photons == 100.0 and (found.rank, found.index) == ("best", 3)
    assert found.title == "object 3, zernike1d" and found.gains[OURS] == -0.05
    assert list(found.images) == list(shown.images)
    for name, image in found.images.items():
        difference = np.abs(image - shown.images[name].clip(min=0))
        assert 0.4 * 100 * STEP < difference.max() <= 0.5001 * 100 * STEP
    assert np.allclose(found.correlations[OURS], 0.6)


def test_the_best_rival_has_the_highest_mean_gain_of_the_kept_ones():
    assert best_rival(rows_of(GAINS)) == DEEPINV
    assert best_rival(rows_of(GAINS | {BLIND[1]: (0.9, 0.9, 0.9, 0.9)})) == BLIND[1]
    assert best_rival(rows_of({name: GAINS[name] for name in (*BLIND, OURS)})) == BLIND[1]


def test_figures_are_drawn_again_from_the_tables_alone(drawn, monkeypatch, tmp_path):
    config = Config(
        out=tmp_path / "out", images=3, photons=(100.0,), size=256, scratch=tmp_path / "scratch"
    )
    with pytest.raises(InputError, match=r"csv does not exist; run .* without --draw-only"):
        main(replace(config, draw_only=True))
    methods = (INPUT, *BLIND, OURS, ORACLE)
    keys = {case: dict.fromkeys(methods) for case in cases(config)}
    monkeypatch.setattr(figure_deconvolution, "method_keys", lambda *_: keys)
    rng = np.random.default_rng(0)
    rows = rows_of({name: GAINS[name] for name in methods}).assign(model="zernike1d")
    for case in keys:
        for name in methods:
            path = result_path(config.scratch, case, name)
            row = rows[(rows["index"] == case.index) & (rows["method"] == name)].iloc[0].to_dict()
            curves = {"frc_pair": [], "frc_truth": [0.5] * 64}
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"row": row, "curves": curves})
            save_image(path.with_suffix(".npy"), torch.from_numpy(rng.random((80, 80)) * 100))
        save_image(path.with_name("truth.npy"), torch.from_numpy(rng.random((80, 80)) * 100))
    config.out.mkdir()
    write_results(config)
    draw(config.out)
    shutil.rmtree(config.scratch)
    first = {name: pixels(figure) for name, figure in drawn.items() if name.endswith(".png")}
    drawn.clear()
    main(replace(config, draw_only=True))
    again = {name: pixels(figure) for name, figure in drawn.items() if name.endswith(".png")}
    assert len(again) == 3 and again == first
    labels = [at.get_ylabel() for at in drawn["figure_deconvolution.png"].axes[::10]]
    assert [label.split("\n")[0] for label in labels] == [
        f"{rank}: object {index}" for rank, index in (("best", 1), ("median", 0), ("worst", 2))
    ]


def pixels(figure) -> list[bytes]:
    """What the images and lines of a figure show."""
    shown = [image.get_array() for axes in figure.axes for image in axes.images]
    return [array.tobytes() for array in shown] + [
        np.asarray(line.get_ydata()).tobytes() for axes in figure.axes for line in axes.lines
    ]


def test_the_weight_of_blind_total_variation_follows_the_photons(scene, monkeypatch):
    weights = []
    monkeypatch.setattr(
        "restoration.rivals.blind_total_variation",
        lambda image, weight: weights.append(weight) or (image, None),
    )
    blind_total_variation(trial_of(scene), 0.3)
    assert weights[0] == pytest.approx(0.3 / math.sqrt(float(scene.image.mean())))
