"""The neural spline flow guide."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributions import Transform

from ..core import Encoder, LatentModel
from ..errors import InputError, check_count, choose
from ..networks import MLP, join
from .base import guides
from .flow import NEAR, Flow, Layer, Parameters, Remembering
from .inverse_autoregressive import masked_network

__all__ = ["AutoregressiveSpline", "CouplingSpline", "Knots", "Order", "Spline", "rational_spline"]

Order = Literal["linear", "quadratic"]
Kind = Literal["coupling", "autoregressive"]

LEAST = 1e-3
"""The least share of the box that a bin has, and the least slope at a knot: what is divided by is never near 0."""


@guides.register("spline")
class Spline(Flow):
    r"""Neural spline flow: each dimension bent by a monotone spline whose knots are functions of others, and of x.

    .. math::
        \text{coupling:} \quad & f(ε)_A = g(ε_A;\, θ_A(x)), \quad f(ε)_B = g(ε_B;\, θ_B(ε_A, x)) \\
        \text{autoregressive:} \quad & f(ε)_d = g(ε_d;\, θ_d(ε_{<d}, x))

    over an amortized Gaussian, z = m(x) + s(x) ⊙ (f_K ∘ ... ∘ f_1)(ε), see `Flow`; g is elementwise. On the box
    [-bound, bound], in standard deviations of the Gaussian, g is a rational function on each of the bins between its
    knots, of first or second order; outside it is the identity. The splines' inverse is as cheap as they are, so that
    a z from elsewhere is scored by coupling at the cost of a draw, K passes of the networks, and by an autoregressive
    flow in K D of them, one dimension after the other. Every second transform takes the dimensions in the opposite
    order. Starts near the identity.

    Args:
        model: what the guide is for; only its `latents` are read.
        encoder: features of a batch.
        transforms: K.
        bins: of each spline, 2 or more.
        order: of the rational functions, "linear" or "quadratic".
        kind: "coupling", for sites of two dimensions or more, or "autoregressive".
        bound: half the width of the box.
        hidden: width of the networks' hidden layer; None: 2D, at least 32.

    Raises:
        InputError: numbers of transforms or bins that are none; an unknown order or kind; coupling for a site of one
            dimension; a latent site shared by all data, or discrete.

    References: Durkan, Bekasov, Murray and Papamakarios, Neural spline flows, NeurIPS 2019
    (https://arxiv.org/abs/1906.04032); for the first order Dolatabadi, Erfani and Leckie, Invertible generative
    modeling using linear rational splines, AISTATS 2020 (https://arxiv.org/abs/2001.05168).
    """

    def __init__(
        self,
        model: LatentModel,
        encoder: Encoder,
        transforms: int = 2,
        bins: int = 8,
        order: Order = "linear",
        kind: Kind = "coupling",
        bound: float = 4.0,
        hidden: int | None = None,
    ) -> None:
        check_count("transforms", transforms)
        check_count("bins", bins, least=2)
        if order not in ("linear", "quadratic"):
            raise choose("order", order, ("linear", "quadratic"))
        if kind not in ("coupling", "autoregressive"):
            raise choose("kind", kind, ("coupling", "autoregressive"))
        if not 0.0 < bound < math.inf:
            raise InputError(f"bound={bound!r} must be a finite number above 0: 4 covers a standard normal's draws")
        if hidden is not None:
            check_count("hidden", hidden)

        def layers(features: int, size: int) -> list[Layer]:
            if kind == "coupling" and size == 1:
                raise InputError(
                    "Spline(kind='coupling') conditions half of the dimensions on the other half, and a site of one "
                    "dimension has no halves: use kind='autoregressive'"
                )
            layer = CouplingSpline if kind == "coupling" else AutoregressiveSpline
            knots = Knots(bins, float(bound), order)
            return [layer(features, size, knots, hidden, k % 2 == 1) for k in range(transforms)]

        super().__init__(model, encoder, layers)


class Knots:
    """What splines share: how many bins, on which box, and of which order.

    Args:
        bins, bound, order: as for `Spline`.
    """

    def __init__(self, bins: int, bound: float, order: Order) -> None:
        if LEAST * bins >= 1.0:
            raise InputError(f"bins={bins} leaves a bin less than {LEAST} of the box")
        self.bins, self.bound, self.order = bins, bound, order
        sizes = {"widths": bins, "heights": bins, "slopes": bins - 1}
        self.sizes = sizes if order == "quadratic" else {**sizes, "places": bins}
        self.total = sum(self.sizes.values())

    def start(self, size: int) -> Tensor:
        """Numbers (size · total,) of which the spline is the identity."""
        return torch.zeros(size * self.total)

    def bend(self, x: Tensor, raw: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """`rational_spline` of x (\\*S, N, D) under unconstrained numbers raw (\\*S, N, D, total); all 0 is the
        identity."""
        parts = dict(zip(self.sizes, raw.split(list(self.sizes.values()), dim=-1), strict=True))
        widths, heights = (
            2.0 * self.bound * (LEAST + (1.0 - LEAST * self.bins) * parts[name].softmax(-1))
            for name in ("widths", "heights")
        )
        inner = LEAST + nn.functional.softplus(parts["slopes"] + math.log(math.expm1(1.0 - LEAST)))
        slopes = nn.functional.pad(inner, (1, 1), value=1.0)  # that of the identity outside
        places = None if self.order == "quadratic" else 0.025 + 0.95 * parts["places"].sigmoid()
        return rational_spline(x, widths, heights, slopes, places, self.bound, inverse)


def rational_spline(
    x: Tensor, widths: Tensor, heights: Tensor, slopes: Tensor, places: Tensor | None, bound: float, inverse: bool
) -> tuple[Tensor, Tensor]:
    r"""A monotone function on [-bound, bound], rational on each bin, the identity outside; or its inverse.

    With y = y_k + h φ(ξ) at x = x_k + w ξ, mean slope s = h / w of the bin, and slopes d, e at its two knots,

    - second order (`places` None): φ = [s ξ² + d ξ (1 - ξ)] / [s + (d + e - 2s) ξ (1 - ξ)];
    - first order: two hyperbolas that meet at the `place` ξ = λ, with one slope there. As weighted means of the ends
      y_a, y_b of the piece a <= ξ <= b, y = [A y_a (b - ξ) + B y_b (ξ - a)] / [A (b - ξ) + B (ξ - a)], with weights 1
      and √(d / e) at the knots, and at λ the one that the slopes ask for.

    Args:
        x: (\*S, D).
        widths, heights: of the bins, (\*S, D, bins), each of sum 2 bound.
        slopes: at the knots, (\*S, D, bins + 1).
        places: λ of each bin, (\*S, D, bins), between 0 and 1.
        bound: half the width of the box.
        inverse: x of y instead of y of x.

    Returns:
        y and log dy/dx, or x and log dx/dy; (\*S, D).
    """
    right, top = widths.cumsum(-1) - bound, heights.cumsum(-1) - bound
    left, bottom = right - widths, top - heights
    columns = [left, widths, bottom, heights, slopes[..., :-1], slopes[..., 1:]]
    table = torch.stack(columns if places is None else [*columns, places], dim=-1)  # (*S, D, bins, 6 or 7)
    inside = (x > -bound) & (x < bound)
    # what lies outside is looked up inside, so that its gradient is 0 and not NaN
    point = torch.where(inside, x, torch.zeros_like(x))
    knots = (bottom if inverse else left)[..., 1:]
    bin_of = (point.unsqueeze(-1) >= knots).sum(-1)  # (*S, D)
    rows = table.expand(*bin_of.shape, *table.shape[-2:])
    index = bin_of[..., None, None].expand(*bin_of.shape, 1, table.shape[-1])
    numbers = rows.gather(-2, index).squeeze(-2).unbind(-1)
    value, log_slope = (_quadratic if places is None else _linear)(point, numbers, inverse)
    value = torch.where(inside, value, x)
    log_slope = torch.where(inside, log_slope, torch.zeros_like(log_slope))
    return value, -log_slope if inverse else log_slope


def _quadratic(point: Tensor, numbers: Sequence[Tensor], inverse: bool) -> tuple[Tensor, Tensor]:
    x0, w, y0, h, d, e = numbers
    s = h / w
    bend = d + e - 2.0 * s
    if inverse:
        rise = point - y0
        a, b, c = h * (s - d) + rise * bend, h * d - rise * bend, -s * rise
        root = (b.square() - 4.0 * a * c).clamp_min(0.0)  # below 0 by rounding alone
        xi = 2.0 * c / (-b - root.sqrt())
    else:
        xi = (point - x0) / w
    mixed = xi * (1.0 - xi)
    below = s + bend * mixed
    log_slope = 2.0 * s.log() + (e * xi.square() + 2.0 * s * mixed + d * (1.0 - xi).square()).log() - 2.0 * below.log()
    value = x0 + w * xi if inverse else y0 + h * (s * xi.square() + d * mixed) / below
    return value, log_slope


def _linear(point: Tensor, numbers: Sequence[Tensor], inverse: bool) -> tuple[Tensor, Tensor]:
    x0, w, y0, h, d, e, place = numbers
    end = (d / e).sqrt()
    middle = (place * d + (1.0 - place) * end * e) * w / h
    share = place * end / ((1.0 - place) + place * end)
    y_middle = y0 + h * share
    first = (point <= y_middle) if inverse else (point - x0 <= w * place)
    one, zero = torch.ones_like(place), torch.zeros_like(place)
    a, b = torch.where(first, zero, place), torch.where(first, place, one)
    y_a, y_b = torch.where(first, y0, y_middle), torch.where(first, y_middle, y0 + h)
    weight_a, weight_b = torch.where(first, one, middle), torch.where(first, middle, end)
    if inverse:
        up, down = weight_a * (point - y_a), weight_b * (y_b - point)
        xi = (up * b + down * a) / (up + down)
    else:
        xi = (point - x0) / w
    from_a, from_b = weight_a * (b - xi), weight_b * (xi - a)
    below = from_a + from_b
    log_slope = (weight_a * weight_b * (b - a) * (y_b - y_a) / w).log() - 2.0 * below.log()
    value = x0 + w * xi if inverse else (from_a * y_a + from_b * y_b) / below
    return value, log_slope


class CouplingSpline(Layer):
    """Splines of one half of the dimensions under knots from the context, and of the other under knots from the first
    half too.

    Args:
        features: F.
        size: D.
        knots: what the splines share.
        hidden: width of the network's hidden layer; None: 2D, at least 32.
        backwards: the last dimensions are the first half.
    """

    def __init__(self, features: int, size: int, knots: Knots, hidden: int | None, backwards: bool) -> None:
        super().__init__(features, size)
        self.knots, self.backwards = knots, backwards
        self.first = size // 2
        self.first_raw = Parameters(features, knots.start(self.first))
        width = max(32, 2 * size) if hidden is None else hidden
        self.second_raw = MLP(features + self.first, (width,), (size - self.first) * knots.total)
        with torch.no_grad():
            last = self.second_raw.net[-1]
            assert isinstance(last, nn.Linear)
            last.weight.mul_(NEAR)
            last.bias.zero_()

    def condition(self, context: Tensor) -> Transform:
        return _Coupled(self, context)


class _Coupled(Remembering):
    def __init__(self, layer: CouplingSpline, context: Tensor) -> None:
        super().__init__()
        self.layer, self.context = layer, context
        (raw,) = layer.first_raw(context)
        self.first_raw = raw.unflatten(-1, (layer.first, -1))

    def _call(self, x: Tensor) -> Tensor:
        return self._bend(x, inverse=False)

    def _inverse(self, y: Tensor) -> Tensor:
        return self._bend(y, inverse=True)

    def _bend(self, x: Tensor, inverse: bool) -> Tensor:
        knots, first = self.layer.knots, self.layer.first
        x = x.flip(-1) if self.layer.backwards else x
        a, b = x[..., :first], x[..., first:]
        bent_a, log_a = knots.bend(a, self.first_raw, inverse)
        given = bent_a if inverse else a
        raw = self.layer.second_raw(join(self.context, given)).unflatten(-1, (b.shape[-1], -1))
        bent_b, log_b = knots.bend(b, raw, inverse)
        log_det = log_a.sum(-1) + log_b.sum(-1)
        self._log_det = -log_det if inverse else log_det
        bent = torch.cat([bent_a, bent_b], dim=-1)
        return bent.flip(-1) if self.layer.backwards else bent


class AutoregressiveSpline(Layer):
    """A spline of each dimension under knots from the context and the dimensions before it.

    Args:
        features, size, knots, hidden: as for `CouplingSpline`.
        backwards: from the last dimension to the first.
    """

    def __init__(self, features: int, size: int, knots: Knots, hidden: int | None, backwards: bool) -> None:
        super().__init__(features, size)
        self.knots = knots
        self.network = masked_network(features, size, hidden, [knots.total], backwards)

    def condition(self, context: Tensor) -> Transform:
        return _Autoregressive(self, context)


class _Autoregressive(Remembering):
    def __init__(self, layer: AutoregressiveSpline, context: Tensor) -> None:
        super().__init__()
        self.layer, self.context = layer, context

    def _raw(self, x: Tensor) -> Tensor:
        raw: Tensor = self.layer.network(x, self.context).transpose(-1, -2)  # (*S, N, D, total)
        return raw

    def _call(self, x: Tensor) -> Tensor:
        y, log_det = self.layer.knots.bend(x, self._raw(x), inverse=False)
        self._log_det = log_det.sum(-1)
        return y

    def _inverse(self, y: Tensor) -> Tensor:
        x = torch.zeros_like(y)
        # each pass gets one dimension more right, in the network's order
        for _ in range(y.shape[-1]):
            x, log_det = self.layer.knots.bend(y, self._raw(x), inverse=True)
        self._log_det = -log_det.sum(-1)
        return x
