"""Separated attribute predictability."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from ..errors import InputError, check_count
from .score import Array, Codes, Score, metrics, over_resamples, torch_seed

__all__ = ["sap"]


@metrics.register("sap")
def sap(
    codes: Array,
    factors: Array,
    *,
    continuous: bool | Collection[str] = False,
    train: int = 10_000,
    test: int = 5_000,
    resamples: int = 20,
    seed: int | None = 0,
    names: tuple[str, ...] = (),
) -> Score:
    r"""Separated attribute predictability: how much better the best single dimension predicts a factor than the next.

    .. math:: \frac1F \sum_k S_{(1)k} - S_{(2)k}

    S_dk is the accuracy, on test points, of a linear support-vector classifier (C = 0.01, classes weighted equally)
    that is given dimension d alone; of a continuous factor the squared correlation, on the training points.

    Args:
        codes, factors, seed, names: as for `mig`.
        continuous: which factors' levels are numbers on a line: all, none, or by name.
        train, test: points, drawn without replacement; in the same proportion where there are fewer data.
        resamples: bootstrap samples of the points that S is of, for the error bar.

    Returns:
        `Score`, with "predictability" (D, F).

    A line cuts a factor of many levels into few classes: of codes equal to the factors the score with classifiers is
    far below 1, and low for everybody; with `continuous` it is 1.

    Raises:
        InputError: see `Codes`; a name in `continuous` that no factor has.

    Reference: Kumar, Sattigeri and Balakrishnan, ICLR 2018 (https://arxiv.org/abs/1711.00848), as disentanglement_lib
    computes it.
    """
    from sklearn.svm import LinearSVC

    data, generator = Codes(codes, factors, names), torch_seed(seed)
    check_count("resamples", resamples, 2)
    if isinstance(continuous, Collection):
        if unknown := [name for name in continuous if names and name not in names]:
            raise InputError(f"continuous={unknown} names no factor; the factors are: {', '.join(map(str, names))}")
        lines = [name in continuous for name in data.names]
    else:
        lines = [bool(continuous)] * len(data.names)
    rows, held = data.split(train, test, generator, "sap")
    dims, count = data.z.shape[1], data.v.shape[1]
    right = np.zeros((dims, count, len(held)), dtype=bool)
    for k in (k for k in range(count) if not lines[k]):
        levels = data.v[:, k]
        for d in range(dims):
            z = data.z[:, d : d + 1]
            if np.ptp(z[rows]) == 0 or (levels[rows] == levels[rows[0]]).all():
                # nothing to go by: the commonest level is as good as any
                guess = np.full(len(held), np.bincount(levels[rows]).argmax())
            else:
                guess = (
                    LinearSVC(C=0.01, class_weight="balanced", random_state=0)
                    .fit(z[rows], levels[rows])
                    .predict(z[held])
                )
            right[d, k] = guess == levels[held]

    def score(some: Array, others: Array) -> tuple[float, Array]:
        table = right[:, :, others].mean(2)
        for k in (k for k in range(count) if lines[k]):
            table[:, k] = _squared_correlations(data.z[some], data.v[some, k])
        ordered = np.sort(table, 0)[::-1]
        second = ordered[1] if dims > 1 else 0.0
        return float((ordered[0] - second).mean()), table

    value, table = score(rows, np.arange(len(held)))
    draws = []
    for _ in range(resamples):
        some = rows[generator.integers(0, len(rows), len(rows))]
        draws.append(score(some, generator.integers(0, len(held), len(held)))[0])
    parts = {"predictability": table, "factors": data.names}
    return Score("sap", value, over_resamples(draws)[1], len(rows) + len(held), parts, data.note)


def _squared_correlations(z: Array, v: Array) -> Array:
    """(D,) of each dimension with a factor; 0 of what does not vary."""
    gap, other = z - z.mean(0), v - v.mean()
    spread = (gap**2).sum(0) * (other**2).sum()
    found: Array = np.divide((gap * other[:, None]).sum(0) ** 2, spread, out=np.zeros(z.shape[1]), where=spread > 1e-24)
    return found
