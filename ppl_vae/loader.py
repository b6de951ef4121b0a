"""Minibatches in an order that is a function of (seed, epoch, step), so that a resumed run needs no state for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from .batch import Batch
from .data import DataSet
from .errors import InputError

__all__ = ["BatchData", "Data", "Loader", "as_data"]


class Data(Protocol):
    """What `fit` and the evaluation read: a `DataSet`, or a `Batch` held as one."""

    @property
    def description(self) -> str: ...
    @property
    def nbytes(self) -> int: ...
    def __len__(self) -> int: ...
    def batch(self, rows: Tensor | None = None) -> Batch: ...
    def take(self, rows: Tensor) -> Data: ...
    def to(self, device: torch.device | str) -> Data: ...
    def fixed(self) -> Data: ...


class BatchData:
    """A `Batch` as data, masks and all, for what a `DataSet` cannot say."""

    def __init__(self, whole: Batch, description: str = "a batch") -> None:
        self.whole = whole
        self.description = description

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.whole if isinstance(t, Tensor))

    def __len__(self) -> int:
        return self.whole.size

    def batch(self, rows: Tensor | None = None) -> Batch:
        if rows is None:
            device = next(t.device for t in self.whole if isinstance(t, Tensor))
            known = self.whole.rows
            return self.whole._replace(rows=torch.arange(len(self), device=device) if known is None else known)
        taken = self.whole.take(rows)
        return taken if self.whole.rows is not None else taken._replace(rows=rows)

    def take(self, rows: Tensor) -> BatchData:
        return BatchData(self.whole.take(rows), self.description)

    def to(self, device: torch.device | str) -> BatchData:
        return BatchData(self.whole.to(device), self.description)

    def fixed(self) -> BatchData:
        return self


def as_data(data: DataSet | Batch | Tensor | Data, argument: str = "data") -> Data:
    """Any of what a person may hold, as data.

    Raises:
        InputError: another type; a floating-point tensor or batch with NaN or Inf, at the first place.
    """
    if isinstance(data, Tensor):
        data = Batch(x=data)
    if isinstance(data, Batch):
        if data.size == 0:
            raise InputError(f"{argument} is empty; at least two data are needed")
        for name, tensor in zip(data._fields, data, strict=True):
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                place = [int(i) for i in (~torch.isfinite(tensor)).nonzero()[0]]
                raise InputError(
                    f"{argument}.{name}{place} is {tensor[tuple(place)].item()}; put 0 where a value is missing, and "
                    "say so by `observed`"
                )
        return BatchData(data, f"{argument}, {data.size} given as tensors")
    if not hasattr(data, "batch"):
        raise InputError(
            f"{argument} is a {type(data).__name__}; give a DataSet (ppl_vae.data.load), a Batch or a tensor"
        )
    return data


class Loader:
    """Minibatches of one process among `world`.

    A batch of `batch_size` data is split evenly over the processes, so that their gradients' average is that of the
    joined batch. The last partial batch of an epoch is left out: shapes stay fixed, and the next epoch's order
    brings its data back.

    Args:
        data: all of it.
        batch_size: B, over all processes.
        seed: of the order.
        device: where batches go.
        rank, world: this process's number, and how many there are.
        stream: False keeps the data on `device`; True leaves them where they are and copies batch by batch, by a
            `DataLoader`.
        workers: of that `DataLoader`.
    """

    def __init__(
        self,
        data: Data,
        batch_size: int,
        seed: int,
        device: torch.device,
        rank: int = 0,
        world: int = 1,
        stream: bool = False,
        workers: int = 0,
    ) -> None:
        self.size = len(data)
        self.batch_size = batch_size
        self.seed = seed
        self.device = device
        self.rank, self.world = rank, world
        self.stream = stream
        self.workers = workers
        self.data = data if stream else data.to(device)
        self.steps = self.size // batch_size

    def order(self, epoch: int) -> Tensor:
        """The data's order in an epoch, (N,), on the CPU."""
        generator = torch.Generator().manual_seed(_mix(self.seed, epoch))
        return torch.randperm(self.size, generator=generator)

    def rows(self, epoch: int, step: int) -> Tensor:
        """The data set's rows in a step's whole batch, (B,), on the CPU."""
        return self.order(epoch)[step * self.batch_size : (step + 1) * self.batch_size]

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """This process's batches of an epoch, from step `start` on."""
        steps = self.order(epoch)[: self.steps * self.batch_size].view(self.steps, self.batch_size)
        share = self.batch_size // self.world
        mine = steps[start:, self.rank * share : (self.rank + 1) * share]
        if self.stream:
            yield from self._streamed(mine)
            return
        for rows in mine.to(self.device):
            yield self.data.batch(rows)

    def _streamed(self, steps: Tensor) -> Iterator[Batch]:
        # what is loaded is stored values: binarization and noise are drawn here, on the device, by its own generator
        loader: DataLoader[tuple[Tensor, Data]] = DataLoader(
            _Rows(self.data, steps),  # type: ignore[arg-type]
            batch_size=None,
            shuffle=False,
            num_workers=self.workers,
            pin_memory=False,
        )
        for rows, part in loader:
            yield part.to(self.device).batch()._replace(rows=rows.to(self.device))


class _Rows:
    """The steps of an epoch as a data set of their own, for a DataLoader."""

    def __init__(self, data: Data, steps: Tensor) -> None:
        self.data, self.steps = data, steps

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, step: int) -> tuple[Tensor, Data]:
        if step >= len(self.steps):
            raise IndexError(step)
        return self.steps[step], self.data.take(self.steps[step])


def _mix(seed: int, epoch: int) -> int:
    """A seed for each (seed, epoch), so that seed 0's epoch 1 is not seed 1's epoch 0 (splitmix64)."""
    z = (seed * 0x9E3779B97F4A7C15 + (epoch + 1) * 0xBF58476D1CE4E5B9) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return (z ^ (z >> 31)) % 2**63
