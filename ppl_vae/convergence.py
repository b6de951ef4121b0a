"""Whether chains have met, and how many independent draws theirs are worth: R-hat and effective sample size."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .errors import InputError

__all__ = ["ess", "rhat"]

FEWEST = 4


def rhat(draws: Tensor) -> Tensor:
    r"""Rank-normalized split R-hat: near 1 where chains agree with each other and with themselves, early and late.

    .. math:: \hat R = \sqrt{\frac{T-1}{T} + \frac{B}{T W}}

    B/T is the variance of the half-chains' means, W the mean of their variances, T half a chain's length; both of the
    normal scores of the draws' ranks. The larger of the values for the draws and for their distances from the median
    is taken: the second tells chains that differ in spread. Above 1.01 the draws are not to be relied on.

    Args:
        draws: (chains, T, \*event), any number of quantities at once; T of 4 or more.

    Returns:
        (\*event), float64; NaN where no chain ever moves, or a draw is not finite.

    Raises:
        InputError: too few draws.

    Reference: Vehtari, Gelman, Simpson, Carpenter and Bürkner, Rank-normalization, folding, and localization: an
    improved R-hat, Bayesian Analysis 2021 (https://arxiv.org/abs/1903.08008).
    """
    split = _split(_rows(draws))
    flat = split.flatten(1).sort(-1).values
    median = 0.5 * (flat[:, (flat.shape[1] - 1) // 2] + flat[:, flat.shape[1] // 2])
    folded = (split - median[:, None, None]).abs()
    # maximum passes NaN on
    return torch.maximum(_rhat(_normal_scores(split)), _rhat(_normal_scores(folded))).reshape(draws.shape[2:])


def ess(draws: Tensor) -> Tensor:
    r"""Bulk effective sample size: the number of independent draws whose mean would be as certain as that of these.

    .. math:: S_{\mathrm{eff}} = S \Big/ \Big(1 + 2 \sum_{t \ge 1} \hat ρ_t\Big)

    S is the number of all draws, ρ̂ their autocorrelation over all chains, which counts differences between chains
    as correlation. The sum ends where the sums of pairs ρ̂_{2t} + ρ̂_{2t+1} fall below 0, and these pairs are kept from
    rising (Geyer's initial monotone sequence). Ranks' normal scores stand for the draws, of chains split in halves.

    Args:
        draws: (chains, T, \*event), any number of quantities at once; T of 4 or more.

    Returns:
        (\*event), float64: up to S log10 S, where draws are anticorrelated; NaN where a draw is not finite.

    Raises:
        InputError: too few draws.

    Reference: Vehtari et al., as for `rhat`.
    """
    scores = _normal_scores(_split(_rows(draws)))  # (M, C, T)
    chains, length = scores.shape[1:]
    total = chains * length
    covariance = _autocovariance(scores).mean(1)  # (M, T)
    within = covariance[:, :1] * length / (length - 1)
    spread = within * (length - 1) / length
    if chains > 1:
        spread = spread + scores.mean(-1).var(-1, keepdim=True)
    correlation = 1.0 - (within - covariance) / spread
    correlation[:, 0] = 1.0

    count = 1 + max(0, -(-(length - 4) // 2))
    even, odd = correlation[:, 0 : 2 * count : 2], correlation[:, 1 : 2 * count : 2]
    pairs = even + odd  # (M, count)
    # the last pair looked at: the first that is not positive, or the last of all
    ends = pairs <= 0
    ends[:, -1] = True
    last = ends.to(torch.int8).argmax(-1, keepdim=True)
    kept = torch.arange(count, device=draws.device) < last
    pairs_falling = pairs.cummin(-1).values
    rest = even.gather(-1, last)
    rest = torch.where(pairs.gather(-1, last) >= 0, rest, rest.clamp_min(0.0)).squeeze(-1)
    time = -1.0 + 2.0 * torch.where(kept, pairs_falling, 0.0).sum(-1) + rest
    size = total / time.clamp_min(1.0 / math.log10(total))
    still = scores.amax((1, 2)) - scores.amin((1, 2)) == 0
    return torch.where(still, float(total), size).reshape(draws.shape[2:])


def _rows(draws: Tensor) -> Tensor:
    """(chains, T, \\*event) -> (M, chains, T), float64: a row for each quantity."""
    if draws.dim() < 2 or draws.shape[0] < 1 or draws.shape[1] < FEWEST:
        raise InputError(
            f"draws have the shape {tuple(draws.shape)}; give (chains, draws, *event) with {FEWEST} draws or more"
        )
    return draws.double().flatten(2).permute(2, 0, 1) if draws.dim() > 2 else draws.double()[None]


def _split(rows: Tensor) -> Tensor:
    """Every chain as two, (M, C, T) -> (M, 2C, T // 2); the middle draw of an odd number is left out."""
    half = rows.shape[-1] // 2
    return torch.cat([rows[..., :half], rows[..., -half:]], dim=1)


def _normal_scores(rows: Tensor) -> Tensor:
    """The normal distribution's quantiles at the ranks of a quantity's draws; equal draws share their mean rank."""
    flat = rows.flatten(1).contiguous()
    ordered = flat.sort(-1).values
    below, upto = (torch.searchsorted(ordered, flat, side=side) for side in ("left", "right"))
    ranks = 0.5 * (below + upto + 1).double()
    scores: Tensor = torch.special.ndtri((ranks - 0.375) / (flat.shape[1] + 0.25))
    bad = ~flat.isfinite().all(-1, keepdim=True)
    return scores.masked_fill(bad, math.nan).reshape(rows.shape)


def _rhat(scores: Tensor) -> Tensor:
    length = scores.shape[-1]
    between = scores.mean(-1).var(-1)
    within = scores.var(-1).mean(-1)
    return (between / within + (length - 1) / length).sqrt()


def _autocovariance(rows: Tensor) -> Tensor:
    """Autocovariance at lags 0 to T - 1 along the last dimension, each a sum over T - lag products divided by T."""
    length = rows.shape[-1]
    centred = rows - rows.mean(-1, keepdim=True)
    # padded, so that the end of a chain is not multiplied with its beginning
    spectrum = torch.fft.rfft(centred, n=2 * length)
    sums: Tensor = torch.fft.irfft(spectrum.abs().square(), n=2 * length)[..., :length]
    return sums / length
