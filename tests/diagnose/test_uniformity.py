"""Tests of ranks, against brute force, SciPy and each other.

Statistical tests have fixed seeds; each says how often a right implementation would fail it for another seed.
"""

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from ppl_vae.diagnose.uniformity import (
    check_bins,
    coverage,
    ecdf_band,
    ecdf_p_value,
    histogram,
    holm,
    rank_tests,
)
from ppl_vae.errors import InputError


def uniform(simulations: int, columns: int, draws: int, seed: int = 0) -> Tensor:
    return torch.randint(draws + 1, (simulations, columns), generator=torch.Generator().manual_seed(seed))


def distribution_functions(ranks: Tensor, draws: int, points: Tensor) -> Tensor:
    """Shares of ranks (S, R) at or below points (K,), (K, R)."""
    counts = torch.zeros(draws + 1, ranks.shape[1], dtype=torch.float64)
    counts.scatter_add_(0, ranks, torch.ones_like(ranks, dtype=torch.float64))
    return counts.cumsum(0)[(points * (draws + 1)).round().long() - 1] / len(ranks)


@pytest.mark.parametrize(("simulations", "draws", "alpha"), [(50, 9, 0.1), (37, 19, 0.05), (60, 250, 0.05)])
def test_the_band_is_left_as_often_as_it_says(simulations: int, draws: int, alpha: float) -> None:
    """Against simulation; 4 standard errors, 1 in 15,000. Its level is the largest that does not pass α."""
    band = ecdf_band(simulations, draws, alpha)
    assert 0.5 * alpha < band.alpha <= alpha
    repeats = 5000
    shares = distribution_functions(uniform(simulations, repeats, draws, 1), draws, band.points)
    outside = ((shares < band.lower.unsqueeze(1) - 1e-9) | (shares > band.upper.unsqueeze(1) + 1e-9)).any(0)
    error = math.sqrt(band.alpha * (1 - band.alpha) / repeats)
    assert abs(outside.double().mean().item() - band.alpha) < 4 * error


def test_the_band_holds_what_its_p_value_says() -> None:
    """Ranks leave the band of level α exactly where their p-value is α or less."""
    ranks = uniform(100, 60, 19, 2)
    p_values = ecdf_p_value(ranks, 19)
    for alpha in (0.05, 0.3):
        band = ecdf_band(100, 19, alpha)
        shares = distribution_functions(ranks, 19, band.points)
        outside = ((shares < band.lower.unsqueeze(1) - 1e-9) | (shares > band.upper.unsqueeze(1) + 1e-9)).any(0)
        assert torch.equal(outside, p_values <= band.alpha + 1e-9)


def test_p_values_of_uniform_ranks_are_uniform() -> None:
    """Kolmogorov-Smirnov over 150 columns, 1 in 1,000 for each test. That of the band is a step function of the ranks,
    with steps that 150 values do not see."""
    ranks = uniform(400, 150, 99, 3)
    found = rank_tests(ranks, 99, 20)
    for p_values in (found.p_chi_square, found.p_location, found.p_spread, ecdf_p_value(ranks, 99)):
        assert stats.kstest(p_values.numpy(), "uniform").pvalue > 0.001


def test_chi_square_is_scipys() -> None:
    ranks = uniform(300, 3, 30, 4)  # 31 ranks: bins of 4 and of 5
    counts, expected = histogram(ranks, 30, 7)
    assert expected.sum().item() == pytest.approx(300)
    assert sorted(expected.tolist()) == pytest.approx([300 * 4 / 31] * 4 + [300 * 5 / 31] * 3)
    found = rank_tests(ranks, 30, 7)
    for q in range(3):
        theirs = stats.chisquare(counts[:, q].numpy(), expected.numpy())
        assert found.chi_square[q].item() == pytest.approx(theirs.statistic, rel=1e-12)
        assert found.p_chi_square[q].item() == pytest.approx(theirs.pvalue, rel=1e-10)


def test_location_and_spread_are_those_of_the_z_value() -> None:
    """z* = a + s ε against draws of N(0, 1): location a, spread s, to 4 standard errors (and what the draws' ends
    hide, below 0.02); 1 in 4,000."""
    generator = torch.Generator().manual_seed(5)
    z = 0.3 + 0.8 * torch.randn(20000, 1, generator=generator, dtype=torch.float64)
    found = rank_tests((torch.special.ndtr(z) * 1000).long(), 999, 20)
    assert abs(found.location.item() - 0.3) < 4 * 0.8 / math.sqrt(20000) + 0.02
    assert abs(found.spread.item() - 0.8) < 4 * 0.8 / math.sqrt(40000) + 0.02


def test_holm() -> None:
    p = torch.tensor([[0.01, 0.04], [0.03, 0.005]], dtype=torch.float64)
    assert holm(p).tolist() == [pytest.approx([0.03, 0.06]), pytest.approx([0.06, 0.02])]
    assert holm(torch.tensor([0.9, 0.8], dtype=torch.float64)).tolist() == [1.0, 1.0]


def test_coverage_counts_ranks() -> None:
    ranks = torch.arange(100).unsqueeze(1)
    levels, shares, errors = coverage(ranks, 99, torch.tensor([0.5, 0.8, 0.9]))
    assert levels.tolist() == pytest.approx([0.5, 0.8, 0.9])
    assert torch.equal(shares[:, 0], levels)  # each rank once: as many inside as the level says
    assert errors.tolist() == pytest.approx([math.sqrt(p * (1 - p) / 100) for p in (0.5, 0.8, 0.9)])


def test_too_few() -> None:
    check_bins(100, 99, 20)
    with pytest.raises(InputError, match="draws=9 give 10 ranks, fewer than bins=20: give draws=19"):
        check_bins(1000, 9, 20)
    with pytest.raises(InputError, match=r"simulations=99 are too few .* give simulations=100"):
        check_bins(99, 99, 20)
    with pytest.raises(InputError, match="bins=1"):
        check_bins(99, 99, 1)
