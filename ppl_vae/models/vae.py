"""The variational autoencoder's generative model."""

from __future__ import annotations

import pyro
import torch
from torch import Tensor, nn

from ..batch import Batch
from ..core import Conditional, LatentModel, LatentSpec
from ..likelihoods import Likelihood
from ..networks import Condition, join
from ..priors import StandardNormal
from .base import models

__all__ = ["VAE"]


@models.register("vae")
class VAE(LatentModel):
    r"""Variational autoencoder: z ~ N(0, I), x ~ p(x | decoder(z)).

    .. math:: p(x, z) = p(z) \, p(x \mid z)

    The posterior over z is a guide's; this is the model alone.

    Args:
        decoder: (\*S, N, latent) -> (\*S, N, P, \*D), the likelihood's parameters.
        likelihood: p(x | .).
        latent: number of dimensions of z.
        prior: p(z), a `Conditional` with events (latent,); N(0, I) if None.

    Sites: "z", (\*S, N) events (latent,); "x", (\*S, N) events D, observed where `batch.x` is given.

    Example:
        >>> from ppl_vae import Batch, likelihoods, networks
        >>> vae = VAE(networks.decoder("mlp", 2, (1, 8, 8), 1), likelihoods.Bernoulli((1, 8, 8)), latent=2)
        >>> vae(Batch(n=3)).shape
        torch.Size([3, 1, 8, 8])

    Reference: Kingma and Welling, Auto-encoding variational Bayes, ICLR 2014 (https://arxiv.org/abs/1312.6114).
    """

    def __init__(
        self, decoder: nn.Module, likelihood: Likelihood, latent: int, prior: Conditional | None = None
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self.likelihood = likelihood
        self.prior = StandardNormal(latent) if prior is None else prior
        self.condition = Condition()
        self.latents = {"z": LatentSpec(torch.Size([latent]))}

    def forward(self, batch: Batch) -> Tensor:
        with pyro.plate("data", batch.size, dim=-1):
            given = self.condition(batch)
            z = pyro.sample("z", self.prior(given))
            inputs = join(z, given) if self.condition.width else z
            x: Tensor = pyro.sample("x", self.likelihood(self.decoder(inputs), batch.observed), obs=batch.x)
        return x
