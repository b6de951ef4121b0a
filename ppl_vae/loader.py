"""Minibatches in an order that is a function of (seed, epoch, step), so that a resumed run needs no state for it."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from .batch import Batch
from .data import DataSet
from .errors import InputError
from .masks import check_masks

__all__ = ["BatchData", "Data", "Loader", "as_data", "fingerprint", "mix"]

_SAMPLED = 256


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
    """A `Batch` as data, masks and all, for what a `DataSet` cannot say. Where it has no `rows` of its own, a datum's
    row is its place in it."""

    def __init__(self, whole: Batch, description: str = "a batch") -> None:
        tensors: dict[str, Any] = {name: t for name, t in whole._asdict().items() if isinstance(t, Tensor)}
        tensors.setdefault("rows", torch.arange(whole.size, device=next(iter(tensors.values())).device))
        self.whole = Batch(**tensors)
        self.description = description
        self._tensors = tensors

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self._tensors.values())

    def __len__(self) -> int:
        return self.whole.size

    def batch(self, rows: Tensor | None = None) -> Batch:
        if rows is None:
            return self.whole
        rows = rows.to(self._tensors["rows"].device)
        # ten times faster than t[rows] for a small batch
        fields: dict[str, Any] = {name: t.index_select(0, rows) for name, t in self._tensors.items()}
        return Batch(**fields)

    def take(self, rows: Tensor) -> BatchData:
        return BatchData(self.batch(rows), self.description)

    def to(self, device: torch.device | str) -> BatchData:
        return BatchData(self.whole.to(device), self.description)

    def fixed(self) -> BatchData:
        return self


def as_data(
    data: DataSet | Batch | Tensor | Data, argument: str = "data", dtype: torch.dtype | None = None
) -> DataSet | BatchData | Data:
    """Any of what a person may hold, as data.

    Args:
        dtype: what x and context of a tensor or a batch are converted to, the parameters' own; None: as they are.

    Raises:
        InputError: another type; a batch without tensors, with fields of different lengths, NaN or infinity, or labels
            that are no whole numbers.
    """
    if isinstance(data, Tensor):
        data = Batch(x=data)
    if isinstance(data, Batch):
        data = _checked(data, argument, dtype)
        return BatchData(data, f"{argument}, {data.size} given as tensors")
    if not hasattr(data, "batch"):
        raise InputError(
            f"{argument} is a {type(data).__name__}; give a DataSet (ppl_vae.data.load), a Batch or a tensor"
        )
    return data


def _checked(batch: Batch, argument: str, dtype: torch.dtype | None) -> Batch:
    fields = {name: t for name, t in batch._asdict().items() if t is not None and name != "n"}
    if not fields:
        raise InputError(f"{argument} is a Batch without tensors: there is nothing to learn from; give x")
    for name, tensor in fields.items():
        if not isinstance(tensor, Tensor) or tensor.is_complex() or tensor.layout != torch.strided or tensor.dim() < 1:
            came = f"{tensor.dtype} {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise InputError(f"{argument}.{name} is {came}; give a dense tensor of real numbers, a row a datum")
        if len(tensor) != batch.size:
            raise InputError(f"{argument}.{name} has {len(tensor)} rows where there are {batch.size} data")
        if name in ("y", "rows"):
            if tensor.is_floating_point() or tensor.dtype == torch.bool or tensor.dim() != 1:
                raise InputError(
                    f"{argument}.{name} is {tensor.dtype} {tuple(tensor.shape)}; give whole numbers of an integer "
                    f"dtype, shape ({batch.size},)" + (", -1 where a label is missing" if name == "y" else "")
                )
            fields[name] = tensor.to(torch.int64)
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            place = [int(i) for i in (~torch.isfinite(tensor)).nonzero()[0]]
            raise InputError(
                f"{argument}.{name}{place} is {tensor[tuple(place)].item()}; put 0 where a value is missing, and "
                "say so by `observed`"
            )
        if name in ("x", "context") and dtype is not None:
            fields[name] = tensor.to(dtype)
    check_masks(batch, argument)
    return Batch(**{name: t.detach() for name, t in fields.items()})


def fingerprint(data: Data) -> int:
    """A checksum of some of the data, evenly spaced, so that a run is not resumed with others by mistake."""
    rows = torch.linspace(0, len(data) - 1, min(_SAMPLED, len(data)), dtype=torch.float64).long()
    total = 0
    for tensor in data.take(rows).fixed().batch():
        if isinstance(tensor, Tensor):
            total = zlib.crc32(tensor.cpu().contiguous().numpy().tobytes(), total)
    return total


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
            `DataLoader`. Batches are the same, bit for bit.
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
    ) -> None:
        self.size = len(data)
        self.batch_size = batch_size
        self.seed = seed
        self.device = device
        self.rank, self.world = rank, world
        self.stream = stream
        self.data = data if stream else data.to(device)
        self.steps = self.size // batch_size

    def order(self, epoch: int) -> Tensor:
        """The data's order in an epoch, (N,), on the CPU."""
        generator = torch.Generator().manual_seed(mix(self.seed, 2 * epoch))
        return torch.randperm(self.size, generator=generator)

    def rows(self, epoch: int, step: int) -> Tensor:
        """The data set's rows in a step's whole batch, of all processes, (B,), on the CPU."""
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
        # what is loaded is stored values: binarization and noise are drawn here, on the device, by its own generator.
        # The DataLoader gets a generator too: it would draw a seed from the default one, and change all noise after it
        loader: DataLoader[tuple[Tensor, Data]] = DataLoader(
            _Rows(self.data, steps),  # type: ignore[arg-type]
            batch_size=None,
            shuffle=False,
            generator=torch.Generator(),
        )
        for rows, part in loader:
            batch = part.to(self.device).batch()
            # a data set counts the rows of its parts anew
            yield batch._replace(rows=rows.to(self.device)) if isinstance(self.data, DataSet) else batch


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


def mix(seed: int, stream: int) -> int:
    """A seed for each (seed, stream), so that seed 0's stream 1 is not seed 1's stream 0 (splitmix64). Even streams are
    the epochs' orders, odd ones the processes' noise."""
    z = (seed * 0x9E3779B97F4A7C15 + (stream + 1) * 0xBF58476D1CE4E5B9) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return (z ^ (z >> 31)) % 2**63
