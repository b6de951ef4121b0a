"""Conjugate exponential families in natural parameters: Dirichlet, categorical, priors of a Gaussian's parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from .errors import InputError

__all__ = [
    "Categorical",
    "Dirichlet",
    "NormalInverseGamma",
    "NormalInverseWishart",
    "NormalTerms",
    "TiedNormalInverseWishart",
]

_LOG_2, _LOG_PI, _LOG_2PI = math.log(2.0), math.log(math.pi), math.log(2.0 * math.pi)


@dataclass(frozen=True, eq=False)
class Dirichlet:
    r"""π ~ Dir(α), of the exponential family with the statistics log π.

    .. math:: p(π) = \exp\big(η^\top \log π - A(η)\big), \quad η = α - 1, \quad
        A = \sum_k \log Γ(α_k) - \log Γ\big(\textstyle\sum_k α_k\big)

    Args:
        concentration: α, (\*B, K), each above 0.

    Raises:
        InputError: no vector; while torch validates distributions, values that are not above 0.

    Example:
        >>> Dirichlet(torch.tensor([1.0, 3.0])).expected_statistics()
        tensor([-1.8333, -0.3333])
    """

    concentration: Tensor

    def __post_init__(self) -> None:
        _check("concentration", self.concentration, 1, _positive, "numbers above 0")

    @classmethod
    def from_natural(cls, natural: Tensor) -> Dirichlet:
        return cls(natural + 1.0)

    def natural(self) -> Tensor:
        """η = α - 1, (\\*B, K)."""
        return self.concentration - 1.0

    def log_partition(self) -> Tensor:
        """A(η), (\\*B,)."""
        return self.concentration.lgamma().sum(-1) - self.concentration.sum(-1).lgamma()

    def expected_statistics(self) -> Tensor:
        """E[log π] = ψ(α) - ψ(Σ α), (\\*B, K), nats."""
        return self.concentration.digamma() - self.concentration.sum(-1, keepdim=True).digamma()

    @property
    def mean(self) -> Tensor:
        """E[π], (\\*B, K)."""
        return self.concentration / self.concentration.sum(-1, keepdim=True)

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(π) on the simplex, (\\*B,)."""
        return (self.natural() * value.log()).sum(-1) - self.log_partition()

    def kl(self, other: Dirichlet) -> Tensor:
        """KL(self ‖ other), (\\*B,), nats."""
        moved = ((self.concentration - other.concentration) * self.expected_statistics()).sum(-1)
        return moved - self.log_partition() + other.log_partition()

    def posterior(self, counts: Tensor) -> Dirichlet:
        """p(π | z) after n_k draws of class k, which may be expected ones; counts (\\*B, K)."""
        return Dirichlet(self.concentration + counts)

    def sample(self, shape: Sequence[int] = ()) -> Tensor:
        """π, (\\*shape, \\*B, K), by torch's generator."""
        return torch.distributions.Dirichlet(self.concentration).sample(torch.Size(shape))


@dataclass(frozen=True, eq=False)
class Categorical:
    r"""z ~ Cat(softmax(η)), of the exponential family with the one-hot statistics.

    .. math:: p(z = k) = \exp(η_k - A(η)), \quad A = \log \sum_k e^{η_k}

    Args:
        logits: η, (\*B, K), up to a constant.

    Raises:
        InputError: no vector; while torch validates distributions, a NaN.
    """

    logits: Tensor

    def __post_init__(self) -> None:
        _check("logits", self.logits, 1, lambda t: ~t.isnan(), "numbers")

    @classmethod
    def from_natural(cls, natural: Tensor) -> Categorical:
        return cls(natural)

    def natural(self) -> Tensor:
        """η, (\\*B, K)."""
        return self.logits

    def log_partition(self) -> Tensor:
        """A(η), (\\*B,)."""
        return self.logits.logsumexp(-1)

    def expected_statistics(self) -> Tensor:
        """E[one-hot z], the probabilities, (\\*B, K)."""
        return self.logits.softmax(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(z) of class numbers (\\*B,)."""
        logits, value = self.logits.log_softmax(-1), value.long().unsqueeze(-1)
        left = torch.broadcast_shapes(logits.shape[:-1], value.shape[:-1])
        chosen: Tensor = logits.expand(*left, -1).gather(-1, value.expand(*left, 1)).squeeze(-1)
        return chosen

    def kl(self, other: Categorical) -> Tensor:
        """KL(self ‖ other), (\\*B,), nats; a class without probability in self counts 0."""
        probs = self.expected_statistics()
        difference = self.logits.log_softmax(-1) - other.logits.log_softmax(-1)
        return torch.where(probs > 0, probs * difference, 0.0).sum(-1)

    def entropy(self) -> Tensor:
        """-E[log p(z)], (\\*B,), nats."""
        probs = self.expected_statistics()
        return -torch.where(probs > 0, probs * self.logits.log_softmax(-1), 0.0).sum(-1)

    def sample(self, shape: Sequence[int] = ()) -> Tensor:
        """Class numbers (\\*shape, \\*B), by torch's generator."""
        z: Tensor = torch.distributions.Categorical(logits=self.logits).sample(torch.Size(shape))
        return z


class NormalTerms(NamedTuple):
    r"""A vector of the space in which the parameters of a Gaussian, mean μ and precision Λ, have their statistics, and
    their priors their natural parameters.

    .. math::
        \log N(x; μ, Λ^{-1}) = \langle t(x), T(μ, Λ) \rangle - \tfrac D2 \log 2π, \quad
        T = (Λμ,\; μ^\top Λ μ,\; Λ,\; \log|Λ|), \quad
        t(x) = (x,\; -\tfrac12,\; -\tfrac12 x x^\top,\; \tfrac12)

    A conjugate prior with natural parameters η has a posterior with η + Σ_n t(x_n). (For a diagonal Λ each dimension is
    a Gaussian of one number.)

    Args:
        linear: beside Λμ, (\*B, D).
        square: beside μᵀΛμ, (\*B,).
        matrix: beside Λ, (\*B, D, D).
        log_det: beside log|Λ|, (\*B,).
    """

    linear: Tensor
    square: Tensor
    matrix: Tensor
    log_det: Tensor


class _NormalWishart:
    """What is equal with one mean to a precision and with several: the precision's part.

    Λ ~ W(Ψ⁻¹, ν), of density |Λ|^((ν-D-1)/2) exp(-½ tr ΨΛ) over a normalizing constant.
    """

    psi: Tensor
    nu: Tensor

    @property
    def size(self) -> int:
        """D."""
        return self.psi.shape[-1]

    @property
    def expected_precision(self) -> Tensor:
        """E[Λ] = ν Ψ⁻¹, (\\*B, D, D)."""
        precision: Tensor = self.nu[..., None, None] * torch.cholesky_inverse(torch.linalg.cholesky(self.psi))
        return precision

    @property
    def expected_log_det(self) -> Tensor:
        """E[log|Λ|] = Σ_i ψ((ν - i + 1) / 2) + D log 2 - log|Ψ|, (\\*B,)."""
        return _multidigamma(0.5 * self.nu, self.size) + self.size * _LOG_2 - _log_det(self.psi)

    def _wishart_log_partition(self) -> Tensor:
        """Of the precision's density, (\\*B,)."""
        d, half = self.size, 0.5 * self.nu
        return half * (d * _LOG_2 - _log_det(self.psi)) + _multilgamma(half, d)

    def _wishart_kl(self, other: _NormalWishart) -> Tensor:
        """KL between the precisions' distributions, (\\*B,)."""
        d, half, theirs = self.size, 0.5 * self.nu, 0.5 * other.nu
        return (
            theirs * (_log_det(self.psi) - _log_det(other.psi))
            + half * (_solve(self.psi, other.psi).diagonal(dim1=-2, dim2=-1).sum(-1) - d)
            + _multilgamma(theirs, d)
            - _multilgamma(half, d)
            + (half - theirs) * _multidigamma(half, d)
        )

    def _sample_root(self, shape: Sequence[int]) -> Tensor:
        """R with R Rᵀ = Λ ~ W(Ψ⁻¹, ν), (\\*shape, \\*B, D, D), by Bartlett's decomposition."""
        d = self.size
        left = torch.Size([*shape, *torch.broadcast_shapes(self.psi.shape[:-2], self.nu.shape)])
        order = torch.arange(d, dtype=self.psi.dtype, device=self.psi.device)
        chi_square = torch.distributions.Gamma(0.5 * (self.nu[..., None] - order), torch.full_like(order, 0.5))
        diagonal = chi_square.sample(torch.Size(shape)).sqrt().expand(*left, d)
        below = torch.randn(*left, d, d, dtype=order.dtype, device=order.device).tril(-1)
        bartlett = below + torch.diag_embed(diagonal)
        upper = torch.linalg.cholesky(self.psi).mT
        root: Tensor = torch.linalg.solve_triangular(upper.expand(*left, d, d), bartlett, upper=True)
        return root


@dataclass(frozen=True, eq=False)
class NormalInverseWishart(_NormalWishart):
    r"""μ | Λ ~ N(m, (κ Λ)⁻¹), Λ ~ W(Ψ⁻¹, ν), which is Σ = Λ⁻¹ ~ IW(Ψ, ν): conjugate to a Gaussian's mean and precision.

    .. math::
        p(μ, Λ) = |Λ|^{-D/2} \exp\big(\langle η, T(μ, Λ) \rangle - A(η)\big), \quad
        η = (κ m,\; -\tfrac κ2,\; -\tfrac12 (Ψ + κ m m^\top),\; \tfrac ν2)

    .. math::
        A = \tfrac D2 \log \tfrac{2π}{κ} + \tfrac ν2 (D \log 2 - \log |Ψ|) + \log Γ_D(\tfrac ν2)

    with the statistics T of `NormalTerms`, of which the expectations are the gradient of A.

    Args:
        mean: m, (\*B, D).
        kappa: κ, (\*B,), above 0: how many data the mean counts for.
        psi: Ψ, (\*B, D, D), symmetric and positive definite.
        nu: ν, (\*B,), above D - 1: how many data Ψ counts for.

    Raises:
        InputError: shapes that do not fit each other; while torch validates distributions, values out of range.

    Reference: Bishop, Pattern recognition and machine learning, 2006, chapter 10.2.

    Example:
        >>> prior = NormalInverseWishart(torch.zeros(2), torch.tensor(1.0), torch.eye(2), torch.tensor(2.0))
        >>> prior.posterior(torch.tensor([[1.0, 0.0], [3.0, 0.0]])).mean
        tensor([1.3333, 0.0000])
    """

    mean: Tensor
    kappa: Tensor
    psi: Tensor
    nu: Tensor

    def __post_init__(self) -> None:
        _check_normal_wishart(self.mean, self.kappa, self.psi, self.nu, means=0)

    @classmethod
    def from_natural(cls, natural: NormalTerms) -> NormalInverseWishart:
        kappa = -2.0 * natural.square
        mean = natural.linear / kappa[..., None]
        psi = _symmetric(-2.0 * natural.matrix - kappa[..., None, None] * _outer(mean))
        return cls(mean, kappa, psi, 2.0 * natural.log_det)

    def natural(self) -> NormalTerms:
        """η."""
        kappa = self.kappa[..., None]
        return NormalTerms(
            linear=kappa * self.mean,
            square=-0.5 * self.kappa,
            matrix=-0.5 * (self.psi + kappa[..., None] * _outer(self.mean)),
            log_det=0.5 * self.nu,
        )

    def log_partition(self) -> Tensor:
        """A(η), (\\*B,)."""
        return 0.5 * self.size * (_LOG_2PI - self.kappa.log()) + self._wishart_log_partition()

    def expected_statistics(self) -> NormalTerms:
        """E[Λμ] = ν Ψ⁻¹ m, E[μᵀΛμ] = D / κ + ν mᵀ Ψ⁻¹ m, E[Λ] = ν Ψ⁻¹, E[log|Λ|]."""
        precision = self.expected_precision
        linear = (precision @ self.mean[..., None]).squeeze(-1)
        square = self.size / self.kappa + (self.mean * linear).sum(-1)
        return NormalTerms(linear, square, precision, self.expected_log_det)

    def expected_log_normal(self, x: Tensor) -> Tensor:
        r"""E[log N(x; μ, Λ⁻¹)] of x (N, D) under each, (N, \*B), nats:

        .. math:: \tfrac12 \big(E[\log|Λ|] - D \log 2π - D/κ - ν (x - m)^\top Ψ^{-1} (x - m)\big)
        """
        off = _spread(x, self.mean.dim() - 1) - self.mean
        square = self.nu * _square(self.psi, off) + self.size / self.kappa
        return 0.5 * (self.expected_log_det - self.size * _LOG_2PI - square)

    def log_prob(self, mean: Tensor, precision: Tensor) -> Tensor:
        """log p(μ, Λ), as a density of μ and of Λ (of Σ = Λ⁻¹ it is + (D + 1) log|Λ|), (\\*B,), nats."""
        return _log_prob(self.natural(), mean, precision, -0.5 * self.size) - self.log_partition()

    def kl(self, other: NormalInverseWishart) -> Tensor:
        """KL(self ‖ other), (\\*B,), nats."""
        return self._wishart_kl(other) + _mean_kl(self, other, self.psi, self.nu)

    def posterior(self, x: Tensor, weights: Tensor | None = None) -> NormalInverseWishart:
        r"""p(μ, Λ | x) of data x (N, D), each counted `weights` times.

        With n, x̄ and S the weights' sum, the weighted mean and the scatter about it, κ' = κ + n, ν' = ν + n,

        .. math:: m' = \frac{κ m + n \bar x}{κ'}, \quad Ψ' = Ψ + S + \frac{κ n}{κ'} (\bar x - m)(\bar x - m)^\top

        which is η + Σ_n w_n t(x_n), with less rounding.

        Args:
            x: (N, D).
            weights: (N, \*B), one for each of the batch; None: 1.
        """
        weights = x.new_ones(len(x)) if weights is None else weights
        n, average, scatter = _moments(x, weights)
        kappa = self.kappa + n
        off = average - self.mean
        psi = self.psi + scatter + (self.kappa * n / kappa)[..., None, None] * _outer(off)
        return NormalInverseWishart(self.mean + (n / kappa)[..., None] * off, kappa, psi, self.nu + n)

    def sample(self, shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """μ (\\*shape, \\*B, D) and Λ (\\*shape, \\*B, D, D), by torch's generator."""
        root = self._sample_root(shape)
        noise = torch.randn_like(root[..., :1])
        # Λ = R Rᵀ, so that R⁻ᵀ ε has the covariance Λ⁻¹
        off = torch.linalg.solve(root.mT, noise).squeeze(-1)
        return self.mean + off / self.kappa[..., None].sqrt(), root @ root.mT


@dataclass(frozen=True, eq=False)
class TiedNormalInverseWishart(_NormalWishart):
    r"""μ_k | Λ ~ N(m_k, (κ_k Λ)⁻¹) for K means with one precision Λ ~ W(Ψ⁻¹, ν): Gaussians of one covariance.

    .. math::
        p(μ, Λ) = |Λ|^{(K-D-1)/2} \exp\big(\langle η, T(μ, Λ) \rangle - A(η)\big), \quad
        T = (Λ μ_k,\; μ_k^\top Λ μ_k,\; Λ,\; \log|Λ|), \quad
        η = (κ_k m_k,\; -\tfrac{κ_k}2,\; -\tfrac12 (Ψ + \textstyle\sum_k κ_k m_k m_k^\top),\; \tfrac ν2)

    With K = 1 it is `NormalInverseWishart`.

    Args:
        mean: m_k, (\*B, K, D).
        kappa: κ_k, (\*B, K), above 0.
        psi: Ψ, (\*B, D, D), symmetric and positive definite.
        nu: ν, (\*B,), above D - 1.

    Raises:
        InputError: as `NormalInverseWishart`.
    """

    mean: Tensor
    kappa: Tensor
    psi: Tensor
    nu: Tensor

    def __post_init__(self) -> None:
        _check_normal_wishart(self.mean, self.kappa, self.psi, self.nu, means=1)

    @classmethod
    def from_natural(cls, natural: NormalTerms) -> TiedNormalInverseWishart:
        kappa = -2.0 * natural.square
        mean = natural.linear / kappa[..., None]
        psi = _symmetric(-2.0 * natural.matrix - (kappa[..., None, None] * _outer(mean)).sum(-3))
        return cls(mean, kappa, psi, 2.0 * natural.log_det)

    def natural(self) -> NormalTerms:
        """η: linear (\\*B, K, D), square (\\*B, K), matrix (\\*B, D, D), log_det (\\*B,)."""
        kappa = self.kappa[..., None]
        return NormalTerms(
            linear=kappa * self.mean,
            square=-0.5 * self.kappa,
            matrix=-0.5 * (self.psi + (kappa[..., None] * _outer(self.mean)).sum(-3)),
            log_det=0.5 * self.nu,
        )

    def log_partition(self) -> Tensor:
        """A(η), (\\*B,)."""
        return (0.5 * self.size * (_LOG_2PI - self.kappa.log())).sum(-1) + self._wishart_log_partition()

    def expected_statistics(self) -> NormalTerms:
        """E[Λμ_k] (\\*B, K, D), E[μ_kᵀΛμ_k] (\\*B, K), E[Λ] (\\*B, D, D), E[log|Λ|] (\\*B,)."""
        precision = self.expected_precision
        linear = self.mean @ precision
        square = self.size / self.kappa + (self.mean * linear).sum(-1)
        return NormalTerms(linear, square, precision, self.expected_log_det)

    def expected_log_normal(self, x: Tensor) -> Tensor:
        """E[log N(x; μ_k, Λ⁻¹)] of x (N, D), (N, \\*B, K), nats."""
        off = _spread(x, self.mean.dim() - 1) - self.mean
        square = self.nu[..., None] * _square(self.psi[..., None, :, :], off) + self.size / self.kappa
        return 0.5 * (self.expected_log_det[..., None] - self.size * _LOG_2PI - square)

    def log_prob(self, mean: Tensor, precision: Tensor) -> Tensor:
        """log p(μ_1, ..., μ_K, Λ), as a density of them and of Λ, (\\*B,), nats."""
        base = 0.5 * (self.mean.shape[-2] - self.size - 1)
        return _log_prob(self.natural(), mean, precision, base, tied=True) - self.log_partition()

    def kl(self, other: TiedNormalInverseWishart) -> Tensor:
        """KL(self ‖ other), (\\*B,), nats."""
        means = _mean_kl(self, other, self.psi[..., None, :, :], self.nu[..., None])
        return self._wishart_kl(other) + means.sum(-1)

    def posterior(self, x: Tensor, weights: Tensor) -> TiedNormalInverseWishart:
        r"""p(μ, Λ | x) of data x (N, D), of which each counts `weights` times for each mean, (N, \*B, K):
        κ' and m' by mean as of `NormalInverseWishart.posterior`, ν' = ν + Σ_k n_k, Ψ' with the sum over k of what each
        adds."""
        n, average, scatter = _moments(x, weights)
        kappa = self.kappa + n
        off = average - self.mean
        added = (scatter + (self.kappa * n / kappa)[..., None, None] * _outer(off)).sum(-3)
        mean = self.mean + (n / kappa)[..., None] * off
        return TiedNormalInverseWishart(mean, kappa, self.psi + added, self.nu + n.sum(-1))

    def sample(self, shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """μ (\\*shape, \\*B, K, D) and Λ (\\*shape, \\*B, D, D), by torch's generator."""
        root = self._sample_root(shape)
        count = self.mean.shape[-2]
        noise = torch.randn(*root.shape[:-1], count, dtype=root.dtype, device=root.device)
        off = torch.linalg.solve(root.mT, noise).mT  # (*shape, *B, K, D)
        return self.mean + off / self.kappa[..., None].sqrt(), root @ root.mT


@dataclass(frozen=True, eq=False)
class NormalInverseGamma:
    r"""μ | λ ~ N(m, 1 / (κ λ)), λ ~ Gamma(ν/2, rate ψ/2): `NormalInverseWishart` of one dimension, number by number.

    .. math::
        p(μ, λ) = λ^{-1/2} \exp\big(\langle η, T \rangle - A(η)\big), \quad T = (λμ,\; λμ^2,\; λ,\; \log λ), \quad
        η = (κ m,\; -\tfrac κ2,\; -\tfrac12 (ψ + κ m^2),\; \tfrac ν2)

    .. math:: A = \tfrac12 \log \tfrac{2π}{κ} + \tfrac ν2 \log \tfrac 2ψ + \log Γ(\tfrac ν2)

    A Gaussian of diagonal covariance has one for each dimension, independent of each other: a batch (\*B, D) to be
    summed over its last.

    Args:
        mean: m.
        kappa: κ, above 0.
        psi: ψ, above 0.
        nu: ν, above 0. All of shape (\*B,), or to be broadcast to it.

    Raises:
        InputError: shapes that do not broadcast; while torch validates distributions, values out of range.
    """

    mean: Tensor
    kappa: Tensor
    psi: Tensor
    nu: Tensor

    def __post_init__(self) -> None:
        _check("mean", self.mean, 0, torch.isfinite, "finite numbers")
        for name in ("kappa", "psi", "nu"):
            _check(name, getattr(self, name), 0, _positive, "numbers above 0")
        _broadcast(mean=self.mean.shape, kappa=self.kappa.shape, psi=self.psi.shape, nu=self.nu.shape)

    @classmethod
    def from_natural(cls, natural: NormalTerms) -> NormalInverseGamma:
        kappa = -2.0 * natural.square
        mean = natural.linear / kappa
        return cls(mean, kappa, -2.0 * natural.matrix - kappa * mean.square(), 2.0 * natural.log_det)

    def natural(self) -> NormalTerms:
        """η, each (\\*B,)."""
        matrix = -0.5 * (self.psi + self.kappa * self.mean.square())
        return NormalTerms(self.kappa * self.mean, -0.5 * self.kappa, matrix, 0.5 * self.nu)

    def log_partition(self) -> Tensor:
        """A(η), (\\*B,)."""
        half = 0.5 * self.nu
        return 0.5 * (_LOG_2PI - self.kappa.log()) + half * (_LOG_2 - self.psi.log()) + half.lgamma()

    @property
    def expected_precision(self) -> Tensor:
        """E[λ] = ν / ψ, (\\*B,)."""
        return self.nu / self.psi

    @property
    def expected_log_det(self) -> Tensor:
        """E[log λ] = ψ(ν/2) + log 2 - log ψ, (\\*B,)."""
        return (0.5 * self.nu).digamma() + _LOG_2 - self.psi.log()

    def expected_statistics(self) -> NormalTerms:
        """E[λμ], E[λμ²] = 1/κ + m² ν/ψ, E[λ], E[log λ], each (\\*B,)."""
        precision = self.expected_precision
        square = 1.0 / self.kappa + self.mean.square() * precision
        return NormalTerms(self.mean * precision, square, precision, self.expected_log_det)

    def expected_log_normal(self, x: Tensor) -> Tensor:
        """E[log N(x; μ, 1/λ)] of x that broadcasts to (\\*B,), nats."""
        square = self.expected_precision * (x - self.mean).square() + 1.0 / self.kappa
        return 0.5 * (self.expected_log_det - _LOG_2PI - square)

    def log_prob(self, mean: Tensor, precision: Tensor) -> Tensor:
        """log p(μ, λ), as a density of μ and of λ, (\\*B,), nats."""
        eta = self.natural()
        linear = eta.linear * mean * precision + eta.square * mean.square() * precision + eta.matrix * precision
        return linear + (eta.log_det - 0.5) * precision.log() - self.log_partition()

    def kl(self, other: NormalInverseGamma) -> Tensor:
        """KL(self ‖ other), (\\*B,), nats."""
        half, theirs = 0.5 * self.nu, 0.5 * other.nu
        precisions = (
            theirs * (self.psi.log() - other.psi.log())
            + half * (other.psi / self.psi - 1.0)
            + theirs.lgamma()
            - half.lgamma()
            + (half - theirs) * half.digamma()
        )
        ratio = other.kappa / self.kappa
        off = other.kappa * self.expected_precision * (self.mean - other.mean).square()
        return precisions + 0.5 * (ratio - 1.0 - ratio.log() + off)

    def posterior(self, x: Tensor, weights: Tensor | None = None) -> NormalInverseGamma:
        """p(μ, λ | x) of data x (N, \\*B), each counted `weights` times, as of `NormalInverseWishart.posterior`."""
        weights = torch.ones_like(x) if weights is None else weights
        n = weights.sum(0)
        average = (weights * x).sum(0) / _above_zero(n)
        scatter = (weights * (x - average).square()).sum(0)
        kappa = self.kappa + n
        off = average - self.mean
        psi = self.psi + scatter + self.kappa * n / kappa * off.square()
        return NormalInverseGamma(self.mean + n / kappa * off, kappa, psi, self.nu + n)

    def sample(self, shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """μ and λ, each (\\*shape, \\*B), by torch's generator."""
        left = torch.broadcast_shapes(self.mean.shape, self.kappa.shape, self.psi.shape, self.nu.shape)
        gamma = torch.distributions.Gamma(0.5 * self.nu.expand(left), 0.5 * self.psi.expand(left))
        precision = gamma.sample(torch.Size(shape))
        return self.mean + torch.randn_like(precision) / (self.kappa * precision).sqrt(), precision


def _log_prob(eta: NormalTerms, mean: Tensor, precision: Tensor, base: float, tied: bool = False) -> Tensor:
    """⟨η, T(μ, Λ)⟩ + base · log|Λ|."""
    linear = mean @ precision if tied else (precision @ mean[..., None]).squeeze(-1)  # Λμ
    ofs = (eta.linear * linear).sum(-1) + eta.square * (mean * linear).sum(-1)
    matrix = (eta.matrix * precision).sum((-2, -1))
    return (ofs.sum(-1) if tied else ofs) + matrix + (eta.log_det + base) * _log_det(precision)


def _mean_kl(
    q: NormalInverseWishart | TiedNormalInverseWishart,
    p: NormalInverseWishart | TiedNormalInverseWishart,
    psi: Tensor,
    nu: Tensor,
) -> Tensor:
    """E_q[KL(q(μ | Λ) ‖ p(μ | Λ))]."""
    ratio = p.kappa / q.kappa
    off = p.kappa * nu * _square(psi, q.mean - p.mean)
    return 0.5 * (q.size * (ratio - 1.0 - ratio.log()) + off)


def _moments(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted: number (\\*B,), mean (\\*B, D) and scatter about it (\\*B, D, D) of x (N, D), weights (N, \\*B)."""
    n = weights.sum(0)
    flat = weights.reshape(len(x), -1)  # (N, B)
    average = (flat.T @ x).reshape(*n.shape, -1) / _above_zero(n)[..., None]
    off = _spread(x, n.dim()) - average  # (N, *B, D)
    scatter = torch.einsum("n...,n...i,n...j->...ij", weights, off, off)
    return n, average, scatter


def _spread(x: Tensor, dims: int) -> Tensor:
    """(N, D) -> (N, 1, ..., 1, D), with `dims` ones."""
    return x.reshape(len(x), *[1] * dims, x.shape[-1])


def _square(psi: Tensor, off: Tensor) -> Tensor:
    """offᵀ Ψ⁻¹ off, of (\\*B, D, D) and (N, \\*B, D)."""
    root = torch.linalg.cholesky(psi)
    return _square_columns(root, off[None]).squeeze(0) if off.dim() < root.dim() else _square_columns(root, off)


def _square_columns(root: Tensor, off: Tensor) -> Tensor:
    # one solve with N columns, and not N solves
    whitened: Tensor = torch.linalg.solve_triangular(root, off.movedim(0, -1), upper=False)  # (*B, D, N)
    return whitened.square().sum(-2).movedim(-1, 0)


def _solve(psi: Tensor, right: Tensor) -> Tensor:
    solved: Tensor = torch.cholesky_solve(right, torch.linalg.cholesky(psi))
    return solved


def _log_det(matrix: Tensor) -> Tensor:
    root: Tensor = torch.linalg.cholesky(matrix)
    return 2.0 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def _outer(v: Tensor) -> Tensor:
    return v[..., :, None] * v[..., None, :]


def _symmetric(matrix: Tensor) -> Tensor:
    return 0.5 * (matrix + matrix.mT)


def _above_zero(n: Tensor) -> Tensor:
    """For a division where nothing is counted: 0 / tiny is 0."""
    return n.clamp_min(torch.finfo(n.dtype).tiny)


def _multilgamma(a: Tensor, d: int) -> Tensor:
    """log Γ_D(a) = D (D - 1) / 4 log π + Σ_i log Γ(a - i/2). (torch's reads the values.)"""
    order = 0.5 * torch.arange(d, dtype=a.dtype, device=a.device)
    return 0.25 * d * (d - 1) * _LOG_PI + (a[..., None] - order).lgamma().sum(-1)


def _multidigamma(a: Tensor, d: int) -> Tensor:
    """Σ_i ψ(a - i/2), the derivative of log Γ_D(a)."""
    order = 0.5 * torch.arange(d, dtype=a.dtype, device=a.device)
    return (a[..., None] - order).digamma().sum(-1)


def _positive(t: Tensor) -> Tensor:
    return (t > 0) & t.isfinite()


def _check(name: str, value: object, dims: int, good: Callable[[Tensor], Tensor] | None, what: str) -> None:
    """Shapes always; values where torch looks at values, and never in a step that is traced."""
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.dim() < dims:
        shape = f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise InputError(f"{name} must be a floating-point tensor with {dims} dimensions or more, not {shape}")
    if good is not None and Distribution._validate_args and not bool(good(value).all()):
        bad = value[~good(value)].flatten()[0].item()
        raise InputError(f"{name} must be {what}; among them is {bad:g}")


def _check_normal_wishart(mean: Tensor, kappa: Tensor, psi: Tensor, nu: Tensor, means: int) -> None:
    _check("mean", mean, 1 + means, torch.isfinite, "finite numbers")
    _check("kappa", kappa, means, _positive, "numbers above 0")
    _check("psi", psi, 2, torch.isfinite, "finite numbers")
    d = mean.shape[-1]
    if psi.shape[-2:] != (d, d):
        raise InputError(f"psi has shape {tuple(psi.shape)}; for a mean of {d} numbers it must end in ({d}, {d})")
    _check("nu", nu, 0, lambda t: (t > d - 1) & t.isfinite(), f"numbers above D - 1 = {d - 1}")
    left = mean.shape[: mean.dim() - 1 - means]
    if means and kappa.shape[-1] != mean.shape[-2]:
        raise InputError(f"kappa has shape {tuple(kappa.shape)}; there are {mean.shape[-2]} means")
    _broadcast(mean=left, kappa=kappa.shape[: kappa.dim() - means], psi=psi.shape[:-2], nu=nu.shape)
    if Distribution._validate_args:
        symmetric = (psi - psi.mT).abs() <= 1e-6 * psi.abs().amax((-2, -1), keepdim=True)
        if not bool(symmetric.all()) or bool((torch.linalg.cholesky_ex(psi).info > 0).any()):
            raise InputError("psi must be symmetric and positive definite")


def _broadcast(**shapes: torch.Size) -> None:
    try:
        torch.broadcast_shapes(*shapes.values())
    except RuntimeError as error:
        raise InputError(
            "batch shapes do not broadcast: " + ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items())
        ) from error
