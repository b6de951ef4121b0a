"""Variational posteriors q(z | x), one family a file, each built from what a model declares."""

from .base import Amortized, guides
from .combined import Combined, datum_part
from .full_rank import FullRank
from .hierarchical import BottomUp, TopDown
from .mean_field import MeanField
from .shared import Shared

__all__ = [
    "Amortized",
    "BottomUp",
    "Combined",
    "FullRank",
    "MeanField",
    "Shared",
    "TopDown",
    "datum_part",
    "guides",
]
