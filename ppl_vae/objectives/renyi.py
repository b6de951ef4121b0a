"""The variational Rényi bound."""

from __future__ import annotations

import math
from typing import Any

from ..errors import InputError
from ..weights import Program
from .base import Objective, Terms, objectives
from .iwae import bound_logs, log_mean_weights

__all__ = ["Renyi"]


@objectives.register("renyi")
class Renyi(Objective):
    r"""Rényi's α-divergence bound, estimated with K particles.

    .. math:: L_{α,K} = \frac{1}{1-α} \log \frac1K \sum_k \Big(\frac{p(x, z_k)}{q(z_k \mid x)}\Big)^{1-α}

    α → 1 is the ELBO, α = 0 the importance-weighted bound, α > 1 lies below the ELBO; with α < 0 its limit in K is
    an upper bound on log p(x). With finite K the estimate is biased downwards for α < 1. The expectation over
    enumerated classes is exact: Σ_c q(c | x) (p(x, z_k, c) / q(z_k, c | x))^(1-α) in place of a weight's power.

    Args:
        alpha: α ≠ 1, finite.
        particles: K, per datum; with K = 1 every α is the ELBO.

    Raises:
        InputError: α = 1 (use `ELBO`), not finite; a latent site shared by all data, or without reparameterization.

    Reference: Li and Turner, Rényi divergence variational inference, NIPS 2016 (https://arxiv.org/abs/1602.02311).
    """

    def __init__(self, alpha: float = 0.5, particles: int = 5) -> None:
        super().__init__(particles)
        if not (isinstance(alpha, int | float) and math.isfinite(alpha)):
            raise InputError(f"alpha={alpha!r} must be a finite number")
        if alpha == 1:
            raise InputError(
                "alpha=1 is the ELBO, where this bound's formula divides by 0: use the objective ELBO ('elbo')"
            )
        self.alpha = float(alpha)
        self.leaves_classes = alpha == 0

    def terms(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Terms:
        w = self.weights(model, guide, *args, **kwargs)
        self.refuse_rigid(w)
        bound = log_mean_weights(w, (1.0 - self.alpha) * w.log_w) / (1.0 - self.alpha)
        return Terms(-bound, bound_logs(w, bound))

    def extra_repr(self) -> str:
        return f"alpha={self.alpha:g}, particles={self.particles}"
