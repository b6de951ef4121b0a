"""A name for every part, so that the command line and saved runs can ask for it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from .errors import choose

__all__ = ["Registry"]

T = TypeVar("T")


class Registry(Generic[T]):
    """The parts of one kind, by name.

    Example:
        >>> shapes: Registry[type] = Registry("shape")
        >>> @shapes.register("round")
        ... class Round:
        ...     "A circle."
        >>> shapes.get("round").__name__, shapes.summary("round")
        ('Round', 'A circle.')
        >>> shapes.get("ruond")
        Traceback (most recent call last):
        ...
        ppl_vae.errors.InputError: shape='ruond' is not known; did you mean 'round'? choose one of: round
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._parts: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that files a part under `name`; a name taken by another part is a programming error."""

        def add(part: T) -> T:
            if name in self._parts:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._parts[name] = part
            return part

        return add

    def get(self, name: str) -> T:
        """The part called `name`; raises `InputError` with the nearest names where there is none."""
        if name not in self._parts:
            raise choose(self.kind, name, self._parts)
        return self._parts[name]

    def name_of(self, part: T) -> str:
        """The name under which `part` is filed; raises `KeyError` for a stranger."""
        for name, candidate in self._parts.items():
            if candidate is part:
                return name
        raise KeyError(part)

    def names(self) -> list[str]:
        return list(self._parts)

    def summary(self, name: str) -> str:
        """The first line of the part's docstring."""
        return (inspect.getdoc(self.get(name)) or "").partition("\n")[0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __contains__(self, name: object) -> bool:
        return name in self._parts
