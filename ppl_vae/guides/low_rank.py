"""The low-rank guide."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import cast

from ..core import Encoder, LatentModel
from ..errors import InputError, check_count
from ..networks import Head, LowRankNormal
from .base import Amortized, guides

__all__ = ["LowRank"]

_RANK = 2


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
        rank: r, 1 or more, and no more than D.

    Raises:
        InputError: a rank that is none, or above 2 and the D of every site; a latent site shared by all data, of a
            discrete support, or whose events are no vectors.

    Reference: Ong, Nott and Smith, Gaussian variational approximation with a factor covariance structure, Journal of
    Computational and Graphical Statistics 2018 (https://arxiv.org/abs/1701.03208).
    """

    def __init__(self, model: LatentModel, encoder: Encoder, rank: int = _RANK) -> None:
        check_count("rank", rank)
        super().__init__(model, encoder, partial(LowRankNormal, rank=rank))
        largest = max(head.numel for head in cast("Iterable[Head]", self.heads.values()))
        if rank > max(largest, _RANK):  # the default is for sites of one dimension too
            raise InputError(
                f"rank={rank} is more than the {largest} dimensions of {type(model).__name__}'s latents: from "
                f"{max(1, largest - 1)} on every covariance can be had; give as much or less, or use FullRank"
            )
