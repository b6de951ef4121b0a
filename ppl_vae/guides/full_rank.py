"""The full-rank guide."""

from __future__ import annotations

from ..networks import FullRankNormal
from .base import Amortized, guides

__all__ = ["FullRank"]


@guides.register("full-rank")
class FullRank(Amortized):
    r"""Full-rank Gaussian: the dimensions of a site correlated given x, by an amortized Cholesky factor.

    .. math:: q(z \mid x) = N(z;\, m(x),\, L(x) L(x)^\top)

    L is lower triangular with a positive diagonal. A site of D dimensions takes D(D + 3)/2 outputs of its head (D
    means, D(D + 1)/2 elements of L) and about D² multiplications a draw. Different sites stay independent given x. q of
    a site has batch shape (\*S, N) and events (D,); its KL to a diagonal Gaussian has a closed form, `closed_form_kl`.

    Args:
        model: what the guide is for; only its `latents` are read.
        encoder: features of a batch.

    Raises:
        InputError: a latent site shared by all data, of a discrete support, or whose events are no vectors.
    """

    head = FullRankNormal
