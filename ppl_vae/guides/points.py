"""Draws of q as functions of given noise: expectations over q without random numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import (
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
)

from ..errors import InputError

__all__ = ["Points", "mirrored", "noise_size", "placed"]


class Points(NamedTuple):
    """Draws of q, and what they count for.

    Args:
        values: by site, (\\*C, P, \\*S, N, \\*event).
        log_q: of all sites together, (\\*C, P, \\*S, N), in nats.
        weights: of strata, (C, 1, \\*S, N), of sum 1 over C; None where there are none.
    """

    values: Mapping[str, Tensor]
    log_q: Tensor
    weights: Tensor | None = None

    def mean(self, terms: Tensor) -> Tensor:
        """The expectation over q, (\\*S, N), of terms of the shape of `log_q`."""
        return (terms if self.weights is None else (self.weights * terms).sum(0)).mean(0)


def noise_size(q: Any) -> int:
    """How many standard normal numbers make a draw of q; raises `InputError` for a q of another making."""
    if isinstance(q, TransformedDistribution):
        return noise_size(q.base_dist)
    if isinstance(q, LowRankMultivariateNormal):
        return math.prod(q.event_shape) + int(q.cov_factor.shape[-1])
    base = q.base_dist if isinstance(q, Independent) else q
    if isinstance(base, Normal) or isinstance(q, MultivariateNormal):
        return math.prod(q.event_shape)
    raise InputError(f"a draw of a {type(base).__name__} is no known function of standard normal noise")


def placed(q: Any, noise: Tensor) -> Tensor:
    """Draws of q (\\*S, N) at noise (P, `noise_size`), the same for all of the batch: (P, \\*S, N, \\*event)."""
    if isinstance(q, TransformedDistribution):
        value = placed(q.base_dist, noise)
        for transform in q.transforms:
            value = transform(value)
        assert isinstance(value, Tensor)
        return value
    noise = noise.reshape(-1, *[1] * len(q.batch_shape), noise.shape[-1])
    if isinstance(q, LowRankMultivariateNormal):
        own, shared = noise.split([q.event_shape.numel(), q.cov_factor.shape[-1]], dim=-1)
        wide: Tensor = (q.cov_factor @ shared.unsqueeze(-1)).squeeze(-1)
        low_rank: Tensor = q.loc + wide + q.cov_diag.sqrt() * own
        return low_rank
    if isinstance(q, MultivariateNormal):
        turned: Tensor = (q.scale_tril @ noise.unsqueeze(-1)).squeeze(-1)
        full: Tensor = q.loc + turned
        return full
    normal = q.base_dist if isinstance(q, Independent) else q
    assert isinstance(normal, Normal)
    value = normal.loc + normal.scale * noise.reshape(*noise.shape[:-1], *q.event_shape)
    return value


def mirrored(steps: int, particles: int, numbers: int) -> Tensor:
    """Noise (steps, particles, numbers), the same at every call: each step has pairs ε and -ε of standard normal draws,
    scaled to a variance of 1 in every number."""
    generator = torch.Generator().manual_seed(0)
    half = torch.randn(steps, particles // 2, numbers, generator=generator, dtype=torch.float64)
    half = half / half.square().mean(1, keepdim=True).sqrt()
    return torch.cat([half, -half], dim=1).to(torch.get_default_dtype())
