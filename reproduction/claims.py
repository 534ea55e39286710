"""Numbers of the paper beside those expected of a run and those that it reached."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from psf.errors import InputError


@dataclass(frozen=True)
class Claim:
    """One number: where it stands in a table, what the paper says, and what is expected."""

    what: str
    paper: str  # what the paper says, or nothing
    table: Path  # CSV file
    rows: dict[str, Any]  # column: value of the row that counts
    column: str
    at_least: float | None = None  # lowest value that counts as success
    at_most: float | None = None  # highest one

    def reached(self) -> float | None:
        """The number in the table, or None if there is no table.

        Raises
        ------
        InputError
            If the table does not hold exactly one such row.
        """
        if not self.table.is_file():
            return None
        found = pd.read_csv(self.table)
        for column, value in self.rows.items():
            found = found[found[column] == value]
        if len(found) != 1:
            raise InputError(
                f"{self.table} holds {len(found)} rows with {self.rows}, not one; make it again "
                "with reproduce.py."
            )
        return float(found[self.column].iloc[0])

    def is_met(self, value: float) -> bool:
        """Whether a value lies in the expected range."""
        above = self.at_least is None or value >= self.at_least
        return above and (self.at_most is None or value <= self.at_most)

    def expected(self) -> str:
        """The expected range in words; empty if any value will do."""
        if self.at_least is None and self.at_most is None:
            return ""
        if self.at_least is not None and self.at_most is not None:
            return f"{self.at_least:g} to {self.at_most:g}"
        return (
            f"at least {self.at_least:g}" if self.at_most is None else f"at most {self.at_most:g}"
        )


def compare(claims: Sequence[Claim]) -> pd.DataFrame:
    """Table with a row per claim: columns what, paper, expected, reached, verdict, table."""
    rows = []
    for claim in claims:
        value = claim.reached()
        verdict = "reached" if value is not None and claim.is_met(value) else "NOT reached"
        rows.append(
            {
                "what": claim.what,
                "paper": claim.paper,
                "expected": claim.expected(),
                "reached": value,
                "verdict": "not measured" if value is None else verdict,
                "table": claim.table.as_posix(),
            }
        )
    return pd.DataFrame(rows)


def text_of(table: pd.DataFrame) -> str:
    """The table of `compare` for a terminal, in aligned columns."""
    shown = table.drop(columns="table").fillna({"paper": ""})
    shown["reached"] = ["" if pd.isna(v) else f"{v:.3g}" for v in shown["reached"]]
    lines = [list(shown), *shown.astype(str).to_numpy().tolist()]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    padded = (zip(line, widths, strict=True) for line in lines)
    return "\n".join("  ".join(cell.ljust(w) for cell, w in line).rstrip() for line in padded)
