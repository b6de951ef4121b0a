"""A distribution made of a log-density and of something that draws from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

__all__ = ["Unnormalized"]


class Unnormalized(TorchDistribution):
    """p(x) of a model known up to its normalizer, as a site of a Pyro program.

    Args:
        density: from x (\\*S, \\*shape) to log p(x) (\\*S), normalizer and all; it may refuse.
        draw: from a number to so many draws.
        shape: of one x.
        support: of its numbers.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {}

    def __init__(
        self,
        density: Callable[[Tensor], Tensor],
        draw: Callable[[int], Tensor],
        shape: Sequence[int],
        support: Constraint = constraints.real,
        batch_shape: Sequence[int] = (),
        validate_args: bool | None = None,
    ) -> None:
        self.density, self.draw, self.of_each = density, draw, support
        super().__init__(torch.Size(batch_shape), torch.Size(shape), validate_args=validate_args)

    @property
    def support(self) -> Constraint:
        return constraints.independent(self.of_each, len(self.event_shape))

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> Unnormalized:
        return Unnormalized(self.density, self.draw, self.event_shape, self.of_each, batch_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        left = value.shape[: value.dim() - len(self.event_shape)]
        return self.density(value).expand(torch.broadcast_shapes(left, self.batch_shape))

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        count = math.prod(shape[: len(shape) - len(self.event_shape)])
        return self.draw(count).reshape(shape)
