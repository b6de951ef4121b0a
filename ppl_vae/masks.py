"""What masks promise."""

from __future__ import annotations

from .batch import Batch
from .errors import InputError

__all__ = ["refuse_hidden_values"]


def refuse_hidden_values(batch: Batch, argument: str) -> None:
    """Raise `InputError` if x is not 0 where it is not observed: an encoder would see what is not there, and what is
    then imputed would have been known."""
    if batch.x is None or batch.observed is None:
        return
    hidden = (batch.x != 0) & ~batch.observed
    if bool(hidden.any()):
        place = [int(i) for i in hidden.nonzero()[0]]
        raise InputError(
            f"{argument}.x{place} is {batch.x[tuple(place)].item():g} where observed is False; put 0 there "
            "(x * observed), and give the rest of x to those who judge an imputation"
        )
