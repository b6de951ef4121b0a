"""A person's own arrays and tables: .npz and .csv files."""

from __future__ import annotations

import csv
import math
import zipfile
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .arrays import as_levels
from .dataset import DataSet, Units
from .dsprites import is_dsprites, read_dsprites

__all__ = ["read_arrays", "read_csv", "read_npz"]

_ARRAYS = ("x", "y", "context", "observed")
_OPTIONS = ("levels", "class_names", "columns")
_LABELS = ("label", "y")
_MISSING = ("", "nan", "na")
"""Cells of a table without a value, in lower case."""


def read_npz(path: Path, *, units: Units | None = None) -> tuple[DataSet, DataSet | None]:
    """The arrays of an .npz file, and its test part, if it has one.

    ==========================  ==========================================================================
    x                           data, as `DataSet.from_arrays` takes them: images (N, H, W), (N, C, H, W) or
                                (N, H, W, C), or a table (N, D)
    y, context                  optional: class numbers (N,), -1 where missing; conditions (N, C)
    observed                    optional: bool of the shape of x, False where a value is missing; NaN in x is missing
                                in any case
    x_test, y_test,             optional: the test part, with y_test and context_test where the train part
    context_test, observed_test has them
    levels                      optional, a whole number L: x is 0 to L - 1
    class_names, columns        optional, strings: of the classes; of a table's columns
    ==========================  ==========================================================================

    x_train, y_train, context_train and observed_train are other names of x, y, context and observed. The original .npz
    of dSprites is known by its arrays, see `read_dsprites`.

    Args:
        units: as in `DataSet.from_arrays`.

    Raises:
        InputError: not an .npz file; an array of Python objects, which only a pickle could hold and loading would run
            its author's code; arrays that are missing, of other names, or do not fit each other.
    """
    if is_dsprites(path):
        return read_dsprites(path), None
    arrays = read_arrays(path)
    for name in _ARRAYS:
        if f"{name}_train" in arrays:
            if name in arrays:
                raise InputError(f"{str(path)!r} holds both {name!r} and '{name}_train'; keep one of them")
            arrays[name] = arrays.pop(f"{name}_train")
    known = (*_ARRAYS, *(f"{name}_test" for name in _ARRAYS), *_OPTIONS)
    if "x" not in arrays:
        raise InputError(
            f"{str(path)!r} has no array 'x'; it holds {sorted(arrays)}; save it by np.savez(path, x=..., y=...)"
        )
    if unknown := sorted(arrays.keys() - set(known)):
        raise InputError(f"{str(path)!r} holds {unknown}, which mean nothing here; the names are {', '.join(known)}")

    options: dict[str, Any] = {}
    if "levels" in arrays:
        if arrays["levels"].size != 1:
            raise InputError(f"levels of {path.name!r} has shape {arrays['levels'].shape}; give one number")
        options["levels"] = as_levels(arrays["levels"].item(), where=f"levels of {path.name!r}")
    for name in ("class_names", "columns"):
        if name in arrays:
            options[name] = [str(value) for value in arrays[name].reshape(-1)]

    tested = "x_test" in arrays
    for name in ("y", "context"):
        if (f"{name}_test" in arrays) != (tested and name in arrays):
            raise InputError(
                f"{str(path)!r} holds {sorted(arrays.keys() - set(_OPTIONS))}; give x_test, and with it a test array "
                "for each of y and context that is there, or none of them"
            )
    if "observed_test" in arrays and not tested:
        raise InputError(f"{str(path)!r} holds 'observed_test' without 'x_test'; give both")
    if "y" in arrays and "class_names" not in options:
        options["class_names"] = _numbered(arrays["y"], arrays.get("y_test"))

    def part(suffix: str, name: str) -> DataSet:
        x, y, context, observed = (arrays.get(f"{array}{suffix}") for array in _ARRAYS)
        if x is not None and x.dtype.kind == "f" and bool(np.isnan(x).any()):
            there = ~np.isnan(x)
            if observed is not None and observed.shape == there.shape and observed.dtype == there.dtype:
                there &= observed
            observed = there
        return DataSet.from_arrays(
            x, y, context=context, observed=observed, name=path.name, units=units, split=name, **options
        )

    if not tested:
        return part("", "all"), None
    train, test = part("", "train"), part("_test", "test")
    if train.shape != test.shape:
        raise InputError(f"x_test of {path.name!r} has data of shape {test.shape}, x of shape {train.shape}")
    if train.units != test.units or train.levels != test.levels:
        raise InputError(
            f"x_test of {path.name!r} has dtype {arrays['x_test'].dtype}, x has {arrays['x'].dtype}; give both alike"
        )
    if train.context is not None and test.context is not None and train.context.shape[1] != test.context.shape[1]:
        raise InputError(
            f"context_test of {path.name!r} has {test.context.shape[1]} columns, context {train.context.shape[1]}"
        )
    return train, test


def read_csv(path: Path) -> DataSet:
    """A table of numbers with a header: comma-separated, in UTF-8.

    A column named "label" or "y" holds the labels: class numbers, or names, which are numbered in alphabetical
    order; an empty cell is a missing label. Elsewhere an empty cell, NA or NaN is a missing value.

    Raises:
        InputError: no header; a cell that is neither a finite number nor missing, with its line and column; a line of
            which all is missing, or of another length; two columns of labels, or of one name.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return _parse_csv(path, csv.reader(file, strict=True))
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise InputError(f"{str(path)!r} cannot be read as a comma-separated table in UTF-8: {error}") from error


def _parse_csv(path: Path, lines: Any) -> DataSet:
    where = repr(str(path))
    header = [name.strip() for name in next(lines, [])]
    if not header:
        raise InputError(
            f"{where} is empty or begins with an empty line; give a line of column names and lines of numbers"
        )
    if len(header) == 1 and any(mark in header[0] for mark in ";\t"):
        raise InputError(f"{where} is separated by {';' if ';' in header[0] else 'tab'!r}; use commas")
    if all(_number(cell) is not None for cell in header):
        raise InputError(f"{where} begins with numbers; its first line has to name the columns")
    if repeated := sorted({name for name in header if header.count(name) > 1}):
        raise InputError(f"{where} has more than one column named {repeated}; give each a name of its own")
    labels = [i for i, name in enumerate(header) if name in _LABELS]
    if len(labels) > 1:
        raise InputError(f"{where} has labels in both 'label' and 'y'; rename one of them")
    label = labels[0] if labels else None
    columns = [name for i, name in enumerate(header) if i != label]
    if not columns:
        raise InputError(f"{where} has labels and no other column; give at least one column of numbers")

    values, there, texts, text_lines = array("d"), array("b"), list[str](), list[int]()
    for cells in lines:
        if not cells:
            continue
        if len(cells) != len(header):
            raise InputError(
                f"{where}, line {lines.line_num}: {len(cells)} cells where the header has {len(header)} columns"
            )
        for i, cell in enumerate(cells):
            if i == label:
                texts.append(cell.strip())
                text_lines.append(lines.line_num)
                continue
            missing = cell.strip().lower() in _MISSING
            number = 0.0 if missing else _number(cell)
            if number is None or not math.isfinite(number):
                words = "" if number is not None else ". A column of class names is called 'label' or 'y'"
                raise InputError(
                    f"{where}, line {lines.line_num}, column {header[i]!r}: {cell!r} is no finite number; fill it in, "
                    f"leave it empty for a missing value, or remove the line{words}"
                )
            values.append(number)
            there.append(not missing)
        if not any(there[-len(columns) :]):
            raise InputError(f"{where}, line {lines.line_num} has no value; remove the line")
    x = np.frombuffer(values, dtype=np.float64).reshape(-1, len(columns))
    observed = np.frombuffer(there, dtype=np.int8).reshape(-1, len(columns)).astype(bool)
    y, class_names = (None, ()) if label is None else _parse_labels(texts, text_lines, where, header[label])
    return DataSet.from_arrays(
        x,
        y,
        name=path.name,
        class_names=class_names,
        columns=columns,
        observed=None if observed.all() else observed,
    )


def _parse_labels(texts: list[str], lines: list[int], where: str, column: str) -> tuple[list[int], Sequence[str]]:
    given = [text for text in texts if text]
    if given and all(_number(text) is None for text in given):
        names = sorted(set(given))
        numbers = {name: i for i, name in enumerate(names)}
        return [numbers[text] if text else -1 for text in texts], names
    y = []
    for text, line in zip(texts, lines, strict=True):
        try:
            y.append(int(text) if text else -1)
        except ValueError:
            raise InputError(
                f"{where}, column {column!r}, line {line}: label {text!r} is no whole number; a column of this name "
                "holds labels, class numbers 0, 1, ... throughout, or names throughout; rename it if it holds data"
            ) from None
    return y, ()


def read_arrays(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of an .npz file by name; raises `InputError` for one that cannot be read, or holds objects."""
    where = repr(str(path))
    try:
        if not zipfile.is_zipfile(path):
            raise InputError(f"{where} is no .npz file (a zip archive of arrays), or is cut short; use np.savez")
        arrays: dict[str, np.ndarray[Any, Any]] = {}
        with np.load(path, allow_pickle=False) as file:
            for name in file.files:
                try:
                    value = file[name]
                except ValueError as error:
                    if "pickle" not in str(error):
                        raise
                    raise InputError(
                        f"{name!r} in {where} holds Python objects, a pickle, which could run code when it is loaded; "
                        "save an array of numbers, all data of one shape"
                    ) from error
                if not isinstance(value, np.ndarray):
                    raise InputError(f"{where} holds {name!r}, which is no array; use np.savez")
                arrays[name] = value
    except InputError:
        raise
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, NotImplementedError) as error:
        raise InputError(f"{where} cannot be read as an .npz file: {error}") from error
    return arrays


def _numbered(*labels: np.ndarray[Any, Any] | None) -> list[str]:
    """Names for the classes of both parts together, so that they agree. Bad labels are left for `DataSet`, which
    counts anew."""
    given = [y for y in labels if y is not None and y.dtype.kind in "biu" and y.size]
    top = max((int(y.max()) for y in given), default=-1)
    return [str(c) for c in range(top + 1)] if top < max((y.size for y in given), default=0) else []


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
