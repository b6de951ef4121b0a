"""Posteriors of the latents that all data share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from ..batch import Batch
from ..core import Guide, LatentModel, LatentSpec
from ..errors import InputError, choose
from ..networks import LOG_SCALE_BOUND, DiagonalNormal, FullRankNormal, Head, join

__all__ = ["Shared", "shared_latents"]

FAMILIES = ("mean-field", "full-rank", "point")


class Shared(Guide):
    r"""Gaussian or point over the latents shared by all data: one set of numbers, whatever the batch.

    .. math:: q(w) = N(w;\, m,\, \mathrm{diag}\, s^2), \quad N(w;\, m,\, L L^\top) \quad\text{or}\quad δ(w - m)

    Sites lie outside of the data plate, values are (\*event) or, under particles, (K, 1, \*event). A site of another
    support than the real line has its Gaussian in the unconstrained space. It does what Pyro's `AutoNormal`,
    `AutoMultivariateNormal` and `AutoDelta` do, which keep their parameters in Pyro's store and make them in the first
    run; these are made here, from what the model declares.

    Args:
        model: only its `latents` of scope "global" are read.
        family: "mean-field"; "full-rank", with correlations within sites and between them; "point", whose ELBO is
            log p(x, w) and makes w a maximum a posteriori: no bound on log p(x), since a point has no density.
        scale: the standard deviation to start from, in the unconstrained space.
        start: values (\*event) of sites to start from, in their supports; of others the model's `start`, and where
            that says nothing 0 in the unconstrained space.

    With "full-rank" each site is drawn given those before it, N(w_i; m_i + Σ_{j<i} A_ij (w_j - m_j), L_i L_iᵀ), which
    together are any Gaussian over all of them.

    Raises:
        InputError: no shared site, a discrete one; for "full-rank" one whose events are no vectors; an unknown family,
            a scale that is none, a start that is of no site or outside of its support.
    """

    def __init__(
        self,
        model: LatentModel,
        family: Literal["mean-field", "full-rank", "point"] = "mean-field",
        scale: float = 0.1,
        start: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        latents = shared_latents(model)
        if family not in FAMILIES:
            raise choose("family", family, FAMILIES)
        low, high = math.exp(-LOG_SCALE_BOUND), math.exp(LOG_SCALE_BOUND)
        if not (isinstance(scale, int | float) and low < scale < high):
            raise InputError(f"scale={scale!r} must be a standard deviation, within {low:.1g} and {high:.1g}")
        start = {} if start is None else start
        if strangers := [name for name in start if name not in latents]:
            raise InputError(
                f"start has {', '.join(map(repr, strangers))}; the latents of {type(model).__name__} that all data "
                f"share are {list(latents)}"
            )
        for name, spec in latents.items():
            if family == "full-rank" and len(spec.event_shape) != 1:
                raise InputError(
                    f"family='full-rank' is over vectors; {name!r} of {type(model).__name__} has events "
                    f"{tuple(spec.event_shape)}: declare it as a vector, or use 'mean-field'"
                )
        start = {**model.start(), **start}
        self.family = family
        self.sites = tuple(latents)
        self.scores_given = family != "point"
        kind: type[Head] = FullRankNormal if family == "full-rank" else DiagonalNormal
        heads = {name: kind(None, spec) for name, spec in latents.items()}
        self.heads = nn.ModuleDict(heads)
        self.loc = nn.ParameterDict({name: _free(name, heads[name], start.get(name)) for name in latents})
        # what a head takes beside the location: log-scales and, below the diagonal of L, zeros
        raw = LOG_SCALE_BOUND * math.atanh(math.log(scale) / LOG_SCALE_BOUND)
        self.spread = nn.ParameterDict()
        self.slope = nn.ParameterDict()
        for i, (name, head) in enumerate(heads.items() if family != "point" else ()):
            size = head.numel
            self.spread[name] = nn.Parameter(torch.zeros(head.outputs - size))
            with torch.no_grad():
                self.spread[name][:size] = raw
            before = sum(heads[other].numel for other in self.sites[:i])
            if family == "full-rank" and before:
                self.slope[name] = nn.Parameter(torch.zeros(size, before))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        draws: dict[str, Tensor] = {}
        off: list[Tensor] = []  # of each site drawn, how far it lies from its location, in the unconstrained space
        for name in self.sites:
            draws[name] = pyro.sample(name, self._site(name, off))
            if self.slope:
                transform = self._head(name).transform
                off.append((draws[name] if transform is None else transform.inv(draws[name])) - self.loc[name])
        return draws

    def distribution(self, batch: Batch) -> Mapping[str, TorchDistributionMixin]:
        if self.slope:
            return super().distribution(batch)
        return {name: self._site(name, []) for name in self.sites}

    def _site(self, name: str, off: list[Tensor]) -> TorchDistributionMixin:
        head, loc = self._head(name), self.loc[name]
        if self.family == "point":
            value = loc.reshape(head.free_shape)
            point: TorchDistributionMixin = dist.Delta(
                value if head.transform is None else head.transform(value), event_dim=len(head.event_shape)
            )
            return point
        if name in self.slope:
            loc = loc + join(*off) @ self.slope[name].T
        q: TorchDistributionMixin = head.to_support(head.gaussian(join(loc, self.spread[name])))
        return q

    def _head(self, name: str) -> Head:
        head = self.heads[name]
        assert isinstance(head, Head)
        return head

    def extra_repr(self) -> str:
        return f"family={self.family!r}"


def shared_latents(model: LatentModel) -> dict[str, LatentSpec]:
    """The latents of a model that all data share; raises `InputError` where there are none, or one is discrete."""
    latents = {name: spec for name, spec in model.latents.items() if spec.scope == "global"}
    if not latents:
        raise InputError(f"{type(model).__name__} declares no latent that all data share, with scope='global'")
    if discrete := [name for name, spec in latents.items() if spec.support.is_discrete]:
        raise InputError(
            f"{', '.join(map(repr, discrete))} of {type(model).__name__} is discrete and shared by all data: a guide "
            'of your own has to enumerate it, infer={"enumerate": "parallel"}'
        )
    return latents


def _free(name: str, head: Head, start: Tensor | None) -> nn.Parameter:
    """A location in the unconstrained space, as a vector."""
    if start is None:
        return nn.Parameter(torch.zeros(head.numel))
    if tuple(start.shape) != tuple(head.event_shape):
        raise InputError(
            f"start[{name!r}] has shape {tuple(start.shape)}; the site has events {tuple(head.event_shape)}"
        )
    free = start if head.transform is None else head.transform.inv(start)
    if not bool(torch.isfinite(free).all()):
        raise InputError(f"start[{name!r}] is outside of the site's support, or at its edge")
    return nn.Parameter(free.detach().flatten().clone())
