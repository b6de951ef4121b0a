"""Whether a fitted posterior may be trusted: what other tools need to look at it."""

from ._arviz import from_netcdf, plot_posterior, plot_predictive, summary, to_netcdf
from .annealing import Annealed, Bidirectional, ais, bdmc
from .arviz_export import to_arviz
from .c2st import ClassifierTest, c2st
from .calibration import Calibration, sbc
from .gap import InferenceGap, inference_gap
from .khat import KHat, khat
from .latent_checks import LatentChecks, latent_checks
from .loo import LeaveOneOut, loo
from .predictive import PredictiveCheck, predictive_check
from .reference import Reference, reference

__all__ = [
    "Annealed",
    "Bidirectional",
    "Calibration",
    "ClassifierTest",
    "InferenceGap",
    "KHat",
    "LatentChecks",
    "LeaveOneOut",
    "PredictiveCheck",
    "Reference",
    "ais",
    "bdmc",
    "c2st",
    "from_netcdf",
    "inference_gap",
    "khat",
    "latent_checks",
    "loo",
    "plot_posterior",
    "plot_predictive",
    "predictive_check",
    "reference",
    "sbc",
    "summary",
    "to_arviz",
    "to_netcdf",
]
