"""Pareto k-hat: whether importance weights have a variance, told from the largest of them; and these smoothed."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import InputError

__all__ = ["RELIABLE", "Smoothed", "khat_from_largest", "pareto_khat", "smooth_largest", "tail_length"]

RELIABLE = 0.7
"""Above this k-hat an importance-sampling estimate and its standard error are not to be relied on."""

_FEWEST = 5
_GRID_ELEMENTS = 1 << 22


def tail_length(draws: int) -> int:
    """M = ⌈min(S/5, 3 √S)⌉, the number of largest weights, of S, to which the tail is fitted."""
    return math.ceil(min(draws / 5, 3 * math.sqrt(draws)))


def pareto_khat(log_w: Tensor) -> Tensor:
    """k-hat of each column of log-weights.

    Args:
        log_w: (S, N) log-weights of S draws, normalized or not, for each of N data.

    Returns:
        (N,), see `khat_from_largest`.

    Example:
        >>> u = torch.rand(4000, 1, dtype=torch.float64)
        >>> bool((pareto_khat(-0.5 * u.log()) - 0.5).abs() < 0.2)  # weights u^(-k) have the tail index k
        True
    """
    if log_w.dim() != 2 or log_w.shape[0] < 1:
        raise InputError(f"log_w has shape {tuple(log_w.shape)}; give (S, N), S draws for each of N data")
    draws = log_w.shape[0]
    largest = log_w.topk(min(tail_length(draws) + 1, draws), dim=0).values
    return khat_from_largest(largest, draws)


def khat_from_largest(largest: Tensor, draws: int, eps: float | None = None) -> Tensor:
    r"""k-hat from the largest M + 1 log-weights alone, M = `tail_length(draws)`.

    A generalized Pareto distribution is fitted to the M weights' excesses over the (M + 1)-th, by Zhang and Stephens'
    profile posterior mean, with Vehtari et al.'s weak prior (10 pseudo-observations of k = ½) on the shape. Moments of
    the weights exist up to order 1/k: k < ½ means a finite variance, and k > 0.7 (`RELIABLE`) that neither the
    estimate nor its standard error can be relied on.

    Args:
        largest: (M + 1, N) the largest log-weights of each datum, in any order; whatever is added to a column is
            without effect.
        draws: S, the number of weights they are the largest of.
        eps: relative precision of the numbers that the log-weights were computed in; None: of their dtype.

    Returns:
        (N,) float64. **-inf** where the largest M + 1 weights are all equal, up to the rounding of their logarithms
        (differences within eps^¾ of them): there is no tail, and with all weights equal the estimate is exact.
        **inf** where fewer than 5 weights lie in the tail, or where no fit is finite: nothing is known, and of a single
        draw never.

    References:
        Zhang and Stephens, A new and efficient estimation method for the generalized Pareto distribution,
        Technometrics 51, 2009. Vehtari, Simpson, Gelman, Yao and Gabry, Pareto smoothed importance sampling, JMLR 25,
        2024 (https://arxiv.org/abs/1507.02646).
    """
    return smooth_largest(largest, draws, eps).khat


class Smoothed(NamedTuple):
    """What `smooth_largest` returns.

    Args:
        khat: (N,), see `khat_from_largest`.
        log_w: (M + 1, N) float64, ascending: the largest log-weights, those of the tail smoothed.
        raw: (M + 1, N) float64, ascending: the same as they came.
    """

    khat: Tensor
    log_w: Tensor
    raw: Tensor


def smooth_largest(largest: Tensor, draws: int, eps: float | None = None) -> Smoothed:
    r"""k-hat, and the largest M + 1 log-weights with the tail replaced by what the fit expects of it.

    .. math::
        \tilde w_{(j)} = \min\Big(u + \frac{σ}{k} \big((1 - p_j)^{-k} - 1\big),\; \max_s w_s\Big), \qquad
        p_j = \frac{j - 1/2}{M}, \quad j = 1, \dots, M

    in ascending order, u the (M + 1)-th largest weight, k and σ the generalized Pareto distribution's shape and scale.
    The sum of all weights with these in place of their tail varies less than the plain one, for a bias that is small
    where k-hat is below 0.7. Where there is no tail or no fit (k-hat -inf or inf), weights are left as they are.

    Args:
        largest, draws, eps: as for `khat_from_largest`.

    Reference: Vehtari et al., as for `khat_from_largest`.
    """
    wanted = min(tail_length(draws) + 1, draws)
    if largest.dim() != 2 or largest.shape[0] != wanted:
        raise InputError(
            f"largest has shape {tuple(largest.shape)}; of {draws} draws give the largest {wanted}, (M+1, N)"
        )
    eps = torch.finfo(largest.dtype).eps if eps is None else eps
    ordered = largest.double().sort(dim=0).values.T  # (N, M + 1), ascending
    top = ordered[:, -1:]
    shifted = ordered - top
    cutoff = shifted[:, :1].clamp_min(math.log(torch.finfo(torch.float64).tiny))
    khat = torch.full_like(top[:, 0], math.inf)
    smoothed = ordered.clone()

    # ties with the cutoff belong to the body, so tails may differ in length
    sizes = (shifted > cutoff).sum(1)
    equal = (-shifted[:, 0] <= eps**0.75 * top[:, 0].abs().clamp_min(1.0)) & (draws > 1)
    sizes[equal] = 0
    for size in sizes.unique().tolist():
        if size < _FEWEST:
            continue
        rows = (sizes == size).nonzero().squeeze(1)
        per_row = size * _grid_size(size)
        for part in rows.split(max(1, _GRID_ELEMENTS // per_row)):
            # exp(tail) - exp(cutoff), without cancellation where they are close
            excess = cutoff[part].exp() * (shifted[part, -size:] - cutoff[part]).expm1()
            khat[part], scale = _fit(excess)
            expected = (cutoff[part].exp() + _quantiles(khat[part], scale, size)).log().clamp_max(0.0)
            fitted = khat[part].isfinite() & (scale > 0)
            smoothed[part, -size:] = torch.where(fitted.unsqueeze(1), expected + top[part], ordered[part, -size:])
    khat[equal] = -math.inf
    return Smoothed(khat, smoothed.T, ordered.T)


def _grid_size(n: int) -> int:
    return 30 + int(math.sqrt(n))


def _fit(excess: Tensor) -> tuple[Tensor, Tensor]:
    """The posterior mean of a generalized Pareto's shape, and its scale, from ascending excesses (R, n); each (R,)."""
    n = excess.shape[1]
    m = _grid_size(n)
    steps = torch.arange(1, m + 1, dtype=excess.dtype, device=excess.device) - 0.5
    quartile = excess[:, int(n / 4 + 0.5) - 1, None]
    grid = (1 - (m / steps).sqrt()) / (3 * quartile) + 1 / excess[:, -1:]  # (R, m)
    k = torch.log1p(-grid.unsqueeze(2) * excess.unsqueeze(1)).mean(2)  # (R, m, n) -> (R, m)
    profile = n * ((-grid / k).log() - k - 1)
    weight = profile.softmax(1)
    weight = torch.where(weight >= 10 * torch.finfo(weight.dtype).eps, weight, 0.0)
    theta = (grid * weight).sum(1) / weight.sum(1)
    shape = torch.log1p(-theta.unsqueeze(1) * excess).mean(1)
    scale = -shape / theta
    shape = (n * shape + 10 * 0.5) / (n + 10)
    return torch.where(shape.isfinite(), shape, math.inf), scale


def _quantiles(shape: Tensor, scale: Tensor, n: int) -> Tensor:
    """Quantiles (R, n) of generalized Pareto distributions at (j - ½)/n."""
    p = (torch.arange(n, dtype=shape.dtype, device=shape.device) + 0.5) / n
    log_survival = torch.log1p(-p)
    k = shape.unsqueeze(1)
    near_zero = k.abs() < torch.finfo(k.dtype).eps
    k = torch.where(near_zero, 1.0, k)
    return scale.unsqueeze(1) * torch.where(near_zero, -log_survival, torch.expm1(-k * log_survival) / k)
