"""The prior that is a mixture of Gaussians."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from ..errors import InputError, check_count
from ..mixtures import NormalMixture
from ..networks import LOG_SCALE_BOUND, soft_bound
from .base import Prior, priors

__all__ = ["Mixture"]


@priors.register("mixture")
class Mixture(Prior):
    r"""Mixture of K diagonal Gaussians, weights, means and scales learned.

    .. math:: p(z) = \sum_{k=1}^K π_k \, N(z;\, m_k,\, \mathrm{diag}\, s_k^2)

    log s is softly bounded (`soft_bound`). It starts with the mean 0 and, over the draw of its means, the covariance I
    of the standard normal: means are drawn from N(0, spread² I), variances are 1 - spread², weights equal. With one
    component it starts as the standard normal itself.

    Args:
        size: number of dimensions of z.
        components: K.
        spread: standard deviation of the first means, at least 0 and below 1.

    Raises:
        InputError: a number of components that is none, a spread outside of [0, 1).
    """

    def __init__(self, size: int, components: int = 50, spread: float = 0.7) -> None:
        super().__init__(size)
        check_count("components", components)
        if not (isinstance(spread, int | float) and 0.0 <= spread < 1.0):
            raise InputError(f"spread={spread!r} must be a standard deviation, 0 or more and below 1")
        self.components = components
        spread = float(spread) if components > 1 else 0.0
        self.logits = nn.Parameter(torch.zeros(components))
        self.loc = nn.Parameter(spread * torch.randn(components, size))
        self.raw = nn.Parameter(torch.full((components, size), _raw(0.5 * math.log(1.0 - spread**2))))

    def forward(self, features: Tensor) -> TorchDistributionMixin:
        components = dist.Normal(self.loc, soft_bound(self.raw).exp()).to_event(1)
        return NormalMixture(self.logits, components).expand(features.shape[:-1])

    def start_at(self, z: Tensor) -> None:
        """Means at draws that lie far apart, each with probability proportional to its squared distance from those
        before it (k-means++), and the scales that the draws have around their nearest mean."""
        if self.components == 1:
            means = z.mean(0, keepdim=True)
        else:
            means = z[torch.randint(len(z), (1,))]
            for _ in range(self.components - 1):
                nearest = torch.cdist(z, means).square().amin(1)
                means = torch.cat([means, z[(nearest + 1e-12).multinomial(1)]])
        off = z - means[torch.cdist(z, means).argmin(1)]
        scale = off.square().mean(0).sqrt().clamp_min(1e-3)
        raw = LOG_SCALE_BOUND * torch.atanh((scale.log() / LOG_SCALE_BOUND).clamp(-0.99, 0.99))
        with torch.no_grad():
            self.logits.zero_()
            self.loc.copy_(means)
            self.raw.copy_(raw.expand_as(self.raw))

    def extra_repr(self) -> str:
        return f"size={self.size}, components={self.components}"


def _raw(log_scale: float) -> float:
    """What `soft_bound` makes log_scale of."""
    return LOG_SCALE_BOUND * math.atanh(log_scale / LOG_SCALE_BOUND)
