"""Progress bars with the ELBO and its KL, in nats a datum."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["Bar", "make_progress", "progress_bar", "said"]


def said(row: Mapping[str, float], guide: Any, objective: Any) -> tuple[str, str]:
    """An epoch's two numbers in words, nats a datum: the ELBO and its KL; log p(x | z) and the KL where the KL has no
    weight, as in an autoencoder; log p(x | z) and log p(z) where the guide is a point, of which there is no bound. Of
    an objective without a bound, the number by which it is watched, and its loss."""
    if "elbo" not in row:
        watched = objective.watched
        return f"{watched.replace('_', ' ')} {row[watched]:.2f}", f"loss {row['loss']:.2f} nats/datum"
    if not getattr(guide, "density", True):
        return f"log p(x | z) {row['log_likelihood']:.2f}", f"log p(z) {-row['kl']:.2f} nats/datum"
    if getattr(objective, "watched", "elbo") == "log_likelihood":
        return f"log p(x | z) {row['log_likelihood']:.2f}", f"KL {row['kl']:.2f} nats/datum"
    return f"ELBO {row['elbo']:.2f}", f"KL {row['kl']:.2f} nats/datum"


def make_progress(console: Console | None = None) -> Progress:
    """A rich progress display with this package's columns; several bars can share it."""
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console or Console(stderr=True),
    )


class Bar:
    """One bar. Without a display it does nothing."""

    def __init__(self, display: Progress | None, description: str, total: int) -> None:
        self._display = display
        self._task = display.add_task(description, total=total, note="") if display is not None else None

    def update(self, completed: float, note: str | None = None) -> None:
        if self._display is not None and self._task is not None:
            fields = {} if note is None else {"note": note}
            self._display.update(self._task, completed=completed, **fields)  # type: ignore[arg-type]


@contextmanager
def progress_bar(progress: bool | Progress, description: str, total: int) -> Iterator[Bar]:
    """A bar on a display of its own (True), on one that is given, or none (False)."""
    if isinstance(progress, Progress):
        yield Bar(progress, description, total)
    elif progress:
        with make_progress() as display:
            yield Bar(display, description, total)
    else:
        yield Bar(None, description, total)
