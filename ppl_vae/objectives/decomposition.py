"""The KL of the evidence lower bound in three parts, from the aggregate posterior as a batch shows it."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import Normal

from ..errors import InputError
from ..kl import gaussian_of
from ..weights import LogWeights

__all__ = ["Decomposition", "Estimator", "GaussianCodes", "decompose", "gaussian_codes", "logged"]

Estimator = Literal["stratified", "weighted"]

_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


class GaussianCodes(NamedTuple):
    """Draws of one latent site and the Gaussians that they are of, for every datum of a batch.

    Args:
        z: (K, N, D) draws.
        loc: (N, D) means.
        scale: (N, D) standard deviations of each dimension.
        factor: (N, D, D) Cholesky factors of the covariances; None where they are diagonal.
        log_q: (K, N) log q(z_n | x_n).
        log_prior: (K, N) log p(z_n).
    """

    z: Tensor
    loc: Tensor
    scale: Tensor
    factor: Tensor | None
    log_q: Tensor
    log_prior: Tensor

    def pairwise(self) -> tuple[Tensor, Tensor]:
        """log q(z_i | x_j), (K, N, N) with j last, and that of every dimension by itself, (K, N, N, D)."""
        gap = self.z.unsqueeze(-2) - self.loc
        each = -0.5 * (gap / self.scale).square() - self.scale.log() - _HALF_LOG_2PI
        if self.factor is None:
            return each.sum(-1), each
        whitened = torch.linalg.solve_triangular(self.factor, gap.unsqueeze(-1), upper=False).squeeze(-1)
        log_det = self.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return -0.5 * whitened.square().sum(-1) - log_det - self.z.shape[-1] * _HALF_LOG_2PI, each

    def covariance(self) -> Tensor:
        """(N, D, D) covariances of q(z | x_n)."""
        if self.factor is None:
            return torch.diag_embed(self.scale.square())
        return self.factor @ self.factor.mT


class Decomposition(NamedTuple):
    r"""The three parts of a bound's KL, (N,) each, nats; their sum is log q(z | x) - log p(z).

    .. math::
        E_{p(x)} \mathrm{KL}(q(z \mid x) \,\|\, p(z)) = \underbrace{I_q(x; z)}_{\text{mutual information}} +
        \underbrace{\mathrm{KL}\big(q(z) \,\|\, \textstyle\prod_d q(z_d)\big)}_{\text{total correlation}} +
        \underbrace{\mathrm{KL}\big(\textstyle\prod_d q(z_d) \,\|\, p(z)\big)}_{\text{dimension-wise KL}}
    """

    mutual_information: Tensor
    total_correlation: Tensor
    dimension_kl: Tensor


def gaussian_codes(w: LogWeights) -> GaussianCodes | None:
    """The codes of a pair with one latent site whose q is a Gaussian given x alone; None of any other."""
    if w.enumerated or w.shared or len(w.pairs) != 1 or set(w.log_guide) != set(w.pairs):
        return None
    ((name, pair),) = w.pairs.items()
    found = _gaussian(pair.guide)
    if found is None or isinstance(pair.mask, Tensor) or name not in w.log_prior:
        return None
    loc, scale, factor = found
    z = w.draws[name]
    event = z.dim() - 2
    shape = (w.particles, w.size)
    # the same Gaussian for every particle: what the particles' plate has expanded
    loc, scale = (t.expand(*shape, *t.shape[t.dim() - event :])[0].reshape(w.size, -1) for t in (loc, scale))
    if factor is not None:
        factor = factor.expand(*shape, *factor.shape[-2:])[0]
    return GaussianCodes(
        z.expand(*shape, *z.shape[2:]).reshape(*shape, -1),
        loc,
        scale,
        factor,
        w.log_guide[name].expand(shape),
        w.log_prior[name].expand(shape),
    )


def _gaussian(q: TorchDistributionMixin) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """Mean, standard deviations and Cholesky factor of a Gaussian, None where it is diagonal."""
    gaussian = gaussian_of(q)
    if isinstance(gaussian, Normal):
        return gaussian.loc, gaussian.scale, None
    if gaussian is None or gaussian is not q:
        return None
    return gaussian.loc, gaussian.variance.sqrt(), gaussian.scale_tril


def decompose(codes: GaussianCodes, size: int | None = None, estimator: Estimator = "stratified") -> Decomposition:
    r"""The parts of the KL, with q(z) estimated from a batch of M data out of N.

    .. math::
        \hat q(z_i) = \sum_j v_{ij}\, q(z_i \mid x_j), \qquad
        v_{ij} = \begin{cases} 1/N & i = j \\ (N - 1) / (N (M - 1)) & i \ne j \end{cases}
        \quad \text{(stratified)}, \qquad v_{ij} = \frac{1}{N M} \quad \text{(weighted)}

    and every q(z_d) in the same way. The stratified sum is an unbiased estimate of q(z_i) for a batch drawn without
    replacement (its logarithm is biased, and exact where the batch is all the data); it is the paper's, averaged over
    which datum stands for those outside of the batch. The weighted one is off by about log N in every logarithm: of
    its total correlation only the gradient is of use.

    Args:
        codes: from `gaussian_codes`.
        size: N; None: the batch is all the data.
        estimator: "stratified" or "weighted".

    Reference: Chen et al., Isolating sources of disentanglement in VAEs, NeurIPS 2018
    (https://arxiv.org/abs/1802.04942), sections 3 and C.
    """
    joint, each = codes.pairwise()
    batch = codes.loc.shape[0]
    log_v = _log_shares(batch, batch if size is None else size, estimator, joint)
    log_qz = (joint + log_v).logsumexp(-1)
    log_qzd = (each + log_v.unsqueeze(-1)).logsumexp(-2).sum(-1)
    parts = (codes.log_q - log_qz, log_qz - log_qzd, log_qzd - codes.log_prior)
    return Decomposition(*(part.mean(0) for part in parts))


def _log_shares(batch: int, size: int, estimator: Estimator, like: Tensor) -> Tensor:
    """log v, (M, M)."""
    if size < batch:
        raise InputError(f"size={size} is the number of training data, and a batch has {batch} of them")
    if estimator == "weighted" or batch == 1:
        return like.new_full((batch, batch), -math.log(size) - math.log(batch))
    others = math.log(size - 1) - math.log(size) - math.log(batch - 1)
    own = torch.eye(batch, dtype=torch.bool, device=like.device)
    return torch.where(own, like.new_full((), -math.log(size)), like.new_full((), others))


@torch.no_grad()
def logged(w: LogWeights, size: int | None) -> dict[str, Tensor]:
    """The decomposition for the log, (N,) each, by the stratified estimate; nothing where q is no Gaussian of one site.

    Args:
        size: number of training data N; None: the batch is all the data, and the mutual information then is at most
            the logarithm of its size.
    """
    codes = gaussian_codes(w)
    return {} if codes is None else decompose(codes, size)._asdict()
