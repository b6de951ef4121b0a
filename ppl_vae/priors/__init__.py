"""Priors p(z), parts that any model takes, one file each."""

from .autoregressive import Autoregressive
from .base import Prior, bind, prior_of, prior_site, priors, replace_prior
from .codes import CodePrior, UniformCodes
from .energy import Energy
from .flow import Flow
from .mixture import Mixture
from .standard_normal import StandardNormal
from .vamp import Vamp

__all__ = [
    "Autoregressive",
    "CodePrior",
    "Energy",
    "Flow",
    "Mixture",
    "Prior",
    "StandardNormal",
    "UniformCodes",
    "Vamp",
    "bind",
    "prior_of",
    "prior_site",
    "priors",
    "replace_prior",
]
