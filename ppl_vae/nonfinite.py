"""Where a NaN or an infinity came from."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from pyro import poutine
from torch import Tensor, nn

from .batch import Batch
from .objectives import Objective
from .validation import validation
from .weights import particle_plate

__all__ = ["Trained", "first_bad", "first_bad_parameter"]


class Trained(Protocol):
    """A module that holds a pair and its objective."""

    model: nn.Module
    guide: nn.Module
    objective: Objective

    def named_parameters(self) -> Any: ...
    def named_modules(self) -> Any: ...


def first_bad(pair: Trained, batch: Batch) -> str:
    """The first tensor that is not finite, in the order in which the pair makes them, in words.

    Guide and model are run once more on `batch`; with the random state with which a loss was made, these are the very
    tensors that made it.
    """
    for name, tensor in batch._asdict().items():
        if isinstance(tensor, Tensor) and _bad(tensor):
            return f"batch.{name}"
    if (parameter := first_bad_parameter(pair)) is not None:
        return parameter
    if (own := pair.objective.first_bad(pair.model, batch)) is not None:
        return own
    outputs: list[str] = []
    # leaves alone: a module's output is bad after its part's was
    hooks = [
        module.register_forward_hook(_note(name, outputs))
        for name, module in pair.named_modules()
        if not any(module.children())
    ]
    try:
        with torch.no_grad(), validation(False), particle_plate(pair.objective.particles):
            drawn = poutine.Trace()
            for side, program in (("guide", pair.guide), ("model", pair.model)):
                drawn = trace = poutine.trace(poutine.replay(program, trace=drawn)).get_trace(batch)
                if outputs:
                    return outputs[0]
                for name, site in trace.nodes.items():
                    if site["type"] == "sample" and (bad := _bad_part(site)) is not None:
                        return f"{bad} of the {side}'s site {name!r}"
    finally:
        for hook in hooks:
            hook.remove()
    return "none of those that guide and model make, the loss made of them is"


def first_bad_parameter(pair: Any) -> str | None:
    """The first parameter that is not finite, in words; None if all are."""
    named = list(pair.named_parameters())
    # one answer for all of them: each would be waited for on a GPU
    if not named or bool(torch.stack([p.detach().isfinite().all() for _, p in named]).all()):
        return None
    return next(f"parameter {name}" for name, p in named if _bad(p))


def _note(name: str, outputs: list[str]) -> Any:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and _bad(output):
            outputs.append(f"the output of {name}, {type(module).__name__}")

    return hook


def _bad_part(site: Any) -> str | None:
    """What of a site is not finite: a parameter of its distribution, its value, its log-probability."""
    fn = site["fn"]
    if type(fn).__name__ == "_Subsample":
        return None
    base = fn
    while hasattr(base, "base_dist"):
        base = base.base_dist
    for name in getattr(base, "arg_constraints", {}):
        # what is computed lazily from another one (probs from logits) is not looked at
        value = base.__dict__.get(name)
        if isinstance(value, Tensor) and _bad(value):
            return f"{name} of the distribution"
    if _bad(site["value"]):
        return "the value"
    return "log-probability" if _bad(fn.log_prob(site["value"])) else None


def _bad(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
