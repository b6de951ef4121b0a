"""Pareto k-hat against ArviZ, against weights whose tail is known, and where there is no tail."""

import math

import numpy as np
import pytest
import torch

from ppl_vae.errors import InputError
from ppl_vae.psis import khat_from_largest, pareto_khat, smooth_largest, tail_length


def arviz_khat(log_w: np.ndarray) -> np.ndarray:
    """ArviZ's k-hat of (S, N) log-weights: 0.23 takes log w, 1.x its negative."""
    import arviz as az

    with np.errstate(over="ignore"):  # in ArviZ's weights of a flat profile
        if hasattr(az, "psislw"):
            return np.asarray(az.psislw(log_w.T.copy())[1])
    from arviz_stats.base import array_stats

    return np.asarray([array_stats.psislw(-column)[1] for column in log_w.T])


def arviz_smoothed(log_w: np.ndarray) -> np.ndarray:
    """ArviZ's smoothed log-weights (S, N), whose smallest is what it was; 0.23 takes log w, 1.x its negative, and both
    return log w."""
    import arviz as az

    with np.errstate(over="ignore"):
        if hasattr(az, "psislw"):
            found = np.asarray(az.psislw(log_w.T.copy())[0]).T
        else:
            from arviz_stats.base import array_stats

            found = np.stack([array_stats.psislw(-column)[0] for column in log_w.T], 1)
    # both normalize them: the body, which is not smoothed, says by how much
    low = log_w.argmin(0)[None]
    return found + np.take_along_axis(log_w - found, low, 0)


# both generations of ArviZ cut the same tail here; they round 3 √S apart elsewhere
@pytest.mark.parametrize("draws", [40, 100, 400, 2500, 10_000])
@pytest.mark.parametrize("spread", [0.01, 0.3, 1.0, 3.0, 30.0])
def test_agrees_with_arviz(draws: int, spread: float) -> None:
    log_w = spread * torch.randn(draws, 20, dtype=torch.float64)
    torch.testing.assert_close(pareto_khat(log_w), torch.from_numpy(arviz_khat(log_w.numpy())), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("draws", [40, 400, 2500])
@pytest.mark.parametrize("spread", [0.01, 1.0, 3.0])
def test_smoothed_weights_agree_with_arviz(draws: int, spread: float) -> None:
    log_w = spread * torch.randn(draws, 20, dtype=torch.float64) - 500
    largest = log_w.topk(tail_length(draws) + 1, dim=0).values
    theirs = np.sort(arviz_smoothed(log_w.numpy()), 0)[-len(largest) :]
    ours = smooth_largest(largest, draws)
    torch.testing.assert_close(ours.log_w, torch.from_numpy(theirs), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours.raw, largest.flip(0))


@pytest.mark.parametrize("draws", [25, 37, 226, 1000, 5000])
def test_agrees_with_arviz_where_the_tail_is_rounded_up(draws: int) -> None:
    az = pytest.importorskip("arviz")
    if not hasattr(az, "psislw"):
        pytest.skip("ArviZ 1.x rounds the tail's length down, the reference (and ArviZ 0.23, and loo) up")
    log_w = torch.distributions.StudentT(3.0).sample((draws, 20)).double()
    torch.testing.assert_close(pareto_khat(log_w), torch.from_numpy(arviz_khat(log_w.numpy())), rtol=1e-8, atol=1e-8)


def test_ties_and_weights_of_zero_agree_with_arviz() -> None:
    az = pytest.importorskip("arviz")
    if not hasattr(az, "psislw"):
        pytest.skip("ArviZ 1.x keeps ties with the cutoff in the tail")
    log_w = torch.randn(400, 4, dtype=torch.float64)
    log_w[:, 1] = (log_w[:, 1] * 8).round() / 8
    log_w[:380, 2] = -math.inf
    log_w[:, 3] = log_w[:, 3].clamp_max(2.0)
    ours, theirs = pareto_khat(log_w), torch.from_numpy(arviz_khat(log_w.numpy()))
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("k", [0.1, 0.5, 0.9])
def test_finds_the_index_of_a_pareto_tail(k: float) -> None:
    """Weights u^(-k) have the tail index k; over 40 repetitions the mean is within 4 standard errors and the pull of
    the prior towards ½, (½ - k) 10 / (M + 10)."""
    log_w = -k * torch.rand(40_000, 40, dtype=torch.float64).log()
    khat = pareto_khat(log_w)
    pull = abs(0.5 - k) * 10 / (tail_length(40_000) + 10)
    assert abs(khat.mean().item() - k) < 4 * khat.std().item() / math.sqrt(40) + pull


def test_is_told_from_the_largest_alone_in_any_order() -> None:
    log_w = 2 * torch.randn(1000, 7, dtype=torch.float64)
    count = tail_length(1000) + 1
    assert count == 96
    largest = log_w.sort(dim=0).values[-count:]
    whole = pareto_khat(log_w)
    assert torch.equal(khat_from_largest(largest, 1000), whole)
    assert torch.equal(khat_from_largest(largest[torch.randperm(count)], 1000), whole)
    torch.testing.assert_close(khat_from_largest(largest - 1e4, 1000), whole, rtol=1e-8, atol=1e-8)


def test_many_columns_equal_each_alone() -> None:
    log_w = torch.randn(3000, 400, dtype=torch.float64)
    assert torch.equal(pareto_khat(log_w)[123:125], pareto_khat(log_w[:, 123:125]))


def test_equal_weights_have_no_tail() -> None:
    exact = torch.full((500, 3), -1234.5, dtype=torch.float64)
    exact[:, 1] += 1e-12 * torch.randn(500, dtype=torch.float64)  # rounding of the logarithms
    exact[:, 2] += 0.1 * torch.randn(500, dtype=torch.float64)
    khat = pareto_khat(exact)
    assert khat[:2].tolist() == [-math.inf, -math.inf]
    assert math.isfinite(khat[2])


def test_too_few_draws_say_nothing() -> None:
    log_w = torch.randn(20, 2)
    assert pareto_khat(log_w).tolist() == [math.inf, math.inf]
    assert pareto_khat(log_w[:1]).tolist() == [math.inf, math.inf]


def test_shapes_are_checked() -> None:
    with pytest.raises(InputError, match=r"\(S, N\)"):
        pareto_khat(torch.zeros(5))
    with pytest.raises(InputError, match="96"):
        khat_from_largest(torch.zeros(5, 2), 1000)
