"""The FactorVAE paper's score."""

from __future__ import annotations

import numpy as np

from ..errors import check_count
from .score import Array, Codes, Score, metrics, over_resamples, torch_seed

__all__ = ["factor_vae_score"]


@metrics.register("factor-vae")
def factor_vae_score(
    codes: Array,
    factors: Array,
    *,
    train: int = 10_000,
    test: int = 5_000,
    batch: int = 64,
    dead: float = 0.05,
    resamples: int = 3,
    seed: int | None = 0,
    names: tuple[str, ...] = (),
) -> Score:
    r"""Whether the dimension that varies least, while a factor is held, says which factor it is.

    A point is a batch of 64 data that share the level of one factor k, drawn uniformly: the dimension with the least
    variance, in units of its variance over all data, votes for k. The score is the accuracy, on test points, of the
    classifier that gives each dimension the factor it has most votes for.

    Args:
        codes, factors, seed, names: as for `mig`; batches are drawn from these data.
        train, test: points.
        batch: data of a point.
        dead: dimensions whose standard deviation over the data is below do not vote.
        resamples: how often the whole is repeated with other draws; the score is the mean.

    Returns:
        `Score`, with "votes" (D, F) of the first repetition, and "active", which dimensions voted. Without an active
        dimension the score is 0.

    Raises:
        InputError: see `Codes`.

    Reference: Kim and Mnih, Disentangling by factorising, ICML 2018 (https://arxiv.org/abs/1802.05983), as
    disentanglement_lib computes it.
    """
    data, generator = Codes(codes, factors, names), torch_seed(seed)
    for name, count in (("train", train), ("test", test), ("resamples", resamples)):
        check_count(name, count)
    check_count("batch", batch, 2)
    deviation = data.z.std(0, ddof=1)
    (active,) = np.nonzero(deviation >= dead)
    votes = np.zeros((data.z.shape[1], data.v.shape[1]), dtype=np.int64)
    parts = {"votes": votes, "active": active, "factors": data.names}
    if not len(active):
        note = f"no dimension has a standard deviation of {dead:g} or more"
        return Score("factor-vae", 0.0, float("nan"), len(data), parts, "; ".join(filter(None, (data.note, note))))
    scaled = data.z[:, active] / deviation[active]
    found = []
    for turn in range(resamples):
        tallies = []
        for count in (train, test):
            tally = np.zeros((len(active), data.v.shape[1]), dtype=np.int64)
            np.add.at(tally, _points(scaled, data, count, batch, generator), 1)
            tallies.append(tally)
        choice = tallies[0].argmax(1)
        found.append(float(tallies[1][np.arange(len(active)), choice].sum() / test))
        if not turn:
            votes[active] = tallies[0]
    value, error = over_resamples(found)
    return Score("factor-vae", value, error, len(data), parts, data.note)


def _points(scaled: Array, data: Codes, count: int, batch: int, generator: np.random.Generator) -> tuple[Array, Array]:
    """The voting dimension and the factor of each point."""
    labels, parts = data.points(count, generator)
    least = np.empty(count, dtype=np.int64)
    for some, alike in parts:
        # each of the batch is drawn alike to one random datum
        first = generator.integers(0, len(data), (len(some), 1))
        rows = alike.draw(np.broadcast_to(first, (len(some), batch)), generator)
        least[some] = scaled[rows].var(1, ddof=1).argmin(1)
    return least, labels
