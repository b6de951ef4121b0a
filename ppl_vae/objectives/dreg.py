"""The importance-weighted bound with the doubly reparameterized gradient."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..errors import InputError
from ..weights import LogWeights, Program
from .base import Objective, Terms, objectives
from .iwae import bound_logs, log_mean_weights

__all__ = ["DReG"]


@objectives.register("dreg")
class DReG(Objective):
    r"""Importance-weighted bound with the doubly reparameterized gradient, whose signal grows with K.

    .. math::
        \nabla_φ L_K = E\Big[\sum_k \tilde w_k^2 \, \frac{\partial \log w_k}{\partial z_k}
        \frac{\partial z_k}{\partial φ}\Big], \qquad
        \nabla_θ L_K = E\Big[\sum_k \tilde w_k \, \nabla_θ \log p(x, z_k)\Big], \qquad
        \tilde w_k = \frac{w_k}{\sum_j w_j}

    It is unbiased for every K; K = 1 is `STL`. The weights are squared for the guide's parameters φ alone, the model's
    θ have the ordinary gradient. A parameter of both has the sum of both parts. Values are those of `IWAE`. It gives
    first derivatives only.

    Enumerated classes are summed as by `IWAE`, with weights w̃ over classes and particles. The draws then either all
    lie behind the classes, (C, K, N), or all before them.

    Args:
        particles: K, per datum.

    Raises:
        InputError: at the first call, a latent site shared by all data, a site of the guide without reparameterization,
            a guide that cannot score given draws or takes random numbers besides them (dropout); draws on both
            sides of an enumerated site.

    Reference: Tucker, Lawson, Gu and Maddison, Doubly reparameterized gradient estimators for Monte Carlo objectives,
    ICLR 2019 (https://arxiv.org/abs/1810.04152).
    """

    scores_given = True
    stop_guide = True
    leaves_classes = True

    def __init__(self, particles: int = 5) -> None:
        super().__init__(particles)

    def terms(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Terms:
        w = self.weights(model, guide, *args, **kwargs)
        self.refuse_rigid(w)
        bound = log_mean_weights(w, w.log_w)
        self._weigh_again(w)
        return Terms(-bound, bound_logs(w, bound))

    def _weigh_again(self, w: LogWeights) -> None:
        """Multiply by w̃ where a draw enters log w: with the bound's own w̃ that is w̃²."""
        log_w = (w.log_w + w.log_q_enumerated).detach() if w.enumerated else w.log_w.detach()
        every = tuple(range(log_w.dim() - 1))
        weights = (log_w - log_w.logsumexp(every, keepdim=True)).exp()  # (*C, K, N)
        before = {name: copy.value.dim() - copy.event_dim < log_w.dim() for name, copy in w.copies.items()}
        if any(before.values()):
            if not all(before.values()) or len(w.enumerated) > 1:
                raise InputError(
                    f"DReG cannot weigh the draws of {', '.join(map(repr, w.copies))}: some are made before and some "
                    f"after the enumerated site {', '.join(map(repr, w.enumerated))}, and a weight would pass twice "
                    "from one to the other; use IWAE, or draw all of them after it"
                )
            weights = weights.sum(0)
        for copy in w.copies.values():
            if copy.value.requires_grad:
                copy.value.register_hook(_times(weights.reshape(*weights.shape, *[1] * copy.event_dim)))


def _times(weights: Tensor) -> Any:
    return lambda gradient: gradient * weights
