"""Deep latent-variable models as Pyro programs: any model, guide and objective, and whether to trust the result."""

from typing import TYPE_CHECKING

from . import data, disentangle, guides, likelihoods, models, networks, objectives, priors
from .batch import Batch
from .build import PairConfig, build
from .compare import Comparison, compare
from .compiled import CompileReport, CompileWarning
from .core import Conditional, Encoder, Guide, LatentModel, LatentSpec
from .data import DataSet, load
from .diagnose import Diagnosis, to_arviz
from .errors import InputError, NonFiniteLossError, RunError
from .evaluate import evaluate, log_marginal
from .fit import FitResult, fit
from .handlers import scale_data, scale_latents
from .interop import pyro_pair
from .mcmc import Samples, sample_posterior
from .objectives import (
    DIPVAE,
    ELBO,
    IWAE,
    STL,
    TVO,
    VQ,
    BetaTCVAE,
    Capacity,
    Constrained,
    DReG,
    FactorVAE,
    Objective,
    Renyi,
    ScoreClimbing,
    ScoreFunction,
    SemiSupervised,
    TransportScoreClimbing,
    Wake,
)
from .prior_fit import fit_prior
from .runs import Run, load_weights, open_run
from .svi import CompiledSVI
from .weights import LogWeights, check_pair, log_weights

if TYPE_CHECKING:
    from .diagnose.callable_module import Diagnostics

    diagnose: Diagnostics  # what a type checker takes for a module is one that can be called
else:
    from . import diagnose

__all__ = [
    "DIPVAE",
    "ELBO",
    "IWAE",
    "STL",
    "TVO",
    "VQ",
    "Batch",
    "BetaTCVAE",
    "Capacity",
    "Comparison",
    "CompileReport",
    "CompileWarning",
    "CompiledSVI",
    "Conditional",
    "Constrained",
    "DReG",
    "DataSet",
    "Diagnosis",
    "Encoder",
    "FactorVAE",
    "FitResult",
    "Guide",
    "InputError",
    "LatentModel",
    "LatentSpec",
    "LogWeights",
    "NonFiniteLossError",
    "Objective",
    "PairConfig",
    "Renyi",
    "Run",
    "RunError",
    "Samples",
    "ScoreClimbing",
    "ScoreFunction",
    "SemiSupervised",
    "TransportScoreClimbing",
    "Wake",
    "build",
    "check_pair",
    "compare",
    "data",
    "diagnose",
    "disentangle",
    "evaluate",
    "fit",
    "fit_prior",
    "guides",
    "likelihoods",
    "load",
    "load_weights",
    "log_marginal",
    "log_weights",
    "models",
    "networks",
    "objectives",
    "open_run",
    "priors",
    "pyro_pair",
    "sample_posterior",
    "scale_data",
    "scale_latents",
    "to_arviz",
]

__version__ = "0.1.0"
