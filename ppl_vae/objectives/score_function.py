"""Bounds for guides whose draws pass no gradient: the score function with a baseline."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import InputError, choose
from ..weights import LogWeights, Program
from .base import Objective, Terms, objectives
from .divergence import expected
from .iwae import bound_logs, log_mean_weights

__all__ = ["ScoreFunction"]

Baseline = Literal["auto", "leave-one-out", "moving-average", "none"]
_BASELINES = ("auto", "leave-one-out", "moving-average", "none")
_DECAY = 0.95


@objectives.register("score-function")
class ScoreFunction(Objective):
    r"""The ELBO for guides with draws that pass no gradient, discrete ones above all: score function with a baseline.

    .. math::
        \nabla_φ \mathrm{ELBO} = E\Big[(f - b) \, \nabla_φ \log q(z_r \mid x) + \nabla_φ f\Big], \qquad
        f = \log p(x, z) - \log q(z \mid x)

    z_r are the guide's sites without reparameterization; all others keep the gradient through their draws, the last
    term. b lowers the variance and leaves the mean as it is. f and b are of one datum: what other data contribute to
    the loss multiplies no datum's score. -∇ log q(z_r), whose mean is 0, is left out of ∇f: where q is the posterior,
    f is constant and the leave-one-out gradient 0 on every draw.

    Without such sites this is ``ELBO(kl="monte-carlo")`` or `IWAE`. The loss has the value -f, the score's term has a
    gradient alone.

    Args:
        particles: K draws a datum.
        baseline: b of a particle. "leave-one-out": the mean of f over the datum's other particles (for "iwae" VIMCO's:
            the bound with this particle's weight replaced by the geometric mean of the others); "moving-average": of f
            over past batches, one number for all data; "none": 0; "auto": leave-one-out, or the moving average where
            K = 1.
        bound: "elbo", mean of f over particles, or "iwae", the log of their mean weight.

    Attributes:
        total, weight: buffers of the moving average, total / weight. They change in training alone, with gradients on.

    Raises:
        InputError: an unknown `baseline` or `bound`, "leave-one-out" of one particle; at the first call, a latent site
            shared by all data, or a guide with both an enumerated site and one without reparameterization.

    References:
        Mnih and Gregor, Neural variational inference and learning in belief networks, ICML 2014
        (https://arxiv.org/abs/1402.0030).
        Mnih and Rezende, Variational inference for Monte Carlo objectives, ICML 2016 (https://arxiv.org/abs/1602.06725).
        Kool, van Hoof and Welling, Buy 4 REINFORCE samples, get a baseline for free, ICLR 2019 workshop.
    """

    total: Tensor
    weight: Tensor

    def __init__(
        self, particles: int = 5, baseline: Baseline = "auto", bound: Literal["elbo", "iwae"] = "elbo"
    ) -> None:
        super().__init__(particles)
        if baseline not in _BASELINES:
            raise choose("baseline", baseline, _BASELINES)
        if bound not in ("elbo", "iwae"):
            raise choose("bound", bound, ("elbo", "iwae"))
        if baseline == "leave-one-out" and particles == 1:
            raise InputError(
                "baseline='leave-one-out' is of other particles, and particles=1; use 2 or more, or 'moving-average'"
            )
        self.baseline = baseline
        self.bound = bound
        self.leaves_classes = bound == "iwae" and particles > 1
        self.register_buffer("total", torch.zeros(()))
        self.register_buffer("weight", torch.zeros(()))

    def terms(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Terms:
        w = self.weights(model, guide, *args, **kwargs)
        if w.rigid and w.enumerated:
            raise InputError(
                f"ScoreFunction takes guides that enumerate or that draw: {', '.join(map(repr, w.enumerated))} is "
                f"enumerated and {', '.join(map(repr, w.rigid))} drawn without reparameterization; enumerate both, or "
                "none"
            )
        f = w.log_w
        bound = expected(w, f) if self.bound == "elbo" else log_mean_weights(w, f)
        loss = -bound
        if w.rigid:
            loss = loss - self._score(w, f.detach(), bound.detach())
        return Terms(loss, bound_logs(w, bound))

    def _score(self, w: LogWeights, f: Tensor, bound: Tensor) -> Tensor:
        """(N,) of value 0, with the gradient of the score function's part."""
        log_q = torch.stack([w.log_guide[name].expand(f.shape) for name in w.rigid]).sum(0)  # (K, N)
        if self.bound == "elbo":
            # + 1 takes away the ∇ log q that f itself has
            term = ((f - self._baseline(f, f) + 1.0) * log_q).mean(0)
        else:
            term = ((bound - self._baseline(f, bound)) * log_q).sum(0)
        return term - term.detach()

    def _baseline(self, f: Tensor, signal: Tensor) -> Tensor:
        """b of each particle: from the others' f, (K, N), or from past batches' signal, a number."""
        k = self.particles
        if self.baseline == "none":
            return f.new_zeros(())
        if self.baseline == "moving-average" or k == 1:
            return self._average(signal)
        others = (f.sum(0) - f) / (k - 1)
        if self.bound == "elbo":
            return others
        own = torch.eye(k, dtype=torch.bool, device=f.device).unsqueeze(-1)
        replaced = torch.where(own, others.unsqueeze(1), f.unsqueeze(0))  # (particle replaced, K, N)
        return replaced.logsumexp(1) - math.log(k)

    def _average(self, signal: Tensor) -> Tensor:
        """The average of past batches; this one is added for the next, since b must not depend on its draws."""
        average = self.total / self.weight.clamp_min(torch.finfo(self.weight.dtype).tiny)
        if self.training and torch.is_grad_enabled():
            with torch.no_grad():
                self.total.mul_(_DECAY).add_((1.0 - _DECAY) * signal.mean())
                self.weight.mul_(_DECAY).add_(1.0 - _DECAY)
        return average.to(signal.dtype)

    def extra_repr(self) -> str:
        return f"particles={self.particles}, baseline={self.baseline!r}, bound={self.bound!r}"
