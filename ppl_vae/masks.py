"""Masks: what they promise, and random ones that hide a part of each datum."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from .batch import Batch
from .errors import InputError, check_count, choose
from .options import check_options, label, parse
from .registry import Registry

__all__ = [
    "Halves",
    "Pixels",
    "RandomMask",
    "Rectangles",
    "Strokes",
    "check_mask",
    "check_masks",
    "known",
    "masks",
    "random_mask",
    "refuse_hidden_values",
]

Uniform: TypeAlias = Callable[..., Tensor]
"""Uniform numbers in [0, 1) of a shape."""


def check_masks(batch: Batch, argument: str) -> None:
    """Raise `InputError` unless a batch's masks are what `Batch` says: bool, of the shape of x, in no row all False,
    and x 0 where it is not observed."""
    if batch.x is not None:
        for name, mask in (("visible", batch.visible), ("observed", batch.observed)):
            if mask is not None:
                check_mask(mask, batch.x.shape, f"{argument}.{name}")
    refuse_hidden_values(batch, argument)


def check_mask(mask: Tensor, shape: Sequence[int], argument: str) -> None:
    """Raise `InputError` unless a mask is bool, has the shape (N, \\*D), and has a True in every row."""
    if mask.dtype != torch.bool:
        raise InputError(f"{argument} has dtype {mask.dtype}; a mask is torch.bool, True where it is so")
    if tuple(mask.shape) != tuple(shape):
        raise InputError(
            f"{argument} has shape {tuple(mask.shape)} where x has {tuple(shape)}; give a value for each of x, all "
            "channels of a pixel too (mask.expand)"
        )
    empty = ~mask.flatten(1).any(1)
    if bool(empty.any()):
        raise InputError(
            f"{argument} is False throughout in row {int(empty.nonzero()[0])}: of that datum nothing is left; leave "
            "the datum out (what is generated from nothing is a sample of the model)"
        )


def refuse_hidden_values(batch: Batch, argument: str) -> None:
    """Raise `InputError` if x is not 0 where it is not observed: an encoder would see what is not there, and what is
    then imputed would have been known."""
    if batch.x is None or batch.observed is None:
        return
    hidden = (batch.x != 0) & ~batch.observed
    if bool(hidden.any()):
        place = [int(i) for i in hidden.nonzero()[0]]
        raise InputError(
            f"{argument}.x{place} is {batch.x[tuple(place)].item():g} where observed is False; put 0 there "
            "(x * observed), and give the rest of x to those who judge an imputation"
        )


def known(batch: Batch) -> Batch:
    """The batch as one that has no more than what is visible of it: x is 0 elsewhere, and neither scored nor seen.

    Without masks it is returned as it is.
    """
    if batch.x is None or (batch.visible is None and batch.observed is None):
        return batch
    masks = [mask for mask in (batch.visible, batch.observed) if mask is not None]
    left = masks[0] if len(masks) == 1 else masks[0] & masks[1]
    return batch._replace(x=torch.where(left, batch.x, batch.x.new_zeros(())), visible=left, observed=left)


@dataclass(frozen=True)
class RandomMask(ABC):
    r"""A distribution of masks: `draw` gives N of them, True where a value stays visible.

    What is hidden is pixels, with all their channels, or numbers of a table. A mask never hides all of a datum: where
    a draw would, one place, drawn uniformly, stays visible. All is computed by tensor operations of fixed shapes, so
    that a compiled step draws masks anew each time.
    """

    def draw(
        self,
        size: int,
        shape: Sequence[int],
        *,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """N masks.

        Args:
            size: N.
            shape: D, (C, H, W) of images or (D,) of a table.
            device: where they are drawn.
            generator: of random numbers, on that device; None: its default one.

        Returns:
            (N, \\*D) bool, True where a value is visible.

        Raises:
            InputError: a mask of images for data that are none.
        """

        def uniform(*sizes: int) -> Tensor:
            return torch.rand(sizes, device=device, generator=generator)

        grid = self._grid(shape)
        seen = ~self.hidden(uniform, size, grid).flatten(1)  # (N, places)
        places = seen.shape[1]
        left = (uniform(size, 1) * places).long().clamp_max(places - 1)
        seen = seen | ((torch.arange(places, device=device) == left) & ~seen.any(1, keepdim=True))
        if len(shape) == 3:
            return seen.view(size, 1, *grid).expand(size, *shape)
        return seen.view(size, *grid)

    def check(self, shape: Sequence[int]) -> None:
        """Raise `InputError` if data of the shape D cannot be masked so."""
        self._grid(shape)

    @abstractmethod
    def hidden(self, uniform: Uniform, size: int, grid: tuple[int, ...]) -> Tensor:
        """What N masks hide, (N, \\*grid) bool; grid is (H, W) or (D,)."""

    @property
    def text(self) -> str:
        """Name and options, as `random_mask` reads them."""
        name = next((name for name in masks if masks.get(name) is type(self)), type(self).__name__)
        return label(name, asdict(self))

    def _grid(self, shape: Sequence[int]) -> tuple[int, ...]:
        if len(shape) != 3:
            raise InputError(
                f"masks={self.text!r} hide parts of images (C, H, W), and these data have shape {tuple(shape)}: use "
                "'pixels', which hides any number by itself"
            )
        return tuple(shape[1:])


masks: Registry[type[RandomMask]] = Registry("masks")


def random_mask(text: str, argument: str = "masks") -> RandomMask:
    """A distribution of masks from its name and options.

    Raises:
        InputError: an unknown name, an option that it does not take, a value that it refuses.

    Example:
        >>> random_mask("rectangles:share=0.25")
        Rectangles(share=0.25)
    """
    name, options = parse(argument, text)
    if name not in masks:
        raise choose(argument, name, masks)
    part: Any = masks.get(name)
    made: RandomMask = part(**check_options(argument, name, part, options))
    return made


@masks.register("pixels")
@dataclass(frozen=True)
class Pixels(RandomMask):
    """Pixels, or numbers of a table, hidden each by itself: missing completely at random.

    Args:
        share: probability of each to be hidden. Of P places s - s^P / P are hidden on average, since one is left
            where all would be.
    """

    share: float = 0.5

    def __post_init__(self) -> None:
        _check_share(self.share)

    def hidden(self, uniform: Uniform, size: int, grid: tuple[int, ...]) -> Tensor:
        return uniform(size, *grid) < self.share

    def _grid(self, shape: Sequence[int]) -> tuple[int, ...]:
        return tuple(shape[1:]) if len(shape) == 3 else tuple(shape)


@masks.register("rectangles")
@dataclass(frozen=True)
class Rectangles(RandomMask):
    r"""A rectangle of random size and place is hidden.

    Height and width are independent with means √s H and √s W, uniform as far around them as leaves 1 to H - 1 rows and
    1 to W - 1 columns, and rounded up or down at random: the mean hidden share is s exactly. The place is uniform
    among those where the rectangle lies inside.

    Args:
        share: s, the mean share of the pixels that are hidden.
    """

    share: float = 0.25

    def __post_init__(self) -> None:
        _check_share(self.share)

    def hidden(self, uniform: Uniform, size: int, grid: tuple[int, ...]) -> Tensor:
        within = []
        for length in grid:
            mean = math.sqrt(self.share) * length
            reach = max(0.0, min(mean - 1.0, length - 1.0 - mean))
            extent = (mean + reach * (2 * uniform(size, 1) - 1) + uniform(size, 1)).floor()
            # rounding of the sums must not make a row more, or one less, than may be
            extent = extent.clamp(math.floor(mean - reach + 1e-6), math.ceil(mean + reach - 1e-6))
            start = (uniform(size, 1) * (length - extent + 1)).floor().minimum(length - extent)
            place = torch.arange(length, device=start.device)
            within.append((place >= start) & (place < start + extent))  # (N, length)
        return within[0].unsqueeze(2) & within[1].unsqueeze(1)


@masks.register("halves")
@dataclass(frozen=True)
class Halves(RandomMask):
    """One half of the picture is hidden.

    The middle row or column of an odd number is hidden or not with equal chance.

    Args:
        side: which half; "any" draws one of the four for each picture.
    """

    side: Literal["any", "left", "right", "top", "bottom"] = "any"

    def hidden(self, uniform: Uniform, size: int, grid: tuple[int, ...]) -> Tensor:
        sides = []
        for axis, length in ((2, grid[1]), (1, grid[0])):
            half = (length / 2 + uniform(size, 1)).floor()
            place = torch.arange(length, device=half.device)
            sides += [(place < half).unsqueeze(3 - axis), (place >= length - half).unsqueeze(3 - axis)]
        each = torch.stack([side.expand(size, *grid) for side in sides])  # (4, N, H, W), left, right, top, bottom
        if self.side == "any":
            drawn = (uniform(size, 1, 1) * 4).floor()
        else:
            named = ("left", "right", "top", "bottom").index(self.side)
            drawn = torch.full((size, 1, 1), float(named), device=each.device)
        kinds = torch.arange(4, device=drawn.device).view(4, 1, 1, 1)
        return ((drawn == kinds) & each).any(0)


@masks.register("strokes")
@dataclass(frozen=True)
class Strokes(RandomMask):
    r"""Irregular strokes of a round brush are hidden.

    A brush starts at a random place and walks in a direction that turns at random, back from the border where it meets
    it. Places are hidden in the order in which it reaches them, until their share is s, up to the rounding of one
    pixel, which is random with mean 0; where the walk ends before, the stroke grows thicker. A single stroke is
    connected: from each of its pixels the eight neighbours lead to any other.

    Args:
        share: s, the share of the pixels that are hidden.
        count: number of strokes, which grow at the same time.
        width: of the brush, in units of the longer side; three pixels at least.
    """

    share: float = 0.25
    count: int = 1
    width: float = 0.15

    _TURN = 0.7
    """Largest turn at a step, radians."""

    _LENGTH = 1.5
    """Of all walks together, in units of the longer side."""

    def __post_init__(self) -> None:
        _check_share(self.share)
        check_count("count", self.count)
        if not 0.0 < self.width < 1.0:
            raise InputError(f"width={self.width!r} must be a part of the picture's side, above 0 and below 1")

    def hidden(self, uniform: Uniform, size: int, grid: tuple[int, ...]) -> Tensor:
        height, breadth = grid
        radius = max(1.5, self.width * max(grid) / 2)
        # a step so short that the pixel nearest to the brush has been reached before: each stroke is connected
        step = radius - 0.75
        steps = max(1, math.ceil(self._LENGTH * max(grid) / step / self.count))
        turns = self._TURN * (2 * uniform(size, self.count, steps) - 1)
        angle = 2 * math.pi * uniform(size, self.count, 1) + turns.cumsum(-1)
        squares = []
        for length, part in ((height, angle.sin()), (breadth, angle.cos())):
            start = length * uniform(size, self.count, 1)
            walk = torch.cat([start, start + step * part.cumsum(-1)], -1)
            walk = length - (walk.remainder(2 * length) - length).abs()  # reflected at the borders
            place = torch.arange(length, device=walk.device) + 0.5
            squares.append((place - walk.unsqueeze(-1)).square())  # (N, strokes, steps + 1, length)
        # first by the step that reaches a pixel, then by the distance: every pixel has a neighbour before it
        later, never = radius**2 + 1.0, (steps + 1) * (radius**2 + 1.0)
        order = torch.full((), math.inf, device=squares[0].device)
        for k in range(steps + 1):  # all steps at once would be a large tensor, and several times slower
            square = squares[0][:, :, k].unsqueeze(-1) + squares[1][:, :, k].unsqueeze(-2)  # (N, strokes, H, W)
            order = torch.minimum(order, square + torch.where(square <= radius**2, k * later, never))
        order = order.amin(1).flatten(1).argsort(1)
        pixels = height * breadth
        wanted = (self.share * pixels + uniform(size, 1)).floor().clamp_max(pixels - 1)
        among = torch.arange(pixels, device=order.device) < wanted  # (N, H W)
        return torch.zeros_like(among).scatter(1, order, among).view(size, *grid)


def _check_share(share: float) -> None:
    if not 0.0 < share < 1.0:
        raise InputError(f"share={share!r} of a datum hidden; give a number above 0 and below 1, as 0.5")
