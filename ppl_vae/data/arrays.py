"""Arrays as they come, tensors as a data set keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError

__all__ = ["as_context", "as_data", "as_labels", "as_levels", "evenly", "place", "refuse_non_finite", "without_hidden"]

MAX_LEVELS = 256


def evenly(size: int, count: int) -> Tensor:
    """So many places from 0 to size - 1, spread evenly from the first to the last; all of them where there are
    fewer."""
    return torch.linspace(0, size - 1, min(count, size), dtype=torch.float64).round().long()


def as_data(value: Any, *, where: str, levels: int | None = None) -> tuple[Tensor, int | None]:
    """`x` as a data set keeps it, and its number of levels.

    ======================================  =====================  =========================
    given                                   kept                   levels
    ======================================  =====================  =========================
    uint8 images                            uint8 (N, C, H, W)     `levels`, or else 256
    bool                                    uint8, same shape      2
    whole numbers of any type and `levels`  uint8                  `levels`
    floating-point images                   float32 (N, C, H, W)   None: continuous
    numbers (N, D), a table                 float32 (N, D)         None: continuous
    ======================================  =====================  =========================

    Images are (N, H, W) or have four axes. A tensor of four axes is in torch's order, (N, C, H, W). Of an array the
    channels are the smaller of axes 1 and 3, and axis 1 where they are equal: (N, 3, 32, 32) and (N, 32, 32, 3) are
    both read rightly, (N, 4, 4, 1) has one channel.

    Args:
        value: a tensor, an array, or what `numpy.asarray` takes.
        where: what to call it in an error, as "x of 'cells.npz'".
        levels: the number of levels L, from 2 to 256: values are whole numbers from 0 to L - 1.

    Raises:
        InputError: another shape or dtype; values that are not levels.
    """
    tensor, channels_last = _as_tensor(value, where)
    if tensor.dim() not in (2, 3, 4):
        hint = "; reshape it to (N, 1)" if tensor.dim() == 1 else ""
        raise InputError(
            f"{where} has shape {tuple(tensor.shape)}; give a table (N, D), or images (N, H, W), (N, C, H, W) or "
            f"(N, H, W, C){hint}"
        )
    if 0 in tensor.shape[1:]:
        raise InputError(f"{where} has shape {tuple(tensor.shape)}: no values in a datum; every axis needs a size")
    if tensor.dim() == 3:
        tensor = tensor.unsqueeze(1)
    elif tensor.dim() == 4 and channels_last and tensor.shape[3] < tensor.shape[1]:
        tensor = tensor.permute(0, 3, 1, 2)

    image = tensor.dim() == 4
    if tensor.dtype == torch.bool:
        tensor, levels = tensor.to(torch.uint8), 2 if levels is None else levels
    elif image and tensor.dtype == torch.uint8 and levels is None:
        levels = MAX_LEVELS
    elif image and not tensor.is_floating_point() and levels is None:
        raise InputError(
            f"{where} holds images of dtype {_short(tensor.dtype)}, which does not say how many levels a pixel has; "
            f"give uint8 (256 levels), the number `levels` (2 to {MAX_LEVELS}), or floats from 0 to 1"
        )
    if levels is None:
        return tensor.to(torch.float32).contiguous(), None
    levels = as_levels(levels, where=f"levels for {where}")
    _refuse_off_levels(tensor, levels, where)
    return tensor.to(torch.uint8).contiguous(), levels


def as_levels(value: Any, *, where: str = "levels") -> int:
    """A number of levels, from 2 to 256."""
    try:
        levels = int(value)
        whole = levels == value and not isinstance(value, bool)
    except (TypeError, ValueError, OverflowError):
        whole = False
    if not whole or not 2 <= levels <= MAX_LEVELS:
        raise InputError(f"{where} is {value!r}; give a whole number from 2 to {MAX_LEVELS}")
    return levels


def as_labels(value: Any, *, where: str) -> Tensor:
    """Class numbers (N,) as int64; -1 stands for a missing label. `DataSet` checks their range.

    Raises:
        InputError: floating-point labels, one-hot rows, or another shape.
    """
    tensor, _ = _as_tensor(value, where)
    if tensor.dim() != 1:
        hint = "use .argmax(1) of one-hot rows, .reshape(-1) of a column"
        raise InputError(f"{where} has shape {tuple(tensor.shape)}; give one class number a datum, shape (N,) ({hint})")
    if tensor.is_floating_point():
        raise InputError(
            f"{where} has dtype {_short(tensor.dtype)}; labels are whole numbers 0, 1, ... and -1 where missing, "
            "of an integer dtype"
        )
    return tensor.to(torch.int64)


def as_context(value: Any, *, where: str) -> Tensor:
    """What the model is conditioned on, (N, C), as float32."""
    tensor, _ = _as_tensor(value, where)
    if tensor.dim() != 2:
        raise InputError(f"{where} has shape {tuple(tensor.shape)}; give one row a datum, shape (N, C)")
    return tensor.to(torch.float32)


def without_hidden(x: Any, observed: Any, *, where: str) -> tuple[Any, Any]:
    """x with 0 where it is not observed, and the mask, both tensors or both arrays, so that `as_data` puts their axes
    in the same order.

    Raises:
        InputError: a mask that is not bool, or of another shape than x.
    """
    seen: Any
    if isinstance(x, Tensor):
        seen = torch.as_tensor(observed, device=x.device)
    else:
        x, seen = np.asarray(x), np.asarray(observed.cpu() if isinstance(observed, Tensor) else observed)
    if seen.dtype not in (torch.bool, np.dtype(bool)) or tuple(seen.shape) != tuple(x.shape):
        raise InputError(
            f"observed of {where} is {seen.dtype} {tuple(seen.shape)} where x has shape {tuple(x.shape)}; give bool of "
            "the same shape, False where a value is missing"
        )
    zeroed = torch.where(seen, x, x.new_zeros(())) if isinstance(x, Tensor) else np.where(seen, x, x.dtype.type(0))
    return zeroed, seen


def refuse_non_finite(tensor: Tensor, where: str, columns: Sequence[str] = ()) -> None:
    """Raise `InputError` naming the first NaN or infinity of a floating-point tensor."""
    # one pass without a mask in memory: a sum of finite float32 in float64 cannot overflow
    if not tensor.is_floating_point() or bool(tensor.sum(dtype=torch.float64).isfinite()):
        return
    bad = tensor.isfinite().logical_not()
    index = [int(i) for i in bad.nonzero()[0]]
    raise InputError(
        f"{where}: {place(index, columns)} is {float(tensor[tuple(index)]):g} (the first of {int(bad.sum())} such "
        "values); remove these data, fill them in with finite numbers below 3.4e38 (float32), or say by `observed` "
        "that they are missing"
    )


def place(index: Sequence[int], columns: Sequence[str] = ()) -> str:
    """Where in a data set a value is: "row 3, column 1 ('height')"."""
    row, *rest = index
    if len(rest) == 1:
        name = f" ({columns[rest[0]]!r})" if columns else ""
        return f"row {row}, column {rest[0]}{name}"
    if len(rest) == 3:
        return f"row {row}, channel {rest[0]}, pixel ({rest[1]}, {rest[2]})"
    return f"row {row}"


def _as_tensor(value: Any, where: str) -> tuple[Tensor, bool]:
    """A tensor of a dtype that torch computes with, and whether its channels may come last."""
    if isinstance(value, Tensor):
        if value.is_complex() or value.is_quantized or value.layout != torch.strided:
            raise InputError(f"{where} is a {value.layout} tensor of {_short(value.dtype)}; give real, dense numbers")
        return value.detach(), False
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:  # ragged lists
        raise InputError(f"{where} cannot be made an array: {error}") from error
    if array.dtype == object:
        raise InputError(f"{where} holds Python objects; give an array of numbers, all data of one shape")
    if array.dtype.kind not in "buif":
        names = (
            " (labels as class numbers 0, 1, ..., with their names in class_names)" if array.dtype.kind in "US" else ""
        )
        raise InputError(f"{where} has dtype {array.dtype}; give numbers, bool, integers or floats{names}")
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        # torch has few operations for the wide unsigned types
        if array.size and array.max() > np.iinfo(np.int64).max:
            raise InputError(f"{where} holds {array.max()}, beyond int64; give floats")
        array = array.astype(np.int64)
    elif array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    # a copy in the machine's byte order that is ours to write to: torch warns of read-only memory
    array = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
    return torch.from_numpy(array), True


def _refuse_off_levels(tensor: Tensor, levels: int, where: str) -> None:
    if tensor.numel() == 0 or (tensor.dtype == torch.uint8 and levels == MAX_LEVELS):
        return
    good = (tensor >= 0) & (tensor < levels)
    if tensor.is_floating_point():
        good &= tensor == tensor.round()
    if bool(good.all()):
        return
    index = [int(i) for i in good.logical_not().nonzero()[0]]
    raise InputError(
        f"{where}: {place(index)} is {tensor[tuple(index)].item():g}, which is no level; with levels={levels} values "
        f"are whole numbers from 0 to {levels - 1}"
    )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
