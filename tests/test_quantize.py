"""The codebook: nearest entries, running averages, restarts; by brute force, by hand, and as another library has it."""

import math

import pytest
import torch
from torch import Tensor

from ppl_vae.errors import InputError
from ppl_vae.quantize import Certain, Codebook, perplexity, straight_through


def started(entries: int, size: int, average: bool = True) -> Codebook:
    """A codebook that is not to be put at the next batch."""
    book = Codebook(entries, size, average).double()
    book.started.fill_(True)
    return book


@pytest.mark.parametrize("left", [(), (7,), (2, 3, 4)])
def test_the_nearest_entry_by_brute_force(left: tuple[int, ...]) -> None:
    book, z = Codebook(11, 3).double(), torch.randn(*left, 3, dtype=torch.float64)
    codes = book.nearest(z)
    assert codes.shape == left
    for code, each in zip(codes.reshape(-1), z.reshape(-1, 3), strict=True):
        away = [math.dist(each.tolist(), entry.tolist()) for entry in book.vectors]
        assert int(code) == away.index(min(away))
    assert torch.equal(book(codes), book.vectors[codes])


def test_of_equal_entries_the_first_is_nearest() -> None:
    book = Codebook(4, 2)
    book.vectors.copy_(torch.tensor([[9.0, 9.0], [1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]]))
    assert book.nearest(torch.tensor([[0.9, 0.0], [0.0, 0.5]])).tolist() == [1, 1]


def test_two_updates_by_hand() -> None:
    book = started(2, 1)
    book.vectors.copy_(torch.tensor([[0.0], [4.0]]))
    book.total.copy_(book.vectors)
    z = torch.tensor([[1.0], [1.0], [5.0]], dtype=torch.float64)
    codes = book.nearest(z)
    assert codes.tolist() == [0, 0, 1]
    book.update(z, codes, decay=0.5, restart=0.0)
    # counts 0.5 * 1 + 0.5 * (2, 1); sums 0.5 * (0, 4) + 0.5 * (2, 5)
    assert torch.allclose(book.count, torch.tensor([1.5, 1.0], dtype=torch.float64))
    assert torch.allclose(book.total, torch.tensor([[1.0], [4.5]], dtype=torch.float64))
    # divided by counts that 1e-5 makes equal by as much: (N + 1e-5) / (2.5 + 2e-5) * 2.5
    of = [(n + 1e-5) / (2.5 + 2e-5) * 2.5 for n in (1.5, 1.0)]
    assert torch.allclose(book.vectors, torch.tensor([[1.0 / of[0]], [4.5 / of[1]]], dtype=torch.float64), rtol=1e-12)
    book.update(z[:2], torch.tensor([0, 0]), decay=0.5, restart=0.0)
    assert torch.allclose(book.count, torch.tensor([1.75, 0.5], dtype=torch.float64))
    assert torch.allclose(book.total, torch.tensor([[1.5], [2.25]], dtype=torch.float64))


def test_the_first_update_puts_all_entries_at_vectors_of_the_batch() -> None:
    for average in (True, False):
        book, z = Codebook(5, 2, average), torch.randn(20, 2)
        book.update(z, book.nearest(z), restart=0.0)
        rows = [int((z == entry).all(1).nonzero()) for entry in book.vectors]
        assert len(set(rows)) == 5  # no two at one vector
        assert torch.equal(book.count, torch.full((5,), 20 / 5))
        before = book.vectors.clone()
        book.update(z, book.nearest(z), restart=0.0)
        assert torch.equal(book.vectors, before) != average


def test_dead_entries_restart_at_vectors_of_the_batch() -> None:
    book = started(4, 2)
    book.count.copy_(torch.tensor([8.0, 0.3, 0.9, 8.0]))
    book.total.copy_(book.count.unsqueeze(1) * book.vectors)
    z = torch.randn(16, 2, dtype=torch.float64)
    codes = torch.tensor([0] * 8 + [2] * 8)
    kept = book.vectors.clone()
    book.update(z, codes, decay=0.9, restart=0.25)
    # an even share is 4, a quarter of it 1; counts are 0.9 * before + 0.1 * (8, 0, 8, 0) = (8, 0.27, 1.61, 7.2)
    expected = torch.tensor([8.0, 4.0, 1.61, 7.2], dtype=torch.float64)
    assert torch.allclose(book.count, expected)
    assert int((z == book.vectors[1]).all(1).sum()) == 1
    assert torch.allclose(book.total[1], 4.0 * book.vectors[1])
    assert not bool((book.vectors[[0, 2, 3]].unsqueeze(1) == z).all(-1).any())
    assert torch.allclose(book.vectors[3], kept[3], rtol=1e-4)  # nothing fell to it: it stays where it is


def test_fewer_vectors_than_entries_are_taken_more_than_once() -> None:
    book, z = Codebook(5, 2), torch.randn(2, 2)
    book.update(z, book.nearest(z))
    counts = [int((book.vectors == each).all(1).sum()) for each in z]
    assert sorted(counts) == [2, 3]


@pytest.mark.parametrize(
    ("count", "used"), [([3.0, 3.0, 3.0, 3.0], 4.0), ([7.0, 0.0, 0.0], 1.0), ([2.0, 1.0, 1.0], 2.0**1.5)]
)
def test_perplexity_of_known_counts(count: list[float], used: float) -> None:
    # of shares (1/2, 1/4, 1/4) the entropy is 1.5 bits
    assert perplexity(torch.tensor(count)).item() == pytest.approx(used, rel=1e-6)


def test_the_gradient_goes_straight_through_and_the_value_is_exact() -> None:
    z, e = torch.randn(50, 3, requires_grad=True), torch.randn(50, 3) * 1e-3
    out = straight_through(z, e)
    assert torch.equal(out, e)  # z + (e - z) is not
    weight = torch.randn(50, 3)
    (out * weight).sum().backward()
    assert z.grad is not None
    assert torch.equal(z.grad, weight)


def test_the_certain_distribution() -> None:
    value = torch.tensor([[[0, 1]], [[2, 3]]])
    q = Certain(value, 2, torch.float64)
    assert (q.batch_shape, q.event_shape) == ((2,), (1, 2))
    other = value.clone()
    other[1, 0, 1] = 0
    assert q.log_prob(value).tolist() == [0.0, 0.0]
    assert q.log_prob(other).tolist() == [0.0, -math.inf]
    assert q.log_prob(value).dtype == torch.float64
    assert torch.equal(q.expand([4, 2]).sample(), value.expand(4, 2, 1, 2))
    assert torch.equal(q.entropy(), torch.zeros(2, dtype=torch.float64))
    assert not q.has_rsample


def test_a_codebook_of_one_entry_is_refused() -> None:
    with pytest.raises(InputError, match="codebook=1 must be a whole number, 2 or more"):
        Codebook(1, 3)
    with pytest.raises(InputError, match="size=0"):
        Codebook(4, 0)


def test_updates_equal_those_of_vector_quantize_pytorch() -> None:
    """Codes, commitment and entries after ten updates, on equal inputs. (Restarts are left out: they are drawn.)"""
    theirs = pytest.importorskip("vector_quantize_pytorch").VectorQuantize(
        dim=3, codebook_size=6, decay=0.8, threshold_ema_dead_code=0, commitment_weight=0.25
    )
    book = started(6, 3).float()
    inner = theirs._codebook
    book.vectors.copy_(inner.embed[0])
    book.count.copy_(inner.cluster_size[0])
    book.total.copy_(inner.embed_avg[0])
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        z = torch.randn(4, 5, 3, generator=generator)
        quantized, codes, loss = theirs(z)
        ours = book.nearest(z)
        assert torch.equal(ours, codes)
        assert torch.allclose(book(ours), quantized, atol=1e-6)
        # theirs is the mean over all numbers, with its weight
        commitment: Tensor = (z - book(ours)).square().mean()
        assert loss.item() == pytest.approx(0.25 * commitment.item(), rel=1e-5)
        book.update(z, ours, decay=0.8, restart=0.0)
        assert torch.allclose(book.vectors, inner.embed[0], atol=1e-5)
        assert torch.allclose(book.count, inner.cluster_size[0], atol=1e-5)
