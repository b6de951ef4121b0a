"""DIP-VAE: the covariance of the aggregate posterior is drawn to that of the prior."""

from __future__ import annotations

from typing import Any, Literal

import torch

from ..errors import check_number, choose
from ..weights import Program
from .base import Terms, objectives
from .decomposition import decompose
from .divergence import KL, WithDivergence, expected, parts
from .total_correlation import codes_of, detached

__all__ = ["DIPVAE"]


@objectives.register("dip")
class DIPVAE(WithDivergence):
    r"""The bound with a penalty on the moments of the aggregate posterior (disentangled inferred prior).

    .. math::
        \mathrm{ELBO} - λ_{od} \sum_{i \ne j} V_{ij}^2 - λ_d \sum_i (V_{ii} - 1)^2, \qquad
        V = \begin{cases} \mathrm{Cov}_{p(x)}[m(x)] & \text{(I)} \\
        \mathrm{Cov}_{p(x)}[m(x)] + E_{p(x)}[Σ(x)] = \mathrm{Cov}_{q(z)}[z] & \text{(II)} \end{cases}

    with m(x), Σ(x) the mean and covariance of q(z | x), and covariances of the batch (divided by M). With
    λ_od = λ_d = 0 it is the `ELBO`.

    Args:
        off_diagonal: λ_od >= 0, nats.
        diagonal: λ_d >= 0, nats; None: 10 λ_od for "I", λ_od for "II", as the paper has it.
        kind: "I" or "II".
        size: N, for the decomposition that is logged alone.
        particles, kl, data_size: as for `ELBO`.

    Logs besides the bound's parts: "penalty", nats for each datum, and the decomposition of `BetaTCVAE`.

    Raises:
        InputError: numbers out of range; a batch of one datum; a guide that is no Gaussian of one site given x.

    Reference: Kumar, Sattigeri and Balakrishnan, Variational inference of disentangled latent concepts from unlabeled
    observations, ICLR 2018 (https://arxiv.org/abs/1711.00848).
    """

    def __init__(
        self,
        off_diagonal: float = 10.0,
        diagonal: float | None = None,
        kind: Literal["I", "II"] = "II",
        size: int | None = None,
        particles: int = 1,
        kl: KL = "auto",
        data_size: int | None = None,
    ) -> None:
        super().__init__(particles, kl, data_size)
        if kind not in ("I", "II"):
            raise choose("kind", kind, ("I", "II"))
        self.kind: Literal["I", "II"] = kind
        self.off_diagonal = check_number("off_diagonal", off_diagonal, least=0.0)
        usual = self.off_diagonal * (10.0 if kind == "I" else 1.0)
        self.diagonal = usual if diagonal is None else check_number("diagonal", diagonal, least=0.0)
        self.size = size

    def terms(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Terms:
        w = self.weights(model, guide, *args, **kwargs)
        self.refuse_rigid(w)
        codes = codes_of(w, type(self).__name__, guide)
        kl = self.divergence(w)
        gap = codes.loc - codes.loc.mean(0)
        moments = gap.mT @ gap / w.size
        if self.kind == "II":
            moments = moments + codes.covariance().mean(0)
        own = moments.diagonal()
        off = moments.square().sum() - own.square().sum()
        penalty = self.off_diagonal * off + self.diagonal * (own - 1.0).square().sum()
        loss = expected(w, kl - w.log_likelihood) + penalty
        with torch.no_grad():
            part = detached(decompose(codes, self.size))
        return Terms(loss, {**parts(w, kl), "penalty": penalty.detach().expand(w.size), **part})

    def extra_repr(self) -> str:
        return f"kind={self.kind!r}, off_diagonal={self.off_diagonal:g}, diagonal={self.diagonal:g}"
