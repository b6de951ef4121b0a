"""Where fits of a mixture start: k-means++ centres, or responsibilities that are given."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .errors import InputError

__all__ = ["centres", "given_responsibilities", "nearest"]


def centres(x: Tensor, components: int, seed: int) -> Tensor:
    """K rows of x (N, D), drawn one after another with probabilities by the squared distance from those before,
    in units of each column's standard deviation (k-means++), (K, D).

    Raises:
        InputError: fewer different rows than components.

    Reference: Arthur and Vassilvitskii, k-means++: the advantages of careful seeding, SODA 2007.
    """
    from sklearn.cluster import kmeans_plusplus

    different = len(x.unique(dim=0)) if len(x) >= components else len(x)
    if different < components:
        raise InputError(
            f"components={components} are more than the data: x has {len(x)} rows, {different} of them different"
        )
    scale = x.std(0, correction=0)
    units = (x / torch.where(scale > 0, scale, torch.ones_like(scale))).cpu().numpy().astype(np.float64)
    _, rows = kmeans_plusplus(units, components, random_state=seed)
    return x[torch.as_tensor(np.asarray(rows), dtype=torch.long, device=x.device)]


def nearest(x: Tensor, centres: Tensor) -> Tensor:
    """Responsibilities (N, K) that give each datum to the nearest centre, in units of the columns' deviations."""
    scale = x.std(0, correction=0)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    chosen = torch.cdist(x / scale, centres / scale).argmin(1)
    return torch.nn.functional.one_hot(chosen, len(centres)).to(x)


def given_responsibilities(start: object, x: Tensor, components: int) -> Tensor:
    """A start as responsibilities (N, K): those, or class numbers (N,) of int64.

    Raises:
        InputError: labels that are no whole numbers or of no component, another shape, rows that do not sum to 1.
    """
    n = len(x)
    if not isinstance(start, Tensor):
        raise InputError(f"start={type(start).__name__} must be responsibilities ({n}, {components}) or labels ({n},)")
    if start.dim() == 1:
        if start.dtype != torch.int64:
            raise InputError(f"start holds labels of {start.dtype}; labels are int64 class numbers")
        if len(start) != n or bool(((start < 0) | (start >= components)).any()):
            raise InputError(f"start has {len(start)} labels; it needs {n}, from 0 to {components - 1}")
        return torch.nn.functional.one_hot(start, components).to(x)
    if tuple(start.shape) != (n, components) or not start.is_floating_point():
        raise InputError(
            f"start has shape {tuple(start.shape)} of {start.dtype}; responsibilities are floating-point numbers "
            f"({n}, {components})"
        )
    start = start.to(x)
    if not bool(((start >= 0).all(1) & ((start.sum(1) - 1.0).abs() < 1e-5)).all()):
        raise InputError("start has rows that are no probabilities: each is 0 or more, and they sum to 1")
    return start
