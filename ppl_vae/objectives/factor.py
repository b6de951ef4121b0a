"""FactorVAE: a discriminator that tells draws of q(z) from draws with independent dimensions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import softplus
from torch.optim import Adam, Optimizer

from ..core import LatentModel, LatentSpec
from ..errors import InputError, check_count, check_number
from ..weights import LogWeights, Program
from .base import Terms, datum_latents, objectives
from .decomposition import logged
from .divergence import KL, WithDivergence, expected, parts

__all__ = ["FactorVAE"]


@objectives.register("factor")
class FactorVAE(WithDivergence):
    r"""The bound with a penalty on the total correlation, by a density ratio that is learned alongside.

    .. math::
        \mathrm{ELBO} - γ\, E_{q(z)}[D(z)], \qquad
        D(z) \approx \log \frac{q(z)}{\prod_d q(z_d)}

    D is the logit of a classifier between draws of q(z) and the same draws with every dimension shuffled over the batch
    by itself. One loss trains both: in the pair's term D's parameters are held, in the classifier's cross-entropy the
    draws are, and of the latter the loss has the gradient and not the value; the classifier has Adam of its own. It
    takes any guide, for it needs draws alone. With γ = 0 it is the `ELBO`, in value and in the pair's gradients.

    Args:
        model: whose latents z is made of; only its `latents` are read.
        gamma: γ >= 0.
        hidden: width of the classifier's layers.
        layers: how many.
        lr: its learning rate, Adam with moments 0.5 and 0.9.
        particles, kl, data_size: as for `ELBO`; the penalty takes the first particle.
        size: N, for the decomposition that is logged alone.

    Logs besides the bound's parts: "tc_discriminator", E_q(z)[D(z)], nats; "discriminator", the classifier's
    cross-entropy, log 2 where it cannot tell the two apart; and the decomposition of `logged` where there is one.

    Raises:
        InputError: numbers out of range; a latent site that is discrete or shared by all data; a batch of one datum.

    Reference: Kim and Mnih, Disentangling by factorising, ICML 2018 (https://arxiv.org/abs/1802.05983), who have 6
    layers of 1000 and shuffle a second batch; here it is the same batch's draws.
    """

    def __init__(
        self,
        model: LatentModel | Mapping[str, LatentSpec],
        gamma: float = 6.0,
        hidden: int = 1000,
        layers: int = 6,
        lr: float = 1e-4,
        size: int | None = None,
        particles: int = 1,
        kl: KL = "auto",
        data_size: int | None = None,
    ) -> None:
        super().__init__(particles, kl, data_size)
        self.gamma = check_number("gamma", gamma, least=0.0)
        self.lr = check_number("lr", lr, above=0.0)
        self.size = size
        latents = datum_latents(model, "FactorVAE shuffles the dimensions of each datum's z")
        if discrete := [name for name, spec in latents.items() if spec.support.is_discrete]:
            raise InputError(f"FactorVAE is of continuous latents, and {', '.join(map(repr, discrete))} is discrete")
        self.sites = tuple(latents)
        width = sum(math.prod(spec.event_shape) for spec in latents.values())
        self.discriminator = _classifier(width, check_count("hidden", hidden), check_count("layers", layers))

    def terms(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Terms:
        w = self.weights(model, guide, *args, **kwargs)
        self.refuse_rigid(w)
        if w.size < 2:
            raise InputError(f"FactorVAE shuffles over the batch, and this one has {w.size} datum; give 2 or more")
        kl = self.divergence(w)
        z = self._codes(w)
        held = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        ratio = functional_call(self.discriminator, held, (z,)).squeeze(-1)
        with torch.no_grad():
            order = torch.rand_like(z).argsort(0)
            shuffled = z.gather(0, order)
        own = self.discriminator(z.detach()).squeeze(-1)
        other = self.discriminator(shuffled).squeeze(-1)
        entropy = 0.5 * (softplus(-own) + softplus(other))
        loss = expected(w, kl - w.log_likelihood) + self.gamma * ratio
        loss = loss + (entropy - entropy.detach())
        logs = {"tc_discriminator": ratio.detach(), "discriminator": entropy.detach()}
        return Terms(loss, {**parts(w, kl), **logs, **logged(w, self.size)})

    def optimizers(self, model: Program | None = None, guide: Program | None = None) -> Sequence[Optimizer]:
        """Adam of the classifier's own."""
        return [Adam(self.discriminator.parameters(), lr=self.lr, betas=(0.5, 0.9))]

    def _codes(self, w: LogWeights) -> Tensor:
        """(N, D) the first particle's draws of all sites."""
        if w.enumerated:
            raise InputError(
                f"FactorVAE shuffles draws of z, and {', '.join(map(repr, w.enumerated))} is enumerated; use ELBO"
            )
        return torch.cat(
            [w.draws[site].expand(w.particles, *w.draws[site].shape[1:])[0].flatten(1) for site in self.sites], -1
        )

    def extra_repr(self) -> str:
        return f"gamma={self.gamma:g}, lr={self.lr:g}, particles={self.particles}"


def _classifier(width: int, hidden: int, layers: int) -> nn.Sequential:
    parts: list[nn.Module] = []
    for inputs in (width, *[hidden] * (layers - 1)):
        parts += [nn.Linear(inputs, hidden), nn.LeakyReLU(0.2)]
    return nn.Sequential(*parts, nn.Linear(hidden, 1))
