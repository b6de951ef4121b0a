"""Guides with parameters for each datum, on data that they were not trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .data import DataSet
from .errors import InputError
from .fit import fit
from .isolation import device_of, restored
from .labels import hide_labels
from .loader import Data
from .objectives import ELBO, Objective

__all__ = ["frozen", "is_local", "renewed"]


UPDATES = 1000
LR = 0.05
BATCH_SIZE = 1024


def is_local(guide: nn.Module) -> bool:
    """Whether a guide has parameters for each datum, and makes one for other data by `renew`."""
    return callable(getattr(guide, "renew", None))


def renewed(
    model: nn.Module,
    guide: nn.Module,
    data: DataSet | Data,
    objective: Callable[[], Objective] = ELBO,
    *,
    updates: int | None = None,
    batch_size: int = BATCH_SIZE,
    lr: float = LR,
    seed: int = 0,
    shown: Callable[[int], Mapping[str, Any]] | None = None,
) -> nn.Module:
    """A guide for these data: the one that is given, or where it has parameters for each datum, a fresh one fitted to
    them under the model as it is.

    What a guide without an encoder says of a datum is had by optimizing for it. What is left of its distance to the
    family's best is the optimization's: the defaults, whose learning rate falls to 0 by a cosine, leave little. Neither
    the model nor the guide that is given changes, and the global random state is left as it was.

    Args:
        model, guide: a trained pair.
        data: what the guide is for; dynamic binarization is drawn once, as in an evaluation.
        objective: makes what is maximized over the fresh parameters.
        updates: of each datum's parameters, which are passes over the data; None: 1000.
        batch_size, lr, seed: see `fit`; a batch larger than the data becomes all of them.
        shown: from a number of epochs to `fit`'s progress, callbacks and description.

    Raises:
        KeyboardInterrupt: Ctrl-C.
    """
    if not is_local(guide):
        return guide
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        fresh = guide.renew(len(data))  # type: ignore[operator]
    data = hide_labels(model, data)
    if not isinstance(fresh, nn.Module):
        raise InputError(f"{type(guide).__name__}.renew made a {type(fresh).__name__}; it must make a guide")
    device = device_of(model) or torch.device("cpu")
    epochs = UPDATES if updates is None else updates
    with frozen(model):
        fitted = fit(
            model,
            fresh,
            data.fixed(),
            objective(),
            epochs=epochs,
            batch_size=min(batch_size, len(data)),
            lr=lr,
            lr_schedule="cosine",
            seed=seed,
            device=device,
            **({"progress": False} if shown is None else shown(epochs)),
        )
    if fitted.stopped == "interrupted":
        raise KeyboardInterrupt
    return fresh


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """A block in which no parameter of the model trains; its parameters and buffers are afterwards as they were."""
    trains = [p for p in model.parameters() if p.requires_grad]
    training = [(module, module.training) for module in model.modules()]
    model.requires_grad_(False)
    try:
        with restored(model):
            yield
    finally:
        for p in trains:
            p.requires_grad_(True)
        for module, mode in training:
            module.training = mode
