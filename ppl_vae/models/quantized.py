"""What models of grids of codes share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions import constraints

from ..batch import Batch
from ..core import LatentModel, LatentSpec
from ..errors import InputError
from ..grids import GridDecoder, GridEncoder, grids
from ..likelihoods import Likelihood
from ..networks import Condition
from ..priors.codes import CodePrior, UniformCodes
from ..quantize import Codebook

__all__ = ["Quantized"]


class Quantized(LatentModel):
    r"""p(codes) p(x | codes), with codes that are numbers of vectors on one grid or on several, the coarsest first.

    .. math:: p(c, x) = \Big[\prod_l p(c_l \mid c_{l-1})\Big] \, p(x \mid \mathrm{decoder}(e_{c_1}, \dots, e_{c_L}))

    A subclass names the sites, and what its parts are called.

    Attributes:
        likelihood: p(x | .).
        decoder: quantized vectors (\*S, N, h, w, D), a grid after the other, -> (\*S, N, P, C, H, W).
        codebooks: the `Codebook` of each site.
        condition: what of a batch the priors are given as features; `Condition()`: nothing.
        grids: (h, w) of each site, the coarsest first.
    """

    guided_by: ClassVar[str] = "nearest"
    """The guide of a recipe that names none."""

    trained_by: ClassVar[str] = "vq"
    """What a recipe that names none trains it by."""

    makes_networks: ClassVar[bool] = True
    """By name it makes its own encoder and decoder, on grids, of its options."""

    def __init__(
        self,
        decoder: nn.Module | None,
        likelihood: Likelihood | None,
        sites: Sequence[str],
        size: int | None,
        entries: int,
        downsample: int,
        channels: int,
        blocks: int,
        average: bool,
    ) -> None:
        super().__init__()
        if likelihood is None:
            raise InputError("likelihood=None: give p(x | .) of images, as likelihoods.Bernoulli((1, 28, 28))")
        if size is None:
            raise InputError("size=None: give the number of dimensions of a code's vector, as 64")
        self.sites = tuple(sites)
        self.sizes: dict[str, Any] = {
            "shape": tuple(likelihood.event_shape),
            "downsample": downsample,
            "size": size,
            "channels": channels,
            "blocks": blocks,
            "levels": len(sites),
        }
        self.grids = dict(zip(self.sites, grids(likelihood.event_shape, downsample, len(sites)), strict=True))
        self.codebooks = nn.ModuleDict({name: Codebook(entries, size, average) for name in self.sites})
        if decoder is None:
            decoder = GridDecoder(outputs=likelihood.parameters_per_element, **self.sizes)
        self.decoder = decoder
        self.likelihood = likelihood
        self.condition = Condition()

    @abstractmethod
    def prior_at(self, site: str) -> CodePrior:
        """p(codes | features, codes above) of a site."""

    @property
    def latents(self) -> Mapping[str, LatentSpec]:  # type: ignore[override]
        found: dict[str, LatentSpec] = {}
        for name in self.sites:
            support = constraints.independent(constraints.integer_interval(0, self.codebook_of(name).entries - 1), 2)
            above = tuple(found)[-1:] if self.prior_at(name).given_above else ()
            found[name] = LatentSpec(torch.Size(self.grids[name]), support, parents=above)
        return found

    def codebook_of(self, site: str) -> Codebook:
        """The codebook of a site."""
        book = self.codebooks[site]
        assert isinstance(book, Codebook)
        return book

    def forward(self, batch: Batch) -> Tensor:
        with pyro.plate("data", batch.size, dim=-1):
            given = self.condition(batch)
            codes: dict[str, Tensor] = {}
            for name in self.sites:
                codes[name] = pyro.sample(name, self.code_distribution(name, given, codes))
            vectors = {name: self.codebook_of(name)(value) for name, value in codes.items()}
            x: Tensor = pyro.sample("x", self.decoded(vectors, batch.observed), obs=batch.x)
        return x

    def code_distribution(self, site: str, features: Tensor, codes: Mapping[str, Tensor]) -> TorchDistributionMixin:
        """p of a site's codes, given features and the codes of the sites above it."""
        place = self.sites.index(site)
        above = codes[self.sites[place - 1]] if place else None
        q: TorchDistributionMixin = self.prior_at(site)(features, above)
        return q

    def decoded(self, vectors: Mapping[str, Tensor], observed: Tensor | None = None) -> TorchDistributionMixin:
        """p(x | vectors), for vectors (\\*S, N, h, w, D) of each site."""
        x: TorchDistributionMixin = self.likelihood(self.decoder(*(vectors[name] for name in self.sites)), observed)
        return x

    def make_encoder(self, loc: Tensor | float = 0.0, scale: Tensor | float = 1.0, mask: bool = False) -> GridEncoder:
        """An encoder to this model's grids, of its decoder's sizes, see `GridEncoder`."""
        return GridEncoder(**self.sizes, loc=loc, scale=scale, mask=mask)

    def uniform(self, site: str) -> UniformCodes:
        """The uniform prior of a site."""
        place = self.sites.index(site)
        above = self.grids[self.sites[place - 1]] if place else None
        return UniformCodes(self.grids[site], self.codebook_of(site).entries, above)

    def check_prior(self, argument: str, site: str, prior: CodePrior) -> None:
        """Raise `InputError` for a prior over other codes than a site's."""
        wanted, entries = self.grids[site], self.codebook_of(site).entries
        if not isinstance(prior, CodePrior):
            raise InputError(f"{argument} is a {type(prior).__name__}; give a CodePrior, over grids of whole numbers")
        if tuple(prior.event_shape) != wanted or prior.entries != entries:
            raise InputError(
                f"{argument} is over grids {tuple(prior.event_shape)} of {prior.entries} codes; site {site!r} of "
                f"{type(self).__name__} has {wanted} of {entries}"
            )
        if prior.given_above and not self.sites.index(site):
            raise InputError(f"{argument} depends on codes above, and there are none above site {site!r}")
