"""Generative models p(x, z), one file each, as Pyro programs."""

from .base import models
from .conditional_vae import ConditionalVAE
from .vae import VAE

__all__ = ["VAE", "ConditionalVAE", "models"]
