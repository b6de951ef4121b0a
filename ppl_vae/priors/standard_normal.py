"""The standard normal prior."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from .base import Prior, priors

__all__ = ["StandardNormal"]


@priors.register("standard-normal")
class StandardNormal(Prior):
    r"""Standard normal: p(z) = N(z; 0, I).

    Features (\*S, N, F), of any F, give the distribution's batch shape (\*S, N); events are (size,). The constants are
    buffers, so that they move with the module; there are no parameters.

    Args:
        size: number of dimensions of z.
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.register_buffer("loc", torch.zeros(size), persistent=False)
        self.register_buffer("scale", torch.ones(size), persistent=False)

    def forward(self, features: Tensor) -> TorchDistributionMixin:
        shape = features.shape[:-1] + self.event_shape
        normal: TorchDistributionMixin = dist.Normal(self.loc.expand(shape), self.scale.expand(shape)).to_event(1)
        return normal
