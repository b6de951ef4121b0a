"""Pyro's No-U-Turn sampler beside the package's own chains, on a few data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pyro.infer import MCMC, NUTS
from torch import Tensor

from ..batch import Batch
from ..convergence import ess
from ..mcmc import Samples
from ..validation import validation
from ..weights import Program

__all__ = ["NutsCheck", "checked_by_nuts"]


@dataclass(frozen=True, eq=False)
class NutsCheck:
    """Means and mean squares by NUTS and by the package's chains, for M data.

    Args:
        z: (M, 2 D) difference of the means, then of the mean squares, in standard errors.
        draws: of each datum's chain of NUTS.
    """

    z: Tensor
    draws: int


def checked_by_nuts(model: Program, batch: Batch, samples: Samples, count: int, draws: int, warmup: int) -> NutsCheck:
    """Run NUTS on the first `count` data, one after the other: Pyro's sampler takes one posterior at a time."""
    found = []
    for n in range(min(count, batch.size)):
        one = batch.take(slice(n, n + 1))

        def program(one: Batch = one) -> object:
            return model(one)

        with torch.enable_grad(), validation(False):
            mcmc = MCMC(NUTS(program), num_samples=draws, warmup_steps=warmup, disable_progbar=True)
            mcmc.run()
        theirs = mcmc.get_samples()
        terms = []
        for name, own in samples.draws.items():
            ours = own[:, :, n].flatten(2) if own.dim() > 3 else own[:, :, n].unsqueeze(-1)
            other = theirs[name].detach().cpu().reshape(1, draws, -1)
            pairs = ((ours.double(), other.double()), (ours.double().square(), other.double().square()))
            terms += [_difference(a, b) for a, b in pairs]
        found.append(torch.cat(terms))
    return NutsCheck(torch.stack(found), draws)


def _difference(a: Tensor, b: Tensor) -> Tensor:
    """Of the means of draws (C, T, D), in standard errors."""
    errors = [each.flatten(0, 1).var(0) / ess(each) for each in (a, b)]
    return (a.mean((0, 1)) - b.mean((0, 1))) / (errors[0] + errors[1]).sqrt()
