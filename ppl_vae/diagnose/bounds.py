"""Bidirectional Monte Carlo as one of the checks of a pair: how far annealing is from log p(x), on data like these."""

from __future__ import annotations

from ..batch import Batch
from ..data import DataSet
from ..evaluate.chunked import Data
from ..evaluate.importance import Progress
from ..weights import Program
from .annealing import Bidirectional, bdmc

__all__ = ["bounds"]


def bounds(
    model: Program,
    guide: Program,
    data: Data,
    *,
    temperatures: int = 1000,
    chains: int = 16,
    steps: int = 10,
    seed: int | None = None,
    progress: Progress | None = None,
    compile: bool = False,
) -> Bidirectional:
    """`bdmc` of as many simulated data as there are, each given the class and context of one of these.

    Args:
        model: as for `bdmc`.
        guide: of the pair; chains start from the prior, which every model has.
        data: of which the classes and contexts are taken, and the number.
        temperatures, chains, steps, seed, progress, compile: as for `bdmc`.

    Raises:
        InputError: as `bdmc`.
    """
    batch = data.batch() if isinstance(data, DataSet) else data if isinstance(data, Batch) else Batch(x=data)
    given = Batch(y=batch.y, context=batch.context, n=batch.size)
    asked = {"temperatures": temperatures, "chains": chains, "steps": steps}
    return bdmc(model, given, **asked, seed=seed, progress=progress, compile=compile)  # type: ignore[arg-type]
