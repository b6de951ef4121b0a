"""Bodies (multilayer perceptrons, convolutions, residual ones) sized from the data's shape, and heads that return
distributions."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import pairwise
from typing import Literal

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions import biject_to, constraints

from .batch import Batch
from .core import Conditional, Encoder, LatentSpec, plain_support
from .errors import InputError, check_count, choose

__all__ = [
    "MLP",
    "BodyEncoder",
    "ClassEncoder",
    "Condition",
    "ConvDecoder",
    "ConvEncoder",
    "Decoder",
    "DiagonalNormal",
    "DiagonalNormals",
    "FullRankNormal",
    "Head",
    "LowRankNormal",
    "PartialConv2d",
    "PartialConvEncoder",
    "decoder",
    "encoder",
    "families",
    "flatten_left",
    "in_precision",
    "join",
    "kinds",
    "set_precision",
    "soft_bound",
]

Kind = Literal["mlp", "conv", "residual", "partial"]
kinds: dict[str, str] = {
    "mlp": "Multilayer perceptron, for any data.",
    "conv": "Strided convolutions and their transposes, for images.",
    "residual": "Residual blocks: convolutional for images, dense for tables.",
    "partial": "Convolutions of the visible pixels alone, renormalized, for images with masks; decoder as conv.",
}

LOG_SCALE_BOUND = 7.0
"""Log-scales lie within ±7, scales within 9e-4 and 1.1e3: exp of an unbounded one overflows after good steps."""


def soft_bound(raw: Tensor, bound: float = LOG_SCALE_BOUND) -> Tensor:
    """bound · tanh(raw / bound): the identity near 0, never beyond ±bound, with a gradient everywhere."""
    return bound * torch.tanh(raw / bound)


def join(*tensors: Tensor) -> Tensor:
    """Concatenate along the last dimension, broadcasting all others.

    An enumerated value arrives as (C, 1, 1, F) beside features (K, N, F'), which `torch.cat` refuses.
    """
    if len(tensors) == 1:
        return tensors[0]
    left = torch.broadcast_shapes(*(t.shape[:-1] for t in tensors))
    return torch.cat([t.expand(*left, t.shape[-1]) for t in tensors], dim=-1)


def flatten_left(module: nn.Module, x: Tensor, event_dim: int) -> Tensor:
    """Call a module that takes one batch dimension (Conv2d, BatchNorm) on (\\*S, N, \\*event)."""
    left = x.shape[: x.dim() - event_dim]
    if len(left) == 1:
        out: Tensor = module(x)
        return out
    out = module(x.reshape(-1, *x.shape[x.dim() - event_dim :]))
    return out.reshape(*left, *out.shape[1:])


class Body(nn.Module):
    """A network under its own precision: with `set_precision(..., "bf16")` its matrix products are in bfloat16 while
    its input and output stay in the precision they have, so that log-probabilities outside keep theirs."""

    autocast: bool = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.autocast:
            return self.body(x)
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            return self.body(x).to(x.dtype)

    def body(self, x: Tensor) -> Tensor:
        raise NotImplementedError


NOTHING_IN_BF16 = (
    'precision="bf16" changes nothing here: neither model nor guide has a network of ppl_vae.networks. All is in the '
    "precision of the parameters; build the networks from `networks.MLP`, or put torch.autocast around their layers"
)


def set_precision(module: nn.Module, precision: Literal["32", "bf16"]) -> int:
    """Choose the precision of every `Body` inside of `module`: "32" leaves float32 (or float64), "bf16" does matrix
    products and convolutions in bfloat16. Heads, log-probabilities and parameters keep their own. Returns how many
    there are: modules of other kinds are left alone."""
    if precision not in ("32", "bf16"):
        raise choose("precision", precision, ("32", "bf16"))
    bodies = [part for part in module.modules() if isinstance(part, Body)]
    for part in bodies:
        part.autocast = precision == "bf16"
    return len(bodies)


_LAYERS = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd, nn.RNNBase, nn.MultiheadAttention)


def plain_layers(module: nn.Module, name: str = "") -> list[str]:
    """Names of the layers with matrix products that lie in no `Body`, which `set_precision` leaves alone."""
    if isinstance(module, Body):
        return []
    if isinstance(module, _LAYERS):
        return [f"{name} ({type(module).__name__})"]
    parts = [plain_layers(part, f"{name}.{key}" if name else key) for key, part in module.named_children()]
    return [layer for part in parts for layer in part]


def warning_in_bf16(parts: Mapping[str, nn.Module]) -> str | None:
    """What a person who asked for bfloat16 is to know of programs that have layers, or all of them, in no `Body`."""
    layers = [layer for name, part in parts.items() for layer in plain_layers(part, name)]
    if not any(isinstance(module, Body) for part in parts.values() for module in part.modules()):
        return NOTHING_IN_BF16
    if not layers:
        return None
    more = f" and {len(layers) - 5} more" if len(layers) > 5 else ""
    return (
        f'precision="bf16" leaves {", ".join(layers[:5])}{more} in the precision of their parameters: they are in no '
        "network of ppl_vae.networks; build them from `networks.MLP`, or put torch.autocast around them"
    )


@contextmanager
def in_precision(precision: Literal["32", "bf16"], *programs: object) -> Iterator[None]:
    """A block in which "bf16" is `set_precision` for those programs that are modules; "32" changes nothing. Bodies are
    afterwards as they were. Warns where layers, or all of them, are not in bfloat16."""
    if precision not in ("32", "bf16"):
        raise choose("precision", precision, ("32", "bf16"))
    modules = [program for program in programs if isinstance(program, nn.Module)] if precision == "bf16" else []
    before = {part: part.autocast for module in modules for part in module.modules() if isinstance(part, Body)}
    if precision == "bf16" and (words := warning_in_bf16({type(module).__name__: module for module in modules})):
        warnings.warn(words, UserWarning, stacklevel=3)
    try:
        for part in before:
            part.autocast = True
        yield
    finally:
        for part, flag in before.items():
            part.autocast = flag


class Linear(Body):
    """An affine map, of heads."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)

    def body(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x)
        return out


class MLP(Body):
    """Dense layers: (\\*S, N, inputs) -> (\\*S, N, outputs).

    Args:
        inputs, outputs: widths.
        hidden: widths of the hidden layers.
        activation: class of the nonlinearity, after each hidden layer.
        residual: add each hidden layer's input to its output where the widths agree.
        activate_last: the nonlinearity after the last layer too, for features.
    """

    def __init__(
        self,
        inputs: int,
        hidden: Sequence[int],
        outputs: int,
        activation: type[nn.Module] = nn.SiLU,
        residual: bool = False,
        activate_last: bool = False,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = inputs
        for next_width in hidden:
            layer = nn.Sequential(nn.Linear(width, next_width), activation())
            layers.append(_Residual(layer) if residual and width == next_width else layer)
            width = next_width
        layers.append(nn.Linear(width, outputs))
        if activate_last:
            layers.append(activation())
        self.net = nn.Sequential(*layers)

    def body(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out

    def of_parts(self, x: Tensor, *more: Tensor) -> Tensor:
        """The output for `join(x, *more)`. Where the others have dimensions to the left that x has not, as classes
        (C, 1, 1, C) beside x (N, D), the first layer multiplies x once and not once a class."""
        first = self.net[0]
        linear = first[0] if isinstance(first, nn.Sequential) else first
        left = torch.broadcast_shapes(*(t.shape[:-1] for t in more)) if more else x.shape[:-1]
        if not isinstance(linear, nn.Linear) or torch.broadcast_shapes(left, x.shape[:-1]) == x.shape[:-1]:
            joined: Tensor = self(join(x, *more))
            return joined
        with torch.autocast(x.device.type, dtype=torch.bfloat16) if self.autocast else nullcontext():
            of_x, of_others = linear.weight.split([x.shape[-1], linear.in_features - x.shape[-1]], dim=1)
            out: Tensor = F.linear(x, of_x, linear.bias) + F.linear(join(*more), of_others)
            if isinstance(first, nn.Sequential):
                out = first[1:](out)
            return self.net[1:](out).to(x.dtype)  # type: ignore[no-any-return]


class _Residual(nn.Module):
    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.branch(x)
        return out


def conv_block(channels: int, activation: type[nn.Module]) -> nn.Module:
    return _Residual(
        nn.Sequential(
            activation(),
            nn.Conv2d(channels, channels, 3, padding=1),
            activation(),
            nn.Conv2d(channels, channels, 1),
        )
    )


def _sizes(shape: Sequence[int], layers: int) -> list[tuple[int, int]]:
    """Heights and widths before and after each halving."""
    height, width = shape[-2:]
    sizes = [(height, width)]
    for _ in range(layers):
        height, width = (height + 1) // 2, (width + 1) // 2
        sizes.append((height, width))
    return sizes


class ConvEncoder(Body):
    """Convolutions of stride 2: (\\*S, N, C, H, W) -> (\\*S, N, features), for any H, W.

    Args:
        shape: (C, H, W).
        channels: of each layer, with windows of 4 x 4 where all sides can be halved and of 3 x 3 elsewhere; or one
            number, of the first layer: windows of 3 x 3, each layer doubles the channels.
        features: width of the output, after a dense layer and the nonlinearity.
        layers: number of halvings, of one number of channels; None: as many as leave 4 pixels or fewer a side, 4 at
            most.
        residual: a residual block after each halving.

    Raises:
        InputError: more layers than the sides can be halved.
    """

    def __init__(
        self,
        shape: Sequence[int],
        channels: int | Sequence[int],
        features: int,
        layers: int | None = None,
        activation: type[nn.Module] = nn.SiLU,
        residual: bool = False,
    ) -> None:
        super().__init__()
        widths, window = _layers(shape, channels, layers)
        steps: list[nn.Module] = []
        for before, after in pairwise([shape[0], *widths]):
            steps.append(nn.Conv2d(before, after, window, stride=2, padding=1))
            if residual:
                steps.append(conv_block(after, activation))
            steps.append(activation())
        flat = widths[-1] * math.prod(_sizes(shape, len(widths))[-1])
        self.net = nn.Sequential(*steps, nn.Flatten(), nn.Linear(flat, features), activation())
        channels_last(self.net)

    def body(self, x: Tensor) -> Tensor:
        return flatten_left(self.net, x, 3)


class PartialConv2d(nn.Module):
    r"""A convolution of what is observed, renormalized by how much that is, and the mask of its outputs.

    In a window with values X and mask M,

    .. math::
        x' = W^\top (X \odot M) \, \frac{\mathrm{sum}(1)}{\mathrm{sum}(M)} + b, \quad m' = 1
        \qquad \text{if } \mathrm{sum}(M) > 0; \qquad x' = 0, \quad m' = 0 \quad \text{otherwise},

    with the sums over the window's pixels and channels. Holes thus close from layer to layer. The factor sum(1) keeps
    the outputs' scale: without holes this is an ordinary convolution.

    Args:
        inputs, outputs: channels.
        kernel: side of the window.
        stride, padding: as in `torch.nn.Conv2d`; padded values are 0.
        padding_observed: True counts the padding as observed: where all is observed the outputs are those of an
            ordinary convolution at any padding. False is the paper's rule, by which the border is a hole: outputs there
            are scaled up, and agree with an ordinary convolution's where there is no padding.

    Parameters are those of an `nn.Conv2d`, "weight" and "bias".

    Reference: Liu et al., Image inpainting for irregular holes using partial convolutions, ECCV 2018
    (https://arxiv.org/abs/1804.07723).
    """

    ones: Tensor

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        padding: int = 0,
        padding_observed: bool = True,
    ) -> None:
        super().__init__()
        plain = nn.Conv2d(inputs, outputs, kernel, stride, padding)
        assert plain.bias is not None
        self.weight, self.bias = plain.weight, plain.bias
        self.inputs, self.kernel, self.stride, self.padding = inputs, kernel, stride, padding
        self.padding_observed = padding_observed
        self.register_buffer("ones", torch.ones(1, 1, kernel, kernel), persistent=False)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs and their mask.

        Args:
            x: (N, inputs, H, W).
            mask: (N, inputs, H, W), or (N, 1, H, W) for all channels, 1 (or True) where x is observed.

        Returns:
            (N, outputs, H', W') and the mask (N, 1, H', W'), 0 and 1.
        """
        mask = mask.to(x.dtype)
        # observed values in each window, (N, 1, H', W')
        seen = mask.sum(1, keepdim=True) if mask.shape[1] > 1 else mask * self.inputs
        if self.padding_observed and self.padding:
            seen = F.conv2d(F.pad(seen, [self.padding] * 4, value=float(self.inputs)), self.ones, stride=self.stride)
        else:
            seen = F.conv2d(seen, self.ones, stride=self.stride, padding=self.padding)
        seen = seen.to(x.dtype)
        updated = (seen > 0).to(x.dtype)
        ratio = updated * (self.inputs * self.kernel**2) / seen.clamp_min(1.0)
        out = F.conv2d(x * mask, self.weight, None, self.stride, self.padding)
        return out * ratio + self.bias.view(-1, 1, 1) * updated, updated


class PartialConvEncoder(Body):
    """Partial convolutions of stride 2: (\\*S, N, 2 C, H, W) -> (\\*S, N, features).

    The first C channels are x, the others its mask, as `BodyEncoder(mask=True)` joins them. Sizes are those of
    `ConvEncoder`, and so are the numbers where all is visible and the weights are the same.

    Args:
        shape: (C, H, W), of x alone.
        channels, features, layers: see `ConvEncoder`.
        padding_observed: see `PartialConv2d`.
    """

    def __init__(
        self,
        shape: Sequence[int],
        channels: int | Sequence[int],
        features: int,
        layers: int | None = None,
        activation: type[nn.Module] = nn.SiLU,
        padding_observed: bool = True,
    ) -> None:
        super().__init__()
        widths, window = _layers(shape, channels, layers)
        self.convolutions = nn.ModuleList(
            PartialConv2d(before, after, window, 2, 1, padding_observed)
            for before, after in pairwise([shape[0], *widths])
        )
        self.activation = activation()
        self.dense = nn.Linear(widths[-1] * math.prod(_sizes(shape, len(widths))[-1]), features)
        channels_last(self.convolutions)

    def body(self, x: Tensor) -> Tensor:
        left = x.shape[:-3]
        pictures, mask = x.reshape(-1, *x.shape[-3:]).chunk(2, dim=1)
        for convolution in self.convolutions:
            pictures, mask = convolution(pictures, mask)
            pictures = self.activation(pictures)
        out: Tensor = self.activation(self.dense(pictures.flatten(1)))
        return out.reshape(*left, -1)


class Decoder(nn.Module):
    """A body that turns latents (\\*S, N, inputs) into a likelihood's parameters (\\*S, N, P, \\*D).

    Args:
        body: maps to (\\*S, N, P · numel(D)) or (\\*S, N, P · C, H, W).
        shape: D.
        outputs: P, the likelihood's parameters per element.
    """

    def __init__(self, body: Body, shape: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.body = body
        self.shape = tuple(shape)
        self.outputs = outputs

    def forward(self, z: Tensor) -> Tensor:
        out: Tensor = self.body(z)
        return out.reshape(*z.shape[:-1], self.outputs, *self.shape)


class ConvDecoder(Body):
    """Transposed convolutions of stride 2, `ConvEncoder` backwards: (\\*S, N, inputs) -> (\\*S, N, P · C, H, W).

    Args:
        channels: as of the encoder, in its order.
        outputs: P.
        dense: width of a dense layer before the others; None: there is none.
    """

    def __init__(
        self,
        inputs: int,
        shape: Sequence[int],
        channels: int | Sequence[int],
        outputs: int,
        layers: int | None = None,
        activation: type[nn.Module] = nn.SiLU,
        residual: bool = False,
        dense: int | None = None,
    ) -> None:
        super().__init__()
        widths, window = _layers(shape, channels, layers)
        sizes = _sizes(shape, len(widths))
        steps: list[nn.Module] = [] if dense is None else [nn.Linear(inputs, dense), activation()]
        steps += [
            nn.Linear(inputs if dense is None else dense, widths[-1] * math.prod(sizes[-1])),
            activation(),
            nn.Unflatten(1, (widths[-1], *sizes[-1])),
        ]
        for i, (after, before) in reversed(list(enumerate(pairwise([outputs * shape[0], *widths])))):
            # 2n + window - 4 + output_padding: exact for odd sizes too
            (height, breadth), (small_height, small_breadth) = sizes[i], sizes[i + 1]
            padding = (height - (2 * small_height + window - 4), breadth - (2 * small_breadth + window - 4))
            if residual:
                steps += [conv_block(before, activation), activation()]
            steps.append(nn.ConvTranspose2d(before, after, window, stride=2, padding=1, output_padding=padding))
            if i > 0:
                steps.append(activation())
        self.net = nn.Sequential(*steps)
        channels_last(self.net)

    def body(self, z: Tensor) -> Tensor:
        return flatten_left(self.net, z, 1)


def channels_last(net: nn.Module) -> None:
    """Kernels in the layout that convolutions work in, which their outputs then have too: in another one every layer
    of a compiled step is copied back and forth, a fifth of its time on a CPU."""
    net.to(memory_format=torch.channels_last)


def _layers(shape: Sequence[int], channels: int | Sequence[int], layers: int | None) -> tuple[list[int], int]:
    """The channels of each layer, from x on, and the side of their windows."""
    if isinstance(channels, int):
        return [channels * 2**i for i in range(_default_layers(shape) if layers is None else layers)], 3
    sizes = _sizes(shape, len(channels))
    if max(sizes[-2]) < 2:
        most = next(k for k, size in enumerate(sizes) if max(size) < 2)
        raise InputError(
            f"{len(channels)} layers of channels {tuple(channels)} halve images of {shape[-2]} x {shape[-1]} more "
            f"often than they can be; give {most} or fewer"
        )
    return list(channels), 4 if all(side % 2 == 0 for size in sizes[:-1] for side in size) else 3


def _default_layers(shape: Sequence[int]) -> int:
    layers = 1
    while layers < 4 and max(_sizes(shape, layers)[-1]) > 4:
        layers += 1
    return layers


class Condition(nn.Module):
    """What a program is conditioned on besides x, as numbers: one-hot class and context, (N, classes + width).

    A missing label (-1) is a row of zeros. With neither classes nor context the width is 0.

    Args:
        classes: number of classes, 0 if `batch.y` is not used.
        context: width of `batch.context`, 0 if it is not used.
    """

    index: Tensor

    def __init__(self, classes: int = 0, context: int = 0) -> None:
        super().__init__()
        self.classes = classes
        self.context = context
        self.width = classes + context
        # kept with the module's device; its dtype says which one the features have
        self.register_buffer("index", torch.arange(classes, dtype=torch.get_default_dtype()), persistent=False)

    def forward(self, batch: Batch) -> Tensor:
        parts: list[Tensor] = []
        if self.classes:
            if batch.y is None:
                raise InputError(f"this program is conditioned on one of {self.classes} classes: the batch needs y")
            parts.append((batch.y.unsqueeze(-1) == self.index).to(self.index.dtype))
        if self.context:
            if batch.context is None or batch.context.shape[-1] != self.context:
                came = None if batch.context is None else tuple(batch.context.shape)
                raise InputError(f"this program is conditioned on a context (N, {self.context}); context={came}")
            parts.append(batch.context)
        return join(*parts) if parts else self.index.new_empty(batch.size, 0)


class BodyEncoder(Encoder):
    """Features of x, of what x is conditioned on, and of latents already drawn.

    Args:
        body: (\\*S, N, inputs) -> (\\*S, N, features); for images (\\*S, N, C, H, W) -> (\\*S, N, features).
        shape: D, the shape of x.
        features: width of what `body` returns.
        condition: what else the features depend on.
        latents: total width of the latents handed over, vectors (\\*S, N, Z) each.
        image: whether `body` takes images; what is no image is then joined to its features, and mixed by one layer.
        loc, scale: x enters as (x - loc) / scale.
        mask: whether `batch.visible` enters too, as another input a pixel (or channel). Pixels that are not visible
            enter as 0 in any case.
    """

    loc: Tensor
    scale: Tensor

    def __init__(
        self,
        body: nn.Module,
        shape: Sequence[int],
        features: int,
        condition: Condition | None = None,
        latents: int = 0,
        image: bool = False,
        loc: Tensor | float = 0.0,
        scale: Tensor | float = 1.0,
        mask: bool = False,
        activation: type[nn.Module] = nn.SiLU,
    ) -> None:
        super().__init__()
        self.encoder_body = body
        self.shape = tuple(shape)
        self.features = features
        self.condition = condition
        self.image = image
        self.mask = mask
        self.latent_width = latents
        self.standardized = not (isinstance(loc, float) and loc == 0.0 and isinstance(scale, float) and scale == 1.0)
        self.register_buffer("loc", torch.as_tensor(loc, dtype=torch.get_default_dtype()))
        self.register_buffer("scale", torch.as_tensor(scale, dtype=torch.get_default_dtype()))
        extra = latents + (condition.width if condition is not None else 0)
        self.mix = MLP(features + extra, (), features, activation, activate_last=True) if image and extra else None
        self.made_by: Callable[..., BodyEncoder] | None = None

    def forward(self, batch: Batch, **latents: Tensor) -> Tensor:
        if batch.x is None:
            raise InputError("the encoder needs batch.x")
        if (width := sum(value.shape[-1] if value.dim() else 0 for value in latents.values())) != self.latent_width:
            handed = " and ".join(map(repr, latents)) or "no other latents"
            raise InputError(
                f"the encoder is handed {handed}, {width} numbers beside x, and was made for {self.latent_width}: "
                f"encoder(..., latents={width}); a guide of each datum's latents is handed what "
                "Combined(..., given=...) names"
            )
        x = batch.x.to(self.loc.dtype)
        if self.standardized:
            x = (x - self.loc) / self.scale
        if batch.visible is not None:
            x = torch.where(batch.visible, x, x.new_zeros(()))
        others: list[Tensor] = []
        if self.mask:
            seen = torch.ones_like(x) if batch.visible is None else batch.visible.to(x.dtype)
            x = torch.cat([x, seen.reshape(x.shape)], dim=-len(self.shape))
        if self.condition is not None and self.condition.width:
            others.append(self.condition(batch))
        others += latents.values()
        if not self.image:
            x = x.flatten(-len(self.shape)) if len(self.shape) > 1 else x
            if isinstance(self.encoder_body, MLP):
                return self.encoder_body.of_parts(x, *others)
            features: Tensor = self.encoder_body(join(x, *others))
            return features
        features = self.encoder_body(x)
        return features if self.mix is None else self.mix(join(features, *others))

    def sibling(self, latents: int = 0) -> BodyEncoder:
        """Another encoder of the same sizes with weights of its own, for other latents.

        Args:
            latents: total width of the latents that it is handed.

        Raises:
            InputError: this one was not made by `networks.encoder`, and nothing is known of its sizes.
        """
        if self.made_by is None:
            raise InputError("this encoder was made of parts: another like it is to be made by hand")
        return self.made_by(latents=latents, loc=self.loc.clone(), scale=self.scale.clone())


class ClassEncoder(Encoder):
    """An encoder of a batch and a class: number y (\\*S, N) at a latent site, handed on one-hot, (\\*S, N, C).

    Args:
        encoder: takes C numbers more than x.
        site: the latent site of the class.
        classes: C.
    """

    eye: Tensor

    def __init__(self, encoder: Encoder, site: str, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.features = encoder.features
        self.site = site
        self.register_buffer("eye", torch.eye(classes), persistent=False)

    def forward(self, batch: Batch, **latents: Tensor) -> Tensor:
        if self.site not in latents:
            raise InputError(f"this encoder sees the class: give it {self.site}, (*S, N)")
        features: Tensor = self.encoder(batch, **{**latents, self.site: self.eye[latents[self.site]]})
        return features


def encoder(
    kind: Kind,
    shape: Sequence[int],
    hidden: Sequence[int] = (64,),
    condition: Condition | None = None,
    latents: int = 0,
    loc: Tensor | float = 0.0,
    scale: Tensor | float = 1.0,
    mask: bool = False,
    activation: type[nn.Module] = nn.SiLU,
) -> BodyEncoder:
    """An encoder sized from the data's shape.

    Args:
        kind: "mlp", "conv" (images alone), "residual", or "partial" (images alone; takes the mask in any case).
        shape: D.
        hidden: widths of the dense layers, the last of them the features'. For convolutions the last is the
            features' width, and those before it are the channels of the layers, as (32, 32, 64, 64, 256) for images of
            64 x 64 (Burgess et al., https://arxiv.org/abs/1804.03599, have 32 in all of them); where there are none the
            first layer has an eighth of the features, at least 8, and each further one twice as many.
        condition, latents, loc, scale, mask: see `BodyEncoder`.

    Raises:
        InputError: an unknown kind, convolutions for data that are no images, no hidden layer.
    """
    image = _check(kind, shape, hidden)
    inputs = math.prod(shape) * (2 if mask else 1) + latents + (condition.width if condition is not None else 0)
    body: nn.Module
    if kind == "partial":
        mask = True
        body = PartialConvEncoder(shape, _channels(hidden[::-1]), hidden[-1], None, activation)
    elif image:
        shape_in = (shape[0] * (2 if mask else 1), *shape[1:])
        channels = _channels(hidden[::-1])
        body = ConvEncoder(shape_in, channels, hidden[-1], None, activation, residual=kind == "residual")
    else:
        body = MLP(inputs, hidden[:-1], hidden[-1], activation, residual=kind == "residual", activate_last=True)
    made = BodyEncoder(body, shape, hidden[-1], condition, latents, image, loc, scale, mask, activation)
    made.made_by = partial(encoder, kind, tuple(shape), tuple(hidden), condition, mask=mask, activation=activation)
    return made


def decoder(
    kind: Kind,
    inputs: int,
    shape: Sequence[int],
    outputs: int,
    hidden: Sequence[int] = (64,),
    activation: type[nn.Module] = nn.SiLU,
) -> Decoder:
    """A decoder sized from the data's shape: latents (\\*S, N, inputs) -> (\\*S, N, outputs, \\*shape).

    Args:
        kind: as for `encoder`; "partial" is "conv".
        inputs: width of the latents and of what they are joined with.
        shape: D.
        outputs: parameters per element, `Likelihood.parameters_per_element`.
        hidden: widths of the dense layers, from the latents to x. For convolutions as for `encoder`, backwards.
    """
    image = _check(kind, shape, hidden)
    body: Body
    if image:
        dense = hidden[0] if len(hidden) > 1 else None
        body = ConvDecoder(inputs, shape, _channels(hidden), outputs, None, activation, kind == "residual", dense)
    else:
        body = MLP(inputs, hidden, outputs * math.prod(shape), activation, residual=kind == "residual")
    return Decoder(body, shape, outputs)


def _channels(hidden: Sequence[int]) -> int | Sequence[int]:
    """Of convolutions, from x on, where the widths are given from the features or latents on."""
    return max(8, hidden[0] // 8) if len(hidden) == 1 else hidden[:0:-1]


def _check(kind: str, shape: Sequence[int], hidden: Sequence[int]) -> bool:
    """Whether the body takes images."""
    if kind not in kinds:
        raise choose("network", kind, kinds)
    if kind in ("conv", "partial") and len(shape) != 3:
        raise InputError(f"network={kind!r} needs images (C, H, W); these data have shape {tuple(shape)}: use 'mlp'")
    if not hidden or any(width < 1 for width in hidden):
        raise InputError(f"hidden={tuple(hidden)} needs one layer or more, each of width 1 or more")
    return kind in ("conv", "partial") or (kind == "residual" and len(shape) == 3)


class Head(Conditional):
    """A Gaussian given features, carried to a latent site's support: what a guide makes for each site.

    An affine map of the features gives the `outputs` numbers that name one Gaussian of the family, `gaussian` makes it
    of them. Where the support is not the real line the Gaussian lives in the unconstrained space of torch's bijection
    to it.

    Args:
        features: F, their width; None: what comes in are the numbers themselves, and the head has no parameters.
        spec: the site.

    Attributes:
        outputs: numbers that name one q.

    Raises:
        InputError: no bijection leads to the site's support, as for a discrete one.
    """

    outputs: int

    def __init__(self, features: int | None, spec: LatentSpec) -> None:
        super().__init__()
        self.event_shape = spec.event_shape
        plain = plain_support(spec.support)
        try:
            self.transform = None if plain is constraints.real else biject_to(spec.support)
        except NotImplementedError as error:
            raise InputError(
                f"{type(self).__name__} is a Gaussian, and no bijection leads from it to the site's support {plain}"
            ) from error
        self.free_shape = (
            spec.event_shape if self.transform is None else torch.Size(self.transform.inverse_shape(spec.event_shape))
        )
        self.numel = self.free_shape.numel()
        self.outputs = self.count()
        self.linear = nn.Identity() if features is None else Linear(features, self.outputs)

    def count(self) -> int:
        """`outputs`, from `numel`, the free numbers of one value."""
        raise NotImplementedError

    def gaussian(self, numbers: Tensor) -> TorchDistributionMixin:
        """The Gaussian (\\*S, N) that numbers (\\*S, N, outputs) name, events `free_shape`, unconstrained."""
        raise NotImplementedError

    def inverse_fisher(self, numbers: Tensor) -> Tensor:
        """The inverse of the diagonal of q's Fisher information by its numbers (\\*S, N, outputs), or what stands for
        it: a gradient times this is a step in q's own standard deviations. 1 where a family says nothing."""
        return torch.ones_like(numbers)

    def forward(self, features: Tensor) -> TorchDistributionMixin:
        return self.to_support(self.gaussian(self.linear(features)))

    def to_support(self, free: TorchDistributionMixin) -> TorchDistributionMixin:
        """The distribution of events `free_shape`, pushed to the site's support."""
        if self.transform is None:
            return free
        pushed: TorchDistributionMixin = dist.TransformedDistribution(free, [self.transform])
        return pushed

    def vectors_only(self, what: str) -> None:
        """Raise `InputError` where the site's events are no vectors."""
        if len(self.free_shape) != 1:
            raise InputError(f"{what} is over vectors; this site has events {tuple(self.event_shape)}")


class DiagonalNormal(Head):
    r"""N(m(features), diag s²(features)), carried to the site's support: an amortized diagonal Gaussian.

    log s is softly bounded (`soft_bound`).
    """

    def count(self) -> int:
        return 2 * self.numel

    def gaussian(self, numbers: Tensor) -> TorchDistributionMixin:
        loc, raw = numbers.chunk(2, dim=-1)
        scale = soft_bound(raw).exp()
        if len(self.free_shape) != 1:
            loc = loc.reshape(*loc.shape[:-1], *self.free_shape)
            scale = scale.reshape(loc.shape)
        normal: TorchDistributionMixin = dist.Normal(loc, scale).to_event(len(self.free_shape))
        return normal

    def inverse_fisher(self, numbers: Tensor) -> Tensor:
        scale = soft_bound(numbers.chunk(2, dim=-1)[1]).exp()
        return torch.cat([scale.square(), torch.full_like(scale, 0.5)], dim=-1)


class FullRankNormal(Head):
    r"""N(m, L Lᵀ) with m and the Cholesky factor L functions of the features: an amortized full-rank Gaussian.

    The diagonal of L is exp of softly bounded numbers, so log det L is their sum; below it L is free.
    """

    position: Tensor

    def __init__(self, features: int | None, spec: LatentSpec) -> None:
        super().__init__(features, spec)
        self.vectors_only("a full-rank Gaussian")
        rows, columns = torch.tril_indices(self.numel, self.numel, offset=-1)
        self.register_buffer("position", rows * self.numel + columns, persistent=False)

    def count(self) -> int:
        return 2 * self.numel + self.numel * (self.numel - 1) // 2

    def gaussian(self, numbers: Tensor) -> TorchDistributionMixin:
        loc, raw, below = numbers.split([self.numel, self.numel, self.position.numel()], dim=-1)
        flat = below.new_zeros(*below.shape[:-1], self.numel * self.numel).index_copy(-1, self.position, below)
        tril = flat.unflatten(-1, (self.numel, self.numel)) + soft_bound(raw).exp().diag_embed()
        normal: TorchDistributionMixin = dist.MultivariateNormal(loc, scale_tril=tril)
        return normal

    def inverse_fisher(self, numbers: Tensor) -> Tensor:
        scale = soft_bound(numbers[..., self.numel : 2 * self.numel]).exp()
        rows = self.position // self.numel
        return torch.cat([scale.square(), torch.full_like(scale, 0.5), scale.square()[..., rows]], dim=-1)


class LowRankNormal(Head):
    r"""N(m, S (I + U Uᵀ) S) with m, S = diag s and U (D, r) functions of the features: diagonal plus rank r.

    In the terms of torch's `LowRankMultivariateNormal`, D = S² and F = S U. The factor is in units of s, so that what
    is inverted, I + Uᵀ U, does not know how wide the Gaussian is. log s is softly bounded, U is free.

    Args:
        rank: r; more than the D numbers of a value add nothing.

    Raises:
        InputError: as for any head; events that are no vectors, a rank that is none.
    """

    def __init__(self, features: int | None, spec: LatentSpec, rank: int = 2) -> None:
        self.rank = check_count("rank", rank)
        super().__init__(features, spec)
        self.vectors_only("a low-rank Gaussian")

    def count(self) -> int:
        return (2 + self.rank) * self.numel

    def gaussian(self, numbers: Tensor) -> TorchDistributionMixin:
        loc, raw, factor = numbers.split([self.numel, self.numel, self.rank * self.numel], dim=-1)
        scale = soft_bound(raw).exp()
        columns = scale.unsqueeze(-1) * factor.unflatten(-1, (self.numel, self.rank))
        normal: TorchDistributionMixin = dist.LowRankMultivariateNormal(loc, columns, scale.square())
        return normal

    def inverse_fisher(self, numbers: Tensor) -> Tensor:
        _, raw, factor = numbers.split([self.numel, self.numel, self.rank * self.numel], dim=-1)
        scale = soft_bound(raw).exp()
        return torch.cat([scale.square(), torch.full_like(scale, 0.5), torch.ones_like(factor)], dim=-1)


class DiagonalNormals(DiagonalNormal):
    """M diagonal Gaussians, the components of a mixture: batch shape (\\*S, N, M).

    Args:
        components: M.
    """

    def __init__(self, features: int | None, spec: LatentSpec, components: int) -> None:
        self.components = components
        super().__init__(features, spec)

    def count(self) -> int:
        return self.components * super().count()

    def gaussian(self, numbers: Tensor) -> TorchDistributionMixin:
        return super().gaussian(numbers.unflatten(-1, (self.components, -1)))

    def inverse_fisher(self, numbers: Tensor) -> Tensor:
        return super().inverse_fisher(numbers.unflatten(-1, (self.components, -1))).flatten(-2)


families: dict[str, type[Head]] = {"mean-field": DiagonalNormal, "full-rank": FullRankNormal}
"""Heads by the name of the guide that is made of them."""
