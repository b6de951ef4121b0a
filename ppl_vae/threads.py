"""How many CPU threads a pair is worth."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

__all__ = ["few_threads"]

SMALL = 1_000_000
"""Parameters below which the matrix products of dense networks are too small to be shared between threads."""


@contextmanager
def few_threads(*modules: nn.Module) -> Iterator[None]:
    """A block with one CPU thread if the modules are small and dense: several threads then wait for each other most of
    the time, and on a busy machine a step takes ten times as long. Afterwards there are as many as before."""
    before = torch.get_num_threads()
    size = sum(p.numel() for module in modules for p in module.parameters())
    convolves = any(isinstance(part, _ConvNd) for module in modules for part in module.modules())
    try:
        if size < SMALL and not convolves:
            torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(before)
