"""Minibatches: an order that is a permutation and a function of the seed, the same batches streamed or not, and what is
refused as data."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from ppl_vae import Batch, InputError
from ppl_vae.data import DataSet
from ppl_vae.loader import BatchData, Data, Loader, as_data, fingerprint, mix

CPU = torch.device("cpu")


def images(n: int = 23) -> DataSet:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 17, (n, 1, 3, 3), generator=generator).to(torch.uint8)
    return DataSet.from_arrays(x, torch.arange(n) % 3, levels=17, binarize="dynamic", name="small")


def batch(n: int = 23) -> Batch:
    x = torch.arange(n * 2.0).reshape(n, 2)
    observed = (x > 3) | (torch.arange(x.shape[-1]) == 0)  # something of each datum
    return Batch(x=x * observed, y=torch.arange(n), observed=observed, rows=torch.arange(n) + 100)


@pytest.fixture(params=["data set", "batch", "tensor"])
def data(request: pytest.FixtureRequest) -> Data:
    whole: dict[str, Callable[[], DataSet | Batch | Tensor]] = {
        "data set": images,
        "batch": batch,
        "tensor": lambda: torch.arange(23.0).reshape(23, 1),
    }
    return as_data(whole[request.param]())


def rows_of(batches: list[Batch]) -> Tensor:
    return torch.cat([b.rows for b in batches if b.rows is not None])


def test_an_epoch_is_a_permutation_without_its_last_partial_batch(data: Data) -> None:
    loader = Loader(data, 5, 0, CPU)
    assert loader.steps == 4
    first = 100 if isinstance(data, BatchData) and data.whole.y is not None else 0
    for epoch in range(3):
        batches = list(loader.epoch(epoch))
        assert [b.size for b in batches] == [5, 5, 5, 5]
        rows = rows_of(batches)
        assert len(set(rows.tolist())) == 20
        assert torch.equal(rows - first, torch.cat([loader.rows(epoch, step) for step in range(4)]))
        assert torch.equal(rows - first, loader.order(epoch)[:20])
        assert sorted(loader.order(epoch).tolist()) == list(range(23))
    seen = set(rows_of([b for epoch in range(12) for b in loader.epoch(epoch)]).tolist())
    assert len(seen) == 23


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    data = as_data(batch())
    orders = {}
    for seed in (0, 1, 2):
        for epoch in range(4):
            orders[seed, epoch] = tuple(Loader(data, 5, seed, CPU).order(epoch).tolist())
            torch.rand(3)
            assert orders[seed, epoch] == tuple(Loader(data, 4, seed, CPU).order(epoch).tolist())
    assert len(set(orders.values())) == len(orders)
    assert len({mix(seed, stream) for seed in range(100) for stream in range(100)}) == 10_000
    assert mix(2**64 - 1, 10**9) >= 0


@pytest.mark.parametrize("start", [0, 1, 3, 4])
def test_an_epoch_can_be_entered_at_any_step(data: Data, start: int) -> None:
    loader = Loader(data, 5, 0, CPU)
    whole = [b.rows for b in loader.epoch(1)]
    assert [b.rows.tolist() for b in loader.epoch(1, start) if b.rows is not None] == [
        r.tolist() for r in whole[start:] if r is not None
    ]


@pytest.mark.parametrize("start", [0, 2])
def test_streamed_batches_are_those_kept_on_the_device_bit_for_bit(data: Data, start: int) -> None:
    """Binarization is drawn from the same stream of random numbers, which is left at the same place."""
    runs = []
    for stream in (False, True):
        torch.manual_seed(7)
        loader = Loader(data, 5, 3, CPU, stream=stream)
        runs.append(([b for epoch in (0, 1) for b in loader.epoch(epoch, start)], torch.rand(5)))
    (kept, noise), (streamed, other_noise) = runs
    assert torch.equal(noise, other_noise)
    assert len(kept) == len(streamed) == 2 * (4 - start)
    for one, other in zip(kept, streamed, strict=True):
        for name, tensor in one._asdict().items():
            again = getattr(other, name)
            assert (tensor is None) == (again is None), name
            if isinstance(tensor, Tensor):
                assert tensor.dtype == again.dtype
                assert torch.equal(tensor, again), name


@pytest.mark.parametrize("stream", [False, True])
def test_processes_share_each_batch_evenly(data: Data, stream: bool) -> None:
    joined = list(Loader(data, 6, 0, CPU).epoch(0))
    shares = [list(Loader(data, 6, 0, CPU, rank, 3, stream).epoch(0)) for rank in range(3)]
    for step, whole in enumerate(joined):
        parts = [share[step] for share in shares]
        assert [p.size for p in parts] == [2, 2, 2]
        assert torch.equal(rows_of(parts), rows_of([whole]))


def test_a_batch_as_data_keeps_everything() -> None:
    whole = batch()
    data = BatchData(whole, "mine")
    assert len(data) == 23
    assert data.nbytes == sum(t.numel() * t.element_size() for t in whole if isinstance(t, Tensor))
    assert data.fixed() is data
    part = data.take(torch.tensor([3, 1]))
    assert part.description == "mine"
    taken = part.batch()
    for name, tensor in whole._asdict().items():
        if isinstance(tensor, Tensor):
            assert torch.equal(getattr(taken, name), tensor[[3, 1]])
    assert torch.equal(data.batch(torch.tensor([4])).x, whole.x[4:5])  # type: ignore[index,arg-type]
    nameless = BatchData(Batch(y=torch.arange(4)))
    assert torch.equal(nameless.take(torch.tensor([2, 0])).batch().rows, torch.tensor([2, 0]))  # type: ignore[arg-type]


def test_what_a_tensor_becomes() -> None:
    x = torch.tensor([[0, 1], [2, 3]])
    assert as_data(x).batch().x.dtype == torch.int64  # type: ignore[union-attr]
    found = as_data(x, "data", torch.float64).batch()
    assert found.x is not None
    assert found.x.dtype == torch.float64
    assert found.x.tolist() == x.tolist()
    assert as_data(x > 0, "data", torch.float32).batch().x.tolist() == [[0.0, 1.0], [1.0, 1.0]]  # type: ignore[union-attr]
    labels = as_data(Batch(x=x, y=torch.tensor([1, 0], dtype=torch.uint8)), "data", torch.float32).batch().y
    assert labels is not None
    assert labels.dtype == torch.int64
    needs = torch.zeros(2, 1, requires_grad=True) * 2
    assert not as_data(needs).batch().x.requires_grad  # type: ignore[union-attr]


nan, inf = float("nan"), float("inf")
X = torch.zeros(3, 2)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (torch.tensor([[0.0, 1.0], [nan, 0.0]]), r"data\.x\[1, 0\] is nan; put 0 where a value is missing"),
        (torch.tensor([[0.0, inf]]), r"data\.x\[0, 1\] is inf"),
        (Batch(x=X, context=torch.tensor([[0.0], [-inf], [0.0]])), r"data\.context\[1, 0\] is -inf"),
        (Batch(x=X, y=torch.zeros(3)), r"data\.y is torch\.float32 \(3,\); give whole numbers.*-1 where a label is"),
        (Batch(x=X, y=torch.zeros(3, dtype=torch.bool)), r"data\.y is torch\.bool"),
        (Batch(x=X, y=torch.zeros(3, 4, dtype=torch.int64)), r"data\.y is torch\.int64 \(3, 4\)"),
        (Batch(x=X, y=torch.zeros(2, dtype=torch.int64)), r"data\.y has 2 rows where there are 3 data"),
        (Batch(x=X, rows=torch.zeros(3)), r"data\.rows is torch\.float32"),
        (Batch(x=X, observed=X), r"data\.observed has dtype torch\.float32; a mask is torch\.bool"),
        (Batch(x=X, visible=torch.ones(2, 2, dtype=torch.bool)), r"data\.visible has 2 rows"),
        (torch.zeros(3, 2, dtype=torch.complex64), r"data\.x is torch\.complex64"),
        (torch.zeros(3, 2).to_sparse(), r"data\.x is torch\.float32 \(3, 2\); give a dense tensor"),
        (torch.zeros(()), r"data\.x is torch\.float32 \(\)"),
        (Batch(x=np.zeros((3, 2))), r"data\.x is ndarray; give a dense tensor"),  # type: ignore[arg-type]
        (Batch(n=3), r"data is a Batch without tensors"),
        ([[0.0]], r"data is a list; give a DataSet"),
        (np.zeros((3, 2)), r"data is a ndarray; give a DataSet .*, a Batch or a tensor"),
        (None, r"data is a NoneType"),
    ],
)
def test_what_cannot_be_data_is_refused(value: object, says: str) -> None:
    with pytest.raises(InputError, match=says):
        as_data(value)  # type: ignore[arg-type]


def test_a_fingerprint_tells_data_apart(data: Data) -> None:
    state = torch.get_rng_state()
    assert fingerprint(data) == fingerprint(data)
    assert torch.equal(torch.get_rng_state(), state)
    whole = batch(1000)
    assert whole.x is not None
    other = whole._replace(x=whole.x.clone())
    assert other.x is not None
    other.x[-1] += 1
    assert fingerprint(as_data(whole)) != fingerprint(as_data(other))
    assert fingerprint(as_data(whole)) != fingerprint(as_data(whole._replace(y=whole.rows)))
