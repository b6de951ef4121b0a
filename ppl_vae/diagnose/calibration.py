"""Simulation-based calibration: whether the z that made x lies among the guide's draws as one of them would."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ..batch import Batch
from ..evaluate.chunked import Data
from ..evaluate.importance import Progress
from ..weights import Program

__all__ = ["sbc"]


def sbc(
    model: Program,
    guide: Program,
    data: Data | None = None,
    *,
    simulations: int = 1000,
    draws: int = 99,
    bins: int = 20,
    functions: Mapping[str, Callable[[Batch, Mapping[str, Tensor]], Tensor]] | None = None,
    alpha: float = 0.05,
    chunk: int = 8192,
    seed: int | None = None,
    progress: Progress | None = None,
) -> Any:
    """Ranks of z* ~ p(z) among draws of q(z | x), x ~ p(x | z*); of `data` only y, context and masks are looked at.

    Raises:
        NotImplementedError: not yet.
    """
    raise NotImplementedError
