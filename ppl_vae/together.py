"""Several optimizers as one, for objectives that train parameters of their own in a way of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from .errors import InputError

__all__ = ["Together", "joined", "owned"]


class Together(Optimizer):
    """Optimizers of disjoint parameters as one: groups and state are theirs, a step is a step of each.

    Args:
        optimizers: the first is the pair's.

    Raises:
        InputError: a parameter that two of them hold.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self.optimizers = list(optimizers)
        seen: set[int] = set()
        for optimizer in self.optimizers:
            own = {id(p) for group in optimizer.param_groups for p in group["params"]}
            if own & seen:
                raise InputError(f"{type(optimizer).__name__} holds a parameter that another optimizer holds already")
            seen |= own
        super().__init__([p for o in self.optimizers for group in o.param_groups for p in group["params"]], {})
        self._gather()

    def _gather(self) -> None:
        """Make the optimizers' groups and state this one's: the same objects, so that neither can fall behind."""
        self.param_groups = [group for o in self.optimizers for group in o.param_groups]
        for optimizer in self.optimizers:
            self.state.update(optimizer.state)
            optimizer.state = self.state

    def owner(self, group: Mapping[str, Any]) -> Optimizer:
        """The optimizer that a group is of."""
        return next(o for o in self.optimizers for known in o.param_groups if known is group)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """A step of each; `closure` is called once before."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        sizes = [len(o.param_groups) for o in self.optimizers]
        super().load_state_dict(state_dict)
        rest = list(self.param_groups)
        for optimizer, size in zip(self.optimizers, sizes, strict=True):
            optimizer.param_groups, rest = rest[:size], rest[size:]
            optimizer.state = self.state


def joined(first: Optimizer, own: Sequence[Optimizer]) -> Optimizer:
    """The pair's optimizer, together with those of an objective's own where there are any."""
    return Together([first, *own]) if own else first


def owned(own: Sequence[Optimizer]) -> list[nn.Parameter]:
    """The parameters of optimizers."""
    return [p for optimizer in own for group in optimizer.param_groups for p in group["params"]]
