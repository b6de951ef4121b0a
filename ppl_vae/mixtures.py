"""A mixture of diagonal Gaussians whose draws pass gradients to all of its parameters, the weights included."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import Independent, Normal, TorchDistribution
from torch import Tensor
from torch.distributions import constraints

__all__ = ["NormalMixture"]

_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


class NormalMixture(TorchDistribution):
    r"""Σ_k π_k N(m_k, diag s_k²), reparameterized implicitly.

    A draw is made as ever, a component first and then z of it. Its derivative by the parameters φ is that of the
    draw's conditional distribution functions F_d(z_d | z_1, ..., z_{d-1}; φ) held constant, which is unbiased:

    .. math::
        \frac{dz}{dφ} = -\Big(\frac{\partial F}{\partial z}\Big)^{-1} \frac{\partial F}{\partial φ}, \qquad
        F_d = \sum_k r_{kd} \, Φ\Big(\frac{z_d - m_{kd}}{s_{kd}}\Big), \quad
        r_{kd} \propto π_k \prod_{i<d} N(z_i; m_{ki}, s_{ki}^2)

    ∂F/∂z is lower triangular; a draw of D numbers costs O(K D²). Where components lie far apart with nothing between
    them, draws there are rare and their derivatives by π large: the gradient's variance grows exponentially in the
    squared distance. (Pyro's `MixtureOfDiagNormals` has another such gradient, of which the weights' part is NaN where
    two means agree, and its densities underflow in many dimensions.)

    Args:
        logits: (\*S, N, K), log π_k up to a constant.
        components: diagonal Gaussians of batch (\*S, N, K), events of any shape.

    Reference: Figurnov, Mohamed and Mnih, Implicit reparameterization gradients, NeurIPS 2018
    (https://arxiv.org/abs/1805.08498).

    Example:
        >>> import pyro.distributions as dist
        >>> loc = torch.tensor([[-2.0], [2.0]], requires_grad=True)
        >>> q = NormalMixture(torch.zeros(2), dist.Normal(loc, torch.ones(2, 1)).to_event(1))
        >>> q.rsample((4,)).shape, q.mean, q.stddev
        (torch.Size([4, 1]), tensor([0.], grad_fn=<SumBackward1>), tensor([2.2361], grad_fn=<SqrtBackward0>))
    """

    arg_constraints = {"logits": constraints.real_vector}  # noqa: RUF012  (as torch's distributions have it)
    has_rsample = True

    def __init__(self, logits: Tensor, components: Independent | Normal, validate_args: bool | None = None) -> None:
        shape = torch.broadcast_shapes(logits.shape, components.batch_shape)
        self.logits = logits.log_softmax(-1).expand(shape)
        self.components: Any = components.expand(shape)  # type: ignore[no-untyped-call]
        super().__init__(shape[:-1], components.event_shape, validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, self.event_dim)

    @property
    def weights(self) -> Tensor:
        """π, (\\*S, N, K)."""
        return self.logits.exp()

    @property
    def mean(self) -> Tensor:
        return self._average(self.components.mean)

    @property
    def variance(self) -> Tensor:
        return self._average(self.components.variance + (self.components.mean - self._spread(self.mean)).square())

    def log_joint(self, value: Tensor) -> Tensor:
        """log π_k N(value; m_k, s_k²) of each component, (\\*S, N, K) for values (\\*S, N, \\*event)."""
        joint: Tensor = self.logits + self.components.log_prob(self._spread(value))
        return joint

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self.log_joint(value).logsumexp(-1)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        normal: Normal = self.components.base_dist if self.event_shape else self.components
        loc, scale = self._flat(normal.loc), self._flat(normal.scale)  # (*S, N, K, D)
        with torch.no_grad():
            shape = (*sample_shape, *self.batch_shape)
            weights = self.weights.expand(*shape, -1)
            chosen = weights.reshape(-1, weights.shape[-1]).multinomial(1).reshape(*shape, 1, 1)
            chosen = chosen.expand(*shape, 1, loc.shape[-1])
            centre, width = (t.expand(*shape, *t.shape[-2:]).gather(-2, chosen).squeeze(-2) for t in (loc, scale))
            z = centre + width * torch.randn_like(centre)
        if torch.is_grad_enabled():
            z = _implicit(z, self.logits, loc, scale)
        return z.reshape(*shape, *self.event_shape)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        with torch.no_grad():
            return self.rsample(sample_shape)

    def expand(self, batch_shape: Any, _instance: NormalMixture | None = None) -> NormalMixture:
        shape = torch.Size(batch_shape)
        new: NormalMixture = self._get_checked_instance(NormalMixture, _instance)  # type: ignore[no-untyped-call]
        new.logits = self.logits.expand(*shape, -1)
        new.components = self.components.expand(torch.Size([*shape, self.logits.shape[-1]]))
        super(NormalMixture, new).__init__(shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def _spread(self, value: Tensor) -> Tensor:
        """Values beside the components' dimension."""
        return value.unsqueeze(-1 - self.event_dim)

    def _average(self, of_components: Tensor) -> Tensor:
        weights = self.weights.reshape(*self.weights.shape, *[1] * self.event_dim)
        return (weights * of_components).sum(-1 - self.event_dim)

    def _flat(self, parameter: Tensor) -> Tensor:
        return parameter.reshape(*self.logits.shape, self.event_shape.numel())


def _implicit(z: Tensor, logits: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """z itself (\\*S, N, D), with the derivatives of implicit reparameterization by logits (\\*S, N, K), loc and scale
    (\\*S, N, K, D)."""
    e = (z.unsqueeze(-2) - loc) / scale  # (*S, N, K, D)
    log_normal = -0.5 * e.square() - scale.log() - _HALF_LOG_2PI
    # of what came before dimension d alone
    before = logits.unsqueeze(-1) + log_normal.cumsum(-1) - log_normal
    r = before.softmax(-2)
    # Φ - ½: nothing is lost to rounding around the middle
    below = 0.5 * torch.erf(e * math.sqrt(0.5))
    f = (r * below).sum(-2)  # (*S, N, D)
    with torch.no_grad():
        slope = -e / scale  # d log N / dz
        jacobian = (r * below).mT @ slope - f.unsqueeze(-1) * (r.mT @ slope)  # dF_d / dz_i, for i < d
        density = ((before + log_normal).logsumexp(-2) - before.logsumexp(-2)).exp()  # dF_d / dz_d
        # rows divided by their diagonal
        jacobian = (jacobian / density.unsqueeze(-1)).tril(-1) + torch.eye(z.shape[-1]).to(z)
    moved = torch.linalg.solve_triangular(jacobian, ((f - f.detach()) / density).unsqueeze(-1), upper=False)
    reparameterized: Tensor = z - moved.squeeze(-1)
    return reparameterized
