"""Whether a fitted posterior may be trusted: ``ppl_vae.diagnose(model, guide, data)``, and the parts of it by name."""

import sys

from ._arviz import from_netcdf, plot_posterior, plot_predictive, summary, to_netcdf
from .annealing import Annealed, Bidirectional, ais, bdmc
from .arviz_export import to_arviz
from .c2st import ClassifierTest, c2st
from .calibration import Calibration, sbc
from .callable_module import Diagnostics
from .diagnosis import Diagnosis, LeftOut, diagnose
from .findings import Finding, Picture, Verdict
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
    "Diagnosis",
    "Finding",
    "InferenceGap",
    "KHat",
    "LatentChecks",
    "LeaveOneOut",
    "LeftOut",
    "Picture",
    "PredictiveCheck",
    "Reference",
    "Verdict",
    "ais",
    "bdmc",
    "c2st",
    "diagnose",
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

sys.modules[__name__].__class__ = Diagnostics
