"""The documents: every number stands in a CSV file, every command parses, every link exists."""

import csv
import json
import re
import sys
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "docs"))

import csv_tables
import make_tables
from csv_tables import Table

ROOT = Path(__file__).parents[1]
DOCUMENTS = [str(path.relative_to(ROOT)) for path in make_tables.documents()]
CARDS = [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("checkpoints/*/README.md"))]
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?(?![\w.]*\w)")
DECIMAL = re.compile(r"(?<![\w.])\d+\.\d+(?![\w.]*\d)|±")
# Tables with decimals that are settings or arithmetic, by the first words of their headers.
SETTINGS = (
    "flag",
    "optics of the test patches",
    "stack | what | optics",
    "column",
    "matter",
    "option",
    "PSF model",
    "quantity | from the arithmetic",
    "place",
    "format",
    "reason | what helps",
    "what | float32 | float64",  # bounds that the tests named beside it assert
    "step | amount",
)
# Decimals that the prose may hold: NA and waves, pixels in µm and widths in px, Python, the doi.
SETTINGS_IN_PROSE = {
    "0.1",
    "0.2",
    "0.3",
    "1.45",
    "0.45",
    "0.92",
    "0.14",
    "0.32",
    "1.05",
    "9.5",
    "1.2",
    "2.4",
    "3.11",
    "10.1109",
}
# Titles of columns that are shorter than the conditions in the files.
CONDITIONS = {"8 bit": "8-bit", "1000 photons/px": "1000 photons"}
CONDITIONS |= {"100": "100 photons", "10": "10 photons"}
NOT_OURS = ("the paper", "command", "file", "our aim (1000 / 100)")  # columns


def text_of(document: str) -> str:
    return (ROOT / document).read_text("utf-8")


def without_code(text: str) -> str:
    """A text without blocks and spans of code."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "", text)


def sections(text: str) -> list[str]:
    """Parts of a document, each with its heading."""
    return re.split(r"^(?=#{1,4} )", text, flags=re.MULTILINE)


def tables_in(text: str) -> list[list[str]]:
    """Lines of every table of a Markdown text."""
    return [found.splitlines() for found in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


# --- tables of results -----------------------------------------------------------------------


@pytest.mark.parametrize("document", DOCUMENTS)
def test_tables_are_those_of_their_csv_files(document):
    assert make_tables.differing(text_of(document)) == []


def test_a_changed_digit_is_noticed():
    text = text_of("docs/results.md")
    changed = text.replace("| `zernike1d` | focus | 0.999 |", "| `zernike1d` | focus | 0.998 |")
    assert changed != text
    assert make_tables.differing(changed) == ["shipped_networks"]
    assert make_tables.renewed(changed) == text


def typed_tables(text: str) -> list[list[str]]:
    return tables_in(make_tables.PLACE.sub("", text))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_typed_tables_hold_settings_only(document):
    for header, _, *lines in typed_tables(text_of(document)):
        if " | ".join(cells(header)).startswith(SETTINGS):
            continue
        measured = [line for line in lines if DECIMAL.search(without_code(line))]
        assert not measured, f"{document}: put this into a CSV file: {measured[0]}"


def test_typed_results_are_found():
    text = "<!-- table: a -->\n| a |\n|---|\n| 0.5 |\n<!-- end of table -->\n"
    text += "\n| R² |\n|---|\n| 0.7 |\n"
    assert typed_tables(text) == [["| R² |", "|---|", "| 0.7 |"]]
    assert (
        DECIMAL.search("0.7")
        and DECIMAL.search("1 ± 2")
        and not DECIMAL.search("`--na 0.4` 3 %"[10:])
    )


@cache
def lines_of(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as opened:
        return list(csv.reader(opened))


@cache
def numbers_for(labels: frozenset[str], paths: tuple[Path, ...]) -> list[float]:
    """Numbers of the lines of CSV files that agree with the labels of a line of a table.

    A label that is no value of a file says nothing about the file's lines.
    """
    found = []
    for path in paths:
        lines = lines_of(path)[1:]
        known = {value for line in lines for value in line}
        wanted = {label for label in labels if label in known}
        chosen = [line for line in lines if wanted <= set(line)]
        found += [
            number for line in chosen for number in map(as_number, line) if number is not None
        ]
    return found


def paths_of(files: Iterable[str]) -> tuple[Path, ...]:
    return tuple(csv_tables.RESULTS / file for file in files)


def as_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def unfounded(made: Table) -> list[str]:
    """Printed numbers of a table that are in none of its CSV files.

    A number of a file may be printed as it is, in percent, or times 1000. Means, ranges
    and counts, which a builder computes, are left out, and what others published.
    """
    faults = []
    for line in made.rows:
        if line[0] in made.derived:
            continue
        named = line[: made.labels]
        labels = {cell.replace("`", "") for cell in named} | set(
            re.findall("`(.*?)`", "".join(named))
        )
        for title, cell in list(zip(made.header, line, strict=True))[made.labels :]:
            if title not in (*made.derived, *NOT_OURS):
                of_cell = (labels | {CONDITIONS.get(title, title)}) - {""}
                numbers = numbers_for(frozenset(of_cell), paths_of(made.files))
                texts = NUMBER.findall(without_code(cell))
                faults += [
                    f"{line[0]}, {title}: {text}" for text in texts if not is_in(text, numbers)
                ]
    return faults


def is_in(text: str, numbers: list[float]) -> bool:
    return any(is_rounded(text, scale * one) for one in numbers for scale in (1, 100, 1000))


def is_rounded(text: str, value: float) -> bool:
    """Whether a printed number is a value rounded to its digits (three for large numbers)."""
    printed = float(text.replace(",", ""))
    mantissa, _, exponent = text.partition("e")
    step = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
    if "," in text:  # 21,600 has three significant digits
        step = 10.0 ** (len(text.replace(",", "").lstrip("+-")) - 3)
    return abs(printed - value) <= step * 0.5000001


@pytest.mark.parametrize("name", make_tables.BUILDERS)
def test_each_number_is_in_its_csv_files(name):
    made = make_tables.table_of(name)
    assert not unfounded(made)


def test_a_wrong_digit_has_no_source():
    made = make_tables.table_of("shipped_networks")
    assert made.header[4] == "1000 photons/px"
    wrong = f"{float(made.rows[0][4]) - 0.006:.3f}"
    faults = unfounded(replace(made, rows=((*made.rows[0][:4], wrong, *made.rows[0][5:]),)))
    assert len(faults) == 1 and faults[0].endswith(f"1000 photons/px: {wrong}")


@pytest.mark.parametrize(
    ("text", "value", "right"),
    [
        ("0.947", 0.94712, True),
        ("0.947", 0.94761, False),
        ("0.947", 0.946, False),
        ("70", 70.49, True),
        ("21,600", 21630, True),
        ("21,600", 21700, False),
        ("9e-7", 8.6e-7, True),
        ("9e-7", 8.4e-7, False),
        ("-5.40", -5.398, True),
        ("5.40", -5.398, False),
    ],
)
def test_rounding(text, value, right):
    assert is_rounded(text, value) == right


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if name != "README.md"])
def test_csv_files_are_named_beside_their_tables(document):
    # The README has no room for file names; its rows link to sections that name them.
    for section in re.split(r"^(?=## )", text_of(document), flags=re.MULTILINE):
        for place in make_tables.PLACE.finditer(section):
            files = make_tables.table_of(place["name"]).files
            missing = [file for file in files if f"results/{file}" not in section]
            assert not missing, f"{document}: name {missing} beside the table {place['name']}"


# --- prose -----------------------------------------------------------------------------------


def prose_of(section: str) -> str:
    """Text of a section without tables, code, links and headings."""
    text = without_code(section)
    text = re.sub(r"^[|#].*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"https?://\S+|<[^>]*>", "", text)
    return re.sub(r"\]\([^)]*\)", "]", text)


def homeless(section: str, settings: set[str]) -> list[str]:
    """Decimal numbers of the prose that are neither settings nor in a CSV file of the section."""
    files = tuple(re.findall(r"results/([\w/]+\.csv)", section))
    files += tuple(
        file
        for place in make_tables.PLACE.finditer(section)
        for file in make_tables.table_of(place["name"]).files
    )
    numbers = numbers_for(frozenset(), paths_of(files))
    shown = [
        float(text.replace(",", ""))
        for line in tables_in(section)
        for text in NUMBER.findall("".join(line))
    ]
    return [
        text
        for text in re.findall(r"(?<![\w.])\d+\.\d+(?![\w.]*\w)", prose_of(section))
        if text not in settings and float(text) not in shown and not is_in(text, numbers)
    ]


@pytest.mark.parametrize("document", ["README.md", "docs/results.md"])
def test_decimals_of_the_prose_stand_in_tables(document):
    found = {
        section.splitlines()[0]: numbers
        for section in sections(text_of(document))
        if (numbers := homeless(section, SETTINGS_IN_PROSE))
    }
    assert not found


# --- model cards -----------------------------------------------------------------------------


@pytest.mark.parametrize("card", [card for card in CARDS if "restoration" not in card])
def test_cards_hold_the_numbers_of_their_config(card):
    config = json.loads((ROOT / card).with_name("config.json").read_text("utf-8"))
    section = text_of(card).split("## Validation")[1].split("\n## ")[0]
    scores = re.findall(r"^\| ([\w -]+) \| (0\.\d.*) \|$", section, flags=re.MULTILINE)
    assert [name for name, _ in scores] == list(config["validation"])
    for name, line in scores:
        assert line.split(" | ") == [f"{value:.3f}" for value in config["validation"][name]]
