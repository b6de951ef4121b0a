"""Batches: sizes, moving, taking rows, and being a pytree."""

import pytest
import torch

from ppl_vae import Batch


def full() -> Batch:
    return Batch(
        x=torch.arange(12.0).reshape(4, 3),
        y=torch.tensor([0, 1, -1, 2]),
        context=torch.randn(4, 2),
        visible=torch.ones(4, 3, dtype=torch.bool),
        observed=torch.ones(4, 3, dtype=torch.bool),
        rows=torch.tensor([7, 5, 3, 1]),
    )


@pytest.mark.parametrize("name", [name for name in Batch._fields if name != "n"])
def test_the_size_is_that_of_any_tensor(name: str) -> None:
    assert Batch(**{name: getattr(full(), name)}).size == 4


def test_the_size_is_n_where_no_tensor_says_it() -> None:
    assert Batch(n=6).size == 6
    with pytest.raises(ValueError, match="no size"):
        _ = Batch().size


def test_a_tensor_says_the_size_before_n_does() -> None:
    assert full()._replace(n=100).size == 4


@pytest.mark.parametrize("rows", [torch.tensor([2, 0]), slice(1, 3)])
def test_taking_rows_takes_them_of_every_field(rows: torch.Tensor | slice) -> None:
    taken = full()._replace(n=4).take(rows)
    assert taken.n is None
    assert taken.size == 2
    for ours, whole in zip(taken[:6], full()[:6], strict=True):
        if ours is not None and ours.dtype != torch.float32:
            assert torch.equal(ours, whole[rows])
    assert torch.equal(taken.x, full().x[rows])
    assert Batch(x=full().x).take(rows).y is None


def test_moving_keeps_what_is_no_tensor() -> None:
    moved = full()._replace(n=4).to("meta")
    assert {tensor.device.type for tensor in moved[:6]} == {"meta"}
    assert moved.n == 4
    assert Batch(n=3).to("meta") == Batch(n=3)


def test_a_batch_is_a_pytree() -> None:
    leaves, structure = torch.utils._pytree.tree_flatten(Batch(x=torch.ones(2), y=None, n=3))
    again = torch.utils._pytree.tree_unflatten(leaves, structure)
    assert isinstance(again, Batch)
    assert again.n == 3
    doubled = torch.utils._pytree.tree_map_only(torch.Tensor, lambda t: 2 * t, full())
    assert torch.equal(doubled.x, 2 * full().x)


def test_no_field_hides_a_method_of_tuples() -> None:
    assert not set(Batch._fields) & {"index", "count"}
    assert full()._replace(x=None).index(None) == 0
