"""The β-VAE paper's score."""

from __future__ import annotations

import warnings

import numpy as np

from ..errors import check_count
from .score import Array, Codes, Score, metrics, over_resamples, torch_seed

__all__ = ["beta_vae_score"]


@metrics.register("beta-vae")
def beta_vae_score(
    codes: Array,
    factors: Array,
    *,
    train: int = 10_000,
    test: int = 5_000,
    pairs: int = 64,
    resamples: int = 3,
    seed: int | None = 0,
    names: tuple[str, ...] = (),
) -> Score:
    r"""Whether a linear classifier tells which factor two data share.

    A point is made of pairs that agree in one factor k, drawn uniformly, and are random in the others: its features are
    the mean of |z - z'| over 64 pairs, its label is k. The score is the accuracy of a logistic regression on test
    points.

    Args:
        codes, factors, seed, names: as for `mig`; pairs are drawn from these data.
        train, test: points.
        pairs: of a point.
        resamples: how often the whole is repeated with other draws; the score is the mean.

    Returns:
        `Score`, with "train", the accuracy on the training points.

    It is 1 for any rotation of the factors that a linear classifier undoes; chance is 1/F.

    Raises:
        InputError: see `Codes`.

    Reference: Higgins et al., β-VAE, ICLR 2017, as disentanglement_lib computes it.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    data, generator = Codes(codes, factors, names), torch_seed(seed)
    for name, count in (("train", train), ("test", test), ("pairs", pairs), ("resamples", resamples)):
        check_count(name, count)
    found, trained = [], []
    for _ in range(resamples):
        features, labels = _points(data, train + test, pairs, generator)
        if (labels == labels[0]).all():
            return Score("beta-vae", 1.0, float("nan"), len(data), {"train": 1.0}, data.note)
        classifier = LogisticRegression(random_state=0, max_iter=1000)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            classifier.fit(features[:train], labels[:train])
        trained.append(classifier.score(features[:train], labels[:train]))
        found.append(classifier.score(features[train:], labels[train:]))
    value, error = over_resamples(found)
    return Score("beta-vae", value, error, len(data), {"train": float(np.mean(trained))}, data.note)


def _points(data: Codes, count: int, pairs: int, generator: np.random.Generator) -> tuple[Array, Array]:
    labels, parts = data.points(count, generator)
    features = np.empty((count, data.z.shape[1]))
    for some, alike in parts:
        first = generator.integers(0, len(data), (len(some), pairs))
        features[some] = np.abs(data.z[first] - data.z[alike.draw(first, generator)]).mean(1)
    return features, labels
