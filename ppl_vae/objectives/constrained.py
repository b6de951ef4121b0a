"""The best reconstruction that a bound on the KL allows, by a learned multiplier."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import check_number
from ..weights import Program
from .base import Terms, objectives
from .decomposition import logged
from .divergence import KL, WithDivergence, expected, parts

__all__ = ["Constrained"]


@objectives.register("constrained")
class Constrained(WithDivergence):
    r"""The best reconstruction among q with KL(q(z | x) ‖ p(z)) <= ε on average, the multiplier being learned.

    .. math::
        \max_{θ, φ} \; \frac1N \sum_n E_q[\log p(x_n \mid z)] \quad \text{with} \quad
        \frac1N \sum_n \mathrm{KL}_n \le ε

    is the saddle point of the Lagrangian :math:`\min_{θ, φ} \max_{β \ge 0} -E_q[\log p(x | z)] + β (\mathrm{KL} - ε)`.
    The pair takes a step down and the multiplier one up,

    .. math:: β \leftarrow \max\big(0,\; β + η\,(\overline{\mathrm{KL}} - ε)\big)

    with the batch's mean KL. Where training settles, complementary slackness holds, β (KL - ε) = 0: either the KL is at
    ε, with the β of the `ELBO` which would have led there, or the constraint does not bind and β is 0.

    Args:
        epsilon: ε >= 0, nats.
        rate: η > 0. A larger one finds β sooner, and makes it swing.
        start: β at the start, 0 or more; with 1 the first step is the ELBO's.
        particles, kl, data_size: as for `ELBO`.

    Attributes:
        multiplier: a buffer, β; it stands still in evaluation mode.

    Logs besides the bound's parts: "multiplier", and the decomposition of `logged` where there is one.

    Raises:
        InputError: numbers out of range; at the first call, a pair that breaks a rule, or a point mass.

    References:
        Higgins et al., β-VAE, ICLR 2017, whose β is the multiplier of this problem.
        Rezende and Viola, Taming VAEs, 2018 (https://arxiv.org/abs/1810.00597), with the reconstruction constrained.
    """

    multiplier: Tensor

    def __init__(
        self,
        epsilon: float = 10.0,
        rate: float = 0.01,
        start: float = 1.0,
        particles: int = 1,
        kl: KL = "auto",
        data_size: int | None = None,
    ) -> None:
        super().__init__(particles, kl, data_size)
        self.epsilon = check_number("epsilon", epsilon, least=0.0)
        self.rate = check_number("rate", rate, above=0.0)
        self.register_buffer("multiplier", torch.tensor(check_number("start", start, least=0.0)))

    def terms(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Terms:
        w = self.weights(model, guide, *args, **kwargs)
        self.refuse_rigid(w)
        kl = self.divergence(w)
        # a copy: the buffer moves below, and the gradient wants what it was
        beta = self.multiplier.clone()
        loss = expected(w, beta * (kl - self.epsilon) - w.log_likelihood)
        logs = parts(w, kl)
        if self.training:
            with torch.no_grad():
                step = self.rate * (logs["kl"].mean() - self.epsilon)
                self.multiplier.copy_((beta + step).clamp(min=0.0))
        return Terms(loss, {**logs, "multiplier": beta.to(kl.dtype).expand(w.size), **logged(w, None)})

    def extra_repr(self) -> str:
        return f"epsilon={self.epsilon:g}, rate={self.rate:g}, particles={self.particles}"
