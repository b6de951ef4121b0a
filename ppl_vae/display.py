"""What happens while one waits: progress bars on a terminal, a line now and then in a log."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from .progress import Bar, make_progress, said
from .trainer import EpochEnd

__all__ = ["Display", "TrainingLines", "display", "make_console"]

WIDTH = 120
"""Columns where there is no terminal to ask."""


def make_console(stderr: bool = False) -> Console:
    """A console that writes plain text, `WIDTH` columns wide, where it is no terminal."""
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(stderr=stderr, highlight=False, width=WIDTH)
    return console


class TrainingLines:
    """A callback of `fit` that writes ten lines in all to the standard error.

    Args:
        name: what is trained.
        epochs: how many there will be.
    """

    def __init__(self, name: str, epochs: int) -> None:
        self.name = name
        self.epochs = epochs

    def __call__(self, told: EpochEnd) -> None:
        if told.epoch * 10 // self.epochs == (told.epoch - 1) * 10 // self.epochs:
            return
        if torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_rank():
            return
        text = ", ".join(
            (f"{self.name}: epoch {told.epoch}/{self.epochs}", *said(told.row, told.guide, told.objective))
        )
        print(text, file=sys.stderr, flush=True)


class Display:
    """Where bars go, or lines.

    Args:
        bars: a rich display; None: none.
        lines: whether lines are written instead.
    """

    def __init__(self, bars: Progress | None, lines: bool) -> None:
        self.bars = bars
        self.lines = lines
        self.kept: set[int] = set()

    def overall(self, name: str, total: int) -> Bar:
        """A bar that stays when what it counts is done."""
        bar = Bar(self.bars, name, total)
        if self.bars is not None:
            self.kept.add(max(self.bars.task_ids))
        return bar

    def tidy(self) -> None:
        """Take away bars that are full, so that there is room for the next."""
        for task in () if self.bars is None else self.bars.tasks:
            if task.finished and task.id not in self.kept and self.bars is not None:
                self.bars.update(task.id, visible=False)

    def for_fit(self, name: str, epochs: int, devices: int = 1) -> dict[str, Any]:
        """Arguments for `fit`."""
        if self.bars is None:
            return {"progress": False, "callbacks": (TrainingLines(name, epochs),) if self.lines else ()}
        # a display cannot be sent to another process, which makes its own
        return {"progress": self.bars if devices == 1 else True, "description": name}

    def count(self, name: str, size: int) -> Callable[[int, int], None]:
        """A function to be told how much is done, and of how much; the bar shows it as a share of `size` data."""
        bar = Bar(self.bars, name, size)
        if self.lines:
            print(name, file=sys.stderr, flush=True)

        def tell(done: int, total: int) -> None:
            bar.update(size * done // total)

        return tell


@contextmanager
def display(progress: bool | Progress) -> Iterator[Display]:
    """Bars on a display that is given, or for True on one of this block's own; where the standard error is no
    terminal, lines. False: nothing at all."""
    if isinstance(progress, Progress):
        yield Display(progress, lines=False)
    elif not progress:
        yield Display(None, lines=False)
    else:
        console = make_console(stderr=True)
        if console.is_terminal:
            with make_progress(console) as bars:
                yield Display(bars, lines=False)
        else:
            yield Display(None, lines=True)
