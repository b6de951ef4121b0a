"""The guide of discrete latents: an encoder's probabilities, summed over and not drawn."""

from __future__ import annotations

from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from ..batch import Batch
from ..core import Encoder, Guide, LatentModel
from ..errors import InputError
from ..networks import Linear
from .base import guides

__all__ = ["Enumerated", "discrete_sites"]


@guides.register("enumerated")
class Enumerated(Guide):
    r"""Categorical distributions of discrete latents, with an encoder's logits; expectations under it are exact sums.

    .. math::
        q(z \mid x) = \prod_{\text{sites } s} \mathrm{Cat}(z_s;\, \mathrm{softmax}(W_s\, \mathrm{encoder}(x) + b_s)),
        \quad E_q[f] = \sum_c q(z = c \mid x)\, f(c)

    Sites are marked ``infer={"enumerate": "parallel"}``: objectives run the model on all values at once, and no draw's
    gradient is needed. Of several sites all combinations are run, the product of their numbers of values.

    Its optimum is the posterior where the encoder is wide enough; `Exact` is the posterior of one site at once.
    Objectives whose value does not depend on q where all of z is summed over, as `IWAE`, give it no gradient.

    Args:
        model: what the guide is for; only its `latents` are read.
        encoder: features of a batch.

    Raises:
        InputError: a latent site that is continuous, shared by all data, or holds several numbers; none at all.
    """

    def __init__(self, model: LatentModel, encoder: Encoder) -> None:
        super().__init__()
        sizes = discrete_sites(self, model)
        self.sites = tuple(sizes)
        self.encoder = encoder
        self.heads = nn.ModuleDict({name: Linear(encoder.features, size) for name, size in sizes.items()})

    def forward(self, batch: Batch, **latents: Tensor) -> dict[str, Tensor]:
        with pyro.plate("data", batch.size, dim=-1):
            return {
                name: pyro.sample(name, q, infer={"enumerate": "parallel"})
                for name, q in self.distribution(batch, **latents).items()
            }

    def distribution(self, batch: Batch, **latents: Tensor) -> Mapping[str, TorchDistributionMixin]:
        features = self.encoder(batch, **latents)
        return {name: dist.Categorical(logits=head(features)) for name, head in self.heads.items()}


def discrete_sites(guide: Guide, model: LatentModel) -> dict[str, int]:
    """The model's latent sites with their numbers of values, 0 to C - 1; raises `InputError` unless there are some,
    each of them one number of such a support and of a datum."""
    name, of = type(guide).__name__, type(model).__name__
    if not model.latents:
        raise InputError(f"{of} declares no latent site: there is nothing for {name} to draw")
    sizes: dict[str, int] = {}
    for site, spec in model.latents.items():
        if spec.scope != "datum":
            raise InputError(
                f"{name} is a guide over each datum's latents; {site!r} of {of} is shared by all data: use Combined, "
                f"with {name} over datum_part(model)"
            )
        low, high = (getattr(spec.support, bound, None) for bound in ("lower_bound", "upper_bound"))
        if spec.event_shape != torch.Size() or not spec.support.is_discrete or low != 0 or not isinstance(high, int):
            what = f"has events {tuple(spec.event_shape)}" if spec.support.is_discrete else "is continuous"
            raise InputError(
                f"{name} is a guide of discrete latents, one number each with the support integer_interval(0, C - 1); "
                f"{site!r} of {of} {what}: use a guide that draws it, as MeanField"
            )
        sizes[site] = high + 1
    return sizes
