"""What is optimized: bounds on log p(x), each a `pyro.infer.ELBO` of a few lines over `log_weights`."""

from .base import Objective, Terms, objectives
from .capacity import Capacity
from .constrained import Constrained
from .dip import DIPVAE
from .dreg import DReG
from .elbo import ELBO
from .factor import FactorVAE
from .iwae import IWAE
from .renyi import Renyi
from .score_climbing import ScoreClimbing
from .score_function import ScoreFunction
from .semi_supervised import SemiSupervised
from .stl import STL
from .structured import StructuredELBO
from .total_correlation import BetaTCVAE
from .transport import TransportScoreClimbing
from .tvo import TVO
from .vq import VQ
from .wake import Wake

__all__ = [
    "DIPVAE",
    "ELBO",
    "IWAE",
    "STL",
    "TVO",
    "VQ",
    "BetaTCVAE",
    "Capacity",
    "Constrained",
    "DReG",
    "FactorVAE",
    "Objective",
    "Renyi",
    "ScoreClimbing",
    "ScoreFunction",
    "SemiSupervised",
    "StructuredELBO",
    "Terms",
    "TransportScoreClimbing",
    "Wake",
    "objectives",
]
