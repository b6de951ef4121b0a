"""Variational posteriors q(z | x), one family a file, each built from what a model declares."""

from .base import Amortized, guides
from .classified import Classified, classified, continuous_part
from .combined import Combined, datum_part
from .delta import Delta
from .enumerated import Enumerated
from .exact import Exact
from .flow import Flow
from .full_rank import FullRank
from .hierarchical import BottomUp, TopDown
from .householder import Householder
from .inverse_autoregressive import InverseAutoregressive
from .local import Local
from .low_rank import LowRank
from .mean_field import MeanField
from .mixture import Mixture
from .nearest import Encoded, Nearest
from .planar import Planar
from .radial import Radial
from .refined import Refined
from .semi_amortized import SemiAmortized
from .shared import Shared
from .spline import Spline
from .stacked import Stacked
from .structured import Structured
from .sylvester import Sylvester

__all__ = [
    "Amortized",
    "BottomUp",
    "Classified",
    "Combined",
    "Delta",
    "Encoded",
    "Enumerated",
    "Exact",
    "Flow",
    "FullRank",
    "Householder",
    "InverseAutoregressive",
    "Local",
    "LowRank",
    "MeanField",
    "Mixture",
    "Nearest",
    "Planar",
    "Radial",
    "Refined",
    "SemiAmortized",
    "Shared",
    "Spline",
    "Stacked",
    "Structured",
    "Sylvester",
    "TopDown",
    "classified",
    "continuous_part",
    "datum_part",
    "guides",
]
