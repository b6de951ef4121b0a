"""The guide that is a point: an autoencoder's encoder, or the posterior's mode."""

from __future__ import annotations

import pyro.distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from ..networks import Head
from .base import Amortized, guides

__all__ = ["Delta"]


class Point(Head):
    """The point mass at an affine map of the features, carried to the site's support."""

    def count(self) -> int:
        return self.numel

    def gaussian(self, numbers: Tensor) -> TorchDistributionMixin:
        free: TorchDistributionMixin = dist.Delta(
            numbers.reshape(*numbers.shape[:-1], *self.free_shape), event_dim=len(self.free_shape)
        )
        return free

    def to_support(self, free: TorchDistributionMixin) -> TorchDistributionMixin:
        if self.transform is None:
            return free
        # the value alone: a point has no volume that the transform could change
        point: TorchDistributionMixin = dist.Delta(self.transform(free.mean), event_dim=len(self.event_shape))
        return point


@guides.register("delta")
class Delta(Amortized):
    r"""A point for each datum, m(x): with ``ELBO(beta=0)`` an autoencoder, with ``ELBO()`` the posterior's mode.

    .. math:: q(z \mid x) = δ(z - m(x)), \qquad m(x) = A\,\mathrm{encoder}(x) + b

    A point mass has no density. By Pyro's convention log q(m(x) | x) = 0, so that the loss is, in nats a datum,

    .. math:: -\log p(x \mid m(x)) - β \log p(m(x))

    With β = 0 this is an autoencoder's reconstruction loss, which knows no p(z); with β = 1 it is -log p(x, m(x)), for
    a model that is held least at the mode of p(z | x), in the site's own units. Neither bounds log p(x): the true
    KL(q ‖ p(z | x)) is infinite. Objectives of importance weights, log p(x) and k-hat refuse this guide by name;
    `evaluate.at_points` says what can be said.

    q of a site has batch shape (\*S, N) and the events that the model declares. Every particle is the same.

    Args:
        model: what the guide is for; only its `latents` are read.
        encoder: features of a batch.

    Raises:
        InputError: a latent site shared by all data, or of a discrete support.

    References:
        Hinton and Salakhutdinov, Reducing the dimensionality of data with neural networks, Science 2006.
        Ghosh et al., From variational to deterministic autoencoders, ICLR 2020 (https://arxiv.org/abs/1903.12436).
    """

    head = Point
    scores_given = False
    density = False
