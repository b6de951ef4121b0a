"""The hierarchical variational autoencoder's generative model."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from ..batch import Batch
from ..core import Conditional, LatentModel, LatentSpec
from ..errors import InputError, check_count
from ..likelihoods import Likelihood
from ..networks import MLP, Condition, DiagonalNormal
from ..priors import StandardNormal
from .base import models

__all__ = ["GaussianLayer", "HierarchicalVAE"]


class GaussianLayer(Conditional):
    r"""p(z | parent) = N(z; m(parent), diag s(parent)²), m and log s by a multilayer perceptron; log s lies within ±7.

    Args:
        inputs: width of the parent, (\*S, N, inputs).
        size: dimensions of z.
        hidden: widths of the hidden layers, one or more.
        activation: class of the nonlinearity.
    """

    def __init__(self, inputs: int, size: int, hidden: Sequence[int], activation: type[nn.Module] = nn.SiLU) -> None:
        super().__init__()
        self.event_shape = torch.Size([size])
        self.body = MLP(inputs, hidden[:-1], hidden[-1], activation, activate_last=True)
        self.head = DiagonalNormal(hidden[-1], LatentSpec(self.event_shape))

    def forward(self, features: Tensor) -> TorchDistributionMixin:
        p: TorchDistributionMixin = self.head(self.body(features))
        return p


@models.register("hierarchical-vae")
class HierarchicalVAE(LatentModel):
    r"""Hierarchical variational autoencoder: z_L ~ N(0, I), each z_l from the one above it, x ~ p(x | decoder(z_1)).

    .. math:: p(x, z) = p(z_L) \Big[\prod_{l=1}^{L-1} p(z_l \mid z_{l+1})\Big] p(x \mid z_1), \qquad
        p(z_l \mid z_{l+1}) = N(z_l;\, m_l(z_{l+1}),\, \mathrm{diag}\, s_l(z_{l+1})^2)

    Guides that follow the layers are `BottomUp` and `TopDown`; those whose sites are independent given x work too.

    Args:
        decoder: (\*S, N, size of z_1) -> (\*S, N, P, \*D), the likelihood's parameters.
        likelihood: p(x | .).
        latent: sizes of z_1, ..., z_L; or that of z_1 alone, each further layer then having half as many (1 at least).
        layers: L, where `latent` is one number; None: 2. With 1 it is a `VAE` whose site is called "z1".
        hidden: widths of the hidden layers of each p(z_l | z_{l+1}); None: two, each twice as wide as z_{l+1}.
        conditionals: p(z_1 | z_2), ..., p(z_{L-1} | z_L), each a `Conditional` of features (\*S, N, size of z_{l+1});
            None: a `GaussianLayer` each.
        prior: p(z_L), a `Conditional`; N(0, I) if None.

    With ``latent=(100, 50)``, ``hidden=(100, 100)`` and a decoder of two hidden layers of 200 it has the sizes of the
    two-layer network of Burda et al., whose nonlinearity is tanh.

    Sites: "zL", ..., "z1", (\*S, N) events (size,), in this order; "x", (\*S, N) events D, observed where `batch.x` is
    given.

    Raises:
        InputError: sizes that are none, a number of layers that is not the sizes', parts that do not fit them.

    Example:
        >>> from ppl_vae import Batch, likelihoods, networks
        >>> decoder = networks.decoder("mlp", 4, (1, 8, 8), 1)
        >>> model = HierarchicalVAE(decoder, likelihoods.Bernoulli((1, 8, 8)), latent=4, layers=3)
        >>> {name: (tuple(spec.event_shape), spec.parents) for name, spec in model.latents.items()}
        {'z3': ((1,), ()), 'z2': ((2,), ('z3',)), 'z1': ((4,), ('z2',))}
        >>> model(Batch(n=3)).shape
        torch.Size([3, 1, 8, 8])

    References:
        Burda, Grosse and Salakhutdinov, Importance weighted autoencoders, ICLR 2016 (https://arxiv.org/abs/1509.00519).
        Sønderby et al., Ladder variational autoencoders, NIPS 2016 (https://arxiv.org/abs/1602.02282).
    """

    def __init__(
        self,
        decoder: nn.Module,
        likelihood: Likelihood,
        latent: int | Sequence[int],
        layers: int | None = None,
        hidden: Sequence[int] | None = None,
        conditionals: Sequence[Conditional] | None = None,
        prior: Conditional | None = None,
    ) -> None:
        super().__init__()
        sizes = _sizes(latent, layers)
        if hidden is not None and (not hidden or any(not _is_size(width) for width in hidden)):
            raise InputError(f"hidden={hidden!r} must be one width or more, each 1 or more: (100, 100)")
        if conditionals is None:
            conditionals = [
                GaussianLayer(above, size, (2 * above, 2 * above) if hidden is None else hidden)
                for size, above in pairwise(sizes)
            ]
        elif hidden is not None:
            raise InputError(f"hidden={hidden!r} is of the conditionals that are made here: give it or conditionals")
        given = [tuple(part.event_shape) for part in conditionals]
        if given != [(size,) for size in sizes[:-1]]:
            raise InputError(
                f"conditionals over events {given} do not fit latent={sizes}: p(z_l | z_{{l+1}}) for l = 1 to "
                f"{len(sizes) - 1}, over events {[(size,) for size in sizes[:-1]]}"
            )
        prior = StandardNormal(sizes[-1]) if prior is None else prior
        if tuple(prior.event_shape) != (sizes[-1],):
            raise InputError(
                f"prior is over events {tuple(prior.event_shape)}; z{len(sizes)}, the last of latent={sizes}, has "
                f"{(sizes[-1],)}"
            )
        self.decoder = decoder
        self.likelihood = likelihood
        self.prior = prior
        self.conditionals = nn.ModuleDict({f"z{i + 1}": part for i, part in reversed(list(enumerate(conditionals)))})
        self.condition = Condition()
        self.latents = {
            f"z{i + 1}": LatentSpec(torch.Size([sizes[i]]), parents=(f"z{i + 2}",) if i + 1 < len(sizes) else ())
            for i in reversed(range(len(sizes)))
        }

    def forward(self, batch: Batch) -> Tensor:
        with pyro.plate("data", batch.size, dim=-1):
            z = pyro.sample(f"z{len(self.latents)}", self.prior(self.condition(batch)))
            for name, conditional in self.conditionals.items():
                z = pyro.sample(name, conditional(z))
            x: Tensor = pyro.sample("x", self.likelihood(self.decoder(z), batch.observed), obs=batch.x)
        return x


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _sizes(latent: int | Sequence[int], layers: int | None) -> tuple[int, ...]:
    """Of z_1, ..., z_L."""
    if layers is not None:
        check_count("layers", layers)
    if isinstance(latent, Sequence) and not isinstance(latent, str):
        sizes = tuple(latent)
        if layers is not None and layers != len(sizes):
            raise InputError(f"layers={layers} does not fit latent={sizes}, which has {len(sizes)}; give one of them")
    else:
        sizes = (latent,)
        if _is_size(latent):
            sizes = tuple(max(1, latent >> i) for i in range(2 if layers is None else layers))
    if not sizes or any(not _is_size(size) for size in sizes):
        raise InputError(f"latent={latent!r} must be a size, 1 or more, or the sizes of z1, z2, ...: (100, 50)")
    return sizes
