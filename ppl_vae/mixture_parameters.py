"""The parameters of a Gaussian mixture: values of them, and the conjugate distribution over them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from .batch import Batch
from .conjugate import Dirichlet, NormalInverseGamma, NormalInverseWishart, TiedNormalInverseWishart
from .data import DataSet
from .errors import InputError, check_count, choose

__all__ = ["COVARIANCES", "Covariance", "Data", "DirichletNormal", "MixtureParameters", "check_data"]

Covariance = Literal["full", "tied", "diagonal"]
COVARIANCES = ("full", "tied", "diagonal")
Data: TypeAlias = DataSet | Batch | Tensor
"""What a mixture is fitted to: a data set of vectors, a batch with x, or x (N, D)."""


class MixtureParameters(NamedTuple):
    r"""Values of a mixture's parameters, and what follows from them.

    .. math:: p(x) = \sum_k π_k \, N(x; μ_k, Σ_k), \qquad
        r_{nk} = p(z_n = k \mid x_n) = \frac{π_k N(x_n; μ_k, Σ_k)}{\sum_j π_j N(x_n; μ_j, Σ_j)}

    Args:
        log_weights: log π, (\*S, K).
        loc: μ, (\*S, K, D).
        scale: standard deviations (\*S, K, D), or Cholesky factors of the covariances (\*S, K, D, D).

    \*S are draws of the parameters, or nothing.
    """

    log_weights: Tensor
    loc: Tensor
    scale: Tensor

    @property
    def diagonal(self) -> bool:
        """Whether the covariances are."""
        return self.scale.dim() == self.loc.dim()

    @property
    def covariance(self) -> Tensor:
        """Σ, (\\*S, K, D, D)."""
        return self.scale.square().diag_embed() if self.diagonal else self.scale @ self.scale.mT

    def normals(self) -> TorchDistributionMixin:
        """N(μ_k, Σ_k), batch (\\*S, K), events (D,)."""
        return normal(self.loc, self.scale)

    def log_joint(self, x: Tensor) -> Tensor:
        """log p(x, z = k) of x (N, D), (\\*S, N, K), nats."""
        # (*S, 1, K): each datum beside every component
        components = normal(self.loc.unsqueeze(-3), self.scale.unsqueeze(-3 if self.diagonal else -4))
        joint: Tensor = components.log_prob(x.unsqueeze(-2)) + self.log_weights.unsqueeze(-2)
        return joint

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x), (\\*S, N), nats."""
        return self.log_joint(x).logsumexp(-1)

    def responsibilities(self, x: Tensor) -> Tensor:
        """p(z = k | x), (\\*S, N, K)."""
        return self.log_joint(x).softmax(-1)

    def predict(self, x: Tensor) -> Tensor:
        """The most probable component of each datum, (\\*S, N)."""
        return self.log_joint(x).argmax(-1)

    def sample(self, n: int) -> tuple[Tensor, Tensor]:
        """x (n, D) and the component (n,) that each is drawn from, by torch's generator; of one mixture, \\*S = ()."""
        z = torch.distributions.Categorical(logits=self.log_weights).sample(torch.Size([n]))
        x: Tensor = normal(self.loc[z], self.scale[z]).sample()
        return x, z

    def bic(self, x: Tensor, covariance: Covariance) -> Tensor:
        r"""Bayesian information criterion, -2 Σ_n log p(x_n) + P log N with P free parameters, (\*S,); lower is better.

        Args:
            x: (N, D).
            covariance: what Σ is restricted to, which P depends on.
        """
        free = free_parameters(self.loc.shape[-2], self.loc.shape[-1], covariance)
        return -2.0 * self.log_prob(x).sum(-1) + free * math.log(len(x))

    def aligned(self, to: MixtureParameters) -> MixtureParameters:
        """Each mixture with its components in the order that brings their means nearest to those of another, by sum of
        squares: labels mean nothing, and differ between draws and between fits.

        Args:
            to: one mixture, (\\*S = ()).
        """
        from scipy.optimize import linear_sum_assignment

        k = self.loc.shape[-2]
        draws = MixtureParameters(*(t.reshape(-1, *t.shape[self.loc.dim() - 2 :]) for t in self))
        distance = (draws.loc.unsqueeze(-2) - to.loc).square().sum(-1)  # (S, K, K): of ours to theirs
        order = torch.stack(
            [torch.as_tensor(linear_sum_assignment(d.T)[1]) for d in distance.detach().cpu().numpy()]
        ).to(self.loc.device)
        rows = torch.arange(len(order), device=order.device).unsqueeze(-1)
        picked = (t[rows, order] for t in draws)
        left = self.loc.shape[:-2]
        assert order.shape[-1] == k
        return MixtureParameters(*(t.reshape(*left, *t.shape[1:]) for t in picked))


@dataclass(frozen=True, eq=False)
class DirichletNormal:
    r"""π ~ Dir(α) and, independent of it, means and precisions of the components from their conjugate distribution:
    a prior of a mixture's parameters θ, and of the same family q(θ) of mean-field inference.

    Args:
        weights: over π, (K,).
        normals: over the components: `NormalInverseWishart` of batch (K,), full covariances;
            `TiedNormalInverseWishart` of K means, one covariance; `NormalInverseGamma` of batch (K, D), diagonal ones.

    Raises:
        InputError: numbers of components that differ.
    """

    weights: Dirichlet
    normals: NormalInverseWishart | TiedNormalInverseWishart | NormalInverseGamma

    def __post_init__(self) -> None:
        if not isinstance(self.normals, NormalInverseWishart | TiedNormalInverseWishart | NormalInverseGamma):
            raise InputError(
                f"normals={type(self.normals).__name__} must be a NormalInverseWishart, TiedNormalInverseWishart or "
                "NormalInverseGamma"
            )
        mean, weights = self.normals.mean, self.weights.concentration
        if mean.dim() != 2 or weights.shape != mean.shape[:1]:
            raise InputError(
                f"weights of shape {tuple(weights.shape)} and means of shape {tuple(mean.shape)} are not those of K "
                "components of D numbers, (K,) and (K, D)"
            )

    @classmethod
    def weak(cls, x: Data, components: int, covariance: Covariance = "full") -> DirichletNormal:
        """A prior that counts for one datum: α = 1/K, m and Ψ of all data, κ = 1, ν = D. (scikit-learn's default.)

        Args:
            x: (N, D) data, N >= 2, as a tensor, a batch or a data set.
            components: K.
            covariance: of the components.
        """
        check_count("components", components)
        check_covariance(covariance)
        x = check_data(x)
        k, d = components, x.shape[1]
        if len(x) < 2:
            raise InputError("a covariance needs 2 data or more")
        weights = Dirichlet(x.new_full((k,), 1.0 / k))
        mean = x.mean(0).expand(k, d)
        one = x.new_ones(k)
        if covariance == "diagonal":
            psi = x.var(0).expand(k, d)
            return cls(weights, NormalInverseGamma(mean, one[:, None].expand(k, d), psi, x.new_ones(k, d)))
        psi = torch.atleast_2d(x.T.cov())
        if covariance == "tied":
            return cls(weights, TiedNormalInverseWishart(mean, one, psi, x.new_tensor(float(d))))
        return cls(weights, NormalInverseWishart(mean, one, psi.expand(k, d, d), float(d) * one))

    @property
    def covariance(self) -> Covariance:
        """Which covariances the components have."""
        if isinstance(self.normals, NormalInverseGamma):
            return "diagonal"
        return "tied" if isinstance(self.normals, TiedNormalInverseWishart) else "full"

    @property
    def components(self) -> int:
        """K."""
        return self.normals.mean.shape[0]

    @property
    def size(self) -> int:
        """D."""
        return self.normals.mean.shape[1]

    def kl(self, other: DirichletNormal) -> Tensor:
        """KL(self ‖ other) over all parameters, (), nats."""
        self._check_same(other)
        normals: Tensor = self.normals.kl(other.normals)  # type: ignore[arg-type]
        return self.weights.kl(other.weights) + normals.sum()

    def expected_log_joint(self, x: Tensor) -> Tensor:
        """E[log π_k + log N(x; μ_k, Σ_k)] of x (N, D), (N, K), nats."""
        if isinstance(self.normals, NormalInverseGamma):
            normals = self.normals.expected_log_normal(x.unsqueeze(-2)).sum(-1)
        else:
            normals = self.normals.expected_log_normal(x)
        return self.weights.expected_statistics() + normals

    def posterior(self, x: Tensor, responsibilities: Tensor) -> DirichletNormal:
        """With self as the prior: the distribution of the parameters when x (N, D) is known and z to be distributed as
        `responsibilities` (N, K)."""
        weights = self.weights.posterior(responsibilities.sum(0))
        if isinstance(self.normals, NormalInverseGamma):
            columns = x.unsqueeze(-2).expand(-1, self.components, -1)
            shares = responsibilities.unsqueeze(-1).expand_as(columns)
            return DirichletNormal(weights, self.normals.posterior(columns, shares))
        return DirichletNormal(weights, self.normals.posterior(x, responsibilities))

    def log_predictive(self, x: Tensor) -> Tensor:
        r"""log E[p(x)] of x (N, D), (N,), nats: a mixture of Student's t distributions,

        .. math:: \sum_k E[π_k] \, St\Big(x;\, m_k,\, \frac{κ_k + 1}{κ_k (ν_k - D + 1)} Ψ_k,\, ν_k - D + 1\Big)
        """
        n = self.normals
        degrees = n.nu if isinstance(n, NormalInverseGamma) else n.nu - self.size + 1
        if isinstance(n, NormalInverseGamma):
            spread = ((n.kappa + 1.0) / (n.kappa * degrees) * n.psi).sqrt()
            components = dist.StudentT(degrees, n.mean, spread).to_event(1)
        else:
            factor = (n.kappa + 1.0) / (n.kappa * degrees)
            components = dist.MultivariateStudentT(
                degrees.expand(self.components), n.mean, factor.sqrt()[:, None, None] * torch.linalg.cholesky(n.psi)
            )
        joint: Tensor = components.log_prob(x.unsqueeze(-2)) + self.weights.mean.log()
        return joint.logsumexp(-1)

    def expected(self) -> MixtureParameters:
        """One mixture in the middle: E[π], E[μ] = m, and E[Λ]⁻¹ = Ψ/ν for the covariances."""
        n = self.normals
        if isinstance(n, NormalInverseGamma):
            scale = n.expected_precision.rsqrt()
        else:
            nu = n.nu[..., None, None]
            scale = torch.linalg.cholesky(n.psi / nu).expand(self.components, -1, -1)
        return MixtureParameters(self.weights.mean.log(), n.mean, scale)

    def sample(self, shape: tuple[int, ...] = ()) -> MixtureParameters:
        """Mixtures, with \\*S = `shape`, by torch's generator."""
        loc, precision = self.normals.sample(shape)
        if isinstance(self.normals, NormalInverseGamma):
            scale = precision.rsqrt()
        else:
            scale = torch.linalg.cholesky(torch.linalg.inv(precision))
            if self.covariance == "tied":
                scale = scale.unsqueeze(-3).expand(*loc.shape, self.size)
        return MixtureParameters(self.weights.sample(shape).log(), loc, scale)

    def _check_same(self, other: DirichletNormal) -> None:
        ours, theirs = (
            f"{b.covariance} covariances, {b.components} components of {b.size} numbers" for b in (self, other)
        )
        if ours != theirs:
            raise InputError(f"a mixture with {ours} has no KL from one with {theirs}")


def normal(loc: Tensor, scale: Tensor) -> TorchDistributionMixin:
    """N(loc, scale²) with scale (\\*B, D), or N(loc, scale scaleᵀ) with scale (\\*B, D, D)."""
    if scale.dim() > loc.dim():
        full: TorchDistributionMixin = dist.MultivariateNormal(loc, scale_tril=scale)
        return full
    diagonal: TorchDistributionMixin = dist.Normal(loc, scale).to_event(1)
    return diagonal


def free_parameters(components: int, size: int, covariance: Covariance) -> int:
    """P: of the weights, the means and the covariances."""
    symmetric = size * (size + 1) // 2
    covariances = {"full": components * symmetric, "tied": symmetric, "diagonal": components * size}
    return components - 1 + components * size + covariances[covariance]


def check_covariance(covariance: object) -> None:
    if covariance not in COVARIANCES:
        raise choose("covariance", covariance, COVARIANCES)


def check_data(x: object, size: int | None = None, argument: str = "x") -> Tensor:
    """x as N data of D numbers, of a tensor, a batch or a data set; raises `InputError` where it is none: another
    shape, no numbers, NaN, values that are missing."""
    if isinstance(x, DataSet | Batch):
        batch = x.fixed().batch() if isinstance(x, DataSet) else x
        if batch.observed is not None and not bool(batch.observed.all()):
            missing = int((~batch.observed).sum())
            raise InputError(
                f"{argument} has {missing} missing values, and a Gaussian mixture scores all of x: leave out the rows "
                "that have some, or fill them in"
            )
        if batch.x is None:
            raise InputError(f"{argument} is a Batch without x: there is nothing to fit a mixture to")
        x = batch.x
    wanted = f"a floating-point tensor (N, {'D' if size is None else size})"
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = str(x.dtype) if isinstance(x, Tensor) else type(x).__name__
        raise InputError(f"{argument} must be {wanted}, not {kind}")
    if x.dim() != 2 or len(x) < 1 or (size is not None and x.shape[1] != size):
        raise InputError(f"{argument} has shape {tuple(x.shape)}; it must be {wanted}")
    bad = (~x.isfinite()).any(1)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise InputError(f"{argument} has NaN or infinity in {int(bad.sum())} of {len(x)} rows, row {row} the first")
    return x
