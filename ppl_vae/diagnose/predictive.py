"""Posterior and prior predictive checks: whether what the model makes looks like the data, by chosen statistics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ..evaluate.chunked import Data
from ..evaluate.importance import Progress
from ..weights import Program

__all__ = ["predictive_check"]


def predictive_check(
    model: Program,
    guide: Program,
    data: Data,
    *,
    statistics: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    draws: int = 200,
    alpha: float = 0.05,
    chunk: int | None = None,
    seed: int | None = None,
    progress: Progress | None = None,
) -> Any:
    """Statistics of x (N, \\*D), each (N,) or a number, of the data beside those of replicated data.

    Raises:
        NotImplementedError: not yet.
    """
    raise NotImplementedError
