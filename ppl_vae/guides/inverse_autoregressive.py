"""The inverse autoregressive flow guide."""

from __future__ import annotations

import warnings

import torch
from pyro.distributions.conditional import ConditionalTransformModule
from pyro.distributions.transforms.affine_autoregressive import ConditionalAffineAutoregressive
from pyro.nn import ConditionalAutoRegressiveNN
from torch import nn

from ..core import Encoder, LatentModel
from ..errors import InputError, check_count
from .base import guides
from .flow import NEAR, Flow

__all__ = ["InverseAutoregressive", "masked_network"]


@guides.register("inverse-autoregressive")
class InverseAutoregressive(Flow):
    r"""Inverse autoregressive flow: each dimension scaled and shifted by functions of those before it.

    .. math:: f_k(ε)_d = e^{a_k(ε_{<d}, x)} ε_d + μ_k(ε_{<d}, x)

    over an amortized Gaussian, z = m(x) + s(x) ⊙ (f_K ∘ ... ∘ f_1)(ε), see `Flow`. One masked network of the encoder's
    features and ε gives a and μ of all dimensions at once; every second transform goes through them in the opposite
    order. A draw and its log q cost K passes of the networks; log q of a z from elsewhere costs K D of them, one
    dimension after the other. The networks have linear connections past their hidden layer, so that a Gaussian of any
    covariance is among what even K = 1 can be. Starts near a = μ = 0. With D = 1 it adds nothing to the Gaussian.

    Args:
        model: what the guide is for; only its `latents` are read.
        encoder: features of a batch.
        transforms: K.
        hidden: width of the networks' hidden layer; None: 2D, at least 32.

    Raises:
        InputError: a number of transforms that is none; a hidden layer narrower than a site's D; a latent site shared
            by all data, or discrete.

    Reference: Kingma, Salimans, Jozefowicz, Chen, Sutskever and Welling, Improving variational inference with inverse
    autoregressive flow, NeurIPS 2016 (https://arxiv.org/abs/1606.04934).
    """

    def __init__(self, model: LatentModel, encoder: Encoder, transforms: int = 2, hidden: int | None = None) -> None:
        check_count("transforms", transforms)

        def layers(features: int, size: int) -> list[ConditionalTransformModule]:
            networks = (masked_network(features, size, hidden, [1, 1], k % 2 == 1) for k in range(transforms))
            return [ConditionalAffineAutoregressive(network) for network in networks]

        super().__init__(model, encoder, layers)


def masked_network(
    features: int, size: int, hidden: int | None, outputs: list[int], backwards: bool
) -> ConditionalAutoRegressiveNN:
    """Pyro's masked network (MADE): numbers for each of D dimensions from the context and the dimensions before it.

    Args:
        features: F.
        size: D.
        hidden: width of its hidden layer; None: 2D, at least 32.
        outputs: how many numbers of each kind a dimension has.
        backwards: from the last dimension to the first.
    """
    width = max(32, 2 * size) if hidden is None else check_count("hidden", hidden)
    if width < size:
        raise InputError(f"hidden={width} must be at least the number of the site's dimensions, {size}")
    # not at random as Pyro's: the order is no parameter, and a saved guide is loaded into one made elsewhere
    order = torch.arange(size).flip(0) if backwards else torch.arange(size)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "ConditionalAutoRegressiveNN input_dim = 1")
        network = ConditionalAutoRegressiveNN(
            size,
            features,
            [width],
            outputs,
            order,  # type: ignore[arg-type]  # of integers, though not named so
            skip_connections=True,
            nonlinearity=nn.SiLU(),
        )
    # the inverse takes the dimensions one by one: by a tensor it would read each number, which no traced step may
    del network.permutation
    network.permutation = order.tolist()  # type: ignore[assignment]
    # left over from its construction, neither buffers nor used
    del network.masks, network.mask_skip
    last, skip = network.layers[-1], network.skip_layer
    assert isinstance(last, nn.Linear)
    assert isinstance(skip, nn.Linear)
    with torch.no_grad():
        last.weight.mul_(NEAR)
        last.bias.zero_()
        skip.weight.mul_(NEAR)
    return network
