"""Disentanglement: how far single dimensions of the codes stand for single factors of the data.

Each metric takes codes (N, D) and factors (N, F) and returns a `Score` with an error bar; `measure` takes a pair and
data with factors. They are computed as disentanglement_lib defines them (Locatello et al., ICML 2019,
https://arxiv.org/abs/1811.12359), with one difference: codes are of a pool of data that is drawn once, and points
are drawn from that pool.
"""

from .beta_vae_score import beta_vae_score
from .dci import dci
from .factor_vae_score import factor_vae_score
from .measure import factor_codes, measure
from .mig import mig
from .pictures import kl_curves, reconstructions_in_time, traversals
from .sap import sap
from .score import Score, metrics
from .udr import udr
from .watch import Watch

__all__ = [
    "Score",
    "Watch",
    "beta_vae_score",
    "dci",
    "factor_codes",
    "factor_vae_score",
    "kl_curves",
    "measure",
    "metrics",
    "mig",
    "reconstructions_in_time",
    "sap",
    "traversals",
    "udr",
]
