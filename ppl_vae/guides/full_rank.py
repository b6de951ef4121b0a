"""The full-rank guide."""

from __future__ import annotations

from ..networks import FullRankNormal
from .base import Amortized, guides

__all__ = ["FullRank"]


@guides.register("full-rank")
class FullRank(Amortized):
    r"""Full-rank Gaussian: the dimensions of a site correlated given x, by an amortized Cholesky factor.

    .. math:: q(z \mid x) = N(z;\, m(x),\, L(x) L(x)^\top)

    A site of D dimensions costs D(D + 1)/2 outputs and D² multiplications a draw. Different sites stay independent.
    """

    head = FullRankNormal
