"""Markov chains that go on from step to step, one or more for each datum of a data set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..batch import Batch
from ..core import LatentModel, LatentSpec
from ..errors import InputError
from .base import datum_latents

__all__ = ["Chains"]


class Chains(nn.Module):
    """Where the chains of all N data are, in buffers that are saved with the objective.

    Args:
        model: whose latent sites they are of; only its `latents` are read, and may be given alone.
        size: N; `batch.rows` are from 0 to N - 1.
        chains: C, for each datum.
        what: whose they are, for messages.

    Attributes:
        started: (N,) bool, whether a datum was ever seen.

    Raises:
        InputError: a size that is none; a latent site shared by all data; something without declared latents.
    """

    started: Tensor

    def __init__(self, model: LatentModel | Mapping[str, LatentSpec], size: int, chains: int, what: str) -> None:
        super().__init__()
        latents = datum_latents(
            model, f"{what} keeps a chain of them for each datum", f"{what} keeps a chain for each datum"
        )
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise InputError(f"size={size!r} must be the number of training data, 1 or more")
        self.shapes = {name: spec.event_shape for name, spec in latents.items()}
        self.size = size
        self.what = what
        for name, spec in latents.items():
            self.register_buffer(f"at_{name}", torch.zeros(size, chains, *spec.event_shape))
        self.register_buffer("started", torch.zeros(size, dtype=torch.bool))

    def rows(self, args: tuple[Any, ...], check: bool = False) -> Tensor:
        """The rows of the batch among a program's arguments, (N,).

        Args:
            check: look at their values, too; not while a step is traced.

        Raises:
            InputError: there is no batch, it has no rows, or rows of other data; several processes.
        """
        batch = next((arg for arg in args if isinstance(arg, Batch)), None)
        if batch is None or batch.rows is None:
            raise InputError(
                f"{self.what} keeps a chain for each datum, by batch.rows, and got no Batch with rows; use fit, or "
                "give Batch(x=..., rows=torch.arange(N))"
            )
        if check and bool(((batch.rows < 0) | (batch.rows >= self.size)).any()):
            raise InputError(
                f"batch.rows run from {int(batch.rows.min())} to {int(batch.rows.max())}, and {self.what} was made "
                f"with size={self.size}: give the number of training data"
            )
        if check and _processes() > 1:
            raise InputError(f"{self.what} keeps its chains in one process: train with devices=1")
        return batch.rows

    def expect(self, shapes: Mapping[str, torch.Size]) -> None:
        """Raise `InputError` unless these are the latents that the chains were made for, with their event shapes."""
        if set(shapes) != set(self.shapes):
            raise InputError(
                f"{self.what} was made for the latents {sorted(self.shapes)}, and this model has {sorted(shapes)}"
            )
        for name, shape in shapes.items():
            if tuple(shape) != tuple(self.shapes[name]):
                raise InputError(
                    f"{self.what} has chains of {name!r} with events {tuple(self.shapes[name])}, and this model's are "
                    f"{tuple(shape)}"
                )

    def read(self, rows: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Where the chains of these rows are: values (C, N, \\*event) by site, and whether they were started, (N,)."""
        values = {name: getattr(self, f"at_{name}").index_select(0, rows).transpose(0, 1) for name in self.shapes}
        return values, self.started.index_select(0, rows)

    def write(self, rows: Tensor, values: Mapping[str, Tensor]) -> None:
        """Move them to values (C, N, \\*event), in place: another tensor would be lost to a compiled step."""
        with torch.no_grad():
            for name in self.shapes:
                buffer = getattr(self, f"at_{name}")
                buffer.index_copy_(0, rows, values[name].detach().transpose(0, 1).to(buffer.dtype))
            self.started.index_fill_(0, rows, True)

    def extra_repr(self) -> str:
        return f"size={self.size}, sites={list(self.shapes)}"


def _processes() -> int:
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
