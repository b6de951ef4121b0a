"""The Sylvester flow guide."""

from __future__ import annotations

import torch
from pyro.distributions.transforms.householder import ConditionedHouseholder
from torch import Tensor
from torch.distributions import Transform

from ..core import Encoder, LatentModel
from ..errors import check_count
from .base import guides
from .flow import Flow, Layer, Parameters, Remembering
from .householder import start_vectors
from .planar import solve_tanh

__all__ = ["Sylvester", "SylvesterLayer", "SylvesterTransform"]


@guides.register("sylvester")
class Sylvester(Flow):
    r"""Sylvester flow: planar flows with D directions at a time, amortized, its orthogonal matrix made of reflections.

    .. math::
        f_k(ε) = ε + Q_k R_k \tanh(a), \quad a = S_k Q_k^\top ε + b_k, \qquad
        \log\left|\det \frac{∂f_k}{∂ε}\right| = \sum_d \log\big(1 + (1 - \tanh^2 a_d)\, r_{dd} s_{dd}\big)

    over an amortized Gaussian, z = m(x) + s(x) ⊙ (f_K ∘ ... ∘ f_1)(ε), see `Flow`. Q is orthogonal, a product of
    Householder reflections; R and S are upper triangular, with diagonals tanh(·), so that r_dd s_dd > -1 and f is
    invertible; all of them and b are affine functions of the encoder's features, D(D - 1) + 3D + H D outputs each
    transform. A draw costs O(K D (D + H)). The inverse goes through the dimensions from the last to the first: each is
    a monotone equation in one unknown, which Newton's method solves. Starts near R = 0, S = ¾ I.

    Args:
        model: what the guide is for; only its `latents` are read.
        encoder: features of a batch.
        transforms: K.
        reflections: H of each Q; None, or more than a site's D: D, which makes any orthogonal matrix (up to a sign).

    Raises:
        InputError: a number of transforms or reflections that is none; a latent site shared by all data, or discrete.

    Reference: van den Berg, Hasenclever, Tomczak and Welling, Sylvester normalizing flows for variational inference,
    UAI 2018 (https://arxiv.org/abs/1803.05649); this is their Householder variant, of M = D.
    """

    def __init__(
        self, model: LatentModel, encoder: Encoder, transforms: int = 4, reflections: int | None = None
    ) -> None:
        check_count("transforms", transforms)
        if reflections is not None:
            check_count("reflections", reflections)

        def layers(features: int, size: int) -> list[Layer]:
            count = size if reflections is None else min(reflections, size)
            return [SylvesterLayer(features, size, count) for _ in range(transforms)]

        super().__init__(model, encoder, layers)


class SylvesterLayer(Layer):
    """f(ε) = ε + Q R tanh(S Qᵀ ε + b), with Q, R, S and b functions of the context.

    Args:
        features: F.
        size: D.
        reflections: H, of Q.
    """

    position: Tensor

    def __init__(self, features: int, size: int, reflections: int) -> None:
        super().__init__(features, size)
        # in one dimension Q is 1 or -1, and no parameter of it would have a gradient
        self.reflections = reflections if size > 1 else 0
        rows, columns = torch.triu_indices(size, size, offset=1)
        self.register_buffer("position", rows * size + columns, persistent=False)
        above, diagonal = torch.zeros(self.position.numel()), torch.zeros(size)
        vectors = start_vectors(size, self.reflections).flatten()
        # S is not 0, or neither R nor S would have a gradient where both start
        self.parameters_of = Parameters(features, diagonal, above, diagonal + 1.0, above, diagonal, vectors)

    def condition(self, context: Tensor) -> Transform:
        r_diagonal, r_above, s_diagonal, s_above, b, vectors = self.parameters_of(context)
        return SylvesterTransform(
            vectors.unflatten(-1, (self.reflections, self.size)) if self.reflections else None,
            self._triangular(r_diagonal.tanh(), r_above),
            self._triangular(s_diagonal.tanh(), s_above),
            b,
        )

    def _triangular(self, diagonal: Tensor, above: Tensor) -> Tensor:
        flat = above.new_zeros(*above.shape[:-1], self.size * self.size).index_copy(-1, self.position, above)
        matrix: Tensor = flat.unflatten(-1, (self.size, self.size)) + diagonal.diag_embed()
        return matrix


class SylvesterTransform(Remembering):
    """f(ε) = ε + Q R tanh(S Qᵀ ε + b).

    Args:
        vectors: (\\*S, N, H, D), whose reflections make Q; None: Q = I.
        r, s: (\\*S, N, D, D), upper triangular, the products of their diagonals above -1.
        b: (\\*S, N, D).
    """

    def __init__(self, vectors: Tensor | None, r: Tensor, s: Tensor, b: Tensor) -> None:
        super().__init__()
        self.q = None if vectors is None else ConditionedHouseholder(vectors)
        self.r, self.s, self.b = r, s, b

    def _call(self, x: Tensor) -> Tensor:
        v = x if self.q is None else self.q._inverse(x)  # Qᵀ x
        act = torch.tanh(_apply(self.s, v) + self.b)
        self._log_det = self._of(act)
        step = _apply(self.r, act)
        moved: Tensor = x + (step if self.q is None else self.q._call(step))
        return moved

    def _inverse(self, y: Tensor) -> Tensor:
        v = y if self.q is None else self.q._inverse(y)  # Qᵀ y = Qᵀ x + R tanh(S Qᵀ x + b)
        size = y.shape[-1]
        found: list[Tensor] = []  # Qᵀ x, from the last dimension to the first
        acts: list[Tensor] = []
        for d in reversed(range(size)):
            # what the dimensions behind d, which are known, add: R and S are upper triangular
            target, shift = v[..., d], self.b[..., d]
            for e, (value, act) in enumerate(zip(found, acts, strict=True)):
                column = size - 1 - e
                target = target - self.r[..., d, column] * act
                shift = shift + self.s[..., d, column] * value
            r, s = self.r[..., d, d], self.s[..., d, d]
            # x_d + r tanh(a) = target with a = s x_d + shift, so that a + r s tanh(a) = s target + shift
            act = torch.tanh(solve_tanh(s * target + shift, r * s))
            found.append(target - r * act)
            acts.append(act)
        self._log_det = self._of(torch.stack(acts[::-1], dim=-1))
        x = torch.stack(found[::-1], dim=-1)
        return x if self.q is None else self.q._call(x)

    def _of(self, act: Tensor) -> Tensor:
        diagonals = self.r.diagonal(dim1=-2, dim2=-1) * self.s.diagonal(dim1=-2, dim2=-1)
        return torch.log1p((1.0 - act.square()) * diagonals).sum(-1)


def _apply(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)
