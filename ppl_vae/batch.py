"""The one argument of every program."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Batch"]


class Batch(NamedTuple):
    """N data and what is known about them: the argument of every model and every guide.

    A named tuple is a pytree, so a batch can be traced, moved and split without code of its own.

    Args:
        x: (N, \\*D) data in the likelihood's support; None when x is to be generated.
        y: (N,) class numbers, int64; -1 where the label is missing.
        context: (N, C) anything else the model is conditioned on.
        visible: (N, \\*D) bool, what the encoder may see; None: all of x.
        observed: (N, \\*D) bool, what the likelihood scores; None: all of x. Where it is False x must be 0, never
            NaN: a NaN under a mask leaves the loss finite and makes the gradient NaN.
        rows: (N,) int64, the data's rows in their data set, for guides with parameters per datum.
        n: N, where no tensor says it, as in generation from the prior.

    Example:
        >>> Batch(x=torch.zeros(3, 5)).size, Batch(n=7).size
        (3, 7)
    """

    x: Tensor | None = None
    y: Tensor | None = None
    context: Tensor | None = None
    visible: Tensor | None = None
    observed: Tensor | None = None
    rows: Tensor | None = None
    n: int | None = None

    @property
    def size(self) -> int:
        """N, the number of data. (`len` of a named tuple is its number of fields.)"""
        for tensor in self._tensors().values():
            return tensor.shape[0]
        if self.n is None:
            raise ValueError("an empty Batch has no size: give it x, y, context or n")
        return self.n

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on `device`."""
        fields: dict[str, Any] = {name: tensor.to(device) for name, tensor in self._tensors().items()}
        return self._replace(**fields)

    def take(self, rows: Tensor | slice) -> Batch:
        """The batch of the data at `rows` of this one."""
        fields: dict[str, Any] = {name: tensor[rows] for name, tensor in self._tensors().items()}
        return Batch(**fields)

    def _tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in self._asdict().items() if isinstance(value, Tensor)}
