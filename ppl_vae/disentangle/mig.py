"""Mutual information gap."""

from __future__ import annotations

import numpy as np

from ..errors import check_count
from .score import Array, Codes, Score, metrics, over_resamples, torch_seed

__all__ = ["discretize", "mig", "mutual_information"]


@metrics.register("mig")
def mig(
    codes: Array,
    factors: Array,
    *,
    points: int = 10_000,
    bins: int = 20,
    resamples: int = 10,
    seed: int | None = 0,
    names: tuple[str, ...] = (),
) -> Score:
    r"""Mutual information gap: how far one dimension alone knows each factor.

    .. math:: \frac1F \sum_k \frac{I(\bar z_{(1)}; v_k) - I(\bar z_{(2)}; v_k)}{H(v_k)}

    with the two dimensions that know the most of a factor; a code is replaced by which of 20 bins of equal width
    between its least and its largest value it lies in, and information is of counts, in nats.

    Args:
        codes: (N, D).
        factors: (N, F) levels.
        points: at most so many data, drawn without replacement.
        bins: of a code.
        resamples: bootstrap samples of the points, for the error bar.
        seed: of the draws; None: from torch's default generator.
        names: of the factors.

    Returns:
        `Score`, with "information" (D, F), nats, "entropy" (F,), nats, and "by_factor" (F,).

    A factor of more levels than there are bins cannot be known whole: of codes equal to sprites' factors, of 40 and 32
    levels, the score is about 0.9.

    Raises:
        InputError: see `Codes`.

    Reference: Chen et al., Isolating sources of disentanglement in VAEs, NeurIPS 2018
    (https://arxiv.org/abs/1802.04942), as disentanglement_lib computes it (Locatello et al., ICML 2019,
    https://arxiv.org/abs/1811.12359).
    """
    data, generator = Codes(codes, factors, names), torch_seed(seed)
    check_count("bins", bins, 2)
    check_count("resamples", resamples, 2)
    rows = generator.permutation(len(data))[: check_count("points", points)]
    z, v = data.z[rows], data.v[rows]
    value, by_factor, information, entropy = _gap(z, v, bins)
    draws = (generator.integers(0, len(rows), len(rows)) for _ in range(resamples))
    _, error = over_resamples([_gap(z[some], v[some], bins)[0] for some in draws])
    parts = {"information": information, "entropy": entropy, "by_factor": by_factor, "factors": data.names}
    return Score("mig", value, error, len(rows), parts, data.note)


def _gap(z: Array, v: Array, bins: int) -> tuple[float, Array, Array, Array]:
    information = mutual_information(discretize(z, bins), v)
    entropy = np.array([_entropy(np.bincount(v[:, k])) for k in range(v.shape[1])])
    ordered = np.sort(information, 0)[::-1]
    second = ordered[1] if len(ordered) > 1 else np.zeros_like(ordered[0])
    # a bootstrap sample may have lost all levels of a factor but one
    by_factor = np.divide(ordered[0] - second, entropy, out=np.zeros_like(entropy), where=entropy > 0)
    return float(by_factor.mean()), by_factor, information, entropy


def discretize(z: Array, bins: int = 20) -> Array:
    """The bin of each code, (N, D) from 0: bins of equal width from the least to the largest value of a dimension; a
    dimension that does not vary is all in one."""
    low, high = z.min(0), z.max(0)
    width = np.where(high > low, high - low, 1.0)
    found: Array = np.minimum((bins * ((z - low) / width)).astype(np.int64), bins - 1)
    return found


def mutual_information(a: Array, b: Array) -> Array:
    """I of every column of a with every column of b, (D, F), nats, from the counts of whole numbers from 0."""
    out = np.empty((a.shape[1], b.shape[1]))
    for j in range(b.shape[1]):
        levels = int(b[:, j].max()) + 1
        whole = _entropy(np.bincount(b[:, j]))
        for i in range(a.shape[1]):
            joint = np.bincount(a[:, i] * levels + b[:, j])
            out[i, j] = max(0.0, _entropy(np.bincount(a[:, i])) + whole - _entropy(joint))
    return out


def _entropy(counts: Array) -> float:
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum())
