"""What a run writes down as it goes: metrics.csv, a row an epoch, and TensorBoard's event files."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["Logs", "read_history"]

METRICS = "metrics.csv"


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
        self._write_all()
        self._board: Any = None
        if tensorboard:
            from torch.utils.tensorboard.writer import SummaryWriter

            purge = int(history[-1]["step"]) + 1 if history else None
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=purge)

    def add(self, row: Mapping[str, float]) -> None:
        """Write an epoch's row."""
        known = set(self._rows[0]) if self._rows else set()
        self._rows.append(dict(row))
        if set(row) != known:
            self._write_all()
        else:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, list(self._rows[0])).writerow({k: repr(v) for k, v in row.items()})
        if self._board is not None:
            for name, value in row.items():
                if name not in ("epoch", "step"):
                    self._board.add_scalar(name, value, int(row["step"]))

    def close(self) -> None:
        if self._board is not None:
            self._board.close()

    def _write_all(self) -> None:
        temporary = self.path.with_name(f".{METRICS}.{os.getpid()}")
        with temporary.open("w", newline="", encoding="utf-8") as file:
            if self._rows:
                writer = csv.DictWriter(file, list(self._rows[0]))
                writer.writeheader()
                writer.writerows({k: repr(v) for k, v in row.items()} for row in self._rows)
        temporary.replace(self.path)


def read_history(folder: Path) -> list[dict[str, float]]:
    """The rows of a run's metrics.csv; none where there is no file."""
    if not (folder / METRICS).exists():
        return []
    with (folder / METRICS).open(newline="", encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
