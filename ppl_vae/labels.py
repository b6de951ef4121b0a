"""Classes as latent variables: what a known label says of them, in a model and in its guide."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributions.constraints import integer_interval

from .batch import Batch
from .core import LatentModel
from .data import DataSet
from .errors import InputError
from .networks import Condition

__all__ = [
    "SURE",
    "check_classes",
    "class_count",
    "class_site",
    "count_of",
    "hide_labels",
    "known",
    "sure",
    "unlabelled",
]

SURE = 1e9
"""Nats between the class that a label names and any other: above every log-likelihood's range, and finite, since
0 · ∞ in a sum over classes would be NaN."""


_Data = TypeVar("_Data")


def hide_labels(model: Any, data: _Data) -> _Data:
    """Data as a pair is to see them where what it says of x is looked at: a model that takes labels
    (`takes_labels`) gets none of a data set or a batch; for any other model y is a condition, and stays."""
    return unlabelled(data) if getattr(model, "takes_labels", False) else data


def unlabelled(data: _Data) -> _Data:
    """The data with their labels hidden; what is neither a data set nor a batch has none."""
    hidden: Any = data
    if isinstance(hidden, DataSet):
        hidden = hidden.hide_labels()
    elif isinstance(hidden, Batch):
        hidden = hidden._replace(y=None)
    same: _Data = hidden
    return same


def sure(one_hot: Tensor) -> Tensor:
    """Logits of what is certain: 0 for the class of a one-hot row (\\*S, N, C), -`SURE` for the others."""
    return SURE * (one_hot - 1.0)


def known(logits: Tensor, y: Tensor | None, eye: Tensor) -> Tensor:
    """A classifier's logits (N, C), of labelled data those of their label.

    Args:
        y: (N,) class numbers, -1 where the label is missing; None: all are missing.
        eye: (C, C), the classes one-hot.
    """
    if y is None:
        return logits
    return torch.where((y >= 0).unsqueeze(-1), sure(eye[y.clamp_min(0)]), logits)


def class_site(model: Any) -> str | None:
    """The latent class of a model that has one, and continuous latents of each datum beside it; None for others."""
    latents = getattr(model, "latents", {})
    discrete = [name for name, spec in latents.items() if spec.support.is_discrete]
    if len(discrete) != 1 or len(latents) == 1:
        return None
    (name,) = discrete
    spec = latents[name]
    plain = spec.scope == "datum" and not spec.event_shape and isinstance(spec.support, integer_interval)
    return name if plain and int(spec.support.lower_bound) == 0 else None


def class_count(model: Any) -> int:
    """How many classes a model knows, as a condition or as a latent variable: labels are 0 to one less; 0 for models
    that look at no labels."""
    condition = getattr(model, "condition", None)
    if isinstance(condition, Condition) and condition.classes:
        return condition.classes
    return count_of(model) if getattr(model, "takes_labels", False) else 0


def check_classes(model: Any, y: Tensor | None) -> None:
    """Raise `InputError` for a label that is no class of a model."""
    if classes := class_count(model):
        Condition(classes=classes).check(Batch(y=y))


def count_of(model: LatentModel) -> int:
    """C, of a model with a `class_site`."""
    name = class_site(model)
    if name is None:
        raise InputError(
            f"{type(model).__name__} declares no latent class, integer_interval(0, C - 1) of each datum, beside "
            f"continuous latents; its latents are {list(model.latents)}"
        )
    support = model.latents[name].support
    assert isinstance(support, integer_interval)
    return int(support.upper_bound) + 1
