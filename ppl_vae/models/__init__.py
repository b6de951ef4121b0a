"""Generative models p(x, z), one file each, as Pyro programs."""

from .base import models
from .conditional_vae import ConditionalVAE
from .hierarchical_vae import HierarchicalVAE
from .vae import VAE

__all__ = ["VAE", "ConditionalVAE", "HierarchicalVAE", "models"]
