"""The planar flow guide."""

from __future__ import annotations

import math

import torch
from pyro.distributions.transforms.planar import ConditionedPlanar
from torch import Tensor, nn
from torch.distributions import Transform

from ..core import Encoder, LatentModel
from .base import guides
from .flow import Flow, Layer, Parameters, repeated

__all__ = ["Planar", "PlanarLayer", "solve_tanh"]


@guides.register("planar")
class Planar(Flow):
    r"""Planar flow: each transform moves points along one direction, by how far they lie along another.

    .. math:: f_k(ε) = ε + \hat u_k(x) \tanh(w_k(x)^\top ε + b_k(x)), \qquad w_k^\top \hat u_k > -1

    over an amortized Gaussian, z = m(x) + s(x) ⊙ (f_K ∘ ... ∘ f_1)(ε), see `Flow`. u, w and b of every transform are
    affine functions of the encoder's features, 2D + 1 outputs each; a draw costs O(K D). Pyro's transform, with an
    inverse of its own: w^T f(ε) is a monotone function of w^T ε, which Newton's method inverts. Starts near û = 0.

    Args:
        model: what the guide is for; only its `latents` are read.
        encoder: features of a batch.
        transforms: K.

    Raises:
        InputError: a number of transforms that is none; a latent site shared by all data, or discrete.

    Reference: Rezende and Mohamed, Variational inference with normalizing flows, ICML 2015
    (https://arxiv.org/abs/1505.05770).
    """

    def __init__(self, model: LatentModel, encoder: Encoder, transforms: int = 8) -> None:
        super().__init__(model, encoder, repeated(PlanarLayer, transforms))


class PlanarLayer(Layer):
    """f(ε) = ε + û tanh(wᵀ ε + b), with û, w and b functions of the context.

    Args:
        features: F.
        size: D.
    """

    def __init__(self, features: int, size: int) -> None:
        super().__init__(features, size)
        w = nn.functional.normalize(torch.randn(size), dim=0)
        # û = u + (softplus(wᵀ u) - 1 - wᵀ u) w / |w|² is 0 where u lies along w and softplus(wᵀ u) = 1
        self.parameters_of = Parameters(features, torch.zeros(1), math.log(math.e - 1.0) * w, w)

    def condition(self, context: Tensor) -> Transform:
        return _Planar(self.parameters_of(context))  # type: ignore[no-untyped-call]


class _Planar(ConditionedPlanar):
    def _inverse(self, y: Tensor) -> Tensor:
        b, u, w = self._params
        u = self.u_hat(u, w)  # type: ignore[no-untyped-call]
        slope = (w * u).sum(-1, keepdim=True)
        act = torch.tanh(solve_tanh((w * y).sum(-1, keepdim=True) + b, slope))
        self._cached_logDetJ = torch.log1p(slope * (1.0 - act.square())).squeeze(-1)
        x: Tensor = y - u * act
        return x


STEPS = 10  # to rounding for slopes up to 10,000; 6 do up to 100


def solve_tanh(s: Tensor, c: Tensor) -> Tensor:
    r"""The root a of a + c tanh(a) = s, for c > -1, with its gradient: what inverts planar and Sylvester transforms.

    The left-hand side is odd and increasing; on a > 0 it is concave for c > 0, convex for c < 0, so that Newton's
    method goes to the root monotonically from a bound of it, the lower one or the upper one. The number of steps is
    fixed, for no step may depend on values; one more, outside of the search, has the gradient.

    Args:
        s, c: tensors that broadcast.
    """
    with torch.no_grad():
        size = s.abs()
        far, near = size - c, size / (1.0 + c)  # tanh(a) <= 1, tanh(a) <= a
        # a - tanh(a) >= 5 a³ / 21 up to a = 1: a close bound where c is near -1, and the line near 0 nearly flat
        cube = (4.2 * size / (-c).clamp_min(1e-6)).pow(1.0 / 3.0)
        above = torch.minimum(torch.minimum(far, near), torch.where(cube <= 1.0, cube, far))
        a = torch.where(c >= 0.0, torch.maximum(far, near), above)
        for _ in range(STEPS):
            act = torch.tanh(a)
            a = a - (a + c * act - size) / (1.0 + c * (1.0 - act.square()))
        a = torch.where(s < 0.0, -a, a)
        act = torch.tanh(a)
        slope = 1.0 + c * (1.0 - act.square())
    return a - (a + c * act - s) / slope
