"""Options of parts that are asked for by name: "low-rank:rank=3", and what a constructor takes."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar, Union

from .errors import InputError

__all__ = ["check_options", "construct", "label", "options_of", "parse"]

T = TypeVar("T")

_WIDTHS = re.compile(r"\d+(x\d+)+")
_WORDS = {"true": True, "false": False, "none": None}


def parse(argument: str, text: str) -> tuple[str, dict[str, Any]]:
    """A name with its options.

    Values are whole numbers, numbers, true, false, none, widths as 64x64, or words.

    Args:
        argument: what is asked for, for messages.
        text: the name, and after a colon each option.

    Raises:
        InputError: text of another form.

    Example:
        >>> parse("guide", "spline:transforms=4:kind=coupling")
        ('spline', {'transforms': 4, 'kind': 'coupling'})
    """
    name, *rest = (part.strip() for part in str(text).split(":"))
    options: dict[str, Any] = {}
    for part in rest:
        option, _, value = (word.strip() for word in part.partition("="))
        option = option.replace("-", "_")
        if not option.isidentifier() or not value:
            raise InputError(
                f"{argument}={text!r} must be a name, or a name with options after colons, as low-rank:rank=3"
            )
        if option in options:
            raise InputError(f"{argument}={text!r} says {option} twice")
        options[option] = _value(value)
    return name, options


def label(name: str, options: Mapping[str, Any]) -> str:
    """The text that `parse` takes apart."""
    return ":".join([name, *(f"{option}={_text(value)}" for option, value in options.items())])


def options_of(part: Callable[..., Any], given: Sequence[str] = ()) -> list[str]:
    """The names of what a part can be told by name: its constructor's arguments but those that are `given` to it."""
    return [name for name, (_, hint) in _parameters(part).items() if name not in given and _can_be_said(hint)]


def check_options(
    kind: str, name: str, part: Callable[..., Any], options: Mapping[str, Any], given: Sequence[str] = ()
) -> dict[str, Any]:
    """The options as the constructor takes them: one width becomes a sequence where that is asked for.

    Args:
        kind, name: of the part, for messages.
        part: a class or a function.
        options: by name.
        given: arguments that are no options.

    Raises:
        InputError: an option that the part does not take, a value of another type.
    """
    takes = options_of(part, given)
    checked: dict[str, Any] = {}
    for option, value in options.items():
        shown = f"{option}={_text(value)}"
        if option not in takes:
            offered = f"which takes {', '.join(takes)}" if takes else "which takes no options"
            raise InputError(f"{shown} does not fit {kind}={name!r}, {offered}")
        hint = _parameters(part)[option][1]
        if isinstance(value, int) and not isinstance(value, bool) and not _fits(value, hint) and _fits((value,), hint):
            value = (value,)
        if not _fits(value, hint):
            raise InputError(f"{shown} does not fit {kind}={name!r}, whose {option} is {_words(hint)}")
        checked[option] = tuple(value) if isinstance(value, list | tuple) else value
    return checked


def construct(
    kind: str,
    name: str,
    part: Callable[..., T],
    *leading: Any,
    offered: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> T:
    """Call a part with its leading arguments, with what it asks for of what is offered, and with options.

    Raises:
        InputError: the part asks for something more, or takes no leading arguments.
    """
    parameters = _parameters(part)
    first = list(parameters)[: len(leading)]
    if len(first) < len(leading):
        raise InputError(f"{kind}={name!r} takes {len(first)} arguments, and is called with {len(leading)} or more")
    arguments = {key: value for key, value in (offered or {}).items() if key in parameters and key not in first}
    arguments |= options or {}
    for key, (parameter, _) in parameters.items():
        if key not in arguments and key not in first and parameter.default is parameter.empty:
            raise InputError(f"{kind}={name!r} needs {key}, which no name stands for: make it in a program")
    return part(*leading, **arguments)


def _parameters(part: Callable[..., Any]) -> dict[str, tuple[inspect.Parameter, Any]]:
    """Arguments by name with their types; a constructor's ``**options`` are those of the next class that has one."""
    if not inspect.isclass(part):
        return _of_function(part)[0]
    found: dict[str, tuple[inspect.Parameter, Any]] = {}
    for each in part.__mro__:
        if "__init__" not in vars(each):
            continue
        mine, more = _of_function(vars(each)["__init__"])
        mine.pop("self", None)
        found |= {name: each for name, each in mine.items() if name not in found}
        if not more:
            break
    return found


def _of_function(function: Callable[..., Any]) -> tuple[dict[str, tuple[inspect.Parameter, Any]], bool]:
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError):  # names that only a type checker sees
        hints = {}
    found: dict[str, tuple[inspect.Parameter, Any]] = {}
    more = False
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            more = True
        elif parameter.kind is not parameter.VAR_POSITIONAL:
            found[name] = (parameter, hints.get(name, Any))
    return found, more


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin is Literal:
        return value in inner
    if origin in (Union, types.UnionType):
        return any(_fits(value, each) for each in inner)
    if hint is None or hint is type(None):
        return value is None
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (bool, str):
        return isinstance(value, hint)
    if origin in (tuple, list, Sequence):
        each = inner[0] if inner else Any
        return isinstance(value, list | tuple) and all(_fits(one, each) for one in value)
    return False


def _can_be_said(hint: Any) -> bool:
    """Whether text can say a value of a type, and not only none: parts of networks it cannot."""
    if typing.get_origin(hint) in (Union, types.UnionType):
        return any(_can_be_said(each) for each in typing.get_args(hint))
    return typing.get_origin(hint) is Literal or any(_fits(value, hint) for value in (0, 1.5, True, "", (1,)))


def _words(hint: Any) -> str:
    inner = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, inner))
    if typing.get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_words(each) for each in inner)
    if typing.get_origin(hint) in (tuple, list, Sequence):
        return "widths, as 64x64"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a word", type(None): "none"}
    return names.get(hint, str(hint))


def _value(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if _WIDTHS.fullmatch(text):
        return tuple(int(width) for width in text.split("x"))
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _text(value: Any) -> str:
    if isinstance(value, tuple | list):
        return "x".join(map(str, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
