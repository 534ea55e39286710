"""Command lines: typed options in, and one clear line out on a mistake of the user."""

import ctypes
import shlex
import sys
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
import tyro

from common.addresses import as_typed
from psf.errors import InputError

Config = TypeVar("Config")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def run(config_type: type[Config], main: Callable[[Config], None], description: str) -> None:
    """Parse the command line into `config_type` and run `main` on it.

    A mistake of the user (`InputError`) ends in one line on standard error and exit code 2. A
    warning is one line. Any other error is a bug and keeps its traceback.
    """
    warnings.showwarning = _one_line_warnings()
    _print_any_name()
    first_paragraph = description.strip().split("\n\n")[0]
    try:
        main(tyro.cli(config_type, description=first_paragraph))
    except InputError as error:
        print(f"error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; finished work is kept. The same command goes on.", file=sys.stderr)
        sys.exit(130)


def settings_of(config: Any) -> dict[str, Any]:
    """Options of a script as plain values, for its record."""
    return {k: as_typed(v) if isinstance(v, Path) else v for k, v in asdict(config).items()}


def next_command(script: str, *arguments: Any) -> str:
    """Line that tells the next step, as a command that a shell takes as it stands.

    Options whose value is None are left out: a pair (flag, value) counts as one argument.
    """
    words = []
    for argument in arguments:
        pair = argument if isinstance(argument, tuple) else (argument,)
        if pair[-1] is not None:
            words += [_word(one) for one in pair]
    return "next: " + shlex.join(["python", script, *words])


def _word(argument: Any) -> str:
    """An argument as text; a path with a leading dash would be taken for an option."""
    if not isinstance(argument, Path):
        return str(argument)
    return f"./{argument}" if str(argument).startswith("-") else as_typed(argument)


def print_notes(notes: Iterable[str]) -> None:
    """Print what was found or chosen without being asked, a line each."""
    for note in notes:
        print(f"note: {note}")


def pick_device(name: str) -> torch.device:
    """Device by its name `auto`, `cpu`, `cuda` or `mps`; `auto` is the fastest one available."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device '{name}' is not available here; use --device auto.") from error
    return device


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory for the next batch; elsewhere do nothing.

    By default it gives large blocks back to the system. The page faults of new blocks take a third
    of the time of blurring and of drawing noise.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(M_MMAP_THRESHOLD, 2**30)
    mallopt(M_TRIM_THRESHOLD, 2**30)


def _one_line_warnings() -> Callable[..., None]:
    """Function that shows a warning in a line, the first time that it comes."""
    shown = set()

    def show(message, category, filename, lineno, file=None, line=None) -> None:
        text = " ".join(str(message).splitlines())
        if text not in shown:
            shown.add(text)
            print(f"warning: {text}", file=sys.stderr)

    return show


def _print_any_name() -> None:
    """Let file names be printed that are no text in the encoding of the terminal."""
    if hasattr(sys.stdout, "reconfigure"):
        is_utf8 = sys.stdout.encoding.lower().replace("-", "") == "utf8"
        # With surrogateescape the bytes of an undecodable name come out as they are.
        sys.stdout.reconfigure(errors="surrogateescape" if is_utf8 else "backslashreplace")
