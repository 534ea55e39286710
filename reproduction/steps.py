"""A step of a reproduction: commands, what decides their result, and whether it is up to date.

A finished step leaves a record: a hash of its commands, its inputs and the code that it runs. It is
repeated if one of them has changed. Comments and docstrings do not count.
"""

import ast
import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from common.code import imported_files
from common.files import read_json, write_json
from psf.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
# Files that stand for a folder: weights and settings of a network, or the record of a data set
DECIDING = ("*.safetensors", "config.json", "run.json")

Command = tuple[str, ...]  # script and its arguments, without the interpreter


@dataclass(frozen=True)
class Step:
    """Commands that make a group of results."""

    name: str  # as --only takes it
    commands: tuple[Command, ...]
    outputs: tuple[Path, ...]  # files that exist afterwards
    # files and folders that decide the result, besides the commands and their code
    inputs: tuple[Path, ...] = ()
    optional_inputs: tuple[Path, ...] = ()  # the same, where they exist
    packages: tuple[str, ...] = ()  # optional packages that the commands import
    draw: tuple[Command, ...] = ()  # commands that draw the figures again from the tables
    copies: tuple[tuple[Path, Path], ...] = ()  # files to copy at the end, from and to

    def key(self) -> str:
        """Hash of all that decides the result."""
        code = [_code_hash(path) for path in _files_of(self.commands)]
        inputs = [_content_hash(path) for path in (*self.inputs, *self.optional_inputs)]
        text = json.dumps([self.commands, code, inputs])
        return hashlib.sha256(text.encode()).hexdigest()

    def is_finished(self, records: Path) -> bool:
        """Whether the outputs exist, and the record in the folder `records` has today's key."""
        record = records / f"{self.name}.json"
        if not record.is_file() or not all(path.exists() for path in self.outputs):
            return False
        return _read_record(record).get("key") == self.key()

    def missing_inputs(self) -> list[Path]:
        """Inputs that do not exist; an earlier step makes them, or they come with the code."""
        return [path for path in self.inputs if not path.exists()]

    def missing_packages(self) -> list[str]:
        """Optional packages that are not installed."""
        return [name for name in self.packages if importlib.util.find_spec(name) is None]


def _files_of(commands: Sequence[Command]) -> list[Path]:
    """Source files that the scripts of some commands run."""
    scripts = {command[0] for command in commands}
    modules = sorted(script.removesuffix(".py").replace("/", ".") for script in scripts)
    return imported_files(ROOT, *modules)


@cache
def _code_hash(path: Path) -> str:
    """Hash of what a source file does: its syntax tree without docstrings."""
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _content_hash(path: Path) -> str:
    """Hash of a file, or of the files that stand for a folder; empty if there are none."""
    files = [path] if path.is_file() else sorted(p for name in DECIDING for p in path.glob(name))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def run_steps(steps: Sequence[Step], records: Path, minutes: dict[str, float]) -> None:
    """Run the steps in order, each command in a process of its own; finished steps are skipped.

    `minutes` has the time that each step took before, by name; the time left is a sum of them.

    Raises
    ------
    InputError
        If a command fails.
    """
    started = time.perf_counter()
    for number, step in enumerate(steps, 1):
        label = f"[{number}/{len(steps)}] {step.name}"
        missing = step.missing_packages()
        if missing:
            print(
                f"{label}: left as it is, since {', '.join(missing)} is not installed; run "
                "pip install -r requirements-paper.txt first"
            )
        elif step.is_finished(records):
            print(f"{label}: already done ({step.outputs[0].parent})")
        else:
            left = sum(minutes.get(later.name, 0.0) for later in steps[number - 1 :])
            print(
                f"{label}{f', about {left:.0f} minutes left in all' if left >= 1 else ''}",
                flush=True,
            )
            _run_step(step, records)
    print(f"\nfinished in {(time.perf_counter() - started) / 60:.1f} minutes")


def _read_record(path: Path) -> dict[str, Any]:
    """Record of a finished step; empty if there is none, or if it is damaged."""
    try:
        return read_json(path, "record of a step")
    except InputError:
        return {}


def _run_step(step: Step, records: Path) -> None:
    """Run one step and leave its record."""
    missing = step.missing_inputs()
    if missing:
        raise InputError(
            f"'{step.name}' needs {', '.join(map(str, missing))}: run the steps that make them "
            "first, or all steps without --only."
        )
    started = time.perf_counter()
    run_commands(step.name, step.commands)
    for source, target in step.copies:
        shutil.copyfile(source, target)
    absent = [str(path) for path in step.outputs if not path.exists()]
    if absent:
        raise InputError(f"'{step.name}' ended without {', '.join(absent)}; report this as a bug.")
    minutes = (time.perf_counter() - started) / 60
    write_json(records / f"{step.name}.json", {"key": step.key(), "minutes": round(minutes, 2)})
    print(f"{step.name}: {minutes:.1f} minutes", flush=True)


def run_commands(name: str, commands: Sequence[Command]) -> None:
    """Run commands one after the other.

    Raises
    ------
    InputError
        If one ends with another exit code than 0.
    """
    for command in commands:
        print(f"python {' '.join(command)}", flush=True)
        with subprocess.Popen([sys.executable, *command]) as process:
            try:
                code = process.wait()
            except BaseException:  # also of Ctrl-C and kill: no command outlives this process
                process.terminate()
                raise
        if code:
            raise InputError(
                f"'{name}' stopped with exit code {code}; its message is above. Mend what it says, "
                "then give the same command again to continue from this step."
            )


def minutes_of(steps: Sequence[Step], records: Path) -> dict[str, float]:
    """Minutes that each finished step took, by name."""
    found = {step.name: _read_record(records / f"{step.name}.json") for step in steps}
    return {name: record["minutes"] for name, record in found.items() if "minutes" in record}
