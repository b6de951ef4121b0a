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
from ..core import Encoder
from ..data import DataSet
from ..errors import InputError
from ..evaluate.chunked import Source, spans
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
    δ_n = 0, the encoder's answer. A Gaussian's or a mixture's head is one such layer: its numbers are then free, and q
    is any member of the family. So are the parameters of planar, radial, Householder and Sylvester flows. Of networks
    that take other latents, as in inverse autoregressive and spline flows and in guides of layers, biases are each
    datum's own and weights stay shared. A guide with parameters for each datum has these optimized further.

    Args:
        model, guide: are copied, and stay as they are.
        source: the data.
        updates, particles, lr: Adam's steps, draws in each, learning rate, which falls to 0 by a cosine.
        chunk: pairs of a particle and a datum at once.

    Raises:
        InputError: a guide in which nothing can be made a datum's own.
    """
    # together: a guide that runs the model runs the copy
    model, guide = copy.deepcopy((model, guide))
    for part in (model, guide):
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
    """Adds numbers of each datum's own to what affine layers of a guide return, by `batch.rows`. A context manager: its
    hooks are gone when it is left."""

    def __init__(self, guide: nn.Module, size: int) -> None:
        self.guide = guide
        self.layers = list(_affine(guide))
        if not self.layers:
            raise InputError(
                f"{type(guide).__name__} has no affine layer (nn.Linear) outside of its encoders, nor parameters for "
                "each datum: there is no place where a q of each datum's own could be put in; give a guide made of "
                "networks.Head or nn.Linear, or Local"
            )
        like = self.layers[0].weight
        self.tables = [like.new_zeros(size, layer.out_features) for layer in self.layers]
        self.fitted: list[Tensor] = []
        self.rows: Tensor | None = None
        self.offset = 0
        self.handles: list[Any] = []

    def __enter__(self) -> _Offsets:
        self.handles.append(self.guide.register_forward_pre_hook(self._note))
        for k, layer in enumerate(self.layers):
            self.handles.append(layer.register_forward_hook(self._adder(k)))
        return self

    def __exit__(self, *exception: object) -> None:
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

    def _note(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.rows = args[0].rows

    def _adder(self, k: int) -> Any:
        def add(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
            assert self.rows is not None
            table = self.fitted[k][self.rows - self.offset] if self.fitted else self.tables[k][self.rows]
            if out.dim() < 2 or out.shape[-2] not in (1, len(table)):
                raise InputError(
                    f"an affine layer of {type(self.guide).__name__} returns {tuple(out.shape)}, without the "
                    f"{len(table)} data in the dimension before the last: there is no place for a datum's own numbers"
                )
            return out + table

        return add


def _affine(guide: nn.Module) -> Iterator[nn.Linear]:
    """The affine layers outside of encoders, each once."""
    if isinstance(guide, nn.Linear):
        yield guide
    for child in guide.children():
        if not isinstance(child, Encoder):
            yield from _affine(child)
