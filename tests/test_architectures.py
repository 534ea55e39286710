"""The comparison of architectures: its table holds the scores of the runs, its figure shows it."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex, to_rgb
from sklearn.metrics import r2_score

import figure_architectures
from common.pictures import COLOURS, NETWORK_COLOURS, condition_style, network_colours
from models.checkpoint import load_estimator, shipped_names
from models.data import CONDITIONS, PatchSet
from psf import InputError
from psf.microscope import simulated_microscopes

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import architectures


@pytest.fixture
def config(tmp_path, focus_data, focus_run):
    return architectures.Config(
        data=focus_data, collect_only=(focus_run,), out=tmp_path, device="cpu"
    )


def copied_run(source, folder, **changes):
    """Copy of a run with other content of its run_config.json."""
    shutil.copytree(source, folder)
    description = json.loads((folder / "run_config.json").read_text())
    (folder / "run_config.json").write_text(json.dumps({**description, **changes}))
    return folder


def test_rows_are_the_epochs_and_the_saved_weights(config, focus_run, focus_data):
    architectures.main(config)
    table = pd.read_csv(config.out / "architectures.csv")
    metrics = pd.read_csv(focus_run / "metrics.csv").iloc[0]
    for condition in CONDITIONS:
        rows = table[table["condition"] == condition.name].set_index("split")
        epoch, tested = rows.loc["validation"], rows.loc["test"]
        assert epoch["r2"] == pytest.approx(metrics[f"r2_focus_{condition.name}"])
        assert epoch["patches_seen"] == metrics["patches_seen"] == 200
        assert epoch["seconds"] == pytest.approx(60 * metrics["minutes"], rel=1e-4)
        assert tested["r2_low"] <= tested["r2"] <= tested["r2_high"]
    estimator = load_estimator(focus_run)
    test_set = PatchSet(focus_data, "test")
    keep = test_set.has_content
    (microscope,) = simulated_microscopes(test_set.optics[:1].tolist())
    patches = test_set.read(np.arange(test_set.count)).float()
    found = estimator.predict(patches, microscope).values[keep]
    at = (table["split"] == "test") & (table["condition"] == "noise-free")
    row = table[at].iloc[0]
    assert row["r2"] == pytest.approx(r2_score(test_set.labels[keep], found), abs=1e-4)
    assert row["scored_patches"] == int(keep.sum())
    assert row["source_images"] == len(np.unique(test_set.source_names[keep.numpy()]))
    weights = sum(p.numel() for p in estimator.network.parameters())
    assert set(table["weights"]) == {weights}
    assert table["processor"].str.contains("thread").all()
    text = (config.out / "architectures.md").read_text()
    assert f"| `spectral_resnet` | {weights / 1e6:.1f} M | 200 |" in text
    assert f"{row['r2']:.3f} ({row['r2_low']:.3f} to {row['r2_high']:.3f})" in text


def test_weights_that_were_scored_are_not_scored_again(config, monkeypatch):
    architectures.main(config)
    before = pd.read_csv(config.out / "architectures.csv")
    monkeypatch.setattr(architectures, "score_condition", None)
    architectures.main(config)
    pd.testing.assert_frame_equal(pd.read_csv(config.out / "architectures.csv"), before)
    with pytest.raises(TypeError):  # of other patches the scores are not known
        architectures.main(replace(config, test_patches=20))


def test_runs_that_cannot_be_compared_are_refused(config, focus_run, tmp_path):
    data = json.loads((focus_run / "run_config.json").read_text())["data"]
    cases = {
        "other": (
            {"data": {**data, "seed": 9}},
            r"other was trained on other data .*\(seed differ",
        ),
        "twice": ({}, "are both runs of spectral_resnet; give one"),
    }
    for name, (changes, message) in cases.items():
        second = copied_run(focus_run, tmp_path / name, **changes)
        with pytest.raises(InputError, match=message):
            architectures.main(replace(config, collect_only=(focus_run, second)))
    with pytest.raises(InputError, match="empty holds no run with a finished epoch"):
        architectures.main(replace(config, collect_only=(tmp_path / "empty",)))


def test_an_unfinished_run_counts_as_far_as_it_is(config, focus_run, tmp_path):
    folder = copied_run(focus_run, tmp_path / "stopped")
    (folder / "run.json").unlink()
    checkpoint = json.loads((folder / "config.json").read_text())
    del checkpoint["calibration"]  # train.py adds it at the end
    (folder / "config.json").write_text(json.dumps(checkpoint))
    architectures.main(config)
    finished = pd.read_csv(config.out / "architectures.csv")
    architectures.main(replace(config, collect_only=(folder,), out=tmp_path / "out"))
    stopped = pd.read_csv(tmp_path / "out" / "architectures.csv")
    assert not stopped["finished"].any()
    columns = finished.columns.drop("finished")
    pd.testing.assert_frame_equal(stopped[columns], finished[columns])


def test_folders_without_training_patches_are_the_same_stream(config, focus_run, tmp_path):
    data = json.loads((focus_run / "run_config.json").read_text())["data"]
    patches = {**data["patches"], "train": 0}
    copied_run(focus_run, tmp_path / "a", data={**data, "patches": patches})
    assert architectures.read_run(tmp_path / "a", data).network == "spectral_resnet"


def test_other_settings_are_warned_of(focus_run, tmp_path):
    settings = json.loads((focus_run / "run_config.json").read_text())["settings"]
    changes = {"architecture": "resnet18", "settings": {**settings, "seed": 3, "epochs": 7}}
    second = copied_run(focus_run, tmp_path / "b", **changes)
    data = json.loads((focus_run / "run_config.json").read_text())["data"]
    runs = [architectures.read_run(folder, data) for folder in (focus_run, second)]
    with pytest.warns(UserWarning, match=r"differ in seed; their comparison is not fair"):
        architectures.check_runs(runs)


def test_each_network_is_trained_on_its_number_of_patches(monkeypatch, tmp_path):
    commands = []

    def start(command, check):
        commands.append(command[2:])
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", start)
    config = architectures.Config(
        Path("d"), patches=50_000, patches_of={"resnet50": 9000}, runs=tmp_path, seed=4
    )
    (tmp_path / "resnet34").mkdir()
    (tmp_path / "resnet34" / "run.json").touch()
    for network in ("resnet18", "resnet34", "resnet50"):
        architectures.train(config, network)
    first, second = (dict(zip(c[1::2], c[2::2], strict=True)) for c in commands)
    assert [c[0] for c in commands] == ["--fresh", "--fresh"]  # the second one was finished
    asked = [[c[f"--{k}"] for k in ("model", "epochs", "epoch-patches")] for c in (first, second)]
    assert asked == [["resnet18", "3", "16667"], ["resnet50", "1", "9000"]]
    assert first["--seed"] == second["--seed"] == "4"
    assert first["--out"] == str(tmp_path / "resnet18")
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: SimpleNamespace(returncode=2))
    with pytest.raises(InputError, match="training of resnet18 stopped with exit code 2"):
        architectures.train(config, "resnet18")


# --- the figure


def write_table(folder):
    """architectures.csv of two networks; 1 - R^2 falls as 1000 / patches seen."""
    rows = [
        {
            "network": network,
            "psf_model": "zernike1d",
            "processor": "2 threads of a CPU",
            "split": split,
            "patches_seen": seen,
            "seconds": seen / rate,
            "parameter": "focus",
            "condition": condition,
            "r2": 1 - 1000 / seen,
            "r2_low": 1 - 2000 / seen if split == "test" else np.nan,
            "r2_high": 1 - 500 / seen if split == "test" else np.nan,
        }
        for network, rate in (("resnet18", 100), ("spectral_resnet", 500))
        for condition in ("noise-free", "8-bit", "10 photons")
        for split, budgets in (("validation", (500, 2000, 20_000)), ("test", (20_000,)))
        for seen in budgets
    ]
    pd.DataFrame(rows).to_csv(folder / "architectures.csv", index=False)


def test_lines_and_points_are_those_of_the_table(tmp_path):
    write_table(tmp_path)
    config = figure_architectures.Config(tmp_path)
    figure = figure_architectures.draw(figure_architectures.read_table(config))
    upper, lower = figure.axes[:2], figure.axes[2:]
    assert [panel.get_title() for panel in upper] == ["noise-free", "10 photons/px"]
    for panel, x in ((upper[0], [500, 2000, 20_000]), (lower[0], [5, 20, 200])):
        line = panel.lines[0]
        assert line.get_color() == COLOURS[1]  # of resnet18, though it is the first one here
        np.testing.assert_allclose(line.get_xdata(), x)
        np.testing.assert_allclose(line.get_ydata(), [1, 0.5, 0.05])  # R^2 of -1 is shown as 0
        interval = panel.collections[0].get_segments()[0]
        np.testing.assert_allclose(interval[:, 1], [0.025, 0.1])
    ticks = zip(upper[0].get_yticks(), upper[0].get_yticklabels(), strict=True)
    assert all(float(label.get_text()) == pytest.approx(1 - at) for at, label in ticks)
    names = {text.get_text(): to_hex(text.get_color()) for text in upper[1].texts}
    assert names == {"resnet18": COLOURS[1], "spectral_resnet": COLOURS[0]}


@pytest.mark.slow
def test_figure_is_written_or_says_what_it_needs(tmp_path):
    config = figure_architectures.Config(tmp_path)
    with pytest.raises(InputError, match=r"make it with benchmarks/architectures\.py"):
        figure_architectures.main(config)
    write_table(tmp_path)
    figure_architectures.main(config)
    assert (tmp_path / "figure_architectures.png").stat().st_size > 20_000
    assert (tmp_path / "figure_architectures.pdf").stat().st_size > 5000
    with pytest.raises(InputError, match="no rows of ast; give --parameter focus"):
        figure_architectures.main(replace(config, parameter="ast"))


def test_labels_keep_their_order_and_distance():
    found = figure_architectures.spread([0.5, 0.1, 0.5, 0.49], 0.1)
    assert found[1] == 0.1
    assert np.diff(sorted(found)).min() > 0.0999
    assert np.argsort(found)[:2].tolist() == [1, 3]


def test_networks_keep_their_colours_and_others_take_unused_ones():
    found = network_colours(["mine", "resnet18", "yours", "mine"])
    assert found["resnet18"] == COLOURS[1] == network_colours(["resnet18"])["resnet18"]
    assert len({found["mine"], found["yours"], *NETWORK_COLOURS.values()}) == 2 + len(
        set(NETWORK_COLOURS.values())
    )


def test_conditions_keep_their_colours():
    styles = [condition_style(condition.name) for condition in CONDITIONS]
    assert len({style["color"] for style in styles}) == len(CONDITIONS)
    assert len({style["marker"] for style in styles}) == len(CONDITIONS)
    # brighter with each step, also in grey
    brightness = [float(np.dot(to_rgb(style["color"]), (0.299, 0.587, 0.114))) for style in styles]
    assert brightness == sorted(brightness)


def test_networks_of_one_psf_model_differ_in_colour():
    """Those that may stand in one panel: the shipped ones and the rivals, and black lines."""
    shipped = {name: load_estimator(name).psf_model.name for name in shipped_names()}
    for model in ("zernike1d", "zernike2d", "astigmatic"):
        names = [name for name, its_model in shipped.items() if its_model == model]
        found = network_colours([*names, "resnet18", "resnet34", "resnet50", "resnext50", "mine"])
        assert len(set(found.values())) == len(found)
