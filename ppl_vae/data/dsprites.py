"""The original file of dSprites."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch

from ..errors import InputError
from .dataset import DataSet

__all__ = ["is_dsprites", "read_dsprites"]

_ARRAYS = ("imgs", "latents_classes")
_NAMES = ("colour", "shape", "scale", "orientation", "x", "y")
_SHAPES = ("square", "ellipse", "heart")


def is_dsprites(path: Path) -> bool:
    """Whether a file has dSprites' arrays."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {f"{name}.npy" for name in _ARRAYS} <= set(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def read_dsprites(path: Path) -> DataSet:
    """dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz: 737,280 binary 64 x 64 pictures with their factors.

    Its pictures take 3 GB in memory; `sprites` makes others like them from nothing. The array `metadata`, a pickle, is
    not read. A factor with one level, as the colour, is left out.

    Raises:
        InputError: arrays that do not fit each other, or pictures that are not binary.
    """
    with np.load(path, allow_pickle=False) as arrays:
        images, classes = (np.asarray(arrays[name]) for name in _ARRAYS)
    if images.ndim != 3 or classes.shape != (len(images), len(_NAMES)):
        raise InputError(
            f"{path.name!r} has imgs of shape {images.shape} and latents_classes of shape {classes.shape}; dSprites "
            "has (N, 64, 64) and (N, 6)"
        )
    varies = [k for k in range(len(_NAMES)) if np.ptp(classes[:, k])]
    data = DataSet.from_arrays(
        torch.from_numpy(images.astype(np.uint8, copy=False)),
        torch.from_numpy(classes[:, 1].astype(np.int64)),
        name=path.name,
        levels=2,
        class_names=_SHAPES[: int(classes[:, 1].max()) + 1],
    )
    factors = torch.from_numpy(classes[:, varies].astype(np.uint8))
    return data.with_factors(factors, [_NAMES[k] for k in varies])
