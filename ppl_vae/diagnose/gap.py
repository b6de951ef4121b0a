"""The inference gap: how much of it the family of q leaves, and how much the encoder."""

from __future__ import annotations

from ..evaluate import Progress
from ..evaluate.chunked import Data
from ..weights import Program
from .findings import Finding

__all__ = ["inference_gap"]


def inference_gap(
    model: Program,
    guide: Program,
    data: Data,
    train: Data | None = None,
    particles: int = 1000,
    *,
    temperatures: int | None = 500,
    chains: int = 16,
    updates: int = 300,
    seed: int | None = None,
    progress: Progress | None = None,
    compile: bool = False,
) -> Finding:
    """log p(x) - ELBO, in an approximation and an amortization part."""
    raise NotImplementedError
