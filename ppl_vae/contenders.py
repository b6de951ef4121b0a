"""Who takes part in a comparison: guides by name, by class, or by a function of the model."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from torch import nn

from .errors import InputError
from .guides import guides as registry
from .options import label, parse
from .weights import no_density

__all__ = ["ALL", "DECODER", "Entry", "GuideLike", "entries", "folder_name", "seeds_of"]

ALL = "all"
"""Stands for every guide of the registry that has a density: what is compared are bounds on log p(x)."""

DECODER = "decoder"
"""The run of the model that all guides share, where it was trained in the comparison."""

PLAIN = "mean-field"

GuideLike: TypeAlias = str | Callable[..., nn.Module]
"""A name with options, a class, or a function of the model."""


class Entry(NamedTuple):
    """One guide that takes part.

    Args:
        label: what it is called in tables.
        guide: its name with options, as a recipe has it; the label for a guide of a person's own.
        own: a class or a function; None for a guide by name.
    """

    label: str
    guide: str
    own: Callable[..., nn.Module] | None = None


def entries(guides: str | Sequence[GuideLike] | Mapping[str, GuideLike]) -> list[Entry]:
    """The guides that are asked for, each under a label of its own.

    Args:
        guides: "all"; or names, classes and functions; or these by label.

    Raises:
        InputError: none, an unknown name, one that is given twice, what is no guide.
    """
    if isinstance(guides, str) and guides == ALL:
        # the plainest first: it is what the others are compared with
        usable = [name for name in registry if registry.get(name).density]
        return [Entry(name, name) for name in sorted(usable, key=lambda name: (name != PLAIN, name))]
    if isinstance(guides, str) or not isinstance(guides, Mapping | Sequence) or not guides:
        raise InputError(f"guides={guides!r} must be a list of names; choose from: {', '.join(registry)}, or {ALL!r}")
    if isinstance(guides, Mapping):
        found = [_entry(guide, str(name), k) for k, (name, guide) in enumerate(guides.items())]
    else:
        found = [_entry(guide, None, k) for k, guide in enumerate(guides)]
    _check_folders(found)
    labels = [entry.label for entry in found]
    if len(set(labels)) != len(labels):
        raise InputError(
            f"guides={labels} names one twice; give each once, or each a name: {{'one': ..., 'other': ...}}"
        )
    return found


def seeds_of(seeds: int | Sequence[int] | None, first: int) -> tuple[int, ...]:
    """The seeds of a comparison: so many from the first one on, or those that are given.

    Raises:
        InputError: none, one that is given twice.
    """
    if seeds is None:
        return (first,)
    if isinstance(seeds, int) and not isinstance(seeds, bool):
        if seeds < 1:
            raise InputError(f"seeds={seeds} must be how many, 1 or more, or a list of seeds")
        return tuple(range(first, first + seeds))
    whole = isinstance(seeds, Sequence | range) and all(isinstance(s, int) and not isinstance(s, bool) for s in seeds)
    if not whole or isinstance(seeds, str | bool | int) or not seeds or len(set(seeds)) != len(seeds):
        raise InputError(f"seeds={seeds!r} must be how many, 1 or more, or a list of seeds, each once")
    return tuple(seeds)


def folder_name(entry_label: str, seed: int, several: bool) -> str:
    """The folder of a guide's run: its label, and its seed where there are several."""
    plain = re.sub(r"[^\w.,=+-]+", "-", entry_label).strip("-.") or "guide"
    return f"{plain}-seed-{seed}" if several else plain


def _check_folders(found: Sequence[Entry]) -> None:
    folders = {folder_name(DECODER, 0, several=False): DECODER}
    for entry in found:
        folder = folder_name(entry.label, 0, several=False)
        if folders.setdefault(folder, entry.label) != entry.label or entry.label == DECODER:
            raise InputError(
                f"guides={[e.label for e in found]}: {entry.label!r} would be kept in the folder {folder!r}, as is "
                f"{'the model that is held' if folder == DECODER else repr(folders[folder])}; give it another name"
            )


def _entry(guide: Any, name: str | None, place: int) -> Entry:
    if isinstance(guide, str):
        found, options = parse("guide", guide)
        if not registry.get(found).density:
            raise no_density(f"guides={found!r}")
        text = label(found, options)
        return Entry(name or text, text)
    registered = next((known for known in registry if registry.get(known) is guide), None)
    if registered is not None:
        return Entry(name or registered, registered)
    if not callable(guide) or isinstance(guide, nn.Module):
        raise InputError(
            f"guides[{place if name is None else repr(name)}] is a {type(guide).__name__}; give a name, a class, or a "
            "function that makes a guide for the model it is called with"
        )
    made = guide.func if isinstance(guide, functools.partial) else guide
    called = name or str(getattr(made, "__name__", type(made).__name__))
    if called == "<lambda>":
        called = f"guide {place + 1}"
    return Entry(called, called, guide)
