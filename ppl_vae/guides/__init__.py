"""Variational posteriors q(z | x), one family a file, each built from what a model declares."""

from .base import Amortized, guides
from .full_rank import FullRank
from .mean_field import MeanField

__all__ = ["Amortized", "FullRank", "MeanField", "guides"]
