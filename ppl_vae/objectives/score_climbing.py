"""Markovian score climbing: forward KL along a chain of conditional importance sampling for each datum."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..core import LatentModel, LatentSpec
from ..validation import validation
from ..weights import LogWeights, Program, log_weights
from .base import Objective, Terms, objectives
from .chains import Chains
from .held import held
from .wake import forward_loss, usable, weightless

__all__ = ["ScoreClimbing", "fresh_logs", "shares"]


@objectives.register("score-climbing")
class ScoreClimbing(Objective):
    r"""Score climbing: fits q by KL(p(z | x) ‖ q), along a Markov chain of each datum.

    With z_0 where the chain of a datum is, and z_1 ... z_K ~ q(z | x) fresh ones,

    .. math::
        -\sum_{k=0}^K \tilde w_k \big(\log p(x, z_k) + \log q(z_k \mid x)\big), \qquad
        \tilde w_k = \frac{w_k}{\sum_{j=0}^K w_j}, \quad w_k = \frac{p(x, z_k)}{q(z_k \mid x)}

    and the chain moves to z_k with probability w̃_k. This move (conditional importance sampling) leaves p(z | x) as it
    is whatever q and K are: once the chain is there, the guide's gradient is an unbiased one of KL(p(z | x) ‖ q), where
    `Wake`'s is biased at a finite K, and the model's is one of log p(x). Draws and weights are constants: no site needs
    a reparameterization. Enumerated sites are drawn.

    The chain of a datum starts at its first visit, with K + 1 fresh draws. A datum is visited once an epoch: chains are
    as old as there were epochs. In evaluation mode (`eval()`), as on validation data, the chains stand still and the
    K draws alone are weighed, as by `Wake`. A datum all of whose draws have p(x, z) = 0 is passed over, and its chain
    stays.

    Args:
        model: whose latents the chains are of; only its `latents` are read.
        size: N, the number of training data; batches must have `rows`.
        particles: K, fresh draws for each datum.

    Attributes:
        chains: the states, (N, 1, \*event) by site, in buffers: they are saved with a run, and moved in place.

    Raises:
        InputError: a size that is none; a latent site shared by all data; a guide that cannot score draws as given; a
            batch without rows, or with rows beyond N; several processes.

    Reference: Naesseth, Lindsten and Blei, Markovian score climbing: variational inference with KL(p ‖ q), NeurIPS 2020
    (https://arxiv.org/abs/2003.10374); all K + 1 draws are averaged here, by their weights.
    """

    scores_given = True
    apart = True

    def __init__(self, model: LatentModel | Mapping[str, LatentSpec], size: int, particles: int = 10) -> None:
        super().__init__(particles)
        self.chains = Chains(model, size, 1, type(self).__name__)
        self.size = size

    def terms(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Terms:
        new = self.check(model, guide, *args, **kwargs)
        if not self.training:
            with validation(False), held():
                w = log_weights(model, guide, *args, particles=self.particles, enumerate=False, **kwargs)
            return Terms(forward_loss(shares(w), w.log_joint, w.log_q), fresh_logs(w))

        rows = self.chains.rows(args, check=new)
        states, started = self.chains.read(rows)

        def continued(name: str, drawn: Tensor) -> Tensor:
            if name not in states or drawn.shape[2:] != states[name].shape[2:]:
                return drawn  # an auxiliary site, or one to be refused
            again = started.reshape(-1, *[1] * (drawn.dim() - 2))
            return torch.cat([torch.where(again, states[name].to(drawn.dtype), drawn[:1]), drawn[1:]])

        with validation(False), held(continued):
            w = log_weights(model, guide, *args, particles=1 + self.particles, enumerate=False, **kwargs)
        self.chains.expect({name: value.shape[2:] for name, value in w.draws.items()})
        share = shares(w)  # (1 + K, N)
        logs = fresh_logs(w, 1)
        with torch.no_grad():
            # of exponential variables with rates w̃ each is the smallest with probability w̃
            chosen = (torch.empty_like(share).exponential_() / share).argmin(0)
            self.chains.write(rows, {name: _at(w.draws[name], chosen) for name in self.chains.shapes})
            logs["moved"] = (chosen > 0).to(share.dtype)
        return Terms(forward_loss(share, w.log_joint, w.log_q), logs)


def shares(w: LogWeights) -> Tensor:
    """w̃, the weights of all particles as shares of their sum, (K, N); 0 where none has any."""
    with torch.no_grad():
        return torch.where(weightless(w.log_w), 0.0, usable(w.log_w).softmax(0))


@torch.no_grad()
def fresh_logs(w: LogWeights, skipped: int = 0) -> dict[str, Tensor]:
    """Bound, ELBO and its parts on the particles after the first ones, which are no draws of this call."""
    log_w = usable(w.log_w)[skipped:]
    log_likelihood = w.log_likelihood.expand(w.particles, w.size)[skipped:].mean(0)
    bound = log_w.logsumexp(0) - math.log(len(log_w))
    elbo = w.log_w[skipped:].mean(0)
    return {"bound": bound, "elbo": elbo, "kl": log_likelihood - elbo, "log_likelihood": log_likelihood}


def _at(values: Tensor, chosen: Tensor) -> Tensor:
    """One particle of each datum, (K, N, \\*event) -> (1, N, \\*event)."""
    index = chosen.reshape(1, -1, *[1] * (values.dim() - 2)).expand(1, *values.shape[1:])
    return values.gather(0, index)
