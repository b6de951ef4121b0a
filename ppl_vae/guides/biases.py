"""Numbers of each datum's own in an amortized guide: biases added to its affine layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.distributions import TransformedDistribution
from torch.utils.hooks import RemovableHandle

from ..core import Encoder
from ..errors import InputError
from .flow import FlowNormal, FlowTransform

__all__ = ["Biases", "affine_layers"]


class Biases:
    r"""Adds δ of each datum's own to what each affine layer of a guide outside of its encoders returns:
    W h(x_n) + b + δ_n.

    With δ = 0 it is the encoder's answer. A Gaussian's or a mixture's head is one such layer: q is then any member of
    the family. So are the parameters of planar, radial, Householder and Sylvester flows. Of networks that take other
    latents, as in inverse autoregressive and spline flows and in guides of layers, biases are each datum's own and
    weights stay shared.

    A context manager that may be entered again inside of itself; its hooks are gone when it is left. Flows run their
    networks no sooner than they are asked for a draw or a density, perhaps after the block: they enter it again by
    themselves.

    Args:
        guide: whose layers.
        values: δ of each of the `layers`, (\*S, N, outputs); may be set anew at any time.

    Attributes:
        layers: the affine layers, each once.
        outputs: what each layer returned last, δ included; None before it ran.

    Raises:
        InputError: a guide without such a layer. When run: a layer that has the data in another dimension than the last
            but one.
    """

    def __init__(self, guide: nn.Module, values: Sequence[Tensor] = ()) -> None:
        self.guide = guide
        self.layers = list(affine_layers(guide))
        if not self.layers:
            raise InputError(
                f"{type(guide).__name__} has no affine layer (nn.Linear) outside of its encoders, nor parameters for "
                "each datum: there is no place where a q of each datum's own could be put in; give a guide made of "
                "networks.Head or nn.Linear, or Local"
            )
        self.values = values
        self.outputs: list[Tensor | None] = [None] * len(self.layers)
        self._depth = 0
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Biases:
        self._depth += 1
        if self._depth == 1:
            self._handles = [layer.register_forward_hook(self._adder(k)) for k, layer in enumerate(self.layers)]
            flows = (part for part in self.guide.modules() if isinstance(part, FlowNormal))
            self._handles += [flow.register_forward_hook(self._goes_along) for flow in flows]
        return self

    def __exit__(self, *exception: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            for handle in self._handles:
                handle.remove()

    def _adder(self, k: int) -> Any:
        def add(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
            value = self.values[k]
            if out.dim() < 2 or out.shape[-2] not in (1, value.shape[-2]):
                raise InputError(
                    f"an affine layer of {type(self.guide).__name__} returns {tuple(out.shape)}, without the "
                    f"{value.shape[-2]} data in the dimension before the last: there is no place for a datum's own "
                    "numbers"
                )
            total: Tensor = out + value
            self.outputs[k] = total
            return total

        return add

    def _goes_along(self, module: nn.Module, args: tuple[Any, ...], q: Any) -> None:
        assert isinstance(q, TransformedDistribution)
        for transform in q.transforms:
            if isinstance(transform, FlowTransform):
                transform.within = self


def affine_layers(guide: nn.Module) -> Iterator[nn.Linear]:
    """The affine layers outside of encoders, each once."""
    if isinstance(guide, nn.Linear):
        yield guide
    for child in guide.children():
        if not isinstance(child, Encoder):
            yield from affine_layers(child)
