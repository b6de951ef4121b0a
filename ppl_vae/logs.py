"""What a run writes down as it goes: metrics.csv, a row an epoch, and TensorBoard's event files."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .checkpoint import writing
from .folder import METRICS, TENSORBOARD

__all__ = ["Logs", "read_history"]


class Logs:
    """The logs of a run folder. Nats are per datum, "seconds" are the epoch's.

    Args:
        folder: the run's.
        history: rows that stand from before, when a run is resumed; rows after them are dropped, since the run goes
            on from its checkpoint and would write them twice.
        tensorboard: whether event files are written too.
    """

    def __init__(self, folder: Path, history: list[dict[str, float]], tensorboard: bool = True) -> None:
        self.path = folder / METRICS
        self._rows = list(history)
        self._columns: list[str] = []
        self._write_all()
        self._board: Any = None
        if tensorboard:
            from torch.utils.tensorboard.writer import SummaryWriter

            # readers drop what an earlier process wrote from this step on
            purge = int(history[-1]["step"]) + 1 if history else 1
            self._board = SummaryWriter(str(folder / TENSORBOARD), purge_step=purge)

    def add(self, row: Mapping[str, float]) -> None:
        """Write an epoch's row."""
        self._rows.append(dict(row))
        if not set(row) <= set(self._columns):
            self._write_all()
        else:
            with writing(self.path), self.path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self._columns).writerow(_texts(row))
        if self._board is not None:
            for name, value in row.items():
                if name not in ("epoch", "step"):
                    self._board.add_scalar(name, value, int(row["step"]))

    def close(self) -> None:
        if self._board is not None:
            self._board.close()

    def _write_all(self) -> None:
        self._columns = list(dict.fromkeys(name for row in self._rows for name in row))
        temporary = self.path.with_name(f".{METRICS}.{os.getpid()}")
        with writing(self.path):
            try:
                with temporary.open("w", newline="", encoding="utf-8") as file:
                    if self._columns:
                        writer = csv.DictWriter(file, self._columns)
                        writer.writeheader()
                        writer.writerows(map(_texts, self._rows))
                temporary.replace(self.path)
            finally:
                temporary.unlink(missing_ok=True)


def _texts(row: Mapping[str, float]) -> dict[str, str]:
    # repr: what is read back is the same float
    return {name: repr(value) for name, value in row.items()}


def read_history(folder: Path) -> list[dict[str, float]]:
    """The rows of a run's metrics.csv; none where there is no file."""
    if not (folder / METRICS).exists():
        return []
    with (folder / METRICS).open(newline="", encoding="utf-8") as file:
        # a column may be empty in rows from before it was logged
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
