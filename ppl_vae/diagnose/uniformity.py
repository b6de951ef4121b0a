"""Whether ranks are uniform: chi-square, two focused tests, bands around the distribution function."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError, check_count

__all__ = [
    "Band",
    "RankTests",
    "check_bins",
    "coverage",
    "ecdf_band",
    "ecdf_p_value",
    "histogram",
    "holm",
    "rank_tests",
]

_POINTS = 100
"""Ranks at most at which the empirical distribution function is looked at."""
_FEWEST_EXPECTED = 5


class RankTests(NamedTuple):
    r"""Tests of S ranks of each of Q quantities against the uniform distribution on 0, ..., L; all (Q,) float64.

    Location and spread are those of the ranks' normal scores :math:`y = Φ^{-1}((r + ½)/(L + 1))`, the z-value of z*
    under a Gaussian q.

    Args:
        chi_square: Σ (observed - expected)² / expected over the bins.
        p_chi_square: upper tail of χ² with one degree of freedom less than there are bins.
        location: mean of y over that of y's standard deviation where ranks are uniform: how far z* lies above the
            draws, in standard deviations of q.
        p_location: two-sided, of the mean over its own standard error.
        spread: standard deviation of y over that of uniform ranks: above 1 z* lies further out than the draws do.
        p_spread: two-sided, of the variance's z-value.
    """

    chi_square: Tensor
    p_chi_square: Tensor
    location: Tensor
    p_location: Tensor
    spread: Tensor
    p_spread: Tensor


def check_bins(simulations: int, draws: int, bins: int) -> None:
    """Raise `InputError` where there are too few simulations or draws for a test with so many bins."""
    check_count("simulations", simulations)
    check_count("draws", draws)
    check_count("bins", bins, 2)
    if draws + 1 < bins:
        raise InputError(f"draws={draws} give {draws + 1} ranks, fewer than bins={bins}: give draws={bins - 1} or more")
    if simulations < (needed := _FEWEST_EXPECTED * math.ceil((draws + 1) / ((draws + 1) // bins))):
        raise InputError(
            f"simulations={simulations} are too few for a chi-square test of bins={bins}, {_FEWEST_EXPECTED} expected "
            f"in each: give simulations={needed} or more, or fewer bins"
        )


def histogram(ranks: Tensor, draws: int, bins: int) -> tuple[Tensor, Tensor]:
    """Counts of ranks (S, Q) in bins (B, Q), and what is expected of uniform ones, (B,): where L + 1 is no multiple of
    B some bins hold one rank more than others."""
    of = (torch.arange(draws + 1) * bins).div(draws + 1, rounding_mode="floor")
    expected = torch.bincount(of, minlength=bins).double() / (draws + 1) * ranks.shape[0]
    counts = torch.zeros(bins, ranks.shape[1], dtype=torch.float64)
    counts.scatter_add_(0, of[ranks.long()], torch.ones_like(ranks, dtype=torch.float64))
    return counts, expected


def rank_tests(ranks: Tensor, draws: int, bins: int) -> RankTests:
    """Tests of ranks (S, Q) in 0, ..., L."""
    simulations = ranks.shape[0]
    counts, expected = histogram(ranks, draws, bins)
    chi_square = ((counts - expected.unsqueeze(-1)).square() / expected.unsqueeze(-1)).sum(0)
    scores = torch.special.ndtri((torch.arange(draws + 1, dtype=torch.float64) + 0.5) / (draws + 1))
    variance, fourth = scores.square().mean(), scores.pow(4).mean()
    y = scores[ranks.long()]
    mean, found = y.mean(0), y.var(0)
    return RankTests(
        chi_square=chi_square,
        p_chi_square=torch.special.gammaincc(torch.full_like(chi_square, (bins - 1) / 2), chi_square / 2),
        location=mean / variance.sqrt(),
        # by the scores' own variance: of a posterior too narrow the mean scatters further, and is not shifted for that
        p_location=_two_sided(mean / (found / simulations).sqrt().clamp_min(1e-12)),
        spread=(found / variance).sqrt(),
        p_spread=_two_sided((found - variance) / ((fourth - variance.square()) / simulations).sqrt()),
    )


def holm(p_values: Tensor) -> Tensor:
    """Holm's adjusted p-values, of any shape: those at most α are rejected with probability α or less of one error
    among all of them, however they depend on each other.

    Reference: Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 1979.
    """
    flat = p_values.flatten()
    order = flat.argsort()
    factors = torch.arange(len(flat), 0, -1).to(flat)
    adjusted = torch.empty_like(flat)
    adjusted[order] = (flat[order] * factors).cummax(0).values.clamp_max(1.0)
    return adjusted.reshape(p_values.shape)


def coverage(ranks: Tensor, draws: int, levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How often central intervals hold z*: their exact levels (P,), the nearest there are to those asked for; the
    shares of ranks (S, Q) inside, (P, Q); and the shares' binomial standard errors where the levels are right, (P,)."""
    total = draws + 1
    # as many ranks are left out below as above
    out = ((1.0 - levels.double()) * total / 2).round().clamp(0, (total - 1) // 2).long()
    exact = 1.0 - 2.0 * out.double() / total
    inside = (ranks >= out.reshape(-1, 1, 1)) & (ranks <= draws - out.reshape(-1, 1, 1))  # (P, S, Q)
    return exact, inside.double().mean(1), (exact * (1.0 - exact) / ranks.shape[0]).sqrt()


# ---------------------------------------------------------------- bands around the empirical distribution function


class Band(NamedTuple):
    """Bounds between which the empirical distribution function of uniform ranks stays, at all points at once.

    Args:
        points: (K,) probabilities (r + 1)/(L + 1) of a rank of r or less.
        lower, upper: (K,) shares of the ranks.
        alpha: probability that uniform ranks leave it somewhere; at most the one asked for.
    """

    points: Tensor
    lower: Tensor
    upper: Tensor
    alpha: float


def ecdf_band(simulations: int, draws: int, alpha: float = 0.05) -> Band:
    r"""The band that uniform ranks leave with probability α or less.

    At each point :math:`p_k` the count of ranks below is binomial; the interval there is the central one of a level
    1 - γ, the same at all points. γ is the largest for which the counts, a Markov chain along the points, stay inside
    with probability 1 - α: computed by the chain's recursion, without simulation.

    Reference: Säilynoja, Bürkner and Vehtari, Graphical test for discrete uniformity and its applications in
    goodness-of-fit evaluation and multiple sample comparison, Statistics and Computing 2022
    (https://arxiv.org/abs/2103.10522).
    """
    low, high = math.log(alpha) - 8.0, math.log(alpha)  # of γ
    for _ in range(20):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if _outside(simulations, draws, math.exp(middle)) <= alpha else (low, middle)
    points, below, above = _intervals(simulations, draws, math.exp(low))
    return Band(
        points,
        below.double() / simulations,
        above.double() / simulations,
        min(alpha, _outside(simulations, draws, math.exp(low))),
    )


def ecdf_p_value(ranks: Tensor, draws: int) -> Tensor:
    """Probability that uniform ranks leave the narrowest band which those given (S, Q) leave, (Q,)."""
    simulations = ranks.shape[0]
    places, _ = _points(draws)
    counts = torch.zeros(draws + 1, ranks.shape[1], dtype=torch.float64)
    counts.scatter_add_(0, ranks.long(), torch.ones_like(ranks, dtype=torch.float64))
    below = counts.cumsum(0)[places]  # (K, Q)
    upto, from_ = _tails(simulations, draws)
    index = below.long()
    tail = 2.0 * torch.minimum(upto.gather(1, index), from_.gather(1, index)).clamp_min(1e-300)
    gamma = tail.amin(0).clamp_max(1.0)
    # as narrow as leaves the worst point outside: γ just above the point's own
    return torch.tensor([_outside(simulations, draws, g * (1 + 1e-9)) for g in gamma.tolist()], dtype=torch.float64)


@functools.lru_cache(maxsize=64)
def _points(draws: int) -> tuple[Tensor, Tensor]:
    """Ranks and probabilities (K,), of all ranks but the last, or about a hundred of them."""
    step = max(1, math.ceil(draws / _POINTS))
    places = torch.arange(step - 1, draws, step)
    return places, (places + 1).double() / (draws + 1)


def _log_binomial(trials: int, p: Tensor) -> Tensor:
    """log pmf of 0, ..., S successes at probabilities (K,), (K, S + 1)."""
    c = torch.arange(trials + 1, dtype=torch.float64)
    choose = math.lgamma(trials + 1) - torch.lgamma(c + 1) - torch.lgamma(trials - c + 1)
    return choose + torch.outer(p.log(), c) + torch.outer((-p).log1p(), trials - c)


@functools.lru_cache(maxsize=4)
def _tails(trials: int, draws: int) -> tuple[Tensor, Tensor]:
    """P(count <= c) and P(count >= c) of c = 0, ..., S at each point, (K, S + 1)."""
    pmf = _log_binomial(trials, _points(draws)[1]).exp()
    return pmf.cumsum(1), pmf.flip(1).cumsum(1).flip(1)


def _intervals(trials: int, draws: int, gamma: float) -> tuple[Tensor, Tensor, Tensor]:
    """Points and bounds (K,), of which counts at or within are inside."""
    upto, from_ = _tails(trials, draws)
    level = torch.full((len(upto), 1), gamma / 2, dtype=torch.float64)
    lower = torch.searchsorted(upto, level).squeeze(1)
    upper = trials - torch.searchsorted(from_.flip(1), level).squeeze(1)
    return _points(draws)[1], lower, upper


@functools.lru_cache(maxsize=4096)
def _outside(trials: int, draws: int, gamma: float) -> float:
    """Probability that the counts of uniform ranks leave the intervals of level 1 - γ at one point or more."""
    points, lower, upper = _intervals(trials, draws, gamma)
    if bool((lower > upper).any()):
        return 1.0
    # multinomial counts are independent Poisson ones given their sum: each step is then a convolution
    step = _poisson(trials, trials * float(points[0]))  # points are equally far apart
    alive, first = np.ones(1), 0  # alive[i]: of the count first + i
    for low, high in zip(lower.tolist(), upper.tolist(), strict=True):
        moved = np.convolve(alive, step[: high - first + 1])  # of first, first + 1, ...
        alive, first = moved[max(0, low - first) : high - first + 1], max(low, first)
    rest = _poisson(trials, trials * (1.0 - float(points[-1])))
    # what is left makes up the sum
    inside = float(alive @ rest[trials - first - np.arange(len(alive))]) / float(_poisson(trials, float(trials))[-1])
    return max(0.0, 1.0 - inside)


@functools.lru_cache(maxsize=64)
def _poisson(most: int, rate: float) -> NDArray[Any]:
    """Probabilities of 0, ..., most."""
    counts = torch.arange(most + 1, dtype=torch.float64)
    pmf: NDArray[Any] = (counts * math.log(rate) - rate - torch.lgamma(counts + 1)).exp().numpy()
    return pmf


def _two_sided(z: Tensor) -> Tensor:
    p: Tensor = torch.special.erfc(z.abs() / math.sqrt(2.0))
    return p
