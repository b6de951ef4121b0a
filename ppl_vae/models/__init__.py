"""Generative models p(x, z), one file each, as Pyro programs."""

from .base import models
from .bayesian_decoder import BayesianDecoder
from .conditional_vae import ConditionalVAE
from .hierarchical_vae import HierarchicalVAE
from .vae import VAE

__all__ = ["VAE", "BayesianDecoder", "ConditionalVAE", "HierarchicalVAE", "models"]
