"""Networks between images and grids of vectors, one grid or several that lie above each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .batch import Batch
from .errors import InputError, check_count
from .networks import Body, channels_last, conv_block, flatten_left

__all__ = ["GridDecoder", "GridEncoder", "grids"]


def grids(shape: Sequence[int], downsample: int, levels: int = 1) -> tuple[tuple[int, int], ...]:
    """Heights and widths of the grids into which images of a shape (C, H, W) divide, the coarsest first.

    Args:
        downsample: pixels a side of each vector of the finest grid; each grid above has twice as many.

    Raises:
        InputError: data that are no images; a `downsample` that is no power of 2 from 2 on, or does not divide them.
    """
    if len(shape) != 3:
        raise InputError(f"grids of codes are of images (C, H, W); these data have shape {tuple(shape)}")
    _, height, width = shape
    check_count("downsample", downsample)
    coarsest = downsample * 2 ** (levels - 1)
    if downsample < 2 or downsample & (downsample - 1) or height % coarsest or width % coarsest:
        fit = [
            f for f in (2, 4, 8, 16, 32) if not (height % (f * 2 ** (levels - 1)) or width % (f * 2 ** (levels - 1)))
        ]
        above = f" and a grid above it, of {coarsest} x {coarsest} pixels," if levels > 1 else ""
        sizes = sorted(
            {max(coarsest, 2) * (side // max(coarsest, 2) + up) for side in (height, width) for up in (0, 1)}
        )
        wanted = f"give downsample={' or '.join(map(str, fit))}" if fit else "no power of 2 does"
        raise InputError(
            f"downsample={downsample}: images of {height} x {width} do not divide into a grid of {downsample} x "
            f"{downsample} pixels a code{above}; {wanted}, or images with sides of "
            f"{', '.join(str(size) for size in sizes if size)} or another multiple of {max(coarsest, 2)}"
        )
    return tuple(
        (height // (downsample * 2**level), width // (downsample * 2**level)) for level in reversed(range(levels))
    )


class _Grid(Body):
    """Convolutions, (\\*S, N, C, h, w) -> (\\*S, N, C', h', w')."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.net = nn.Sequential(*layers)
        channels_last(self.net)

    def body(self, x: Tensor) -> Tensor:
        return flatten_left(self.net, x, 3)


def _down(inputs: int, channels: int, blocks: int, halvings: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for k in reversed(range(halvings)):
        # the layer with most pixels has half of the channels, where it is not the only one
        outputs = max(1, channels // 2) if k and k == halvings - 1 else channels
        layers += [nn.Conv2d(inputs, outputs, 4, stride=2, padding=1), nn.SiLU()]
        inputs = outputs
    layers += [nn.Conv2d(inputs, channels, 3, padding=1), *(conv_block(channels, nn.SiLU) for _ in range(blocks))]
    return [*layers, nn.SiLU()]


def _up(inputs: int, channels: int, blocks: int, doublings: int, outputs: int) -> list[nn.Module]:
    layers: list[nn.Module] = [nn.Conv2d(inputs, channels, 3, padding=1)]
    layers += [*(conv_block(channels, nn.SiLU) for _ in range(blocks)), nn.SiLU()]
    for k in reversed(range(doublings)):
        last = k == 0
        after = outputs if last else max(1, channels // 2) if k == 1 else channels
        layers.append(nn.ConvTranspose2d(channels, after, 4, stride=2, padding=1))
        layers += [] if last else [nn.SiLU()]
        channels = after
    return layers


class GridEncoder(nn.Module):
    """Vectors of an image on one grid or on several, the coarsest first.

    Of several, the vectors of a finer grid are made of the image and of the quantized vectors of the one above.

    Args:
        shape: (C, H, W).
        downsample: pixels a side of a vector of the finest grid, a power of 2.
        size: D, of a vector.
        channels: of the layers.
        blocks: residual blocks of each grid.
        levels: number of grids.
        loc, scale: x enters as (x - loc) / scale.
        mask: whether `batch.visible` enters too. Pixels that are not visible enter as 0 in any case.

    Raises:
        InputError: as `grids`; numbers that are none.
    """

    loc: Tensor
    scale: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        downsample: int,
        size: int,
        channels: int = 64,
        blocks: int = 2,
        levels: int = 1,
        loc: Tensor | float = 0.0,
        scale: Tensor | float = 1.0,
        mask: bool = False,
    ) -> None:
        super().__init__()
        self.grids = grids(shape, downsample, levels)
        check_count("channels", channels)
        check_count("blocks", blocks, least=0)
        self.shape, self.size, self.mask = tuple(shape), size, mask
        self.register_buffer("loc", torch.as_tensor(loc, dtype=torch.get_default_dtype()))
        self.register_buffer("scale", torch.as_tensor(scale, dtype=torch.get_default_dtype()))
        inputs = shape[0] * (2 if mask else 1)
        finest = _Grid(*_down(inputs, channels, blocks, downsample.bit_length() - 1))
        coarser = [_Grid(*_down(channels, channels, blocks, 1)) for _ in range(levels - 1)]
        self.down = nn.ModuleList([finest, *coarser])
        self.above = nn.ModuleList(_Grid(*_up(size, channels, blocks, 1, channels)) for _ in range(levels - 1))
        self.heads = nn.ModuleList(_Grid(nn.Conv2d(channels * (2 if k else 1), size, 1)) for k in range(levels))

    def forward(self, batch: Batch) -> list[Tensor]:
        """Features of each grid, (N, channels, h, w), the coarsest first."""
        if batch.x is None:
            raise InputError("the encoder needs batch.x")
        x = (batch.x.to(self.loc.dtype) - self.loc) / self.scale
        if batch.visible is not None:
            x = torch.where(batch.visible, x, x.new_zeros(()))
        if self.mask:
            seen = torch.ones_like(x) if batch.visible is None else batch.visible.to(x.dtype).expand_as(x)
            x = torch.cat([x, seen], dim=-3)
        found: list[Tensor] = []
        for down in self.down:
            x = down(x)
            found.append(x)
        return found[::-1]

    def vectors(self, level: int, features: Tensor, above: Tensor | None = None) -> Tensor:
        """The vectors (N, h, w, D) of a grid, not quantized yet.

        Args:
            level: which, from the coarsest on.
            features: of this grid.
            above: (N, h/2, w/2, D) the quantized vectors of the grid above.
        """
        if level:
            assert above is not None
            features = torch.cat([features, self.above[level - 1](above.movedim(-1, -3))], dim=-3)
        z: Tensor = self.heads[level](features)
        return z.movedim(-3, -1)


class GridDecoder(nn.Module):
    """Quantized vectors on one grid or several, to a likelihood's parameters: (\\*S, N, h, w, D) each, the coarsest
    first, -> (\\*S, N, P, C, H, W).

    Vectors of a coarser grid are brought to the finest one's by transposed convolutions, and joined to its own.

    Args:
        outputs: P, `Likelihood.parameters_per_element`.
        shape, downsample, size, channels, blocks, levels: as of `GridEncoder`.
    """

    def __init__(
        self,
        shape: Sequence[int],
        outputs: int,
        downsample: int,
        size: int,
        channels: int = 64,
        blocks: int = 2,
        levels: int = 1,
    ) -> None:
        super().__init__()
        self.grids = grids(shape, downsample, levels)
        check_count("channels", channels)
        check_count("blocks", blocks, least=0)
        self.shape, self.outputs, self.size = tuple(shape), outputs, size
        self.up = nn.ModuleList(
            _Grid(nn.ConvTranspose2d(size * (k + 1), size * (k + 1), 4, stride=2, padding=1)) for k in range(levels - 1)
        )
        doublings = downsample.bit_length() - 1
        self.out = _Grid(*_up(size * levels, channels, blocks, doublings, outputs * shape[0]))

    def forward(self, *vectors: Tensor) -> Tensor:
        joined = vectors[0].movedim(-1, -3)
        for up, finer in zip(self.up, vectors[1:], strict=True):
            coarse, fine = up(joined), finer.movedim(-1, -3)
            left = torch.broadcast_shapes(coarse.shape[:-3], fine.shape[:-3])
            joined = torch.cat([t.expand(*left, *t.shape[-3:]) for t in (coarse, fine)], dim=-3)
        out: Tensor = self.out(joined)
        return out.reshape(*out.shape[:-3], self.outputs, *self.shape)
