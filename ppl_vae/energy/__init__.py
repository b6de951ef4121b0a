"""Models whose density is known up to its normalizer: p(x) ∝ exp(-E(x))."""

from ..langevin import Chain, ChainError, langevin
from ..unnormalized import Unnormalized
from .contrastive import ContrastiveDivergence
from .likelihood import LangevinLikelihood
from .model import EnergyModel
from .no_latents import NoLatents
from .partition import LogPartition, log_partition_ais
from .rbm import RBM

__all__ = [
    "RBM",
    "Chain",
    "ChainError",
    "ContrastiveDivergence",
    "EnergyModel",
    "LangevinLikelihood",
    "LogPartition",
    "NoLatents",
    "Unnormalized",
    "langevin",
    "log_partition_ais",
]
