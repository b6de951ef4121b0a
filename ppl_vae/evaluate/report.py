"""One pair on one set of data, in numbers."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..batch import Batch
from ..data import DataSet
from ..errors import InputError
from ..labels import hide_labels
from ..likelihoods import Likelihood
from ..priors.base import prior_of
from ..psis import RELIABLE
from ..weights import Program
from .chunked import Data, Source, device_of, evaluation
from .classes import Classification, classify_of
from .estimates import Estimate
from .importance import Bound, LogMarginal, Progress, marginal_and_bound
from .latents import ActiveUnits, KLByDimension, count_active, encoding_of, kl_by_dimension_of

__all__ = ["Evaluation", "bits_per_dimension", "evaluate"]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One pair on one set of data, in numbers.

    Args:
        data: which data; every number is of these.
        n: how many.
        particles: draws a datum, for all Monte Carlo estimates.
        elbo, kl, log_likelihood, log_px: means, nats per datum, with standard errors.
        ess: mean effective number of particles.
        khat_above: share of the data where k-hat > 0.7, whose log p(x) is not to be relied on.
        khat_max: the largest k-hat.
        active_units: with variances and errors.
        kl_by_dimension: None where it has no closed form.
        bits_per_dimension: of log p(x); None for continuous data.
        error: share of the data whose class q(y | x) takes for another; None without a classifier, or labels.
        log_z: the prior's log-normalizer, nats, where it is estimated (`priors.Energy`): its error is one of all data
            at once, on top of those of `elbo` and `log_px`; otherwise None.
        parameters: numbers of parameters, of "model", "guide" and in "total" (shared ones once).
        seconds: what the evaluation took.
        classification: q(y | x), datum by datum; not in the JSON.
        log_marginal: log p(x), k-hat and the rest, datum by datum; not in the JSON.
        bound: the bound and its parts, datum by datum, on the same draws; not in the JSON.
    """

    data: str
    n: int
    particles: int
    elbo: Estimate
    kl: Estimate
    log_likelihood: Estimate
    log_px: Estimate
    ess: Estimate
    khat_above: float
    khat_max: float
    active_units: ActiveUnits
    kl_by_dimension: KLByDimension | None
    bits_per_dimension: Estimate | None
    parameters: dict[str, int]
    seconds: float
    log_marginal: LogMarginal
    bound: Bound
    error: Estimate | None = None
    log_z: Estimate | None = None
    classification: Classification | None = None

    def to_json(self) -> dict[str, Any]:
        """All but the values of single data as what `json.dumps(..., allow_nan=False)` takes: what is NaN or infinite
        becomes None."""
        units = self.active_units
        kl = self.kl_by_dimension
        bits = self.bits_per_dimension
        return {
            "data": self.data,
            "n": self.n,
            "particles": self.particles,
            "given": list(self.log_marginal.shared),
            "elbo": _json(dataclasses.asdict(self.elbo)),
            "kl": _json(dataclasses.asdict(self.kl)),
            "log_likelihood": _json(dataclasses.asdict(self.log_likelihood)),
            "log_px": _json(dataclasses.asdict(self.log_px)),
            "ess": _json(dataclasses.asdict(self.ess)),
            "khat": {"above": self.khat_above, "threshold": RELIABLE, "max": _json(self.khat_max)},
            "active_units": {
                "count": units.count,
                "undecided": units.undecided,
                "threshold": units.threshold,
                "variances": _json(units.variances),
                "se": _json(units.se),
            },
            "kl_by_dimension": None if kl is None else {"mean": _json(kl.mean), "data_se": _json(kl.data_se)},
            "bits_per_dimension": None if bits is None else _json(dataclasses.asdict(bits)),
            "error": None if self.error is None else _json(dataclasses.asdict(self.error)),
            "log_z": None if self.log_z is None else _json(dataclasses.asdict(self.log_z)),
            "parameters": self.parameters,
            "seconds": self.seconds,
        }


def evaluate(
    model: Program,
    guide: Program,
    data: Data,
    particles: int = 1000,
    chunk: int | None = None,
    *,
    draws: int = 100,
    seed: int | None = None,
    progress: Progress | None = None,
    compile: bool = False,
) -> Evaluation:
    """Everything of this package for one pair and one set of data; the bound and log p(x) are of the same draws.

    Of a model with a latent class, as `models.M2`, all numbers are of x alone: labels are hidden from the pair, and are
    what its classifier's errors are counted by.

    Other arguments and errors are those of `log_marginal`.

    Args:
        draws: of z for the active units, where the guide has no posterior mean in closed form.
    """
    began = time.perf_counter()
    with evaluation(model, guide, seed=seed, device=device_of(model, guide)):
        source = Source(hide_labels(model, data), model, guide)
        marginal, bound = marginal_and_bound(model, guide, source, particles, chunk, progress, compile)
        units = count_active(encoding_of(model, guide, source, draws, chunk), threshold=0.01)
        try:
            kl = kl_by_dimension_of(model, guide, source, chunk)
        except InputError:
            kl = None
        classes = classify_of(guide, source, data, chunk) if getattr(guide, "classifies", False) else None
        prior = prior_of(model)
        log_z = None if getattr(prior, "normalized", True) else prior.log_partition().estimate  # type: ignore[union-attr,operator]
    bits = None
    if source.likelihood is not None and source.likelihood.discrete and source.discrete:
        each = bits_per_dimension(marginal.log_px, source.data, source.likelihood)
        errors = bits_per_dimension(-marginal.se, source.data, source.likelihood)
        bits = Estimate.of(each, errors, independent=not marginal.shared)
    return Evaluation(
        data=source.description,
        n=source.size,
        particles=particles,
        **bound.estimates,
        log_px=marginal.estimate,
        ess=Estimate.of(marginal.ess, torch.full_like(marginal.ess, math.nan)),
        khat_above=marginal.unreliable.double().mean().item(),
        khat_max=marginal.khat.max().item(),
        active_units=units,
        kl_by_dimension=kl,
        bits_per_dimension=bits,
        parameters=_count_parameters(model, guide),
        seconds=time.perf_counter() - began,
        log_marginal=marginal,
        bound=bound,
        error=None if classes is None else classes.error,
        log_z=log_z,
        classification=classes,
    )


def bits_per_dimension(log_px: Tensor, data: Data, likelihood: Likelihood | None = None) -> Tensor:
    r"""Bits per dimension, :math:`-\log p(x) / (D \log 2)`, of discrete pixels.

    A density's logarithm changes with the units of x (grey levels in 0 to 255 or 0 to 1), so that for continuous
    data or likelihoods there is no such number.

    Args:
        log_px: (N,) nats.
        data: the data it is of; where a batch has `observed`, the dimensions observed of each datum count.
        likelihood: the model's; it may be left out for a `DataSet`.

    Raises:
        InputError: a continuous likelihood, continuous data, or neither is known to be discrete.
    """
    if likelihood is not None and not likelihood.discrete:
        raise InputError(
            f"likelihood={type(likelihood).__name__} is a density: bits per dimension are defined for discrete ones, "
            "as bernoulli, discretized-logistic or categorical"
        )
    if isinstance(data, DataSet):
        if not data.discrete:
            raise InputError(f"data ({data.description}) are continuous: bits per dimension are not defined for them")
    elif likelihood is None:
        raise InputError("whether these data are discrete is not known: give the model's likelihood, or a DataSet")
    return -log_px / (math.log(2.0) * _dimensions(data))


def _dimensions(data: Data) -> Tensor | int:
    """D, the number of dimensions of a datum; (N,) where only some are observed."""
    if isinstance(data, Batch):
        if data.observed is not None:
            return data.observed.flatten(1).sum(1).cpu()
        assert data.x is not None
        data = data.x
    elif isinstance(data, DataSet) and data.observed is not None:
        return data.observed.flatten(1).sum(1).cpu()
    return math.prod(data.shape if isinstance(data, DataSet) else data.shape[1:])


def _count_parameters(model: Program, guide: Program) -> dict[str, int]:
    def parameters(program: Program) -> dict[int, int]:
        return {id(p): p.numel() for p in program.parameters()} if isinstance(program, nn.Module) else {}

    ours, theirs = parameters(model), parameters(guide)
    return {"model": sum(ours.values()), "guide": sum(theirs.values()), "total": sum((ours | theirs).values())}


def _json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _json(each) for key, each in value.items()}
    if isinstance(value, Tensor):
        return _json(value.tolist())
    if isinstance(value, list):
        return [_json(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
