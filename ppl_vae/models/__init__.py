"""Generative models p(x, z), one file each, as Pyro programs."""

from .base import models
from .bayesian_decoder import BayesianDecoder
from .conditional_vae import ConditionalVAE
from .gaussian_mixture import GaussianMixture
from .hierarchical_vae import HierarchicalVAE
from .m2 import M2
from .semi_supervised_vae import SemiSupervisedVAE
from .stacked import Stacked
from .structured_vae import StructuredVAE
from .vae import VAE

__all__ = [
    "M2",
    "VAE",
    "BayesianDecoder",
    "ConditionalVAE",
    "GaussianMixture",
    "HierarchicalVAE",
    "SemiSupervisedVAE",
    "Stacked",
    "StructuredVAE",
    "models",
]
