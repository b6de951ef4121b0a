"""Pareto k-hat of every datum: whether the guide's weights have a variance, and which data it fails."""

from __future__ import annotations

from ..evaluate import Progress
from ..evaluate.chunked import Data
from ..weights import Program
from .findings import Finding

__all__ = ["khat"]


def khat(
    model: Program,
    guide: Program,
    data: Data,
    particles: int = 1000,
    chunk: int | None = None,
    *,
    worst: int = 12,
    seed: int | None = None,
    progress: Progress | None = None,
    compile: bool = False,
) -> Finding:
    """k-hat of every datum, log p(x) with and without smoothing, and the data where it is worst."""
    raise NotImplementedError
