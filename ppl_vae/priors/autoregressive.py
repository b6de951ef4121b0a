"""The prior that is autoregressive over the dimensions of z."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import constraints

from ..errors import check_count
from ..guides.inverse_autoregressive import masked_network
from ..networks import LOG_SCALE_BOUND, soft_bound
from .base import Prior, priors

__all__ = ["Autoregressive", "AutoregressiveMixture"]

_HALF_LOG_2PI = 0.9189385332046727


@priors.register("autoregressive")
class Autoregressive(Prior):
    r"""Autoregressive over the dimensions of z, each a mixture of K Gaussians given those before it.

    .. math:: p(z) = \prod_{d=1}^D \sum_{k=1}^K π_{dk}(z_{<d}) \, N(z_d;\, m_{dk}(z_{<d}),\, s_{dk}(z_{<d})^2)

    One masked network gives the numbers of all dimensions: a density costs one pass of it, a draw one for each
    dimension, one after the other. The network sees z in units of a shift and scale that `start_at` sets. log s is
    softly bounded. It starts near a broad mixture around 0 in every dimension, alike whatever comes before.

    Args:
        size: D, number of dimensions of z.
        components: K.
        hidden: width of the network's hidden layer; None: 2D, at least 32.

    Raises:
        InputError: a number of components that is none; a hidden layer narrower than D.

    References: Germain, Gregor, Murray and Larochelle, MADE, ICML 2015 (https://arxiv.org/abs/1502.03509); mixtures of
    each dimension: Uria, Murray and Larochelle, RNADE, NIPS 2013 (https://arxiv.org/abs/1306.0186).
    """

    first_loc: Tensor
    loc: Tensor
    scale: Tensor

    def __init__(self, size: int, components: int = 8, hidden: int | None = None) -> None:
        super().__init__(size)
        check_count("components", components)
        self.components = components
        self.network = masked_network(0, size, hidden, [3 * components], backwards=False)
        # the quantiles of N(0, 1), so that components differ from the start
        shares = (torch.arange(components) + 0.5) / components
        self.register_buffer("first_loc", torch.distributions.Normal(0.0, 1.0).icdf(shares))
        self.register_buffer("loc", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))

    def numbers(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log π, m and log s of every dimension, (\\*S, D, K), given z (\\*S, D), in units of z."""
        unit = (z - self.loc) / self.scale
        raw: Tensor = self.network(unit, unit.new_empty(*unit.shape[:-1], 0))  # (*S, 3K, D), or (*S, 3, D) of one
        logits, centre, width = raw.transpose(-1, -2).chunk(3, dim=-1)
        shift, scale = self.loc.unsqueeze(-1), self.scale.unsqueeze(-1)
        return logits.log_softmax(-1), shift + scale * (centre + self.first_loc), soft_bound(width) + scale.log()

    def forward(self, features: Tensor) -> TorchDistributionMixin:
        return AutoregressiveMixture(self, features.shape[:-1])

    def start_at(self, z: Tensor) -> None:
        """The units of z."""
        self.loc.copy_(z.mean(0))
        self.scale.copy_(z.std(0).clamp_min(LOG_SCALE_BOUND**-5))

    def extra_repr(self) -> str:
        return f"size={self.size}, components={self.components}"


class AutoregressiveMixture(TorchDistribution):
    r"""The distribution of `Autoregressive`. Draws pass no gradient.

    Args:
        prior: whose `numbers` it takes.
        batch_shape: (\*S, N).
    """

    arg_constraints = {}  # noqa: RUF012  (as torch's distributions have it)
    support = constraints.real_vector
    has_rsample = False

    def __init__(
        self, prior: Autoregressive, batch_shape: torch.Size = torch.Size(), validate_args: bool | None = None
    ) -> None:
        self.prior = prior
        super().__init__(torch.Size(batch_shape), prior.event_shape, validate_args=validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        log_weights, loc, log_scale = self.prior.numbers(value)
        e = (value.unsqueeze(-1) - loc) / log_scale.exp()
        each = (log_weights - 0.5 * e.square() - log_scale - _HALF_LOG_2PI).logsumexp(-1)  # (*S, D)
        total = each.sum(-1)
        return total.expand(torch.broadcast_shapes(total.shape, self.batch_shape))

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        with torch.no_grad():
            z = self.prior.loc.expand(shape).clone()
            for d in range(shape[-1]):
                log_weights, loc, log_scale = (t[..., d, :] for t in self.prior.numbers(z))
                chosen = log_weights.reshape(-1, log_weights.shape[-1]).exp().multinomial(1)
                chosen = chosen.reshape(*shape[:-1], 1)
                loc, log_scale = loc.gather(-1, chosen).squeeze(-1), log_scale.gather(-1, chosen).squeeze(-1)
                drawn = loc + log_scale.exp() * torch.randn_like(loc)
                z = torch.cat([z[..., :d], drawn.unsqueeze(-1), z[..., d + 1 :]], dim=-1)
        return z

    def expand(self, batch_shape: Any, _instance: Any = None) -> AutoregressiveMixture:
        new: AutoregressiveMixture = self._get_checked_instance(AutoregressiveMixture, _instance)  # type: ignore[no-untyped-call]
        new.prior = self.prior
        super(AutoregressiveMixture, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new
