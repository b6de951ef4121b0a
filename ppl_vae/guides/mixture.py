"""The mixture guide."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, cast

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from ..batch import Batch
from ..core import Encoder, LatentModel
from ..errors import InputError, choose
from ..mixtures import NormalMixture
from ..networks import DiagonalNormals, Head, Linear
from .base import Amortized, guides
from .points import Points, placed

__all__ = ["Mixture"]

Estimator = Literal["stratified", "reparameterized"]

COMPONENT, DENSITY = "component", "mixture"


@guides.register("mixture")
class Mixture(Amortized):
    r"""Mixture of K diagonal Gaussians, weights, means and scales amortized: a posterior of several modes.

    .. math:: q(z \mid x) = \sum_{k=1}^K π_k(x) \prod_{\text{site } i} N(z_i; m_{ki}(x), \mathrm{diag}\, s_{ki}(x)^2)

    One component is of all latent sites, so that sites are dependent given x. Two unbiased gradients:

    "stratified" draws one z of every component and weighs what comes of it by π: K draws and K runs of the decoder a
    particle. The component is an auxiliary site that is enumerated, and a factor makes log q the mixture's,

    .. math::
        \underbrace{\log π_k + \log N_k(z)}_{\text{sites}} + \underbrace{\log q(z) - \log π_k N_k(z)}_{\text{factor}}
        = \log q(z \mid x),

    whichever k a z came of. An objective's expectation over the component is then exact, Σ_k π_k E_{N_k}[.], and an
    importance-weighted bound is stratified, log Σ_k π_k p(x, z_k) / q(z_k | x), z_k ~ N_k.

    "reparameterized" draws one z of the mixture, with implicit derivatives (`NormalMixture`): one run of the decoder a
    particle, and a noisier gradient, above all of the weights of components that lie far apart. Several sites are drawn
    one after another, each with the weights that those before it leave.

    Args:
        model: what the guide is for; only its `latents` are read.
        encoder: features of a batch.
        components: K, 2 or more.
        estimator: of the gradient, and of the bound.

    Sites: the model's latent sites, (\*S, N), and for "stratified" the auxiliary ones "component" and "mixture".

    Raises:
        InputError: fewer than two components, an unknown estimator; a latent site shared by all data, of a discrete
            support, or of the name of an auxiliary one.

    References:
        Roeder, Wu and Duvenaud, Sticking the landing, NeurIPS 2017, section 6 (https://arxiv.org/abs/1703.09194).
        Morningstar et al., Automatic differentiation variational inference with mixtures, AISTATS 2021
        (https://arxiv.org/abs/2003.01687): the stratified bounds.
        Figurnov, Mohamed and Mnih, Implicit reparameterization gradients, NeurIPS 2018
        (https://arxiv.org/abs/1805.08498).
    """

    one_hot: Tensor

    def __init__(
        self, model: LatentModel, encoder: Encoder, components: int = 4, estimator: Estimator = "stratified"
    ) -> None:
        if not isinstance(components, int) or isinstance(components, bool) or components < 2:
            raise InputError(
                f"components={components!r} must be a whole number, 2 or more: with one it would be MeanField"
            )
        if estimator not in ("stratified", "reparameterized"):
            raise choose("estimator", estimator, ("stratified", "reparameterized"))
        super().__init__(model, encoder, partial(DiagonalNormals, components=components))
        if taken := {COMPONENT, DENSITY} & set(self.sites):
            raise InputError(
                f"Mixture has auxiliary sites of its own named {sorted(taken)}, as this model's latents are"
            )
        self.components = components
        self.estimator = estimator
        self.logits = Linear(encoder.features, components)
        self.register_buffer("one_hot", torch.eye(components), persistent=False)

    def forward(self, batch: Batch, **latents: Tensor) -> dict[str, Tensor]:
        features = self.encoder(batch, **latents)
        with pyro.plate("data", batch.size, dim=-1):
            return self.draw(features)

    def draw(self, features: Tensor) -> dict[str, Tensor]:
        log_weights: Tensor = self.logits(features).log_softmax(-1)  # (N, K)
        draw = self._stratified if self.estimator == "stratified" else self._reparameterized
        return draw(log_weights, self.gaussians(features))  # batch (N, K)

    def _stratified(self, log_weights: Tensor, components: Mapping[str, Any]) -> dict[str, Tensor]:
        component = pyro.sample(
            COMPONENT, dist.Categorical(logits=log_weights), infer={"is_auxiliary": True, "enumerate": "parallel"}
        )
        chosen = self.one_hot[component]  # (*S, N, K), or (K, 1, 1, K) where it is enumerated
        draws: dict[str, Tensor] = {}
        log_joint = log_weights
        for name, normals in components.items():
            draws[name] = pyro.sample(name, self._to_support(name, _of(chosen, normals)))
            log_joint = log_joint + self._log_densities(name, normals, draws[name])  # (*S, N, K)
        pyro.factor(DENSITY, log_joint.logsumexp(-1) - (chosen * log_joint).sum(-1), has_rsample=True)
        return draws

    def _reparameterized(self, log_weights: Tensor, components: Mapping[str, Any]) -> dict[str, Tensor]:
        draws: dict[str, Tensor] = {}
        for name, normals in components.items():
            draws[name] = pyro.sample(name, self._to_support(name, NormalMixture(log_weights, normals)))
            if len(components) > 1:
                log_weights = log_weights + self._log_densities(name, normals, draws[name])
        return draws

    def of_features(self, features: Tensor) -> dict[str, TorchDistributionMixin]:
        """The mixture, where the model has one latent site.

        Raises:
            NotImplementedError: there are several, which a mixture makes dependent.
        """
        if len(self.heads) > 1:
            raise NotImplementedError(
                f"{type(self).__name__} has no closed-form distribution of each site: run it and use its draws"
            )
        return {
            name: self._to_support(name, NormalMixture(self.logits(features), normals))
            for name, normals in self.gaussians(features).items()
        }

    def points(self, features: Tensor, noise: Mapping[str, Tensor]) -> Points:
        """A draw of every component at each of P, weighed by π: strata (K, P, \\*S, N)."""
        log_weights: Tensor = self.logits(features).log_softmax(-1)
        log_joint, values = log_weights, {}
        for name, normals in self.gaussians(features).items():
            # (K, P, *S, N, *event)
            drawn = placed(self._to_support(name, normals), noise[name])
            values[name] = drawn.movedim(-1 - len(cast(Head, self.heads[name]).event_shape), 0)
            log_joint = log_joint + self._log_densities(name, normals, values[name])
        return Points(values, log_joint.logsumexp(-1), log_weights.exp().movedim(-1, 0).unsqueeze(1))

    def _to_support(self, name: str, free: TorchDistributionMixin) -> TorchDistributionMixin:
        return cast(Head, self.heads[name]).to_support(free)

    def _log_densities(self, name: str, normals: Any, value: Tensor) -> Tensor:
        """log N_k of a value in the site's support, (\\*S, N, K)."""
        pushed = self._to_support(name, normals)
        log_prob: Tensor = pushed.log_prob(value.unsqueeze(-1 - pushed.event_dim))
        return log_prob

    def extra_repr(self) -> str:
        return f"components={self.components}, estimator={self.estimator!r}"


def _of(chosen: Tensor, normals: Any) -> TorchDistributionMixin:
    """The Gaussian that is chosen of K, by a one-hot (\\*S, N, K)."""
    events = len(normals.event_shape)
    weights = chosen.reshape(*chosen.shape, *[1] * events)
    base = normals.base_dist if events else normals
    loc, scale = ((weights * t).sum(-1 - events) for t in (base.loc, base.scale))
    normal: TorchDistributionMixin = dist.Normal(loc, scale).to_event(events)
    return normal
