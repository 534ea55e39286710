"""Run a script of this project for the ImageJ macro, which cannot read standard error itself.

    python fiji/run.py FOLDER ARGUMENTS

ARGUMENTS are those of Python, with a tab between two of them, for example the name of a script and
its options. In FOLDER, messages.txt grows while the script runs, and exit_code.txt appears at its
end. The macro writes waiting.txt again and again. If it stops doing so (the user pressed Esc or
closed ImageJ), the script is stopped. Only the standard library is needed.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

POLL_S = 0.2  # between two looks at the script
PATIENCE = 100  # looks without a sign of the macro before the script is stopped: 20 s
# ImageJ reads text in the encoding of the system, so the messages are plain ASCII.
ASCII = str.maketrans({"µ": "u", "μ": "u", "²": "^2", "±": "+-", "°": " deg"})


def environment() -> dict[str, str]:
    """Environment of the script: UTF-8, messages at once, a progress bar each 5 s."""
    more = {"PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1", "PIP_PROGRESS_BAR": "off"}
    return os.environ | more | {"TQDM_MININTERVAL": "5", "TQDM_ASCII": "1"}


def stamp(path: Path) -> int:
    """Time of the last change of a file, 0 if there is none."""
    try:
        return path.stat().st_mtime_ns
    except OSError:  # not there, or just being written on Windows
        return 0


def copy_messages(raw: Path, folder: Path) -> None:
    """Write what the script said so far as ASCII text for ImageJ, whole lines only."""
    text = raw.read_bytes().decode("utf-8", "replace").translate(ASCII).replace("\r", "\n")
    lines = [line.rstrip() for line in text.split("\n")]
    plain = "".join(f"{line}\n" for line in lines if line)
    (folder / "messages.txt").write_bytes(plain.encode("ascii", "replace"))


def wait(child: subprocess.Popen, raw: Path, folder: Path) -> int:
    """Exit code of the script at its end; it is stopped if waiting.txt stays unchanged."""
    waiting = folder / "waiting.txt"
    last, silent, length = stamp(waiting), 0, 0
    while child.poll() is None:
        time.sleep(POLL_S)
        now, silent = stamp(waiting), silent + 1
        if now != last:
            last, silent = now, 0
        if raw.stat().st_size != length:
            length = raw.stat().st_size
            copy_messages(raw, folder)
        if silent > PATIENCE:
            child.terminate()
            child.wait()
    return child.returncode


def main(folder: Path, arguments: list[str]) -> None:
    """Run Python with these arguments."""
    raw = folder / "messages.raw"
    with raw.open("wb") as out:
        child = subprocess.Popen(
            [sys.executable, *arguments],
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        code = wait(child, raw, folder)
    copy_messages(raw, folder)
    raw.unlink()
    # The macro waits for this file, so it comes last and whole.
    (folder / "exit_code.new").write_text(str(code), encoding="ascii")
    os.replace(folder / "exit_code.new", folder / "exit_code.txt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2].split("\t"))
