"""The structured variational autoencoder's guide: recognition potentials, and mean-field inference in the mixture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ..batch import Batch
from ..conjugate import Dirichlet, NormalInverseWishart
from ..core import Encoder, Guide, LatentModel
from ..errors import InputError, check_count
from ..models.structured_vae import StructuredVAE, draw_shared
from ..networks import Linear
from ..validation import validation
from .base import guides

__all__ = ["LocalPosterior", "Potentials", "Structured"]

_START_UPDATES, _START_ROWS, _START_LR = 300, 128, 5e-3


class Potentials(NamedTuple):
    r"""Gaussian potentials ψ(z; x) ∝ exp(hᵀ z - ½ zᵀ diag(j) z) of N data.

    Args:
        linear: h, (N, D).
        precision: j, (N, D), above 0.
    """

    linear: Tensor
    precision: Tensor


class LocalPosterior(NamedTuple):
    """q(k_n) q(z_n) of N data.

    Args:
        logits: log q(k), (N, C), normalized.
        mean: of q(z), (N, D).
        scale_tril: Cholesky factor of q(z)'s covariance, (N, D, D).
    """

    logits: Tensor
    mean: Tensor
    scale_tril: Tensor

    @property
    def responsibilities(self) -> Tensor:
        """q(k), (N, C)."""
        return self.logits.exp()

    @property
    def covariance(self) -> Tensor:
        """Of q(z), (N, D, D)."""
        return self.scale_tril @ self.scale_tril.mT


@guides.register("structured")
class Structured(Guide):
    r"""Structured posterior: an encoder's Gaussian potentials, joined to the mixture by mean-field coordinate ascent.

    .. math:: q(π)\, \prod_c q(μ_c, Σ_c) \prod_n q(k_n)\, q(z_n), \qquad
        q(π) = \mathrm{Dir}, \quad q(μ_c, Σ_c) = \mathrm{NIW}

    The encoder says of each datum how its z looks by itself, ψ(z; x) ∝ exp(hᵀ z - ½ zᵀ diag(j) z). With expectations
    under q(π, μ, Σ) and Λ = Σ⁻¹, q(k) and q(z) are what mean-field inference makes of these potentials:

    .. math::
        q(z) = N(P^{-1} b, P^{-1}), \quad P = \sum_c r_c E[Λ_c] + \mathrm{diag}(j), \quad
        b = \sum_c r_c E[Λ_c μ_c] + h, \qquad
        r_c = q(k = c) \propto \exp\big(E[\log π_c] + E[\log N(z; μ_c, Σ_c)]\big)

    each given the other, `iterations` times without a graph, from r ∝ exp E[log π]; then once more with one, through
    which the gradient reaches the encoder. (Where the fixed point is reached r moves with the encoder too, and that
    part of the gradient is lost, but for `differentiated` > 1: so many rounds have a graph.)

    The parameters of q(π, μ, Σ) are kept as free numbers: log α, m, log κ, Ψ's Cholesky factor with the logarithm of
    its diagonal, log(ν - D + 1). So any step leads to a distribution. `StructuredELBO` moves them by natural gradients.

    Args:
        model: a `StructuredVAE`.
        encoder: features of a batch.
        iterations: rounds of coordinate ascent without a graph.
        differentiated: rounds with one.
        spread: of the components' means at the start, m ~ N(0, spread² I), which tells the components apart.

    Sites: the model's; "k" is enumerated.

    Raises:
        InputError: another model; numbers that are none.

    Reference: Johnson et al., NIPS 2016 (https://arxiv.org/abs/1603.06277).
    """

    takes_shared = True

    def __init__(
        self,
        model: LatentModel,
        encoder: Encoder,
        iterations: int = 10,
        differentiated: int = 1,
        spread: float = 3.0,
    ) -> None:
        super().__init__()
        if not isinstance(model, StructuredVAE):
            raise InputError(
                f"guide='structured' is of model='structured-vae', whose posterior it knows; {type(model).__name__} is "
                "another: use 'mean-field'"
            )
        check_count("iterations", iterations, least=0)
        check_count("differentiated", differentiated)
        if isinstance(spread, bool) or not (isinstance(spread, int | float) and 0 < spread < float("inf")):
            raise InputError(f"spread={spread!r} must be a standard deviation, a number above 0")
        self.sites = tuple(model.latents)
        self.iterations, self.differentiated = iterations, differentiated
        self.encoder = encoder
        self.potential = Linear(encoder.features, 2 * model.latent)
        c, d = model.components, model.latent
        one = torch.ones(c)
        free = free_numbers(
            Dirichlet(one),
            NormalInverseWishart(spread * torch.randn(c, d), one, (d + 1) * torch.eye(d).repeat(c, 1, 1), d + one),
        )
        self.shared = nn.ParameterDict({name: nn.Parameter(value) for name, value in free.items()})

    def posterior(self) -> tuple[Dirichlet, NormalInverseWishart]:
        """q(π), and q(μ, Σ) of the components."""
        return from_free(self.shared)

    def draw_shared(self, batch: Batch) -> dict[str, Tensor]:
        """π, μ and Σ, drawn alone."""
        return draw_shared(*self.posterior())

    @torch.no_grad()
    def set_posterior(self, weights: Dirichlet, normals: NormalInverseWishart) -> None:
        """Make q(π, μ, Σ) this one."""
        for name, value in free_numbers(weights, normals).items():
            self.shared[name].copy_(value)

    def start_at(self, model: StructuredVAE, batch: Batch, spread: float = 3.0, sharpness: float = 30.0) -> None:
        r"""Set encoder's head, decoder and likelihood near an autoencoder, from data: a start from which the mixture
        finds clusters.

        From random networks the codes say nothing of x while they cost their KL, and all components merge before the
        decoder has learnt to read them. Here potentials start as N(z; m(x), I / `sharpness`) about the data's
        principal components, each in units of its standard deviation times `spread`: the linear map from features that
        is nearest to them by least squares. To draws of these the decoder is fitted by some updates of Adam. What has
        `requires_grad=False` stays.

        Args:
            model: the one that this guide is for.
            batch: data, some thousands are enough.
            spread: standard deviation of the codes in each dimension; 0 in dimensions of z that the data have not.
            sharpness: of the potentials, an inverse variance.

        Raises:
            InputError: a batch without x or with fewer than 2 data, numbers that are none.
        """
        for name, number in (("spread", spread), ("sharpness", sharpness)):
            if isinstance(number, bool) or not (isinstance(number, int | float) and 0 < number < float("inf")):
                raise InputError(f"{name}={number!r} must be a number above 0")
        if batch.x is None or batch.size < 2:
            came = "no x" if batch.x is None else str(batch.size)
            raise InputError(f"a start needs x of 2 data or more: the batch has {came}")
        linear = self.potential.linear
        size = linear.out_features // 2
        with torch.no_grad():
            features = self.encoder(batch).detach()
            codes = spread * principal_codes(batch.x, batch.observed, size)
            weight, shift = least_squares(features, sharpness * codes)
            linear.weight[:size], linear.bias[:size] = weight, shift
            linear.weight[size:] *= 0.1  # nearly as sharp for every x
            linear.bias[size:] = sharpness
            mean = (features @ weight.mT + shift) / sharpness
        parts = [p for part in (model.decoder, model.likelihood) for p in part.parameters() if p.requires_grad]
        if not parts:
            return
        optimizer = torch.optim.Adam(parts, lr=_START_LR)
        rows = min(batch.size, _START_ROWS)
        with torch.enable_grad(), validation(False):
            for _ in range(_START_UPDATES):
                part = torch.randint(batch.size, (rows,), device=mean.device)
                z = mean[part] + sharpness**-0.5 * torch.randn_like(mean[part])
                observed = None if batch.observed is None else batch.observed[part]
                optimizer.zero_grad()
                (-model.decoded(z, observed).log_prob(batch.x[part]).mean()).backward()
                optimizer.step()
        for p in parts:
            p.grad = None

    def potentials(self, batch: Batch) -> Potentials:
        """What the encoder says of z; its natural parameters are h and -½ softplus(.)."""
        linear, raw = self.potential(self.encoder(batch)).chunk(2, dim=-1)
        return Potentials(linear, softplus(raw))

    def infer(self, batch: Batch, shared: tuple[Dirichlet, NormalInverseWishart] | None = None) -> LocalPosterior:
        """q(k_n) q(z_n) of a batch, under q(π, μ, Σ): this guide's, or another."""
        weights, normals = self.posterior() if shared is None else shared
        return local_posterior(self.potentials(batch), weights, normals, self.iterations, self.differentiated)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        shared = self.posterior()
        draws = draw_shared(*shared)
        local = self.infer(batch, shared)
        with pyro.plate("data", batch.size, dim=-1):
            k = pyro.sample("k", dist.Categorical(logits=local.logits), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.MultivariateNormal(local.mean, scale_tril=local.scale_tril))
        return {**draws, "k": k, "z": z}

    def extra_repr(self) -> str:
        return f"iterations={self.iterations}, differentiated={self.differentiated}"


def local_posterior(
    potentials: Potentials,
    weights: Dirichlet,
    normals: NormalInverseWishart,
    iterations: int,
    differentiated: int = 1,
) -> LocalPosterior:
    """Mean-field coordinate ascent on q(k_n) q(z_n), as of `Structured`."""
    log_pi = weights.expected_statistics()
    statistics = normals.expected_statistics()

    def of_z(logits: Tensor) -> tuple[Tensor, Tensor]:
        share = logits.exp()
        precision = (share @ statistics.matrix.flatten(1)).unflatten(-1, statistics.matrix.shape[-2:])
        precision = precision + potentials.precision.diag_embed()
        linear = share @ statistics.linear + potentials.linear
        # P = U Uᵀ with an upper U, so that P⁻¹ = U⁻ᵀ U⁻¹ has the lower Cholesky factor U⁻ᵀ
        upper = torch.linalg.cholesky(precision.flip(-2, -1)).flip(-2, -1)
        eye = torch.eye(upper.shape[-1], dtype=upper.dtype, device=upper.device).expand_as(upper)
        scale_tril = torch.linalg.solve_triangular(upper, eye, upper=True).mT
        mean = (scale_tril @ (scale_tril.mT @ linear.unsqueeze(-1))).squeeze(-1)
        return mean, scale_tril

    def of_k(mean: Tensor, scale_tril: Tensor) -> Tensor:
        covariance = (scale_tril @ scale_tril.mT).flatten(1)
        spread = covariance @ statistics.matrix.flatten(1).T  # tr(E[Λ_c] V_n)
        return (log_pi + normals.expected_log_normal(mean) - 0.5 * spread).log_softmax(-1)

    count = potentials.linear.shape[0]
    logits = log_pi.log_softmax(-1).expand(count, -1)
    with torch.no_grad():
        for _ in range(iterations):
            logits = of_k(*of_z(logits))
    for _ in range(differentiated):
        mean, scale_tril = of_z(logits)
        logits = of_k(mean, scale_tril)
    return LocalPosterior(logits, mean, scale_tril)


def principal_codes(x: Tensor, observed: Tensor | None, size: int) -> Tensor:
    """The first principal components of x (N, \\*D), each with variance 1; 0 beyond those that there are, (N, size).
    What is not observed counts as its mean."""
    flat = x.flatten(1)
    if observed is None:
        flat = flat - flat.mean(0)
    else:
        seen = observed.flatten(1).to(flat)
        flat = seen * (flat - (seen * flat).sum(0) / seen.sum(0).clamp_min(1.0))
    u, s, _ = torch.svd_lowrank(flat, q=min(size + 6, *flat.shape), niter=4)
    codes = flat.new_zeros(len(flat), size)
    keep = min(size, int((s > 1e-6 * s[0]).sum()) if float(s[0]) > 0 else 0)
    codes[:, :keep] = u[:, :keep] * len(flat) ** 0.5
    return codes


def least_squares(features: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The affine map, weight and bias, from features (N, F) that is nearest to a target (N, D), with a little ridge."""
    center, goal = features.double().mean(0), target.double().mean(0)
    centered = features.double() - center
    square = centered.mT @ centered
    ridge = 1e-6 * square.diagonal().mean().clamp_min(1e-12)
    square = square + ridge * torch.eye(len(square), dtype=square.dtype, device=square.device)
    weight = torch.linalg.solve(square, centered.mT @ (target.double() - goal)).mT
    return weight.to(features), (goal - weight @ center).to(features)


def free_numbers(weights: Dirichlet, normals: NormalInverseWishart) -> dict[str, Tensor]:
    """The parameters of q(π, μ, Σ) as numbers without bounds."""
    root = torch.linalg.cholesky(normals.psi)
    return {
        "log_alpha": weights.concentration.log(),
        "mean": normals.mean.clone(),
        "log_kappa": normals.kappa.log(),
        "root": root.tril(-1) + root.diagonal(dim1=-2, dim2=-1).log().diag_embed(),
        "log_nu": (normals.nu - normals.size + 1.0).log(),
    }


def from_free(free: Mapping[str, Tensor] | nn.ParameterDict) -> tuple[Dirichlet, NormalInverseWishart]:
    """The inverse of `free_numbers`."""
    raw = free["root"]
    root = raw.tril(-1) + raw.diagonal(dim1=-2, dim2=-1).exp().diag_embed()
    nu = free["log_nu"].exp() + (raw.shape[-1] - 1.0)
    normals = NormalInverseWishart(free["mean"], free["log_kappa"].exp(), root @ root.mT, nu)
    return Dirichlet(free["log_alpha"].exp()), normals
