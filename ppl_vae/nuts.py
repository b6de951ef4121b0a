"""Draws from the posterior of a mixture's parameters by Pyro's NUTS, with z summed over."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from pyro.infer import MCMC, NUTS, config_enumerate
from pyro.infer.autoguide import init_to_value
from torch import Tensor

from .batch import Batch
from .convergence import ess, rhat
from .errors import InputError, check_count
from .mixture_parameters import Data, MixtureParameters, check_data
from .models.gaussian_mixture import GaussianMixture

__all__ = ["ParameterDraws", "sample_parameters"]


@dataclass(frozen=True)
class ParameterDraws:
    """What `sample_parameters` drew.

    Args:
        parameters: \\*S = (draws,), chain after chain, with components in the order of the start. (Labels may switch
            within a chain and between chains; only what does not depend on them is safe without this.)
        values: of each latent site as drawn, (chains, draws, \\*event), in the chains' own order of components.
        log_likelihood: Σ_n log p(x_n | θ) of each draw, (chains, draws), nats: it knows no labels.
        rhat, ess: of that.
        divergences: draws after warm-up whose trajectory diverged.
    """

    parameters: MixtureParameters
    values: Mapping[str, Tensor]
    log_likelihood: Tensor
    rhat: float
    ess: float
    divergences: int

    def log_prob(self, x: Data) -> Tensor:
        """log of the posterior predictive density of x (N, D), (N,), nats: the mean of p(x | θ) over draws."""
        x = check_data(x, self.parameters.loc.shape[-1]).to(self.parameters.loc)
        return self.parameters.log_prob(x).logsumexp(0) - math.log(len(self.parameters.loc))

    def responsibilities(self, x: Data) -> Tensor:
        """The mean of p(z = k | x, θ) over draws, (N, K)."""
        x = check_data(x, self.parameters.loc.shape[-1]).to(self.parameters.loc)
        return self.parameters.responsibilities(x).mean(0)


def sample_parameters(
    model: GaussianMixture,
    x: Data,
    *,
    draws: int = 500,
    warmup: int = 500,
    chains: int = 2,
    start: MixtureParameters | None = None,
    seed: int = 0,
) -> ParameterDraws:
    r"""Draw θ ~ p(θ | x) ∝ p(θ) Π_n Σ_k π_k N(x_n; μ_k, Σ_k) by Hamiltonian Monte Carlo (Pyro's NUTS).

    z is enumerated in the model and summed over, so that all that moves is continuous. The posterior has a mode for
    each of the K! labellings. A chain that starts in one rarely visits others, which is no loss for anything that knows
    no labels: the density, what is clustered together. Draws are given with their components matched to the start.

    Args:
        model: a mixture with a prior.
        x: (N, D) data, as a tensor, a batch or a data set.
        draws, warmup: of each chain.
        chains: run one after another.
        start: where they begin; None: the middle of `coordinate_ascent`'s posterior.
        seed: of the chains; torch's generator is left as it was.

    Raises:
        InputError: a mixture without prior, data that it does not take, numbers out of range; R-hat needs 4 draws.

    Reference: Hoffman and Gelman, The No-U-Turn sampler, JMLR 2014 (https://arxiv.org/abs/1111.4246).
    """
    if not model.has_prior:
        raise InputError("sample_parameters draws latent parameters, and this mixture has no prior over them: use em")
    check_count("draws", draws, least=4)
    check_count("warmup", warmup)
    check_count("chains", chains)
    x = check_data(x, model.size).detach().to(model.prior.normals.mean)
    if start is None:
        from .coordinate_ascent import coordinate_ascent

        start = coordinate_ascent(model, x, seed=seed).posterior.expected()
    start = MixtureParameters(*(t.to(x) for t in start))
    first = {name: value.contiguous() for name, value in model.values_of(start).items()}
    found: list[dict[str, Tensor]] = []
    divergences = 0
    with torch.random.fork_rng():
        for chain in range(chains):
            torch.manual_seed(seed + chain)
            kernel = NUTS(config_enumerate(model), max_plate_nesting=1, init_strategy=init_to_value(values=first))
            mcmc = MCMC(kernel, num_samples=draws, warmup_steps=warmup, disable_progbar=True)
            mcmc.run(Batch(x=x))
            found.append(mcmc.get_samples())
            divergences += sum(len(each) for each in mcmc.diagnostics()["divergences"].values())
    # Pyro keeps the dimension that the data plate would have
    values = {
        name: torch.stack([each[name].reshape(draws, *model.latents[name].event_shape) for each in found])
        for name in first
    }
    with torch.no_grad():
        flat = model.parameters_of({name: value.flatten(0, 1) for name, value in values.items()})
        log_likelihood = flat.log_prob(x).sum(-1).reshape(chains, draws)
    return ParameterDraws(
        parameters=flat.aligned(start),
        values=values,
        log_likelihood=log_likelihood,
        rhat=float(rhat(log_likelihood)),
        ess=float(ess(log_likelihood)),
        divergences=divergences,
    )
