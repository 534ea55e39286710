"""Finished rows of a map: kept in memory, and on request in a file to go on from."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.files import write_json, writing

BAND = 1024  # patches, at least, whose rows are read together, unless that are too many pixels
BAND_PX = 2**24  # pixels, about, that are read together at most: 64 MB, to bound the memory


def band_rows(columns: int, line_px: int) -> int:
    """Rows of a map that are predicted together; `line_px` pixels lie between two rows."""
    return max(1, min(-(-BAND // columns), BAND_PX // line_px))


class DoneRows:
    """Finished rows of a map: in memory, and on request in a file to go on from after a kill.

    The file holds (R, W, C) float32 of W columns, row after row, so that a kill spoils the last
    band at most; the JSON file beside it says which map it is.
    """

    def __init__(
        self, path: Path | None, key: dict[str, Any], width: int, shape: tuple[int, int], band: int
    ) -> None:
        self.path, self.key, self.width = path, key, width
        self.band = band  # rows that are predicted together
        self.rows, self.columns = shape  # of the whole map
        self.low, self.high = math.inf, -math.inf  # darkest and brightest pixel seen
        self._rows: list[torch.Tensor] = []  # (W, r, C) each
        if path is not None and path.is_file() and self._header.is_file():
            self._take_up()

    @property
    def _header(self) -> Path:
        return self.path.with_suffix(".json")

    @property
    def _facts(self) -> dict[str, Any]:
        return {"key": self.key, "width": self.width, "columns": self.columns}

    @property
    def count(self) -> int:
        """Rows done so far."""
        return sum(rows.shape[1] for rows in self._rows)

    def append(self, rows: torch.Tensor, darkest: float, brightest: float) -> None:
        """Keep (W, r, C) more, with the darkest and brightest pixel they were estimated from."""
        self._rows.append(rows)
        self.low, self.high = min(self.low, darkest), max(self.high, brightest)
        if self.path is None:
            return
        if not self._header.is_file():
            self.path.unlink(missing_ok=True)
            write_json(self._header, self._facts)
        with writing(self.path), self.path.open("ab") as file:
            file.write(rows.movedim(1, 0).contiguous().numpy().tobytes())

    def table(self) -> torch.Tensor:
        """(W, R, C)."""
        return torch.cat(self._rows, 1)

    def forget(self) -> None:
        """Delete the files; the map is written elsewhere."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
            self._header.unlink(missing_ok=True)

    def _take_up(self) -> None:
        held = json.loads(self._header.read_text(encoding="utf-8"))
        if held != json.loads(json.dumps(self._facts)):
            self.forget()
            return
        flat = np.fromfile(self.path, np.float32)
        length = self.width * self.columns
        whole = len(flat) // length
        if whole < self.rows:
            # Whole bands only: a network may round differently in batches that begin elsewhere.
            whole -= whole % self.band
        with self.path.open("r+b") as file:
            file.truncate(whole * length * flat.itemsize)
        if not whole:
            return
        rows = torch.from_numpy(flat[: whole * length].reshape(whole, self.width, self.columns))
        self._rows = [rows.movedim(1, 0)]
        # the darkest and brightest pixel are not kept; the means of the patches are as good
        self.low, self.high = float(rows[:, -1].min()), float(rows[:, -1].max())
