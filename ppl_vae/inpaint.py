"""A person's picture and mask, in the units of a trained run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .build import DataSpec
from .data.arrays import as_data
from .data.images import SUFFIXES, read_image
from .data.tables import read_arrays
from .errors import InputError
from .masks import RandomMask, check_mask, random_mask

__all__ = ["open_mask", "read_mask", "read_picture"]


def read_picture(path: Path, spec: DataSpec) -> Tensor:
    """x of a file, as a batch of the run's data holds it.

    Args:
        path: a picture, or an .npz file with an array x of one datum or more. uint8 values are levels 0 to 255; floats
            are within 0 and 1, or, where the run's data are in units of their own, in those.
        spec: what the run's data are. Grey values become 1 above one half where these are binary, and the nearest
            level where they have levels.

    Returns:
        (N, \\*D) float32.

    Raises:
        InputError: no such file, another size or number of channels, values out of range.
    """
    if path.suffix.lower() == ".npz":
        arrays = read_arrays(path)
        if "x" not in arrays:
            raise InputError(f"{str(path)!r} has no array 'x'; it holds {sorted(arrays)}")
        given = arrays["x"]
        if given.shape in (spec.shape, spec.shape[1:] if spec.shape[0] == 1 else None):
            given = given[None]  # one datum
        x, levels = as_data(given, where=f"x of {path.name!r}")
    elif path.suffix.lower() in SUFFIXES:
        pixels, _ = read_image(path)
        x, levels = torch.from_numpy(np.array(pixels))[None], 256
    else:
        raise InputError(f"image={str(path)!r} is neither a picture ({', '.join(SUFFIXES)}) nor an .npz file")
    if spec.shape[0] == 1 and x.dim() == 4 and x.shape[1] == 3 and bool((x == x[:, :1]).all()):
        x = x[:, :1]  # grey, saved in colour
    if tuple(x.shape[1:]) != spec.shape:
        raise InputError(
            f"{str(path)!r} is {_size(x.shape[1:])}, and the run's data are {_size(spec.shape)}; bring it to that size"
        )
    if spec.units == "real":
        if levels is not None:
            raise InputError(
                f"{str(path)!r} has levels from 0 to {levels - 1}, and the run's data are in units of their own: give "
                "an .npz file of floats"
            )
        return x
    unit = x.to(torch.float32) / (1 if levels is None else levels - 1)
    if not bool(((unit >= 0) & (unit <= 1)).all()):
        raise InputError(f"x of {str(path)!r} runs from {unit.min():g} to {unit.max():g}; scale it to [0, 1]")
    if spec.units == "binary":
        return (unit > 0.5).to(torch.float32)
    if spec.levels is None:
        return unit
    level = (unit * (spec.levels - 1)).round()
    return level if spec.units == "levels" else level / (spec.levels - 1)


def read_mask(mask: str, size: int, spec: DataSpec, seed: int = 0) -> Tensor:
    """What is visible of N data.

    Args:
        mask: a picture, white where x is visible and black where it is hidden; an .npz file with a bool array
            `visible`; or the name of random masks with options, "rectangles:share=0.5".
        size: N.
        spec: what the run's data are.
        seed: of random masks.

    Returns:
        (N, \\*D) bool.

    Raises:
        InputError: neither a file nor a name; another size; values besides black and white; a mask that hides all, or
            nothing.
    """
    drawn = open_mask(mask, spec)
    if isinstance(drawn, Tensor):
        visible = drawn if drawn.dim() > len(spec.shape) else drawn.expand(size, *spec.shape)
    else:
        visible = drawn.draw(size, spec.shape, generator=torch.Generator().manual_seed(seed))
    check_mask(visible, (size, *spec.shape), f"mask={mask!r}")
    if bool(visible.all()):
        raise InputError(f"mask={mask!r} hides nothing; black pixels (False) are filled in")
    return visible


def open_mask(mask: str, spec: DataSpec) -> Tensor | RandomMask:
    """A mask of one datum \\*D or of several (N, \\*D), or how it is drawn: what `read_mask` says of it before it
    is known for how many data it is."""
    path = Path(mask).expanduser()
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        if len(spec.shape) != 3:
            raise InputError(
                f"mask={mask!r} is a picture, and the run's data have shape {spec.shape}; give an .npz file"
            )
        pixels, _ = read_image(path)
        between = (pixels != 0) & (pixels != 255)
        if between.any():
            channel, row, column = (int(i) for i in np.argwhere(between)[0])
            raise InputError(
                f"mask={mask!r} has the value {int(pixels[channel, row, column])} at pixel ({row}, {column}); a mask "
                "is 0 (black, hidden) and 255 (white, visible) alone"
            )
        if (pixels != pixels[:1]).any():
            raise InputError(f"mask={mask!r} has colours; a mask is black (hidden) and white (visible) alone")
        if pixels.shape[1:] != spec.shape[1:]:
            raise InputError(
                f"mask={mask!r} is {_size(pixels.shape)}, and the run's data are {_size(spec.shape)}; bring it to that "
                "size"
            )
        visible = torch.from_numpy(pixels[:1] == 255).expand(spec.shape)
        _check_one(visible, mask, spec)
        return visible
    if suffix == ".npz":
        arrays = read_arrays(path)
        if "visible" not in arrays or arrays["visible"].dtype != np.dtype(bool):
            raise InputError(f"mask={mask!r} needs a bool array 'visible'; it holds {_kinds(arrays)}")
        visible = torch.from_numpy(np.array(arrays["visible"]))
        if tuple(visible.shape) == spec.shape:
            _check_one(visible, mask, spec)
        elif tuple(visible.shape[1:]) != spec.shape:
            check_mask(visible, (len(visible) if visible.dim() else 1, *spec.shape), f"mask={mask!r}")
        return visible
    return random_mask(mask, "mask")


def _check_one(visible: Tensor, mask: str, spec: DataSpec) -> None:
    check_mask(visible[None], (1, *spec.shape), f"mask={mask!r}")
    if bool(visible.all()):
        raise InputError(f"mask={mask!r} hides nothing; black pixels (False) are filled in")


def _size(shape: Any) -> str:
    if len(shape) != 3:
        return f"{' x '.join(map(str, shape))} numbers"
    return f"{shape[2]} x {shape[1]} with {shape[0]} channel{'s' if shape[0] > 1 else ''}"


def _kinds(arrays: dict[str, Any]) -> str:
    return ", ".join(f"{name} ({array.dtype})" for name, array in sorted(arrays.items())) or "nothing"
