"""The --help of every script says what each option means."""

import contextlib
import io
import os
import re
import runpy
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import tyro

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(
    str(path.relative_to(ROOT))
    for path in (*ROOT.glob("*.py"), *ROOT.glob("benchmarks/*.py"))
    if "class Config" in path.read_text("utf-8")
)
WIDE = "400"  # columns: every help text then stands on one line
# An option, or a positional argument in capitals, then the kind of its value and its help.
ENTRY = re.compile(r"  (?:-h, )?(?P<name>--[a-z][\w.-]*|[A-Z]{2,}\b)(?P<rest>.*)")
# What tyro adds to the help text of a field by itself.
ADDED = re.compile(r"\((default: .*|required)\)$")


def described(text: str) -> dict[str, str]:
    """Options and positional arguments of a printed help, with their texts from the source."""
    entries: dict[str, str] = {}
    for line in text.replace("│", " ").splitlines():  # UTF-8 terminals get a frame
        if opening := ENTRY.fullmatch(line):
            name = opening["name"]
            entries[name] = opening["rest"]
        elif line.startswith(" " * 6) and entries:
            entries[name] += "  " + line.strip()
    return {name: help_text(rest) for name, rest in entries.items()}


def help_text(rest: str) -> str:
    """What stands two spaces or more behind the kind of the value, without the default."""
    _, *texts = re.split(r"\s{2,}", rest.rstrip())
    return ADDED.sub("", " ".join(texts)).strip()


@dataclass(frozen=True)
class Nested:
    """Options of a group."""

    told: tuple[int, int] = (1, 2)  # two numbers
    untold: float = 1.0


@dataclass(frozen=True)
class Sample:
    """Options of every kind that the scripts use."""

    image: tyro.conf.Positional[Path]  # file to read
    told: int | None = None  # one number (not two)
    untold: Literal["a", "b"] = "a"
    misplaced: bool = (
        # no help text: tyro reads comments behind a field or above it
        True
    )
    switch: bool = False  # on or off
    nested: Nested = field(default_factory=Nested)


def test_missing_texts_are_found(monkeypatch):
    monkeypatch.setenv("COLUMNS", WIDE)
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit):
        tyro.cli(Sample, args=["--help"])
    assert described(out.getvalue()) == {
        "PATH": "file to read",
        "--help": "show this help message and exit",
        "--told": "one number (not two)",
        "--untold": "",
        "--misplaced": "",
        "--switch": "on or off",
        "--nested.told": "two numbers",
        "--nested.untold": "",
    }


def printed_help(script: str) -> str:
    """What `python SCRIPT --help` prints, run in this process."""
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.setattr(sys, "argv", [script, "--help"])
        patch.setattr(warnings, "showwarning", warnings.showwarning)
        patch.setattr(os, "environ", os.environ.copy())  # some benchmarks set threads there
        patch.setenv("COLUMNS", WIDE)
        patch.syspath_prepend((ROOT / script).parent)  # as Python does for a script
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / script), run_name="__main__")
    assert end.value.code == 0
    return out.getvalue()


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_option_is_described(script):
    options = described(printed_help(script))
    assert options.pop("--help")
    assert options
    silent = [name for name, text in options.items() if not text]
    assert not silent, f"{script} --help has no text for {', '.join(silent)}"
