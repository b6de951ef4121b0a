"""Leave-one-out predictive density of each datum."""

from __future__ import annotations

from typing import Any

from ..evaluate.chunked import Data
from ..evaluate.importance import Progress
from ..weights import Program

__all__ = ["loo"]


def loo(
    model: Program,
    guide: Program,
    data: Data,
    *,
    particles: int = 1000,
    draws: int = 1000,
    chunk: int | None = None,
    seed: int | None = None,
    progress: Progress | None = None,
) -> Any:
    """elpd_n of each datum: log p(x_n) where latents are a datum's own, PSIS-LOO where all data share some.

    Raises:
        NotImplementedError: not yet.
    """
    raise NotImplementedError
