"""The thermodynamic variational objective."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, check_count
from ..validation import validation
from ..weights import Program, log_weights
from .base import Objective, Terms, objectives
from .held import held
from .iwae import bound_logs

__all__ = ["TVO"]


@objectives.register("tvo")
class TVO(Objective):
    r"""Thermodynamic variational objective: log p(x) as an integral on a path from q to the posterior, bounded below.

    .. math::
        \log p(x) = \int_0^1 E_{π_β}[\log w] \, dβ \ge \sum_{j=0}^{J-1} (β_{j+1} - β_j) \, E_{π_{β_j}}[\log w], \qquad
        π_β(z) \propto q(z \mid x)^{1-β} \, p(x, z)^β, \quad w = \frac{p(x, z)}{q(z \mid x)}

    The integrand rises with β from the ELBO, so that the left sum is a bound: J = 1 is the ELBO, a larger J a tighter
    one. Expectations are by self-normalized weights w^β of K draws of q, the same for every β, and biased by O(1/K) for
    β > 0. So is the gradient,

    .. math:: \nabla E_{π_β}[f] = E_{π_β}[\nabla f] + \mathrm{Cov}_{π_β}[\nabla \log \tilde π_β, f], \qquad
        \tilde π_β = q^{1-β} p^β,

    in which no derivative passes through a draw: sites need no reparameterization, and those marked for enumeration
    are drawn.

    Args:
        particles: K, per datum, 2 or more.
        intervals: J. The β are 0 and J - 1 numbers between `first` and 1, whose logarithms are evenly spaced.
        first: β_1.

    Raises:
        InputError: a number out of range; at the first call, a latent site shared by all data.

    Reference: Masrani, Le and Wood, The thermodynamic variational objective, NeurIPS 2019
    (https://arxiv.org/abs/1907.00031).
    """

    betas: Tensor

    def __init__(self, particles: int = 10, intervals: int = 5, first: float = 0.05) -> None:
        super().__init__(particles)
        if particles < 2:
            raise InputError("particles=1: a single weight is always 1, whatever its draw; give 2 or more")
        check_count("intervals", intervals)
        if not (isinstance(first, int | float) and 0 < first < 1):
            raise InputError(f"first={first!r} must lie between 0 and 1")
        self.intervals, self.first = intervals, float(first)
        later = torch.linspace(math.log(first), 0.0, intervals, dtype=torch.float64).exp()
        self.register_buffer("betas", torch.cat([torch.zeros(1).double(), later if intervals > 1 else torch.ones(1)]))

    def terms(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Terms:
        self.check(model, guide, *args, **kwargs)
        with validation(False), held():
            w = log_weights(model, guide, *args, particles=self.particles, enumerate=False, **kwargs)
        f = w.log_w  # (K, N)
        betas = self.betas.to(f.dtype)
        widths = betas.diff().unsqueeze(-1)  # (J, 1)
        beta = betas[:-1].reshape(-1, 1, 1)
        weights = (beta * f.detach()).softmax(1)  # (J, K, N)
        means = (weights * f).sum(1)
        bound = (widths * means).sum(0)
        # the covariance: a term of value 0 with its gradient
        log_path = w.log_q + beta * f
        away = (weights * (f - means.unsqueeze(1))).detach()
        covariance = (widths * (away * log_path).sum(1)).sum(0)
        loss = -(bound + (covariance - covariance.detach()))
        return Terms(loss, bound_logs(w, bound))

    def extra_repr(self) -> str:
        return f"particles={self.particles}, intervals={self.intervals}, first={self.first:g}"
