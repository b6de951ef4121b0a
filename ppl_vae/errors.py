"""Errors that speak to the person who called, each naming the argument, the value that came and what would work."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable

__all__ = ["InputError", "NonFiniteLossError", "RunError", "check_count", "check_number", "choose"]


class InputError(ValueError):
    """An argument, a file or a data set that cannot be used as it is."""


class RunError(InputError):
    """A run folder that is not one, is truncated, or was written by another version."""


class NonFiniteLossError(RuntimeError):
    """Training met a loss that is NaN or infinite; the last good checkpoint is kept.

    Attributes:
        rows: the batch's rows in the data set, all of them (the message shows the first).
    """

    def __init__(self, message: str, rows: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.rows = rows


def choose(argument: str, value: object, options: Iterable[str]) -> InputError:
    """The error for a name that is not among `options`, with the nearest names first."""
    names = sorted(options)
    # upper and lower case are no difference to a person: 'MNIST' is near 'mnist'
    lower = {name.lower(): name for name in names}
    near = [lower[match] for match in difflib.get_close_matches(str(value).lower(), lower, n=3, cutoff=0.5)]
    hint = f"did you mean {' or '.join(repr(name) for name in near)}? " if near else ""
    return InputError(f"{argument}={value!r} is not known; {hint}choose one of: {', '.join(names)}")


def check_count(name: str, value: object, least: int = 1) -> int:
    """`value` as a number of something; raises `InputError` naming the argument where it is none."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{name}={value!r} must be a whole number, {least} or more")
    return value


def check_number(name: str, value: object, *, least: float | None = None, above: float | None = None) -> float:
    """`value` as a finite number, `least` or more, or above `above`.

    Raises:
        InputError: it is none, or lies below.
    """
    wanted = "" if least is None else f", {least:g} or more"
    wanted += "" if above is None else f" above {above:g}"
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or (least is not None and value < least) or (above is not None and value <= above):  # type: ignore[operator]
        raise InputError(f"{name}={value!r} must be a number{wanted}")
    return float(value)  # type: ignore[arg-type]
