"""What can be said of a guide that is a point: how well x is rebuilt, and how likely the prior finds the codes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..batch import Batch
from ..labels import hide_labels
from ..weights import Program, log_weights
from .chunked import Data, Source, chunk_for, device_of, evaluation, spans
from .estimates import Estimate
from .latents import ActiveUnits, count_active, encoding_of

__all__ = ["AtPoints", "at_points"]


@dataclass(frozen=True, eq=False)
class AtPoints:
    """A model at the point m(x) where a guide puts each datum. All (N,), nats.

    Args:
        log_likelihood: log p(x | m(x)).
        log_prior: log p(m(x)).
        active_units: of the points.
        data: which data these are.
    """

    log_likelihood: Tensor
    log_prior: Tensor
    active_units: ActiveUnits
    data: str

    def to_json(self) -> dict[str, Any]:
        """Means and errors, and the active units."""
        units = self.active_units
        return {
            "data": self.data,
            "n": len(self.log_likelihood),
            **{
                name: {"mean": e.mean, "data_se": None if math.isnan(e.data_se) else e.data_se}
                for name, e in self.estimates.items()
            },
            "active_units": {
                "count": units.count,
                "threshold": units.threshold,
                "variances": {name: value.tolist() for name, value in units.variances.items()},
            },
        }

    @property
    def estimates(self) -> dict[str, Estimate]:
        """Means over the data: "log_likelihood", "log_prior", and their sum "log_joint". There is no Monte Carlo
        error."""
        parts = {
            "log_likelihood": self.log_likelihood,
            "log_prior": self.log_prior,
            "log_joint": self.log_likelihood + self.log_prior,
        }
        return {name: Estimate.of(value, torch.full_like(value, math.nan)) for name, value in parts.items()}


def at_points(model: Program, guide: Program, data: Data, chunk: int | None = None) -> AtPoints:
    """log p(x | m(x)) and log p(m(x)) of every datum, for a guide that is a point mass (`Delta`).

    Neither is a bound on log p(x), and values of different models or of different numbers of latent dimensions are no
    comparison of the models: a density at a point depends on the units of z.

    Of a model with a latent class, as `models.M2`, labels are hidden from the pair, as by `evaluate`.

    Args:
        model, guide, data, chunk: as in `log_marginal`. Of a guide that draws, one draw a datum is taken.

    Raises:
        InputError: a pair that breaks a rule, data outside of the support, a latent site shared by all data.
    """
    with evaluation(model, guide, seed=0, device=device_of(model, guide)):
        source = Source(hide_labels(model, data), model, guide)
        source.check(model, guide)

        def terms(batch: Batch, particles: int) -> tuple[Tensor, Tensor]:
            w = log_weights(model, guide, batch, particles=particles, enumerate=False)
            w.refuse_shared("at_points")
            prior = w.log_joint - w.log_likelihood
            return w.log_likelihood.expand(particles, w.size), prior.expand(particles, w.size)

        parts = [
            [each[0].double().cpu() for each in terms(source.batch(start, stop), 1)]
            for start, stop in spans(source.size, chunk_for(terms, source, 1, chunk).rows)
        ]
        log_likelihood, log_prior = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
        units = count_active(encoding_of(model, guide, source, 1, chunk), threshold=0.01)
    return AtPoints(log_likelihood, log_prior, units, source.description)
