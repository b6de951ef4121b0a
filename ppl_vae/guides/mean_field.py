"""The mean-field guide."""

from __future__ import annotations

from ..networks import DiagonalNormal
from .base import Amortized, guides

__all__ = ["MeanField"]


@guides.register("mean-field")
class MeanField(Amortized):
    r"""Diagonal Gaussian: every dimension of z independent given x.

    .. math:: q(z \mid x) = \prod_d N(z_d;\, m_d(x),\, s_d(x)^2)

    Reference: Kingma and Welling, Auto-encoding variational Bayes, ICLR 2014 (https://arxiv.org/abs/1312.6114).
    """

    head = DiagonalNormal
