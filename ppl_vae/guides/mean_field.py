"""The mean-field guide."""

from __future__ import annotations

from ..networks import DiagonalNormal
from .base import Amortized, guides

__all__ = ["MeanField"]


@guides.register("mean-field")
class MeanField(Amortized):
    r"""Diagonal Gaussian: every dimension of z independent given x.

    .. math:: q(z \mid x) = \prod_d N(z_d;\, m_d(x),\, s_d(x)^2)

    q of a site has batch shape (\*S, N) and the events that the model declares; log s lies softly within ±7. A site of
    another support than the real line has its Gaussian in the unconstrained space (`networks.Head`). Different sites
    are independent given x.

    Args:
        model: what the guide is for; only its `latents` are read.
        encoder: features of a batch.

    Raises:
        InputError: a latent site shared by all data, or of a discrete support.

    Reference: Kingma and Welling, Auto-encoding variational Bayes, ICLR 2014 (https://arxiv.org/abs/1312.6114).
    """

    head = DiagonalNormal
