"""Tensors that programs hold by themselves, constants of a closure or attributes, as inputs of a graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

__all__ = ["Place", "Unlifted", "held_tensors", "lifted", "places_of", "strict"]


class Unlifted(Exception):
    """A program computes with a tensor that is no input of the graph that is being traced."""


class lifted(TorchFunctionMode):
    """Puts stand-ins in the place of tensors that a program holds by itself.

    A tracer knows a function's inputs alone. Parameters and buffers are found in modules; of any other tensor
    a program learns when it is used, here, where every operation passes through.

    Args:
        stand_ins: of the tensors that are known, by their id.
        unknown: what to do with another: returns its stand-in, or raises.
    """

    def __init__(self, stand_ins: dict[int, Tensor], unknown: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stand_ins = stand_ins
        self.unknown = unknown

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if _is_plain(func):
            return func(*args, **(kwargs or {}))
        args, kwargs = pytree.tree_map_only(Tensor, self._replaced, (args, kwargs or {}))
        return func(*args, **kwargs)

    def _replaced(self, tensor: Tensor) -> Tensor:
        # a tensor inside of `vmap` or `grad` wraps one that came this way
        if isinstance(tensor, FakeTensor) or is_functorch_wrapped_tensor(tensor):
            return tensor
        known = self.stand_ins.get(id(tensor))
        return self.unknown(tensor) if known is None else known


def _is_plain(func: Any) -> bool:
    """Whether a function only asks what a tensor is, and not for its values."""
    return getattr(func, "__name__", "") == "__get__" and getattr(func, "__self__", None) in _ASKED


_ASKED = {
    getattr(Tensor, name) for name in ("shape", "dtype", "device", "layout", "ndim", "requires_grad", "is_leaf", "grad")
}


def strict(tensor: Tensor) -> Tensor:
    """For `lifted`: no tensor but the known ones."""
    raise Unlifted


def held_tensors(function: Callable[..., Any], flat: Sequence[Tensor]) -> list[Tensor]:
    """The tensors that a function of tensors computes with besides its arguments, found by one run on stand-ins.

    Args:
        flat: arguments, of which nothing is changed.
    """
    mode = FakeTensorMode(allow_fallback_kernels=True, static_shapes=True)
    found: dict[int, Tensor] = {}
    stand_ins: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        found[id(tensor)] = tensor
        with unset_fake_temporarily():  # this is a real one
            stand_ins[id(tensor)] = mode.from_tensor(tensor.detach())
        return stand_ins[id(tensor)]

    arguments = [mode.from_tensor(t) for t in flat]
    with mode, lifted(stand_ins, note):
        function(*arguments)
    return list(found.values())


Place = tuple[Callable[[], Any], Any]
"""Where something lies, as a function that looks there, and what lay there."""


def places_of(root: Any, held: Sequence[Tensor]) -> list[Place]:
    """Where in a program's attributes, closures, globals and distributions such tensors lie, and what they lie in.

    A graph goes on with the tensors that it was traced with; who puts another in such a place means that one.
    """
    wanted, seen = {id(t) for t in held}, set()

    def search(thing: Any, depth: int) -> list[Place]:
        if depth == 0 or id(thing) in seen:
            return []
        seen.add(id(thing))
        found: list[Place] = []
        for look in _inside(thing):
            value = look()
            below = [] if id(value) in wanted else search(value, depth - 1)
            if id(value) in wanted or below:
                found += [(look, value), *below]
        return found

    return search(root, 6) if wanted else []


def _inside(thing: Any) -> list[Callable[[], Any]]:
    """Ways to look at what a program, a module, a distribution or a collection holds."""
    if isinstance(thing, type | ModuleType | Tensor | str | bytes | int | float | None):
        return []
    if isinstance(thing, MethodType):
        return [lambda: thing.__self__, lambda: thing.__func__]
    if isinstance(thing, FunctionType):
        cells = [partial(getattr, cell, "cell_contents", None) for cell in thing.__closure__ or ()]
        names = [name for name in thing.__code__.co_names if name in thing.__globals__]
        return [*cells, *[partial(thing.__globals__.get, name) for name in names]]
    if isinstance(thing, dict):
        return [partial(thing.get, name) for name in thing]
    if isinstance(thing, list | tuple):
        return [partial(_item, thing, k) for k in range(len(thing))]
    return [partial(vars(thing).get, name) for name in list(vars(thing))] if hasattr(thing, "__dict__") else []


def _item(items: Sequence[Any], k: int) -> Any:
    return items[k] if k < len(items) else None
