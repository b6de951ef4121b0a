"""The diagnostics of a whole diagnosis: which there are, what each one asks, and how much it may cost."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal, TypeAlias, get_args

from ..errors import InputError, choose
from .findings import Finding

__all__ = ["CHECKS", "Budget", "Check", "chosen", "chosen_budget"]

Budget: TypeAlias = Literal["quick", "standard", "thorough"]
"""How much a diagnosis may cost: of a VAE of the digits seconds, three minutes, or half an hour."""

_GIVEN = ("model", "guide", "data", "train", "train_guide", "seed", "progress", "compile")


@dataclass(frozen=True)
class Check:
    """One diagnostic.

    Args:
        name: as a caller asks for it.
        question: what it answers, a heading.
        module, function: where it is; a module of this package with a dot before its name.
        data: of how many data, by budget; 0: all of them.
        options: further arguments, by budget.
    """

    name: str
    question: str
    module: str
    function: str
    data: Mapping[Budget, int]
    options: Mapping[Budget, Mapping[str, Any]] = field(default_factory=dict)

    def load(self) -> Callable[..., Finding]:
        """The function."""
        found: Callable[..., Finding] = getattr(import_module(self.module, __package__), self.function)
        return found

    def settings(self, budget: Budget, changes: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments for a budget, with a caller's changes; "data" is how many data.

        Raises:
            InputError: an argument that it does not take.
        """
        known = {"data", *inspect.signature(self.load()).parameters} - ({*_GIVEN} - {"data"})
        for name in changes:
            if name not in known:
                raise choose(f"options[{self.name!r}]", name, known)
        defaults = {
            each.name: each.default
            for each in inspect.signature(self.load()).parameters.values()
            if each.name not in _GIVEN and isinstance(each.default, int | float | str)
        }
        return {"data": self.data[budget], **defaults, **self.options.get(budget, {}), **changes}

    def run(self, model: Any, guide: Any, data: Any, settings: Mapping[str, Any], **given: Any) -> Finding:
        """Call it; of what is `given` it gets what it has arguments for."""
        function = self.load()
        takes = inspect.signature(function).parameters
        arguments = {name: value for name, value in given.items() if name in takes}
        arguments |= {name: value for name, value in settings.items() if name != "data"}
        return function(model, guide, data, **arguments)


_NONE: dict[Budget, int] = {"quick": 0, "standard": 0, "thorough": 0}

_ALL = (
    Check(
        "khat",
        "How near is q to the posterior, datum by datum?",
        ".khat",
        "khat",
        _NONE,
        {"quick": {"particles": 300}, "thorough": {"particles": 5000}},
    ),
    Check(
        "inference_gap",
        "Is what is missing the family's fault, or the encoder's?",
        ".gap",
        "inference_gap",
        {"quick": 20, "standard": 50, "thorough": 200},
        {
            "quick": {"particles": 200, "temperatures": 100, "chains": 4, "steps": 5, "updates": 100},
            "standard": {"temperatures": 200, "chains": 8, "steps": 5, "updates": 200},
            "thorough": {"particles": 5000, "temperatures": 2000},
        },
    ),
    Check(
        "reference",
        "How does q lie over draws of the exact posterior?",
        ".reference",
        "reference",
        _NONE,
        {
            "quick": {"rows": 4, "chains": 4, "draws": 200, "warmup": 200, "steps": 5},
            "standard": {"rows": 12, "chains": 4, "draws": 400, "warmup": 400, "steps": 8},
            "thorough": {"rows": 64},
        },
    ),
    Check(
        "sbc",
        "Are the posterior's uncertainties calibrated?",
        ".calibration",
        "sbc",
        _NONE,
        {"quick": {"simulations": 200}, "thorough": {"simulations": 5000}},
    ),
    Check(
        "c2st",
        "Can a classifier tell the guide's draws from the posterior's?",
        ".c2st",
        "c2st",
        _NONE,
        {"quick": {"simulations": 300}, "thorough": {"simulations": 5000}},
    ),
    Check(
        "latent_checks",
        "What do the latents carry, and does the prior match them?",
        ".latent_checks",
        "latent_checks",
        {"quick": 300, "standard": 2000, "thorough": 0},
        {"quick": {"size": 300, "permutations": 199}, "standard": {"permutations": 499}},
    ),
    Check(
        "predictive_check",
        "Does what the model makes look like the data?",
        ".predictive",
        "predictive_check",
        {"quick": 200, "standard": 1000, "thorough": 0},
        {"thorough": {"draws": 1000}},
    ),
    Check(
        "loo",
        "How well is each datum predicted?",
        ".loo",
        "loo",
        {"quick": 100, "standard": 500, "thorough": 0},
        {"quick": {"particles": 200}, "thorough": {"particles": 5000}},
    ),
    Check(
        "bdmc",
        "How near does annealing come to log p(x)?",
        ".bounds",
        "bounds",
        {"quick": 10, "standard": 20, "thorough": 100},
        {
            "quick": {"temperatures": 100, "chains": 4, "steps": 5},
            "standard": {"temperatures": 300, "chains": 8, "steps": 5},
        },
    ),
)

CHECKS: dict[str, Check] = {check.name: check for check in _ALL}
"""By name, in the order of a report: what weighs most comes first."""


def chosen(checks: str | Sequence[str]) -> list[Check]:
    """The checks that were asked for, in the order of a report.

    Raises:
        InputError: a name that is none; none at all.
    """
    names = [name.strip() for name in checks.split(",")] if isinstance(checks, str) else list(checks)
    if names == ["all"]:
        return list(CHECKS.values())
    for name in names:
        if name not in CHECKS:
            raise choose("checks", name, ("all", *CHECKS))
    if not names:
        raise InputError(f"checks={checks!r} asks for nothing; give 'all', or some of: {', '.join(CHECKS)}")
    return [check for check in CHECKS.values() if check.name in names]


def chosen_budget(budget: str) -> Budget:
    """A budget by name.

    Raises:
        InputError: another name.
    """
    for known in get_args(Budget):
        if known == budget:
            return budget  # type: ignore[return-value]
    raise choose("budget", budget, get_args(Budget))
