"""Classes as latent variables: what a known label says of them, in a model and in its guide."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
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
    "check_labels",
    "check_taught",
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
    (`takes_labels`) gets none of a data set or a batch; for any other model y is a condition, and stays. Raises
    `InputError` for hidden labels that are none."""
    if not getattr(model, "takes_labels", False):
        return data
    if isinstance(data, DataSet | Batch):
        size = len(data) if isinstance(data, DataSet) else data.size
        if data.y is not None and len(data.y) != size:
            raise InputError(f"data.y has {len(data.y)} rows where there are {size} data")
        check_labels(data.y, class_count(model), "data.y")
    return unlabelled(data)


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


def check_labels(y: Tensor | None, classes: int, argument: str = "y") -> None:
    """Raise `InputError` unless labels are int64 (N,), each a class from 0 to `classes` - 1, or -1. One that is none
    would be taken for another class, or for a missing label, in silence."""
    if y is None:
        return
    if y.dtype != torch.int64 or y.dim() != 1:
        whole = not (y.is_floating_point() or y.is_complex() or y.dtype == torch.bool)
        hint = "y.long()" if whole and y.dim() == 1 else "whole numbers, one a datum, -1 where a label is missing"
        raise InputError(f"{argument} is {y.dtype} {tuple(y.shape)}; labels are torch.int64 (N,): give {hint}")
    bad = (y < -1) | (y >= classes)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise InputError(
            f"{argument}[{row}] is {int(y[row])}; this model has the classes 0 to {classes - 1}, and -1 stands for a "
            "missing label"
        )


def check_taught(
    model: Any, y: Tensor | None, size: int, description: str, class_names: Sequence[str] = (), taught: bool = False
) -> None:
    """Whether labels teach a model its classes: raises `InputError` where there are none to learn from, and warns
    where a class has none, or where nothing trains the classifier.

    Args:
        model: one that looks at no labels passes.
        y: (N,) of the training data; None: none.
        size: N.
        description: the data, in words.
        class_names: by number; the number itself where a class has none.
        taught: whether the objective has a term that trains q(y | x) by the labels.
    """
    classes = class_count(model)
    latent = getattr(model, "takes_labels", False)
    if not classes or (y is None and not latent):
        return  # a program that is conditioned on y refuses a batch without it by itself
    counts = [0] * classes if y is None else [int((y == label).sum()) for label in range(classes)]
    if not any(counts):
        if taught or not latent:
            raise InputError(
                f"y: {type(model).__name__} learns classes from labels, and {description!r} has none; label some of "
                "the data, or use VAE"
            )
        warnings.warn(
            f"{description!r} has no labels: the {classes} classes of {type(model).__name__} are clusters, and which "
            "number each gets is left to chance; label some of the data, and use the objective SemiSupervised",
            stacklevel=3,
        )
        return
    if latent and sum(counts) == size and not taught:
        warnings.warn(
            f"all {size} of {description!r} are labelled: a label takes the classifier's place, which this objective "
            "leaves as it started; use the objective SemiSupervised, or keep some of the labels",
            stacklevel=3,
        )
    names = dict(enumerate(class_names))
    if missing := [str(names.get(label, label)) for label, count in enumerate(counts) if not count]:
        warnings.warn(
            f"{description!r} has no label of the class {', '.join(missing[:10])}: what the model makes of it is left "
            "to chance",
            stacklevel=3,
        )


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
