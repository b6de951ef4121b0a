"""One entry to all data: a name or a path in, a training and a test set out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import get_args

from ..errors import InputError, choose
from .dataset import FIXED_SEED, Binarize, DataSet, DataSplits, Units, split
from .images import read_folder
from .named import data_sets
from .tables import read_csv, read_npz

__all__ = ["load"]

TRAIN_SEED = FIXED_SEED + 1
"""The seed with which training sets are binarized under "fixed"; another than the test sets', or both would share
their noise."""


def load(
    data: str | os.PathLike[str],
    *,
    binarize: Binarize = "none",
    units: Units | None = None,
    masks: str | None = None,
    data_dir: str | os.PathLike[str] = "data",
    download: bool = True,
    test_fraction: float | None = None,
    seed: int = 0,
) -> DataSplits:
    """The training and the test part of a data set.

    A named set has one split, the same for everyone: torchvision's own, and of the digits 80% and 20%, stratified,
    with seed 0. A person's file is split here, unless it brings its own test part.

    The test part never changes from one evaluation to the next: with ``binarize="dynamic"`` the training part is
    drawn anew for every batch, and the test part once, with seed 777. ``"fixed"`` draws both once, the training part
    with seed 778; ``"threshold"`` sets values above one half to 1. Masks hide a part of each datum from the encoder: of
    the training part another one in every batch, of the test part always the same, drawn with seed 777.

    Args:
        data: a name in `data_sets`, or the path of an .npz file (`read_npz`), a .csv file (`read_csv`) or a folder
            of images (`read_folder`). A name wins over a path; write "./digits" for a folder of that name.
        binarize: what is done with images, or with data of known levels; tables of numbers cannot be binarized.
        units: of what is not binarized; None: "unit" for images and levels, "raw" for tables.
        masks: what is hidden from an encoder, by name: pixels, rectangles, halves, strokes, with options as in
            "rectangles:share=0.5", see `ppl_vae.masks`; None: nothing.
        data_dir: the folder where torchvision's sets are, or are downloaded to.
        download: whether what is missing there may be downloaded.
        test_fraction: of a person's own data, held out in the same proportion of every class; None: 0.2.
        seed: of that split.

    Raises:
        InputError: a name that is not known; a file or a download that fails; options that do not fit the data; a
            `test_fraction` for data that have a test part.

    Example:
        >>> load("digits", binarize="dynamic").test
        DataSet(digits test, fixed binarization (seed 777): 359 x (1, 8, 8), 10 classes)
    """
    if binarize not in get_args(Binarize):
        raise choose("binarize", binarize, get_args(Binarize))
    if units is not None and units not in get_args(Units):
        raise choose("units", units, get_args(Units))
    train, test = _read(data, Path(data_dir).expanduser(), download, units, test_fraction, seed)
    return DataSplits(
        train.with_options(binarize=binarize, units=units, masks=masks, seed=TRAIN_SEED),
        test.with_options(
            binarize="fixed" if binarize == "dynamic" else binarize, units=units, masks=masks, seed=FIXED_SEED
        ).fixed(),
    )


def _read(
    data: str | os.PathLike[str],
    data_dir: Path,
    download: bool,
    units: Units | None,
    test_fraction: float | None,
    seed: int,
) -> DataSplits:
    if isinstance(data, str) and data in data_sets:
        if test_fraction is not None:
            raise _has_test(data, test_fraction)
        return data_sets.get(data)(data_dir, download)
    if not isinstance(data, (str, os.PathLike)) or not os.fspath(data):
        raise InputError(f"data={data!r} is neither a name nor a path; the names are: {', '.join(data_sets)}")
    path = Path(data).expanduser()
    suffix = path.suffix.lower()
    whole: DataSet
    test: DataSet | None = None
    if path.is_dir():
        whole, test = read_folder(path)
    elif not path.exists():
        if suffix in (".npz", ".csv") or len(path.parts) > 1:
            raise InputError(f"data={str(data)!r}: there is no such file or folder (from {str(Path.cwd())!r})")
        raise InputError(
            f"{choose('data', data, data_sets)}; or give the path of an .npz, a .csv or a folder of images"
        )
    elif suffix == ".npz":
        whole, test = read_npz(path, units=units)
    elif suffix == ".csv":
        whole = read_csv(path)
    else:
        raise InputError(
            f"data={str(data)!r} is a file of type {suffix or 'unknown'!r}; give an .npz, a .csv or a folder of images"
        )
    if test is None:
        return DataSplits(*split(whole, 0.2 if test_fraction is None else test_fraction, seed))
    if test_fraction is not None:
        raise _has_test(str(data), test_fraction)
    return DataSplits(whole, test)


def _has_test(data: str, test_fraction: float) -> InputError:
    return InputError(
        f"test_fraction={test_fraction} does not fit data={data!r}, which has a test part of its own; leave it out, "
        "and hold data out of the training part with split()"
    )
