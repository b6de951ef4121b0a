"""Guides made exact by hand: an encoder that changes nothing, and heads set to a given Gaussian."""

import torch
from torch import Tensor

from ppl_vae import Batch, Encoder, networks
from ppl_vae.networks import LOG_SCALE_BOUND, join


class Identity(Encoder):
    """x itself, and latents beside it: conditionals without hidden layers are then affine."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features

    def forward(self, batch: Batch, **latents: Tensor) -> Tensor:
        return join(batch.x, *latents.values())


def numbers(covariance: Tensor, diagonal: bool) -> Tensor:
    """What a head takes beside its means: log-scales before they are bounded and, unless diagonal, what is below."""
    tril = torch.linalg.cholesky(covariance)
    raw = LOG_SCALE_BOUND * torch.atanh(tril.diagonal().log() / LOG_SCALE_BOUND)
    rows, columns = torch.tril_indices(*tril.shape, offset=-1)
    return raw if diagonal else torch.cat([raw, tril[rows, columns]])


def set_gaussian(head: networks.Head, gain: Tensor, offset: Tensor, covariance: Tensor) -> None:
    """Make a head N(gain @ features + offset, covariance); a diagonal head takes the variances alone."""
    linear = head.linear.linear
    with torch.no_grad():
        linear.weight.zero_()
        linear.weight[: len(offset)] = gain
        linear.bias.copy_(torch.cat([offset, numbers(covariance, isinstance(head, networks.DiagonalNormal))]))
