"""Capacity control: the KL is held at a value that rises while training goes on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import check_count, check_number
from ..weights import Program
from .base import Terms, objectives
from .decomposition import logged
from .divergence import KL, WithDivergence, expected, parts

__all__ = ["Capacity"]


@objectives.register("capacity")
class Capacity(WithDivergence):
    r"""Reconstruction with the batch's mean KL held at C(t) nats, which rises linearly from 0.

    .. math::
        \frac1N \sum_n E_q[\log p(x_n \mid z)] - γ \,\Big|\frac1N \sum_n \mathrm{KL}_n - C(t)\Big|, \qquad
        C(t) = C \cdot \min(t / T,\, 1)

    Early on, the few nats that are allowed go to the factors that lower the reconstruction's error most; as C rises,
    further dimensions join. The KL is the mean over the batch, so that easy data may take fewer nats than others.
    With γ = 1 and C = 0 it is the `ELBO`.

    Args:
        gamma: γ >= 0. Where it is large the KL stays at C(t); where it is below the nats of reconstruction that one nat
            of KL buys, the KL goes beyond.
        capacity: C >= 0, nats, at the end.
        steps: T, training steps over which C(t) rises; 0 holds it at C from the start.
        particles, kl, data_size: as for `ELBO`.

    Attributes:
        step: a buffer, t: how many steps were taken; it stands still in evaluation mode.

    Logs besides the bound's parts: "capacity", C(t), and the decomposition of `logged` where there is one.

    Raises:
        InputError: numbers out of range; at the first call, a pair that breaks a rule, or a point mass.

    Reference: Burgess et al., Understanding disentangling in β-VAE, 2018 (https://arxiv.org/abs/1804.03599), who have
    γ = 1000 and C from 0 to 25 nats over 100,000 steps.
    """

    step: Tensor

    def __init__(
        self,
        gamma: float = 1000.0,
        capacity: float = 25.0,
        steps: int = 10_000,
        particles: int = 1,
        kl: KL = "auto",
        data_size: int | None = None,
    ) -> None:
        super().__init__(particles, kl, data_size)
        self.gamma = check_number("gamma", gamma, least=0.0)
        self.capacity = check_number("capacity", capacity, least=0.0)
        self.steps = check_count("steps", steps, 0)
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    def terms(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Terms:
        w = self.weights(model, guide, *args, **kwargs)
        self.refuse_rigid(w)
        kl = self.divergence(w)
        wanted = self.wanted().to(kl.dtype)
        gap = (expected(w, kl).mean() - wanted).abs()
        loss = self.gamma * gap - expected(w, w.log_likelihood)
        if self.training:
            with torch.no_grad():
                self.step.add_(1)
        return Terms(loss, {**parts(w, kl), "capacity": wanted.expand(w.size), **logged(w, None)})

    def wanted(self) -> Tensor:
        """C(t) of the coming step, nats."""
        if self.steps == 0:
            return torch.full_like(self.step, self.capacity, dtype=torch.get_default_dtype())
        return self.capacity * (self.step / self.steps).clamp(max=1.0)

    def extra_repr(self) -> str:
        return f"gamma={self.gamma:g}, capacity={self.capacity:g}, steps={self.steps}, particles={self.particles}"
