"""The guide beside draws of the posterior itself, by Markov chains on some of the data."""

from __future__ import annotations

from collections.abc import Sequence

from ..evaluate import Progress
from ..evaluate.chunked import Data
from ..weights import Program
from .findings import Finding

__all__ = ["reference"]


def reference(
    model: Program,
    guide: Program,
    data: Data,
    rows: int | Sequence[int] = 16,
    *,
    chains: int = 8,
    draws: int = 500,
    warmup: int = 500,
    steps: int = 10,
    nuts: int = 0,
    seed: int | None = None,
    progress: Progress | None = None,
    compile: bool = False,
) -> Finding:
    """q(z | x) beside draws of p(z | x) by Hamiltonian Monte Carlo."""
    raise NotImplementedError
