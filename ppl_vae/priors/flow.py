"""The prior that is a normalizing flow."""

from __future__ import annotations

import math
from typing import Literal

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from ..errors import InputError, check_count, choose
from ..guides.flow import FlowTransform, Layer
from ..guides.spline import AutoregressiveSpline, CouplingSpline, Knots
from ..networks import LOG_SCALE_BOUND, soft_bound
from .base import Prior, priors

__all__ = ["Flow"]


@priors.register("flow")
class Flow(Prior):
    r"""Normalizing flow over N(0, I): coupling or autoregressive splines, then a learned shift and scale.

    .. math::
        z = m + s \odot (f_T \circ \dots \circ f_1)(ε), \quad ε \sim N(0, I), \qquad
        \log p(z) = \log N(ε; 0, I) - \sum_d \log s_d - \sum_t \log \left| \det \frac{∂f_t}{∂f_{t-1}} \right|

    The transforms are those of the spline guide (`guides.Spline`), without a context. Coupling costs T passes of small
    networks for a draw and for a density. It starts near the standard normal.

    Args:
        size: number of dimensions of z.
        transforms: T.
        bins: of each spline, 2 or more.
        kind: "coupling"; or "autoregressive", whose densities cost T · size passes, one dimension after the other.
            None: coupling, and autoregressive in one dimension, which has no halves.
        bound: half the width of the box in which the splines bend, in standard deviations of ε.
        hidden: width of the networks' hidden layer; None: 2 · size, at least 32.

    Raises:
        InputError: numbers that are none, an unknown kind, coupling in one dimension.

    References: Durkan, Bekasov, Murray and Papamakarios, Neural spline flows, NeurIPS 2019
    (https://arxiv.org/abs/1906.04032); a flow as the prior of a VAE: Chen et al., Variational lossy autoencoder, ICLR
    2017 (https://arxiv.org/abs/1611.02731).
    """

    def __init__(
        self,
        size: int,
        transforms: int = 4,
        bins: int = 8,
        kind: Literal["coupling", "autoregressive"] | None = None,
        bound: float = 4.0,
        hidden: int | None = None,
    ) -> None:
        super().__init__(size)
        check_count("transforms", transforms)
        check_count("bins", bins, least=2)
        if kind not in (None, "coupling", "autoregressive"):
            raise choose("kind", kind, ("coupling", "autoregressive"))
        if kind == "coupling" and size == 1:
            raise InputError(
                "kind='coupling' conditions half of the dimensions on the other half, and size=1 has no halves: use "
                "kind='autoregressive'"
            )
        if not 0.0 < bound < math.inf:
            raise InputError(f"bound={bound!r} must be a finite number above 0: 4 covers a standard normal's draws")
        if hidden is not None:
            check_count("hidden", hidden)
        self.kind = kind or ("coupling" if size > 1 else "autoregressive")
        knots = Knots(bins, float(bound), "linear")
        layer: type[CouplingSpline] | type[AutoregressiveSpline]
        layer = CouplingSpline if self.kind == "coupling" else AutoregressiveSpline
        layers: list[Layer] = [layer(0, size, knots, hidden, k % 2 == 1) for k in range(transforms)]
        self.layers = nn.ModuleList(layers)
        self.loc = nn.Parameter(torch.zeros(size))
        self.raw = nn.Parameter(torch.zeros(size))

    def forward(self, features: Tensor) -> TorchDistributionMixin:
        parts = [layer.condition(self.loc.new_empty(0)) for layer in self.layers]  # type: ignore[operator]
        loc = self.loc.expand(*features.shape[:-1], -1)
        flow = FlowTransform(parts, loc, soft_bound(self.raw))
        zeros = torch.zeros_like(loc)
        pushed: TorchDistributionMixin = dist.TransformedDistribution(
            dist.Normal(zeros, torch.ones_like(zeros)).to_event(1), [flow]
        )
        return pushed

    def start_at(self, z: Tensor) -> None:
        """Shift and scale to the draws' means and standard deviations."""
        with torch.no_grad():
            self.loc.copy_(z.mean(0))
            scale = (z.std(0).clamp_min(1e-3).log() / LOG_SCALE_BOUND).clamp(-0.99, 0.99)
            self.raw.copy_(LOG_SCALE_BOUND * torch.atanh(scale))

    def extra_repr(self) -> str:
        return f"size={self.size}, transforms={len(self.layers)}, kind={self.kind!r}"
