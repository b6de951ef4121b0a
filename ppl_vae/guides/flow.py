"""Flow posteriors: an amortized Gaussian carried through transforms that depend on x."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, TypeAlias

import pyro.distributions as dist
import torch
from pyro.distributions.conditional import ConditionalTransformModule
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions import Transform, constraints
from torch.distributions.transforms import ReshapeTransform

from ..core import Encoder, LatentModel, LatentSpec
from ..errors import InputError, check_count
from ..networks import Head, Linear, soft_bound
from .base import Amortized

__all__ = ["Flow", "FlowNormal", "FlowTransform", "Layer", "Layers", "Parameters", "Remembering", "repeated"]

Layers: TypeAlias = Callable[[int, int], Sequence[ConditionalTransformModule]]
"""The transforms of a site, from the number of features and the site's number of dimensions."""


class Flow(Amortized):
    r"""Diagonal Gaussian carried through invertible transforms, each a function of x: any of Pyro's conditional ones.

    .. math::
        z = m(x) + s(x) \odot (f_K \circ \dots \circ f_1)(ε), \quad ε \sim N(0, I), \qquad
        \log q(z \mid x) = \log N(ε; 0, I) - \sum_d \log s_d(x) - \sum_k \log \left| \det \frac{∂f_k}{∂f_{k-1}} \right|

    The Gaussian is N(m(x), s²(x)), as of the mean-field guide, and the transforms work in its own coordinates, (z - m)
    / s: wherever the posterior of a datum lies and however narrow it is, they see numbers around 0 of size 1. Where
    every f_k is the identity the guide is the mean-field one, draw by draw, and the families of this package start
    close to it. With `scale_first` the scale comes before the transforms, z = m + f(s ⊙ ε), for rotations, which do
    nothing to N(0, I).

    q of a site has batch shape (\*S, N) and the events that the model declares. Events are flattened to D numbers for
    the transforms, and a site of another support than the real line has its flow in the unconstrained space. Different
    sites are independent given x. The KL to the prior has no closed form.

    Every call makes its transforms afresh, so that nothing of an earlier call is kept. What was drawn is remembered in
    them: log q of a draw costs no inverse.

    Args:
        model: what the guide is for; only its `latents` are read.
        encoder: features of a batch, the context of every transform.
        layers: makes a site's transforms from the number of features F and the site's number of dimensions D; each is
            called for as ``layer.condition(features)``, for vectors of D numbers or their elements.
        scale_first: whether s(x) comes before the transforms.

    Attributes:
        scores_given: whether every transform has an inverse, found out by trying: then log q of any z can be had. If
            not, log q is known of the last draw alone, and asking for another one's raises `InputError`.

    Raises:
        InputError: as for all amortized guides.

    Reference: Rezende and Mohamed, Variational inference with normalizing flows, ICML 2015
    (https://arxiv.org/abs/1505.05770).

    Example:
        >>> from ppl_vae import likelihoods, models, networks
        >>> from pyro.distributions.transforms import conditional_planar
        >>> model = models.VAE(networks.decoder("mlp", 2, (4,), 1), likelihoods.Bernoulli((4,)), latent=2)
        >>> encoder = networks.encoder("mlp", (4,), (16,))
        >>> guide = Flow(model, encoder, lambda features, size: [conditional_planar(size, features, [8])])
        >>> guide.scores_given  # Pyro's planar transform has no inverse; guides.Planar has one
        False
    """

    def __init__(self, model: LatentModel, encoder: Encoder, layers: Layers, scale_first: bool = False) -> None:
        super().__init__(model, encoder, partial(FlowNormal, layers=layers, scale_first=scale_first))
        self.scores_given = all(head.inverts for head in self.heads.values() if isinstance(head, FlowNormal))


class FlowNormal(Head):
    """An amortized diagonal Gaussian and its transforms, carried to the site's support: see `Flow`.

    Args:
        features: F, their width.
        spec: the site.
        layers, scale_first: as for `Flow`.

    Attributes:
        inverts: whether every transform has an inverse off its memory.
    """

    def __init__(self, features: int, spec: LatentSpec, layers: Layers, scale_first: bool = False) -> None:
        # the Gaussian's part is made first and named as the mean-field head's: equal seeds start from equal Gaussians,
        # and the weights of a trained mean-field guide can be loaded
        super().__init__(features, spec)
        self.layers = nn.ModuleList(layers(features, self.numel))
        self.scale_first = scale_first
        self.inverts = all(_inverts(layer, features, self.numel) for layer in self.layers)

    def count(self) -> int:
        return 2 * self.numel

    def inverse_fisher(self, numbers: Tensor) -> Tensor:
        scale = soft_bound(numbers[..., self.numel :]).exp()
        if self.scale_first:  # the location's dimensions are mixtures of the scale's: no step is too long for any
            scale = scale.amin(-1, keepdim=True).expand(scale.shape)
        return torch.cat([scale.square(), torch.full_like(scale, 0.5)], dim=-1)

    def forward(self, features: Tensor) -> TorchDistributionMixin:
        loc, raw = self.linear(features).chunk(2, dim=-1)
        parts: list[Transform] = [layer.condition(features) for layer in self.layers]  # type: ignore[operator]
        carried: list[Transform] = [FlowTransform(parts, loc, soft_bound(raw), self.scale_first, self.inverts)]
        # each with a memory of its own draw, made anew like the flow's: without one the flow would not know its draw
        # again behind it
        if len(self.free_shape) != 1:
            carried.append(ReshapeTransform(torch.Size([self.numel]), self.free_shape, cache_size=1))
        if self.transform is not None:
            carried.append(self.transform.with_cache(1))
        noise = dist.Normal(torch.zeros_like(loc), torch.ones_like(loc)).to_event(1)
        pushed: TorchDistributionMixin = dist.TransformedDistribution(noise, carried)
        return pushed


class Remembering(Transform):
    """A transform of vectors with the memory of its last call: `_call` and `_inverse` leave log |det ∂y/∂x| in
    `_log_det`."""

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self) -> None:
        super().__init__(cache_size=1)
        self._log_det: Tensor | None = None

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """log |det ∂y/∂x|, (\\*S, N)."""
        before, after = self._cached_x_y
        if x is not before or y is not after:
            self(x)
        assert self._log_det is not None
        return self._log_det


class FlowTransform(Remembering):
    r"""z = m + s ⊙ (f_K ∘ ... ∘ f_1)(ε) of one call: a transform of vectors, with the memory of its last draw.

    Args:
        parts: f_1 ... f_K, transforms of vectors or of their elements.
        loc, log_scale: m and log s, (\*S, N, D).
        scale_first: z = m + (f_K ∘ ... ∘ f_1)(s ⊙ ε) instead.
        inverts: whether all parts do.

    Raises:
        InputError: asked for the inverse at another point than the last draw, where parts have none.
    """

    def __init__(
        self,
        parts: Sequence[Transform],
        loc: Tensor,
        log_scale: Tensor,
        scale_first: bool = False,
        inverts: bool = True,
    ) -> None:
        super().__init__()
        self.parts, self.inverts = parts, inverts
        self.loc, self.log_scale, self.scale_first = loc, log_scale, scale_first
        # parts may run their networks as late as now: what was around the guide's run then is around these too
        self.within: AbstractContextManager[Any] = nullcontext()

    def _call(self, x: Tensor) -> Tensor:
        with self.within:
            return self._forwards(x)

    def _inverse(self, y: Tensor) -> Tensor:
        with self.within:
            return self._backwards(y)

    def _forwards(self, x: Tensor) -> Tensor:
        scale = self.log_scale.exp()
        log_det = self.log_scale.sum(-1)
        if self.scale_first:
            x = x * scale
        for part in self.parts:
            y = part(x)
            log_det = log_det + _log_det(part, x, y)
            x = y
        self._log_det = log_det
        return self.loc + (x if self.scale_first else x * scale)

    def _backwards(self, y: Tensor) -> Tensor:
        if not self.inverts:
            names = ", ".join(sorted({type(part).__name__ for part in self.parts}))
            raise InputError(
                f"a flow of {names} has no inverse: log q is known of the guide's own last draw, not of a z from "
                "elsewhere (Guide.scores_given is False); use an objective that scores the guide's own draws, or a "
                "flow that can be inverted, such as those of ppl_vae.guides"
            )
        # an enumerated value arrives as (C, 1, 1, D), which the transforms of (N, D) do not broadcast by themselves
        y = y.expand(torch.broadcast_shapes(y.shape, self.loc.shape))
        scale = self.log_scale.exp()
        log_det = self.log_scale.sum(-1)
        y = y - self.loc
        if not self.scale_first:
            y = y / scale
        for part in reversed(self.parts):
            x = part.inv(y)
            log_det = log_det + _log_det(part, x, y)
            y = x
        self._log_det = log_det
        return y / scale if self.scale_first else y


class Layer(ConditionalTransformModule):
    """A transform of vectors of D numbers as a function of the context.

    Args:
        features: F, the width of the context.
        size: D.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, features: int, size: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.features, self.size = features, size

    @abstractmethod
    def condition(self, context: Tensor) -> Transform:
        """The transform, made anew, given features (\\*S, N, F)."""


def repeated(layer: Callable[[int, int], Layer], transforms: int) -> Layers:
    """So many layers of one kind; raises `InputError` for a number that is none."""
    check_count("transforms", transforms)
    return lambda features, size: [layer(features, size) for _ in range(transforms)]


class Parameters(nn.Module):
    """A transform's parameters as affine functions of the context: features (\\*S, N, F) -> (\\*S, N, size) each.

    Args:
        features: F; 0: there is no context, and they are numbers.
        start: what each of them is, (size,), where the features are 0; the weights start small, so that it is nearly
            the same everywhere.
    """

    def __init__(self, features: int, *start: Tensor) -> None:
        super().__init__()
        self.sizes = [part.numel() for part in start]
        if not features:
            self.numbers = nn.Parameter(torch.cat(start) + NEAR * torch.randn(sum(self.sizes)))
            return
        self.affine = Linear(features, sum(self.sizes))
        with torch.no_grad():
            self.affine.linear.weight.mul_(NEAR)
            self.affine.linear.bias.copy_(torch.cat(start))

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        numbers = self.affine(features) if features.shape[-1] else self.numbers.expand(*features.shape[:-1], -1)
        parts: tuple[Tensor, ...] = numbers.split(self.sizes, dim=-1)
        return parts


NEAR = 0.03
"""Factor on the usual first weights of what makes transforms differ from the identity: small, so that training starts
at the mean-field guide, and not 0, where layers behind would have no gradient."""


def _inverts(layer: nn.Module, features: int, size: int) -> bool:
    assert isinstance(layer, ConditionalTransformModule)
    with torch.no_grad():
        try:
            layer.condition(torch.zeros(1, features)).inv(torch.zeros(1, size))
        except (KeyError, NotImplementedError):  # Pyro's transforms without an inverse raise one or the other
            return False
    return True


def _log_det(part: Transform, x: Tensor, y: Tensor) -> Tensor:
    log_det: Tensor = part.log_abs_det_jacobian(x, y)
    return log_det.sum(-1) if part.domain.event_dim == 0 else log_det
