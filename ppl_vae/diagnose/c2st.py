"""A classifier that tries to tell the z that made x from the guide's draws: calibration of all dimensions at once."""

from __future__ import annotations

from typing import Any

from ..evaluate.chunked import Data
from ..evaluate.importance import Progress
from ..weights import Program

__all__ = ["c2st"]


def c2st(
    model: Program,
    guide: Program,
    data: Data | None = None,
    *,
    simulations: int = 1000,
    draws: int = 99,
    folds: int = 5,
    classifier: Any = None,
    alpha: float = 0.05,
    chunk: int = 8192,
    seed: int | None = None,
    progress: Progress | None = None,
) -> Any:
    """Accuracy of telling (x, z*) from (x, z ~ q(z | x)); of `data` only y, context and masks are looked at.

    Raises:
        NotImplementedError: not yet.
    """
    raise NotImplementedError
