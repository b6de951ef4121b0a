"""Models whose density is known up to its normalizer: p(x) ∝ exp(-E(x))."""

from .contrastive import ContrastiveDivergence
from .no_latents import NoLatents
from .partition import LogPartition, log_partition_ais
from .rbm import RBM

__all__ = ["RBM", "ContrastiveDivergence", "LogPartition", "NoLatents", "log_partition_ais"]
