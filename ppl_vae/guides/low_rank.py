"""The low-rank guide."""

from __future__ import annotations

from functools import partial

from ..core import Encoder, LatentModel
from ..networks import LowRankNormal
from .base import Amortized, guides

__all__ = ["LowRank"]


@guides.register("low-rank")
class LowRank(Amortized):
    r"""Low-rank Gaussian: r directions of correlation beside a diagonal, by an amortized factor.

    .. math:: q(z \mid x) = N(z;\, m(x),\, D(x) + F(x) F(x)^\top), \quad D = \mathrm{diag}\, s^2, \; F = s \odot U

    U is D × r, in units of s. A site of D dimensions takes (2 + r) D outputs of its head and O(D r²) multiplications a
    draw or density, where a full-rank Gaussian takes D(D + 3)/2 and O(D²). r = 0 would be mean-field; from r = D - 1
    on every covariance can be had. Different sites stay independent given x. q of a site has batch shape (\*S, N) and
    events (D,); its KL to a diagonal Gaussian has a closed form, `closed_form_kl`.

    Args:
        model: what the guide is for; only its `latents` are read.
        encoder: features of a batch.
        rank: r, 1 or more.

    Raises:
        InputError: a rank that is none; a latent site shared by all data, of a discrete support, or whose events are
            no vectors.

    Reference: Ong, Nott and Smith, Gaussian variational approximation with a factor covariance structure, Journal of
    Computational and Graphical Statistics 2018 (https://arxiv.org/abs/1701.03208).
    """

    def __init__(self, model: LatentModel, encoder: Encoder, rank: int = 2) -> None:
        super().__init__(model, encoder, partial(LowRankNormal, rank=rank))
