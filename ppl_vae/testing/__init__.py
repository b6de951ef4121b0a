"""What parts are tested with: the contracts as checks, and an oracle whose log p(x) and posterior are exact."""

from .compiled import check_compiled
from .contracts import ContractError, check_guide, check_model, check_objective
from .linear_gaussian import LinearGaussian, LinearGaussianPosterior

__all__ = [
    "ContractError",
    "LinearGaussian",
    "LinearGaussianPosterior",
    "check_compiled",
    "check_guide",
    "check_model",
    "check_objective",
]
