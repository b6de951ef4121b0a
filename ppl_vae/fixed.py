"""A model that a comparison holds, from a run or a module."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from .errors import InputError
from .recipe import Recipe, as_in_run
from .runs import model_weights

__all__ = ["FIRST", "Fixed", "fixed_by"]

FIRST = "first"
"""Stands for: train the model once, with the first guide."""


@dataclass(frozen=True, eq=False)
class Fixed:
    """A model that is held.

    Args:
        source: where it comes from, in words.
        weights: its parameters and buffers.
    """

    source: str
    weights: Mapping[str, Tensor] = field(repr=False)


def fixed_by(
    held: str | os.PathLike[str] | nn.Module, recipe: Recipe, own_data: bool, own_model: bool
) -> tuple[Fixed, Recipe]:
    """The model that is held, and the recipe with the data and sizes that it was made for.

    Args:
        held: a run folder, or a module.
        recipe: what the comparison is asked for.
        own_data, own_model: whether these are given by other means than the recipe's names.

    Raises:
        InputError: the recipe asks for another model, or for other data, than the run's.
        RunError: no run folder, or one of a model that only a program can make.
    """
    if isinstance(held, nn.Module):
        if own_model:
            raise InputError("fix_decoder is a module, and model makes another; give one of them")
        weights = {name: tensor.detach().cpu().clone() for name, tensor in held.state_dict().items()}
        return Fixed(f"the {type(held).__name__} that was given", weights), recipe.replace(model=type(held).__name__)
    folder = Path(held)
    weights = model_weights(folder)
    fixed = Fixed(f"that of the run {str(folder)!r}", weights)
    return fixed, recipe if own_model else as_in_run(folder, recipe, own_data)
