"""What a model is asked to generate: classes in turn, one class, or whatever its data were conditioned on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .batch import Batch
from .errors import InputError, choose
from .labels import class_count
from .networks import Condition

__all__ = ["Conditions", "class_number", "conditions"]

_MOST_COLUMNS = 20
_PER_CLASS = 8


class Conditions(NamedTuple):
    """A batch without x, and how to lay out what comes of it.

    Args:
        batch: to be given to the model.
        per_row: pictures in a row; None: as it pleases.
        column_names: of each picture in a row; empty: none.
    """

    batch: Batch
    per_row: int | None = None
    column_names: tuple[str, ...] = ()


def conditions(
    model: Any,
    count: int | None,
    class_names: Sequence[str],
    label: str | None = None,
    context: Tensor | None = None,
) -> Conditions:
    """Conditions for `count` generated data.

    Args:
        model: a model; one without a `condition` of classes or a context takes none.
        count: how many; None: 64, or 8 of each class.
        class_names: of the data it was trained on.
        label: a class by name or number; None: all classes in turn.
        context: (M, C), from which a model of contexts takes its own, in turn.

    Raises:
        InputError: a label for a model that is not conditioned on classes, or out of range; a context is needed.
    """
    if count is not None and count < 1:
        raise InputError(f"n={count} generates nothing; give 1 or more")
    given = getattr(model, "condition", None)
    classes, width = class_count(model), given.context if isinstance(given, Condition) else 0
    if label is not None and not classes:
        raise InputError(
            f"label={label!r} needs a model that is conditioned on classes, and {type(model).__name__} is not; train "
            "model='cvae' (--model cvae) on data with labels"
        )
    shown = label is None and 0 < classes <= _MOST_COLUMNS
    if count is None:
        count = _PER_CLASS * classes if shown else _PER_CLASS**2
    turn = torch.arange(count)
    taken = None
    if width:
        if context is None:
            raise InputError(f"{type(model).__name__} is conditioned on a context of {width} numbers: give context")
        taken = context.cpu()[turn % len(context)]
    if not classes:
        return Conditions(Batch(context=taken, n=count))
    if label is not None:
        y = torch.full((count,), class_number(label, class_names))
        return Conditions(Batch(y=y, context=taken, n=count))
    return Conditions(
        Batch(y=turn % classes, context=taken, n=count),
        classes if shown else None,
        tuple(class_names) if shown else (),
    )


def class_number(label: str, class_names: Sequence[str]) -> int:
    """A class's number from its name or number; raises `InputError` for one that is not there."""
    names = list(class_names)
    if label in names:
        return names.index(label)
    try:
        number = int(label)
    except ValueError:
        raise choose("label", label, names) from None
    if not 0 <= number < len(names):
        raise InputError(
            f"label={label!r} is out of range: the classes are 0 to {len(names) - 1} ({', '.join(names[:20])})"
        )
    return number
