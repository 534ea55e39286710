"""Tables of results are read, chosen, rounded and summed up as their builders say."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "docs"))

import csv_tables
import network_tables
from csv_tables import Number

from psf.errors import InputError


@pytest.mark.parametrize(
    ("value", "spec", "text"),
    [
        (0.94712, ".3f", "0.947"),
        (562.5, ".0f", "563"),  # ties are rounded away from zero
        (0.7049, ".0%", "70 %"),
        (8.609e-7, ".0e", "9e-7"),
        (21630, "sig3", "21,600"),
        (83.83, "sig3", "83.8"),
        (4.994e5, "words", "500,000"),
        (5.931e6, "words", "6 million"),
        (1.813e8, "words", "180 million"),
        (float("nan"), "+.2f", "–"),  # noqa: RUF001, the dash of a table
    ],
)
def test_formats(value, spec, text):
    assert f"{Number(value):{spec}}" == text


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Folder that stands for results/, with scores of three trainings under one condition each."""
    monkeypatch.setattr(csv_tables, "RESULTS", tmp_path)
    lines = ["network,images,condition,r2"]
    lines += [
        f"{seed},{images},{condition},{r2 - (images != 'all')}"
        for condition in network_tables.CONDITIONS
        for seed, r2 in ((0, 0.91), (1, 0.93), (2, 0.98))
        for images in ("all", "builtin")
    ]
    (tmp_path / "seeds").mkdir()
    (tmp_path / "seeds" / "benchmark.csv").write_text("\n".join(lines), "utf-8")
    return tmp_path


def test_spread_over_seeds(results):
    made = network_tables.seeds()
    # mean 0.94; deviations -0.03, -0.01, 0.04; their squares sum to 0.0026, over 2
    assert made.rows[0] == ("noise-free", "3", "0.940", "0.036", "0.910 to 0.980")
    assert len(made.rows) == len(network_tables.CONDITIONS)


def test_rows_are_chosen_and_ordered(results):
    file = "seeds/benchmark.csv"
    chosen = csv_tables.rows(file, images="all", condition="8-bit", network=(2, 0))
    assert [entry["r2"] for entry in chosen] == [0.98, 0.91]
    with pytest.raises(InputError, match="has 3 rows"):
        csv_tables.row(file, images="all", condition="8-bit")
    pivoted = csv_tables.pivot(chosen, "network", ("condition",))
    made = csv_tables.table(pivoted, {"": "{condition}", "a": "{r2[2]:.1f}"}, (file,))
    assert made.markdown() == "| | a |\n|---|---|\n| 8-bit | 1.0 |"


def test_a_missing_file_is_named():
    with pytest.raises(InputError, match=r"results/no_such\.csv is missing; make it"):
        csv_tables.rows("no_such.csv")
