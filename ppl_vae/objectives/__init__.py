"""What is optimized: bounds on log p(x), each a `pyro.infer.ELBO` of a few lines over `log_weights`."""

from .base import Objective, Terms, objectives
from .dreg import DReG
from .elbo import ELBO
from .iwae import IWAE
from .renyi import Renyi
from .score_function import ScoreFunction
from .stl import STL

__all__ = ["ELBO", "IWAE", "STL", "DReG", "Objective", "Renyi", "ScoreFunction", "Terms", "objectives"]
