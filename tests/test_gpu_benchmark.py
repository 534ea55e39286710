"""benchmarks/gpu.py: its tables, its stops and its failures; and all of it at a tiny size."""

import math
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pandas as pd
import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu_speed import covered, measured
from benchmarks.gpu_table import Table

CPU = torch.device("cpu")
CARD = {"device": "card A", "torch": "2.10", "date": "2026-01-01"}


def test_a_gpu_is_busy_while_any_stream_works():
    assert covered([]) == 0
    assert covered([(0.0, 2.0), (5.0, 6.0)]) == 3
    assert covered([(5.0, 7.0), (0.0, 2.0), (1.0, 3.0), (5.5, 6.0)]) == 5


def test_rates_count_patches_and_time():
    found = measured(lambda: torch.ones(1), 50, CPU, 0.02)
    assert found["patches_per_second"] > 50 / 0.02  # of a call that takes microseconds
    assert math.isnan(found["busy_share"])


def test_a_device_without_memory_gets_a_note():
    def fill() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert measured(fill, 50, CPU, 0.02) == {"note": "out of memory"}


def test_tables_keep_the_rows_of_other_cards(tmp_path):
    path = tmp_path / "rates.csv"
    table, other = (Table(path, ["what"], facts) for facts in (CARD, {**CARD, "device": "card B"}))
    table.add({"what": "training", "rate": 1.0})
    other.add({"what": "training", "rate": 2.0})
    table.add({"what": "prediction", "rate": 3.0})
    table.add({"what": "training", "rate": 4.0})
    assert pd.read_csv(path)["rate"].tolist() == [2, 3, 4]
    assert table.done() == {("training",), ("prediction",)}
    assert other.done() == {("training",)}
    assert table.rows()[0]["torch"] == "2.10"


def test_a_summary_tells_the_training_and_takes_all_images_together(tmp_path):
    metrics, benchmark = tmp_path / "metrics.csv", tmp_path / "benchmark.csv"
    metrics.write_text("patches_seen,minutes\n600,0.2\n2400,1.0\n")
    rows = ["weights,patches_seen,parameter,images,condition,r2"]
    rows += ["10,600,focus,all,noise-free,0.9", "10,600,focus,builtin,noise-free,0.1"]
    benchmark.write_text("\n".join(rows))
    found = gpu.summary(metrics, benchmark)
    assert (found["patches_seen"], found["patches_of_best"]) == (2400, 600)
    assert found["patches_per_second"] == 40
    assert found["r2_focus_noise-free"] == 0.9
    benchmark.write_text("\n".join([rows[0], rows[2]]))
    assert gpu.summary(metrics, benchmark)["r2_focus_noise-free"] == 0.1


@pytest.fixture
def config(tmp_path):
    return gpu.Config(
        device="cpu",
        scale="smoke",
        data=tmp_path / "data",
        runs=tmp_path / "runs",
        out=tmp_path / "results",
    )


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (gpu.Unfinished("train.py was stopped"), 3, r"part b goes on .*repeated: train.py was"),
        (ValueError("two\nlines"), 1, r"part b failed: ValueError: two lines \(see .*failed_b.txt"),
    ],
)
def test_the_outcome_of_a_part_is_one_line(config, monkeypatch, capsys, error, code, line):
    def fail(config: gpu.Config, table: Table) -> None:
        raise error

    monkeypatch.setitem(gpu.PARTS, "b", fail)
    with pytest.raises(SystemExit) as end:
        gpu.run_part(config, "b")
    assert end.value.code == code
    (printed,) = capsys.readouterr().out.splitlines()
    assert re.match(line, printed)
    assert (config.runs / "failed_b.txt").exists() == (code == 1)


def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (tmp_path / "script.py").write_text(textwrap.dedent(text))
    monkeypatch.setattr(gpu, "ROOT", tmp_path)


@pytest.mark.slow  # the script must have started when the time is over
def test_a_training_that_takes_too_long_is_stopped_as_by_hand(tmp_path, monkeypatch):
    saved = tmp_path / "saved"
    script(
        tmp_path,
        monkeypatch,
        f"""
        import pathlib, time
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            pathlib.Path({str(saved)!r}).touch()
        """,
    )
    with pytest.raises(gpu.Unfinished, match=r"script.py --x was stopped after 5 s"):
        gpu.call("script.py", "--x", seconds=5.0)
    assert saved.exists()


def test_a_script_that_fails_is_named(tmp_path, monkeypatch):
    script(tmp_path, monkeypatch, "import sys; sys.exit(2)")
    with pytest.raises(RuntimeError, match=r"script.py --x ended with exit code 2"):
        gpu.call("script.py", "--x", seconds=60.0)


def test_one_network_that_fails_does_not_stop_the_others(config, monkeypatch):
    def train(config: gpu.Config, network: str, *rest: object) -> dict:
        if network == "spectral_resnet":
            raise RuntimeError("train.py ended with exit code 2")
        return {"patches_seen": 64}

    monkeypatch.setattr(gpu, "train_and_score", train)
    config.out.mkdir()
    table = Table(config.out / "networks.csv", gpu.KEYS["d"], CARD)
    with pytest.raises(RuntimeError, match="exit code 2"):
        gpu.part_d(config, table)
    assert table.done() == {("resnet18", 64)}


def benchmark(config: gpu.Config, *parts: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(gpu.ROOT / "benchmarks" / "gpu.py"), "--device", "cpu"]
    command += ["--scale", "smoke", "--data", str(config.data), "--runs", str(config.runs)]
    command += ["--out", str(config.out), "--parts", *parts]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.slow
def test_all_parts_on_a_cpu(config):
    ended = benchmark(config, *gpu.FILES)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    counts = {"a": 1, "b": 4, "c": 1, "d": 2, "e": 3}
    tables = {part: pd.read_csv(config.out / f"{gpu.FILES[part]}.csv") for part in counts}
    assert {part: len(table) for part, table in tables.items()} == counts
    assert (tables["b"]["patches_per_second"] > 0).all()
    assert tables["d"]["patches_seen"].tolist() == [64, 64]
    assert tables["e"]["largest_difference"].max() == 0  # the device is the CPU
    again = benchmark(config, "b", "c", "d", "e")
    assert again.returncode == 0
    assert "train.py" not in again.stdout  # everything is there


@pytest.mark.slow
def test_a_part_that_fails_leaves_the_others(config):
    config.data.parent.mkdir(exist_ok=True)
    config.data.write_text("a file where the folder should be")
    ended = benchmark(config, "b", "e")
    assert ended.returncode == 1
    assert re.search(r"^part b failed: RuntimeError: generate_training_set.py", ended.stdout, re.M)
    assert len(pd.read_csv(config.out / "speed.csv")) == 3
