"""Run a program with every parameter stopped, wherever it is held: what comes out has a gradient in the draws alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Size, Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["Stopped", "leaves"]


class Stopped(TorchFunctionMode):
    """Detaches each tensor that takes a gradient (a leaf that requires one) as it enters an operation.

    A parameter is stopped by what it is and not by who owns it: modules' own ones, those of a module under two names or
    of one that a program only refers to, those in closures and in Pyro's store. What the program computes from draws,
    which are no leaves, keeps its graph. Inside of a tracer it leaves detachments in the graph and nothing else.

    Two things pass by: an operation that torch's overrides do not see (a `torch.autograd.Function` applied to a
    parameter, TorchScript), and a tensor computed from parameters outside. `leaves` of the result tells.

    Attributes:
        made: leaves that the program made inside, to differentiate by variables of its own; they are not stopped.
    """

    def __init__(self) -> None:
        super().__init__()
        self.made: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") == "__get__":
            # a look at an attribute must see the tensor as it is; W.T is an operation all the same
            out = func(*args)
            return func(*map(self._stop, args)) if isinstance(out, Tensor) and out.requires_grad else out
        out = func(*map(self._stop, args), **{name: self._stop(value) for name, value in (kwargs or {}).items()})
        if isinstance(out, Tensor) and out.requires_grad and out.is_leaf:
            self.made.append(out)
        return out

    def _stop(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            external = value.requires_grad and value.is_leaf and not any(value is own for own in self.made)
            return value.detach() if external else value
        if isinstance(value, list | tuple) and not isinstance(value, Size):
            stopped = [self._stop(v) for v in value]
            return value if all(a is b for a, b in zip(stopped, value, strict=True)) else type(value)(stopped)
        return value


def leaves(tensor: Tensor) -> Iterator[Tensor]:
    """The tensors that `tensor.backward()` would give a gradient to."""
    if tensor.requires_grad and tensor.is_leaf:
        yield tensor
    seen: set[Any] = set()
    nodes = [tensor.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(variable := getattr(node, "variable", None), Tensor):
            yield variable
        nodes += [parent for parent, _ in node.next_functions]
