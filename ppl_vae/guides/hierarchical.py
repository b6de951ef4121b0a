"""The guides of hierarchical models: bottom-up and top-down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import ClassVar, Literal

import pyro
import pyro.distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from ..batch import Batch
from ..core import Encoder, Guide, LatentModel, LatentSpec
from ..errors import InputError, choose
from ..networks import MLP, DiagonalNormal, Head, families, join
from .base import about_site, continuous_sites, features_of, guides

__all__ = ["BottomUp", "Hierarchical", "TopDown", "faithful_inverse"]

_DATA = None  # stands for x among the names of sites


class Hierarchical(Guide):
    r"""Latent sites drawn one after another, each given what the posterior in this order depends on.

    .. math:: q(z \mid x) = \prod_i q_i(z_i \mid z_{G(i)}, x)

    G(i) is read from the parents that the model declares, by `faithful_inverse`: no site is left out on which
    p(z_i | z_{<i}, x) may depend. A subclass says in which order the sites are drawn. The arguments are `TopDown`'s.
    """

    upwards: ClassVar[bool]

    def __init__(
        self,
        model: LatentModel,
        encoder: Encoder,
        family: Literal["mean-field", "full-rank"] = "mean-field",
        hidden: int | None = None,
        merge: Literal["joined", "precision"] = "joined",
    ) -> None:
        super().__init__()
        self.sites = continuous_sites(self, model)
        _check_parents(model)
        if family not in families:
            raise choose("family", family, families)
        if hidden is not None and (not isinstance(hidden, int) or isinstance(hidden, bool) or hidden < 0):
            raise InputError(f"hidden={hidden!r} must be a width, 1 or more, 0 for none, or None")
        if merge not in ("joined", "precision"):
            raise choose("merge", merge, ("joined", "precision"))
        if merge == "precision" and family != "mean-field":
            raise InputError("merge='precision' multiplies diagonal Gaussians; give family='mean-field'")
        width = features_of(self, encoder)
        hidden = width if hidden is None else hidden
        self.encoder = encoder
        order = tuple(reversed(self.sites)) if self.upwards else self.sites
        inverse = faithful_inverse(model.latents, order)
        self.given = {site: tuple(other for other in order if other in inverse[site]) for site in order}
        self.sees_data = {site: _DATA in inverse[site] for site in order}
        for site in {other for given in self.given.values() for other in given}:
            if len(model.latents[site].event_shape) != 1:
                raise InputError(
                    f"{type(self).__name__} draws other sites given {site!r}, and takes vectors; {site!r} of "
                    f"{type(model).__name__} has events {tuple(model.latents[site].event_shape)}"
                )
        self.conditionals = nn.ModuleDict()
        for site in order:
            spec, features = model.latents[site], width if self.sees_data[site] else 0
            inputs = sum(model.latents[other].event_shape[0] for other in self.given[site])
            with about_site(site, model):
                self.conditionals[site] = (
                    _Product(spec, features, inputs, hidden)
                    if merge == "precision" and features and inputs
                    else _Conditional(families[family], spec, features, inputs, hidden)
                )

    def features(self, batch: Batch, **latents: Tensor) -> Mapping[str, Tensor]:
        """What each site sees of x, (N, F)."""
        seen: Tensor = self.encoder(batch, **latents)
        return {site: seen for site, sees in self.sees_data.items() if sees}

    def forward(self, batch: Batch, **latents: Tensor) -> dict[str, Tensor]:
        features = self.features(batch, **latents)
        draws: dict[str, Tensor] = {}
        with pyro.plate("data", batch.size, dim=-1):
            for site, conditional in self.conditionals.items():
                q = conditional(features.get(site), [draws[other] for other in self.given[site]])
                draws[site] = pyro.sample(site, q)
        return {site: draws[site] for site in self.sites}

    def distribution(self, batch: Batch, **latents: Tensor) -> Mapping[str, TorchDistributionMixin]:
        if any(self.given.values()):
            return super().distribution(batch)
        features = self.features(batch, **latents)
        return {site: conditional(features[site], []) for site, conditional in self.conditionals.items()}

    def extra_repr(self) -> str:
        def text(site: str) -> str:
            given = (*self.given[site], *(("x",) if self.sees_data[site] else ()))
            return f"q({site} | {', '.join(given)})"

        return " ".join(map(text, self.given))


@guides.register("bottom-up")
class BottomUp(Hierarchical):
    r"""Layer upon layer from x: q(z_1 | x) q(z_2 | z_1) ... q(z_L | z_{L-1}), each conditional a Gaussian.

    .. math:: q(z \mid x) = q(z_1 \mid x) \prod_{l=2}^{L} q(z_l \mid z_{l-1})

    The sites are drawn in the reverse of the model's order. In a chain this leaves nothing out, since x tells nothing
    more of z_l where z_{l-1} is known. For other models the sites that each is drawn given are those that
    `faithful_inverse` finds; x is taken to depend on the sites on which no other depends. The KL of a site whose
    parents come later is biased in closed form: ``ELBO(kl="auto")`` takes it from the draw.

    Args:
        model: what the guide is for; only its `latents` are read.
        encoder: features of a batch, (N, F).
        family: of each conditional: "mean-field", diagonal, or "full-rank".
        hidden: width of the two hidden layers of each network that takes latents; None: F; 0: none, so that the mean
            is affine.

    A model with one latent site gets the guide of that family, `MeanField` or `FullRank`.

    Raises:
        InputError: a latent site shared by all data, or of a discrete support; one with events that are no vectors,
            where others are drawn given it; an unknown family, a width that is none.

    Reference: Burda, Grosse and Salakhutdinov, Importance weighted autoencoders, ICLR 2016
    (https://arxiv.org/abs/1509.00519).
    """

    upwards = True

    def __init__(
        self,
        model: LatentModel,
        encoder: Encoder,
        family: Literal["mean-field", "full-rank"] = "mean-field",
        hidden: int | None = None,
    ) -> None:
        super().__init__(model, encoder, family, hidden)


@guides.register("top-down")
class TopDown(Hierarchical):
    r"""Features upwards, then draws downwards in the model's order: q(z_L | x) q(z_{L-1} | z_L, x) ... q(z_1 | z_2, x).

    .. math:: q(z \mid x) = q(z_L \mid d_L(x)) \prod_{l=1}^{L-1} q(z_l \mid z_{l+1}, d_l(x)), \qquad
        d_1 = \mathrm{encoder}(x), \quad d_{l+1} = \mathrm{MLP}_l(d_l)

    Since guide and model visit the sites in the same order, ``ELBO(kl="auto")`` takes every site's KL in closed form.
    A site's d is chosen by its height: 1 where no other site depends on it, otherwise one more than the highest of
    those that do.

    Args:
        model: what the guide is for; only its `latents` are read.
        encoder: features of a batch, (N, F).
        family: of each conditional: "mean-field", diagonal, or "full-rank".
        hidden: width of the two hidden layers of each network that takes latents, and of the hidden layer of those
            between the features; None: F; 0: none: affine, and all sites see the encoder's features.
        merge: how what is known from above and from x come together, in a site that is drawn given others. "joined":
            one network takes both. "precision": each makes a diagonal Gaussian, and q is their product,

            .. math:: N\big(\tfrac{m_x s_x^{-2} + m_z s_z^{-2}}{s_x^{-2} + s_z^{-2}},\; (s_x^{-2} + s_z^{-2})^{-1}\big)

            the form that p(z_l | z_{l+1}, x) ∝ p(z_l | z_{l+1}) p(x | z_l) has. The Gaussian from above is the guide's
            own, not the model's p(z_l | z_{l+1}): a guide does not hold its model's parameters, which would train, and
            be stopped, with both.

    A model with one latent site gets the guide of that family, `MeanField` or `FullRank`.

    Raises:
        InputError: as for `BottomUp`; an unknown `merge`; "precision" with a full-rank family.

    Reference: Sønderby et al., Ladder variational autoencoders, NIPS 2016 (https://arxiv.org/abs/1602.02282).
    """

    upwards = False

    def __init__(
        self,
        model: LatentModel,
        encoder: Encoder,
        family: Literal["mean-field", "full-rank"] = "mean-field",
        hidden: int | None = None,
        merge: Literal["joined", "precision"] = "joined",
    ) -> None:
        super().__init__(model, encoder, family, hidden, merge)
        width = encoder.features if hidden is None else hidden
        self.heights = _heights(model.latents)
        self.upward = nn.ModuleList(
            MLP(encoder.features, (width,), encoder.features, activate_last=True)
            for _ in range(max(self.heights.values()) - 1)
            if width
        )

    def features(self, batch: Batch, **latents: Tensor) -> Mapping[str, Tensor]:
        seen = [self.encoder(batch, **latents)]
        for upward in self.upward:
            seen.append(upward(seen[-1]))
        # without networks between them all heights see the same
        return {site: seen[min(height, len(seen)) - 1] for site, height in self.heights.items()}


class _Conditional(nn.Module):
    """q of one site: features and values of other sites, joined, through hidden layers to a head. Without other sites
    there are none of these: the features have been through the encoder's."""

    def __init__(self, family: type[Head], spec: LatentSpec, features: int, inputs: int, hidden: int) -> None:
        super().__init__()
        width = features + inputs
        self.body = MLP(width, (hidden,), hidden, activate_last=True) if inputs and hidden else None
        self.head = family(hidden if self.body is not None else width, spec)

    def gaussian(self, features: Tensor | None, values: Sequence[Tensor]) -> TorchDistributionMixin:
        """In the unconstrained space of the site's support."""
        given = join(*([] if features is None else [features]), *values)
        q: TorchDistributionMixin = self.head.gaussian(
            self.head.linear(given if self.body is None else self.body(given))
        )
        return q

    def forward(self, features: Tensor | None, values: Sequence[Tensor]) -> TorchDistributionMixin:
        return self.head.to_support(self.gaussian(features, values))


class _Product(nn.Module):
    """q of one site: the normalized product of a diagonal Gaussian given features and one given other sites."""

    def __init__(self, spec: LatentSpec, features: int, inputs: int, hidden: int) -> None:
        super().__init__()
        self.seen = _Conditional(DiagonalNormal, spec, features, 0, 0)
        self.expected = _Conditional(DiagonalNormal, spec, 0, inputs, hidden)

    def forward(self, features: Tensor, values: Sequence[Tensor]) -> TorchDistributionMixin:
        seen, expected = self.seen.gaussian(features, ()), self.expected.gaussian(None, values)
        of_x, of_z = seen.variance.reciprocal(), expected.variance.reciprocal()
        loc = (seen.mean * of_x + expected.mean * of_z) / (of_x + of_z)
        product = dist.Normal(loc, (of_x + of_z).rsqrt()).to_event(len(seen.event_shape))
        return self.expected.head.to_support(product)


def faithful_inverse(latents: Mapping[str, LatentSpec], order: Sequence[str]) -> dict[str, frozenset[str | None]]:
    r"""What each site depends on in the posterior p(z | x) = Π_i p(z_i | z_{<i}, x) that draws the sites in `order`.

    The model's graph gets edges between the parents of a common child. Then sites are taken out, the last drawn first:
    one depends on those of its neighbours that are left, between which edges are made, for it is integrated out of
    what is drawn before it. Every dependence that the model's graph allows is kept.

    Args:
        latents: the sites of a model, with their parents.
        order: all of them, in the order in which they are to be drawn.

    Returns:
        For each site, names of sites drawn before it, and None for x. x depends on the sites on which no other does,
        which is all that a declaration tells. A parent that is not among `latents` is taken to be known with x.

    Example:
        >>> import torch
        >>> size = torch.Size([1])
        >>> chain = {"z2": LatentSpec(size), "z1": LatentSpec(size, parents=("z2",))}
        >>> faithful_inverse(chain, ["z1", "z2"])
        {'z1': frozenset({None}), 'z2': frozenset({'z1'})}

    References:
        Stuhlmüller, Taylor and Goodman, Learning stochastic inverses, NIPS 2013.
        Webb et al., Faithful inversion of generative models for effective amortized inference, NeurIPS 2018
        (https://arxiv.org/abs/1712.00287).
    """
    parents: dict[str | None, set[str | None]] = {
        name: {parent if parent in latents else _DATA for parent in spec.parents} for name, spec in latents.items()
    }
    parents[_DATA] = {name for name, height in _heights(latents).items() if height == 1}
    neighbours: dict[str | None, set[str | None]] = {name: set() for name in parents}

    def connect(names: set[str | None]) -> None:
        for a, b in combinations(names, 2):
            neighbours[a].add(b)
            neighbours[b].add(a)

    for child, of in parents.items():
        connect({child, *of})
    left: dict[str, frozenset[str | None]] = {}
    for name in reversed(order):
        near = neighbours.pop(name)
        for other in near:
            neighbours[other].discard(name)
        connect(near)
        left[name] = frozenset(near)
    return {name: left[name] for name in order}


def _check_parents(model: LatentModel) -> None:
    """Raise `InputError` for a parent that the model does not draw before its child."""
    before = set(getattr(model, "given", ()))
    for name, spec in model.latents.items():
        if strangers := [parent for parent in spec.parents if parent not in before]:
            raise InputError(
                f"{type(model).__name__} declares {', '.join(map(repr, strangers))} as parent of {name!r}, and no such "
                f"site before it; before it are {sorted(before)}"
            )
        before.add(name)


def _heights(latents: Mapping[str, LatentSpec]) -> dict[str, int]:
    """Steps from each site to the nearest x below it, by the longest way."""
    heights = dict.fromkeys(latents, 1)
    for name in reversed(list(latents)):  # children are declared after their parents
        for parent in latents[name].parents:
            if parent in heights:
                heights[parent] = max(heights[parent], heights[name] + 1)
    return heights
