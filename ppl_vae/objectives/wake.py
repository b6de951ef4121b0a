"""The wake phase: forward KL by importance weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..validation import validation
from ..weights import Program, log_weights
from .base import Objective, Terms, objectives
from .held import held
from .iwae import bound_logs, log_mean_weights

__all__ = ["Wake", "forward_loss", "usable", "weightless"]


@objectives.register("wake")
class Wake(Objective):
    r"""Wake phase of reweighted wake-sleep: fits q by KL(p(z | x) ‖ q), with importance weights.

    .. math::
        -\sum_k \tilde w_k \big(\log p(x, z_k) + \log q(z_k \mid x)\big), \qquad
        \tilde w_k = \frac{w_k}{\sum_j w_j}, \quad w_k = \frac{p(x, z_k)}{q(z_k \mid x)}, \quad z_k \sim q(z \mid x)

    Draws and weights are constants. So the model's gradient is that of the importance-weighted bound of K particles,
    and the guide's is -Σ w̃_k ∇ log q(z_k | x), an estimate of the gradient of KL(p(z | x) ‖ q) that is biased by O(1/K)
    at a finite K. Where a reverse KL lets q cover one mode, this one asks it to cover them all, as far as draws of q
    have met them. No gradient passes through a draw: sites need no reparameterization, and discrete ones no
    enumeration. Enumerated sites are summed exactly. A datum all of whose draws have p(x, z) = 0 is passed over: its
    loss is 0, and the bound that is logged -inf.

    Args:
        particles: K, per datum, 2 or more: a single weight is always 1.

    Raises:
        InputError: fewer than 2 particles; a latent site shared by all data (there is no weight per datum); a guide
            that cannot score draws as given.

    References: Bornschein and Bengio, Reweighted wake-sleep, ICLR 2015 (https://arxiv.org/abs/1406.2751). Le et al.,
    Revisiting reweighted wake-sleep for models with stochastic control flow, UAI 2019
    (https://arxiv.org/abs/1805.10469).
    """

    scores_given = True
    apart = True

    def __init__(self, particles: int = 10) -> None:
        super().__init__(particles)
        if particles < 2:
            raise InputError("particles=1: a single weight is always 1, whatever its draw; give 2 or more")

    def terms(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Terms:
        self.check(model, guide, *args, **kwargs)
        with validation(False), held():
            w = log_weights(model, guide, *args, particles=self.particles, **kwargs)
        with torch.no_grad():
            log_w = usable(w.log_w)
            bound = log_mean_weights(w, log_w)
            # of a class there is one draw for each particle: its weight has no log q(c | x) in its denominator
            share = (log_w + w.log_q_enumerated - bound).exp() / w.particles  # (*C, K, N)
            share = torch.where(weightless(w.log_w), 0.0, share)
        return Terms(forward_loss(share, w.log_joint, w.log_q), bound_logs(w, bound))


def usable(log_w: Tensor) -> Tensor:
    """Log-weights with -inf for those that are no numbers or +inf: such a draw has left the model's support or its
    precision, and is given no weight."""
    return torch.where(log_w < math.inf, log_w, -math.inf)


def weightless(log_w: Tensor) -> Tensor:
    """Whether no draw of a datum has any weight, (\\*C, K, N) -> (N,): all lie where p(x, z) = 0. Such a datum says
    nothing of where to go, and is passed over. Weights that are no numbers stay what they are, for they are a fault."""
    return (log_w == -math.inf).flatten(0, -2).all(0)


def forward_loss(share: Tensor, log_joint: Tensor, log_q: Tensor) -> Tensor:
    """-Σ share (log p(x, z) + log q(z | x)) over classes and particles, (\\*C, K, N) -> (N,); a draw without a share
    counts nothing, whatever its density."""
    terms = torch.where(share == 0, 0.0, share * (log_joint + log_q))
    return -terms.sum(tuple(range(terms.dim() - 1)))
