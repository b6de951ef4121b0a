"""Closed-form KL divergences: torch's table, and the entries it lacks."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import Independent, LowRankMultivariateNormal, MultivariateNormal, Normal, kl_divergence

__all__ = ["closed_form_kl", "gaussian_of"]


def closed_form_kl(q: TorchDistributionMixin, p: TorchDistributionMixin) -> Tensor | None:
    r"""KL(q ‖ p) = E_q[log q(z) - log p(z)] in closed form, from torch's table and this one's additions.

    The additions are not registered with torch: that would change what Pyro's own `TraceMeanField_ELBO` computes.

    - q = N(m, L Lᵀ), p = N(μ, diag σ²):  ½ Σ_d [ (L Lᵀ)_dd / σ_d² + (m_d - μ_d)² / σ_d² - 1 + log σ_d² ] - Σ_d log L_dd
    - q = N(m, D + F Fᵀ), F of rank r, p as above, in O(D r²):
      ½ Σ_d [ (D_d + Σ_i F_di²) / σ_d² + (m_d - μ_d)² / σ_d² - 1 + log σ_d² - log D_d ] - ½ log det(I + Fᵀ D⁻¹ F)

    Args:
        q, p: distributions over the same events, whose batch shapes broadcast.

    Returns:
        Nats, of the pair's broadcast batch shape; None where no closed form is known.

    Example:
        >>> import pyro.distributions as dist
        >>> q = dist.MultivariateNormal(torch.zeros(2), scale_tril=torch.tensor([[1.0, 0.0], [0.5, 1.0]]))
        >>> closed_form_kl(q, dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1))
        tensor(0.1250)
    """
    if isinstance(q, MultivariateNormal) and _is_diagonal_normal(p):
        return _kl_full_diagonal(q, p.base_dist)
    if isinstance(q, LowRankMultivariateNormal) and _is_diagonal_normal(p):
        return _kl_low_rank_diagonal(q, p.base_dist)
    try:
        kl = kl_divergence(q, p)
    except NotImplementedError:
        return None
    return kl if isinstance(kl, Tensor) else torch.as_tensor(kl)


def _is_diagonal_normal(p: TorchDistributionMixin) -> bool:
    return isinstance(p, Independent) and isinstance(p.base_dist, Normal) and len(p.event_shape) == 1


def _kl_full_diagonal(q: MultivariateNormal, p: Normal) -> Tensor:
    tril = q._unbroadcasted_scale_tril
    precision = p.scale.pow(-2)
    quadratic = (tril.pow(2).sum(-1) + (q.loc - p.loc).pow(2)) * precision
    log_scale_p = p.scale.log()
    log_scale_q = tril.diagonal(dim1=-2, dim2=-1).log()
    return (0.5 * (quadratic - 1.0) + log_scale_p - log_scale_q).sum(-1)


def _kl_low_rank_diagonal(q: LowRankMultivariateNormal, p: Normal) -> Tensor:
    diagonal, factor = q._unbroadcasted_cov_diag, q._unbroadcasted_cov_factor
    precision = p.scale.pow(-2)
    quadratic = (diagonal + factor.pow(2).sum(-1) + (q.loc - p.loc).pow(2)) * precision
    # det(D + F Fᵀ) = det D · det(I + Fᵀ D⁻¹ F), and torch holds the Cholesky factor of the latter
    log_det_small = q._capacitance_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    kl: Tensor = (0.5 * (quadratic - 1.0 - diagonal.log()) + p.scale.log()).sum(-1) - log_det_small
    return kl


def gaussian_of(q: TorchDistributionMixin) -> Normal | MultivariateNormal | LowRankMultivariateNormal | None:
    """The Gaussian that a distribution is, behind what makes its dimensions an event; None where it is none."""
    base: Any = q
    while isinstance(base, Independent):
        base = base.base_dist
    return base if isinstance(base, Normal | MultivariateNormal | LowRankMultivariateNormal) else None
