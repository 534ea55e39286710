"""Tables of `gpu.py`: rows that say with which card they were measured."""

import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from common.files import run_record, write_csv

TEXTS = ("device", "torch", "cuda", "commit", "date")  # columns that may look like numbers
MADE_BY = ("device", "torch")  # rows of other cards and versions stay in the table

Row = dict[str, Any]


def made_by(device: torch.device) -> Row:
    """What a row was measured with: card, versions, commit, date."""
    on_cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if on_cuda else f"{device.type} {platform.machine()}"
    return {
        "device": name,
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
        "commit": run_record()["commit"] or "",
        "date": datetime.now(UTC).date().isoformat(),
    }


class Table:
    """A CSV file that is whole after each row; a row with the same keys replaces the old one."""

    def __init__(self, path: Path, keys: Sequence[str], facts: Row) -> None:
        self.path, self.keys, self.facts = path, list(keys), facts

    def rows(self) -> list[Row]:
        """All rows so far."""
        if not self.path.is_file():
            return []
        return pd.read_csv(self.path, dtype=dict.fromkeys(TEXTS, str)).to_dict("records")

    def done(self) -> set[tuple]:
        """Keys of the rows that were measured on this card with this PyTorch."""
        same = [r for r in self.rows() if all(r[key] == self.facts[key] for key in MADE_BY)]
        return {tuple(row[key] for key in self.keys) for row in same}

    def add(self, row: Row) -> None:
        """Write a row."""
        row = {**row, **self.facts}
        keys = [*self.keys, *MADE_BY]
        others = [r for r in self.rows() if any(r[key] != row[key] for key in keys)]
        write_csv(self.path, pd.DataFrame([*others, row]))
        print(", ".join(f"{k} {short(v)}" for k, v in row.items() if k not in self.facts))


def short(value: object) -> str:
    """A number with four digits, or a text."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
