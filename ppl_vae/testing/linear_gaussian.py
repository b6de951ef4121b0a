"""The linear-Gaussian oracle: a latent-variable model whose log p(x) and posterior are exact."""

from __future__ import annotations

import math
from typing import Literal

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from ..batch import Batch
from ..core import Guide, LatentModel, LatentSpec
from ..errors import InputError, choose

__all__ = ["LinearGaussian", "LinearGaussianPosterior"]


class LinearGaussian(LatentModel):
    r"""z ~ N(0, I), x | z ~ N(W z + b, σ² I): a latent-variable model whose every quantity is exact.

    .. math::
        \log p(x) = \log N(x;\, b,\, W W^\top + σ^2 I), \qquad
        p(z \mid x) = N(z;\, S W^\top (x - b)/σ^2,\, S), \quad S^{-1} = I + W^\top W / σ^2

    Args:
        data: D, the length of x.
        latent: Z, the length of z.
        sigma: σ.
        seed: of W and b, which are buffers; they are drawn without touching torch's default generator.
        dtype: float64, for comparisons to rounding.

    Sites: "z", (N,) events (Z,); "x", (N,) events (D,), observed where `batch.observed` says so. Of what is observed
    everything is as exact: the other elements are left out of W, b and x.
    """

    weight: Tensor
    bias: Tensor
    sigma: Tensor

    def __init__(
        self, data: int = 5, latent: int = 2, sigma: float = 0.7, seed: int = 0, dtype: torch.dtype = torch.float64
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("weight", torch.randn(data, latent, generator=generator, dtype=dtype))
        self.register_buffer("bias", torch.randn(data, generator=generator, dtype=dtype))
        self.register_buffer("sigma", torch.tensor(sigma, dtype=dtype))
        self.latents = {"z": LatentSpec(torch.Size([latent]))}

    def forward(self, batch: Batch) -> Tensor:
        with pyro.plate("data", batch.size, dim=-1):
            zero = torch.zeros_like(self.weight[0])
            z = pyro.sample("z", dist.Normal(zero, torch.ones_like(zero)).to_event(1))
            loc = z @ self.weight.T + self.bias
            each = dist.Normal(loc, self.sigma.expand(loc.shape))
            each = each if batch.observed is None else each.mask(batch.observed)
            x: Tensor = pyro.sample("x", each.to_event(1), obs=batch.x)
        return x

    def simulate(self, n: int, seed: int = 0) -> Tensor:
        """x of n data drawn from the model, (n, D), by a generator of its own."""
        generator = torch.Generator().manual_seed(seed)
        like = {"dtype": self.weight.dtype, "generator": generator}
        z = torch.randn(n, self.weight.shape[1], **like)  # type: ignore[call-overload]
        noise = torch.randn(n, self.weight.shape[0], **like)  # type: ignore[call-overload]
        x: Tensor = (z.to(self.weight) @ self.weight.T + self.bias) + self.sigma * noise.to(self.weight)
        return x

    @property
    def precision(self) -> Tensor:
        """Λ = I + Wᵀ W / σ², the posterior's precision, the same for every x; (Z, Z)."""
        return torch.eye(self.weight.shape[1]).to(self.weight) + self.weight.T @ self.weight / self.sigma**2

    def posterior_mean(self, x: Tensor) -> Tensor:
        """E[z | x], (N, Z)."""
        mean: Tensor = torch.linalg.solve(self.precision, self.weight.T @ (x - self.bias).T / self.sigma**2).T
        return mean

    def posterior(self, x: Tensor, observed: Tensor | None = None) -> dist.MultivariateNormal:
        """p(z | x), or p(z | x_observed) where a mask (N, D) is given, batch (N,), exactly."""
        if observed is not None:
            mean, precision = _given(x, observed, self.weight, self.bias, self.sigma)
            return dist.MultivariateNormal(mean, precision_matrix=precision)
        return dist.MultivariateNormal(self.posterior_mean(x), precision_matrix=self.precision)

    def log_marginal(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        """log p(x), or log p(x_observed) where a mask (N, D) is given, in nats, (N,), exactly."""
        covariance = self.weight @ self.weight.T + self.sigma**2 * torch.eye(self.weight.shape[0]).to(self.weight)
        if observed is None:
            log_prob: Tensor = dist.MultivariateNormal(self.bias, covariance).log_prob(x)
            return log_prob
        # elements that are not observed become independent standard normals at 0, whose log-density is then put back
        seen = observed.to(x.dtype)
        covariance = covariance * seen.unsqueeze(-1) * seen.unsqueeze(-2) + torch.diag_embed(1.0 - seen)
        log_prob = dist.MultivariateNormal(torch.zeros_like(x), covariance).log_prob((x - self.bias) * seen)
        return log_prob + 0.5 * math.log(2 * math.pi) * (1.0 - seen).sum(-1)

    def mean_field_gap(self) -> float:
        """min over diagonal Gaussians q of KL(q ‖ p(z | x)) in nats, ½ (Σ_d log Λ_dd - log det Λ), for every x."""
        precision = self.precision
        return 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision)).item()

    def renyi_bound(self, x: Tensor, guide: LinearGaussianPosterior, alpha: float) -> Tensor:
        r"""The Rényi bound of infinitely many particles under a Gaussian q of covariance C and the exact mean, (N,):

        .. math:: \log p(x) + \frac{1}{1-α} \log E_q\Big[\Big(\frac{p(z \mid x)}{q(z)}\Big)^{1-α}\Big]

        finite where (1-α) Λ + α C⁻¹ is positive definite.
        """
        q_precision = torch.linalg.inv(guide.covariance)
        mixed = (1.0 - alpha) * self.precision + alpha * q_precision
        if bool((torch.linalg.eigvalsh(mixed) <= 0).any()):
            return torch.full_like(self.log_marginal(x), math.inf)
        log_expectation = 0.5 * (
            (1.0 - alpha) * torch.logdet(self.precision) + alpha * torch.logdet(q_precision) - torch.logdet(mixed)
        )
        return self.log_marginal(x) + log_expectation / (1.0 - alpha)


def _given(x: Tensor, seen: Tensor, weight: Tensor, bias: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (N, Z) and precision (N, Z, Z) of p(z | x_seen)."""
    scaled = seen.to(x.dtype).unsqueeze(-1) * weight / sigma**2  # (N, D, Z), rows of what is not seen are 0
    precision = torch.eye(weight.shape[1]).to(weight) + scaled.mT @ weight
    mean = torch.linalg.solve(precision, (scaled.mT @ (x - bias).unsqueeze(-1))).squeeze(-1)
    return mean, precision


class LinearGaussianPosterior(Guide):
    """A guide for `LinearGaussian` with the exact posterior mean, and the covariance asked for: of p(z | x), or where
    the batch has `visible`, of p(z | x_visible).

    Args:
        model: the oracle.
        family: "full", the posterior itself, or "diagonal", the mean-field q that minimizes KL(q ‖ p(z | x)).
        widen: factor on the standard deviations.
    """

    covariance: Tensor
    gain: Tensor
    bias: Tensor
    precision: Tensor
    weight: Tensor
    sigma: Tensor

    def __init__(self, model: LinearGaussian, family: Literal["full", "diagonal"] = "full", widen: float = 1.0) -> None:
        super().__init__()
        if family not in ("full", "diagonal"):
            raise choose("family", family, ("full", "diagonal"))
        precision = model.precision
        variances = torch.diag_embed(precision.diagonal().reciprocal())
        self.register_buffer("covariance", widen**2 * (torch.linalg.inv(precision) if family == "full" else variances))
        self.register_buffer("gain", torch.linalg.solve(precision, model.weight.T / model.sigma**2))
        self.register_buffer("bias", model.bias.clone())
        self.register_buffer("precision", precision)
        self.register_buffer("weight", model.weight.clone(), persistent=False)
        self.register_buffer("sigma", model.sigma.clone(), persistent=False)
        self.family, self.widen = family, widen

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        with pyro.plate("data", batch.size, dim=-1):
            return {name: pyro.sample(name, q) for name, q in self.distribution(batch).items()}

    def distribution(self, batch: Batch) -> dict[str, TorchDistributionMixin]:
        if batch.x is None:
            raise InputError("the posterior given x needs batch.x")
        if batch.visible is not None:
            mean, precision = _given(batch.x, batch.visible, self.weight, self.bias, self.sigma)
            diagonal = torch.diag_embed(precision.diagonal(dim1=-2, dim2=-1).reciprocal())
            covariance = torch.linalg.inv(precision) if self.family == "full" else diagonal
            return {"z": dist.MultivariateNormal(mean, self.widen**2 * covariance)}
        return {"z": dist.MultivariateNormal((batch.x - self.bias) @ self.gain.T, self.covariance)}

    def kl_to_posterior(self) -> float:
        """KL(q ‖ p(z | x)) in nats, the same for every x: the gap between log p(x) and the ELBO."""
        product = self.precision @ self.covariance
        size = product.shape[0]
        return 0.5 * (product.trace() - size - torch.logdet(product)).item()
