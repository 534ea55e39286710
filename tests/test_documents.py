"""The documents: every number stands in a CSV file, every command parses, every link exists."""

import csv
import importlib.util
import json
import os
import re
import shlex
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from unittest.mock import patch

import pytest
import tyro

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "docs"))

import make_tables
from tables import RESULTS, Number, Table, pivot, row, rows, span, table, written

DOCUMENTS = [str(path.relative_to(ROOT)) for path in make_tables.documents()]
CARDS = [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("checkpoints/*/README.md"))]
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?(?![\w.]*\w)")
DECIMAL = re.compile(r"(?<![\w.])\d+\.\d+(?![\w.]*\d)|±")
# Tables with decimals that are settings or arithmetic, by the first words of their headers.
SETTINGS = (
    "flag",
    "optics of the test patches",
    "in the training of the `_tilted` networks",
    "stack | what | optics",
    "column",
    "specimens | patches counted",
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
# Numbers that the prose may hold: optics, ranges of a setting, versions.
SETTINGS_IN_PROSE = {"0.45", "0.3", "1.2", "0.1", "1.45"}
NOT_OURS = ("the paper", "command", "file", "aim")  # columns


@cache
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
    text = "<!-- table: a -->\n| a |\n|---|\n| 0.5 |\n<!-- end of table -->\n\n| R² |\n|---|\n| 0.7 |\n"
    assert typed_tables(text) == [["| R² |", "|---|", "| 0.7 |"]]
    assert DECIMAL.search("0.7") and DECIMAL.search("1 ± 2") and not DECIMAL.search("`--na 0.4` 3 %"[10:])


@cache
def lines_of(file: str) -> list[list[str]]:
    with (RESULTS / file).open(encoding="utf-8", newline="") as opened:
        return list(csv.reader(opened))


@cache
def numbers_for(labels: frozenset[str], files: tuple[str, ...]) -> list[float]:
    """Numbers of the lines of CSV files that agree with the labels of a line of a table.

    A label that is no value of a file says nothing about the file's lines.
    """
    found = []
    for file in files:
        lines = lines_of(file)
        known = {value for line in lines for value in line}
        wanted = {label for label in labels if label in known}
        chosen = [line for line in lines[1:] if wanted <= set(line)]
        found += [number for line in chosen for number in map(as_number, line) if number is not None]
    return found


def as_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def unfounded(made: Table) -> list[str]:
    """Printed numbers of a table that are in none of its CSV files, as they stand or times 100 or 1000.

    Means, ranges and counts, which a builder computes, are left out, and what others published.
    """
    faults = []
    for line in made.rows:
        if line[0] in made.derived:
            continue
        named = line[: made.labels]
        labels = {cell.replace("`", "") for cell in named} | set(re.findall("`(.*?)`", "".join(named)))
        numbers = numbers_for(frozenset(labels - {""}), made.files)
        for title, cell in list(zip(made.header, line, strict=True))[made.labels :]:
            if title not in (*made.derived, *NOT_OURS):
                texts = NUMBER.findall(without_code(cell))
                faults += [f"{line[0]}, {title}: {text}" for text in texts if not is_in(text, numbers)]
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
    assert made.rows[0][2:5] == ("0.999", "0.999", "0.947")
    wrong = (*made.rows[0][:4], "0.941", *made.rows[0][5:])
    faults = unfounded(replace(made, rows=(wrong, *made.rows[1:])))
    assert len(faults) == 1 and faults[0].endswith("1000 photons/px: 0.941")


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
    # The README has no room for the files of its ten numbers; its rows link to sections that name them.
    for section in re.split(r"^(?=## )", text_of(document), flags=re.MULTILINE):
        for place in make_tables.PLACE.finditer(section):
            files = make_tables.table_of(place["name"]).files
            missing = [file for file in files if f"results/{file}" not in section]
            assert not missing, f"{document}: name {missing} beside the table {place['name']}"


# --- commands --------------------------------------------------------------------------------


def commands(text: str) -> list[list[str]]:
    """Words of every command of a text that runs one of our scripts, from the script's name on."""
    found = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    lines = [line for block in found for line in block.replace("\\\n", " ").splitlines()]
    # Between sentences, a name with a few options is no whole command.
    lines += re.findall(r"`((?:python|torchrun) [^`\n]*|\w+\.py [^`\n]*--out [^`\n]*)`", text)
    listed = []
    for line in lines:
        for part in re.split(r"&&|;", line):
            words = shlex.split(part, comments=True) if "(" not in part else []
            scripts = [k for k, word in enumerate(words) if word.endswith(".py")]
            if scripts and "..." not in words and "FOLDER" not in part:
                listed.append(words[scripts[0] :])
    return listed


@cache
def config_of(script: str) -> type:
    """Class that holds the options of a script, which is not run."""
    name = "documented_" + script.removesuffix(".py").replace("/", "_")
    spec = importlib.util.spec_from_file_location(name, ROOT / script)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # tyro looks there for the comments behind the options
    with patch.dict(os.environ), patch.object(sys, "path", [str((ROOT / script).parent), *sys.path]):
        spec.loader.exec_module(module)  # some benchmarks set threads in os.environ
    return module.Config


def fault_of(words: list[str], capsys: pytest.CaptureFixture) -> str:
    """What the script says about its options, or nothing."""
    script, *arguments = words
    if not (ROOT / script).is_file():
        return f"{script} does not exist"
    try:
        tyro.cli(config_of(script), args=arguments)
    except SystemExit as end:
        return capsys.readouterr().err if end.code else ""
    return ""


@pytest.mark.parametrize("document", [*DOCUMENTS, *CARDS])
def test_commands_parse(document, capsys):
    faults = [
        f"{shlex.join(words)}\n{fault}"
        for words in commands(text_of(document))
        if (fault := fault_of(words, capsys))
    ]
    assert not faults, f"{document}:\n" + "\n".join(faults)


def test_commands_are_found_and_judged(capsys):
    text = "```\npip install x && python train.py --data a --out b --no-such-option 3  # a comment\n```\n"
    text += "| `torchrun --nproc-per-node 2 train.py --data a --out b` | `python nothing.py` |"
    found = commands(text)
    assert found[0] == ["train.py", *"--data a --out b --no-such-option 3".split()]
    assert found[1] == ["train.py", "--data", "a", "--out", "b"]
    faults = [fault_of(words, capsys) for words in found]
    assert "no-such-option" in faults[0] and faults[1] == "" and "exist" in faults[2]
    assert len(commands(text_of("README.md"))) > 8


# --- links -----------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """Names that GitHub gives to the headings of a document."""
    headings = re.findall(r"^#{1,6} (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def broken_links(document: str) -> list[str]:
    """Links and images of a document that lead to no file or heading."""
    text = re.sub(r"^```.*?^```", "", text_of(document), flags=re.DOTALL | re.MULTILINE)
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    broken = []
    for target in targets:
        if re.match(r"https?://|mailto:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / document).parent / name if name else ROOT / document
        if not path.exists() or (anchor and anchor not in anchors(path.read_text("utf-8"))):
            broken.append(target)
    return broken


@pytest.mark.parametrize("document", [*DOCUMENTS, *CARDS])
def test_links_lead_somewhere(document):
    assert broken_links(document) == []


def test_broken_links_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A `b` & c\n[x](#a-b--c) [y](#d) ![z](no.png) [w](page.md#a-b--c)\n", "utf-8")
    assert broken_links(str(page)) == ["#d", "no.png"]


# --- prose -----------------------------------------------------------------------------------


def prose_of(section: str) -> str:
    """Text of a section without tables, code, links and headings."""
    text = without_code(section)
    text = re.sub(r"^[|#].*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"https?://\S+|<[^>]*>", "", text)
    return re.sub(r"\]\([^)]*\)", "]", text)


def homeless(section: str, settings: set[str]) -> list[str]:
    """Decimal numbers of the prose that are neither settings nor in a CSV file linked beside them."""
    files = tuple(re.findall(r"results/([\w/]+\.csv)", section))
    files += tuple(
        file
        for place in make_tables.PLACE.finditer(section)
        for file in make_tables.table_of(place["name"]).files
    )
    numbers = numbers_for(frozenset(), files)
    shown = [float(text.replace(',', '')) for line in tables_in(section) for text in NUMBER.findall("".join(line))]
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
