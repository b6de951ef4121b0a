"""Minibatches taken inside of a compiled step, from data that lie on the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .batch import Batch
from .data import DataSet
from .data.dataset import HELD
from .errors import InputError, check_count

__all__ = ["Minibatches", "shuffled_rows"]


def shuffled_rows(size: int, batch_size: int, steps: int, device: torch.device | str = "cpu") -> Tensor:
    """Row numbers of minibatches, (steps, batch_size), drawn on the device from its default generator.

    Every epoch is a random order of all rows without its last partial batch; epochs follow one another until there
    are enough.

    Raises:
        InputError: a batch larger than the data.
    """
    for name, value in (("size", size), ("batch_size", batch_size), ("steps", steps)):
        check_count(name, value)
    if batch_size > size:
        raise InputError(f"batch_size={batch_size} is more than the {size} data; give at most {size}")
    whole = size // batch_size
    epochs = [
        torch.randperm(size, device=device)[: whole * batch_size].view(whole, batch_size)
        for _ in range(-(-steps // whole))
    ]
    return torch.cat(epochs)[:steps]


class Minibatches(nn.Module):
    """A loss of (args, kwargs) as a loss of row numbers.

    What is held: of every data set its tensors, of every `Batch` its fields, and every other tensor, whose first
    axis is the data's. They are buffers, so that a graph reads them where they lie.

    Args:
        loss: a module of (args, kwargs).
        args, kwargs: the whole data, as the programs take one minibatch of them; a `DataSet` becomes a `Batch`.
    """

    def __init__(self, loss: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        super().__init__()
        self.loss = loss
        self.leaves, self.tree = pytree.tree_flatten((args, dict(kwargs)), is_leaf=_whole)
        for k, leaf in enumerate(self.leaves):
            for name, tensor in _tensors(leaf).items():
                self.register_buffer(f"data_{k}_{name}", tensor, persistent=False)

    def holds(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Whether these are the data held."""
        leaves, tree = pytree.tree_flatten((args, dict(kwargs)), is_leaf=_whole)
        if tree != self.tree:
            return False
        return all(
            (isinstance(a, Batch) and isinstance(b, Batch) and all(_same(s, t) for s, t in zip(a, b, strict=True)))
            or _same(a, b)
            for a, b in zip(leaves, self.leaves, strict=True)
        )

    def take(self, rows: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The programs' arguments for these rows."""
        taken = [
            _take(leaf, {name: getattr(self, f"data_{k}_{name}") for name in _tensors(leaf)}, rows)
            for k, leaf in enumerate(self.leaves)
        ]
        args, kwargs = pytree.tree_unflatten(taken, self.tree)
        return args, kwargs

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        result: tuple[Tensor, Tensor] = self.loss(*self.take(rows))
        return result


def _same(a: Any, b: Any) -> bool:
    return a is b or (isinstance(a, int | float | str) and type(a) is type(b) and a == b)


def _whole(leaf: Any) -> bool:
    return isinstance(leaf, Batch)


def _tensors(leaf: Any) -> dict[str, Tensor]:
    """What is held of an argument, by name."""
    if isinstance(leaf, DataSet):
        return {name: t for name in HELD if (t := getattr(leaf, name)) is not None}
    if isinstance(leaf, Batch):
        return {name: t for name, t in leaf._asdict().items() if isinstance(t, Tensor)}
    return {"value": leaf} if isinstance(leaf, Tensor) and leaf.dim() else {}


def _take(leaf: Any, held: Mapping[str, Tensor], rows: Tensor) -> Any:
    if isinstance(leaf, DataSet):
        return leaf.holding(**held).batch(rows)
    if isinstance(leaf, Batch):
        fields: dict[str, Any] = dict(held)
        return Batch(**fields).take(rows)
    return held["value"].index_select(0, rows) if held else leaf
