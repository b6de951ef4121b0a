"""A guide's family with numbers of each datum's own: the best q for every datum, all of them optimized at once."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..batch import Batch
from ..data import DataSet
from ..errors import InputError
from ..evaluate.chunked import Source, spans
from ..guides.biases import Biases
from ..objectives import ELBO

__all__ = ["OWN", "LocalFit", "fitted_locally"]

OWN = "the guide's own parameters of each datum"
"""What is freed of a guide without an encoder."""

_CHUNK = 4096


@dataclass(frozen=True, eq=False)
class LocalFit:
    """A pair in which q is each datum's own, and the data with the rows by which it knows them."""

    model: nn.Module
    guide: nn.Module
    data: Batch
    freed: str


@contextmanager
def fitted_locally(
    model: nn.Module,
    guide: nn.Module,
    source: Source,
    *,
    updates: int = 300,
    particles: int = 8,
    lr: float = 0.05,
    chunk: int | None = None,
) -> Iterator[LocalFit]:
    r"""Maximize the ELBO of every datum over numbers of its own, the model held; the fitted pair is there inside of the
    block.

    Each affine layer of the guide outside of its encoders gets a bias of each datum's own, b + δ_n, beginning with
    δ_n = 0, the encoder's answer: see `Biases` for what that frees. A guide with parameters for each datum has these
    optimized further.

    Args:
        model, guide: are copied, and stay as they are.
        source: the data.
        updates, particles, lr: Adam's steps, draws in each, learning rate, which falls to 0 by a cosine.
        chunk: pairs of a particle and a datum at once.

    Raises:
        InputError: a guide in which nothing can be made a datum's own.
    """
    if not isinstance(guide, nn.Module):
        raise InputError(
            f"guide is of type {type(guide).__name__}, in which nothing can be made a datum's own: write it as a "
            "Module with a torch.nn.Linear"
        )
    # together: a guide that runs the model runs the copy
    model, guide = copy.deepcopy((model, guide))
    for part in (model, guide):
        if isinstance(part, nn.Module):  # a model may be a plain function
            part.requires_grad_(False)
    whole = source.data.batch(torch.arange(source.size)) if isinstance(source.data, DataSet) else source.data
    if source.device is not None:
        whole = whole.to(source.device)
    at_once = max(1, (chunk or _CHUNK) // particles)
    objective = ELBO(particles=particles)
    x = whole.x
    assert x is not None
    numbered = whole._replace(rows=torch.arange(whole.size, device=x.device))
    if callable(getattr(guide, "renew", None)):  # parameters for each datum, and no encoder
        size: Any = guide.size
        own = [p.requires_grad_(True) for p in guide.parameters() if p.dim() and p.shape[0] == int(size)]
        known = numbered if whole.rows is None else whole
        _maximize(objective, model, guide, known, own, updates, lr)
        for p in own:
            p.requires_grad_(False)
        yield LocalFit(model, guide, known, OWN)
        return
    with _Offsets(guide, whole.size) as offsets:
        for start, stop in spans(whole.size, at_once):
            own = offsets.leaves(start, stop)
            _maximize(objective, model, guide, numbered.take(slice(start, stop)), own, updates, lr)
            offsets.keep(start, stop)
        yield LocalFit(model, guide, numbered, f"biases of {len(offsets.tables)} affine layers")


def _maximize(
    objective: ELBO, model: nn.Module, guide: nn.Module, batch: Batch, own: list[Tensor], updates: int, lr: float
) -> None:
    optimizer = torch.optim.Adam(own, lr=lr)
    for k in range(updates):
        for group in optimizer.param_groups:
            group["lr"] = lr * 0.5 * (1.0 + math.cos(math.pi * k / updates))
        optimizer.zero_grad()
        with torch.enable_grad():
            # data do not share what is optimized: the gradient of the sum is each datum's own
            objective.differentiable_loss(model, guide, batch).backward()
        optimizer.step()


class _Offsets:
    """`Biases` of all data, by `batch.rows`. A context manager: its hooks are gone when it is left."""

    def __init__(self, guide: nn.Module, size: int) -> None:
        self.guide = guide
        self.biases = Biases(guide)
        like = self.biases.layers[0].weight
        self.tables = [like.new_zeros(size, layer.out_features) for layer in self.biases.layers]
        self.fitted: list[Tensor] = []
        self.offset = 0
        self.handles: list[Any] = []

    def __enter__(self) -> _Offsets:
        self.handles.append(self.guide.register_forward_pre_hook(self._look_up))
        self.biases.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self.biases.__exit__(*exception)
        for handle in self.handles:
            handle.remove()

    def leaves(self, start: int, stop: int) -> list[Tensor]:
        """What is optimized for some of the data, and used until `keep`."""
        self.offset = start
        self.fitted = [table[start:stop].clone().requires_grad_() for table in self.tables]
        return self.fitted

    def keep(self, start: int, stop: int) -> None:
        """Write it into the tables."""
        for table, leaf in zip(self.tables, self.fitted, strict=True):
            table[start:stop] = leaf.detach()
        self.fitted = []

    def _look_up(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        rows = args[0].rows
        self.biases.values = (
            [leaf[rows - self.offset] for leaf in self.fitted]
            if self.fitted
            else [table[rows] for table in self.tables]
        )
