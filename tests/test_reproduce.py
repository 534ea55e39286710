"""Steps of `reproduce.py`: commands, what makes them run again, and what they should reach."""

import importlib
import json
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tyro
from PIL import Image

import generate_training_set
import reproduce
from psf.errors import InputError
from psf.microscope import SamplingWarning
from reproduction import steps as steps_module
from reproduction.claims import Claim, compare, text_of
from reproduction.paper_steps import paper_claims, paper_steps
from reproduction.steps import Step, minutes_of, run_commands, run_steps
from reproduction.training_steps import SCALES, training_claims, training_steps
from simulation.settings import check_energy

ROOT = Path(__file__).parents[1]
SHIPPED = ("checkpoints", "results", "docs")  # folders whose files come with the code


def all_steps(stacks):
    return {
        **{scale: training_steps(scale) for scale in SCALES},
        "paper": paper_steps(stacks),
    }


@pytest.fixture(scope="module")
def stacks(tmp_path_factory):
    """A folder with the names of real stacks."""
    folder = tmp_path_factory.mktemp("stacks")
    for name in ("tissue_section_stack.tif", "dfnn_mitochondria_stack.tif", "optics.json"):
        (folder / name).touch()
    return folder


@pytest.mark.parametrize("scale", [*SCALES, "paper"])
def test_commands_parse_and_data_sets_keep_the_energy_of_their_psfs(scale, stacks, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")  # scripts there import their neighbours
    steps = all_steps(stacks)[scale]
    assert len({step.name for step in steps}) == len(steps)
    for step in steps:
        for script, *arguments in (*step.commands, *step.draw):
            module = script.removesuffix(".py").replace("/", ".")
            config = tyro.cli(importlib.import_module(module).Config, args=arguments)
            if script == "generate_training_set.py" and scale != "paper":
                assert check_energy(generate_training_set.build_simulation(config)) < 0.01


@pytest.mark.parametrize("scale", [*SCALES, "paper"])
def test_inputs_are_shipped_or_made_by_an_earlier_step(scale, stacks):
    made = set()
    for step in all_steps(stacks)[scale]:
        for path in step.inputs:
            tracked = (ROOT / path).exists() and path.parts[0] in SHIPPED
            assert tracked or path in made, (step.name, path)
        made |= {p for output in step.outputs for p in (output, output.parent)}


def test_every_table_and_figure_of_the_results_has_a_step(stacks):
    """Or it is recorded: made by trainings that take hours."""
    recorded = {"architectures.csv", "cross_domain", "recorded", "learning_curve", "seeds"}
    recorded |= {"noise_rivals.csv", "paper.csv", "reproduction.csv", "deconvolution_settings.csv"}
    outputs = {path for step in paper_steps(stacks) for path in step.outputs}
    stems = {path.name.split(".")[0] for path in outputs} | {p.parent.name for p in outputs}
    for path in (ROOT / "results").iterdir():
        if path.name in recorded or path.suffix not in (".csv", ".png"):
            continue
        assert any(path.stem.startswith(stem) or stem in path.stem for stem in stems), path.name


def counting_step(folder, **more):
    """A step that counts how often it ran."""
    script = folder / "count.py"
    script.write_text(
        "from pathlib import Path\n"
        "path = Path(__file__).with_name('count.txt')\n"
        "path.write_text(path.read_text() + 'x' if path.exists() else 'x')\n"
    )
    return Step("count", ((str(script),),), (folder / "count.txt",), **more)


def test_a_step_runs_again_only_if_what_decides_it_has_changed(tmp_path, monkeypatch, capsys):
    step, records = counting_step(tmp_path), tmp_path / "records"
    code = tmp_path / "module.py"
    code.write_text('"""Doc."""\nvalue = 1\n')
    monkeypatch.setattr(steps_module, "_files_of", lambda commands: [code])
    source = tmp_path / "input.csv"
    source.write_text("a")
    step = replace(step, inputs=(source,))

    def times():
        steps_module._code_hash.cache_clear()
        run_steps([step], records, {})
        return len((tmp_path / "count.txt").read_text())

    assert times() == 1
    assert times() == 1
    assert "already done" in capsys.readouterr().out
    code.write_text('"""Other words."""\n# a comment\nvalue = 1\n')
    assert times() == 1
    code.write_text("value = 2\n")
    assert times() == 2
    source.write_text("b")
    assert times() == 3
    (tmp_path / "count.txt").write_text("")
    (records / "count.json").write_text(json.dumps({"key": "old", "minutes": 1.0}))
    assert times() == 1
    (tmp_path / "count.txt").unlink()
    assert times() == 1  # counted anew, since the output was missing
    assert set(minutes_of([step], records)) == {"count"}


def test_a_step_without_its_inputs_says_so(tmp_path):
    step = counting_step(tmp_path, inputs=(tmp_path / "data",))
    with pytest.raises(InputError, match=r"'count' needs .*data: run the steps that make them"):
        run_steps([step], tmp_path / "records", {})
    optional = counting_step(tmp_path, optional_inputs=(tmp_path / "data",))
    run_steps([optional], tmp_path / "records", {})
    assert optional.is_finished(tmp_path / "records")
    (tmp_path / "data").write_text("a")
    assert not optional.is_finished(tmp_path / "records")


@pytest.mark.parametrize("text", ["", "{}", '{"key'])
def test_a_damaged_record_is_made_again(tmp_path, text):
    step, records = counting_step(tmp_path), tmp_path / "records"
    run_steps([step], records, {})
    (records / "count.json").write_text(text)
    assert minutes_of([step], records) == {}
    run_steps([step], records, {})
    assert (tmp_path / "count.txt").read_text() == "xx"
    assert set(minutes_of([step], records)) == {"count"}


@pytest.mark.parametrize("text", ["", "step\ndepth\n", "step,minutes\ndepth,long\n"])
def test_a_damaged_table_of_minutes_is_left_out(tmp_path, monkeypatch, text):
    monkeypatch.setattr(reproduce, "MINUTES", tmp_path / "reproduction.csv")
    assert reproduce.read_minutes() == {}
    (tmp_path / "reproduction.csv").write_text(text)
    assert reproduce.read_minutes() == {}
    (tmp_path / "reproduction.csv").write_text("step,minutes\ndepth,7.5\n")
    assert reproduce.read_minutes() == {"depth": 7.5}


def test_a_failed_command_stops_the_run_and_leaves_no_record(tmp_path):
    step = Step("fail", (("-c", "raise SystemExit(3)"),), (tmp_path / "never",))
    with pytest.raises(InputError, match="'fail' stopped with exit code 3"):
        run_steps([step], tmp_path / "records", {})
    silent = Step("silent", (("-c", "pass"),), (tmp_path / "never",))
    with pytest.raises(InputError, match="ended without"):
        run_steps([silent], tmp_path / "records", {})
    assert not (tmp_path / "records").exists()


def test_an_interrupted_run_ends_its_command(monkeypatch):
    ended = []

    class Command(subprocess.Popen):
        def wait(self, timeout=None):
            if not ended:
                raise KeyboardInterrupt
            return super().wait(timeout)

        def terminate(self):
            ended.append(self.args)
            super().terminate()

    monkeypatch.setattr(subprocess, "Popen", Command)
    with pytest.raises(KeyboardInterrupt):
        run_commands("wait", [("-c", "import time; time.sleep(60)")])
    assert [args[1] for args in ended] == ["-c"]


def test_a_step_without_its_packages_is_left_as_it_is(tmp_path, capsys):
    step = counting_step(tmp_path, packages=("no_such_package",))
    run_steps([step], tmp_path / "records", {})
    assert not (tmp_path / "count.txt").exists()
    assert "pip install -r requirements-paper.txt" in capsys.readouterr().out


def test_names_of_steps_are_checked(tmp_path):
    found = reproduce.chosen_steps(reproduce.Config("paper", only=("depth",)))
    assert [step.name for step in found] == ["depth"]
    with pytest.raises(InputError, match=r"no step dept; give --only test_sets, "):
        reproduce.chosen_steps(reproduce.Config("paper", only=("dept",)))
    with pytest.raises(InputError, match="no folder"):
        reproduce.chosen_steps(reproduce.Config("paper", stacks=tmp_path / "none"))
    with pytest.raises(InputError, match="only --scale paper uses --stacks"):
        reproduce.chosen_steps(reproduce.Config("quick", stacks=tmp_path))
    with pytest.raises(InputError, match=r"--only names no step; give --only test_sets, "):
        reproduce.chosen_steps(reproduce.Config("paper", only=()))
    with pytest.raises(InputError, match="draws"):
        reproduce.draw([Step("quiet", (), ())])


def test_another_working_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=re.escape(f"cd {ROOT} first")):
        reproduce.main(reproduce.Config("paper", only=("learning_curve",)))
    assert not list(tmp_path.iterdir())


# --- numbers


def test_a_claim_compares_the_number_of_its_row(tmp_path):
    path = tmp_path / "table.csv"
    pd.DataFrame({"name": ["a", "b"], "r2": [0.5, 0.95]}).to_csv(path, index=False)
    claim = Claim("R²", "0.99", path, {"name": "b"}, "r2", at_least=0.9)
    assert claim.reached() == 0.95
    table = compare([claim, replace(claim, at_least=0.96), replace(claim, table=tmp_path / "x")])
    assert list(table["verdict"]) == ["reached", "NOT reached", "not measured"]
    assert "at least 0.9" in text_of(table)
    with pytest.raises(InputError, match="holds 2 rows"):
        replace(claim, rows={}).reached()


def test_the_recorded_tables_hold_what_is_claimed(monkeypatch):
    """Each claim finds its row; only the depth of tilted planes may miss its range."""
    monkeypatch.chdir(ROOT)
    table = compare(paper_claims())
    assert not (table["verdict"] == "not measured").any()
    missed = table[table["verdict"] == "NOT reached"]
    assert missed["what"].str.startswith("plane tilted").all(), missed


def test_training_claims_stand_in_the_table_of_the_benchmark():
    claims = training_claims("quick")
    assert [c.at_least for c in claims] == [0.95, 0.80, 0.62]
    assert claims[0].table == Path("results/quick/zernike1d/benchmark.csv")


# --- a fresh run against what stands in git


def run_script(monkeypatch, script, *arguments):
    module = importlib.import_module(script)
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SamplingWarning)  # pixels of 0.32 um are meant
        module.main(tyro.cli(module.Config, args=list(map(str, arguments))))


def test_a_fresh_table_equals_the_recorded_one(tmp_path, monkeypatch):
    """The bound of depth at a few distances, computed anew: it has no noise, so 1 % is generous."""
    run_script(monkeypatch, "benchmarks.depth_bound", "--steps", 5, "--out", tmp_path)
    fresh = pd.read_csv(tmp_path / "depth_bound.csv")
    recorded = pd.read_csv(ROOT / "results" / "depth_bound.csv")
    keys = ["model", "photons"]
    compared = 0
    for key, rows in fresh.dropna().groupby(keys):
        known = recorded[(recorded[keys] == pd.Series(key, keys)).all(axis=1)].dropna()
        inside = rows["z_um"].between(known["z_um"].min(), known["z_um"].max())
        expected = np.interp(rows["z_um"], known["z_um"], known["sd_um"])[inside]
        np.testing.assert_allclose(rows["sd_um"][inside], expected, rtol=0.01)
        compared += inside.sum()
    assert compared > 10


def test_a_fresh_figure_shows_the_recorded_one(tmp_path, monkeypatch):
    """Fonts and lines may move by a pixel, so both pictures are averaged over 8 x 8 px first."""
    folder = tmp_path / "learning_curve"
    folder.mkdir()
    source = ROOT / "results" / "learning_curve"
    (folder / "benchmark.csv").write_bytes((source / "benchmark.csv").read_bytes())
    run_script(monkeypatch, "figure_learning_curve", "--results", folder)
    pair = [
        np.asarray(Image.open(path / "learning_curve.png").convert("L").reduce(8), float)
        for path in (folder, source)
    ]
    assert pair[0].shape == pair[1].shape
    assert np.abs(pair[0] - pair[1]).mean() < 2.0  # of 255; an empty panel differs by more than 5
