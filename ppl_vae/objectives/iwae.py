"""The importance-weighted bound."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..weights import LogWeights, Program
from .base import Objective, Terms, objectives
from .divergence import expected

__all__ = ["IWAE"]


@objectives.register("iwae")
class IWAE(Objective):
    r"""Importance-weighted bound of K particles, tighter as K grows.

    .. math:: L_K = E\Big[\log \frac1K \sum_k \frac{p(x, z_k)}{q(z_k \mid x)}\Big] \le \log p(x)

    K = 1 is the ELBO; L_K rises with K to log p(x). Value and gradient equal Pyro's `RenyiELBO(alpha=0)` on equal
    draws. Enumerated classes are summed exactly, log Σ_c mean_k p(x, z_k, c) / q(z_k | x, c): their q(c | x) cancels
    and gets no gradient from this bound.

    Args:
        particles: K, per datum.

    Raises:
        InputError: a latent site shared by all data (there is no weight per datum), a site of the guide without
            reparameterization.

    Reference: Burda, Grosse and Salakhutdinov, Importance weighted autoencoders, ICLR 2016
    (https://arxiv.org/abs/1509.00519).
    """

    leaves_classes = True

    def __init__(self, particles: int = 5) -> None:
        super().__init__(particles)

    def terms(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Terms:
        w = self.weights(model, guide, *args, **kwargs)
        self.refuse_rigid(w)
        bound = log_mean_weights(w, w.log_w)
        return Terms(-bound, bound_logs(w, bound))


def sum_enumerated(w: LogWeights, log_w: Tensor) -> Tensor:
    """log of the weights summed over enumerated classes: (\\*C, K, N) -> (K, N).

    An enumerated class is no proposal: its log q(c | x) was subtracted with the others and is put back.
    """
    if not w.enumerated:
        return log_w
    joint = log_w + w.log_q_enumerated
    return joint.logsumexp(tuple(range(joint.dim() - 2)))


def log_mean_weights(w: LogWeights, log_w: Tensor) -> Tensor:
    """log of the particles' mean weight, summed over enumerated classes: (\\*C, K, N) -> (N,)."""
    log_w = sum_enumerated(w, log_w)
    return log_w.logsumexp(0) - math.log(w.particles) if w.particles > 1 else log_w.squeeze(0)


def bound_logs(w: LogWeights, bound: Tensor) -> dict[str, Tensor]:
    """What a bound over weights logs: itself, and the ELBO and its KL on the same draws, by Monte Carlo."""
    with torch.no_grad():
        elbo, log_likelihood = expected(w, w.log_w.detach()), expected(w, w.log_likelihood.detach())
    return {"bound": bound.detach(), "elbo": elbo, "kl": log_likelihood - elbo, "log_likelihood": log_likelihood}
