"""Optimizers' update rules as tensor operations, to be traced into the step's graph.

A rule works on a torch optimizer's own state: what the compiled step writes, `state_dict` shows, and an eager step goes
on from.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Adamax, AdamW, Optimizer, RMSprop

from .together import Together

__all__ = ["Rule", "rule_for"]

Slots = Mapping[str, Tensor]
Numbers = Mapping[str, Tensor]


class Rule(ABC):
    """One optimizer's update, for one parameter group.

    Options that are numbers (`lr`, `betas`, `weight_decay`) are inputs of the step's graph, so that a schedule may
    change them; the others, and which numbers are 0, shape the graph.

    Attributes:
        counts: whether the optimizer keeps the number of steps.
        numbers: the options that are inputs of the graph; of `betas` there are `beta1` and `beta2`.
        shape: the other options that the update asks for.
        switches: numbers whose being 0 leaves work out, and so shapes the graph.
    """

    counts: ClassVar[bool] = True
    numbers: ClassVar[tuple[str, ...]]
    shape: ClassVar[tuple[str, ...]] = ("amsgrad", "maximize", "differentiable")
    switches: ClassVar[tuple[str, ...]] = ("weight_decay",)

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.structure = self.structure_of(options)
        self.options = {name: options.get(name) for name in self.shape}
        self.on = {name for name in self.switches if options[name]}

    @classmethod
    def structure_of(cls, options: Mapping[str, Any]) -> tuple[Any, ...]:
        """What of a group's options shapes the graph."""
        return (*[options.get(name) for name in cls.shape], *[bool(options[name]) for name in cls.switches])

    @classmethod
    def reader(cls, options: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
        """A quick look at all the options that an update asks for, the learning rate first."""
        asked = ["betas" if name.startswith("beta") else name for name in (*cls.numbers, *cls.shape, *cls.switches)]
        return itemgetter(*[name for name in dict.fromkeys(asked) if name in options])

    @classmethod
    def numbers_of(cls, options: Mapping[str, Any]) -> list[float]:
        """The values of `numbers`."""
        return [
            float(options["betas"][int(name[-1]) - 1] if name.startswith("beta") else options[name])
            for name in cls.numbers
        ]

    @abstractmethod
    def slots(self) -> tuple[str, ...]:
        """The names of the state kept for each parameter, as torch calls them; all start at 0."""

    def unsupported(self) -> str | None:
        """Why these options cannot be compiled, or None."""
        for option in ("amsgrad", "maximize", "differentiable"):
            if self.options.get(option):
                return f"{option}=True"
        return None

    @abstractmethod
    def factors(self, numbers: Numbers, steps: Tensor) -> dict[str, Tensor]:
        """What the update takes from numbers and step counts, computed once a step: 0-dimensional, or like steps (P,)
        with one value for each parameter."""

    @abstractmethod
    def update(self, p: Tensor, grad: Tensor, slots: Slots, factors: Numbers) -> None:
        """Update p and its slots in place; `factors` are this parameter's, 0-dimensional, in its dtype."""

    def decayed(self, p: Tensor, grad: Tensor, factors: Numbers) -> Tensor:
        return grad + p * factors["weight_decay"] if "weight_decay" in self.on else grad


class _Adam(Rule):
    """m ← β₁m + (1-β₁)g, v ← β₂v + (1-β₂)g², p ← p - lr/(1-β₁ᵗ) · m / (√v/√(1-β₂ᵗ) + ε)."""

    numbers: ClassVar[tuple[str, ...]] = ("lr", "beta1", "beta2", "eps", "weight_decay")
    shape: ClassVar[tuple[str, ...]] = (*Rule.shape, "decoupled_weight_decay")
    decoupled: ClassVar[bool] = False

    def slots(self) -> tuple[str, ...]:
        return "exp_avg", "exp_avg_sq"

    def factors(self, numbers: Numbers, steps: Tensor) -> dict[str, Tensor]:
        lr, beta1, beta2 = numbers["lr"], numbers["beta1"], numbers["beta2"]
        root = (1 - beta2**steps).sqrt()
        # both are multiplied by the root once, rather than √v divided by it in every element
        found = {
            "size": lr * root / (1 - beta1**steps),
            "eps": numbers["eps"] * root,
            "rest1": 1 - beta1,
            "rest2": 1 - beta2,
        }
        if "weight_decay" in self.on:
            found["weight_decay"] = numbers["weight_decay"]
            found["kept"] = 1 - lr * numbers["weight_decay"]
        return found

    def update(self, p: Tensor, grad: Tensor, slots: Slots, factors: Numbers) -> None:
        if not (self.decoupled or self.options["decoupled_weight_decay"]):
            grad = self.decayed(p, grad, factors)
        elif "weight_decay" in self.on:
            p.mul_(factors["kept"])
        m, v = slots["exp_avg"], slots["exp_avg_sq"]
        m.add_((grad - m) * factors["rest1"])
        v.add_((grad * grad - v) * factors["rest2"])
        p.sub_(factors["size"] * (m / (v.sqrt() + factors["eps"])))


class _AdamW(_Adam):
    decoupled = True


class _Adamax(Rule):
    numbers: ClassVar[tuple[str, ...]] = ("lr", "beta1", "beta2", "eps", "weight_decay")

    def slots(self) -> tuple[str, ...]:
        return "exp_avg", "exp_inf"

    def factors(self, numbers: Numbers, steps: Tensor) -> dict[str, Tensor]:
        return {
            "size": numbers["lr"] / (1 - numbers["beta1"] ** steps),
            "rest1": 1 - numbers["beta1"],
            "beta2": numbers["beta2"],
            "eps": numbers["eps"],
            "weight_decay": numbers["weight_decay"],
        }

    def update(self, p: Tensor, grad: Tensor, slots: Slots, factors: Numbers) -> None:
        grad = self.decayed(p, grad, factors)
        m, u = slots["exp_avg"], slots["exp_inf"]
        m.add_((grad - m) * factors["rest1"])
        u.copy_(torch.maximum(u * factors["beta2"], grad.abs() + factors["eps"]))
        p.sub_(factors["size"] * (m / u))


class _RMSprop(Rule):
    numbers: ClassVar[tuple[str, ...]] = ("lr", "alpha", "eps", "momentum", "weight_decay")
    shape: ClassVar[tuple[str, ...]] = (*Rule.shape, "centered")
    switches: ClassVar[tuple[str, ...]] = ("momentum", "weight_decay")

    def slots(self) -> tuple[str, ...]:
        names = ["square_avg"]
        if "momentum" in self.on:
            names.append("momentum_buffer")
        if self.options["centered"]:
            names.append("grad_avg")
        return tuple(names)

    def factors(self, numbers: Numbers, steps: Tensor) -> dict[str, Tensor]:
        return {
            **{name: numbers[name] for name in ("lr", "eps", "momentum", "weight_decay")},
            "rest": 1 - numbers["alpha"],
        }

    def update(self, p: Tensor, grad: Tensor, slots: Slots, factors: Numbers) -> None:
        grad = self.decayed(p, grad, factors)
        square = slots["square_avg"]
        square.add_((grad * grad - square) * factors["rest"])
        if self.options["centered"]:
            mean = slots["grad_avg"]
            mean.add_((grad - mean) * factors["rest"])
            root = (square - mean * mean).sqrt() + factors["eps"]
        else:
            root = square.sqrt() + factors["eps"]
        direction = grad / root
        if "momentum" in self.on:
            buffer = slots["momentum_buffer"]
            buffer.mul_(factors["momentum"]).add_(direction)
            direction = buffer
        p.sub_(factors["lr"] * direction)


class _SGD(Rule):
    counts = False
    numbers: ClassVar[tuple[str, ...]] = ("lr", "momentum", "weight_decay")
    shape: ClassVar[tuple[str, ...]] = (*Rule.shape, "nesterov")
    switches: ClassVar[tuple[str, ...]] = ("momentum", "dampening", "weight_decay")

    def slots(self) -> tuple[str, ...]:
        return ("momentum_buffer",) if "momentum" in self.on else ()

    def unsupported(self) -> str | None:
        # torch starts the buffer with the first gradient, undamped; with dampening 0 that is a start at 0
        if {"momentum", "dampening"} <= self.on:
            return "dampening"
        return super().unsupported()

    def factors(self, numbers: Numbers, steps: Tensor) -> dict[str, Tensor]:
        return dict(numbers)

    def update(self, p: Tensor, grad: Tensor, slots: Slots, factors: Numbers) -> None:
        grad = self.decayed(p, grad, factors)
        if "momentum" in self.on:
            buffer = slots["momentum_buffer"]
            buffer.mul_(factors["momentum"]).add_(grad)
            grad = grad + buffer * factors["momentum"] if self.options["nesterov"] else buffer
        p.sub_(factors["lr"] * grad)


_RULES: dict[type[Optimizer], type[Rule]] = {
    Adam: _Adam,
    AdamW: _AdamW,
    Adamax: _Adamax,
    RMSprop: _RMSprop,
    SGD: _SGD,
}


def rule_for(optimizer: Optimizer, group: Mapping[str, Any]) -> Rule | str:
    """The rule of an optimizer's parameter group, or why there is none."""
    if isinstance(optimizer, Together):
        optimizer = optimizer.owner(group)
    kind = _RULES.get(type(optimizer))
    if kind is None:
        return f"the optimizer {type(optimizer).__name__} has no compiled update (there are {supported()})"
    rule = kind(group)
    reason = rule.unsupported()
    return rule if reason is None else f"{type(optimizer).__name__}({reason}) has no compiled update"


def supported() -> str:
    return ", ".join(kind.__name__ for kind in _RULES)


def bind_state(optimizer: Optimizer, rules: Sequence[Rule]) -> list[tuple[Tensor, list[dict[str, Tensor]]]]:
    """For each group the steps (P,) and each parameter's slots, in the optimizer's own state.

    State that is not there yet starts at 0, as torch's does. The parameters' step counts become views of one tensor:
    one addition advances them all.
    """
    bound = []
    for group, rule in zip(optimizer.param_groups, rules, strict=True):
        params: list[Tensor] = group["params"]
        device = params[0].device if params else torch.device("cpu")
        steps = torch.zeros(len(params), dtype=torch.float32, device=device)
        slots = []
        for k, p in enumerate(params):
            state: dict[str, Any] = optimizer.state[p]
            if rule.counts:
                steps[k] = float(state.get("step", 0.0))
                state["step"] = steps[k]
            for name in rule.slots():
                if state.get(name) is None:
                    state[name] = torch.zeros_like(p, memory_format=torch.preserve_format)
            slots.append({name: state[name] for name in rule.slots()})
        bound.append((steps, slots))
    return bound
