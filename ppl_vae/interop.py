"""A pair as Pyro's own inference wants it: programs that register their parameters in Pyro's store."""

from __future__ import annotations

import itertools
from typing import Any

import pyro
import torch
from torch import nn

from .batch import Batch
from .inputs import check_batch
from .weights import Program

__all__ = ["pyro_pair"]

_count = itertools.count()


class _First:
    """The first batch that either program of a pair is run on, which is checked."""

    def __init__(self, *programs: Program) -> None:
        self.programs: tuple[Program, ...] | None = programs

    def check(self, *args: Any) -> None:
        if self.programs is None or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            return
        for batch in (arg for arg in args if isinstance(arg, Batch)):
            check_batch(batch, *self.programs)
        self.programs = None


class _Registered(nn.Module):
    def __init__(self, program: Program, name: str, first: _First) -> None:
        super().__init__()
        self.program = program
        self._name = name
        self._first = first

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self._first.check(*args)
        if isinstance(self.program, nn.Module):
            pyro.module(self._name, self.program)
        return self.program(*args, **kwargs)


def pyro_pair(model: Program, guide: Program) -> tuple[nn.Module, nn.Module]:
    """The pair as programs that `pyro.infer.SVI` trains: ``SVI(*pyro_pair(model, guide), optim, loss=Trace_ELBO())``.

    `SVI` looks for parameters in Pyro's store and nowhere else: given plain modules it trains nothing and says
    nothing, and so do `Trace_ELBO` and `RenyiELBO` in `loss_and_grads`. Each call takes names of its own, for the store
    would give a second pair under the same names the first one's tensors. Parameters are those of `model` and
    `guide` themselves. Pyro warns of parameters that do not require gradients.

    A guide that holds the model as a submodule registers it twice, harmlessly. A plain function is called as it is: it
    has `pyro.param` for its parameters. Handlers go around the result, ``scale_latents(4.0)(model)``.

    Args:
        model, guide: programs; arguments are handed through to them.

    Returns:
        The two programs as modules, which share their parameters with what was given.

    Raises:
        InputError: at the first call, labels, contexts or masks of a batch that are none of the pair's (`check_batch`).
    """
    k = next(_count)
    first = _First(model, guide)
    return _Registered(model, f"model_{k}", first), _Registered(guide, f"guide_{k}", first)
