"""A model that a comparison holds, from a run or a module."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .build import PairConfig
from .errors import InputError, RunError
from .folder import RUN, read_run
from .recipe import Recipe, absolute
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
    return fixed, recipe if own_model else _as_in(folder, recipe, own_data)


def _as_in(folder: Path, recipe: Recipe, own_data: bool) -> Recipe:
    """The recipe with a run's model and data; raises `InputError` for what it was asked to be otherwise."""
    config = read_run(folder)
    if "pair" not in config:
        raise RunError(
            f"{str(folder)!r} was trained from modules made in a program ({config.get('model')}): give the function "
            "that makes its model, compare(make_model, ..., fix_decoder=...)"
        )
    pair = PairConfig.from_json(config["pair"])
    theirs: dict[str, Any] = {
        "model": pair.model_label,
        "prior": pair.prior_label,
        "likelihood": pair.likelihood,
        "network": pair.network,
        "latent": pair.latent,
        "hidden": pair.hidden,
    }
    options = dict(config.get("data_options", {}))
    if not own_data:
        if "data" not in options:
            raise RunError(f"{folder / RUN} does not say what its data were: give data=(train, test)")
        theirs |= {name: options[name] for name in ("data", "binarize") if name in options}
    asked, default = absolute(recipe), Recipe()
    for name, value in theirs.items():
        given = getattr(asked, name)
        if given != value and getattr(recipe, name) != getattr(default, name):
            raise InputError(f"{name}={given!r}: the model of {str(folder)!r} has {value!r}; leave it out")
    if not own_data and "data_dir" in options and recipe.data_dir == default.data_dir:
        theirs["data_dir"] = options["data_dir"]
    return recipe.replace(**theirs)
