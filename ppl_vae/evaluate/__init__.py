r"""What a fitted pair is worth: log p(x) by importance sampling, the bound, and what its latents carry.

Numbers are nats per datum unless they say otherwise. Two standard errors are told apart:

- the **Monte Carlo** error (`se`): of this number, for these data, from the randomness of the draws. More particles
  lower it.
- the **sampling** error (`data_se`): of this number as an estimate for the population that the data come from, the
  data's standard deviation over √N. More particles do not lower it. It holds the Monte Carlo error, too.

Two pairs evaluated on the same data are compared by their paired differences; `data_se` is for other data.
"""

from .chunked import Data
from .classes import Classification, classify
from .estimates import Estimate
from .frechet import Classifier, Frechet, frechet, frechet_gaussians, train_classifier
from .generation import Samples, reconstruct, sample, sample_styles
from .hiding import KLToComplete, kl_to_complete
from .importance import Bound, LogMarginal, Progress, effective_sample_size, elbo, log_marginal
from .imputation import Imputations, LogMissing, impute, log_missing
from .latents import ActiveUnits, Encoding, KLByDimension, active_units, codes, encode, kl_by_dimension
from .points import AtPoints, at_points
from .report import Evaluation, bits_per_dimension, evaluate
from .sharpness import Sharpness, laplacian_variance, sharpness

__all__ = [
    "ActiveUnits",
    "AtPoints",
    "Bound",
    "Classification",
    "Classifier",
    "Data",
    "Encoding",
    "Estimate",
    "Evaluation",
    "Frechet",
    "Imputations",
    "KLByDimension",
    "KLToComplete",
    "LogMarginal",
    "LogMissing",
    "Progress",
    "Samples",
    "Sharpness",
    "active_units",
    "at_points",
    "bits_per_dimension",
    "classify",
    "codes",
    "effective_sample_size",
    "elbo",
    "encode",
    "evaluate",
    "frechet",
    "frechet_gaussians",
    "impute",
    "kl_by_dimension",
    "kl_to_complete",
    "laplacian_variance",
    "log_marginal",
    "log_missing",
    "reconstruct",
    "sample",
    "sample_styles",
    "sharpness",
    "train_classifier",
]
