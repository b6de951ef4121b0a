"""Generative models p(x, z), one file each, as Pyro programs."""

from .base import models
from .bayesian_decoder import BayesianDecoder
from .conditional_vae import ConditionalVAE
from .gaussian_mixture import GaussianMixture
from .hierarchical_vae import HierarchicalVAE
from .m2 import M2
from .quantized import Quantized
from .semi_supervised_vae import SemiSupervisedVAE
from .stacked import Stacked
from .structured_vae import StructuredVAE
from .vae import VAE
from .vqvae import VQVAE, VQVAE2

__all__ = [
    "M2",
    "VAE",
    "VQVAE",
    "VQVAE2",
    "BayesianDecoder",
    "ConditionalVAE",
    "GaussianMixture",
    "HierarchicalVAE",
    "Quantized",
    "SemiSupervisedVAE",
    "Stacked",
    "StructuredVAE",
    "models",
]
