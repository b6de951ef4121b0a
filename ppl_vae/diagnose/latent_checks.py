"""The latent space as the data fill it: the aggregate posterior against the prior, and what z carries of x."""

from __future__ import annotations

from typing import Any

from ..evaluate.chunked import Data
from ..evaluate.importance import Progress
from ..weights import Program

__all__ = ["latent_checks"]


def latent_checks(
    model: Program,
    guide: Program,
    data: Data,
    *,
    permutations: int = 500,
    alpha: float = 0.05,
    chunk: int | None = None,
    seed: int | None = None,
    progress: Progress | None = None,
) -> Any:
    """MMD, holes, mutual information, total correlation, dimension-wise KL, active units, collapse.

    Raises:
        NotImplementedError: not yet.
    """
    raise NotImplementedError
