"""The structured variational autoencoder's generative model: a decoder over a mixture with conjugate priors."""

from __future__ import annotations

import math
from typing import ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions import constraints

from ..batch import Batch
from ..conjugate import Dirichlet, NormalInverseWishart
from ..core import LatentModel, LatentSpec
from ..errors import InputError, check_count
from ..likelihoods import Likelihood
from ..networks import Condition
from ..wishart import LogCholeskyInverseWishart, cholesky_of
from .base import models

__all__ = ["StructuredVAE"]


@models.register("structured-vae")
class StructuredVAE(LatentModel):
    r"""Structured variational autoencoder: k, z ~ a mixture with conjugate priors, x ~ p(x | decoder(z)).

    .. math::
        π \sim \mathrm{Dir}(α), \quad Σ_c \sim \mathrm{IW}(Ψ, ν), \quad μ_c \mid Σ_c \sim N(0, Σ_c / κ); \qquad
        k_n \sim \mathrm{Cat}(π), \quad z_n \sim N(μ_{k_n}, Σ_{k_n}), \quad x_n \sim p(x \mid f(z_n))

    What all data share, π and the components' means and covariances, is inferred like the rest. Its guide is
    `guides.Structured`, its objective `StructuredELBO`.

    Args:
        decoder: (\*S, N, latent) -> (\*S, N, P, \*D), the likelihood's parameters.
        likelihood: p(x | .).
        latent: number of dimensions D of z.
        components: C, at most so many clusters; those that the data do not ask for stay empty.
        concentration: α of each component, small for few clusters; None: 1 / C.
        strength: s, how many data the prior of a component counts for: κ = s, ν = D + s, Ψ = ν I, so that the
            expected precision is I.

    Sites: outside of the data plate "weights" π, events (C,), "log_cholesky", the covariances' Cholesky factors as
    real numbers (`wishart.cholesky_of`), events (C, D (D + 1) / 2), "loc" μ, events (C, D); inside "k", a class number,
    "z" events (D,), and "x", observed where `batch.x` is given.

    Raises:
        InputError: numbers that are none, fewer than 2 components.

    Reference: Johnson et al., Composing graphical models with neural networks for structured representations and fast
    inference, NIPS 2016 (https://arxiv.org/abs/1603.06277).
    """

    guided_by: ClassVar[str] = "structured"
    """The guide of a recipe that names none."""

    trained_by: ClassVar[str] = "structured-elbo"
    """What a recipe that names none trains it by."""

    alpha: Tensor
    mean: Tensor
    kappa: Tensor
    psi: Tensor
    nu: Tensor
    eye: Tensor

    def __init__(
        self,
        decoder: nn.Module,
        likelihood: Likelihood,
        latent: int,
        components: int = 10,
        concentration: float | None = None,
        strength: float = 0.5,
    ) -> None:
        super().__init__()
        check_count("latent", latent)
        check_count("components", components, least=2)
        concentration = 1.0 / components if concentration is None else concentration
        for argument, number in (("concentration", concentration), ("strength", strength)):
            if isinstance(number, bool) or not (isinstance(number, int | float) and 0 < number < math.inf):
                raise InputError(f"{argument}={number!r} must be a number above 0")
        self.decoder = decoder
        self.likelihood = likelihood
        self.condition = Condition()
        self.components, self.latent = components, latent
        nu = latent + float(strength)
        self.register_buffer("alpha", torch.full((components,), float(concentration)))
        self.register_buffer("mean", torch.zeros(components, latent))
        self.register_buffer("kappa", torch.full((components,), float(strength)))
        self.register_buffer("psi", (nu * torch.eye(latent)).repeat(components, 1, 1))
        self.register_buffer("nu", torch.full((components,), nu))
        self.register_buffer("eye", torch.eye(components), persistent=False)
        real = constraints.independent(constraints.real, 2)
        numbers = torch.Size([components, latent * (latent + 1) // 2])
        self.latents = {
            "weights": LatentSpec(torch.Size([components]), constraints.simplex, "global"),
            "log_cholesky": LatentSpec(numbers, real, "global"),
            "loc": LatentSpec(torch.Size([components, latent]), real, "global", ("log_cholesky",)),
            "k": LatentSpec(torch.Size(), constraints.integer_interval(0, components - 1), parents=("weights",)),
            "z": LatentSpec(torch.Size([latent]), parents=("log_cholesky", "loc", "k")),
        }

    @property
    def priors(self) -> tuple[Dirichlet, NormalInverseWishart]:
        """Of π, and of the components' means and precisions."""
        return Dirichlet(self.alpha), NormalInverseWishart(self.mean, self.kappa, self.psi, self.nu)

    def forward(self, batch: Batch) -> Tensor:
        shared = draw_shared(*self.priors)
        scale_tril = cholesky_of(shared["log_cholesky"], self.latent)
        with pyro.plate("data", batch.size, dim=-1):
            k = pyro.sample("k", dist.Categorical(shared["weights"]))
            z = pyro.sample("z", self._component(k, shared["loc"], scale_tril))
            x: Tensor = pyro.sample("x", self.decoded(z, batch.observed), obs=batch.x)
        return x

    def decoded(self, z: Tensor, observed: Tensor | None = None) -> TorchDistributionMixin:
        """p(x | z) for z (\\*S, N, D)."""
        x: TorchDistributionMixin = self.likelihood(self.decoder(z), observed)
        return x

    def _component(self, k: Tensor, loc: Tensor, scale_tril: Tensor) -> TorchDistributionMixin:
        """N(μ_k, Σ_k): picked by a product, in which any dimensions to the left broadcast."""
        one = self.eye[k.long()].unsqueeze(-2)  # (*S, N, 1, C)
        mean = (one @ loc).squeeze(-2)
        root = (one @ scale_tril.flatten(-2)).squeeze(-2).unflatten(-1, scale_tril.shape[-2:])
        z: TorchDistributionMixin = dist.MultivariateNormal(mean, scale_tril=root)
        return z

    def extra_repr(self) -> str:
        return f"components={self.components}, latent={self.latent}"


def draw_shared(weights: Dirichlet, normals: NormalInverseWishart) -> dict[str, Tensor]:
    """The sites that all data share, from a prior or a posterior of the conjugate family."""
    draws = {"weights": pyro.sample("weights", dist.Dirichlet(weights.concentration))}
    covariances = LogCholeskyInverseWishart(torch.linalg.cholesky(normals.psi), normals.nu)
    draws["log_cholesky"] = pyro.sample("log_cholesky", covariances.to_event(1))  # type: ignore[no-untyped-call]
    spread = cholesky_of(draws["log_cholesky"], normals.size) / normals.kappa.sqrt()[..., None, None]
    draws["loc"] = pyro.sample("loc", dist.MultivariateNormal(normals.mean, scale_tril=spread).to_event(1))
    return draws
