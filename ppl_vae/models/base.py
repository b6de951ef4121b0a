"""The models by name."""

from __future__ import annotations

from ..core import LatentModel
from ..registry import Registry

__all__ = ["models"]

models: Registry[type[LatentModel]] = Registry("model")
