"""What is optimized: bounds on log p(x), each a `pyro.infer.ELBO` of a few lines over `log_weights`."""

from .base import Objective, Terms, objectives
from .elbo import ELBO
from .iwae import IWAE
from .renyi import Renyi

__all__ = ["ELBO", "IWAE", "Objective", "Renyi", "Terms", "objectives"]
