"""Markdown tables of numbers that are read from CSV files, rounded as each template says."""

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from psf.errors import InputError

RESULTS = Path(__file__).parents[1] / "results"
RECORDED = "recorded"  # folder of tables whose code is not kept
NOT_KNOWN = "–"  # noqa: RUF001, the dash of a table
ROUND_UP = 1 + 1e-12  # a tie, as in 562.5, is rounded away from zero

Row = dict[str, Any]


class Number(float):
    """A number with more formats: `sig3` has 3 significant digits, `words` says millions."""

    def __format__(self, spec: str) -> str:
        if self != self:
            return NOT_KNOWN
        if spec == "words":
            return _in_words(self)
        if spec.startswith("sig"):
            return _significant(self, int(spec[3:]))
        text = format(float(self) * ROUND_UP, spec)
        # 70% is printed as 70 %, 8.6e-07 as 8.6e-7.
        return re.sub(r"e([+-])0(\d)", r"e\1\2", text.replace("%", " %"))

    def __mul__(self, factor: float) -> "Number":
        return Number(float(self) * factor)


def _significant(value: float, digits: int) -> str:
    """Text without exponent, as 21,600 or 0.00152."""
    rounded = float(f"{value * ROUND_UP:.{digits - 1}e}")
    return f"{rounded:,.0f}" if abs(rounded) >= 10 ** (digits - 1) else f"{rounded:.{digits}g}"


def _in_words(value: float) -> str:
    """Text as 500,000 or 180 million, with one significant digit below 10 and two above."""
    if value < 1e6:
        return _significant(value, 1)
    millions = value / 1e6
    return f"{_significant(millions, 1 if millions < 10 else 2)} million"


@dataclass(frozen=True)
class Table:
    """A table of results, and where its numbers come from."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    files: tuple[str, ...]  # CSV files that hold the numbers, from the folder results/
    derived: tuple[
        str, ...
    ] = ()  # columns or first cells with means or counts of the files' numbers
    labels: int = 1  # columns on the left that name what was measured

    def markdown(self) -> str:
        """Lines of the table, without a line break at the end."""
        if not self.header:
            return ""
        lines = [self.header, ("---",) * len(self.header), *self.rows]
        return "\n".join(
            "|---" * len(line) + "|" if line[0] == "---" else _line(line) for line in lines
        )


def _line(cells: Sequence[str]) -> str:
    return "|" + "".join(f" {cell} |" if cell else " |" for cell in cells)


def table(
    rows: Iterable[Mapping[str, Any]],
    columns: Mapping[str, str],
    files: Sequence[str],
    derived: Sequence[str] = (),
    labels: int = 1,
) -> Table:
    """Table with one line per row; `columns` holds a format string by the text of its header.

    A cell with a number that was not measured is a dash.
    """
    lines = []
    for row in rows:
        cells = [template.format(**row) for template in columns.values()]
        lines.append(tuple(NOT_KNOWN if NOT_KNOWN in cell else cell for cell in cells))
    return Table(tuple(columns), tuple(lines), tuple(files), tuple(derived), labels)


@cache
def _read(path: Path) -> tuple[Row, ...]:
    if not path.is_file():
        name = path.relative_to(RESULTS.parent).as_posix()
        raise InputError(f"{name} is missing; make it with reproduce.py --scale paper.")
    with path.open(encoding="utf-8", newline="") as file:
        return tuple(
            {key: _value(text) for key, text in row.items()} for row in csv.DictReader(file)
        )


def _value(text: str) -> Number | str:
    if not text:
        return Number("nan")
    try:
        return Number(text)
    except ValueError:
        return text


def rows(file: str, **equal: Any) -> list[Row]:
    """Rows of results/`file` whose columns equal the values given.

    Several values of a column are a tuple; the rows then come in its order.
    """
    found = list(_read(RESULTS / file))
    for column, wanted in reversed(equal.items()):
        several = wanted if isinstance(wanted, tuple) else (wanted,)
        found = [row for value in several for row in found if row[column] == value]
    return found


def row(file: str, **equal: Any) -> Row:
    """The only row of results/`file` whose columns equal the values given."""
    found = rows(file, **equal)
    if len(found) != 1:
        raise InputError(
            f"results/{file} has {len(found)} rows with {equal}, not one; make it again with "
            "reproduce.py --scale paper."
        )
    return found[0]


def pivot(table_rows: Iterable[Row], by: str, index: Sequence[str]) -> list[Row]:
    """One row for each set of values in `index`; the other columns hold a dict of values by `by`.

    A format string reads them as `{r2[1000 photons]:.3f}`.
    """
    groups: dict[tuple, Row] = {}
    for entry in table_rows:
        names = tuple(entry[column] for column in index)
        group = groups.setdefault(names, dict(zip(index, names, strict=True)))
        for column in entry.keys() - set(index):
            group.setdefault(column, {})[entry[by]] = entry[column]
    return list(groups.values())


def span(values: Iterable[float], spec: str) -> str:
    """Smallest and largest value as text; one number where both are printed alike."""
    held = [value for value in values if value == value]
    low, high = (f"{Number(end):{spec}}" for end in (min(held), max(held)))
    return low if low == high else f"{low} to {high}"


def with_interval(column: str) -> str:
    """Format string of a share or a correlation with its interval."""
    return f"{{{column}:.2f}} ({{{column}_low:.2f}} to {{{column}_high:.2f}})"


def linked(file: str) -> str:
    """Markdown link from docs/ to a file of results/."""
    name = file.removesuffix("/benchmark.csv")
    return f"[{name}](../results/{file})"


def recorded(name: str) -> Table:
    """Table of results/recorded/NAME.csv as it stands there."""
    file = f"{RECORDED}/{name}.csv"
    with (RESULTS / file).open(encoding="utf-8", newline="") as opened:
        header, *lines = csv.reader(opened)
    return Table(tuple(header), tuple(map(tuple, lines)), (file,))


def written(text: str, files: Sequence[str], derived: Sequence[str] = ()) -> Table:
    """Table from lines of cells with ` | ` between them; the first line is the header."""
    header, *lines = (
        tuple(cell.strip() for cell in line.strip().split("|"))
        for line in text.strip().splitlines()
    )
    return Table(header, tuple(lines), tuple(files), tuple(derived))
