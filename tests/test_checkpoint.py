"""Checkpoints: what is loaded predicts what was saved, and broken ones say what is broken."""

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import models
from models.checkpoint import load_estimator, save_checkpoint
from models.data import PatchSet
from models.error_bars import interval_factors, noise_share
from models.estimator import OPTICS_TOLERANCE, Estimator, OpticsWarning, outside_limits
from models.loss import Scaler, split_outputs
from psf import InputError, Microscope, psf_model

MICROSCOPE = Microscope()
OTHER_NA = Microscope(na=0.3, pixel_size_um=0.4)
SAME = 1e-6  # of predictions; the same arithmetic in the same order


@pytest.fixture(scope="module")
def estimator(focus_run):
    return load_estimator(focus_run)


@pytest.fixture(scope="module")
def patches(focus_data):
    patch_set = PatchSet(focus_data, "test")
    return next(patch_set.recorded(CLEAN, 12, torch.device("cpu"))).patches


class CLEAN:  # the stored patches
    record = staticmethod(lambda patch, seed: patch)


@pytest.fixture
def copy(focus_run, tmp_path):
    """A checkpoint folder to break."""
    for name in ("model.safetensors", "config.json", "README.md"):
        shutil.copy(focus_run / name, tmp_path)
    return tmp_path


# --- predictions


def test_package_offers_the_loader():
    assert models.load_estimator is load_estimator


def test_saved_and_loaded_networks_predict_the_same(estimator, patches, tmp_path):
    save_checkpoint(tmp_path / "again", estimator.network, estimator.config)
    again = load_estimator(str(tmp_path / "again")).predict(patches, MICROSCOPE)
    first = estimator.predict(patches, MICROSCOPE)
    for name in ("values", "standard_deviations", "half_widths_95", "content_probability"):
        assert torch.allclose(getattr(again, name), getattr(first, name), atol=SAME)
    assert (again.names, again.unit) == (("focus",), "waves")


def test_prediction_is_the_network_in_label_units(estimator, patches):
    normal = (patches - patches.mean((1, 2), True)) / patches.std(
        (1, 2), correction=0, keepdim=True
    )
    with torch.inference_mode():
        outputs = estimator.network(normal, torch.full((12,), MICROSCOPE.cutoff_cycles_per_pixel))
    values, log_variances, logits = split_outputs(outputs)
    found = estimator.predict(patches, MICROSCOPE)
    # labels run from 0 to 1 wave: half a range is 0.5
    assert torch.allclose(found.values, 0.5 + 0.5 * values, atol=1e-4)
    raw = (log_variances / 2).exp()
    factors = interval_factors(estimator.config, raw, noise_share(normal))
    for half_widths, factor in zip(
        (found.standard_deviations, found.half_widths_95), factors, strict=True
    ):
        assert torch.allclose(half_widths, 0.5 * raw * factor, rtol=2e-3)
    assert torch.allclose(found.content_probability, logits.sigmoid(), atol=1e-4)
    assert float(found.values.std()) > 100 * SAME  # it is no constant


def test_predictions_do_not_depend_on_brightness_and_offset(estimator, patches):
    first = estimator.predict(patches, MICROSCOPE)
    brighter = estimator.predict(3.7 * patches + 5000, MICROSCOPE)
    assert torch.allclose(first.values, brighter.values, atol=2e-3)


def test_predictions_do_not_depend_on_the_batch_size(estimator, patches):
    first = estimator.predict(patches, MICROSCOPE, batch_size=64)
    second = estimator.predict(patches, MICROSCOPE, batch_size=5)
    assert torch.allclose(first.values, second.values, atol=1e-5)


def test_one_microscope_stands_for_all_patches(estimator, patches):
    one = estimator.predict(patches, MICROSCOPE)
    each = estimator.predict(patches, [MICROSCOPE] * 12)
    assert torch.allclose(one.values, each.values, atol=SAME)


@pytest.mark.filterwarnings("ignore::models.estimator.OpticsWarning")
def test_each_patch_has_the_optics_of_its_own_microscope(estimator, patches):
    mixed = estimator.predict(patches[:2], [MICROSCOPE, OTHER_NA])
    alone = [estimator.predict(patches[i : i + 1], m) for i, m in enumerate([MICROSCOPE, OTHER_NA])]
    assert torch.allclose(mixed.values, torch.cat([p.values for p in alone]), atol=1e-5)


def test_standard_deviations_scale_with_the_label_range(estimator, patches):
    config = {**estimator.config, "label_ranges": [[0.0, 4.0]]}
    wide = replace(estimator, config=config).predict(patches, MICROSCOPE)
    narrow = estimator.predict(patches, MICROSCOPE)
    assert torch.allclose(wide.standard_deviations, 4 * narrow.standard_deviations)
    assert torch.allclose(wide.values, 4 * narrow.values, atol=1e-5)
    scaler = Scaler.from_ranges([[0.0, 4.0]])
    assert float(scaler.half_range) == 2


def test_um_per_unit_is_that_of_the_labels_of_the_network(estimator):
    # one wave of focus is 2 n lambda / NA^2 deep
    found = estimator.um_per_unit(MICROSCOPE)
    assert found == {"focus": pytest.approx(2 * 1.33 * 0.5 / 0.45**2)}
    gaussian = {"psf_model": psf_model("gaussian1d").as_config()}
    in_pixels = replace(estimator, config={**estimator.config, **gaussian})
    assert in_pixels.um_per_unit(MICROSCOPE) == {"fwhm": 0.278}


@pytest.mark.parametrize("bad", ["size", "axes", "nan", "infinity"])
def test_patches_that_do_not_fit_are_refused(estimator, patches, bad):
    broken = patches.clone()
    if bad == "size":
        broken, message = broken[:, :60], r"shape \(12, 60, 64\); this network takes \(N, 64, 64\)"
    elif bad == "axes":
        broken, message = broken[0], r"shape \(64, 64\)"
    else:
        broken[3, 2, 1], message = float(bad), "NaN or infinite"
    with pytest.raises(InputError, match=message):
        estimator.predict(broken, MICROSCOPE)


# --- optics


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"na": 0.3}, "na 0.3, trained on 0.45"),
        ({"wavelength_um": 0.6}, "wavelength_um 0.6"),
        ({"pixel_size_um": 0.2}, "pixel_size_um 0.2, trained on 0.278"),
        ({"refractive_index": 1.0}, "refractive_index 1"),
    ],
)
def test_warns_of_optics_outside_of_the_trained_range(estimator, patches, changes, named):
    with pytest.warns(OpticsWarning, match=named):
        estimator.predict(patches, replace(MICROSCOPE, **changes))


def test_does_not_warn_inside_of_the_trained_range(estimator, patches):
    slightly_off = replace(MICROSCOPE, na=0.45 * (1 + OPTICS_TOLERANCE / 2), pixel_size_um=0.275)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        estimator.predict(patches, slightly_off)


def test_limits_are_a_closed_interval_with_a_tolerance():
    limits = {"na": [0.3, 0.5]}
    for na, count in ((0.3, 0), (0.5, 0), (0.295, 0), (0.509, 0), (0.29, 1), (0.52, 1)):
        assert len(outside_limits(Microscope(na=na, pixel_size_um=0.2), limits)) == count


def test_gaussian_widths_in_pixels_do_not_depend_on_the_optics(estimator, patches):
    model = psf_model("gaussian1d", {"fwhm": (0.0, 8.0)}).as_config()
    gaussian = replace(estimator, config={**estimator.config, "psf_model": model})
    assert isinstance(gaussian, Estimator)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = gaussian.predict(patches, OTHER_NA).values
    # the network was trained at the cut-off of MICROSCOPE
    assert torch.allclose(found, gaussian.predict(patches, MICROSCOPE).values, atol=SAME)
    with pytest.warns(OpticsWarning):
        focus = estimator.predict(patches, OTHER_NA).values
    assert not torch.allclose(found, focus, atol=100 * SAME)


# --- files


def test_folder_holds_weights_config_and_card_and_no_pickle(focus_run):
    suffixes = {path.suffix for path in focus_run.iterdir()}
    assert suffixes == {".safetensors", ".json", ".md", ".csv", ".png"}
    config = json.loads((focus_run / "config.json").read_text())
    assert config["label_names"] == ["focus"]
    assert config["label_unit"] == "waves"
    assert config["label_ranges"] == [[0.0, 1.0]]
    assert config["optics_limits"]["na"] == [0.45, 0.45]
    assert config["patch_size"] == 64


def test_model_card_says_what_for_and_how_it_was_made(focus_run):
    card = (focus_run / "README.md").read_text(encoding="utf-8")
    config = json.loads((focus_run / "config.json").read_text())
    assert "focus (0 to 1 waves)" in card
    assert "| na | 0.45 |" in card
    assert "| pixel_size_um | 0.278 |" in card
    assert "200 patches of 13 source images" in card
    assert f"`{config['run']['command']}`" in card
    for condition, (score,) in config["validation"].items():
        assert f"| {condition} | {score:.3f} |" in card


def test_truncated_weights_are_named(copy):
    path = copy / "model.safetensors"
    whole = path.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"model\.safetensors is truncated") as caught:
            load_estimator(copy)
        assert "\n" not in str(caught.value)


def test_weights_of_another_network_are_named(copy):
    path = copy / "model.safetensors"
    weights = load_file(path)
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(InputError, match=r"model\.safetensors is .* of another network"):
        load_estimator(copy)
    name = next(iter(weights))
    save_file({**weights, name: torch.zeros(2, 3)}, path)
    with pytest.raises(InputError, match=r"model\.safetensors is .* of another network"):
        load_estimator(copy)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_missing_files_are_named(copy, missing):
    (copy / missing).unlink()
    with pytest.raises(InputError, match="is no checkpoint"):
        load_estimator(copy)


def test_folder_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"there is no checkpoint folder .*nowhere"):
        load_estimator(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["architecture", "label_names", "optics_limits", "patch_size"])
def test_config_that_lacks_something(copy, name):
    config = json.loads((copy / "config.json").read_text())
    del config[name]
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=rf"config\.json lacks {name}"):
        load_estimator(copy)


def test_config_of_something_else(copy, focus_data):
    shutil.copy(focus_data / "config.json", copy / "config.json")
    with pytest.raises(InputError, match="is no checkpoint; train one"):
        load_estimator(copy)


def test_config_of_an_unknown_network(copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "architecture": "vgg"}))
    with pytest.raises(InputError, match="unknown network 'vgg'"):
        load_estimator(copy)


def test_arrays_of_integers_are_predicted_like_tensors(focus_run, focus_data):
    estimator, patch_set = load_estimator(focus_run), PatchSet(focus_data, "test")
    stored = patch_set.read(np.arange(3)).numpy()  # uint16, as a camera gives them
    expected = estimator.predict(torch.from_numpy(stored.astype(np.float32)), Microscope())
    found = estimator.predict(stored, Microscope())
    assert torch.equal(found.values, expected.values)


def test_folder_of_several_checkpoints_names_them(tmp_path, focus_run):
    shutil.copytree(focus_run, tmp_path / "runs" / "first")
    with pytest.raises(InputError, match="several checkpoints; give one: first"):
        load_estimator(tmp_path / "runs")


# --- names of shipped weights


@pytest.fixture
def shipped(tmp_path, monkeypatch, focus_run):
    """Weights called first and second come with the project; a third folder has none."""
    for name in ("second", "first"):
        shutil.copytree(focus_run, tmp_path / "checkpoints" / name)
    (tmp_path / "checkpoints" / "empty").mkdir()
    monkeypatch.setattr(models.checkpoint, "SHIPPED", tmp_path / "checkpoints")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_shipped_weights_load_by_name(shipped, estimator, patches):
    assert models.checkpoint.shipped_names() == ("first", "second")
    expected = estimator.predict(patches, MICROSCOPE)
    for name in ("first", Path("second")):
        found = load_estimator(name).predict(patches, MICROSCOPE)
        assert torch.equal(found.values, expected.values)
        assert torch.equal(found.half_widths_95, expected.half_widths_95)


def test_unknown_names_are_answered_with_the_known_ones(shipped):
    with pytest.raises(InputError, match=r"folder third; .* shipped name: first, second\."):
        load_estimator("third")
    with pytest.raises(InputError, match="shipped name: first, second"):
        load_estimator("empty")


def test_without_shipped_weights_there_is_no_name(monkeypatch, tmp_path):
    monkeypatch.setattr(models.checkpoint, "SHIPPED", tmp_path / "none")
    with pytest.raises(InputError, match="shipped name: none"):
        load_estimator("zernike1d")


def test_a_folder_goes_before_a_name(shipped, focus_run):
    config = json.loads((focus_run / "config.json").read_text())
    shutil.copytree(focus_run, shipped / "first")
    (shipped / "first" / "config.json").write_text(json.dumps({**config, "label_unit": "um"}))
    assert load_estimator("first").config["label_unit"] == "um"
    assert load_estimator("second").config["label_unit"] == "waves"
