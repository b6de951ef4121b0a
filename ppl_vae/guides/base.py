"""The guides by name, and what amortized guides share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar, cast

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from ..batch import Batch
from ..core import Encoder, Guide, LatentModel, LatentSpec
from ..errors import InputError
from ..networks import Head
from ..registry import Registry
from .points import Points, noise_size, placed

__all__ = ["Amortized", "about_site", "continuous_sites", "features_of", "guides"]

guides: Registry[type[Guide]] = Registry("guide")


class Amortized(Guide):
    r"""One encoder, and one head for each latent site: sites are independent of each other given x.

    .. math:: q(z \mid x) = \prod_{\text{sites } s} q_s(z_s \mid h_s(\mathrm{encoder}(x)))

    A subclass names its `head`, which makes features (N, F) into q of a site, batch (N,).

    Values of other latents (\*S, N, \*event) that are given to a call, as `Combined` gives those of shared sites, are
    handed to the encoder.

    Args:
        model: what the guide is for; only its `latents` are read.
        encoder: features of a batch.
        head: makes a site's head from the number of features and the site; None: the class's own `head`.

    Raises:
        InputError: the model declares a latent site shared by all data, for which an encoder of one datum has no
            answer; a discrete one; none at all; a model that declares no latents, an encoder that has no features.
    """

    head: ClassVar[type[Head]]

    def __init__(
        self, model: LatentModel, encoder: Encoder, head: Callable[[int, LatentSpec], Head] | None = None
    ) -> None:
        super().__init__()
        self.sites = continuous_sites(self, model)
        self.encoder = encoder
        make = self.head if head is None else head
        features = features_of(self, encoder)
        self.heads = nn.ModuleDict()
        for name, spec in model.latents.items():
            with about_site(name, model):
                self.heads[name] = make(features, spec)

    def forward(self, batch: Batch, **latents: Tensor) -> dict[str, Tensor]:
        with pyro.plate("data", batch.size, dim=-1):
            return {name: pyro.sample(name, q) for name, q in self.distribution(batch, **latents).items()}

    def distribution(self, batch: Batch, **latents: Tensor) -> Mapping[str, TorchDistributionMixin]:
        return self.of_features(self.encoder(batch, **latents))

    def of_features(self, features: Tensor) -> dict[str, TorchDistributionMixin]:
        """q of each site, given features (\\*S, N, F)."""
        return {name: head(features) for name, head in self.heads.items()}

    def draw(self, features: Tensor) -> dict[str, Tensor]:
        """What `forward` does inside of the data plate, given features (\\*S, N, F)."""
        return {name: pyro.sample(name, q) for name, q in self.of_features(features).items()}

    def points(self, features: Tensor, noise: Mapping[str, Tensor]) -> Points:
        """Draws z of standard normal noise (P, D) by site, the same for all data, as differentiable functions of the
        features (\\*S, N, F): of which an expectation over q is made without random numbers."""
        sites = self.of_features(features)
        values = {name: placed(q, noise[name]) for name, q in sites.items()}
        return Points(values, sum((sites[name].log_prob(z) for name, z in values.items()), features.new_zeros(())))

    def noise_sizes(self) -> dict[str, int]:
        """D of `points`, by site; raises `InputError` where a q is no function of such noise."""
        features = next(self.heads.parameters()).new_zeros(1, self.encoder.features)
        with torch.no_grad():
            return {name: noise_size(head(features)) for name, head in self.heads.items()}

    def gaussians(self, features: Tensor) -> dict[str, TorchDistributionMixin]:
        """What the heads make of features, before it is carried to the sites' supports."""
        heads = cast("Mapping[str, Head]", self.heads)
        return {name: head.gaussian(head.linear(features)) for name, head in heads.items()}


def features_of(guide: Guide, encoder: Encoder) -> int:
    """F of an encoder; raises `InputError` for what is none."""
    features = getattr(encoder, "features", None)
    if not isinstance(features, int):
        raise InputError(
            f"encoder is a {type(encoder).__name__}, which says nothing of its `features`: guides are made as "
            f"{type(guide).__name__}(model, encoder), of an Encoder, as networks.encoder makes one"
        )
    return features


@contextmanager
def about_site(site: str, model: LatentModel) -> Iterator[None]:
    """Errors of what is made for a site say which."""
    try:
        yield
    except InputError as error:
        raise InputError(f"site {site!r} of {type(model).__name__}: {error}") from error


def continuous_sites(guide: Guide, model: LatentModel) -> tuple[str, ...]:
    """The model's latent sites; raises `InputError` unless there are some, each of them continuous and of a datum, for
    guides that know no others."""
    name = type(guide).__name__
    if not isinstance(getattr(model, "latents", None), Mapping):
        raise InputError(
            f"model is a {type(model).__name__}, which declares no latents: guides are made as {name}(model, ...), of "
            "a LatentModel"
        )
    if not model.latents:
        raise InputError(f"{type(model).__name__} declares no latent site: there is nothing for {name} to draw")
    if shared := [site for site, spec in model.latents.items() if spec.scope != "datum"]:
        raise InputError(
            f"{name} is a guide over each datum's latents; {', '.join(map(repr, shared))} of {type(model).__name__} is "
            f"shared by all data: use Combined, with {name} over datum_part(model)"
        )
    if discrete := [site for site, spec in model.latents.items() if spec.support.is_discrete]:
        raise InputError(
            f"{name} is of Gaussians, and no bijection leads from it to the site's support: "
            f"{', '.join(map(repr, discrete))} of {type(model).__name__} is discrete; write a guide that enumerates "
            'it, infer={"enumerate": "parallel"}'
        )
    return tuple(model.latents)
