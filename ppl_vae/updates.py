"""Optimizers' update rules as tensor operations, to be traced into the step's graph.

A rule works on a torch optimizer's own state: what the compiled step writes, `state_dict` shows, and an eager step goes
on from.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Adamax, AdamW, Optimizer, RMSprop

from .together import Together

__all__ = ["Rule", "rule_for"]

Slots = Mapping[str, Tensor]


class Rule(ABC):
    """One optimizer's update, for one parameter group.

    Attributes:
        counts: whether the optimizer keeps the number of steps.
    """

    counts: ClassVar[bool] = True

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = options

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
    def factors(self, lr: Tensor, step: Tensor) -> tuple[Tensor, ...]:
        """Numbers common to all parameters, computed once a step."""

    @abstractmethod
    def update(self, p: Tensor, grad: Tensor, slots: Slots, factors: tuple[Tensor, ...]) -> None:
        """Update p and its slots in place."""

    def decayed(self, p: Tensor, grad: Tensor) -> Tensor:
        weight_decay = self.options["weight_decay"]
        return grad.add(p, alpha=weight_decay) if weight_decay else grad


class _Adam(Rule):
    """m ← β₁m + (1-β₁)g, v ← β₂v + (1-β₂)g², p ← p - lr/(1-β₁ᵗ) · m / (√v/√(1-β₂ᵗ) + ε)."""

    decoupled: ClassVar[bool] = False

    def slots(self) -> tuple[str, ...]:
        return "exp_avg", "exp_avg_sq"

    def factors(self, lr: Tensor, step: Tensor) -> tuple[Tensor, ...]:
        beta1, beta2 = self.options["betas"]
        return lr / (1 - beta1**step), (1 - beta2**step).sqrt(), lr

    def update(self, p: Tensor, grad: Tensor, slots: Slots, factors: tuple[Tensor, ...]) -> None:
        size, root, lr = factors
        beta1, beta2 = self.options["betas"]
        if self.decoupled or self.options.get("decoupled_weight_decay"):
            p.mul_(1 - lr * self.options["weight_decay"])
        else:
            grad = self.decayed(p, grad)
        m, v = slots["exp_avg"], slots["exp_avg_sq"]
        m.lerp_(grad, 1 - beta1)
        v.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        p.sub_(size * (m / (v.sqrt() / root + self.options["eps"])))


class _AdamW(_Adam):
    decoupled = True


class _Adamax(Rule):
    def slots(self) -> tuple[str, ...]:
        return "exp_avg", "exp_inf"

    def factors(self, lr: Tensor, step: Tensor) -> tuple[Tensor, ...]:
        return (lr / (1 - self.options["betas"][0] ** step),)

    def update(self, p: Tensor, grad: Tensor, slots: Slots, factors: tuple[Tensor, ...]) -> None:
        beta1, beta2 = self.options["betas"]
        grad = self.decayed(p, grad)
        m, u = slots["exp_avg"], slots["exp_inf"]
        m.lerp_(grad, 1 - beta1)
        u.copy_(torch.maximum(u * beta2, grad.abs() + self.options["eps"]))
        p.sub_(factors[0] * (m / u))


class _RMSprop(Rule):
    def slots(self) -> tuple[str, ...]:
        names = ["square_avg"]
        if self.options["momentum"] > 0:
            names.append("momentum_buffer")
        if self.options["centered"]:
            names.append("grad_avg")
        return tuple(names)

    def factors(self, lr: Tensor, step: Tensor) -> tuple[Tensor, ...]:
        return (lr,)

    def update(self, p: Tensor, grad: Tensor, slots: Slots, factors: tuple[Tensor, ...]) -> None:
        alpha, momentum = self.options["alpha"], self.options["momentum"]
        grad = self.decayed(p, grad)
        square = slots["square_avg"]
        square.mul_(alpha).addcmul_(grad, grad, value=1 - alpha)
        if self.options["centered"]:
            mean = slots["grad_avg"]
            mean.lerp_(grad, 1 - alpha)
            root = (square - mean * mean).sqrt() + self.options["eps"]
        else:
            root = square.sqrt() + self.options["eps"]
        direction = grad / root
        if momentum > 0:
            buffer = slots["momentum_buffer"]
            buffer.mul_(momentum).add_(direction)
            direction = buffer
        p.sub_(factors[0] * direction)


class _SGD(Rule):
    counts = False

    def slots(self) -> tuple[str, ...]:
        return ("momentum_buffer",) if self.options["momentum"] else ()

    def unsupported(self) -> str | None:
        # torch starts the buffer with the first gradient, undamped; with dampening 0 that is a start at 0
        if self.options["momentum"] and self.options["dampening"]:
            return f"dampening={self.options['dampening']}"
        return super().unsupported()

    def factors(self, lr: Tensor, step: Tensor) -> tuple[Tensor, ...]:
        return (lr,)

    def update(self, p: Tensor, grad: Tensor, slots: Slots, factors: tuple[Tensor, ...]) -> None:
        momentum = self.options["momentum"]
        grad = self.decayed(p, grad)
        if momentum:
            buffer = slots["momentum_buffer"]
            buffer.mul_(momentum).add_(grad)
            grad = grad.add(buffer, alpha=momentum) if self.options["nesterov"] else buffer
        p.sub_(factors[0] * grad)


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
