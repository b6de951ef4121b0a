"""The radial flow guide."""

from __future__ import annotations

import torch
from pyro.distributions.transforms.radial import ConditionedRadial
from torch import Tensor, nn
from torch.distributions import Transform

from ..core import Encoder, LatentModel
from .base import guides
from .flow import Flow, Layer, Parameters, repeated

__all__ = ["Radial", "RadialLayer"]


@guides.register("radial")
class Radial(Flow):
    r"""Radial flow: each transform draws points towards a centre, or drives them away from it.

    .. math:: f_k(ε) = ε + \frac{β_k(x)}{α_k(x) + r} (ε - c_k(x)), \qquad r = |ε - c_k(x)|, \quad α_k > 0, \; β_k > -α_k

    over an amortized Gaussian, z = m(x) + s(x) ⊙ (f_K ∘ ... ∘ f_1)(ε), see `Flow`. Centre, α and β of every transform
    are affine functions of the encoder's features, D + 2 outputs each; a draw costs O(K D). Pyro's transform, with an
    inverse of its own: the distance r solves a quadratic equation. Starts near β = 0.

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
        super().__init__(model, encoder, repeated(RadialLayer, transforms))


class RadialLayer(Layer):
    """f(ε) = ε + β (ε - c) / (α + |ε - c|), with c, α = softplus(α') and β = softplus(β') - α functions of the context.

    Args:
        features: F.
        size: D.
    """

    def __init__(self, features: int, size: int) -> None:
        super().__init__(features, size)
        self.parameters_of = Parameters(features, torch.randn(size), torch.ones(1), torch.ones(1))

    def condition(self, context: Tensor) -> Transform:
        return _Radial(self.parameters_of(context))  # type: ignore[no-untyped-call]


class _Radial(ConditionedRadial):
    def _inverse(self, y: Tensor) -> Tensor:
        centre, raw_alpha, raw_beta = self._params
        alpha = nn.functional.softplus(raw_alpha)
        beta = nn.functional.softplus(raw_beta) - alpha
        away = y - centre
        distance = away.norm(dim=-1, keepdim=True)
        # |y - c| = r (1 + β / (α + r)), the larger root of r² + (α + β - |y - c|) r - α |y - c| = 0
        half = 0.5 * (distance - alpha - beta)
        r = half + (half.square() + alpha * distance).sqrt()
        h = beta / (alpha + r)
        inner = h * alpha / (alpha + r)
        self._cached_logDetJ = ((y.shape[-1] - 1) * torch.log1p(h) + torch.log1p(inner)).squeeze(-1)
        x: Tensor = centre + away / (1.0 + h)
        return x
