"""The guide of models without latent variables."""

from __future__ import annotations

from torch import Tensor

from ..batch import Batch
from ..core import Guide

__all__ = ["NoLatents"]


class NoLatents(Guide):
    """A guide that draws nothing: under it `ELBO()` is log p(x), where the model can say it."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return {}
