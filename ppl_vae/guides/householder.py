"""The Householder flow guide."""

from __future__ import annotations

import torch
from pyro.distributions.transforms.householder import ConditionedHouseholder
from torch import Tensor, nn
from torch.distributions import Transform

from ..core import Encoder, LatentModel
from ..errors import InputError, check_count
from .base import guides
from .flow import Flow, Layer, Parameters

__all__ = ["Householder", "HouseholderLayer", "start_vectors"]


@guides.register("householder")
class Householder(Flow):
    r"""Householder flow: a diagonal Gaussian turned by reflections, a Gaussian with correlations.

    .. math::
        z = m(x) + H_K(x) \cdots H_1(x) \big(s(x) \odot ε\big), \qquad
        H_k = I - 2 \frac{v_k(x) v_k(x)^\top}{|v_k(x)|^2}, \quad ε \sim N(0, I)

    Reflections keep volumes: log q(z | x) = log N(ε; 0, I) - Σ_d log s_d(x). With K = D of them z has any covariance,
    as under the full-rank guide, from 2D + K D outputs of affine functions of the encoder's features; with fewer, those
    that differ from a diagonal one in few directions. A draw costs O(K D), and so does log q of a given z, as a
    reflection is its own inverse. Vectors start in pairs, whose reflections undo each other (an odd one out flips the
    sign of one dimension): training starts at the mean-field guide.

    Args:
        model: what the guide is for; only its `latents` are read.
        encoder: features of a batch.
        transforms: K; None, or more than a site's D: D.

    Raises:
        InputError: a number of transforms that is none; a latent site of one dimension, in which there is nothing to
            turn, one shared by all data, or discrete.

    Reference: Tomczak and Welling, Improving variational auto-encoders using Householder flow, 2016
    (https://arxiv.org/abs/1611.09630).
    """

    def __init__(self, model: LatentModel, encoder: Encoder, transforms: int | None = None) -> None:
        if transforms is not None:
            check_count("transforms", transforms)

        def layers(features: int, size: int) -> list[Layer]:
            _check_turns("Householder", size)
            return [HouseholderLayer(features, size, size if transforms is None else min(transforms, size))]

        super().__init__(model, encoder, layers, scale_first=True)


class HouseholderLayer(Layer):
    """H_K ··· H_1, each vector a function of the context.

    Args:
        features: F.
        size: D.
        count: K.
    """

    def __init__(self, features: int, size: int, count: int) -> None:
        super().__init__(features, size)
        self.count = count
        self.parameters_of = Parameters(features, start_vectors(size, count).flatten())

    def condition(self, context: Tensor) -> Transform:
        (vectors,) = self.parameters_of(context)
        transform: Transform = ConditionedHouseholder(vectors.unflatten(-1, (self.count, -1)))
        return transform


def start_vectors(size: int, count: int) -> Tensor:
    """Unit vectors (count, size) at random, in pairs; an odd one out is the first axis."""
    vectors = nn.functional.normalize(torch.randn(count // 2, size), dim=-1).repeat_interleave(2, dim=0)
    return vectors if count % 2 == 0 else torch.cat([vectors, torch.eye(1, size)])


def _check_turns(name: str, size: int) -> None:
    if size == 1:
        raise InputError(
            f"{name} turns vectors, and a site of one dimension has nothing to turn: use Planar, Radial or "
            "Spline(kind='autoregressive')"
        )
