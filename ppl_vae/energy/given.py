"""What the losses of energies are given: a model of their kind, and x."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import Tensor, nn

from ..batch import Batch
from ..errors import InputError
from ..weights import Program

__all__ = ["given"]

M = TypeVar("M", bound=nn.Module)


def given(loss: object, kind: type[M], model: Program, args: tuple[Any, ...]) -> tuple[M, Tensor]:
    """The model, and x of the batch among a program's arguments.

    Raises:
        InputError: a model of another kind, or no batch with x.
    """
    name = type(loss).__name__
    if not isinstance(model, kind):
        article = "an" if kind.__name__[0] in "AEIOR" else "a"
        raise InputError(f"{name} trains {article} {kind.__name__}; got a {type(model).__name__}")
    batch = next((arg for arg in args if isinstance(arg, Batch)), None)
    if batch is None or batch.x is None:
        raise InputError(f"{name} needs a Batch with x")
    return model, batch.x
