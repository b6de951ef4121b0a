"""What is optimized: bounds on log p(x), each a `pyro.infer.ELBO` of a few lines over `log_weights`."""

from .base import Objective, Terms, objectives
from .dreg import DReG
from .elbo import ELBO
from .iwae import IWAE
from .renyi import Renyi
from .score_climbing import ScoreClimbing
from .score_function import ScoreFunction
from .semi_supervised import SemiSupervised
from .stl import STL
from .structured import StructuredELBO
from .transport import TransportScoreClimbing
from .tvo import TVO
from .wake import Wake

__all__ = [
    "ELBO",
    "IWAE",
    "STL",
    "TVO",
    "DReG",
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
