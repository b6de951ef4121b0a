"""Deep latent-variable models as Pyro programs: any model, guide and objective, and whether to trust the result."""

from . import guides, likelihoods, models, networks, objectives, priors
from .batch import Batch
from .core import Conditional, Encoder, Guide, LatentModel, LatentSpec
from .errors import InputError, NonFiniteLossError, RunError
from .handlers import scale_data, scale_latents
from .interop import pyro_pair
from .objectives import ELBO, IWAE, Objective, Renyi
from .weights import LogWeights, check_pair, log_weights

__all__ = [
    "ELBO",
    "IWAE",
    "Batch",
    "Conditional",
    "Encoder",
    "Guide",
    "InputError",
    "LatentModel",
    "LatentSpec",
    "LogWeights",
    "NonFiniteLossError",
    "Objective",
    "Renyi",
    "RunError",
    "check_pair",
    "guides",
    "likelihoods",
    "log_weights",
    "models",
    "networks",
    "objectives",
    "priors",
    "pyro_pair",
    "scale_data",
    "scale_latents",
]

__version__ = "0.1.0"
