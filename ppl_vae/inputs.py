"""What a batch holds, held against what a pair looks at: labels, contexts and masks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from .batch import Batch
from .errors import InputError
from .labels import check_labels, class_count
from .masks import check_masks
from .networks import Condition

__all__ = ["check_batch", "check_given"]


def check_batch(batch: Batch, *programs: Any, argument: str = "batch") -> None:
    """Raise `InputError` unless a batch is one that the programs can be run on.

    - Every field is a tensor of N rows.
    - Masks are bool, of the shape of x, in no row all False, and x is 0 where it is not observed (`check_masks`).
    - Labels and contexts are what the programs look at (`check_given`).

    It reads tensors' values: called where a pair is seen for the first time, and never in a step.

    Args:
        batch: what they would be run on.
        programs: a model, its guide; of what is no module nothing is known.
        argument: what the batch is called in the message.
    """
    for name, value in batch._asdict().items():
        if name == "n" or value is None:
            continue
        if not isinstance(value, Tensor) or value.dim() < 1:
            came = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise InputError(f"{argument}.{name} is {came}; give a tensor with a row for each datum")
        if len(value) != batch.size:
            raise InputError(f"{argument}.{name} has {len(value)} rows where there are {batch.size} data")
    check_masks(batch, argument)
    check_given(batch, *programs, argument=argument)


def check_given(batch: Batch, *programs: Any, argument: str = "batch") -> None:
    """Raise `InputError` for labels that are no class of the programs, for a context of another width, and for either
    of another dtype or shape than `Batch` says. Of what no program looks at nothing is asked, and what is missing is
    the programs' own to refuse."""
    for program in programs:
        if classes := class_count(program):
            check_labels(batch.y, classes, f"{argument}.y")
    for condition in dict.fromkeys(_conditions(*programs)):
        if condition.classes:
            check_labels(batch.y, condition.classes, f"{argument}.y")
        if condition.context and batch.context is not None:
            _check_context(batch.context, batch.size, condition.context, f"{argument}.context")


def _check_context(context: Tensor, size: int, width: int, argument: str) -> None:
    if not context.is_floating_point() or tuple(context.shape) != (size, width):
        raise InputError(
            f"{argument} is {context.dtype} {tuple(context.shape)}; this program is conditioned on a context of "
            f"{width} numbers: give floats of shape ({size}, {width})"
        )
    if not bool(context.isfinite().all()):
        row, column = (int(i) for i in (~context.isfinite()).nonzero()[0])
        raise InputError(f"{argument}[{row}, {column}] is {context[row, column].item()}; a context must be finite")


def _conditions(*programs: Any) -> Iterator[Condition]:
    for program in programs:
        if isinstance(program, nn.Module):
            yield from (part for part in program.modules() if isinstance(part, Condition))
