"""The restoration experiment: scores by value, scenes of the right blur, tables that add up."""

import math

import pandas as pd
import pytest
import torch

import figure_deconvolution
from common.files import read_json, write_json
from figure_deconvolution import (
    BLIND,
    INPUT,
    OURS,
    Config,
    cases,
    run_missing,
    summarise,
    with_best_setting,
)
from restoration.scenes import BORDER, Case, Scene, make_scene, mean_psf, score, snr_db
from simulation.sources import TEST_IMAGES

# a little light lies outside of the supports that render the truth
pytestmark = pytest.mark.filterwarnings("ignore::psf.synthesis.EnergyWarning")


def test_snr_is_that_of_a_known_error():
    truth = torch.full((40, 40), 10.0)
    assert snr_db(truth + 1, truth) == pytest.approx(20)
    assert snr_db(truth * 1.1, truth) == pytest.approx(20, abs=1e-3)


def test_cases_begin_with_the_test_images_and_take_turns():
    found = cases(Config(images=8, photons=(1000.0, 100.0)))
    assert [case.name for case in found[:8:2]] == list(TEST_IMAGES)
    assert len({case.key for case in found}) == 16
    assert {case.model for case in found} == {"zernike1d", "zernike2d", "gaussian2d"}
    assert {case.map_kind for case in found} == {"tilted plane", "random map"}


@pytest.fixture(scope="module")
def scene() -> Scene:
    return make_scene(Case(2, "gravel", "zernike1d", "tilted plane", 1000.0, 256, 0))


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


def test_the_mean_psf_lies_between_the_sharpest_and_the_widest(scene):
    peak = float(mean_psf(scene).max())
    peaks = [float(scene.blur.psf_at(128, x).max()) for x in (0, 255)]
    assert min(peaks) < peak < max(peaks)


def test_the_best_setting_is_chosen_by_the_truth(scene):
    def method(image, share):
        return (1 - share) * image + share * scene.truth, None

    found = with_best_setting(scene, method, (0.1, 0.9, 0.5))
    assert torch.allclose(found, method(scene.image, 0.9)[0])


class InThisProcess:
    """Stands in for the pool of processes, so that the case can be replaced."""

    def __init__(self, workers):
        self.close = self.join = lambda: None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def imap_unordered(self, work, tasks):
        return map(work, tasks)


@pytest.fixture
def restored(monkeypatch):
    """Keys of the cases that `run_missing` restores, whose work is left out."""
    done = []

    def run_case(case_and_key, folder):
        case, key = case_and_key
        done.append(case.key)
        write_json(folder / f"{case.key}.json", {"key": key, "rows": []})

    context = type("Context", (), {"Pool": InThisProcess})
    monkeypatch.setattr("multiprocessing.get_context", lambda _: context)
    monkeypatch.setattr(figure_deconvolution, "run_case", run_case)
    return done


def test_finished_cases_are_kept_until_network_code_or_settings_change(
    tmp_path, monkeypatch, restored
):
    code, fingerprints = ["code"], {"zernike1d_tilted": "a", "zernike2d_tilted": "b"}

    def network(name):
        return type("Network", (), {"fingerprint": fingerprints[name]})

    monkeypatch.setattr(figure_deconvolution, "load_estimator", network)
    monkeypatch.setattr(figure_deconvolution, "code_fingerprint", lambda *_: code[0])
    config = Config(scratch=tmp_path, images=2, photons=(100.0,), size=256)
    focus, astigmatism = (case.key for case in cases(config))
    run_missing(config)
    assert restored == [focus, astigmatism]
    run_missing(config)
    assert len(restored) == 2
    fingerprints["zernike2d_tilted"] = "retrained"
    run_missing(config)
    assert restored[2:] == [astigmatism]
    code[0] = "changed"
    run_missing(config)
    assert restored[3:] == [focus, astigmatism]
    write_json(tmp_path / f"{focus}.json", {"rows": []})  # as older code wrote it
    run_missing(config)
    assert restored[5:] == [focus]


def test_the_key_of_a_case_names_its_network_and_all_code_that_computes_it(tmp_path, restored):
    config = Config(scratch=tmp_path, images=1, photons=(100.0,), size=256)
    run_missing(config)
    key = read_json(tmp_path / f"{restored[0]}.json", "case")["key"]
    estimator = figure_deconvolution.load_estimator("zernike1d_tilted")
    assert key["network"] == estimator.fingerprint
    assert key["code"] == figure_deconvolution.code_fingerprint(*figure_deconvolution.CODE)
    assert key["model"] == "zernike1d" and key["size"] == 256 and key["photons"] == 100
    names = {path.name for path in figure_deconvolution.CODE}
    assert names == {"psf", "simulation", "models", "restoration", "figure_deconvolution.py"}


def test_summary_has_means_intervals_and_counts():
    rows = []
    for index, gain in enumerate((1.0, 2.0, -0.5)):
        for method, value in ((INPUT, 0.0), (OURS, gain), (BLIND[0], 0.1)):
            names = ("snr_gain_centre_db", "psnr_db", "psnr_centre_db", "ssim", "ssim_centre")
            row = dict.fromkeys(names, 1.0) | {"photons": 100.0, "method": method, "index": index}
            rows.append(row | {"snr_gain_db": value, "snr_gain_sharp_db": value, "seconds": 1.0})
    line = summarise(pd.DataFrame(rows)).set_index("method").loc[OURS]
    assert line["images"] == 3 and line["worse_than_input"] == 1
    assert line["snr_gain_db"] == pytest.approx(2.5 / 3)
    assert line["interval_95_db"] == pytest.approx(1.96 * 1.2583 / math.sqrt(3), rel=1e-3)
    assert line["worst_gain_db"] == -0.5
