"""Pictures of one shape each, made from known factors: rendered when they are asked for, stored nowhere."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import get_args

import torch
from torch import Tensor

from ..errors import InputError, check_count, choose
from .dataset import Binarize, DataSet, Units

__all__ = ["SPRITE_FACTORS", "Sprites", "sprites"]

SPRITE_FACTORS = ("shape", "scale", "orientation", "x", "y")
"""The factors, in the order of the rows: the last changes from one row to the next."""

_SHAPES = ("square", "ellipse", "heart")
_SIDE = 64
_RADIUS = 14.0  # of the largest sprite, pixels
_FULL = (3, 6, 40, 32, 32)


@dataclass(frozen=True, eq=False, repr=False)
class Sprites(DataSet):
    """A `DataSet` whose x are the factors' levels, (N, 5) uint8; `batch` renders 64 x 64 binary pictures of them where
    they lie.

    Args:
        templates: (T, 95, 95) uint8, a picture of each shape, scale and orientation with the sprite in its middle, of
            which a window is cut out.
        sizes: the number of levels of each factor.
    """

    templates: Tensor = field(default_factory=lambda: torch.zeros(1, 95, 95, dtype=torch.uint8))
    sizes: tuple[int, ...] = _FULL

    @property
    def shape(self) -> tuple[int, ...]:
        return (1, _SIDE, _SIDE)

    def to(self, device: torch.device | str) -> Sprites:
        moved = super().to(device)
        assert isinstance(moved, Sprites)
        return dataclasses.replace(moved, templates=self.templates.to(device))

    def with_options(
        self,
        *,
        binarize: Binarize | None = None,
        units: Units | None = None,
        masks: str | None = None,
        seed: int = 777,
    ) -> DataSet:
        """Binarization changes nothing, for the pictures are binary."""
        if binarize is not None and binarize not in get_args(Binarize):
            raise choose("binarize", binarize, get_args(Binarize))
        return super().with_options(units=units, masks=masks, seed=seed)

    def _convert(self, x: Tensor) -> Tensor:
        return _cut(self.templates, x.long(), self.sizes).to(torch.float32)

    def _check_values(self) -> None:
        if self.binarize != "none":
            raise InputError(f"binarize={self.binarize!r} does not fit sprites, which are binary; use 'none'")
        top = self.x.amax(0).tolist()
        for name, level, size in zip(SPRITE_FACTORS, top, self.sizes, strict=True):
            if level >= size:
                raise InputError(f"factor {name!r} is {level}; with {size} levels it runs from 0 to {size - 1}")


def sprites(
    scales: int = 6,
    orientations: int = 40,
    positions: int = 32,
) -> Sprites:
    r"""64 x 64 binary pictures of a square, an ellipse or a heart, on the grid of dSprites.

    3 shapes x 6 scales (0.5 to 1) x 40 orientations (0 to 2π, both ends among them) x 32 x 32 positions: 737,280
    pictures. Nothing is stored or downloaded: a picture is drawn when a batch asks for it, on the device where the
    data lie, from one template for each of the 720 shapes, scales and orientations. A pixel is 1 where its centre lies
    within the shape; one step of a position is one pixel. The pictures are not dSprites' own, whose shapes were drawn
    by another program: `load` reads those from the original .npz.

    Fewer levels make a smaller grid, spread evenly over the same range:

    Args:
        scales: levels of the scale, 1 to 6.
        orientations: 1 to 40; fewer than 40 leave out the second end of the circle.
        positions: of each axis, 1 to 32.

    Returns:
        `Sprites`, a `DataSet` with `factors` (N, 5), `factor_names`, and the shape as its class y.

    Raises:
        InputError: numbers of levels out of range.

    Example:
        >>> data = sprites(scales=2, orientations=4, positions=8)
        >>> data
        DataSet(sprites all, binary: 1536 x (1, 64, 64), 3 classes)
        >>> data.batch([0]).x.shape, data.factors[-1].tolist()
        (torch.Size([1, 1, 64, 64]), [2, 1, 3, 7, 7])

    Reference: Matthey et al., dSprites, 2017 (https://github.com/google-deepmind/dsprites-dataset), for the grid.
    """
    for name, value, most in (("scales", scales, 6), ("orientations", orientations, 40), ("positions", positions, 32)):
        if check_count(name, value) > most:
            raise InputError(f"{name}={value} is more than the grid's {most} levels; give 1 to {most}")
    sizes = (3, scales, orientations, positions, positions)
    levels = torch.cartesian_prod(*(torch.arange(size, dtype=torch.uint8) for size in sizes))
    return Sprites(
        name="sprites",
        x=levels,
        y=levels[:, 0].long(),
        levels=2,
        class_names=_SHAPES,
        factors=levels,
        factor_names=SPRITE_FACTORS,
        templates=_templates(scales, orientations),
        sizes=sizes,
    )


def _spread(count: int, low: float, high: float) -> Tensor:
    """`count` values from low to high; one alone lies at the upper end."""
    if count == 1:
        return torch.tensor([high], dtype=torch.float64)
    return torch.linspace(low, high, count, dtype=torch.float64)


def _templates(scales: int, orientations: int) -> Tensor:
    """(3 · scales · orientations, 95, 95) uint8, sprites in the middle of what any window can show."""
    size = _SIDE + 31
    centre = torch.arange(size, dtype=torch.float64) - size // 2
    down, right = torch.meshgrid(centre, centre, indexing="ij")
    turns = (
        _spread(40, 0.0, 2.0 * math.pi)
        if orientations == 40
        else torch.arange(orientations) * (2.0 * math.pi / orientations)
    )
    pictures = []
    for shape in _SHAPES:
        for scale in _spread(scales, 0.5, 1.0).tolist():
            for turn in turns.tolist():
                cos, sin = math.cos(turn), math.sin(turn)
                # upright axes of the sprite, in radii of its circle
                u = (cos * right + sin * down) / (_RADIUS * scale)
                v = (cos * down - sin * right) / (_RADIUS * scale)
                pictures.append(_inside(shape, u, v).to(torch.uint8))
    return torch.stack(pictures)


def _inside(shape: str, u: Tensor, v: Tensor) -> Tensor:
    """Whether points of the unit disc, v downwards, lie within a shape that touches its rim."""
    # a millionth more: of a point on the rim rounding would decide
    if shape == "square":
        return torch.maximum(u.abs(), v.abs()) <= math.sqrt(0.5) + 1e-6
    if shape == "ellipse":
        return u.square() + (2.0 * v).square() <= 1.0 + 1e-6
    # (a² + b² - 1)³ = a² b³ lies within a radius of 1.35
    a, b = 1.35 * u, -1.35 * v
    return (a.square() + b.square() - 1.0) ** 3 <= a.square() * b**3


def _cut(templates: Tensor, levels: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """(B, 1, 64, 64) windows of templates: the sprite's centre lies 16 to 47 pixels from the upper left corner."""
    _, scales, orientations, across, down = sizes
    kind = (levels[:, 0] * scales + levels[:, 1]) * orientations + levels[:, 2]
    windows = templates.unfold(1, _SIDE, 1).unfold(2, _SIDE, 1)
    x, y = _pixels(levels[:, 3], across), _pixels(levels[:, 4], down)
    return windows[kind, 31 - y, 31 - x].unsqueeze(1)


def _pixels(level: Tensor, count: int) -> Tensor:
    """Steps of one pixel from the first of 32 positions: `count` levels spread over them, one alone at the end."""
    if count == 1:
        return torch.full_like(level, 31)
    return (62 * level + count - 1) // (2 * (count - 1))
