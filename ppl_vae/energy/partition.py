"""log Z of a restricted Boltzmann machine by annealed importance sampling, from below and from above."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ..errors import InputError, check_count
from ..evaluate import Estimate, effective_sample_size
from ..evaluate.estimates import log_mean_exp
from ..isolation import device_of, evaluation
from .rbm import RBM

__all__ = ["LogPartition", "log_partition_ais"]


@dataclass(frozen=True)
class LogPartition:
    """log Z from chains in one direction or both.

    Args:
        log_w: (C,) log-weights of the forward chains: the mean of exp(log_w) is unbiased for Z.
        log_w_back: (C',) of chains that go back from draws of the machine: the mean of exp(-log_w_back) is unbiased for
            1 / Z where these draws are exact; None: there are none.
        temperatures: T.
        sets: the forward weights are of so many independent sets of equal size, one after the other, and dependent
            within each, as those of quasi-random points; None: each is independent of the others.
    """

    log_w: Tensor
    log_w_back: Tensor | None
    temperatures: int
    sets: int | None = None

    @property
    def estimate(self) -> Estimate:
        """log Ẑ, nats, with the delta method's standard error. In expectation it lies below log Z."""
        if self.sets is None:
            return _log_mean(self.log_w)
        each = self.log_w.reshape(self.sets, -1)
        found = _log_mean(each.logsumexp(1) - math.log(each.shape[1]))
        return dataclasses.replace(found, n=len(self.log_w))

    @property
    def upper(self) -> Estimate | None:
        """From the chains that go back: in expectation above log Z, where their starts are exact draws."""
        if self.log_w_back is None:
            return None
        found = _log_mean(-self.log_w_back)
        return Estimate(-found.mean, found.se, math.nan, found.n)

    @property
    def ess(self) -> float:
        """Effective number of forward chains, (Σ w)² / Σ w²."""
        return float(effective_sample_size(self.log_w.unsqueeze(1)))


def _log_mean(log_w: Tensor) -> Estimate:
    mean, se = log_mean_exp(log_w)
    return Estimate(float(mean), float(se), math.nan, len(log_w))


@torch.no_grad()
def log_partition_ais(
    model: RBM,
    temperatures: int = 1000,
    chains: int = 100,
    *,
    loc: Tensor | None = None,
    back: Tensor | None = None,
    seed: int | None = None,
) -> LogPartition:
    r"""log Z by chains from independent units to the machine, one Gibbs sweep a temperature.

    .. math::
        p_β(v) ∝ \exp\big(v^\top((1-β) b_0 + β b)\big) \prod_j \big(1 + e^{β (c_j + (v^\top W)_j)}\big), \qquad
        \log w = \log Z_0 + \sum_t \log \frac{p_{β_t}(v_{t-1})}{p_{β_{t-1}}(v_{t-1})}

    p_0 has independent units with log-odds b_0 and log Z_0 = Σ_i log(1 + e^{b_{0,i}}) + H log 2. Chains that go back,
    from draws of the machine at β = 1 to p_0, give an upper bound in the same way (bidirectional Monte Carlo); it is
    one only if the draws are exact. Long Gibbs chains give draws that are nearly so, as long as they mix.

    Args:
        model: the machine.
        temperatures: T.
        chains: C.
        loc: (V,) mean of the data, the nearer the independent units then are; None: b_0 = 0.
        back: (C', V) draws of the machine for chains that go back.
        seed: of random numbers of its own, leaving the default generator as it is; None: from the default generator.

    Returns:
        `LogPartition`, float64.

    Raises:
        InputError: numbers out of range, or draws of another size.

    References: Salakhutdinov and Murray, On the quantitative analysis of deep belief networks, ICML 2008. Grosse,
    Ghahramani and Adams, 2015 (https://arxiv.org/abs/1511.02543).
    """
    check_count("temperatures", temperatures)
    check_count("chains", chains, 2)
    weight, b, c = (p.detach().double() for p in (model.weight, model.visible_bias, model.hidden_bias))
    base = torch.zeros_like(b) if loc is None else loc.flatten().to(b).clamp(0.01, 0.99).logit()
    if base.shape != b.shape:
        raise InputError(f"loc has {base.numel()} elements, and the machine {model.visible} visible units")
    if back is not None and (back.dim() != 2 or back.shape[1] != model.visible or len(back) < 2):
        raise InputError(
            f"back is {tuple(back.shape)}; give two draws or more of {model.visible} visible units, (C, V)"
        )
    log_z0 = softplus(base).sum() + model.hidden * math.log(2.0)
    beta = torch.linspace(0.0, 1.0, temperatures + 1, dtype=torch.float64).tolist()

    def score(v: Tensor, at: float) -> Tensor:
        return v @ ((1 - at) * base + at * b) + softplus(at * (c + v @ weight)).sum(-1)

    def sweep(v: Tensor, at: float) -> Tensor:
        h = torch.bernoulli((at * (c + v @ weight)).sigmoid())
        return torch.bernoulli(((1 - at) * base + at * (b + h @ weight.T)).sigmoid())

    with evaluation(model, seed=seed, device=device_of(model)):
        v = torch.bernoulli(base.sigmoid().expand(chains, -1))
        log_w = log_z0.expand(chains).clone()
        for before, at in pairwise(beta):
            log_w += score(v, at) - score(v, before)
            if at < 1:
                v = sweep(v, at)
        log_back = None
        if back is not None:
            u = back.to(b)
            log_back = log_z0.expand(len(u)).clone()
            for at, below in pairwise(reversed(beta)):
                # the forward chain's moves are reversible, so that the way back takes the same ones in reverse order
                log_back += score(u, at) - score(u, below)
                if below > 0:
                    u = sweep(u, below)
    return LogPartition(log_w.cpu(), None if log_back is None else log_back.cpu(), temperatures)
