"""Work through data and particles in pieces of bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..batch import Batch
from ..data import DataSet
from ..errors import InputError
from ..inputs import check_batch, check_given
from ..isolation import cuda_in, device_of, evaluation, tensors_in
from ..likelihoods import Likelihood
from ..weights import Program, check_pair

__all__ = ["Chunk", "Data", "Source", "chunk_for", "device_of", "evaluation", "spans"]

Data: TypeAlias = DataSet | Batch | Tensor
"""What is evaluated: a data set, a batch, or x alone."""

Work: TypeAlias = Callable[[Batch, int], object]
"""What is done with a batch and a number of particles."""

BUDGET = {"cpu": 16 << 20, "cuda": 512 << 20}
"""Bytes that one piece of work may take, beside the data, the parameters and the results, by device.

On a CPU pieces that fit its caches are as fast as larger ones, and the C heap stays whole: from tensors of tens of
megabytes it takes ever new memory."""

_CHECKED = 16


class Chunk(NamedTuple):
    """Data and particles taken at once."""

    rows: int
    particles: int


class Source:
    """Data that can be asked for some of its rows, checked and on the programs' device.

    Dynamic binarization is drawn once (`DataSet.fixed`), so that every number is of the same, stated data.

    Args:
        data: a data set, a batch with x, or x (N, \\*D).
        model, guide: whose device the batches go to, or the model's alone; a model with a `likelihood` has x checked
            against its support.

    Raises:
        InputError: there is no x, x has a value outside of the support (NaN is outside of every one), labels,
            contexts or masks are none of the pair's (`check_batch`); a guide with parameters for each datum of another
            data set.
    """

    def __init__(self, data: Data, model: Program, guide: Program | None) -> None:
        if isinstance(data, Tensor):
            data = Batch(x=data)
        self.data: DataSet | Batch
        if isinstance(data, Batch):
            if data.x is None or data.x.dim() < 1 or data.x.shape[0] < 1:
                raise InputError(f"data={_brief(data)} holds no data; give x of one datum or more, (N, *D)")
            check_batch(data, model, guide, argument="data")
            self.data = data
            self.size = data.size
            self.description = f"a batch of {self.size}"
        elif isinstance(data, DataSet):
            check_given(Batch(y=data.y, context=data.context, n=len(data)), model, guide, argument="data")
            self.data = data.fixed()
            self.size = len(data)
            self.description = self.data.description
        else:
            raise InputError(f"data is a {type(data).__name__}; give a DataSet, a Batch or a tensor x of shape (N, *D)")
        _refuse_others(guide, data)
        likelihood = getattr(model, "likelihood", None)
        self.likelihood = likelihood if isinstance(likelihood, Likelihood) else None
        self.device = device_of(model, guide)

    def batch(self, start: int, stop: int) -> Batch:
        """The batch of rows start to stop - 1."""
        if isinstance(self.data, DataSet):
            batch = self.data.batch(torch.arange(start, stop))
        else:
            batch = self.data.take(slice(start, stop))
        x = batch.x
        assert x is not None
        if self.likelihood is not None:
            self.likelihood.check(x, f"x from row {start}" if start else "x")
        elif x.is_floating_point() and not bool(x.isfinite().all()):
            place = (~x.isfinite()).nonzero()[0].tolist()
            raise InputError(f"x{[place[0] + start, *place[1:]]} is {x[tuple(place)].item()}; x must be finite")
        return batch if self.device is None else batch.to(self.device)

    @property
    def rows(self) -> Tensor:
        """(N,) the data's row numbers, on the CPU: a batch's own, or places from 0."""
        if isinstance(self.data, Batch) and self.data.rows is not None:
            return self.data.rows.cpu()
        return torch.arange(self.size)

    @property
    def discrete(self) -> bool:
        """Whether nothing says that the data are continuous."""
        return not isinstance(self.data, DataSet) or self.data.discrete

    def check(self, model: Program, guide: Program, density: bool = False) -> None:
        """`check_pair` on a few rows."""
        check_pair(model, guide, self.batch(0, min(self.size, _CHECKED)), unscaled=True, density=density)


def _refuse_others(guide: Any, data: DataSet | Batch) -> None:
    """Raise `InputError` where a guide has parameters for each datum of another data set: it would take the rows of
    this one for its own."""
    size = getattr(guide, "size", None)
    if callable(getattr(guide, "renew", None)) and isinstance(data, DataSet) and size != len(data):
        raise InputError(
            f"{type(guide).__name__} has parameters for each of the {size} data it was made for, and "
            f"{data.description!r} has {len(data)}: fit fresh ones by ppl_vae.renewal.renewed(model, guide, data); "
            "some of its own data are given as a Batch with their rows, data.batch(rows)"
        )
    if callable(knows := getattr(guide, "knows", None)) and isinstance(data, DataSet):
        knows(data.fingerprint, data.description)


def _brief(batch: Batch) -> str:
    return f"Batch({', '.join(name for name, value in batch._asdict().items() if value is not None)})"


def chunk_for(work: Work, source: Source, particles: int, chunk: int | None) -> Chunk:
    """How many data and particles to take at once.

    Args:
        work: what is done with a batch and a number of particles.
        chunk: at most so many pairs of a particle and a datum (at least one is taken); None: as many as fit `BUDGET`,
            by counting every byte that `work` allocates for a few.
    """
    if chunk is not None:
        if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1:
            raise InputError(f"chunk={chunk!r} must be a whole number of particle-datum pairs, 1 or more, or None")
        at_once = min(particles, chunk)
        return Chunk(min(source.size, max(1, chunk // at_once)), at_once)
    budget = BUDGET.get("cpu" if source.device is None else source.device.type, BUDGET["cpu"])
    several = min(source.size, 9)
    with torch.random.fork_rng(devices=cuda_in(source.device)):
        one = _bytes(work, source.batch(0, 1), 1)
        per_particle = max(1.0, (_bytes(work, source.batch(0, 1), 9) - one) / 8)
        per_datum = per_particle
        if several > 1:
            per_datum = max(per_particle, (_bytes(work, source.batch(0, several), 1) - one) / (several - 1))
    # all particles of a datum first: its encoder then runs once
    at_once = min(particles, max(1, int((budget - per_datum) / per_particle) + 1))
    return Chunk(min(source.size, max(1, int(budget / (per_datum + per_particle * (at_once - 1))))), at_once)


def spans(total: int, size: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of consecutive pieces of at most `size`."""
    for start in range(0, total, size):
        yield start, min(start + size, total)


def _bytes(work: Work, batch: Batch, particles: int) -> int:
    """Bytes allocated from first to last: above what is ever held at once."""
    counter = _Allocations()
    with counter:
        work(batch, particles)
    return counter.total


class _Allocations(TorchDispatchMode):
    """Adds up the storage of every tensor made while it is on."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # to be skipped by torch's compiler takes its import, seconds long; nothing is compiled in here
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        given = {t.untyped_storage().data_ptr() for t in tensors_in(args, kwargs)}
        out = func(*args, **kwargs)
        for tensor in tensors_in(out):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in given:
                self.total += storage.nbytes()
        return out
