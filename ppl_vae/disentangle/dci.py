"""Disentanglement, completeness and informativeness."""

from __future__ import annotations

import numpy as np

from ..errors import check_count
from .score import Array, Codes, Score, metrics, over_resamples, torch_seed

__all__ = ["dci"]


@metrics.register("dci")
def dci(
    codes: Array,
    factors: Array,
    *,
    train: int = 10_000,
    test: int = 5_000,
    resamples: int = 20,
    seed: int | None = 0,
    names: tuple[str, ...] = (),
) -> Score:
    r"""Disentanglement, completeness and informativeness, from trees that predict each factor from the codes.

    R_dk is the importance of dimension d in gradient-boosted trees for factor k, each factor's adding up to 1.

    .. math::
        D = \sum_d ρ_d \big(1 - H_F(R_{d \cdot})\big), \qquad C = \sum_k ρ'_k \big(1 - H_D(R_{\cdot k})\big)

    with entropies of the normalized rows and columns to the base of their length, and weights ρ in proportion to the
    sums. D is high where a dimension matters for one factor alone, C where a factor is in one dimension alone;
    informativeness is the trees' accuracy on test points.

    Args:
        codes, factors, seed, names: as for `mig`.
        train, test: points, drawn without replacement; in the same proportion where there are fewer data.
        resamples: bootstrap samples of the test points. Importances do not change with those: the error bar is that of
            the informativeness, and `se` of the score itself is NaN.

    Returns:
        `Score` whose value is D, with "completeness", "informativeness" and its "informativeness_se",
        "informativeness_train", and "importance" (D, F).

    It takes minutes where factors have tens of levels: trees are grown for each level.

    Raises:
        InputError: see `Codes`.

    Reference: Eastwood and Williams, A framework for the quantitative evaluation of disentangled representations, ICLR
    2018, as disentanglement_lib computes it, with scikit-learn's gradient-boosted trees.
    """
    from sklearn.ensemble import GradientBoostingClassifier

    data, generator = Codes(codes, factors, names), torch_seed(seed)
    check_count("resamples", resamples, 2)
    rows, held = data.split(train, test, generator, "dci")
    importance = np.zeros((data.z.shape[1], data.v.shape[1]))
    right = np.zeros((len(held), data.v.shape[1]))
    trained = np.zeros(data.v.shape[1])
    for k in range(data.v.shape[1]):
        levels = data.v[:, k]
        if (levels[rows] == levels[rows[0]]).all():
            right[:, k] = levels[held] == levels[rows[0]]
            trained[k] = 1.0
            continue
        trees = GradientBoostingClassifier(random_state=0).fit(data.z[rows], levels[rows])
        importance[:, k] = np.abs(trees.feature_importances_)
        trained[k] = trees.score(data.z[rows], levels[rows])
        right[:, k] = trees.predict(data.z[held]) == levels[held]
    each = right.mean(1)
    draws = [float(each[generator.integers(0, len(each), len(each))].mean()) for _ in range(resamples)]
    parts = {
        "completeness": _concentration(importance.T),
        "informativeness": float(each.mean()),
        "informativeness_se": over_resamples(draws)[1],
        "informativeness_train": float(trained.mean()),
        "importance": importance,
        "factors": data.names,
    }
    return Score("dci", _concentration(importance), float("nan"), len(rows) + len(held), parts, data.note)


def _concentration(matrix: Array) -> float:
    """Mean of 1 - H(row), to the base of a row's length, weighted by the rows' sums; 0 where all is 0."""
    sums, width = matrix.sum(1), matrix.shape[1]
    if not sums.sum() > 0:
        return 0.0
    if width == 1:
        return 1.0
    share = np.divide(matrix, sums[:, None], out=np.full_like(matrix, 1.0 / width), where=sums[:, None] > 0)
    entropy = -(share * np.log(np.where(share > 0, share, 1.0))).sum(1) / np.log(width)
    return float((sums / sums.sum() * (1.0 - entropy)).sum())
