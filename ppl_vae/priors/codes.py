"""Priors over grids of codes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from ..core import Conditional
from ..errors import InputError, check_count

__all__ = ["CodePrior", "UniformCodes"]


class CodePrior(Conditional):
    r"""p(codes | features, codes above), over grids (h, w) of whole numbers 0 to K - 1.

    Args:
        grid: (h, w).
        entries: K.
        above: the grid of the codes that are drawn before and given, as of `models.VQVAE2`'s top; None: there are
            none.
        entries_above: how many values these have; None: K too.

    Attributes:
        given_above: whether it depends on codes above; a model declares its site's parents by it.
    """

    given_above: ClassVar[bool] = True

    def __init__(
        self, grid: Sequence[int], entries: int, above: Sequence[int] | None = None, entries_above: int | None = None
    ) -> None:
        super().__init__()
        if len(grid) != 2 or (above is not None and len(above) != 2):
            raise InputError(f"grid={tuple(grid)} and above={above} are each the height and width of a grid of codes")
        self.event_shape = torch.Size([check_count("grid", side) for side in grid])
        self.entries = check_count("entries", entries, least=2)
        self.above = None if above is None else torch.Size(above)
        self.entries_above = None if above is None else entries if entries_above is None else entries_above

    @abstractmethod
    def forward(self, features: Tensor, above: Tensor | None = None) -> TorchDistributionMixin:
        """The distribution of batch shape (\\*S, N) and events (h, w), given features (\\*S, N, F) and the codes above,
        (\\*S, N, h', w')."""


class UniformCodes(CodePrior):
    r"""Every grid of codes alike: log p = -h w log K."""

    given_above = False
    logits: Tensor

    def __init__(
        self, grid: Sequence[int], entries: int, above: Sequence[int] | None = None, entries_above: int | None = None
    ) -> None:
        super().__init__(grid, entries, above, entries_above)
        self.register_buffer("logits", torch.zeros(entries), persistent=False)

    def forward(self, features: Tensor, above: Tensor | None = None) -> TorchDistributionMixin:
        each = dist.Categorical(logits=self.logits).expand([*features.shape[:-1], *self.event_shape])
        grid: TorchDistributionMixin = each.to_event(2)
        return grid
