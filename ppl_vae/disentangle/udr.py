"""Choosing a model without knowing the factors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import InputError
from .score import Array, torch_seed

__all__ = ["udr"]


def udr(
    codes: Sequence[Array],
    kl: Sequence[Array] | None = None,
    *,
    threshold: float = 0.01,
    points: int = 10_000,
    seed: int | None = 0,
) -> Array:
    r"""Unsupervised disentanglement ranking: a model is good where models of other seeds agree with it.

    Of models i and j, with R_ab the absolute rank correlation of dimension a of one with b of the other, over those
    dimensions that carry information (mean KL above the threshold),

    .. math::
        UDR_{ij} = \frac{1}{d_i + d_j}
        \Big( \sum_b \frac{r_b^2}{\sum_a R_{ab}} + \sum_a \frac{r_a^2}{\sum_b R_{ab}} \Big), \qquad
        r_b = \max_a R_{ab}, \; r_a = \max_b R_{ab}

    is 1 where each dimension of the one is a dimension of the other, up to sign and order. A model's score is the
    median over the others. Disentangled models resemble each other more than entangled ones do, each of which is
    entangled in its own way.

    Args:
        codes: of each model, (N, D_i), of the same data.
        kl: of each model, (D_i,) mean KL of a dimension, nats; None: dimensions whose variance is above the threshold.
        threshold: below which a dimension is uninformative.
        points: at most so many data.
        seed: of which.

    Returns:
        (M,) a score between 0 and 1 for each model; 0 for one without an informative dimension.

    Raises:
        InputError: fewer than two models; codes of different data.

    Reference: Duan et al., Unsupervised model selection for variational disentangled representation learning, ICLR 2020
    (https://arxiv.org/abs/1905.12614), with Spearman's correlation.
    """
    from scipy.stats import rankdata

    arrays = [np.asarray(each, dtype=np.float64) for each in codes]
    if len(arrays) < 2:
        raise InputError(f"codes holds {len(arrays)} model; a model is judged by others: give two or more")
    if any(each.ndim != 2 for each in arrays) or len({len(each) for each in arrays}) > 1:
        raise InputError(f"codes has shapes {[each.shape for each in arrays]}; give (N, D) of the same N data for each")
    if kl is not None and [len(each) for each in kl] != [each.shape[1] for each in arrays]:
        raise InputError(f"kl has {[len(each) for each in kl]} dimensions, codes have {[a.shape[1] for a in arrays]}")
    rows = torch_seed(seed).permutation(len(arrays[0]))[:points]
    ranks = []
    for i, each in enumerate(arrays):
        said = each.var(0) if kl is None else np.asarray(kl[i], dtype=np.float64)
        kept = each[rows][:, (said > threshold) & (np.ptp(each[rows], axis=0) > 0)]
        ranked = rankdata(kept, axis=0)
        gap = ranked - ranked.mean(0)
        ranks.append(gap / np.sqrt((gap**2).sum(0)))
    table = np.full((len(arrays), len(arrays)), np.nan)
    for i, one in enumerate(ranks):
        for j, other in enumerate(ranks[:i]):
            table[i, j] = table[j, i] = _agreement(np.abs(one.T @ other))
    scores: Array = np.nanmedian(table, axis=1)
    return scores


def _agreement(r: Array) -> float:
    if not r.size:
        return 0.0
    total = 0.0
    for matrix in (r, r.T):
        sums = matrix.sum(0)
        best = matrix.max(0)
        total += float(np.divide(best**2, sums, out=np.zeros_like(sums), where=sums > 0).sum())
    return total / sum(r.shape)
