"""Regenerate tables and figures: from the shipped networks, or with networks trained from nothing.

    python reproduce.py --scale quick
    python reproduce.py --scale paper

The scale smoke takes about a minute and shows that everything runs. The scale quick simulates
16,000 patches and trains two networks for 2.5 minutes each. The scale paper trains nothing: it
makes every table and figure in results/ from the shipped networks, in about two hours on two
cores. The scale full has the size of the paper, with five PSF models and three networks on 15
million patches each, and needs a GPU.

Finished steps are skipped, unless their code, settings or networks have changed. Repeat the command
to continue. At the end, a table shows the numbers of the paper, the expected ones, and those that
were reached.
"""

import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from common.command import run
from common.files import write_csv
from psf.errors import InputError
from reproduction.claims import compare, text_of
from reproduction.paper_steps import paper_claims, paper_steps
from reproduction.steps import ROOT, Step, minutes_of, run_commands, run_steps
from reproduction.training_steps import training_claims, training_steps

MINUTES = Path("results/reproduction.csv")  # minutes that each step of the scale paper took


@dataclass(frozen=True)
class Config:
    """Settings of a reproduction."""

    # paper: all of results/ from the shipped networks; the others train networks of this size
    scale: Literal["smoke", "quick", "paper", "full"] = "quick"
    # run these steps only, e.g. depth; a wrong name lists all
    only: tuple[str, ...] | None = None
    draw_only: bool = False  # draw the figures from the tables of an earlier run
    stacks: Path | None = None  # folder of real focal stacks, for the scale paper


def chosen_steps(config: Config) -> list[Step]:
    """Steps of the scale, or those of --only.

    Raises
    ------
    InputError
        If a name in --only is unknown or none is given, or if the stacks cannot be used.
    """
    if config.stacks is not None and config.scale != "paper":
        raise InputError("only --scale paper uses --stacks; add it, or leave out --stacks.")
    if config.stacks is not None and not config.stacks.is_dir():
        raise InputError(f"there is no folder {config.stacks}; give --stacks the folder of stacks.")
    is_paper = config.scale == "paper"
    steps = paper_steps(config.stacks) if is_paper else training_steps(config.scale)
    names = [step.name for step in steps]
    if config.only is not None and not config.only:
        raise InputError(f"--only names no step; give --only {', '.join(names)}.")
    unknown = [name for name in config.only or () if name not in names]
    if unknown:
        more = " Steps of real stacks need --stacks." if config.stacks is None else ""
        raise InputError(
            f"there is no step {', '.join(unknown)}; give --only {', '.join(names)}.{more}"
        )
    return [step for step in steps if config.only is None or step.name in config.only]


def draw(steps: list[Step]) -> None:
    """Draw the figures of all steps from their tables."""
    drawn = [step for step in steps if step.draw]
    if not drawn:
        raise InputError("no step of these draws from tables; leave out --draw-only.")
    for step in drawn:
        run_commands(step.name, step.draw)


def read_minutes() -> dict[str, float]:
    """Minutes that each step took before, by name; empty without a readable table."""
    try:
        table = pd.read_csv(MINUTES)
        return dict(zip(table["step"], table["minutes"].astype(float), strict=True))
    except (OSError, KeyError, ValueError):  # they only serve to tell the time that is left
        return {}


def report(config: Config, steps: list[Step]) -> None:
    """Print which pictures to look at, and the numbers beside those of the paper."""
    pictures = [str(path) for step in steps for path in step.outputs if path.suffix == ".png"]
    if pictures:
        print("look at", *pictures, sep="\n  ")
    claims = paper_claims() if config.scale == "paper" else training_claims(config.scale)
    table = compare(claims)
    name = "" if config.scale == "paper" else config.scale
    write_csv(Path("results") / name / "paper.csv", table)
    print(f"\n{text_of(table)}\n")
    print(
        f"wrote {Path('results') / name / 'paper.csv'}; the tables are explained in docs/results.md"
    )


def _interrupt(*_) -> None:
    """End as by Ctrl-C, which ends the running command too."""
    raise KeyboardInterrupt


def main(config: Config) -> None:
    """Run the steps, or draw their figures, and report."""
    if not Path.cwd().samefile(ROOT):
        raise InputError(f"the steps run in the folder of the project: cd {ROOT} first.")
    signal.signal(signal.SIGTERM, _interrupt)
    steps = chosen_steps(config)
    if config.draw_only:
        draw(steps)
        return
    records = Path("runs") / config.scale / "records"
    known = read_minutes() if config.scale == "paper" else {}
    run_steps(steps, records, known)
    if config.scale == "paper":
        known |= minutes_of(steps, records)
        write_csv(MINUTES, pd.DataFrame(known.items(), columns=["step", "minutes"]))
    report(config, steps)


if __name__ == "__main__":
    run(Config, main, __doc__)
