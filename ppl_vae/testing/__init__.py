"""What parts are tested with: the contracts as checks, and an oracle whose log p(x) and posterior are exact."""

from .compiled import check_compiled
from .contracts import ContractError, check_guide, check_model, check_objective
from .linear_gaussian import LinearGaussian, LinearGaussianPosterior
from .linear_gaussian_chain import LinearGaussianChain

__all__ = [
    "ContractError",
    "LinearGaussian",
    "LinearGaussianChain",
    "LinearGaussianPosterior",
    "check_compiled",
    "check_guide",
    "check_model",
    "check_objective",
]
