"""Pareto k-hat of every datum: whether the guide's weights have a variance, and which data it fails."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..batch import Batch
from ..build import DataSpec
from ..data import DataSet
from ..errors import InputError, check_count
from ..evaluate import Estimate, Progress
from ..evaluate.chunked import Data, Source, device_of, evaluation
from ..evaluate.importance import WeightSums, refuse_bad_weights, scan, shared_sites
from ..labels import hide_labels
from ..objectives.base import check_particles
from ..psis import RELIABLE, smooth_largest, tail_length
from ..weights import Program
from .findings import Picture, Verdict, plain

if TYPE_CHECKING:
    import xarray

__all__ = ["FEWEST_PARTICLES", "GOOD", "KHat", "fewest_data", "khat", "most_by_chance"]

GOOD = 0.5
"""Below this k-hat weights have a finite variance, and the central limit theorem holds for their mean."""

FEWEST_PARTICLES = 21
"""A tail of five weights is the fewest that are fitted."""

FALSE_ALARM = 0.01


@dataclass(frozen=True, eq=False)
class KHat:
    """k-hat of N data and log p(x) by importance sampling. On the CPU, float64.

    Args:
        khat: (N,) Pareto shape of the weights' tail; -inf where all weights are equal and log p(x) is exact; inf where
            too few weights are above zero to tell.
        log_px, se: (N,) nats, plain importance sampling and its standard error, see `evaluate.LogMarginal`.
        smoothed, smoothed_se: (N,) nats, the same with the largest weights smoothed, see `psis.smooth_largest`.
        ess: (N,) effective number of particles.
        rows: (N,) the data's row numbers.
        particles: draws for each datum.
        data: which data these are.
        worst: places (from 0 to N - 1) of the data of the largest k-hat, the largest first.
        worst_x: their x, and what is known of them.
        shared: latents that all data share; weights are then of each datum's predictive density.
        spec: what the data are.
    """

    khat: Tensor
    log_px: Tensor
    se: Tensor
    smoothed: Tensor
    smoothed_se: Tensor
    ess: Tensor
    rows: Tensor
    particles: int
    data: str
    worst: Tensor
    worst_x: Batch
    shared: tuple[str, ...] = ()
    spec: DataSpec | None = None
    columns: tuple[str, ...] = field(default=(), repr=False)

    @property
    def bands(self) -> dict[str, int]:
        """How many data have equal weights ("exact"), a k-hat below 0.5 ("good"), below 0.7 ("usable"), and above or
        unknown ("unreliable")."""
        exact = self.khat == -math.inf
        below = self.khat < GOOD
        usable = (self.khat < RELIABLE) & ~below
        counts = {"exact": exact, "good": below & ~exact, "usable": usable, "unreliable": ~(self.khat < RELIABLE)}
        return {name: int(where.sum()) for name, where in counts.items()}

    @property
    def estimates(self) -> dict[str, Estimate]:
        """Means over the data, nats per datum: "log_px" and "smoothed"."""
        independent = not self.shared
        return {
            "log_px": Estimate.of(self.log_px, self.se, independent),
            "smoothed": Estimate.of(self.smoothed, self.smoothed_se, independent),
        }

    def verdicts(self) -> Sequence[Verdict]:
        """One: whether more data have k-hat above 0.7 than chance makes where every weight has a finite variance, see
        `most_by_chance`."""
        n, bad = len(self.khat), self.bands["unreliable"]
        allowed = most_by_chance(n, self.particles)
        fault = None if allowed >= n else bad > allowed
        if self.bands["exact"] == n:
            says = f"all {n} data have equal weights: q is the posterior, and log p(x) is exact"
        else:
            share = f"k-hat is above {RELIABLE} for {bad} of {n} data ({100 * bad / n:.3g}%)"
            rest = f"the largest is {self.khat.max().item():.2f}"
            if fault:
                says = f"{share}; {rest}: q is too narrow there, and log p(x) is more likely too low"
            elif fault is None:
                says = (
                    f"{share}; {rest}: with so few that may be chance; of {self.particles} draws a fault can be told "
                    f"from {fewest_data(self.particles)} data on"
                )
            else:
                says = f"{share}, no more than the {allowed} that chance makes of {self.particles} draws; {rest}"
        return [
            Verdict(
                check="k-hat",
                fault=fault,
                says=says,
                statistic=f"share of the data with k-hat above {RELIABLE}",
                value=bad / n,
                threshold=allowed / n,
                false_alarm=FALSE_ALARM,
                grave=bad > n / 2,
                advice=(
                    "look at these data; take a guide with heavier tails or more modes (full-rank, mixture, a flow), "
                    "train it by IWAE or the wake phase, and take log p(x) from annealed importance sampling"
                    if fault
                    else ""
                ),
            )
        ]

    def pictures(self) -> Sequence[Picture]:
        """All k-hats; the data where it is largest, as images or as rows of a table."""
        from .figures_khat import all_khats, worst_data

        return [all_khats(self), worst_data(self)]

    def to_dataset(self) -> xarray.Dataset:
        """Values by "datum"."""
        import xarray as xr

        names = ("khat", "log_px", "se", "smoothed", "smoothed_se", "ess")
        values = {name: ("datum", getattr(self, name).numpy()) for name in names}
        attrs = {"particles": self.particles, "data": self.data}
        return xr.Dataset(values, {"datum": self.rows.numpy()}, attrs)

    def to_json(self) -> dict[str, Any]:
        """The counts by band, log p(x), and where k-hat is largest."""
        return dict(
            plain(
                {
                    "data": self.data,
                    "n": len(self.khat),
                    "particles": self.particles,
                    "given": list(self.shared),
                    "bands": self.bands,
                    "khat": {"mean": self.khat.mean().item(), "max": self.khat.max().item()},
                    "worst_rows": self.rows[self.worst].tolist(),
                    **self.estimates,
                }
            )
        )


def khat(
    model: Program,
    guide: Program,
    data: Data,
    particles: int = 1000,
    chunk: int | None = None,
    *,
    worst: int = 12,
    seed: int | None = None,
    progress: Progress | None = None,
    compile: bool = False,
) -> KHat:
    r"""k-hat of every datum: the shape of the generalized Pareto distribution that fits the largest of K weights.

    .. math:: w_{kn} = p(x_n, z_{kn}) / q(z_{kn} \mid x_n), \qquad E[w^{r}] < \infty \iff r < 1/k

    Weights vary without bound where q has lighter tails than the posterior: of a Gaussian q that is narrower than a
    Gaussian posterior by the ratio s, k = 1 - s². Below ½ the weights have a variance; below 0.7 their mean can be
    relied on at practical K; above it neither log p(x) nor its standard error can, and the guide misses a part of the
    posterior. Equal weights say that q is the posterior.

    log p(x) is given twice, plain and with the largest ~3√K weights replaced by the fit's quantiles. Memory does not
    grow with K. Of a model with a latent class, as `models.M2`, labels are hidden.

    Args:
        model, guide, data, particles, chunk, seed, progress, compile: as for `evaluate.log_marginal`.
        worst: how many of the worst data are kept, to be shown.

    Returns:
        `KHat`.

    Raises:
        InputError: fewer than 21 particles, of which no tail can be fitted; else as `evaluate.log_marginal`.

    References: Vehtari, Simpson, Gelman, Yao and Gabry, Pareto smoothed importance sampling, JMLR 25, 2024
    (https://arxiv.org/abs/1507.02646). Yao, Vehtari, Simpson and Gelman, Yes, but did it work? Evaluating variational
    inference, ICML 2018 (https://arxiv.org/abs/1802.02538).
    """
    check_particles(particles)
    check_count("worst", worst)
    if particles < FEWEST_PARTICLES:
        raise InputError(
            f"particles={particles} are too few for k-hat: a tail of five weights takes {FEWEST_PARTICLES}, and 1000 "
            "or more are wanted for one that says something"
        )
    data = hide_labels(model, data)
    with evaluation(model, guide, seed=seed, device=device_of(model, guide)):
        source = Source(data, model, guide)
        (found,) = scan(model, guide, source, particles, chunk, progress, (partial(_SmoothedSums, particles),), compile)
        refuse_bad_weights(found["log_px"], source)
        shared = shared_sites(model, guide, source)
        # of those that are equal the first comes first
        order = found["khat"].nan_to_num(math.inf).argsort(descending=True, stable=True)[:worst]
        kept = source.data.batch(order) if isinstance(source.data, DataSet) else source.data.take(order)
    known = source.data if isinstance(source.data, DataSet) else None
    return KHat(
        **found,
        rows=source.rows,
        particles=particles,
        data=source.description,
        worst=order,
        worst_x=kept.to("cpu"),
        shared=shared,
        spec=None if known is None else DataSpec.of(known),
        columns=() if known is None else known.columns,
    )


def most_by_chance(n: int, particles: int) -> int:
    r"""How many of n data have k-hat above 0.7 by chance, at most, where none has a k above ½.

    k-hat of M = `psis.tail_length(particles)` weights has the standard error σ = (1 + k) √M / (M + 10) about k; the
    number is the 99% quantile of a binomial with the probability that N(½, σ²) exceeds 0.7. Data of smaller k exceed it
    less often, so that more than this number comes about in less than 1% of cases.
    """
    from scipy.stats import binom, norm

    tail = tail_length(particles)
    error = (1.0 + GOOD) * math.sqrt(tail) / (tail + 10)
    return int(binom.ppf(1.0 - FALSE_ALARM, n, norm.sf((RELIABLE - GOOD) / error)))


def fewest_data(particles: int) -> int:
    """Of how many data a fault can be told at all: `most_by_chance` is then fewer than there are."""
    return next(n for n in itertools.count(1) if most_by_chance(n, particles) < n)


class _SmoothedSums(WeightSums):
    """`WeightSums`, and the same mean with the largest weights smoothed."""

    def finish(self) -> dict[str, Tensor]:
        plain_sums = super().finish()
        found = smooth_largest(self.largest, self.particles, self.eps)
        k, mean = self.particles, self.moments.mean
        shift = torch.where(self.shift == -math.inf, 0.0, self.shift)
        squares = self.moments.squares + k * mean.square()
        # nothing is left below the tail but rounding where it holds all the weight
        first = ((k * mean - _powers(found.raw, shift)).clamp_min(0.0) + _powers(found.log_w, shift)) / k
        second = ((squares - _powers(found.raw, shift, 2)).clamp_min(0.0) + _powers(found.log_w, shift, 2)) / k
        variance = (second - first.square()).clamp_min(0.0) * (k / (k - 1))
        none = found.khat == -math.inf
        return {
            **plain_sums,
            "smoothed": torch.where(none, plain_sums["log_px"], first.log() + shift),
            "smoothed_se": torch.where(none, plain_sums["se"], (variance / k).sqrt() / first),
        }


def _powers(log_w: Tensor, shift: Tensor, power: int = 1) -> Tensor:
    """Σ over (M + 1, N) of w to a power, relative to the shift (N,)."""
    return (power * (log_w - shift)).exp().sum(0)
