"""The Gaussian mixture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, Literal

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ..batch import Batch
from ..conjugate import Dirichlet, NormalInverseGamma, NormalInverseWishart, TiedNormalInverseWishart
from ..core import LatentModel, LatentSpec
from ..errors import InputError, check_count
from ..mixture_parameters import (
    Data,
    DirichletNormal,
    MixtureParameters,
    check_covariance,
    check_data,
    normal,
)
from ..networks import soft_bound
from .base import models

__all__ = ["GaussianMixture"]

_LOG_SCALE_BOUND = 30.0
"""Data have any units: scales lie within 1e-13 and 1e13, whose squares float32 still has."""
_NORMALS: dict[str, Callable[..., NormalInverseWishart | TiedNormalInverseWishart | NormalInverseGamma]] = {
    "full": NormalInverseWishart,
    "tied": TiedNormalInverseWishart,
    "diagonal": NormalInverseGamma,
}


@models.register("gaussian-mixture")
class GaussianMixture(LatentModel):
    r"""Gaussian mixture: z ~ Cat(π), x | z ~ N(μ_z, Σ_z).

    .. math:: p(x) = \sum_k π_k \, N(x; μ_k, Σ_k)

    Without a prior π, μ and Σ are parameters, to be fitted by maximum likelihood: by `em`, or as any other model with a
    guide of z, `guides.Exact` or `guides.Enumerated`. With one they are latent variables that all data share, to be
    inferred by `coordinate_ascent`, by gradients with `guides.Combined`, or by `sample_parameters` (NUTS).

    Args:
        components: K.
        size: D, the length of x.
        covariance: of the components: "full", "tied" (one for all), "diagonal".
        prior: over π, μ and Σ, of the same K, D and covariance, as ``DirichletNormal.weak(x, K)``.

    Parameters start at equal weights, means drawn from N(0, I) and unit covariances.

    Sites: "z", (\*S, N) events (); "x", (\*S, N) events (D,), observed where `batch.x` is given. With a prior,
    outside of the data plate: "weights" events (K,); "loc" events (K, D); the covariances by Bartlett's decomposition,
    Σ = L Lᵀ with L = C B⁻¹, Ψ = C Cᵀ, as "chi_square" events (K, D), the squares of B's diagonal, and "below" events
    (K, D(D-1)/2), what is below it (where D > 1); without K where tied; for diagonal ones "precision" events (K, D).
    `parameters_of` makes π, μ, Σ of them.

    Raises:
        InputError: numbers that are none, an unknown covariance, a prior of another mixture. When run: x of another
            shape, a batch with `observed`.

    Example:
        >>> mixture = GaussianMixture(components=3, size=2)
        >>> mixture(Batch(n=5)).shape
        torch.Size([5, 2])

    Reference: Bishop, Pattern recognition and machine learning, 2006, chapters 9.2 and 10.2.
    """

    by_name: ClassVar[str] = (
        "fit it in a program, em(GaussianMixture(components=3, size=2), load(...).train), or with a prior by "
        "coordinate_ascent: examples/gaussian_mixture.py does, and by gradients and NUTS"
    )
    """What the command line says instead of making one."""

    eye: Tensor

    def __init__(
        self,
        components: int,
        size: int,
        covariance: Literal["full", "tied", "diagonal"] = "full",
        prior: DirichletNormal | None = None,
    ) -> None:
        super().__init__()
        check_count("components", components)
        check_count("size", size)
        check_covariance(covariance)
        self.components, self.size, self.covariance = components, size, covariance
        dtype = None if prior is None else prior.weights.concentration.dtype
        self.register_buffer("eye", torch.eye(components, dtype=dtype))
        discrete = constraints.integer_interval(0, components - 1)
        self.has_prior = prior is not None
        if prior is None:
            k = (components,) if covariance != "tied" else ()
            self.logits = nn.Parameter(torch.zeros(components))
            self.loc = nn.Parameter(torch.randn(components, size))
            # the logarithm of standard deviations, or of the Cholesky factor's diagonal, which has the rest below
            self.raw_scale = nn.Parameter(torch.zeros(*k, size, *([] if covariance == "diagonal" else [size])))
            self.latents = {"z": LatentSpec(torch.Size(), discrete)}
            return
        came = (prior.components, prior.size, prior.covariance)
        if came != (components, size, covariance):
            raise InputError(
                f"prior is of {came[0]} components of {came[1]} numbers with {came[2]} covariances; the mixture has "
                f"{components} of {size} with {covariance} ones"
            )
        for part in ("weights", "normals"):
            for name, value in vars(getattr(prior, part)).items():
                self.register_buffer(f"prior_{name}", value.detach().clone())
        self.latents = {**self._shared_latents(), "z": LatentSpec(torch.Size(), discrete, parents=("weights",))}

    def _shared_latents(self) -> dict[str, LatentSpec]:
        k, d = self.components, self.size
        several = (k,) if self.covariance != "tied" else ()
        positive, real = constraints.positive, constraints.real
        shared = {"weights": LatentSpec(torch.Size([k]), constraints.simplex, "global")}
        if self.covariance == "diagonal":
            scales = {"precision": LatentSpec(torch.Size([k, d]), constraints.independent(positive, 2), "global")}
        else:
            event = torch.Size([*several, d])
            scales = {"chi_square": LatentSpec(event, constraints.independent(positive, len(event)), "global")}
            if d > 1:
                event = torch.Size([*several, d * (d - 1) // 2])
                scales["below"] = LatentSpec(event, constraints.independent(real, len(event)), "global")
        shared |= scales
        shared["loc"] = LatentSpec(torch.Size([k, d]), constraints.independent(real, 2), "global", tuple(scales))
        return shared

    @property
    def prior(self) -> DirichletNormal:
        """The prior of a mixture that has one."""
        if not self.has_prior:
            raise InputError(
                "this mixture has no prior: GaussianMixture(..., prior=DirichletNormal.weak(x, components))"
            )
        fields = [self.get_buffer(f"prior_{name}") for name in ("mean", "kappa", "psi", "nu")]
        weights = Dirichlet(self.get_buffer("prior_concentration"))
        return DirichletNormal(weights, _NORMALS[self.covariance](*fields))

    def forward(self, batch: Batch) -> Tensor:
        if batch.observed is not None:
            raise InputError("GaussianMixture scores all of x: batch.observed must be None")
        if batch.x is not None and tuple(batch.x.shape[1:]) != (self.size,):
            raise InputError(f"batch.x has shape {tuple(batch.x.shape)}; this mixture is of ({self.size},) numbers")
        parameters = self.parameters_of(self._draw() if self.has_prior else None)
        with pyro.plate("data", batch.size, dim=-1):
            z = pyro.sample("z", dist.Categorical(logits=parameters.log_weights))
            x: Tensor = pyro.sample("x", self._chosen(parameters, z), obs=batch.x)
        return x

    def _draw(self) -> dict[str, Tensor]:
        """The parameters from their prior."""
        prior = self.prior
        values = {"weights": pyro.sample("weights", dist.Dirichlet(prior.weights.concentration))}
        n, d = prior.normals, self.size
        if self.covariance == "diagonal":
            values["precision"] = pyro.sample("precision", dist.Gamma(0.5 * n.nu, 0.5 * n.psi).to_event(2))
        else:
            # the squares of B's diagonal where BᵀB ~ W(I, ν): B is read from the last row upwards
            order = torch.arange(1.0, d + 1.0, dtype=n.nu.dtype, device=n.nu.device)
            shape = 0.5 * (n.nu[..., None] - d + order)
            chi_square = dist.Gamma(shape, torch.full_like(shape, 0.5))
            values["chi_square"] = pyro.sample("chi_square", chi_square.to_event(shape.dim()))
            if d > 1:
                zero = n.psi.new_zeros(self.latents["below"].event_shape)
                values["below"] = pyro.sample("below", dist.Normal(zero, torch.ones_like(zero)).to_event(zero.dim()))
        scale = self._scale_of(values)
        kappa = n.kappa.sqrt()
        if self.covariance == "diagonal":
            loc = dist.Normal(n.mean, scale / kappa).to_event(2)
        else:
            loc = dist.MultivariateNormal(n.mean, scale_tril=scale / kappa[:, None, None]).to_event(1)
        values["loc"] = pyro.sample("loc", loc)
        return values

    def _chosen(self, parameters: MixtureParameters, z: Tensor) -> dist.TorchDistribution:
        """N(μ_z, Σ_z): components are picked by a product, in which any dimensions to the left broadcast."""
        one = self.eye[z.long()].unsqueeze(-2)  # (*S, N, 1, K)
        loc = (one @ parameters.loc).squeeze(-2)
        if parameters.diagonal:
            return normal(loc, (one @ parameters.scale).squeeze(-2))
        flat = (one @ parameters.scale.flatten(-2)).squeeze(-2)
        return normal(loc, flat.unflatten(-1, (self.size, self.size)))

    def parameters_of(self, values: Mapping[str, Tensor] | None = None) -> MixtureParameters:
        r"""π, μ and Σ: the model's own parameters, or those that draws of a mixture with a prior stand for.

        Args:
            values: of each latent site that all data share, (\*S, \*event); None for a mixture without prior.

        Raises:
            InputError: values where there is no prior, none where there is one, or of a site too few.
        """
        if not self.has_prior:
            if values is not None:
                raise InputError("this mixture has no prior, and its parameters are its own: parameters_of()")
            scale = self._own_scale()
            return MixtureParameters(self.logits.log_softmax(-1), self.loc, scale)
        wanted = [name for name, spec in self.latents.items() if spec.scope == "global"]
        if values is None or (missing := [name for name in wanted if name not in values]):
            raise InputError(
                f"the parameters of a mixture with a prior are latent: give values of {wanted}"
                + ("" if values is None else f"; {missing} is missing")
            )
        loc, scale = values["loc"], self._scale_of(values)
        # a diagonal scale has as many dimensions as loc, a full one more: of equal ones to the left
        events = 2 if self.covariance == "diagonal" else 3
        left = torch.broadcast_shapes(loc.shape[:-2], scale.shape[:-events])
        loc, scale = loc.expand(*left, *loc.shape[-2:]), scale.expand(*left, *scale.shape[-events:])
        return MixtureParameters(values["weights"].log(), loc, scale)

    def values_of(self, parameters: MixtureParameters) -> dict[str, Tensor]:
        r"""The values of the latent sites that stand for one mixture (\*S = ()), as NUTS or a guide wants to start at:
        the inverse of `parameters_of`."""
        prior = self.prior
        values = {"weights": parameters.log_weights.exp(), "loc": parameters.loc}
        scale = parameters.scale[0] if self.covariance == "tied" else parameters.scale
        if self.covariance == "diagonal":
            values["precision"] = scale.square().reciprocal()
        else:
            psi = torch.linalg.cholesky(prior.normals.psi)
            root = torch.linalg.solve_triangular(scale, psi, upper=False)  # B = L⁻¹ C
            values["chi_square"] = root.diagonal(dim1=-2, dim2=-1).square()
        if "below" in self.latents:
            rows, columns = self._below()
            values["below"] = root[..., rows, columns]
        return {name: values[name] for name in self.latents if name in values}

    def set_parameters(self, parameters: MixtureParameters) -> None:
        """Take over the values of one mixture, as of `em`: for a mixture without prior."""
        if self.has_prior:
            raise InputError("this mixture has a prior, and no parameters of its own")
        scale = parameters.scale[0] if self.covariance == "tied" else parameters.scale
        log_scale = (scale if self.covariance == "diagonal" else scale.diagonal(dim1=-2, dim2=-1)).log()
        limit = 0.99 * _LOG_SCALE_BOUND
        raw = _LOG_SCALE_BOUND * (log_scale.clamp(-limit, limit) / _LOG_SCALE_BOUND).atanh()
        if self.covariance != "diagonal":
            raw = raw.diag_embed() + scale.tril(-1)
        with torch.no_grad():
            self.logits.copy_(parameters.log_weights)
            self.loc.copy_(parameters.loc)
            self.raw_scale.copy_(raw)

    def _own_scale(self) -> Tensor:
        if self.covariance == "diagonal":
            return soft_bound(self.raw_scale, _LOG_SCALE_BOUND).exp()
        diagonal = soft_bound(self.raw_scale.diagonal(dim1=-2, dim2=-1), _LOG_SCALE_BOUND).exp()
        scale = self.raw_scale.tril(-1) + diagonal.diag_embed()
        return scale.expand(self.components, -1, -1)

    def _scale_of(self, values: Mapping[str, Tensor]) -> Tensor:
        """Standard deviations (\\*S, K, D), or Cholesky factors (\\*S, K, D, D)."""
        if self.covariance == "diagonal":
            return values["precision"].rsqrt()
        root = values["chi_square"].sqrt().diag_embed()
        if self.size > 1:
            rows, columns = self._below()
            numbers = values["below"]
            below = numbers.new_zeros(*numbers.shape[:-1], self.size, self.size)
            below[..., rows, columns] = numbers
            root = root + below
        psi = torch.linalg.cholesky(self.get_buffer("prior_psi"))
        scale: Tensor = torch.linalg.solve_triangular(root, psi, upper=False, left=False)  # L B = C
        if self.covariance == "tied":
            scale = scale.unsqueeze(-3).expand(*scale.shape[:-2], self.components, -1, -1)
        return scale

    def _below(self) -> tuple[Tensor, Tensor]:
        rows, columns = torch.tril_indices(self.size, self.size, -1, device=self.eye.device)
        return rows, columns

    def log_prob(self, x: Data) -> Tensor:
        """log p(x) of x (N, D), (N,), nats."""
        return self.parameters_of().log_prob(check_data(x, self.size))

    def responsibilities(self, x: Data) -> Tensor:
        """p(z = k | x), (N, K)."""
        return self.parameters_of().responsibilities(check_data(x, self.size))

    def predict(self, x: Data) -> Tensor:
        """The most probable component of each datum, (N,)."""
        return self.parameters_of().predict(check_data(x, self.size))

    def sample(self, n: int) -> tuple[Tensor, Tensor]:
        """x (n, D) and the component (n,) that each is of."""
        check_count("n", n)
        with torch.no_grad():
            return self.parameters_of().sample(n)

    def bic(self, x: Data) -> float:
        """Bayesian information criterion, -2 Σ log p(x) + P log N, by which to choose K: lower is better."""
        with torch.no_grad():
            return float(self.parameters_of().bic(check_data(x, self.size), self.covariance))

    def extra_repr(self) -> str:
        prior = ", with a prior" if self.has_prior else ""
        return f"components={self.components}, size={self.size}, covariance={self.covariance!r}{prior}"
