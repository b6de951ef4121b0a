"""The restricted Boltzmann machine: binary units in two layers, energies between the layers alone."""

from __future__ import annotations

import pyro
import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import softplus

from ..batch import Batch
from ..errors import InputError, check_count
from ..unnormalized import Unnormalized

__all__ = ["RBM"]

ENUMERABLE = 20
"""Units of the smaller layer up to which the normalizer is a sum: a million states."""

_CHUNK = 1 << 14


class RBM(nn.Module):
    r"""A density of binary x by an energy with hidden units h, which sum out of it.

    .. math::
        E(v, h) = -b^\top v - c^\top h - v^\top W h, \qquad p(v, h) = e^{-E(v, h)} / Z, \qquad
        p(v) = e^{-F(v)} / Z, \quad F(v) = -b^\top v - \sum_j \log\big(1 + e^{c_j + (v^\top W)_j}\big)

    Both conditionals factorize, p(h_j = 1 | v) = σ(c_j + (vᵀW)_j) and p(v_i = 1 | h) = σ(b_i + (W h)_i). The gradient
    of the log-likelihood is a difference of two expectations,

    .. math:: ∇ \log p(v) = -∇ F(v) + E_{v' \sim p}[∇ F(v')]

    of which the second is exact where a layer has 20 units or fewer: the Pyro program `forward` then has a `log_prob`,
    and `ELBO()` with the guide `NoLatents` is maximum likelihood. Where it is not, `ContrastiveDivergence` estimates it
    by Gibbs sampling, and `log_partition_ais` bounds log Z.

    Args:
        visible: V, elements of x; data of another shape are flattened.
        hidden: H.
        loc: (V,) mean of the data, from which the visible biases start (Hinton, 2010, section 8); None: 0.
        scale: standard deviation of the weights at the start.

    Raises:
        InputError: sizes that are none, a mean outside of 0 to 1.

    References: Smolensky 1986. Hinton, A practical guide to training restricted Boltzmann machines, 2010
    (https://www.cs.toronto.edu/~hinton/absps/guideTR.pdf).
    """

    def __init__(self, visible: int, hidden: int, loc: Tensor | None = None, scale: float = 0.01) -> None:
        super().__init__()
        self.visible, self.hidden = check_count("visible", visible), check_count("hidden", hidden)
        bias = torch.zeros(visible)
        if loc is not None:
            if loc.numel() != visible or not bool(((loc >= 0) & (loc <= 1)).all()):
                raise InputError(f"loc must be {visible} means of values 0 and 1, (V,); got shape {tuple(loc.shape)}")
            bias = loc.flatten().to(bias).clamp(0.01, 0.99).logit()
        self.weight = nn.Parameter(scale * torch.randn(visible, hidden))
        self.visible_bias = nn.Parameter(bias)
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))

    def energy(self, v: Tensor, h: Tensor) -> Tensor:
        """E(v, h) of (\\*S, V) and (\\*S, H)."""
        return -(v @ self.visible_bias) - h @ self.hidden_bias - ((v @ self.weight) * h).sum(-1)

    def free_energy(self, v: Tensor) -> Tensor:
        """F(v) of (\\*S, V): -log Σ_h exp(-E(v, h))."""
        return -(v @ self.visible_bias) - softplus(self.hidden_logits(v)).sum(-1)

    def hidden_logits(self, v: Tensor) -> Tensor:
        """log-odds of h given v (\\*S, V): (\\*S, H)."""
        return self.hidden_bias + v @ self.weight

    def visible_logits(self, h: Tensor) -> Tensor:
        """log-odds of v given h (\\*S, H): (\\*S, V)."""
        return self.visible_bias + h @ self.weight.T

    @torch.no_grad()
    def gibbs(self, v: Tensor, steps: int = 1) -> Tensor:
        """v after so many sweeps, h given v and v given h: a Markov chain that keeps p(v)."""
        for _ in range(steps):
            h = torch.bernoulli(self.hidden_logits(v).sigmoid())
            v = torch.bernoulli(self.visible_logits(h).sigmoid())
        return v

    def log_partition(self) -> Tensor:
        """log Z, exactly: a sum over the states of the smaller layer, the other one summed out.

        Raises:
            InputError: more than 20 units in the smaller layer.
        """
        if not self.is_enumerable:
            raise InputError(
                f"log Z of {self.visible} visible and {self.hidden} hidden units is a sum over "
                f"2^{min(self.visible, self.hidden)} states, of which 2^{ENUMERABLE} are summed at most; estimate it "
                "with log_partition_ais"
            )
        by_visible = self.visible <= self.hidden
        bias, other, weight = (
            (self.visible_bias, self.hidden_bias, self.weight)
            if by_visible
            else (self.hidden_bias, self.visible_bias, self.weight.T)
        )
        parts = [
            (s @ bias + softplus(other + s @ weight).sum(-1)).logsumexp(0)
            for s in binary_states(len(bias)).to(bias).split(_CHUNK)
        ]
        return torch.stack(parts).logsumexp(0)

    @property
    def is_enumerable(self) -> bool:
        """Whether log Z is a sum over a million states or fewer."""
        return min(self.visible, self.hidden) <= ENUMERABLE

    def log_prob(self, v: Tensor, log_z: Tensor | float | None = None) -> Tensor:
        """log p(v), nats, of (\\*S, V).

        Args:
            log_z: log Z, from `log_partition_ais`; None: the exact sum.
        """
        return -self.free_energy(v) - (self.log_partition() if log_z is None else log_z)

    def forward(self, batch: Batch) -> Tensor:
        """The Pyro program p(x): x is observed, or where `batch.x` is None drawn by 1,000 sweeps of Gibbs sampling."""
        x = batch.x
        site = Unnormalized(self.log_prob, self.sample, (self.visible,), constraints.boolean)
        with pyro.plate("data", batch.size, dim=-1):
            flat: Tensor = pyro.sample("x", site, obs=None if x is None else x.flatten(1))
        return flat if x is None else x

    @torch.no_grad()
    def sample(self, count: int, sweeps: int = 1000, start: Tensor | None = None) -> Tensor:
        """(count, V) from chains that begin at `start`, or at independent units with the visible biases."""
        if start is None:
            start = torch.bernoulli(self.visible_bias.sigmoid().expand(check_count("count", count), -1))
        return self.gibbs(start, check_count("sweeps", sweeps, 0))

    def extra_repr(self) -> str:
        return f"visible={self.visible}, hidden={self.hidden}"


def binary_states(size: int) -> Tensor:
    """All 2^size states of binary units, (2^size, size)."""
    return (torch.arange(1 << size).unsqueeze(-1) >> torch.arange(size)).bitwise_and(1).float()
