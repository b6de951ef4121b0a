"""Contrastive divergence: the model's side of a likelihood's gradient from a few sweeps of Gibbs sampling."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ..batch import Batch
from ..errors import InputError, check_count
from ..objectives.base import Objective, Terms
from ..weights import Program
from .given import given
from .rbm import RBM

__all__ = ["ContrastiveDivergence"]


class ContrastiveDivergence(Objective):
    r"""Maximum likelihood of an `RBM`, with the expectation under the model taken from chains.

    .. math::
        \frac1N \sum_n F(v_n) - \frac1M \sum_m F(\tilde v_m), \qquad
        ∇ = \frac1N \sum_n ∇F(v_n) - \frac1M \sum_m ∇F(\tilde v_m)

    whose value is no bound on anything: only its gradient means something. CD-k starts its chains at the batch and runs
    k sweeps; its bias falls as k grows, and does not vanish. With `chains` they go on from step to step (persistent
    contrastive divergence): the gradient is then that of the likelihood as far as the chains keep up with the model,
    which asks for small learning rates.

    Args:
        sweeps: k.
        chains: M persistent chains; None: CD-k, from the data.
        visible: V, of persistent chains.

    Attributes:
        state: (M, V) where the persistent chains are, a buffer that is saved with the objective.

    Logs, nats per datum: "pseudo_log_likelihood", an estimate of Σ_i log p(v_i | v_{-i}) from one element of each
    datum, which needs no normalizer and by which training is watched; "free_energy_gap", mean F of the chains minus F
    of the datum.

    Raises:
        InputError: numbers out of range; at the first call, a model that is no `RBM`, or one of another size.

    References: Hinton, Training products of experts by minimizing contrastive divergence, Neural Computation 2002.
    Tieleman, Training restricted Boltzmann machines using approximations to the likelihood gradient, ICML 2008.
    """

    watched = "pseudo_log_likelihood"
    state: Tensor

    def __init__(self, sweeps: int = 1, chains: int | None = None, visible: int | None = None) -> None:
        super().__init__()
        self.sweeps = check_count("sweeps", sweeps)
        self.chains = None if chains is None else check_count("chains", chains)
        if (chains is None) != (visible is None):
            raise InputError(
                f"chains={chains!r} and visible={visible!r} go together: persistent chains have V elements; leave both "
                "out for CD-k"
            )
        if self.chains is not None:
            start = torch.rand(self.chains, check_count("visible", visible)) < 0.5
            self.register_buffer("state", start.to(torch.get_default_dtype()))

    def terms(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Terms:
        model, x = given(self, RBM, model, args)
        v = self._flat(model, x)
        if self.chains is None:
            reached = model.gibbs(v, self.sweeps)
        elif self.training:
            reached = model.gibbs(self.state.to(v.dtype), self.sweeps)
            with torch.no_grad():
                self.state.copy_(reached)
        else:
            reached = self.state.to(v.dtype)
        ours, theirs = model.free_energy(v), model.free_energy(reached).mean()
        with torch.no_grad():
            logs = {"pseudo_log_likelihood": _pseudo(model, v, ours), "free_energy_gap": theirs - ours}
        return Terms(ours - theirs, logs)

    def first_bad(self, model: Program, batch: Batch) -> str:
        return "the free energy of the data or of the chains"

    def _flat(self, model: RBM, x: Tensor) -> Tensor:
        v = x.flatten(1)
        if v.shape[1] != model.visible:
            raise InputError(f"batch.x has {v.shape[1]} elements a datum, and the RBM {model.visible} visible units")
        if self.chains is not None and self.state.shape[1] != model.visible:
            raise InputError(f"visible={self.state.shape[1]}: the RBM has {model.visible} visible units")
        return v.to(model.weight.dtype)

    def extra_repr(self) -> str:
        return f"sweeps={self.sweeps}" + ("" if self.chains is None else f", chains={self.chains}")


def _pseudo(model: RBM, v: Tensor, free: Tensor) -> Tensor:
    """V log p(v_i | v_{-i}) for a random i of each datum: log σ(F(v with v_i flipped) - F(v))."""
    i = torch.randint(model.visible, (len(v), 1), device=v.device)
    flipped = v.scatter(1, i, 1 - v.gather(1, i))
    return model.visible * logsigmoid(model.free_energy(flipped) - free)
